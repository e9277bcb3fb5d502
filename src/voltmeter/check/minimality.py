"""Can something be cut from the circuit for free: an edge by itself, or one with a companion that it undoes?

That no single edge can be cut is 1-minimality. It does not rule out a veto (x + relu(u - 10 a): without a, u breaks
everything; without both, nothing happens) or a cancellation (x + p - p): edges that undo each other are cut together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from voltmeter.check.case import Case
from voltmeter.check.cuts import Differences, measure_while, no_interval
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Picture, Verdict, within
from voltmeter.check.pieces import listed, without
from voltmeter.check.registry import register
from voltmeter.check.split import Measured

MOST_FREE = 0.01  # of the effect. Less is asked for where there are many edges: see ``least``
NEARLY = 5  # times what is free is told as nearly free
N_EDGES = 512  # tried; of a larger circuit as many are drawn
N_COMPANIONS = 64  # pairs of edges that may undo each other, likeliest first
UNDOES = 0.5  # cut one by one, what two edges do adds up to less than this share of what the larger does
_ROWS = 200  # of details


@register("minimal", "is every edge needed, or can some be cut for free?")
def minimal(case: Case) -> Finding:
    """Each kept edge cut from the circuit, then edges that may undo each other, and components with all their edges.

    A cut is free where f and the KL share (where there are no logits: the metric of the pairs) change by less than
    ``least``. It fails where some edge surely is (the whole interval is below), holds where none can be, and lists
    those that nearly are. Costs a masked forward of at most 64 pairs, or less, for each edge, each of up to
    ``N_COMPANIONS`` pairs of edges and each writer.
    """
    why = _nothing_to_cut(case)
    if why:
        return Finding("minimal", CANNOT_TELL, None, None, None, _against(case), why)
    tried = Tried(case)
    figure, low, high = (len(edges) / len(tried.edges) for edges in (tried.free, tried.surely_free, tried.maybe_free))
    verdict = within(low, high, at_most=0.0)
    return Finding(
        "minimal",
        verdict,
        figure,
        low,
        high,
        _against(case),
        _says(tried, verdict),
        tuple(_row(tried, cut) for cut in tried.cuts_least_first()[:_ROWS]),
        {
            "pairs": len(case.few),
            "groups": case.few.groups.count,
            "circuits": len(tried.cuts) + 1,
            "edges": len(tried.edges),
            "free_below": least(case),
        }
        | ({"left_out": tried.left_out} if tried.left_out else {}),
        _picture(tried),
    )


def least(case: Case) -> float:
    """What an edge has to change not to be free, as a share of the whole effect.

    An even share of what a faithful circuit may lose: were all edges that change less cut together, and their changes
    added up, it would be faithful still.
    """
    return min(MOST_FREE, (1 - case.threshold) / max(1, len(case.circuit)))


def _against(case: Case) -> str:
    return f"the circuit as it is; free is what changes less than {least(case):.2g} of the effect"


def _nothing_to_cut(case: Case) -> str:
    if not len(case.circuit):
        return "the circuit is empty: there is nothing to cut"
    return no_interval(case.few)


@final
@dataclass(frozen=True)
class Cut:
    """Edges cut together from the circuit, and what that changed."""

    edges: tuple[int, ...]
    size: float
    low: float
    high: float
    f: float
    other: float


@final
class Tried:
    """All cuts that were tried, on at most 64 held-out pairs."""

    def __init__(self, case: Case) -> None:
        self.case, self.least = case, least(case)
        self.cuts: list[Cut] = []
        self.left_out = ""
        self.base: Measured = case.few.measure(case.keep[None])
        chosen = sorted(case.random("minimal").choose(len(case.circuit), N_EDGES))
        singles = self._cut([(case.edges[at],) for at in chosen], "edges")
        self.edges = [cut.edges[0] for cut in self.cuts]
        self._cut(self._together(singles), "companions")

    def _cut(self, sets: list[tuple[int, ...]], what: str) -> Differences:
        case = self.case
        found = measure_while(case.clock, case.few, without(case.keep, [list(edges) for edges in sets]), case.keep)
        changed = Differences(found, self.base)
        missed = len(sets) - len(found.values)
        if missed:
            self.left_out = f"{missed} {what}: the time was used up"
        sizes, fs, others = changed.size.tolist(), changed.f.tolist(), changed.other.tolist()
        for at, edges in enumerate(sets[: len(found.values)]):
            self.cuts.append(Cut(edges, sizes[at], *changed.interval(at), fs[at], others[at]))
        return changed

    # What may be free though no single cut shows it

    def _together(self, singles: Differences) -> list[tuple[int, ...]]:
        """Pairs of edges that undo each other, all edges of one component, and all that are free."""
        sets = [*self._undoing(singles), *self._components()]
        return list(dict.fromkeys([*sets, *([self.alone_free] if len(self.alone_free) > 1 else [])]))

    def _undoing(self, singles: Differences) -> Iterator[tuple[int, ...]]:
        """Needed edges whose effects on the pairs, added up, are next to nothing; the best matched first."""
        needed = [at for at, cut in enumerate(self.cuts) if cut.size > self.least]
        if len(needed) < 2:
            return
        moved = singles.moved[needed]
        left = rests(moved).triu(1) + torch.ones(len(needed), len(needed)).tril()
        order = left.flatten().argsort()[:N_COMPANIONS].tolist()
        for one, other in (divmod(at, len(needed)) for at in order):
            if left[one, other] < UNDOES:
                yield self.edges[needed[one]], self.edges[needed[other]]

    def _components(self) -> Iterator[tuple[int, ...]]:
        """For each writer with edges both ways: those out of it, and those into what only it is computed from."""
        wiring, kept = self.case.wiring, self.case.circuit.kept
        for writer in wiring.writers:
            readers = [reader.number for reader in wiring.readers if reader.feeds == (writer.name,)]
            into = torch.isin(wiring.edges.reader_numbers, torch.tensor(readers, dtype=torch.long))
            out = wiring.edges.writer_numbers == writer.number
            if bool((kept & into).any()) and bool((kept & out).any()):
                yield tuple((kept & (into | out)).nonzero().flatten().tolist())

    # What came of it

    def _edges(self, cuts: Iterator[Cut]) -> set[int]:
        tried = set(self.edges)
        return {edge for cut in cuts for edge in cut.edges if edge in tried}

    @property
    def singles(self) -> list[Cut]:
        return [cut for cut in self.cuts if len(cut.edges) == 1]

    @property
    def groups(self) -> list[Cut]:
        return [cut for cut in self.cuts if len(cut.edges) > 1]

    @property
    def alone_free(self) -> tuple[int, ...]:
        """Edges that look free by themselves."""
        return tuple(sorted(cut.edges[0] for cut in self.singles if cut.size <= self.least))

    @property
    def free(self) -> set[int]:
        """Edges that look free, alone or with companions."""
        return self._edges(cut for cut in self.cuts if cut.size <= self.least)

    @property
    def surely_free(self) -> set[int]:
        return self._edges(cut for cut in self.cuts if cut.high <= self.least)

    @property
    def maybe_free(self) -> set[int]:
        """Single edges that the pairs do not show to be needed; and what looks free with companions."""
        single = self._edges(cut for cut in self.singles if cut.low <= self.least)
        return single | self.free

    @property
    def undone(self) -> list[Cut]:
        """Sets that surely are free, with an edge that by itself is not; the smallest first."""
        alone = set(self.alone_free)
        found = [cut for cut in self.groups if cut.high <= self.least and not set(cut.edges) <= alone]
        return sorted(found, key=lambda cut: len(cut.edges))

    def cuts_least_first(self) -> list[Cut]:
        return sorted(self.cuts, key=lambda cut: cut.size)

    def name(self, edge: int) -> str:
        return self.case.circuit.edges[edge]


def rests(moved: Float64[Tensor, "edge pair"]) -> Float64[Tensor, "edge edge"]:
    """What is left when two effects are added up, as a share of the larger of the two: 0 where one undoes the other."""
    norms = moved.norm(dim=1)
    larger = torch.maximum(norms[:, None], norms[None, :]).clamp(min=torch.finfo(norms.dtype).tiny)
    apart = torch.cdist(moved, -moved, compute_mode="donot_use_mm_for_euclid_dist")  # the product is off near 0
    return apart / larger


# In words --------------------------------------------------------------------------------------------------------


def _says(tried: Tried, verdict: Verdict) -> str:
    of = f"of {len(tried.edges):,} edges"
    order = sorted(tried.singles, key=lambda cut: cut.size)
    if verdict == FAILS:
        return "; ".join(_free_parts(tried, of))
    nearly = [tried.name(cut.edges[0]) for cut in order if cut.size <= NEARLY * tried.least]
    if verdict == HOLDS:
        least_one = order[0]
        more = f"; those that nearly can: {listed(nearly)}" if nearly else ""
        return (
            f"none {of} can be cut for free: the one that does least, '{tried.name(least_one.edges[0])}', changes "
            f"{least_one.size:.1%} of the effect, and {tried.least:.2%} was asked for{more}"
        )
    names = [tried.name(edge) for edge in sorted(tried.maybe_free)]
    return (
        f"{len(names):,} {of} may be free: {listed(names)}; on {len(tried.case.few)} pairs a change of "
        f"{tried.least:.2%} of the effect cannot be told from none there, more pairs could"
    )


def _free_parts(tried: Tried, of: str) -> Iterator[str]:
    alone = [tried.name(cut.edges[0]) for cut in tried.singles if cut.high <= tried.least]
    if alone:
        each = ", each by itself" if len(alone) > 1 else ""
        yield f"{len(alone):,} {of} can be cut for free{each}: {listed(alone)}{_at_once(tried)}"
    if tried.undone:
        first = tried.undone[0]
        sets = f"{len(tried.undone):,} sets of edges" if len(tried.undone) > 1 else "a set of edges"
        yield (
            f"{sets} can be cut together, though not one by one: {listed([tried.name(edge) for edge in first.edges])}"
        )


def _at_once(tried: Tried) -> str:
    """What happens if all that are free alone are cut together."""
    found = [cut for cut in tried.groups if cut.edges == tried.alone_free]
    if not found:
        return ""
    return f" (all {len(found[0].edges):,} that look so, cut at once, change {found[0].size:.1%} of the effect)"


def _row(tried: Tried, cut: Cut) -> dict[str, Any]:
    return {
        "edges": listed([tried.name(edge) for edge in cut.edges], 6),
        "is": _kind(tried, cut),
        "change": round(cut.size, 5),
        "low": round(cut.low, 5),
        "high": round(cut.high, 5),
        "f": round(cut.f, 5),
        "kl_share" if tried.base.kl is not None else "each_pair": round(cut.other, 5),
    }


def _kind(tried: Tried, cut: Cut) -> str:
    if cut.high <= tried.least:
        return "free"
    if cut.low <= tried.least:
        return "may be free"
    return "nearly free" if cut.size <= NEARLY * tried.least else "needed"


def _picture(tried: Tried) -> Picture:
    order = sorted(tried.singles, key=lambda cut: -cut.size)[:_ROWS]
    data = {
        "names": [tried.name(cut.edges[0]) for cut in order],
        "values": [cut.size for cut in order],
        "low": [cut.low for cut in order],
        "high": [cut.high for cut in order],
    }
    return Picture("bars", "Each edge cut by itself", "edge", "change, as a share of the effect", data, tried.least)
