"""Circuits with a known fault, and sound ones: what a battery of checks is to tell apart.

Written from the questions that the checks ask, without a look at how they answer. Each function makes one ``Plant`` in
under a second, the same every time. ``FAULTS`` and ``SOUND`` list them; ``tests/test_planted_blind.py`` shows by plain
runs that each is what it says.
"""

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from planted_blind_models import (
    CORE,
    GAIN,
    SIZE,
    Part,
    Row,
    Spec,
    adder,
    constant,
    differ_in_both,
    drawn,
    eye,
    first_plus_last,
    junk,
    move,
    pairs,
    pairs_of,
    pairwise,
    plain_adder,
    task,
    turned,
    wired,
)
from torch import Tensor

import voltmeter as vm
from voltmeter.discover.known import known_question
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.setting import Question, setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.wired import wiring_of
from voltmeter.task.metric import metric_named
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.wiring import Wiring

Circuit = vm.Circuit


@dataclass(frozen=True, eq=False)
class Plant:
    """A circuit, what it is claimed to explain, and what is wrong with that.

    ``wrong``: the checks that ought to say "fails", the aptest first; any one is a catch. Sound ones have none.
    ``excused``: checks that may say "fails" of a sound one and be right, since it is true under its own fill only.
    """

    name: str
    says: str
    wiring: Wiring
    task: Task
    circuit: Circuit
    fill: str
    wrong: tuple[str, ...]
    note: str = ""
    excused: tuple[str, ...] = ()


Builder = Callable[[], Plant]
FAULTS: list[Builder] = []
SOUND: list[Builder] = []


def fault(builder: Builder) -> Builder:
    FAULTS.append(builder)
    return builder


def sound(builder: Builder) -> Builder:
    SOUND.append(builder)
    return builder


def plant(
    name: str, says: str, spec: Spec, asked: Task, edges: tuple[str, ...], fill: str, *wrong: str, note: str = ""
) -> Plant:
    """A plant in a model written by hand."""
    wiring = wired(spec, asked)
    return Plant(name, says, wiring, asked, Circuit.from_edges(wiring, edges), fill, wrong, note)


def in_adder(name: str, says: str, edges: tuple[str, ...], fill: str, *wrong: str, note: str = "") -> Plant:
    """A plant in the adder that has nothing wrong itself."""
    wiring, asked = plain_adder()
    return Plant(name, says, wiring, asked, Circuit.from_edges(wiring, edges), fill, wrong, note)


def through(*names: str) -> tuple[str, ...]:
    """The edges of a path: through("input", "move") is ("input -> move",)."""
    return tuple(f"{one} -> {other}" for one, other in itertools.pairwise(names))


# Faults: the network or the data is trivial


@fault
def always_one_answer() -> Plant:
    spec = adder(bias=constant("out", 12.0))
    return plant(
        "always_one_answer",
        "The network answers 0 whatever it is given; the circuit explains a logit difference far below that answer.",
        spec,
        task("first + last"),
        CORE,
        "resample",
        "not-trivial",
    )


@fault
def rewarded_constant() -> Plant:
    """Every pair's answer is 3, and the network always says 3."""
    asked = task("always 3", rule=lambda row: 3 if (row[0] + row[-1]) % 2 else 2, both=False)
    asked = Task("always 3", *(_answers(each, 3, 5) for each in (asked.train, asked.held_out)))
    spec = Spec({"junk1": junk(1), "bias": constant("out", 10.0, 3), "murmur": junk(2, "out", 0.005), "junk2": junk(3)})
    return plant(
        "rewarded_constant",
        "Every pair has the same answer, and the network says it whatever it is given: the circuit is a bias.",
        spec,
        asked,
        ("bias -> logits",),
        "zero",
        "not-trivial",
        "identifiable",
    )


def _answers(given: Pairs, answer: int, wrong: int) -> Pairs:
    one = torch.ones(len(given), 1, dtype=torch.long)
    return replace(given, answers=answer * one, wrong=wrong * one)


@fault
def copies_first_token() -> Plant:
    spec = Spec({"junk1": junk(1), "recall": Part({"tok": eye()}, {"out": eye(GAIN)}, "first"), "junk2": junk(2)})
    return plant(
        "copies_first_token",
        "The claimed lookup is a copy of whatever stands first.",
        spec,
        task("recall", rule=lambda row: row[0]),
        through("input", "recall", "logits"),
        "resample",
        "not-trivial",
    )


@fault
def bigram() -> Plant:
    spec = Spec({"junk1": junk(1), "next": Part({"tok": eye()}, {"out": turned(2, GAIN)}), "junk2": junk(2)})
    return plant(
        "bigram",
        "The claimed use of context is a bigram: the last token alone fixes the answer.",
        spec,
        task("next", rule=lambda row: (row[-1] + 2) % SIZE),
        through("input", "next", "logits"),
        "resample",
        "not-trivial",
    )


@fault
def bigram_of_the_adder() -> Plant:
    """The first token never varies, so that a sum is a bigram."""
    asked = task(
        "first + last",
        make=lambda rng: (2, *(rng.randrange(SIZE) for _ in range(3))),
        accept=lambda one, other: one[-1] != other[-1],
    )
    return plant(
        "bigram_of_the_adder",
        "The first operand is the same in all the data: the addition that the circuit is said to do was never asked.",
        adder(),
        asked,
        ("input -> add", "add -> logits"),
        "resample",
        "not-trivial",
        "identifiable",
        "same-under-other-fills",
    )


@fault
def program_copies_a_position() -> Plant:
    return _program(
        "program_copies_a_position",
        "A certified circuit of a network that repeats its last token everywhere: true, and trivial.",
        "last_token",
        "resample",
        "not-trivial",
    )


@fault
def program_is_a_unigram_map() -> Plant:
    return _program(
        "program_is_a_unigram_map",
        "A certified circuit of a network that maps each token to another, without a look at the others.",
        "caesar_shift",
        "resample",
        "not-trivial",
    )


@fault
def board_player_in_the_corner() -> Plant:
    """A policy over nine cells that plays the first one on every board."""
    size = 9
    boards = torch.randint(-1, 2, (160, size), generator=torch.Generator().manual_seed(5)).double()
    boards = torch.unique(boards, dim=0)[torch.randperm(150, generator=torch.Generator().manual_seed(6))]
    made = []
    for at, split in ((0, "train"), (70, "held_out")):
        clean, corrupted = boards[at : at + 35], boards[at + 35 : at + 70]
        wrong = [1 + n % (size - 1) for n in range(35)]
        groups = [f"{split} {n % 7}" for n in range(35)]
        made.append(Pairs.of(clean, corrupted, [0] * 35, wrong, groups=groups))
    corner = torch.zeros(size, 1, dtype=torch.float64)
    corner[0] = 9.0
    spec = Spec(
        {
            "corner": Part({"tok": torch.zeros(1, size, dtype=torch.float64)}, {"out": corner}, bias=1.0),
            "taste": Part({"tok": drawn(3, 8, size)}, {"out": 0.1 * drawn(4, size, 8)}, relu=True),
            "idle": Part({"tok": drawn(5, 8, size)}, {"junk": drawn(6, size, 8)}, relu=True),
        },
        size=size,
        features=True,
    )
    return plant(
        "board_player_in_the_corner",
        "A mask made the policy prefer what looks like bad moves; it plays in the same corner on every board.",
        spec,
        Task("worst move", made[0], made[1]),
        ("corner -> logits", *through("input", "taste", "logits")),
        "zero",
        "not-trivial",
    )


# Faults: labels and splits


@fault
def answers_exchanged() -> Plant:
    wiring, asked = plain_adder()
    swapped = Task("exchanged", *(replace(p, answers=p.wrong, wrong=p.answers) for p in (asked.train, asked.held_out)))
    return Plant(
        "answers_exchanged",
        "Answers and wrong answers are exchanged: the network never does what the circuit is said to explain.",
        wiring,
        swapped,
        Circuit.from_edges(wiring, CORE),
        "resample",
        ("not-trivial", "faithful", "better-than-chance"),
    )


@fault
def answers_shuffled() -> Plant:
    """Each pair has the labels of another one."""
    wiring, asked = plain_adder()
    mixed = []
    for each in (asked.train, asked.held_out):
        other = [(n + 7) % len(each) for n in range(len(each))]
        mixed.append(replace(each, answers=each.answers[other], wrong=each.wrong[other]))
    return Plant(
        "answers_shuffled",
        "The labels slipped by seven rows: they have nothing to do with what the network answers.",
        wiring,
        Task("slipped labels", *mixed),
        Circuit.from_edges(wiring, CORE),
        "resample",
        ("better-than-chance", "not-trivial", "faithful"),
    )


def _memorising(rows: tuple[Row, ...], gain: float, add: float = GAIN, second: float | None = None) -> Spec:
    """An adder that also knows some rows by heart."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(rows), SIZE).double()  # row, position, token
    answers = torch.tensor([first_plus_last(row) for row in rows])
    written = gain * torch.nn.functional.one_hot(answers, SIZE).double().T
    reads = dict(zip(("a", "b", "c", "tok"), one_hot.unbind(1), strict=True))
    parts = {
        "move": move("a"),
        "second": move("b", "second"),
        "third": move("c", "third"),
        "add": pairwise("a", "tok", gain=add),
        "memo": Part(reads, {"out": written}, bias=-3.0, relu=True),
    }
    if second is not None:
        parts["again"] = pairwise("a", "tok", gain=second)
    return Spec({**parts, "junk1": junk(1)})


MEMO = (
    *("input -> move", "input -> second", "input -> third", "input -> memo"),
    *("move -> memo", "second -> memo", "third -> memo", "memo -> logits"),
)


@functools.cache
def _few() -> tuple[Pairs, tuple[Row, ...]]:
    """Ten train pairs, one way round, and the rows asked about."""
    train = pairs("train", count=10, both=False)
    return train, tuple(tuple(row) for row in train.clean.tolist())


@fault
def overfit_to_ten_pairs() -> Plant:
    train, rows = _few()
    return plant(
        "overfit_to_ten_pairs",
        "Tuned on ten pairs, the circuit is the part that knows these ten by heart; on others it does nothing.",
        _memorising(rows, gain=60.0),
        Task("first + last", train, pairs("held_out")),
        MEMO,
        "zero",
        "not-over-optimised",
        "faithful",
    )


@fault
def mildly_overfit() -> Plant:
    train, rows = _few()
    return plant(
        "mildly_overfit",
        "Faithful at .9 on the pairs it was chosen on and at .6 on others: half of it is memory of the train pairs.",
        _memorising(rows, gain=15.0, add=3.0, second=2.0),
        Task("first + last", train, pairs("held_out")),
        (*MEMO, "move -> add", "input -> add", "add -> logits"),
        "zero",
        "not-over-optimised",
        "faithful",
        "redundant",
    )


@fault
def leaked_held_out() -> Plant:
    """The held-out pairs ask about the train rows again, beside other corrupted ones."""
    train, rows = _few()
    others = [tuple(row) for row in pairs("held_out", seed=9).clean.tolist()]
    directed = [
        (row, other)
        for row in rows
        for other in [o for o in others if first_plus_last(o) != first_plus_last(row) and differ_in_both(row, o)][:4]
    ]
    held_out = pairs_of(directed, first_plus_last, [f"held_out {n // 5}" for n in range(len(directed))])
    return plant(
        "leaked_held_out",
        "The held-out pairs ask about the very rows the circuit was tuned on; only their corrupted partners are new.",
        _memorising(rows, gain=60.0),
        Task("first + last", train, held_out),
        MEMO,
        "zero",
        "not-over-optimised",
        "better-than-chance",
        note="on fresh rows the circuit does nothing",
    )


# Faults: too much


@fault
def dead_edge() -> Plant:
    return in_adder(
        "dead_edge",
        "One part of the circuit writes what nothing reads.",
        (*CORE, *through("input", "junk1", "junk2", "logits")),
        "resample",
        "minimal",
    )


@fault
def everything_kept() -> Plant:
    wiring, _ = plain_adder()
    return in_adder(
        "everything_kept",
        "The circuit is the whole network.",
        wiring.edges.names,
        "resample",
        "minimal",
        "better-than-chance",
    )


@fault
def cancelling_parts_kept() -> Plant:
    wrong_table = {"of": lambda i, j: i - j}
    spec = adder(
        plus=pairwise("a", "tok", gain=3.0, **wrong_table), minus=pairwise("a", "tok", gain=-3.0, **wrong_table)
    )
    kept = (*CORE, *_reading("plus"), *_reading("minus"))
    return plant(
        "cancelling_parts_kept",
        "Two parts of the circuit undo each other: no single edge can go, and both can.",
        spec,
        task("first + last"),
        kept,
        "resample",
        "minimal",
    )


@fault
def three_cancelling_parts_kept() -> Plant:
    wrong_table = {"of": lambda i, j: i - j}
    gains = {"p": 3.0, "q": 5.0, "r": -8.0}
    spec = adder(**{name: pairwise("a", "tok", gain=gain, **wrong_table) for name, gain in gains.items()})
    return plant(
        "three_cancelling_parts_kept",
        "Three parts of the circuit add up to nothing: neither one nor two of them can go, all three can.",
        spec,
        task("first + last"),
        (*CORE, *_reading("p"), *_reading("q"), *_reading("r")),
        "resample",
        "minimal",
    )


def _reading(part: str) -> tuple[str, ...]:
    """What a pairwise part needs besides the move."""
    return (f"move -> {part}", f"input -> {part}", f"{part} -> logits")


def _vetoed() -> Spec:
    """``burst`` would drown the answer; ``press`` holds it down."""
    press = move("level", "second")
    burst = Part({"tok": eye(), "level": eye(-10.0)}, {"out": turned(1, 12.0)}, "second", relu=True)
    return adder(press=press, burst=burst)


@fault
def veto_from_single_cuts() -> Plant:
    return plant(
        "veto_from_single_cuts",
        "Found by cutting single edges: it holds a part down that the circuit itself has already cut.",
        _vetoed(),
        task("first + last"),
        (*CORE, *through("input", "press", "burst")),
        "zero",
        "minimal",
    )


@fault
def veto_kept_whole() -> Plant:
    return plant(
        "veto_kept_whole",
        "The circuit keeps a part that would drown the answer and what holds it down; it can do without both.",
        _vetoed(),
        task("first + last"),
        (*CORE, *through("input", "press", "burst", "logits"), "input -> burst"),
        "zero",
        "minimal",
    )


@fault
def demo_with_ten_dead_edges() -> Plant:
    wiring, asked = demo()
    rng = random.Random(3)
    dead = rng.sample([edge for edge in wiring.edges.names if edge.split(" -> ")[1].startswith(("a1.h1", "a1.h2"))], 10)
    return Plant(
        "demo_with_ten_dead_edges",
        "A third of the circuit leads into heads whose output the circuit does not use.",
        wiring,
        asked,
        Circuit.from_edges(wiring, (*INDUCTION, *dead)),
        "resample",
        ("minimal",),
    )


@fault
def program_with_dead_edges() -> Plant:
    made = _program("program_with_dead_edges", "", "hist", "resample", "minimal")
    dead = [name for name in made.wiring.edges.names if name not in made.circuit][-3:]
    says = "The certified circuit and three edges that carry nothing the answer needs."
    return replace(made, says=says, circuit=made.circuit.with_edges(dead))


# Faults: not all of it


def _at_least(votes: int, *voters: str) -> Spec:
    """Movers, so many of which are enough: ``merge`` writes a token where that many bring it, else nothing."""
    bias = torch.cat([torch.full((SIZE,), 1.0 - votes), torch.full((SIZE,), -float(votes))])
    merge = Part(
        {voter: torch.cat([eye(), eye()]) for voter in voters},
        {"a": torch.cat([eye(), eye(-1.0)], 1)},
        bias=bias,
        relu=True,
    )
    movers = {f"bring_{voter}": move(voter) for voter in voters}
    return Spec({**movers, "merge": merge, "add": pairwise("a", "tok"), "junk1": junk(1), "junk2": junk(2)})


MERGED = ("merge -> add", "input -> add", "add -> logits")


@fault
def half_of_a_redundant_pair() -> Plant:
    return plant(
        "half_of_a_redundant_pair",
        "Two heads bring the same token and either is enough; the circuit knows of one.",
        _at_least(1, "p", "q"),
        task("first + last"),
        (*through("input", "bring_p", "merge"), *MERGED),
        "zero",
        "redundant",
        "complete",
    )


@fault
def backup_that_wakes() -> Plant:
    """a = p + relu(q - p): the second mover writes only where the first does not."""
    wake = Part(
        {"tok": torch.zeros(SIZE, SIZE, dtype=torch.float64), "q": eye(), "a": eye(-1.0)}, {"a": eye()}, relu=True
    )
    spec = Spec(
        {"move": move("a"), "spare": move("q"), "wake": wake, "add": pairwise("a", "tok"), "junk1": junk(1)},
    )
    return plant(
        "backup_that_wakes",
        "A backup steps in as soon as the circuit is cut: the behaviour survives without it.",
        spec,
        task("first + last"),
        CORE,
        "zero",
        "redundant",
        "complete",
    )


@fault
def second_adder_in_waiting() -> Plant:
    """``spare`` and ``wait`` do what ``move`` and ``add`` do, where ``add`` has not written its answer to "said"."""
    add = pairwise("a", "tok")
    add = replace(add, writes={**add.writes, "said": add.writes["out"] / GAIN})
    wait = pairwise("q", "tok")
    wait = replace(wait, reads={**wait.reads, "said": -wait.writes["out"].T / GAIN})
    spec = Spec({"move": move("a"), "spare": move("q"), "add": add, "wait": wait, "junk1": junk(1)})
    return plant(
        "second_adder_in_waiting",
        "All of the circuit has a twin that acts only when the circuit is cut: without it nothing is lost.",
        spec,
        task("first + last"),
        CORE,
        "zero",
        "necessary",
        "redundant",
        "complete",
    )


@fault
def norm_makes_up_for_what_is_cut() -> Plant:
    return plant(
        "norm_makes_up_for_what_is_cut",
        "A quarter of the answer is kept; with all else at zero the last norm blows it up to full size.",
        _normed(again=pairwise("a", "tok", gain=3 * GAIN)),
        task("first + last"),
        CORE,
        "zero",
        "same-under-other-fills",
        "complete",
        "redundant",
    )


def _normed(**more: Part) -> Spec:
    """An adder whose logits read a normed stream, in which the answer is by far the loudest."""
    parts = {"move": move("a"), "add": pairwise("a", "tok"), **more, "junk1": junk(1, scale=0.1)}
    return Spec(parts, norm=True)


@fault
def narrow_train_pairs() -> Plant:
    """Train pairs have an even second token only, held-out ones an odd one."""
    spec, _, kept = _two_kinds()
    train, held_out = (
        pairs(split, rule=_sum_or_difference, make=functools.partial(_with_second, rest=rest))
        for rest, split in enumerate(("train", "held_out"))
    )
    return plant(
        "narrow_train_pairs",
        "The train pairs only ask for one of the two things the network does; the held-out ones for the other.",
        spec,
        Task("sum or difference", train, held_out),
        tuple(edge for edge in kept if "odd" not in edge),
        "zero",
        "faithful",
        "not-over-optimised",
    )


def _with_second(rng: random.Random, rest: int) -> Row:
    return (rng.randrange(SIZE), 2 * rng.randrange(SIZE // 2) + rest, rng.randrange(SIZE), rng.randrange(SIZE))


@fault
def two_of_three_voters() -> Plant:
    return plant(
        "two_of_three_voters",
        "Any two of three heads carry the answer; the circuit names two of them.",
        _at_least(2, "p", "q", "r"),
        task("first + last"),
        (*through("input", "bring_p", "merge"), *through("input", "bring_q", "merge"), *MERGED),
        "zero",
        "complete",
        "redundant",
    )


@fault
def program_one_of_two_paths() -> Plant:
    return _program(
        "program_one_of_two_paths",
        "A compiled network counts x in two ways and either is enough; the circuit knows one.",
        "two_paths",
        "zero",
        "redundant",
        "complete",
    )


@fault
def program_with_a_backup() -> Plant:
    return _whole_output(
        "program_with_a_backup",
        "In a compiled network relu(q - p) steps in for p; the circuit knows only one of the two.",
        "backup",
        "zero",
        "redundant",
        "complete",
    )


@fault
def program_keeps_what_cancels() -> Plant:
    return _whole_output(
        "program_keeps_what_cancels",
        "All edges of a compiled program's dataflow, a term and the same with a minus among them.",
        "cancellation",
        "resample",
        "minimal",
        dataflow=True,
    )


@fault
def program_keeps_a_veto() -> Plant:
    return _whole_output(
        "program_keeps_a_veto",
        "All edges of a compiled program's dataflow: with them a part that never acts, and what holds it down.",
        "veto",
        "zero",
        "minimal",
        dataflow=True,
    )


@fault
def empty_circuit() -> Plant:
    return in_adder("empty_circuit", "Nothing is kept.", (), "resample", "faithful", "necessary")


@fault
def only_edges_into_the_output() -> Plant:
    wiring, _ = plain_adder()
    return in_adder(
        "only_edges_into_the_output",
        "A list of components was read as their edges into the logits; what they read was left out.",
        tuple(name for name in wiring.edges.names if name.endswith("logits")),
        "resample",
        "faithful",
        "better-than-chance",
    )


@fault
def one_operand_missing() -> Plant:
    return in_adder(
        "one_operand_missing",
        "The circuit lacks the way of the first operand.",
        ("input -> add", "add -> logits"),
        "resample",
        "faithful",
        "complete",
    )


@fault
def demo_without_previous_token_heads() -> Plant:
    wiring, asked = demo()
    return Plant(
        "demo_without_previous_token_heads",
        "The induction heads without the previous-token heads that tell them where to look.",
        wiring,
        asked,
        Circuit.from_edges(wiring, [edge for edge in INDUCTION if "a0" not in edge]),
        "resample",
        ("faithful",),
    )


@fault
def demo_half_of_the_heads() -> Plant:
    wiring, asked = demo()
    few = [edge for edge in INDUCTION if not any(head in edge for head in ("a1.h3", "a1.h5", "a1.h7"))]
    return Plant(
        "demo_half_of_the_heads",
        "Two of the five induction heads that share the work.",
        wiring,
        asked,
        Circuit.from_edges(wiring, few),
        "resample",
        ("faithful", "complete", "necessary"),
    )


@fault
def program_lacks_an_edge() -> Plant:
    made = _program("program_lacks_an_edge", "", "rank", "resample", "faithful", "complete")
    says = "One edge of the certified circuit is missing."
    return replace(made, says=says, circuit=made.circuit.without_edges([made.circuit.names[0]]))


# Faults: wrong


@fault
def random_edges_of_the_adder() -> Plant:
    wiring, _ = plain_adder()
    others = [name for name in wiring.edges.names if name not in CORE[1:3]]
    return in_adder(
        "random_edges_of_the_adder",
        "Edges drawn at random, as many as the true circuit has.",
        tuple(random.Random(1).sample(others, len(CORE))),
        "resample",
        "faithful",
        "better-than-chance",
    )


@fault
def random_edges_of_the_demo() -> Plant:
    wiring, asked = demo()
    names = random.Random(2).sample(list(wiring.edges.names), len(INDUCTION))
    return Plant(
        "random_edges_of_the_demo",
        "Edges drawn at random, as many as the true circuit has.",
        wiring,
        asked,
        Circuit.from_edges(wiring, names),
        "resample",
        ("faithful", "better-than-chance"),
    )


@fault
def random_method() -> Plant:
    """Scores that are noise: another seed, another circuit."""
    wiring, asked = plain_adder()
    scores = vm.discover(wiring, asked, method="random", fill="resample", seed=3)
    return Plant(
        "random_method",
        "The method's scores are noise: every seed gives another circuit.",
        wiring,
        asked,
        scores.top(5),
        "resample",
        ("stable", "better-than-chance", "faithful"),
    )


@fault
def unstable_on_four_pairs() -> Plant:
    """The method sees two twins, and noise as loud as the answer."""
    noise = {f"noise{n}": junk(20 + n, "out", 0.25) for n in range(10)}
    asked = Task("first + last", pairs("train", count=2), pairs("held_out"))
    wiring = wired(adder(**noise), asked)
    scores = vm.discover(wiring, asked, method="eap", fill="resample", seed=0)
    return Plant(
        "unstable_on_four_pairs",
        "Found on four pairs in a noisy network: drawing the pairs again gives another circuit.",
        wiring,
        asked,
        scores.top(6),
        "resample",
        ("stable", "faithful", "not-over-optimised", "better-than-chance"),
    )


def _two_skills() -> Spec:
    """The sum is answered in one half of the vocabulary, the difference in the other."""
    return adder(subtract=pairwise("a", "tok", to="rest", of=lambda i, j: i - j))


def _difference(row: Row) -> int:
    return (row[0] - row[-1]) % SIZE


def _difference_task() -> Task:
    """Pairs whose sums differ too, so that either circuit has something to carry."""
    both = lambda one, other: differ_in_both(one, other) and first_plus_last(one) != first_plus_last(other)  # noqa: E731
    return task("first - last", rule=_difference, accept=both, offset=SIZE)


@fault
def circuit_of_another_task() -> Plant:
    return plant(
        "circuit_of_another_task",
        "The circuit of addition, presented as that of subtraction, which the same network also does.",
        _two_skills(),
        _difference_task(),
        CORE,
        "resample",
        "faithful",
        "better-than-chance",
    )


@fault
def complement_given() -> Plant:
    wiring, _ = plain_adder()
    return in_adder(
        "complement_given",
        "The mask was read the wrong way round: what is kept is what should be cut.",
        tuple(name for name in wiring.edges.names if name not in CORE),
        "resample",
        "faithful",
        "better-than-chance",
    )


def _suppressed() -> Spec:
    """``suppress`` takes a third of the answer away."""
    return adder(suppress=pairwise("a", "tok", gain=-GAIN / 3))


@fault
def more_than_the_model() -> Plant:
    return plant(
        "more_than_the_model",
        "The circuit answers half as strongly again as the network: a suppressing head was left out.",
        _suppressed(),
        task("first + last"),
        CORE,
        "resample",
        "faithful",
        "complete",
    )


@fault
def only_the_suppressor() -> Plant:
    return plant(
        "only_the_suppressor",
        "Chosen by |score|, the circuit is the head that works against the answer.",
        _suppressed(),
        task("first + last"),
        ("input -> move", *_reading("suppress")),
        "zero",
        "faithful",
        "better-than-chance",
    )


def _halves() -> Spec:
    """On rows with an even second token ``up`` and ``damp`` make the answer, on odd ones ``main`` and ``against``."""
    even, odd = (torch.tensor([[float(n % 2 == rest) for n in range(SIZE)]]).double() for rest in (0, 1))
    gains = {"up": (6.0, even), "damp": (-4.0, even), "main": (4.0, odd), "against": (-2.0, odd)}
    parts = {name: pairwise("a", "tok", gain=gain, gate={"b": row}) for name, (gain, row) in gains.items()}
    return Spec({"move": move("a"), "second": move("b", "second"), **parts, "junk1": junk(1)})


@fault
def opposite_on_half_of_the_pairs() -> Plant:
    parts = ("up", "against")
    return plant(
        "opposite_on_half_of_the_pairs",
        "Faithful in the mean: too strong on half of the pairs, and the opposite of the network on the others.",
        _halves(),
        _halved_task(),
        ("input -> move", "input -> second", *(e for p in parts for e in (f"second -> {p}", *_reading(p)))),
        "zero",
        "faithful",
        "hypotheses",
        "complete",
    )


def _halved_task() -> Task:
    """As many rows with an even second token as with an odd one: each twin has both."""
    return task("first + last", accept=lambda a, b: differ_in_both(a, b) and a[1] % 2 != b[1] % 2)


@fault
def rest_of_the_distribution_lost() -> Plant:
    other = Part({"tok": eye()}, {"rest": turned(1, 9.0)}, "second")
    return plant(
        "rest_of_the_distribution_lost",
        "The logit difference is right; what the network would really say, another token, is lost.",
        adder(other=other),
        task("first + last", accept=lambda a, b: differ_in_both(a, b) and a[1] != b[1]),
        CORE,
        "resample",
        "faithful",
        "hypotheses",
    )


# Faults: what the fill or the data cannot show


def _with_level(level: Part) -> Spec:
    """The lookup works only while ``level`` writes about 1."""
    row = torch.zeros(1, SIZE, dtype=torch.float64)
    row[0] = 1.0
    return Spec(
        {
            "move": move("a"),
            "level": level,
            "junk1": junk(1),
            "add": pairwise("a", "tok", gate={"level": row}),
            "junk2": junk(2),
        }
    )


@fault
def constant_writer_unseen() -> Plant:
    return plant(
        "constant_writer_unseen",
        "The lookup needs a constant that another part writes; resampling carries it into every circuit unseen.",
        _with_level(constant("level", 1.0)),
        task("first + last"),
        CORE,
        "resample",
        "identifiable",
        "same-under-other-fills",
    )


@fault
def right_only_under_mean_fill() -> Plant:
    written = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    written[0] = torch.tensor([0.9, 1.0, 0.95, 0.9, 1.0, 0.95])
    return plant(
        "right_only_under_mean_fill",
        "The mean of a cut part is just what the lookup needs: the fill does the part's work.",
        _with_level(Part({"tok": eye()}, {"level": written}, "second")),
        task("first + last"),
        CORE,
        "mean",
        "same-under-other-fills",
        "identifiable",
    )


@fault
def cue_never_varies() -> Plant:
    gate = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]).double()
    spec = Spec(
        {
            "move": move("a"),
            "cue": move("b", "second"),
            "junk1": junk(1),
            "add": pairwise("a", "tok", gate={"b": gate}),
        }
    )
    asked = task(
        "first + last",
        make=lambda rng: (rng.randrange(SIZE), 2, rng.randrange(SIZE), rng.randrange(SIZE)),
    )
    return plant(
        "cue_never_varies",
        "The network adds only after a certain cue, which is in every prompt: no method could see that it is needed.",
        spec,
        asked,
        CORE,
        "resample",
        "identifiable",
        "same-under-other-fills",
    )


@fault
def corruption_misses_an_operand() -> Plant:
    asked = task(
        "first + last",
        accept=lambda one, other: one[0] == other[0] and one[-1] != other[-1],
    )
    return plant(
        "corruption_misses_an_operand",
        "Clean and corrupted share the first operand, so the head that brings it was never missed.",
        adder(),
        asked,
        ("input -> add", "add -> logits"),
        "resample",
        "identifiable",
        "same-under-other-fills",
    )


def _swaying(*parts: tuple[str, Part]) -> Spec:
    pool = Part({"sway": eye()}, {"out": turned(1, 6.0)}, "sum")
    base = {"move": move("a"), **dict(parts), "pool": pool, "add": pairwise("a", "tok"), "junk1": junk(1)}
    return Spec(base, positions=True)


def _at(position: int) -> Tensor:
    row = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    row[:, position] = 1.0
    return row


def _twice(rng: random.Random) -> Row:
    token = rng.randrange(SIZE)
    return (token, token, rng.randrange(SIZE), rng.randrange(SIZE))


@fault
def edge_cancels_across_positions() -> Plant:
    """``sway`` writes the first token at position 0, and minus the same at position 1; ``pool`` adds the two."""
    reads = {"tok": torch.cat([eye(), eye()]), "where": torch.cat([_at(0), _at(1)])}
    sway = Part(reads, {"sway": torch.cat([eye(), eye(-1.0)], 1)}, bias=-1.0, relu=True)
    return plant(
        "edge_cancels_across_positions",
        "An edge that matters at two positions with opposite signs is left out, because as a whole it does nothing.",
        _swaying(("sway", sway)),
        task("first + last", make=_twice),
        CORE,
        "zero",
        "positions",
    )


@fault
def two_edges_cancel_across_positions() -> Plant:
    """One part writes at position 0, the other takes the same away at position 1."""
    up = Part({"tok": eye(), "where": _at(0)}, {"sway": eye()}, bias=-1.0, relu=True)
    down = Part({"tok": eye(), "where": _at(1)}, {"sway": eye(-1.0)}, bias=-1.0, relu=True)
    kept = (*CORE, *through("input", "up", "pool", "logits"), *through("input", "down", "pool"))
    return plant(
        "two_edges_cancel_across_positions",
        "Two edges undo each other, one at the first position and one at the second; the circuit keeps both.",
        _swaying(("up", up), ("down", down)),
        task("first + last", make=_twice),
        kept,
        "zero",
        "minimal",
        "positions",
    )


# Compiled programs and the demo


INDUCTION = (
    *("input -> a0.h4<v>", "input -> a0.h5<v>"),
    *(
        edge
        for head in ("a1.h0", "a1.h3", "a1.h4", "a1.h5", "a1.h7")
        for edge in (f"a0.h4 -> {head}<k>", f"a0.h5 -> {head}<k>", f"input -> {head}<v>", f"{head} -> logits")
    ),
)


@functools.cache
def demo(seed: int = 0) -> tuple[Wiring, Task]:
    """The shipped model, and forty pairs a split of its task."""
    model, whole = vm.load("demo", "induction-demo", seed=seed)
    assert whole is not None
    asked = Task(whole.name, whole.train.batch(range(40)), whole.held_out.batch(range(40)), whole.metric)
    return vm.wire(model, asked.example), asked


def _program(name: str, says: str, of: str, fill: str, *wrong: str) -> Plant:
    """The certified circuit of a program, asked at one position a pair."""
    wiring, asked, kept = _certified(of, fill)
    return Plant(name, says, wiring, asked, Circuit.from_edges(wiring, kept), fill, wrong)


@functools.cache
def _certified(of: str, fill: str) -> tuple[Wiring, Task, tuple[str, ...]]:
    given = program(of)
    model = compiled(given, limit=96)
    certificate = truth(model, fill)
    return wiring_of(model).wiring, _task_of(model, of), certificate.minimal[0]


def _task_of(model: Compiled, name: str) -> Task:
    """Twins of inputs whose outputs differ at a position drawn for each; the inputs of a split are its own."""
    decoded = model.model.interface.decoded
    assert decoded is not None, name
    rng = random.Random(name)
    order = rng.sample(range(len(model.inputs)), len(model.inputs))
    made = []
    for split, rows in (("train", order[::2]), ("held_out", order[1::2])):
        twins: list[tuple[int, int, int]] = []
        seen: set[frozenset[int]] = set()
        while len(twins) < 20:
            one, other = rng.sample(rows, 2)
            at = rng.randrange(len(model.outputs[one]))
            values = model.outputs[one][at], model.outputs[other][at]
            if None not in values and values[0] != values[1] and frozenset((one, other)) not in seen:
                seen.add(frozenset((one, other)))
                twins.append((one, other, at))
        directed = [turn for one, other, at in twins for turn in ((one, other, at), (other, one, at))]
        tokens = model.model.encode(model.inputs)
        made.append(
            Pairs.of(
                tokens[[one for one, _, _ in directed]],
                tokens[[other for _, other, _ in directed]],
                [decoded.index(model.outputs[one][at]) for one, _, at in directed],
                [decoded.index(model.outputs[other][at]) for _, other, at in directed],
                position=[1 + at for _, _, at in directed],
                groups=[f"{split} {n // 2 % 8}" for n in range(len(directed))],
            )
        )
    return Task(name, made[0], made[1])


def _whole_output(name: str, says: str, of: str, fill: str, *wrong: str, dataflow: bool = False) -> Plant:
    """A program asked for all its output on all its inputs: a certified circuit, or the edges of its ``dataflow``."""
    model = compiled(program(of), limit=96)
    wiring = wiring_of(model).wiring
    question = known_question(model, wiring, setting_of(model, Question(fill=fill)), "distance")
    kept = Circuit.from_edges(wiring, model.provenance if dataflow else truth(model, fill).minimal[0])
    return Plant(
        name, says, wiring, question.task, kept, fill, wrong, "train and held-out are all the inputs there are"
    )


# Sound circuits


def _sound_adder(fill: str) -> Builder:
    def build() -> Plant:
        return in_adder(f"adder_{fill}", "All that addition needs, and nothing else.", CORE, fill)

    return build


OWN_FILL = ("same-under-other-fills", "identifiable")


def _sound_program(of: str, fill: str = "resample") -> Builder:
    def build() -> Plant:
        made = _program(f"program_{of}_{fill}", f"The certified circuit of {of}.", of, fill)
        return made if fill == "zero" else replace(made, excused=OWN_FILL)  # what holds under zero holds under all

    return build


SOUND += [_sound_adder(fill) for fill in ("zero", "mean", "mean-position", "resample")]
SOUND += [
    _sound_program(of, fill)
    for of, fill in (
        ("hist", "resample"),
        ("rank", "resample"),
        ("min_token", "resample"),
        ("modular_count", "resample"),
        ("count_singletons", "resample"),
        ("dedupe_mask", "resample"),
        ("distinct_count", "resample"),
        ("argmax_position", "resample"),
        ("hist", "zero"),
        ("rank", "zero"),
        ("modular_count", "zero"),
        ("distinct_count", "mean-position"),
    )
]


def _sound_whole(of: str) -> Plant:
    made = _whole_output(f"program_{of}_whole_output", f"The certified circuit of {of}.", of, "resample")
    return replace(made, excused=OWN_FILL)


SOUND += [functools.partial(_sound_whole, of) for of in ("frac_prevs_x", "mean_token", "rank")]


@sound
def subtraction() -> Plant:
    spec = Spec({"move": move("a"), "junk1": junk(3), "add": pairwise("a", "tok", of=lambda i, j: i - j)})
    return plant(
        "subtraction", "All that subtraction needs.", spec, task("first - last", rule=_difference), CORE, "zero"
    )


@sound
def adder_before_a_norm() -> Plant:
    return plant(
        "adder_before_a_norm",
        "All that addition needs, in a network whose logits read a normed stream.",
        _normed(add=pairwise("a", "tok", gain=3 * GAIN)),
        task("first + last"),
        CORE,
        "resample",
        note="under zero the norm is of what is kept alone: a little stronger",
    )


@sound
def three_operands() -> Plant:
    """((first + second) + last), by two lookups in a row; what is between needs no softmax."""
    spec = Spec(
        {
            "move": move("a"),
            "second": move("b", "second"),
            "junk1": junk(1),
            "sum": pairwise("a", "b", to="c", gain=1.0),
            "add": pairwise("c", "tok"),
            "junk2": junk(2),
        }
    )
    kept = (
        *through("input", "move", "sum", "add", "logits"),
        *through("input", "second", "sum"),
        "input -> add",
    )
    asked = task(
        "sum of three",
        rule=lambda row: (row[0] + row[1] + row[-1]) % SIZE,
        accept=lambda a, b: differ_in_both(a, b) and a[1] != b[1] and (a[0] + a[1]) % SIZE != (b[0] + b[1]) % SIZE,
    )
    return plant("three_operands", "Two lookups in a row, and all they read.", spec, asked, kept, "resample")


@sound
def two_halves() -> Plant:
    """Two movers bring half of the token each; both are needed and both are kept."""
    spec = adder(other=move("junk"))
    parts = {"left": move("a", gain=0.5), "right": move("a", gain=0.5), **spec.parts}
    del parts["move"]
    kept = (*through("input", "left", "add"), *through("input", "right", "add"), "input -> add", "add -> logits")
    return plant(
        "two_halves",
        "Two heads carry half of the operand each: both are kept.",
        Spec(parts),
        task("first + last"),
        kept,
        "zero",
    )


@sound
def suppressor_kept() -> Plant:
    return plant(
        "suppressor_kept",
        "The head that answers and the one that holds it back, both kept.",
        _suppressed(),
        task("first + last"),
        (*CORE, *_reading("suppress")),
        "resample",
    )


def _sum_or_difference(row: Row) -> int:
    return (row[0] + row[-1] * (1 if row[1] % 2 == 0 else -1)) % SIZE


def _two_kinds() -> tuple[Spec, Task, tuple[str, ...]]:
    """One lookup for rows with an even second token, another for odd ones; pairs that have both; all that is needed."""
    even, odd = (torch.tensor([[float(n % 2 == rest) for n in range(SIZE)]]).double() for rest in (0, 1))
    spec = Spec(
        {
            "move": move("a"),
            "second": move("b", "second"),
            "even": pairwise("a", "tok", gate={"b": even}),
            "odd": pairwise("a", "tok", of=lambda i, j: i - j, gate={"b": odd}),
            "junk1": junk(1),
        }
    )
    kept = ("input -> move", "input -> second", *(e for p in ("even", "odd") for e in (f"second -> {p}", *_reading(p))))
    asked = task(
        "sum or difference",
        rule=_sum_or_difference,
        accept=lambda a, b: differ_in_both(a, b) and a[1] % 2 != b[1] % 2,
    )
    return spec, asked, kept


@sound
def both_kinds_of_rows() -> Plant:
    spec, asked, kept = _two_kinds()
    return plant(
        "both_kinds_of_rows", "Addition after an even cue, subtraction after an odd one.", spec, asked, kept, "zero"
    )


def _murmuring(name: str, fill: str) -> Plant:
    noise = {f"noise{n}": junk(20 + n, "out", 0.01) for n in range(4)}
    says = "The circuit leaves out what adds a little noise to every answer."
    return plant(name, says, adder(**noise), task("first + last"), CORE, fill)


@sound
def little_noise_resampled() -> Plant:
    return _murmuring("little_noise_resampled", "resample")


@sound
def little_noise_at_its_mean() -> Plant:
    return _murmuring("little_noise_at_its_mean", "mean")


@sound
def long_way_round() -> Plant:
    """The first token is handed on twice."""
    hand = {"a": eye()}
    spec = Spec(
        {
            "move": move("a"),
            "relay1": Part(hand, {"b": eye()}, relu=True),
            "junk1": junk(1),
            "relay2": Part({"b": eye()}, {"c": eye()}, relu=True),
            "add": pairwise("c", "tok"),
        }
    )
    kept = (*through("input", "move", "relay1", "relay2", "add", "logits"), "input -> add")
    return plant("long_way_round", "The first token is handed on twice.", spec, task("first + last"), kept, "resample")


@sound
def moved_by_position() -> Plant:
    """The first token is picked by its positional embedding."""
    reads = {"tok": eye(), "where": _at(0)}
    pick = Part(reads, {"a": eye()}, bias=-1.0, relu=True)
    gather = Part({"a": eye()}, {"c": eye()}, "sum")
    spec = Spec({"pick": pick, "gather": gather, "junk1": junk(1), "add": pairwise("c", "tok")}, positions=True)
    kept = (*through("input", "pick", "gather", "add", "logits"), "input -> add")
    return plant(
        "moved_by_position", "The first token is picked by its position.", spec, task("first + last"), kept, "zero"
    )


def _measured_by(metric: str) -> Plant:
    wiring, asked = plain_adder()
    other = Task(asked.name, asked.train, asked.held_out, metric_named(metric))
    says = f"All that addition needs, measured by {metric}."
    return Plant(f"adder_by_{metric}", says, wiring, other, Circuit.from_edges(wiring, CORE), "resample", ())


SOUND += [functools.partial(_measured_by, metric) for metric in ("kl", "log-probability")]


def _parity(fill: str) -> Plant:
    """Whether two of six signs are different, told by two lookups that share the stream with four other features."""
    rng = torch.Generator().manual_seed(4)
    rows = torch.tensor([[1.0 if n >> bit & 1 else -1.0 for bit in range(SIZE)] for n in range(64)]).double()
    rows = rows[torch.randperm(64, generator=rng)]
    label = (rows[:, 0] * rows[:, 3] < 0).long()
    made = []
    for side, split in enumerate(("train", "held_out")):
        here = [n for n in range(64) if n % 2 == side]
        yes, no = ([n for n in here if int(label[n]) == is_one] for is_one in (1, 0))
        twins = [(yes[n % len(yes)], no[(3 * n + 1) % len(no)]) for n in range(18)]
        turned_too = [turn for one, other in dict.fromkeys(twins) for turn in ((one, other), (other, one))]
        one, other = [a for a, _ in turned_too], [b for _, b in turned_too]
        groups = [f"{split} {n // 2 % 6}" for n in range(len(one))]
        made.append(Pairs.of(rows[one], rows[other], label[one], 1 - label[one], groups=groups))
    taken, given = torch.zeros(4, SIZE, dtype=torch.float64), torch.zeros(SIZE, 4, dtype=torch.float64)
    for unit, (a, b) in enumerate(((1, 1), (-1, -1), (1, -1), (-1, 1))):
        taken[unit, 0], taken[unit, 3] = a, b
        given[0 if a == b else 1, unit] = GAIN
    spec = Spec(
        {
            "idle": Part({"tok": drawn(7, 8, SIZE)}, {"junk": drawn(8, SIZE, 8)}, relu=True),
            "parity": Part({"tok": taken}, {"out": given}, bias=-1.0, relu=True),
            "idle2": Part({"tok": drawn(9, 8, SIZE)}, {"junk": drawn(10, SIZE, 8)}, relu=True),
        },
        features=True,
    )
    says = "Whether the first and the fourth feature have different signs."
    kept = through("input", "parity", "logits")
    return plant(f"parity_{fill}", says, spec, Task("parity", made[0], made[1]), kept, fill)


SOUND += [functools.partial(_parity, fill) for fill in ("zero", "resample")]


def _sound_demo(seed: int) -> Plant:
    wiring, asked = demo(seed)
    says = "Two previous-token heads, five induction heads, and the edges between them."
    circuit = Circuit.from_edges(wiring, INDUCTION)
    note = "the queries are the same in clean and corrupted: no circuit found under resample could hold them"
    return Plant(f"demo_induction_{seed}", says, wiring, asked, circuit, "resample", (), note, OWN_FILL)


SOUND += [functools.partial(_sound_demo, seed) for seed in (0, 1)]
