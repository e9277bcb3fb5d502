"""The rows of ``bench/recovery.py``, and its tables for people."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

import torch

Line = dict[str, Any]


def page(rows: Sequence[Line], told: Sequence[Line], found: Sequence[Line], methods: Sequence[str]) -> str:
    """Everything, for people."""
    kinds = Counter((truth["fill"], truth["kind"]) for truth in told)
    parts = [table(rows), "truths: " + ", ".join(f"{fill} {kind} {count}" for (fill, kind), count in kinds.items())]
    parts += [families(told, found)]
    first, others = methods[0], methods[1:]
    if others and any("auroc" in line for line in found):
        parts.append(f"AUROC of {first} less that of each other, paired over programs (95%, corrected):")
        unique = {(truth["program"], truth["fill"]) for truth in told if truth["kind"] == "unique"}
        judged = [line for line in found if (line["program"], line["fill"]) in unique]
        for other in others:
            gap, low, high = paired(judged, first, other, len(others))
            parts.append(f"  {other:19} {gap:+.3f} ({low:+.3f} to {high:+.3f})")
    for line in found:
        if "error" in line:
            parts.append(f"failed: {line['method']} on {line['program']}, {line['fill']}: {line['error']}")
    return "\n".join(part for part in parts if part)


def row(method: str, fill: str, truths: Sequence[Line], lines: Sequence[Line]) -> Line:
    """A row of the table: one method under one fill, over all programs."""
    kinds = {truth["program"]: truth["kind"] for truth in truths}
    unique = [line for line in lines if kinds[line["program"]] == "unique"]

    def share(key: str, among: Sequence[Line]) -> float | None:
        return mean(bool(line.get(key)) for line in among) if among else None

    def average(key: str) -> float | None:
        return mean(line.get(key, 0.0) for line in unique) if unique else None

    seconds = [line["seconds"] for line in lines]
    return {
        "method": method, "fill": fill, "programs": len(truths), "unique": len(unique),
        "redundant": len(lines) - len(unique),
        "exact_match_before_pruning": share("before", unique), "exact_match_after_pruning": share("after", unique),
        "auroc_mean": average("auroc"), "auroc_min": min((line.get("auroc", 0.0) for line in unique), default=None),
        "average_precision_mean": average("average_precision"),
        "sufficient_rate": share("sufficient", lines), "one_minimal_rate": share("one_minimal", lines),
        "seconds_median": median(seconds) if lines else None, "seconds_max": max(seconds, default=None),
        "failures": [line["program"] for line in lines if _failed(line)],
    }  # fmt: skip


def _failed(line: Line) -> bool:
    """It raised, took too long, or what pruning returned is not what it must be."""
    return not line.get("one_minimal") or not line.get("after", True)


def table(rows: Sequence[Line]) -> str:
    """The rows for people."""
    heads = ("before", "after", "AUROC", "least", "AP", "suffic.", "1-min.", "s median", "s max")
    keys = (
        "exact_match_before_pruning", "exact_match_after_pruning", "auroc_mean", "auroc_min", "average_precision_mean",
        "sufficient_rate", "one_minimal_rate", "seconds_median", "seconds_max",
    )  # fmt: skip
    lines = [f"{'method':19} {'fill':9} {'of':>4} {'uniq.':>5} {'sev.':>4}" + "".join(f"{h:>9}" for h in heads)]
    for each in rows:
        figures = "".join(f"{'-' if each[key] is None else format(each[key], '.3f'):>9}" for key in keys)
        counts = f"{each['programs']:>4} {each['unique']:>5} {each['redundant']:>4}"
        failed = f"   failed: {len(each['failures'])}" if each["failures"] else ""
        lines.append(f"{each['method']:19} {each['fill']:9} {counts}{figures}{failed}")
    return "\n".join(lines)


def families(truths: Sequence[Line], lines: Sequence[Line]) -> str:
    """Which of several minimal circuits each method comes to: its number (from 1, by size), "-" for another."""
    found = []
    for told in truths:
        if told["kind"] == "redundant":
            mine = [line for line in lines if (line["program"], line["fill"]) == (told["program"], told["fill"])]
            members = Counter(_member(line) for line in mine)
            who = "; ".join(
                f"{member}: {', '.join(line['method'] for line in mine if _member(line) == member)}"
                for member in sorted(members)
            )
            sizes = ", ".join(str(len(circuit)) for circuit in told["minimal"])
            found.append(f"{told['program']} {told['fill']}, circuits of {sizes} edges. {who}")
    return "\n".join(found)


def _member(line: Line) -> str:
    if "error" in line:
        return "failed"
    return "-" if line["member"] is None else str(line["member"] + 1)


Interval = tuple[float, float, float]  # the mean, and its lower and upper end


def paired(lines: Sequence[Line], method: str, other: str, comparisons: int) -> Interval:
    """AUROC of ``method`` less that of ``other`` over the programs both were judged on, and its interval.

    Bootstrapped over programs (a program's fills together), at 95% corrected for so many comparisons (Bonferroni).
    """
    of = {
        name: {(line["program"], line["fill"]): line.get("auroc", 0.0) for line in lines if line["method"] == name}
        for name in (method, other)
    }
    gaps: dict[str, list[float]] = {}
    for program_and_fill in of[method].keys() & of[other].keys():
        gap = of[method][program_and_fill] - of[other][program_and_fill]
        gaps.setdefault(program_and_fill[0], []).append(gap)
    means = torch.tensor([mean(gaps[each]) for each in sorted(gaps)], dtype=torch.float64)
    drawn = torch.randint(len(means), (10_000, len(means)), generator=torch.Generator().manual_seed(0))
    level = 0.025 / comparisons
    low, high = means[drawn].mean(1).quantile(torch.tensor([level, 1 - level], dtype=torch.float64)).tolist()
    return float(means.mean()), low, high
