"""Would as many edges drawn at random do as well, and does the method find as good a circuit where there is none?"""

import copy
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from voltmeter.check.case import Case, Random
from voltmeter.check.draws import of_shape, of_size
from voltmeter.check.faithfulness import faithful_at
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Picture, Verdict, within
from voltmeter.check.registry import register
from voltmeter.check.repeated import NotFound, repeat
from voltmeter.check.split import Measured, Split
from voltmeter.discover.discover import ask
from voltmeter.discover.intervals import interval
from voltmeter.discover.question import FILLS, Question
from voltmeter.errors import VoltmeterError
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task

DRAWN = 100  # circuits of each kind
ABOVE = 0.95  # of them must be worse
ENOUGH = 59  # drawn and all worse: then, with 95% certainty, fewer than one in twenty of all there are is as good
FEWEST = 20  # others there are at all: with fewer, one alone would be more than one in twenty
_PIECE = 7  # circuits at a time: too few for a rehearsal, as what random ones have in common is not worth it
_AS_GOOD = 1e-5  # nearer than this to ours is as good: float32 sums in another order differ by about that

SIZE, SHAPE = "of its size", "of its shape"
SHUFFLED, PERMUTED = "answers dealt out at random", "a model of shuffled weights"


@register("better-than-chance", "is it better than random circuits, and the method than on noise?")
def better_than_chance(case: Case) -> Finding:
    """Random circuits of the same size, and of the same shape, on at most 64 held-out pairs; then the method again with
    the answers dealt out among the pairs, and in a model each of whose weight tensors was shuffled.

    A circuit is as good as it is near to the full model: by the larger of |1 - f| and the KL share. The figure is the
    share of random circuits that are worse, of the kind where that is lower. It holds where more than 95% of both are
    worse, and fails where they are not. Where the method finds a faithful circuit on noise, it cannot tell: that it
    found one on the task is then no evidence. Costs up to 200 masked forwards of the few pairs, two runs of the method,
    and wiring the model anew.
    """
    others = {SIZE: of_size, SHAPE: of_shape}
    n, size = len(case.circuit.edges), len(case.circuit)
    if size in (0, n):
        return _left_out(f"it has {size:,} of {n:,} edges, and no other circuit has as many")
    if case.few.groups.count < 2:
        return _left_out("the held-out pairs are of one group: nothing says how much they vary")
    ours = case.few.measure(case.keep[None])
    ranks = {
        kind: _rank(case, ours, draw(case.circuit, case.wiring, DRAWN, case.random(kind)))
        for kind, draw in others.items()
    }
    told = {kind: rank for kind, rank in ranks.items() if rank.count >= FEWEST}
    if not told:
        counts = " and ".join(f"{rank.count} {kind}" for kind, rank in ranks.items())
        return _left_out(f"{counts} are too few random circuits to compare with; {FEWEST} are needed")
    controls = {} if case.method is None else {SHUFFLED: _shuffled(case), PERMUTED: _permuted(case)}
    lowest = min(told.values(), key=lambda rank: rank.worse)
    return Finding(
        "better-than-chance",
        _verdict(told, controls),
        lowest.worse,
        lowest.low,
        lowest.high,
        f"{ABOVE:.0%} of random circuits worse",
        _says(case, float(ours.f[0]), told, controls),
        (*(rank.row(kind) for kind, rank in told.items()), *(control.row(kind) for kind, control in controls.items())),
        _counted(case, ranks, controls),
        _picture(case, ours, told),
    )


def _left_out(why: str) -> Finding:
    return Finding("better-than-chance", CANNOT_TELL, None, None, None, f"{ABOVE:.0%} of random circuits worse", why)


# Random circuits ---------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class Rank:
    """The share of random circuits that are worse than ours, its interval, and what they keep of the metric.

    ``all_there_are``: no more of them exist (or next to none), so that nothing was left to chance.
    """

    worse: float
    low: float
    high: float
    f: Float64[Tensor, "circuit"]
    all_there_are: bool

    @property
    def count(self) -> int:
        return len(self.f)

    @property
    def verdict(self) -> Verdict:
        if self.count < ENOUGH and not self.all_there_are:
            return FAILS if self.high < ABOVE else CANNOT_TELL
        return within(self.low, self.high, at_least=ABOVE)

    @property
    def nearest(self) -> float:
        """What the one nearest to the full model keeps."""
        return float(self.f[(self.f - 1).abs().argmin()])

    def row(self, kind: str) -> dict[str, Any]:
        return _row(f"{self.count} random circuits {kind}", float(self.f.median()), self.nearest, self.worse, "")


def _rank(case: Case, ours: Measured, keep: Tensor) -> Rank:
    mine, badness, f = _bad(ours), [], []
    for some in keep.float().split(_PIECE):
        if case.clock.over or not len(some):  # of no circuits at all ``split`` makes one empty piece
            break
        found = case.few.measure(some)
        badness.append(_bad(found))
        f.append(found.f)
    if not f:
        return Rank(0.0, 0.0, 1.0, torch.zeros(0, dtype=torch.float64), False)
    worse = (torch.cat(badness) > mine + _AS_GOOD).double()
    low, high = interval(worse[:, 1:].mean(0))
    return Rank(float(worse[:, 0].mean()), low, high, torch.cat(f), len(keep) < DRAWN and len(worse) == len(keep))


def _bad(found: Measured) -> Float64[Tensor, "circuit draw"]:
    """How far from the full model: first on all pairs, then on each resample of their groups."""
    far = torch.cat([found.f[:, None], found.drawn], 1).sub(1).abs()
    if found.kl is None or found.kl_share is None:
        return far
    groups = found.split.groups
    share = groups.drawn(found.kl) / groups.drawn(found.split.judge.none_kl)
    return torch.maximum(far, torch.cat([found.kl_share[:, None], share], 1))


# The method, on noise ------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Control:
    """What the method's circuit keeps where there is nothing to find; ``why`` not, where it found none.

    ``verdict``: whether it is faithful there. ``on_task``: what it keeps of the true task, and ``is_the_circuit``
    whether it is faithful on that too: then it is a circuit of the task, found in spite of the noise.
    """

    f: float | None = None
    verdict: Verdict = CANNOT_TELL
    on_task: float | None = None
    is_the_circuit: bool = False
    why: str = ""

    @property
    def finds_noise(self) -> bool:
        """Whether the method makes a faithful circuit of nothing."""
        return self.verdict == HOLDS and not self.is_the_circuit

    def row(self, kind: str) -> dict[str, Any]:
        return _row(f"the method on {kind}", self.f, self.on_task, None, self.why or self.verdict)


def _row(what: str, f: float | None, best: float | None, worse: float | None, note: str) -> dict[str, Any]:
    """``best``: of random circuits the nearest to the full model; of a circuit found on noise, what it keeps of the
    true task."""
    numbers = {"f": f, "best": best, "worse than ours": worse}
    return {"what": what} | {name: None if n is None else round(n, 4) for name, n in numbers.items()} | {"note": note}


def _shuffled(case: Case) -> Control:
    """The answers, each with its wrong ones, dealt out among the pairs of either split."""
    random = case.random(SHUFFLED)
    task = case.task
    held_out = _dealt(task.held_out, random)
    train = held_out if task.train is task.held_out else _dealt(task.train, random)
    if held_out is None or train is None:
        return Control(why="all pairs have the same answers, or none")
    try:
        noise = Task(f"{task.name}, answers dealt out", train, held_out, task.metric)
        question = Question(case.wiring, noise, case.question.fill, case.question.seed, case.question.batch_size)
        split = Split.of(question, held_out)
    except VoltmeterError as error:
        return Control(why=error.problem)
    if torch.equal(split.full, case.held_out.full):
        return Control(why=f"{task.metric.name} does not look at the answers")
    return _found(case, question, split, on_task=True)


def _dealt(pairs: Pairs, random: Random) -> Pairs | None:
    rows = torch.tensor(random.permutation(len(pairs)))
    if torch.equal(pairs.answers[rows], pairs.answers):
        return None
    return replace(pairs, answers=pairs.answers[rows], wrong=pairs.wrong[rows])


def _permuted(case: Case) -> Control:
    """The same task, of a copy of the model in which every parameter's entries change places."""
    fill = case.question.fill.name
    if fill not in FILLS:
        return Control(why=f"the {fill} fill is of this model's own values")
    try:
        wiring = case.wiring.bind(_with_shuffled_weights(case.wiring.model, case.random(PERMUTED)))
        question = ask(wiring, case.task, fill, seed=case.question.seed, batch_size=case.question.batch_size)
        return _found(case, question, Split.of(question, case.task.held_out), on_task=False)
    except VoltmeterError as error:
        return Control(why=error.problem)


@torch.no_grad()
def _with_shuffled_weights(model: nn.Module, random: Random) -> nn.Module:
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        order = torch.randperm(parameter.numel(), generator=random.generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return twin


def _found(case: Case, question: Question, split: Split, on_task: bool) -> Control:
    assert case.method is not None
    circuit = repeat(case, case.method, question)
    if isinstance(circuit, NotFound):
        return Control(why=circuit.why)
    keep, t = circuit.mask()[None], case.threshold
    found = split.measure(keep)
    if not on_task:
        return Control(float(found.f[0]), faithful_at(found, t))
    real = case.held_out.measure(keep)
    return Control(float(found.f[0]), faithful_at(found, t), float(real.f[0]), faithful_at(real, t) == HOLDS)


# The finding -------------------------------------------------------------------------------------------------------


def _verdict(told: dict[str, Rank], controls: dict[str, Control]) -> Verdict:
    verdicts = [rank.verdict for rank in told.values()]
    if FAILS in verdicts:
        return FAILS
    unsure = CANNOT_TELL in verdicts or any(control.finds_noise for control in controls.values())
    return CANNOT_TELL if unsure else HOLDS


def _says(case: Case, f: float, told: dict[str, Rank], controls: dict[str, Control]) -> str:
    parts = [
        f"{rank.worse:.0%} of {rank.count} random circuits {kind} are worse (the nearest keeps {rank.nearest:.0%})"
        for kind, rank in told.items()
    ]
    parts[0] = f"the circuit keeps {f:.0%}; {parts[0]}"
    name = "" if case.method is None else case.method.name
    for kind, control in controls.items():
        if control.f is None:
            continue
        where = f"{'with' if kind == SHUFFLED else 'in'} {kind} {name}"
        if control.finds_noise:
            parts.append(f"{where} finds a faithful circuit too ({control.f:.0%}), so that finding one is no evidence")
        elif control.is_the_circuit:
            parts.append(
                f"{where} finds a circuit that is faithful on the true task ({control.on_task:.0%}): "
                "that noise was too weak to tell"
            )
        else:
            parts.append(f"{where} finds nothing faithful ({control.f:.0%})")
    return "; ".join(parts)


def _counted(case: Case, ranks: dict[str, Rank], controls: dict[str, Control]) -> dict[str, Any]:
    left = [f"{kind}: {control.why}" for kind, control in controls.items() if control.why]
    if case.method is None:
        left.append("the method on noise: how the circuit was found is not known")
    left += [
        f"only {rank.count} random circuits {kind}"
        for kind, rank in ranks.items()
        if rank.count < (DRAWN if case.clock.over else FEWEST)
    ]
    counted: dict[str, Any] = {"pairs": len(case.few), "circuits": sum(rank.count for rank in ranks.values())}
    return counted | ({"left_out": "; ".join(left)} if left else {})


def _picture(case: Case, ours: Measured, told: dict[str, Rank]) -> Picture:
    """What circuits keep, from the least to the most; the line is ours."""
    longest = max(rank.count for rank in told.values())
    share = [round((at + 0.5) / longest, 4) for at in range(longest)]
    at = torch.tensor(share, dtype=torch.float64)
    lines = {f"random, {kind}": rank.f.quantile(at).tolist() for kind, rank in told.items()}
    return Picture(
        "lines",
        f"Random circuits of {len(case.circuit):,} edges",
        "share of random circuits",
        f"share of {case.task.metric.name} kept; the line is the circuit",
        {"x": share, "lines": lines},
        line=float(ours.f[0]),
    )
