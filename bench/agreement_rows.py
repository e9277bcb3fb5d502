"""The figures of ``bench/agreement.py``: of one method on one model, the rows made of all of them, and the tables.

Truth-free figures, 0 at best and 1 at worst, both on an axis that gives every doubling of a circuit the same room:
a circuit of k of n edges stands at log(1 + k) / log(1 + n).

    area   of min(1, |1 - f|) over all sizes: MIB's CMD on a log axis, a circuit counted no worse than none at all
    size   where the smallest circuit stands that has .9 <= f <= 1.1, found on a grid and narrowed by halving

Beside them, where a program's only minimal circuit is known, ``auroc`` of |score| against its edges, ties at their
worst, and ``auroc_even``, ties as often one way as the other: as they are drawn for the figures above.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise, product
from statistics import mean
from typing import Any

import torch
from agreement_ranks import COEFFICIENTS, Correlation, Kind, across, between, halves, inside, pairs_of
from torch import Tensor

Line = dict[str, Any]

FIGURES = ("area", "size")
BASELINES = ("magnitude", "random", "prune-only")
_GRID = 18  # sizes from 1 to all, evenly on the axis, but for those that round to the same


# One method on one model ------------------------------------------------------------------------------------------


def figures(values: Tensor, f_of: Callable[[Tensor], float], seed: int) -> Line:
    """Of scores [edge]; ``f_of`` tells the faithfulness of a keep [edge]. Ties are drawn by the seed.

    With ties in wiring order a method that scores most edges 0 would be given the order of the model's layers.
    """
    n = len(values)
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = drawn[torch.argsort(values.abs()[drawn], descending=True, stable=True)]

    @cache
    def f(size: int) -> float:
        keep = torch.zeros(n)
        keep[order[:size]] = 1
        return float(size == n) if size in (0, n) else f_of(keep)

    sizes = sorted({0, *(round((1 + n) ** (step / _GRID) - 1) for step in range(1, _GRID + 1))})
    curve = [(place(size, n), loss(f(size))) for size in sizes]
    needed = smallest(sizes, lambda size: abs(1 - f(size)) <= 0.1)
    told = [round(f(size), 6) for size in sizes]
    return {"area": area(curve), "size": place(needed, n), "needed": needed, "edges": n, "sizes": sizes, "f": told}


def place(size: int, n: int) -> float:
    """Where a circuit stands on the axis."""
    return math.log1p(size) / math.log1p(n)


def loss(f: float) -> float:
    """How far a circuit is from the full model; 1 where f is not finite."""
    return min(1.0, abs(1 - f)) if math.isfinite(f) else 1.0


def area(curve: Sequence[tuple[float, float]]) -> float:
    """By trapezoids."""
    return sum((x - before) * (y + old) / 2 for (before, old), (x, y) in pairwise(curve))


def smallest(sizes: Sequence[int], enough: Callable[[int], bool]) -> int:
    """The first of ``sizes`` that is enough, narrowed down to the one before. The last is taken for enough."""
    first = next((at for at, size in enumerate(sizes[:-1]) if enough(size)), len(sizes) - 1)
    low, high = (sizes[first - 1] if first else -1), sizes[first]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


# Rows -------------------------------------------------------------------------------------------------------------


def complete(lines: Sequence[Line], methods: Sequence[str]) -> tuple[list[Line], list[str]]:
    """What a run that was stopped has in full, and what is left out: every method of a kind is on all of its models.

    Of each kind first the methods go that were tried on less than half of its models, then the models that lack one of
    the others. A method that failed was tried.
    """
    left_out: list[str] = []
    whole: set[tuple[str, str]] = set()
    dropped: set[tuple[str, str]] = set()
    for kind in dict.fromkeys(line["kind"] for line in lines):
        tried: dict[str, set[str]] = {}
        for line in lines:
            if line["kind"] == kind and line.get("method") in methods:
                tried.setdefault(line["unit"], set()).add(line["method"])
        counts = Counter(method for its in tried.values() for method in its)
        few = {method for method, count in counts.items() if 2 * count < len(tried)}
        there = {unit for unit, its in tried.items() if its >= counts.keys() - few}
        dropped |= {(kind, method) for method in few}
        whole |= {(kind, unit) for unit in there}
        left_out += [f"{kind} {what}" for what in [*sorted(few), *(unit for unit in tried if unit not in there)]]
    kept = [line for line in lines if (line["kind"], line["unit"]) in whole]
    return [line for line in kept if (line["kind"], line.get("method")) not in dropped], left_out


def kind_of(name: str, family: str, lines: Sequence[Line], methods: Sequence[str], figure: str) -> Kind | None:
    """What one kind says of methods, by one figure; None where nothing was measured."""
    of = {(line["unit"], line["method"]): line for line in lines if line["kind"] == name and "method" in line}
    units = tuple(sorted({unit for unit, _ in of}))  # in one order, whichever was measured first
    have = tuple(method for method in methods if any(key[1] == method for key in of))
    if not units or not have:
        return None
    worst = 0.0 if figure.startswith("auroc") else 1.0
    numbers = [[of[unit, method].get(figure, worst) for method in have] for unit in units]
    return Kind(name, family, units, have, torch.tensor(numbers, dtype=torch.float64))


def rows(lines: Sequence[Line], families: dict[str, str], methods: Sequence[str]) -> list[Line]:
    """A row for each kind and method: means over the kind's models."""
    made = []
    for name in families:
        for method in methods:
            its = [line for line in lines if line["kind"] == name and line.get("method") == method]
            if its:
                has_truth = any("auroc" in line for line in lines if line["kind"] == name)
                made.append({
                    "kind": name, "method": method, "models": len(its),
                    **{figure: mean(line.get(figure, 1.0) for line in its) for figure in FIGURES},
                    "auroc": mean(line.get("auroc", 0.0) for line in its) if has_truth else None,
                    "seconds": mean(line["seconds"] for line in its),
                    "failures": [line["unit"] for line in its if "error" in line],
                })  # fmt: skip
    return made


def correlations(lines: Sequence[Line], families: dict[str, str], methods: Sequence[str]) -> list[Line]:
    """Between every two kinds and (``other`` None) between halves of one, by each figure and way of averaging.

    ``of``: all methods, or those that are no baselines. ``mean``: of figures, or of each model's ranks.
    """
    made = []
    contenders = [method for method in methods if method not in BASELINES]
    for figure in FIGURES:
        for of, these in (("all", list(methods)), ("no baselines", contenders)):
            kinds = [kind_of(name, family, lines, these, figure) for name, family in families.items()]
            for way in ("figures", "ranks"):
                known = [kind if way == "figures" else kind.ranked() for kind in kinds if kind is not None]
                about = {"figure": figure, "of": of, "mean": way}
                made += [
                    {**about, "one": a.name, "other": b.name, **_told(lambda c, a=a, b=b: between(a, b, c))}
                    for a, b in pairs_of(known)
                ]
                made += [{**about, "one": a.name, "other": None, **_told(lambda c, a=a: halves(a, c))} for a in known]
    return made


def against_truth(lines: Sequence[Line], families: dict[str, str], methods: Sequence[str]) -> list[Line]:
    """Whether the truth-free figures rank methods as AUROC does (either ``by``): of the means, and in each model."""
    made = []
    subsets = {"all": list(methods), "no baselines": [method for method in methods if method not in BASELINES]}
    known = [name for name in families if any(line["kind"] == name and "auroc" in line for line in lines)]
    for name, by, figure, (of, these) in product(known, ("auroc", "auroc_even"), FIGURES, subsets.items()):
        good, free = (kind_of(name, families[name], lines, these, key) for key in (by, figure))
        if good is not None and free is not None:
            for scope, compare in (("means", across), ("each model", inside)):
                told = _told(lambda c, f=compare, g=good, o=free: f(g.figures, o.figures, c))
                made.append({"kind": name, "by": by, "figure": figure, "of": of, "scope": scope, **told})
    return made


def _told(correlation: Callable[[str], Correlation]) -> Line:
    """Both coefficients, as plain data."""
    found = {name: correlation(name) for name in COEFFICIENTS}
    plain: Line = {"methods": found["spearman"].n}
    for name, each in found.items():
        plain |= {name: each.value, f"{name}_interval": list(each.interval) if each.interval else None}
    return plain


# Tables -----------------------------------------------------------------------------------------------------------


def page(document: Line) -> str:
    """Everything, for people, as Markdown."""
    kinds = [each["kind"] for each in document["kinds"]]
    parts = [_models(document["kinds"])]
    for figure in (*FIGURES, "auroc"):
        parts.append(f"{figure}, mean over models\n\n" + _figures(document["rows"], kinds, figure))
    for of, name in product(("all", "no baselines"), COEFFICIENTS):
        parts.append(f"{name} by area, {of}\n\n" + _between(document["correlations"], kinds, of, name))
    parts.append("Spearman, no baselines, by each figure and way of averaging\n\n" + _ways(document["correlations"]))
    parts.append("truth-free figures against AUROC (Spearman)\n\n" + _truth(document["truth"]))
    if document["left_out"]:
        parts.append("not finished, and left out: " + ", ".join(document["left_out"]))
    parts += [f"failed: {line}" for line in document["failures"]]
    return "\n\n".join(parts)


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    made = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in made)


def _models(kinds: Sequence[Line]) -> str:
    lines = [
        [each["kind"], str(each["models"]), "{}-{}".format(*each["edges"]),
         *(number(each[key]) for key in ("agreement", "truth_f")), f"{each['seconds']:.0f}"]
        for each in kinds
    ]  # fmt: skip
    return table(("kind", "models", "edges", "answers alike", "f of the program's circuit", "CPU s"), lines)


def _figures(found: Sequence[Line], kinds: Sequence[str], figure: str) -> str:
    of = {(row["kind"], row["method"]): row[figure] for row in found}
    shown = [kind for kind in kinds if any(of.get((kind, row["method"])) is not None for row in found)]
    methods = list(dict.fromkeys(row["method"] for row in found))
    lines = [[method, *(number(of.get((kind, method))) for kind in shown)] for method in methods]
    return table(("method", *shown), lines)


def _between(found: Sequence[Line], kinds: Sequence[str], of: str, coefficient: str) -> str:
    mine = [each for each in found if (each["figure"], each["of"], each["mean"]) == ("area", of, "figures")]
    cells = {(each["one"], each["other"] or each["one"]): _cell(each, coefficient) for each in mine}
    lines = [[one, *(cells.get((one, other), "") for other in kinds)] for one in kinds]
    return table(("", *kinds), lines)


def _ways(found: Sequence[Line]) -> str:
    """Whether it matters which figure is taken, and whether figures or each model's ranks are averaged."""
    ways = list(product(FIGURES, ("figures", "ranks")))
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for each in found:
        if each["of"] == "no baselines" and each["other"] is not None:
            kinds = each["one"], each["other"]
            cells.setdefault(kinds, {})[each["figure"], each["mean"]] = _cell(each, "spearman")
    heads = ("one kind", "another", *(f"{figure}, mean of {way}" for figure, way in ways))
    return table(heads, [[*kinds, *(its[way] for way in ways)] for kinds, its in cells.items()])


def _cell(each: Line, coefficient: str) -> str:
    value, ends = each[coefficient], each[f"{coefficient}_interval"]
    if value is None:
        return "cannot tell"
    return number(value, 2) + (f" ({number(ends[0], 2)} to {number(ends[1], 2)})" if ends else "")


def _truth(found: Sequence[Line]) -> str:
    lines = [
        [*(each[name] for name in ("kind", "by", "figure", "of", "scope")), _cell(each, "spearman")] for each in found
    ]
    return table(("kind", "truth by", "figure", "methods", "over", "Spearman"), lines)


def number(value: float | None, digits: int = 3) -> str:
    """As the documents write it: .123, 1, and - for none."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    if float(text) in (-1, 0, 1):
        return f"{float(text):.0f}".replace("-0", "0")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
