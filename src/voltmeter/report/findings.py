"""The page of findings: one HTML file that opens from the disk, needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Findings
from voltmeter.report.canvas import Drawn
from voltmeter.report.html import flat, number, policy, static, template
from voltmeter.report.pictures import drawn

MOST_ROWS = 200
"""Rows shown of a finding's details; findings.json has them all."""

_MARKS = {HOLDS: "✓", FAILS: "✗", CANNOT_TELL: "?"}
_CLASSES = {HOLDS: "holds", FAILS: "fails", CANNOT_TELL: "unsure"}
_IN_SHORT = {
    "model": "Model",
    "task": "Task",
    "method": "Method",
    "fill": "Fill",
    "metric": "Metric",
    "threshold": "Faithful at",
    "seed": "Seed",
}


@dataclass(frozen=True)
class Table:
    """A finding's details: a column for each key. ``numeric`` says which columns hold numbers alone."""

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    count: int


@dataclass(frozen=True)
class Section:
    """A finding, ready to be shown."""

    finding: Finding
    asks: str
    mark: str
    look: str
    figure: str
    table: Table | None
    picture: Drawn | None
    counted: tuple[tuple[str, str], ...]


def findings_page(findings: Findings, asks: Mapping[str, str] | None = None) -> str:
    """The page of ``findings``, as the text of one HTML file.

    ``asks``: by the name of a check, what it asks. All text is escaped. Cost: at most 200 rows and one picture of at
    most some 4,000 shapes for each finding.
    """
    css = static("page.css") + static("findings.css")
    conditions = findings.conditions
    source = conditions.get("source") or {}
    text: str = template("findings.html").render(
        css=css,
        policy=policy(css),
        title=f"{conditions.get('task', 'a task')} in {source.get('model', conditions.get('model', 'a model'))}",
        headline=f"{findings.counts}.",
        notes=_notes(findings),
        conditions=_conditions(conditions, source),
        details=_details(conditions),
        sections=[_section(finding, (asks or {}).get(finding.check, "")) for finding in findings],
    )
    return text


def _section(finding: Finding, asks: str) -> Section:
    return Section(
        finding,
        asks,
        _MARKS[finding.verdict],
        _CLASSES[finding.verdict],
        figure(finding),
        _table(finding.details),
        None if finding.picture is None else drawn(finding.picture),
        tuple((name, _cell(value)) for name, value in _counted(finding)),
    )


def _counted(finding: Finding) -> list[tuple[str, Any]]:
    """What stands behind it; intervals and other lists as they are told elsewhere."""
    return [*finding.counted.items(), ("seconds", round(finding.seconds, 2))]


def figure(finding: Finding) -> str:
    """ "0.93 (0.9 to 0.96)"; nothing where there is no figure."""
    if finding.figure is None:
        return ""
    if finding.low is None or finding.high is None:
        return number(finding.figure)
    return f"{number(finding.figure)} ({number(finding.low)} to {number(finding.high)})"


def _table(details: Sequence[Mapping[str, Any]]) -> Table | None:
    if not details:
        return None
    columns = tuple(dict.fromkeys(key for row in details for key in row))
    values = [[row.get(column) for row in details] for column in columns]
    numeric = tuple(all(isinstance(v, int | float) or v is None for v in column) for column in values)
    rows = tuple(tuple(_cell(row.get(column)) for column in columns) for row in details[:MOST_ROWS])
    return Table(columns, numeric, rows, len(details))


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}".replace("-", "−")
        case float():
            return number(value) if value else "0"
        case list():
            return ", ".join(_cell(item) for item in value)
        case dict():
            return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
        case _:
            return str(value)


def _notes(findings: Findings) -> list[str]:
    left = [finding.check for finding in findings if finding.counted.get("left_out")]
    budget = findings.conditions.get("budget")
    if not left:
        return []
    why = "" if budget is None else f": it did not fit into the {budget:g} s that were given"
    return [f"Of {', '.join(left)} some or all was left out{why}."]


def _conditions(conditions: Mapping[str, Any], source: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = [(name, str(conditions[key])) for key, name in _IN_SHORT.items() if conditions.get(key) is not None]
    if source.get("model"):
        shown = [("Model", f"{source['model']} ({conditions['model']})"), *shown[1:]]
    for key, name in (("run", "Run"), ("circuit", "Circuit from")):
        if source.get(key):
            shown.append((name, str(source[key])))
    if "n_edges" in conditions:
        shown.append(("Edges", f"{conditions['n_edges']:,} of {conditions['n_edges_total']:,}"))
    if "n_held_out" in conditions:
        shown.append(("Pairs", f"{conditions['n_train']:,} train, {conditions['n_held_out']:,} held out"))
    budget = conditions.get("budget")
    return [*shown, ("Time", "no limit" if budget is None else f"at most {budget:g} s")]


def _details(conditions: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = {"The circuit": conditions.get("circuit") or {}, "Digests": conditions.get("digests") or {}}
    return [(name, list(flat(group))) for name, group in groups.items() if group]
