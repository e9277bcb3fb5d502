"""How good scores and circuits are: against a circuit that is known, and by faithfulness over all sizes.

Against the truth, scores are judged by their order (``auroc``, ``average_precision``) and circuits as sets of edges
(``match``). Both ask which of the edges are in the truth, so an empty truth is an error: count those apart.

Without a truth, circuits of growing size are measured (``curve``), and the areas under the curve are MIB's CPR and CMD
(Mueller et al. 2504.13151). Areas depend on the axis, and papers differ in it; each has its own name (``AXES``).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.scores import Scores
from voltmeter.discover.faithful import Faithfulness, Judge
from voltmeter.errors import CircuitError, nearest

# Against a known circuit -----------------------------------------------------------------------------------------


def auroc(scores: Scores, truth: Circuit | Iterable[str], signed: bool = False) -> float:
    """The chance that an edge of the truth scores higher than another edge; a tie counts as lower.

    The area under the ROC curve, pessimistic at ties: a method that scores all edges alike gets 0, where the usual
    halves give it .5. By |score| unless ``signed``, as top-k circuits are. Raises CircuitError for an empty truth, and
    for one that holds every edge.
    """
    inside = _inside(scores.edges, truth)
    keys = _keys(scores, signed)
    others = keys[~inside].sort().values
    if not len(others):
        raise CircuitError(
            f"the truth holds all {len(scores):,} edges, and no other edge could score higher",
            mend="count such a truth apart",
        )
    below = torch.searchsorted(others, keys[inside])  # how many of the others are lower: those that tie are not
    return float(below.double().mean()) / len(others)


def average_precision(scores: Scores, truth: Circuit | Iterable[str], signed: bool = False) -> float:
    """The precision of the prefix that ends in each edge of the truth, averaged over these; ties at their worst.

    Among edges of equal score those of the truth come last. What a random order gets tends to the truth's share of all
    edges. By |score| unless ``signed``. Raises CircuitError for an empty truth.
    """
    inside = _inside(scores.edges, truth)
    keys = _keys(scores, signed)
    order = torch.argsort(inside.long(), stable=True)  # the truth behind the others
    order = order[torch.argsort(keys[order], descending=True, stable=True)]
    ranks = inside[order].nonzero().flatten().double() + 1
    return float((torch.arange(1, len(ranks) + 1) / ranks).mean())


@final
@dataclass(frozen=True)
class Match:
    """A circuit against the true one, as sets of edges. ``precision`` is None for an empty circuit: it is 0/0."""

    exact: bool
    precision: float | None
    recall: float


def match(circuit: Circuit, truth: Circuit | Iterable[str]) -> Match:
    """Whether the circuit is the truth, which share of it is true, and which share of the truth it holds.

    Raises CircuitError for an empty truth.
    """
    inside = _inside(circuit.edges, truth)
    both, kept = int((inside & circuit.kept).sum()), len(circuit)
    return Match(torch.equal(inside, circuit.kept), both / kept if kept else None, both / int(inside.sum()))


def _inside(edges: Sequence[str], truth: Circuit | Iterable[str]) -> Bool[Tensor, "edge"]:
    """Which edges are in the truth. Raises CircuitError if none is, or it is of another wiring."""
    given = truth if isinstance(truth, Circuit) else Circuit.from_edges(edges, truth)
    if given.edges != tuple(edges):
        raise CircuitError(
            "the truth is of another wiring than what is judged by it",
            [f"it is a part of {len(given.edges):,} edges, judged are {len(edges):,}; or their names differ"],
        )
    if not len(given):
        raise CircuitError(
            "the truth holds no edge: nothing can be found, and nothing missed",
            mend="count empty truths apart",
        )
    return given.kept


def _keys(scores: Scores, signed: bool) -> Float64[Tensor, "edge"]:
    return (scores.values if signed else scores.values.abs()).double()


# By faithfulness -------------------------------------------------------------------------------------------------

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The sizes of MIB, as shares of all edges; each is rounded down to whole edges, as its code does."""

AXES = ("share", "self", "log")
"""What areas are taken over.

share   the wanted share of all edges: MIB's leaderboard
self    the edges that lie on a path from an input to an output, over the most that do: MIB's paper
log     the logarithm of the wanted share, scaled to run from 0 to 1: every size counts alike, where on the other two
        the largest circuits are nearly all of the area
"""


@final
@dataclass(frozen=True)
class Curve:
    """Faithfulness of circuits of growing size. One entry for each of ``shares``, which grow.

    ``sizes``: edges kept. ``on_path``: those of them on a path of kept edges from an input to an output. ``f``: the
    normalised faithfulness, unclipped.
    """

    shares: tuple[float, ...]
    sizes: tuple[int, ...]
    on_path: tuple[int, ...]
    f: tuple[float, ...]

    def cpr(self, axis: str) -> float:
        """The area under f, over one of ``AXES``: the higher the better. "Circuit performance ratio" in MIB.

        By trapezoids, from the first size to the last; nothing is added for what is smaller.
        """
        return _area(self._places(axis), self.f)

    def cmd(self, axis: str) -> float:
        """The area of |1 − f|, likewise: the lower the better. "Circuit-model distance" in MIB."""
        return _area(self._places(axis), [abs(1 - f) for f in self.f])

    def areas(self) -> dict[str, float]:
        """``cpr-share``, ``cmd-share``, ``cpr-self`` and so on, one of each for every axis."""
        kinds = {"cpr": self.cpr, "cmd": self.cmd}
        return {f"{kind}-{axis}": area(axis) for axis in AXES for kind, area in kinds.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        lists = {"shares": self.shares, "sizes": self.sizes, "on_path": self.on_path, "f": self.f}
        return {name: list(values) for name, values in lists.items()} | self.areas()

    def _places(self, axis: str) -> Sequence[float]:
        match axis:
            case "share":
                return self.shares
            case "self":
                most = max(self.on_path)
                return [count / most for count in self.on_path] if most else [0.0] * len(self.on_path)
            case "log":
                first, last = math.log(self.shares[0]), math.log(self.shares[-1])
                return [(math.log(share) - first) / (last - first) for share in self.shares]
            case _:
                raise CircuitError(
                    f"areas are taken over no axis '{axis}'", [nearest(axis, AXES)], f"axes: {', '.join(AXES)}"
                )


def curve(judge: Judge, scores: Scores, shares: Sequence[float] = SHARES, signed: bool = False) -> Curve:
    """How faithful the top-k circuits of ``scores`` are on the judge's pairs, at growing ``shares`` of all edges.

    By |score| unless ``signed`` (the tables of MIB's paper are signed). Costs a masked forward per size and batch.
    Raises CircuitError for shares that are not two or more growing numbers up to 1.
    """
    growing = all(share < more for share, more in pairwise(shares))
    if len(shares) < 2 or not growing or not 0 < shares[0] < shares[-1] <= 1:
        raise CircuitError(
            f"the shares {', '.join(f'{share:g}' for share in shares)} make no curve",
            mend="give two or more growing numbers above 0 and up to 1",
        )
    wiring = judge.wiring
    circuits = [scores.top(int(share * len(scores)), signed) for share in shares]
    measured: Callable[[int], float] = cache(lambda size: judge.measure(scores.top(size, signed)).normalised)
    sizes = tuple(map(len, circuits))
    off_path = [len(each.disconnected(wiring.feeds, wiring.inputs, wiring.outputs)) for each in circuits]
    on_path = tuple(size - off for size, off in zip(sizes, off_path, strict=True))
    return Curve(tuple(shares), sizes, on_path, tuple(map(measured, sizes)))


def _area(places: Sequence[float], values: Sequence[float]) -> float:
    """By trapezoids."""
    corners = pairwise(zip(places, values, strict=True))
    return sum((x - before) * (y + old) / 2 for (before, old), (x, y) in corners)


def edges_needed(
    judge: Judge, scores: Scores, thresholds: Sequence[float] = (0.9, 0.95, 0.99), signed: bool = False
) -> dict[float, int]:
    """For each threshold the smallest top-k circuit that is faithful at it (``Faithfulness.at``) on the judge's pairs.

    Sizes are tried on a geometric grid from below, then by bisection between the last unfaithful and the first
    faithful one; where faithfulness does not grow with size, a smaller one may exist between those tried. All edges
    are always faithful. Costs about thirty masked runs over the pairs for the first threshold, fewer for the others.
    Raises CircuitError for a threshold that is not above 0 and up to 1.
    """
    wrong = [f"{threshold:g}" for threshold in thresholds if not 0 < threshold <= 1]
    if wrong:
        raise CircuitError(f"faithful at {', '.join(wrong)} was asked for, numbers above 0 and up to 1 were expected")
    measured: Callable[[int], Faithfulness] = cache(lambda size: judge.measure(scores.top(size, signed)))
    found: dict[float, int] = {}
    for threshold in thresholds:
        found[threshold] = _smallest(len(scores), lambda size, at=threshold: measured(size).at(at))  # type: ignore[misc]
    return found


def _smallest(n: int, enough: Callable[[int], bool]) -> int:
    """The first of a geometric grid up to ``n`` that is enough, narrowed down to the last that was not. ``n`` is."""
    low, high = -1, n
    for size in sorted({0, *(round(n ** (step / 28)) for step in range(29))}):
        if enough(size):
            high = size
            break
        low = size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
