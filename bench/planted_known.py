"""Circuits whose answer is known, made wrong on purpose, and right ones: compiled programs, and the demo model.

A program's minimal circuits are certified (``rasp.truth``) on all its inputs; what is done to them is a fault by
construction. The whole output is asked for, over all inputs, so that nothing is held out. The demo is asked its own
task, on forty pairs a split. ``FAULTS`` and ``SOUND`` list what makes a ``Plant`` each, as ``planted_blind`` does.
"""

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from planted_blind import INDUCTION, Plant, demo

import voltmeter as vm
from voltmeter.circuit import Circuit
from voltmeter.discover import Faithful, Judge, prepare_fill, prune
from voltmeter.discover.known import known_question
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.setting import Question, setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.wired import wiring_of
from voltmeter.task import Pairs, Task
from voltmeter.wiring.wiring import Wiring

Builder = Callable[[], Plant]
Which = tuple[str, str]  # a program and a fill
FAULTS: list[Builder] = []
SOUND: list[Builder] = []

INPUTS = 96  # of a program; certificate and question are of the same ones
OWN_FILL = ("same-under-other-fills",)
"""A certificate is of its own fill: that the circuit is not enough under another is no fault of the circuit."""


def fault(builder: Builder) -> Builder:
    FAULTS.append(builder)
    return builder


# Programs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Known:
    """A program under a fill: its minimal circuits, and what cutting each edge of the full model changes."""

    of: str
    fill: str
    wiring: Wiring
    task: Task
    minimal: tuple[Circuit, ...]
    effects: dict[str, float]

    @property
    def circuit(self) -> Circuit:
        return self.minimal[0]

    def plant(self, kind: str, says: str, circuit: Circuit, *wrong: str) -> Plant:
        return Plant(f"{kind}:{self.of}:{self.fill}", says, self.wiring, self.task, circuit, self.fill, wrong)

    def edges(self, kept: Sequence[str]) -> Circuit:
        return Circuit.from_edges(self.wiring, kept)


@functools.cache
def model_of(of: str) -> tuple[Compiled, Wiring]:
    made = compiled(program(of), limit=INPUTS)
    return made, wiring_of(made).wiring


@functools.cache
def known(of: str, fill: str) -> Known:
    """The program and all its minimal circuits. Raises ValueError where not all of them are certified."""
    made, wiring = model_of(of)
    told = truth(made, fill)
    if not (told.certified and told.minimal_is_complete and told.minimal[0]):
        raise ValueError(f"the circuits of {of} under {fill} fills are not known, or empty")
    task = known_question(made, wiring, setting_of(made, Question(fill)), "projection").task
    return Known(of, fill, wiring, task, tuple(Circuit.from_edges(wiring, kept) for kept in told.minimal), told.effects)


def lacks_an_edge(of: str, fill: str) -> Plant:
    it = known(of, fill)
    edge = max(it.circuit.names, key=lambda name: it.effects[name])
    says = f"The true circuit without {edge}, the loss of which changes the output most."
    return it.plant("lacks_an_edge", says, it.circuit.without_edges([edge]), "faithful")


def spare_edge(of: str, fill: str) -> Plant:
    """Into a component of which nothing is kept that it writes."""
    it = known(of, fill)
    writers = {name.split(" -> ")[0] for name in it.circuit.names}
    idle = (n for n in it.wiring.edges.names if n.split(" -> ")[1].split("<")[0] not in {*writers, "logits"})
    edge = next(idle)
    says = f"The true circuit, and {edge}, which leads nowhere."
    return it.plant("spare_edge", says, it.circuit.with_edges([edge]), "minimal")


def constant_edge(of: str, fill: str) -> Plant:
    """The positions are the same in both runs."""
    it = known(of, fill)
    read = {name.split(" -> ")[1] for name in it.circuit.names}
    edge = next(n for reader in sorted(read) if (n := f"input.pos -> {reader}") in it.effects and n not in it.circuit)
    says = f"The true circuit, and {edge}, which carries the same kept and cut."
    return it.plant("constant_edge", says, it.circuit.with_edges([edge]), "identifiable", "minimal")


def random_edges(of: str, fill: str) -> Plant:
    it = known(of, fill)
    drawn = random.Random(f"{of} {fill}").sample(it.wiring.edges.names, len(it.circuit))
    says = "Edges drawn at random, as many as the true circuit has."
    return it.plant("random_edges", says, it.edges(drawn), "faithful", "better-than-chance")


def both_ways(of: str, fill: str) -> Plant:
    it = known(of, fill)
    every = sorted({name for circuit in it.minimal for name in circuit.names})
    return it.plant("both_ways", f"All {len(it.minimal)} minimal circuits at once.", it.edges(every), "minimal")


def one_way_of_several(of: str, fill: str) -> Plant:
    it = known(of, fill)
    says = f"One of {len(it.minimal)} minimal circuits; each suffices without the others."
    return it.plant("one_way_of_several", says, it.circuit, "redundant", "complete", "necessary")


def true_elsewhere(of: str, fill: str) -> Plant:
    """Certified under resample fills, asked under another."""
    it, own = known(of, fill), known(of, "resample")
    says = f"The certified circuit under resample fills, given out as one under {fill} fills."
    return it.plant("true_elsewhere", says, own.circuit, "faithful", "same-under-other-fills")


def another_program(of: str, fill: str, other: str) -> Plant:
    it, theirs = known(of, fill), known(other, fill)
    says = f"The certified circuit of {other}, which has the same edges to choose from."
    return it.plant("another_program", says, it.edges(theirs.circuit.names), "faithful")


def everything(of: str, fill: str) -> Plant:
    it = known(of, fill)
    return it.plant("everything", "All edges of the model.", it.edges(it.wiring.edges.names), "minimal")


def nothing(of: str, fill: str) -> Plant:
    it = known(of, fill)
    return it.plant("nothing", "No edge at all.", it.edges(()), "faithful")


ZERO, RESAMPLE = "zero", "resample"
MADE_WRONG: dict[Callable[..., Plant], tuple[tuple[str, ...], ...]] = {
    lacks_an_edge: (("rank", ZERO), ("sort", RESAMPLE), ("is_sorted", ZERO), ("reverse", ZERO)),
    spare_edge: (
        ("reverse", RESAMPLE),
        ("dedupe_mask", RESAMPLE),
        ("most_frequent_token", RESAMPLE),
        ("pattern", ZERO),
    ),
    constant_edge: (("reverse", RESAMPLE), ("sort", RESAMPLE), ("argmax_position", RESAMPLE)),
    random_edges: (("hist", RESAMPLE), ("sort", ZERO), ("majority", RESAMPLE)),
    both_ways: (("two_paths", ZERO), ("two_back_twice", ZERO), ("backup", ZERO)),
    one_way_of_several: (("two_back_twice", ZERO), ("two_paths", ZERO)),
    true_elsewhere: (("sort", ZERO), ("min_token", ZERO), ("first_last_equal", ZERO)),
    another_program: (("modular_count", RESAMPLE, "min_token"), ("count_singletons", ZERO, "running_parity")),
    everything: (("hist", ZERO), ("sort", RESAMPLE)),
    nothing: (("hist", RESAMPLE), ("rank", ZERO)),
}
FAULTS += [functools.partial(made, *which) for made, each in MADE_WRONG.items() for which in each]


def certified(of: str, fill: str) -> Plant:
    """The one minimal circuit. Where the program is trivial, a check that says so is right."""
    it = known(of, fill)
    if len(it.minimal) > 1:
        raise ValueError(f"{of} has {len(it.minimal)} minimal circuits under {fill} fills")
    made = it.plant("certified", "The only minimal circuit there is.", it.circuit)
    excused = (*OWN_FILL, "not-trivial") if is_told_by_one_token(model_of(of)[0]) else OWN_FILL
    return replace(made, excused=excused)


def is_told_by_one_token(model: Compiled) -> bool:
    """Whether what comes out anywhere is, for all inputs, fixed by one token of the input; or never changes."""
    at = range(len(model.inputs[0]))
    return all(any(_fixes(model, column, place) for column in at) for place in range(len(model.outputs[0])))


def _fixes(model: Compiled, column: int, place: int) -> bool:
    if any(len(row) <= max(column, place) for row in model.inputs):
        return False
    seen = {(row[column], out[place]) for row, out in zip(model.inputs, model.outputs, strict=True)}
    return len(seen) == len({token for token, _ in seen})


RIGHT = (
    "caesar_shift", "next_token", "rotate", "token_at_index", "swap_pairs", "first_occurrence", "dedupe_mask",
    "pattern", "cumulative_any", "alternation", "first_last_equal", "is_sorted", "sort", "rank", "argmax_position",
    "min_token", "hist", "frac_prevs_x", "count", "count_singletons", "modular_count", "running_parity", "majority",
    "distinct_count", "mean_token", "pair_balance", "cancellation",
)  # fmt: skip
ALSO_UNDER_ZERO = (
    "reverse", "rotate", "dedupe_mask", "pattern", "cumulative_any", "is_sorted", "sort", "rank", "argmax_position",
    "min_token", "hist", "count_singletons", "modular_count", "running_parity", "majority", "mean_token",
    "pair_balance", "ignored_input",
)  # fmt: skip
SOUND += [functools.partial(certified, of, RESAMPLE) for of in RIGHT]
SOUND += [functools.partial(certified, of, ZERO) for of in ALSO_UNDER_ZERO]


# The demo ---------------------------------------------------------------------------------------------------------


def in_demo(name: str, says: str, asked: Task, circuit: Circuit, *wrong: str) -> Plant:
    return Plant(name, says, demo()[0], asked, circuit, "resample", wrong)


def induction() -> Circuit:
    return Circuit.from_edges(demo()[0], INDUCTION)


def relabelled(name: str, change: Callable[[Pairs, random.Random], Pairs]) -> Task:
    asked = demo()[1]
    rng = random.Random(name)
    return Task(name, change(asked.train, rng), change(asked.held_out, rng), asked.metric)


@fault
def demo_half_mislabelled() -> Plant:
    def exchanged(pairs: Pairs, rng: random.Random) -> Pairs:
        names = sorted(set(pairs.groups))
        those = set(rng.sample(names, len(names) // 2))
        turned = torch.tensor([group in those for group in pairs.groups])[:, None]
        answers, wrong = pairs.answers.where(~turned, pairs.wrong), pairs.wrong.where(~turned, pairs.answers)
        return replace(pairs, answers=answers, wrong=wrong)

    return in_demo(
        "demo_half_mislabelled",
        "Answer and wrong answer are exchanged in half of the groups of pairs.",
        relabelled("half mislabelled", exchanged),
        induction(),
        "not-trivial",
        "faithful",
        "better-than-chance",
    )


@fault
def demo_shuffled_answers() -> Plant:
    def shuffled(pairs: Pairs, rng: random.Random) -> Pairs:
        order = rng.sample(range(len(pairs)), len(pairs))
        return replace(pairs, answers=pairs.answers[order], wrong=pairs.wrong[order])

    return in_demo(
        "demo_shuffled_answers",
        "Each pair has the answer and the wrong answer of another pair.",
        relabelled("shuffled", shuffled),
        induction(),
        "not-trivial",
        "faithful",
        "better-than-chance",
    )


@fault
def demo_asked_too_early() -> Plant:
    def earlier(pairs: Pairs, rng: random.Random) -> Pairs:
        return replace(pairs, position=pairs.position - 1)

    return in_demo(
        "demo_asked_too_early",
        "The answer is looked for one position before the question.",
        relabelled("asked too early", earlier),
        induction(),
        "not-trivial",
        "faithful",
        "better-than-chance",
    )


def pruned(asked: Task, faithful: float) -> Circuit:
    """A circuit that is faithful on the train pairs, none of whose edges can be cut: by EAP's order."""
    wiring = demo()[0]
    judge = Judge(wiring, asked, asked.train, prepare_fill("resample", wiring, asked))
    return prune(vm.discover(wiring, asked, method="eap", fill="resample"), Faithful(judge, faithful))


@functools.cache
def on_four_pairs() -> tuple[Pairs, Circuit]:
    """Four train pairs, and a circuit pruned until it holds on these."""
    asked = demo()[1]
    few = asked.train.batch(range(4))
    return few, pruned(Task("four pairs", few, asked.held_out, asked.metric), 0.9)


@fault
def demo_overfitted() -> Plant:
    few, circuit = on_four_pairs()
    asked = Task("four pairs", few, demo()[1].held_out, demo()[1].metric)
    says = "Edges were cut one after the other as long as the circuit held on four pairs."
    return in_demo("demo_overfitted", says, asked, circuit, "faithful", "not-over-optimised")


@fault
def demo_leaked() -> Plant:
    """Half of what is held out are the train rows, with other tokens after the question, where no model looks."""
    few, circuit = on_four_pairs()
    fresh = demo()[1].held_out.batch(range(16))
    again = few.batch([n % len(few) for n in range(16)])
    sides = [torch.cat([both, new]) for both, new in ((again.clean, fresh.clean), (again.corrupted, fresh.corrupted))]
    for side in sides:
        side[:16, -1] = torch.arange(16)
    labels = [torch.cat([getattr(each, name) for each in (again, fresh)]) for name in ("answers", "wrong", "position")]
    groups = [f"again {n // 2}" for n in range(16)] + list(fresh.groups)
    asked = Task("leaked", few, Pairs.of(*sides, *labels, groups=groups), demo()[1].metric)
    says = "The same, and half of the held-out pairs are the train pairs again but for tokens after the question."
    return in_demo("demo_leaked", says, asked, circuit, "not-over-optimised", "faithful")


@fault
def demo_best_of_a_random_score() -> Plant:
    wiring, asked = demo()
    scores = vm.discover(wiring, asked, method="random", fill="resample", seed=1)
    says = "The best edges by a score that is noise, as many as the true circuit has."
    circuit = scores.top(len(INDUCTION))
    return in_demo("demo_best_of_a_random_score", says, asked, circuit, "faithful", "stable", "better-than-chance")


@fault
def demo_half_of_the_edges() -> Plant:
    half = random.Random("half").sample(INDUCTION, len(INDUCTION) // 2)
    circuit = Circuit.from_edges(demo()[0], half)
    says = "Every second edge of the induction circuit, drawn at random."
    return in_demo("demo_half_of_the_edges", says, demo()[1], circuit, "faithful")


@fault
def demo_of_another_task() -> Plant:
    """The best edges for a preference that no input asks for."""

    def fixed(pairs: Pairs, rng: random.Random) -> Pairs:
        ones = torch.ones_like(pairs.answers)
        return replace(pairs, answers=ones, wrong=2 * ones, position=torch.full_like(pairs.position, 3))

    other = relabelled("token 1 rather than 2, after three", fixed)
    scores = vm.discover(demo()[0], other, method="eap", fill="resample")
    circuit = Circuit.from_edges(demo()[0], scores.top(len(INDUCTION)).names)
    says = "Found for another question to the same model: token 1 or token 2, after three tokens."
    return in_demo("demo_of_another_task", says, demo()[1], circuit, "faithful")


@fault
def demo_queries_for_keys() -> Plant:
    edges = [edge.replace("<k>", "<q>") for edge in INDUCTION]
    says = "What the induction heads' keys read is given out as read by their queries."
    return in_demo("demo_queries_for_keys", says, demo()[1], Circuit.from_edges(demo()[0], edges), "faithful")


@fault
def demo_nothing() -> Plant:
    return in_demo("demo_nothing", "No edge at all.", demo()[1], Circuit.from_edges(demo()[0], ()), "faithful")


@fault
def demo_with_idle_heads() -> Plant:
    """Whatever reads, writes or feeds two heads that the task does not need."""
    wiring, asked = demo()
    kept = set(INDUCTION)
    idle = [e for e, h in itertools.product(wiring.edges.names, ("a1.h1", "a1.h2")) if f"{h}<" in e and "input" in e]
    says = "The induction circuit, and all that the input feeds to two heads it does not use."
    circuit = Circuit.from_edges(wiring, sorted(kept | set(idle)))
    return in_demo("demo_with_idle_heads", says, asked, circuit, "minimal")


def demo_pruned() -> Plant:
    """Exactly pruned on the train pairs; what is looked at is held out."""
    asked = demo()[1]
    made = in_demo("demo_pruned", "Faithful on the train pairs, no edge can be cut.", asked, pruned(asked, 0.98))
    return replace(made, excused=OWN_FILL)


SOUND.append(demo_pruned)
