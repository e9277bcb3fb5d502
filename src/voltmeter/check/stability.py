"""Does the method find the same circuit again, by other random numbers and from other pairs of the same kind?"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from voltmeter.check.case import Case, Random
from voltmeter.check.finding import CANNOT_TELL, Finding, Picture, Verdict, within
from voltmeter.check.pieces import listed
from voltmeter.check.registry import register
from voltmeter.check.repeated import NotFound, jaccard, on_groups, repeat, with_seed
from voltmeter.circuit.circuit import Circuit
from voltmeter.discover.intervals import interval
from voltmeter.discover.method import Method

STABLE = 0.8  # mean pairwise Jaccard: what 2510.00845 recommends
SEEDS, SAMPLES = 4, 4  # runs beside the circuit itself: with it ten pairs of each kind
FEWEST = 3  # runs of a kind, the circuit among them: two give one pair, and no interval
OFTEN = 0.5  # of the runs: an edge outside that is found this often is told of
_RESAMPLES = 1000
_ROWS = 200  # of details
_BARS = 60  # of the picture

SEEDED, SAMPLED = "by another seed", "from other pairs"


@register("stable", "does the method find the same circuit by other seeds, and from other pairs?")
def stable(case: Case) -> Finding:
    """The method again over 4 seeds and 4 bootstrap samples of the train groups: as many edges each time.

    The figure is the mean Jaccard index of every two circuits (the one at hand among them), of seeds or of samples,
    whichever is lower; its interval bootstraps over the circuits. It cannot tell where it is not known how the circuit
    was found, and where circuits of its size are alike by chance. Costs eight runs of the method.
    """
    size, n = len(case.circuit), len(case.circuit.edges)
    by_chance = _by_chance(size, n)
    if case.method is None:
        return _left_out("how the circuit was found is not known, so that it cannot be found again")
    if not size or by_chance >= STABLE:
        return _left_out(f"{size:,} of {n:,} edges: any two circuits of this size share {by_chance:.0%} by chance")
    found = {kind: _circuits(case, case.method, kind) for kind in (SEEDED, SAMPLED)}
    told = {
        kind: _mean(kept, case.random(f"stable {kind}")) for kind, (kept, _) in found.items() if len(kept) >= FEWEST
    }
    why = sorted({each for _, missing in found.values() for each in missing})
    if not told:
        return _left_out(f"fewer than {FEWEST} circuits were found to compare: {'; '.join(why)}")
    lowest = min(told, key=lambda kind: told[kind][0])
    verdict = _verdict(told, len(told) < 2)
    mean, low, high = told[lowest]
    counted = {kind: len(kept) for kind, (kept, _) in found.items()} | ({"left_out": "; ".join(why)} if why else {})
    again = _Again(case.circuit, {kind: kept[1:] for kind, (kept, _) in found.items() if len(kept) > 1})
    return Finding(
        "stable",
        verdict,
        mean,
        low,
        high,
        f"{STABLE:g}; circuits of as many edges drawn at random share {by_chance:.0%}",
        _says(case, told, again),
        again.rows(),
        counted,
        _picture(case, again),
    )


def _left_out(why: str) -> Finding:
    return Finding("stable", CANNOT_TELL, None, None, None, f"{STABLE:g}", why)


def _by_chance(size: int, n: int) -> float:
    """About what two random circuits of ``size`` of ``n`` edges share: size² / n edges in both."""
    return size / (2 * n - size) if n else 1.0


def _circuits(case: Case, method: Method, kind: str) -> tuple[Bool[Tensor, "circuit edge"], list[str]]:
    """The case's circuit, then those found again; and why some were not."""
    question, random = case.question, case.random(kind)
    kept, missing = [case.circuit.kept], []
    n_groups = len(set(question.task.train.groups))
    for number in range(1, (SEEDS if kind == SEEDED else SAMPLES) + 1):
        if kind == SEEDED:
            asked = with_seed(question, question.seed + number)
        else:
            asked = on_groups(question, (random.uniform(n_groups) * n_groups).long().tolist())
        found = repeat(case, method, asked)
        if isinstance(found, NotFound):
            missing.append(found.why)
        else:
            kept.append(found.kept)
    return torch.stack(kept), missing


def _mean(kept: Bool[Tensor, "circuit edge"], random: Random) -> tuple[float, float, float]:
    """The mean Jaccard index of every two circuits, and its interval over circuits drawn again."""
    alike, count = jaccard(kept), len(kept)
    apart = ~torch.eye(count, dtype=torch.bool)
    drawn = (random.uniform(_RESAMPLES, count) * count).long()
    some = alike[drawn[:, :, None], drawn[:, None, :]]
    other = apart[drawn[:, :, None], drawn[:, None, :]]  # a circuit drawn twice is no pair
    means: Float64[Tensor, resample] = (some * other).sum((1, 2)) / other.sum((1, 2))
    return float(alike[apart].mean()), *interval(means)


def _verdict(told: dict[str, tuple[float, float, float]], one_is_missing: bool) -> Verdict:
    """Of the worse of the two; where one could not be looked at it can only fail."""
    verdicts = [within(low, high, at_least=STABLE) for _, low, high in told.values()]
    worst: Verdict = min(verdicts, key=("fails", "cannot tell", "holds").index)
    return CANNOT_TELL if one_is_missing and worst == "holds" else worst


@final
@dataclass(frozen=True, eq=False)
class _Again:
    """What was found again: ``kept`` [circuit, edge] by kind, the circuit at hand not among them."""

    circuit: Circuit
    kept: dict[str, Bool[Tensor, "circuit edge"]]

    @cached_property
    def share(self) -> dict[str, Float64[Tensor, "edge"]]:
        """Of the circuits of each kind, how many have an edge."""
        return {kind: kept.double().mean(0) for kind, kept in self.kept.items()}

    @cached_property
    def least(self) -> Float64[Tensor, "edge"]:
        """The share of the kind in which an edge is rarest."""
        return torch.stack(list(self.share.values())).amin(0)

    @property
    def rarest_first(self) -> list[int]:
        """The edges of the circuit."""
        edges = self.circuit.kept.nonzero().flatten()
        order: list[int] = edges[torch.argsort(self.least[edges], stable=True)].tolist()
        return order

    def rows(self) -> tuple[dict[str, Any], ...]:
        """The circuit's edges, the rarest first; then those outside that are often found."""
        outside = ((self.least >= OFTEN) & ~self.circuit.kept).nonzero().flatten().tolist()
        outside.sort(key=lambda edge: -float(self.least[edge]))
        edges = [(edge, True) for edge in self.rarest_first] + [(edge, False) for edge in outside]
        return tuple(
            {"edge": self.circuit.edges[edge], "in the circuit": inside}
            | {kind: round(float(share[edge]), 4) for kind, share in self.share.items()}
            for edge, inside in edges[:_ROWS]
        )


def _says(case: Case, told: dict[str, tuple[float, float, float]], again: _Again) -> str:
    """ "found again by another seed, circuits share 93% (88% to 97%) of their edges, from other pairs 84% (...)"."""
    shares = [f"{mean:.0%} ({low:.0%} to {high:.0%})" for mean, low, high in told.values()]
    first, *others = zip(told, shares, strict=True)
    more = "".join(f", {kind} {share}" for kind, share in others)
    edges = again.rarest_first
    always = sum(float(again.least[edge]) == 1 for edge in edges)
    rare = [
        f"{case.circuit.edges[edge]} in {float(again.least[edge]):.0%}" for edge in edges if again.least[edge] < OFTEN
    ]
    seldom = f"; rarely found again: {listed(rare)}" if rare else ""
    return (
        f"found again {first[0]}, circuits share {first[1]} of their edges{more}; "
        f"{always:,} of the {len(edges):,} edges are found every time{seldom}"
    )


def _picture(case: Case, again: _Again) -> Picture:
    edges = again.rarest_first[:_BARS]
    data = {
        "names": [case.circuit.edges[edge] for edge in edges],
        "values": [round(float(again.least[edge]), 4) for edge in edges],
    }
    rarest = "" if len(edges) == len(case.circuit) else f": the {_BARS} rarest"
    return Picture("bars", f"How often each edge is found again{rarest}", "", "share of the circuits found again", data)
