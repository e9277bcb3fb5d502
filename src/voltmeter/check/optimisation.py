"""Was the circuit searched for so hard that it fits the train pairs better than the task?"""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from voltmeter.check.case import Case, Random
from voltmeter.check.cuts import measure_while, signed
from voltmeter.check.few import FEWER, few_held_out
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Picture, Verdict, within
from voltmeter.check.registry import register
from voltmeter.check.split import Measured, Split
from voltmeter.discover.intervals import interval
from voltmeter.task.tree import row_digests

GAP = 0.1
"""How much f may be better on train pairs: as much as "faithful at .9" lets go altogether."""

LEAKED = 0.1
"""Share of the held-out pairs whose clean input is a train pair's too, from which the others are judged by themselves.
Task itself refuses the same pair on both sides, and the same group; the same input in another pair it lets pass."""

SEARCHED = 64
"""Circuits to choose among: twice the largest "best of n", so that even this is a mean over many choices."""

CHOICES = (1, 2, 4, 8, 16, 32)
"""How many circuits a search chose among."""

_FEWEST = 4  # train pairs of which half can choose anything
_SWAPPED = 0.1  # of the edges, at most: circuits that a search would come by on its way


@register("not-over-optimised", "is it as good on held-out pairs as on those it was found on?")
def not_over_optimised(case: Case) -> Finding:
    """f on train pairs less f on held-out pairs; and what choosing the best of n circuits does to both.

    It holds where the interval of the difference (of the KL shares too, where there are any) lies within ``GAP`` to
    either side, and fails where it lies above. Train pairs are taken to be those that the circuit was found on.

    The curve (regressional Goodhart): ``SEARCHED`` circuits that differ from this one by random swaps are ranked by f
    on half of the train pairs; of the best of n, f there and f on held-out pairs, expected over which n were drawn.
    Costs one masked forward of each pair, and ``SEARCHED`` of at most 64 pairs.
    """
    why, held_out = _comparable(case)
    if held_out is None:
        return Finding("not-over-optimised", CANNOT_TELL, None, None, None, _AGAINST, why)
    train = case.train.measure(case.keep[None])
    held = held_out.measure(case.keep[None])
    f, kl = _f_gap(train, held), _kl_gap(train, held)
    curve = _curve(case)
    circuits = 0 if curve is None else curve.circuits
    return Finding(
        "not-over-optimised",
        _verdict(f, kl),
        f.value,
        f.low,
        f.high,
        _AGAINST,
        _says(f, kl, curve, float(train.f[0]), float(held.f[0])) + why,
        () if curve is None else curve.rows(),
        {
            "train_pairs": len(case.train),
            "held_out_pairs": len(held_out),
            "circuits": circuits,
            "kl_gap": None if kl is None else [kl.value, kl.low, kl.high],
        },
        None if curve is None else curve.picture(),
    )


_AGAINST = "f on the train pairs, less f on held-out pairs"


# The gap ----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Gap:
    """How much better a circuit is on train pairs, with its interval."""

    value: float
    low: float
    high: float


def _f_gap(train: Measured, held: Measured) -> Gap:
    # Both draw groups by one seed. Turned round, a draw of the one meets an unrelated draw of the other.
    drawn = train.drawn[0] - held.drawn[0].flip(0)
    return Gap(float(train.f[0] - held.f[0]), *interval(drawn))


def _kl_gap(train: Measured, held: Measured) -> Gap | None:
    """Of the KL shares, which are better the smaller they are."""
    one, other = _kl(held), _kl(train)
    if one is None or other is None:
        return None
    return Gap(one[0] - other[0], *interval(one[1] - other[1].flip(0)))


def _kl(found: Measured) -> tuple[float, Tensor] | None:
    if found.kl is None or found.kl_share is None:
        return None
    drawn, nothing = found.split.groups.drawn, found.split.judge.none_kl
    return float(found.kl_share[0]), drawn(found.kl[0]) / drawn(nothing)


def _verdict(f: Gap, kl: Gap | None) -> Verdict:
    gaps = [f] if kl is None else [f, kl]
    if any(gap.low > GAP for gap in gaps):
        return FAILS
    return HOLDS if all(within(gap.low, gap.high, -GAP, GAP) == HOLDS for gap in gaps) else CANNOT_TELL


def _comparable(case: Case) -> tuple[str, Split | None]:
    """The held-out pairs to compare with, and what is to be said of them; None where there are none."""
    train, held_out = case.task.train, case.task.held_out
    if train is held_out:
        return "the task holds nothing out: train and held-out pairs are the same; hold some out to tell", None
    seen = set(row_digests(train.clean))
    fresh = [at for at, row in enumerate(row_digests(held_out.clean)) if row not in seen]
    leaked = 1 - len(fresh) / len(held_out)
    split, why = case.held_out, ""
    if leaked >= LEAKED:
        told = f"the clean input of {leaked:.0%} of the held-out pairs is that of a train pair"
        if len({held_out.groups[at] for at in fresh}) < 2:
            return f"{told}: next to nothing is held out", None
        split, why = Split.of(case.question, held_out.batch(fresh)), f"; {told}, so that the others alone were compared"
    if min(split.groups.count, case.train.groups.count) < 2:
        return "the pairs of a split are of one group: nothing says how much they vary; two groups are needed", None
    return why, split


# Choosing the best of n -------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """f of the circuit that is best of n on half of the train pairs: there, and on held-out pairs."""

    circuits: int
    chosen: tuple[int, ...]
    proxy: tuple[float, ...]
    true: tuple[float, ...]

    def rows(self) -> tuple[dict[str, Any], ...]:
        """A row for each n."""
        return tuple(
            {"best_of": n, "f_where_chosen": round(proxy, 4), "f_held_out": round(true, 4)}
            for n, proxy, true in zip(self.chosen, self.proxy, self.true, strict=True)
        )

    def picture(self) -> Picture:
        """Both against n: where they part, choosing harder only fits the pairs."""
        lines = {"on the pairs it was chosen by": list(self.proxy), "on held-out pairs": list(self.true)}
        data = {"x": list(self.chosen), "lines": lines}
        return Picture("lines", "The best of n circuits near this one", "circuits chosen among", "f", data)


def _curve(case: Case) -> Curve | None:
    """None where no edge can be swapped, or there is too little time or data to choose by."""
    draw = case.random("not-over-optimised")
    keep = _swapped(case, draw)
    if keep is None:
        return None
    half = _half(case, draw)
    proxy = measure_while(case.clock.share(2), half, keep, case.keep).f
    true = measure_while(case.clock, few_held_out(case), keep[: len(proxy)], case.keep).f
    proxy = proxy[: len(true)]
    chosen = tuple(n for n in CHOICES if 2 * n <= len(true))
    if not chosen:
        return None
    order = proxy.argsort(descending=True)
    curves = [tuple(float((best_of(n, len(true)) * f[order]).sum()) for n in chosen) for f in (proxy, true)]
    return Curve(len(true), chosen, *curves)


def best_of(n: int, total: int) -> Float64[Tensor, "rank"]:
    """The probability that each of ``total`` circuits, the best first, is the best of ``n`` of them drawn at random."""
    every = math.comb(total, n)
    return torch.tensor([math.comb(total - rank, n - 1) / every for rank in range(1, total + 1)], dtype=torch.float64)


def _half(case: Case, draw: Random) -> Split:
    """Half of the train pairs, or 32 of them."""
    pairs = case.task.train
    count = min(FEWER, math.ceil(len(pairs) / 2))
    return Split.of(case.question, pairs.batch(sorted(draw.choose(len(pairs), count))))


def _swapped(case: Case, draw: Random) -> Float[Tensor, "circuit edge"] | None:
    """Circuits of the same size, up to a tenth of whose edges are others, at random."""
    inside, outside = case.edges, (~case.circuit.kept).nonzero().flatten().tolist()
    most = min(max(1, round(_SWAPPED * len(inside))), len(inside), len(outside))
    if most == 0 or len(case.task.train) < _FEWEST:
        return None
    rows = case.keep.repeat(SEARCHED, 1)
    for row in rows:
        count = 1 + draw.choose(most, 1)[0]
        row[[inside[at] for at in draw.choose(len(inside), count)]] = 0
        row[[outside[at] for at in draw.choose(len(outside), count)]] = 1
    return rows


# What is told ----------------------------------------------------------------------------------------------------


def _says(f: Gap, kl: Gap | None, curve: Curve | None, train: float, held: float) -> str:
    told = f"f is {train:.0%} on train pairs and {held:.0%} on held-out ones"
    told += f": {signed(f.value)} ({signed(f.low)} to {signed(f.high)})"
    if kl is not None:
        told += f", by KL {signed(kl.value)} ({signed(kl.low)} to {signed(kl.high)})"
    told += f"; up to {GAP:+.0%} was allowed"
    if curve is None:
        return told
    n, gains = curve.chosen[-1], [line[-1] - line[0] for line in (curve.proxy, curve.true)]
    return (
        f"{told}; of {n} circuits that differ from it in a few edges, the best on train pairs keeps "
        f"{signed(gains[0])} there against one drawn at random, and {signed(gains[1])} on held-out pairs"
    )
