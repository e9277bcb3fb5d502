"""``voltmeter show``: a run that was written before, as lines and a table."""

from __future__ import annotations

from pathlib import Path

from voltmeter.circuit.directory import PAGE, read_run
from voltmeter.cli.screen import Screen, duration, memory
from voltmeter.report.page import headline

SOME = 20


def show(run: Path, every: bool) -> None:
    """Prints what a run was, what it found and its first edges. Raises LoadError, FormatError."""
    found = read_run(run)
    screen, record = Screen.open(), found.record
    c = record.conditions
    screen.line("run", f"{record.method} · {c.model} · {c.task} · fill {c.fill} · seed {c.seed} · {record.started}")
    screen.line("took", f"{duration(record.seconds)}, {memory(record.peak_mib)} on {record.device}")
    if found.fill is not None:
        screen.line("fill", f"{found.fill.name}, {found.fill.over}")
    if found.circuit is None:
        return
    figures = dict(record.results.get("faithfulness") or {})
    figures["metric"] = str(figures.get("metric", "metric")).replace("-", " ")
    screen.gap()
    screen.line("", headline(found.circuit, figures))
    screen.gap()
    rows = found.circuit.table()
    shown = rows if every else rows[:SOME]
    screen.edges(shown, len(rows) - len(shown))
    if (run / PAGE).exists():
        screen.line("page", str(run / PAGE))
