"""ACDC: from the outputs backwards, cut every edge whose cut costs less than a threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.attribution import summed_metric
from voltmeter.discover.learning import objective_of, require, require_objective
from voltmeter.discover.method import Method, State, register, seeded
from voltmeter.discover.question import Question
from voltmeter.discover.trials import Means, in_chunks
from voltmeter.errors import MetricError
from voltmeter.run.idle import idle_readers
from voltmeter.run.points import plain_point

ORDERS = ("last-first", "first-first", "random")
_EDGES_PER_STEP = 256
_CLOSE = 2e-6  # of the loss (or of 1), rounding in float32: nearer decisions are made again, by runs alone


@register
@dataclass(frozen=True)
class Acdc(Method):
    """ACDC, sequential as published: readers from the outputs backwards, of each its edges one by one.

    An edge is cut for good when cutting it, in the circuit as it stands, raises the loss by less than the threshold. An
    edge's score is the largest threshold tried that keeps it, 0 where none does. Source: Conmy et al. 2304.14997,
    algorithm 1. ``objective`` "kl" to the full model (theirs), or "metric", the task's own.

    ``thresholds`` are shares of the loss of nothing kept, so that one set serves every task (the published ones are
    absolute, and differ from task to task); ``absolute=True`` takes them as they are. ``order`` of a reader's edges:
    the latest writer first (theirs), the earliest first, or "random" by the seed. Decisions depend on it.

    ``fast``: edges are tried as a batch of the circuits that would follow if every guess before them came true; results
    count up to the first guess that does not. Nothing before the reader is computed again, and an edge whose reader
    leads nowhere is cut untried. The decisions are those of ``fast=False``, one forward with edges cut after another;
    any within rounding (of float32: 16-bit models round more) of the threshold is made by such runs. ``n_pairs``: train
    pairs the loss is a mean over, 0 for all (whole batches, so it may be some more; those past a gigabyte of what is
    held ready are run as if not fast). Costs per threshold and edge: a part of a forward when fast, one and a half or
    more when not. Affordable for heads; for neurons and latents take an attribution method. Raises MetricError where
    keeping nothing loses nothing.
    """

    name: ClassVar[str] = "acdc"
    sign: ClassVar[str] = "the largest threshold that keeps the edge; 0: none does"

    thresholds: Sequence[float] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    absolute: bool = False
    objective: str = "kl"
    order: str = "last-first"
    fast: bool = True
    circuits: int = 4
    n_pairs: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        require_objective(self.name, self.objective)
        levels = self.thresholds
        wanted = {
            "thresholds": (levels, "numbers above 0", bool(levels) and all(0 < t < math.inf for t in levels)),
            "order": (self.order, f"one of {', '.join(ORDERS)}", self.order in ORDERS),
            "circuits": (self.circuits, "a whole number from 1", self.circuits >= 1),
            "n_pairs": (self.n_pairs, "a whole number from 0", self.n_pairs >= 0),
        }
        require(self.name, wanted)

    def steps(self, question: Question) -> int:
        return len(self.thresholds) * -(-question.n_edges // _EDGES_PER_STEP)

    def start(self, question: Question) -> State:
        trials = self.trials(question)
        nothing = -trials.alone(torch.zeros(question.n_edges))
        unit = 1.0 if self.absolute else _unit(self, -trials.full, nothing)
        return {
            "unit": torch.tensor(unit, dtype=torch.float64),
            "keep": torch.ones(len(self.thresholds), question.n_edges),
            "cost": torch.full((question.n_edges,), math.nan, dtype=torch.float64),  # of cutting each, when last tried
            "size": _sizes(question) if self.fast else torch.zeros(question.n_edges, dtype=torch.float64),
            "order": _order(self.order, question),
            "tried": torch.zeros(2, dtype=torch.long),  # decisions made by trying, and circuits run for them
        }

    def step(self, question: Question, state: State, number: int) -> State:
        chunks = list(in_chunks(question.n_edges, _EDGES_PER_STEP))
        at, chunk = number // len(chunks), chunks[number % len(chunks)]
        guess = _Guess(state["cost"].clone(), state["size"], float(state["unit"]) * self.thresholds[at])
        search = _Search(self, question, guess)
        keep = state["keep"].clone()
        keep[at] = search.decide(keep[at], state["order"][chunk.start : chunk.stop].tolist())
        tried = state["tried"] + torch.tensor([search.tried, search.runs])
        return {**state, "keep": keep, "cost": guess.cost, "tried": tried}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        levels = torch.tensor(self.thresholds, dtype=torch.float64)
        return (state["keep"].double() * levels[:, None]).amax(0)

    def trials(self, question: Question) -> Means:
        """The train pairs, ready to be tried on."""
        metric = objective_of(question, question.batch(0), self.objective)
        count = question.n_batches
        if self.n_pairs:
            count = min(count, -(-self.n_pairs // question.batch_size))
        return Means(question, metric, count, self.circuits if self.fast else 1)


def _unit(method: Acdc, full: float, nothing: float) -> float:
    """What thresholds are shares of. Raises MetricError where keeping nothing loses nothing."""
    if not nothing > full:
        raise MetricError(
            "keeping no edge loses nothing, so a share of that loss is no threshold",
            [f"loss ({method.objective}) of the full model: {full:.4g}, of nothing kept: {nothing:.4g}"],
            "give absolute=True with thresholds in units of the loss, another metric, or other corrupted inputs",
        )
    return nothing - full


def _order(order: str, question: Question) -> Tensor:
    """Int [edge]: the edges in the order in which they are tried. Readers from the last to the first."""
    readers, n = question.wiring.edges.reader_numbers, question.n_edges
    within = torch.arange(n)
    if order == "random":
        within = torch.randperm(n, generator=seeded(question, 0))
    elif order == "last-first":
        within = -within
    ranks = torch.empty(n, dtype=torch.long)
    ranks[within.argsort()] = torch.arange(n)
    return (-readers * n + ranks).argsort()


def _sizes(question: Question) -> Tensor:
    """Float64 [edge]: the square of a first-order estimate of what each cut does to the metric, on one batch.

    KL grows as the square of a small change, so this foretells costs up to a factor. Zeros where the metric cannot.
    """
    batch = question.batch(0)
    try:
        score = summed_metric(question, batch, Acdc.name)
        point, value = plain_point(question.wiring, batch.clean, batch.fill, score, rows=len(batch.pairs))
        value.backward()
    except MetricError:
        return torch.zeros(question.n_edges, dtype=torch.float64)
    return point.total.abs().mean(0) ** 2


@dataclass(frozen=True, eq=False)
class _Guess:
    """What decisions may turn out to be. A wrong guess costs time, and nothing else."""

    cost: Tensor  # of cutting each edge, when it was last tried; NaN before
    size: Tensor  # in proportion to what is expected of those not tried
    threshold: float

    def cut(self, edges: list[int]) -> list[bool]:
        """Whether each edge will be cut."""
        tried = ~self.cost.isnan()
        unit = (
            float(self.cost[tried].clamp_min(0).sum() / self.size[tried].sum().clamp_min(1e-300)) if tried.any() else 0
        )
        expected = torch.where(tried, self.cost, unit * self.size)
        found: list[bool] = (expected[edges] < self.threshold).tolist()
        return found


class _Search:
    """The decisions about some edges at one threshold."""

    def __init__(self, method: Acdc, question: Question, guess: _Guess) -> None:
        self.fast, self.most, self.guess, self.threshold = method.fast, method.circuits, guess, guess.threshold
        self.question, self.trials = question, method.trials(question)
        self.idle = _Idle(question)
        self.tried = self.runs = 0
        self.loss: float | None = None  # under the circuit as it stands, in the way in which the next is measured

    def decide(self, keep: Tensor, edges: list[int]) -> Tensor:
        """``keep`` [edge] after the decisions about ``edges``, made in their order."""
        keep, waiting = keep.clone(), edges
        while waiting:
            self.idle.look(keep, waiting[0])
            keep[[e for e in waiting if e in self.idle]] = 0  # nothing hears their reader, nor will
            waiting = [e for e in waiting if keep[e]]
            if waiting:
                made = self._guessed(keep, waiting[: self.most]) if self.fast else self._next(keep, waiting[0])
                waiting = waiting[made:]
        return keep

    def _next(self, keep: Tensor, edge: int) -> int:
        """Decide about one edge by a run of its own. Changes ``keep``."""
        if self.loss is None:
            self.loss = -self.trials.alone(keep)
        without = _without(keep, edge)
        loss = -self.trials.alone(without)
        self.runs += 1
        if self._decided(edge, loss - self.loss):
            keep[edge], self.loss = 0, loss
        return 1

    def _guessed(self, keep: Tensor, edges: list[int]) -> int:
        """Decide about edges until a decision is not as guessed; how many were decided. Changes ``keep``."""
        guesses, path, now = self.guess.cut(edges), [], keep
        for edge, cut in zip(edges, guesses, strict=True):
            path.append(_without(now, edge))
            now = path[-1] if cut else now
        losses = self._losses(path if self.loss is not None else [*path, keep.clone()])
        loss = losses[len(path)] if self.loss is None else self.loss
        for made, (edge, guess, after) in enumerate(zip(edges, guesses, losses, strict=False)):
            self.idle.look(keep, edge)
            cut = edge in self.idle or self._decided(edge, self._cost(keep, path[made], loss, after))
            if cut:
                keep[edge], loss = 0, after
            if cut != guess:
                break
        self.loss = loss
        return made + 1

    def _cost(self, keep: Tensor, without: Tensor, loss: float, after: float) -> float:
        """What a cut costs: as measured among others, or alone where that is too near to the threshold to say."""
        cost = after - loss
        if abs(cost - self.threshold) > _CLOSE * max(1.0, abs(loss), abs(after)):
            return cost
        self.runs += 2
        return self.trials.alone(keep) - self.trials.alone(without)

    def _decided(self, edge: int, cost: float) -> bool:
        self.tried += 1
        self.guess.cost[edge] = cost
        return cost < self.threshold

    def _losses(self, path: list[Tensor]) -> list[float]:
        keep = torch.stack(path)
        self.runs += len(path)
        made: list[float] = (-self.trials.values(keep)).tolist()
        return made


class _Idle:
    """The edges whose readers lead nowhere, as of when the edges after those were decided: no more edges change it."""

    def __init__(self, question: Question) -> None:
        self.wiring = question.wiring
        self.readers = self.wiring.edges.reader_numbers.tolist()
        self.asked, self.found = -1, frozenset[int]()

    def look(self, keep: Tensor, edge: int) -> None:
        """Look again where ``edge`` is the first of its reader."""
        if self.readers[edge] != self.asked:
            self.asked, self.found = self.readers[edge], idle_readers(self.wiring, keep != 0)

    def __contains__(self, edge: int) -> bool:
        return self.readers[edge] in self.found


def _without(keep: Tensor, edge: int) -> Tensor:
    cut = keep.clone()
    cut[edge] = 0
    return cut
