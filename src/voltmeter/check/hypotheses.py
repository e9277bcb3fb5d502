"""The three idealised hypotheses about a circuit, tested: equivalence, independence, minimality.

After 2410.13032 [2] and the ``circuitry`` code of its authors, with these differences:

    equivalence    they ask whether circuit and model outperform each other equally often, and take failing to reject
                   that for equivalence. Here it must be shown: by two one-sided tests of the mean difference
    independence   theirs compares the metric of the rest (the circuit cut) with the full model's. Under a resample fill
                   both depend on the pair even where nothing is kept, so what nothing kept does is taken off first; a
                   rest that does nothing beyond that has nothing to test, and nothing to hide
    minimality     as theirs: each kept edge against random edges outside, each put into the circuit along a random path
                   and then cut again
    all            corrected for many tests (Holm), and each says what it would have seen
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch

from voltmeter.check.case import Case
from voltmeter.check.cuts import no_interval, signed
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Picture, Verdict
from voltmeter.check.inflated import Effects, effects_of
from voltmeter.check.pieces import listed
from voltmeter.check.registry import register
from voltmeter.check.split import Measured
from voltmeter.check.statistics import binomial_cdf, holm, hsic_test, least_correlation, least_share_missed, tost

LEVEL = 0.05
"""How often all three tests together may be wrong where they reject: the usual one in twenty."""

QUANTILE = 0.9
"""A kept edge is to do more than this share of random ones: the authors' own default."""

NEGLIGIBLE = 0.01
"""A rest that moves the metric by less than a hundredth of what the full model does carries none of the behaviour; how
that hundredth depends on anything is not asked."""

LARGE = 0.5
"""What a test must be able to see for its silence to count: a correlation of a half, an edge that does no more than the
median random one. Less than that, nobody would overlook."""

MOST_PAIRS = 300
"""Kernels hold a number for every two pairs; more pairs than this only cost time."""

_ROWS, _BARS = 200, 40  # edges listed, and drawn
_ROUNDING = 1e-6  # of the full model's effect: sums of float32 in another order

Outcome = Literal["shown", "rejected", "not rejected", "not shown", "no test"]


@final
@dataclass(frozen=True)
class Tested:
    """One hypothesis. ``p``: of what would be concluded; ``would_see``: the smallest effect it had the power to see."""

    name: str
    ps: dict[Outcome, float]
    otherwise: Outcome
    would_see: float | None
    says: dict[Outcome, str]

    def outcome(self, corrected: dict[tuple[str, Outcome], float]) -> Outcome:
        """What can be concluded at ``LEVEL``."""
        drawn = [outcome for outcome in self.ps if corrected[self.name, outcome] <= LEVEL]
        return drawn[0] if drawn else self.otherwise


@register("hypotheses", "do the published tests of a circuit (equivalence, independence, minimality) bear it out?")
def hypotheses(case: Case) -> Finding:
    """Equivalence by two one-sided tests, independence of the rest by HSIC, minimality against random edges.

    It holds where equivalence is shown and the other two are not rejected although they could have been (see
    ``LARGE``); it fails where one of the three is rejected. Costs two masked forwards of the held-out pairs, and of at
    most 32 of them one for each kept edge (at most 64) and two for each of 50 random edges.
    """
    why = no_interval(case.held_out)
    if why:
        return Finding("hypotheses", CANNOT_TELL, None, None, None, _AGAINST, why)
    both = case.held_out.measure(torch.stack([case.keep, 1 - case.keep]))
    effects = effects_of(case)
    tests = (_equivalence(case, both), _independence(case, both), _minimality(case, effects))
    corrected = _corrected(tests)
    outcomes = {test.name: test.outcome(corrected) for test in tests}
    (low, high), weak = both.interval(), _no_better(effects)
    return Finding(
        "hypotheses",
        _verdict(tests, outcomes),
        float(both.f[0]),
        low,
        high,
        _AGAINST,
        "; ".join(test.says[outcomes[test.name]] for test in tests),
        (*_rows(tests, corrected, outcomes), *_edge_rows(weak, case.wiring.edges.names)),
        {"pairs": len(case.held_out), "groups": case.held_out.groups.count, "hypotheses": len(corrected)}
        | effects.counted(),
        _picture(case, effects),
    )


_AGAINST = "the full model, the circuit cut out of it, and random edges put into the circuit"


def _corrected(tests: tuple[Tested, ...]) -> dict[tuple[str, Outcome], float]:
    """The p value of each conclusion that might be drawn, corrected for all of them."""
    asked = [(test.name, outcome) for test in tests for outcome in test.ps]
    ps = holm([test.ps[outcome] for test in tests for outcome in test.ps])
    return dict(zip(asked, ps, strict=True))


def _verdict(tests: tuple[Tested, ...], outcomes: dict[str, Outcome]) -> Verdict:
    found = list(outcomes.values())
    if "rejected" in found:
        return FAILS
    return HOLDS if all(outcome in ("shown", "not rejected") for outcome in found) else CANNOT_TELL


# Equivalence ------------------------------------------------------------------------------------------------------


def _equivalence(case: Case, both: Measured) -> Tested:
    """Whether the circuit's metric is within 1 - t of the full model's, in units of (full - nothing kept)."""
    split = case.held_out
    gap = split.full - split.nothing
    share = 1 - case.threshold
    margins = share * gap * (1 if gap.mean() >= 0 else -1)
    found = tost(both.values[0] - split.full, margins, split.pairs.groups, LEVEL)
    unit = float(gap.mean().abs())
    off = found.difference.value / unit if unit else math.inf
    seen = found.least / unit if unit else None
    lead = f"the circuit's {case.task.metric.name} is {signed(off)} off the full model's"
    return Tested(
        "equivalence",
        {"shown": found.p, "rejected": found.p_apart},
        "not shown",
        seen,
        {
            "shown": f"{lead}: equivalent within ±{share:.0%} ({_p(found.p)})",
            "rejected": f"{lead}: not equivalent within ±{share:.0%} ({_p(found.p_apart)})",
            "not shown": f"{lead}: {len(split)} pairs tell neither that it is within ±{share:.0%} nor that it is not"
            f" ({_p(found.p)}; {_least(seen)})",
        },
    )


def _least(seen: float | None) -> str:
    return "no margin could be shown" if seen is None else f"±{seen:.0%} is the least they could show"


# Independence -----------------------------------------------------------------------------------------------------


def _independence(case: Case, both: Measured) -> Tested:
    """Whether what the model still does with the circuit cut depends on what the full model does."""
    few = len(case.held_out) > MOST_PAIRS
    found = case.few.measure((1 - case.keep).repeat(2, 1)) if few else both
    split, rest = found.split, found.values[1] - found.split.nothing
    unit = float((split.full - split.nothing).mean().abs())
    if float(rest.abs().mean()) <= NEGLIGIBLE * unit:
        return Tested(
            "independence",
            {},
            "not rejected",
            None,
            {"not rejected": "with the circuit cut nothing is left that could depend on the full model"},
        )
    if float(split.full.max() - split.full.min()) <= _ROUNDING * unit:
        return _untested("the full model's metric is the same on every pair: nothing can be seen to depend on it")
    if float(rest.max() - rest.min()) <= _ROUNDING * unit:
        return _untested("the rest puts out the same on every pair: that tells nothing of what it depends on")
    given = (split.full, rest, split.pairs.groups, case.random("hypotheses").generator)
    p, least = hsic_test(*given), least_correlation(*given, LEVEL)
    lead = "with the circuit cut, what is left"
    powered = least is not None and least <= LARGE
    seen = "no correlation at all" if least is None else f"correlations from {least:.2f} on"
    return Tested(
        "independence",
        {"rejected": p},
        "not rejected" if powered else "no test",
        least,
        {
            "rejected": f"{lead} ({float(rest.mean()) / unit:.0%} of the effect) depends on the full model"
            f" (HSIC, {_p(p)})",
            "not rejected": f"{lead} shows no dependence on the full model ({_p(p)}; {seen} would have been seen)",
            "no test": f"{len(split)} pairs are too few to say whether the rest depends on the full model ({seen})",
        },
    )


def _untested(why: str, name: str = "independence") -> Tested:
    return Tested(name, {}, "no test", None, {"no test": why})


# Minimality -------------------------------------------------------------------------------------------------------


def _minimality(case: Case, effects: Effects) -> Tested:
    """Whether every kept edge does more than ``QUANTILE`` of random edges outside."""
    edges, random = len(effects.edges), len(effects.random)
    if not edges:
        return _untested("no edge is kept whose worth could be tested", "minimality")
    if not random:
        return _untested("no edge is left outside to compare the kept ones with", "minimality")
    seen = least_share_missed(random, QUANTILE, LEVEL / edges)
    powered = seen is not None and seen >= LARGE
    weak = _no_better(effects)
    names = listed([str(case.wiring.edges[edge]) for edge, _, p in weak if p <= LEVEL])
    count = sum(p <= LEVEL for *_, p in weak)
    return Tested(
        "minimality",
        {"rejected": min(p for *_, p in weak)},
        "not rejected" if powered else "no test",
        seen,
        {
            "rejected": f"{count} of {edges} kept edges do no more than random ones would: {names}",
            "not rejected": f"none of {edges} kept edges does less than random ones would",
            "no test": f"{random} random edges are too few to judge {edges} kept ones by",
        },
    )


def _no_better(effects: Effects) -> list[tuple[int, float, float]]:
    """(edge, share of random edges that do less, p of "it does more than ``QUANTILE`` of them"), the weakest first."""
    n = len(effects.random)
    if not n:
        return []
    counts = (effects.kept[:, None] > effects.random[None] + _ROUNDING).sum(1).tolist()
    ps = holm([binomial_cdf(count, n, QUANTILE) for count in counts])
    found = [(edge, count / n, p) for edge, count, p in zip(effects.edges, counts, ps, strict=True)]
    return sorted(found, key=lambda each: each[1])


# What is told ----------------------------------------------------------------------------------------------------


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _rows(
    tests: tuple[Tested, ...], corrected: dict[tuple[str, Outcome], float], outcomes: dict[str, Outcome]
) -> list[dict[str, Any]]:
    """A row for each conclusion that might have been drawn, and for each test that could draw none."""
    rows = []
    for test in tests:
        for outcome in list(test.ps) or [test.otherwise]:
            p = test.ps.get(outcome)
            told = {"would_see": test.would_see, "outcome": outcomes[test.name]}
            rows.append(_row(test.name, outcome, p, corrected.get((test.name, outcome))) | told)
    return rows


def _edge_rows(weak: list[tuple[int, float, float]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The kept edges that do no more than random ones, the weakest first."""
    told = {"would_see": None, "outcome": "rejected"}
    return [
        _row(names[edge], f"more than {share:.0%} of random edges", p, p) | told
        for edge, share, p in weak[:_ROWS]
        if p <= LEVEL
    ]


def _row(test: str, asked: str, p: float | None, corrected: float | None) -> dict[str, Any]:
    """p values to four digits that count."""
    shown = [None if each is None else float(f"{each:.4g}") for each in (p, corrected)]
    return {"test": test, "asked": asked, "p": shown[0], "p_corrected": shown[1]}


def _picture(case: Case, effects: Effects) -> Picture | None:
    """The weakest kept edges, and where nine in ten random ones lie below."""
    if not len(effects.kept) or not len(effects.random):
        return None
    order = torch.argsort(effects.kept)[:_BARS].tolist()
    data = {
        "names": [str(case.wiring.edges[effects.edges[at]]) for at in order],
        "values": [float(effects.kept[at]) for at in order],
    }
    bound = float(effects.random.quantile(QUANTILE))
    title = f"The weakest kept edges; the line is above {QUANTILE:.0%} of random ones"
    return Picture("bars", title, "mean |change| when cut, of the full model's effect", "kept edge", data, bound)
