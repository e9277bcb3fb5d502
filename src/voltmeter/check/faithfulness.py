"""Does the circuit do what the full model does, on pairs that nothing was chosen by?"""

from typing import Any

import torch

from voltmeter.check.case import Case
from voltmeter.check.cuts import no_clear_effect, percent
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Picture, Verdict, within
from voltmeter.check.registry import register
from voltmeter.check.split import Measured
from voltmeter.discover.intervals import interval

WORST = 10  # pairs listed


@register("faithful", "does it do what the full model does, on held-out pairs?")
def faithful(case: Case) -> Finding:
    """Both figures of faithfulness, with intervals, and the pairs on which the circuit does worst.

    It holds where the interval of f lies within t .. 2 - t and that of the KL share below 1 - t; it fails where either
    lies outside. Costs one masked forward of the held-out pairs.
    """
    found = case.held_out.measure(case.keep[None])
    t, (low, high), f = case.threshold, found.interval(), float(found.f[0])
    share = _kl_share(found)
    kl = "" if share is None else f", KL share {share[0]:.0%} ({percent(share[1])} to {share[2]:.0%})"
    says = (
        f"the circuit keeps {f:.0%} of the {case.task.metric.name} ({low:.0%} to {high:.0%}){kl}; "
        f"{t:.0%} to {2 - t:.0%}{'' if share is None else f', and a KL share of at most {1 - t:.0%},'} was asked for"
        + _of_nothing(case, found)
        + ("" if case.held_out.groups.count > 1 else "; its pairs are of one group, which says nothing of others")
    )
    return Finding(
        "faithful",
        faithful_at(found, t),
        f,
        low,
        high,
        f"the full model on {len(case.held_out):,} held-out pairs",
        says,
        _worst(case, found),
        {"pairs": len(case.held_out), "groups": case.held_out.groups.count, "kl_share": share},
        _picture(found),
    )


def _of_nothing(case: Case, found: Measured) -> str:
    """Where the effect is unclear: that no share means anything, and what the circuit's metric is."""
    why = no_clear_effect(case.held_out)
    return f"; {why} (the circuit's is {float(found.values[0].mean()):.3g})" if why else ""


def faithful_at(found: Measured, threshold: float) -> Verdict:
    """Whether the first of the circuits measured is faithful, by the intervals of f and of the KL share.

    Pairs of one group alone give no interval, and nobody can tell.
    """
    if found.split.groups.count < 2:
        return CANNOT_TELL
    verdicts = [within(*found.interval(), threshold, 2 - threshold)]
    share = _kl_share(found)
    if share is not None:
        verdicts.append(within(share[1], share[2], at_most=1 - threshold))
    return FAILS if FAILS in verdicts else CANNOT_TELL if CANNOT_TELL in verdicts else HOLDS


def _kl_share(found: Measured) -> tuple[float, float, float] | None:
    """KL(full ‖ circuit) over KL(full ‖ nothing kept), and its interval."""
    if found.kl is None or found.kl_share is None:
        return None
    split = found.split
    low, high = interval((split.groups.drawn(found.kl) / split.groups.drawn(split.judge.none_kl))[0])
    return float(found.kl_share[0]), low, high


def _worst(case: Case, found: Measured) -> tuple[dict[str, Any], ...]:
    """The pairs with the lowest f of their own; those without one (full and nothing kept agree) are passed over."""
    each, pairs = found.each[0], case.held_out.pairs
    order = torch.argsort(each.masked_fill(~each.isfinite(), torch.inf)).tolist()
    return tuple(
        {
            "row": pairs.rows[i],
            "f": round(float(each[i]), 4),
            "full": round(float(case.held_out.full[i]), 4),
            "circuit": round(float(found.values[0, i]), 4),
            "clean": pairs.texts[i][0],
        }
        for i in order[:WORST]
        if bool(each[i].isfinite())
    )


def _picture(found: Measured) -> Picture:
    split = found.split
    data = {
        "x": split.full.tolist(),
        "y": found.values[0].tolist(),
        "names": [f"row {row}" for row in split.pairs.rows],
    }
    name = split.judge.task.metric.name
    return Picture(
        "points", "Each held-out pair", f"{name} of the full model", f"{name} of the circuit", data, diagonal=True
    )
