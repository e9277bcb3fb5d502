"""The page of a run: one HTML file that opens from the disk, needs no network and runs no script but its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.directory import RunRecord
from voltmeter.circuit.scores import Row, Scores
from voltmeter.report.curve import chart, is_number
from voltmeter.report.drawing import draw
from voltmeter.report.html import flat, number, policy, static, template

__all__ = ["MOST_ROWS", "headline", "number", "page"]

MOST_ROWS = 5000
"""Rows in the table of edges; circuit.json has them all."""

_FIGURES = {
    "full": ("Full model", "the metric with every edge kept"),
    "nothing_kept": ("Nothing kept", "the metric with every edge carrying the fill"),
    "circuit": ("Circuit", "the metric with only the circuit kept"),
    "normalised": ("Faithfulness", "(circuit − nothing kept) / (full − nothing kept), of the means"),
    "median": ("Median pair", "the same for each pair; half of them lie above"),
    "worst_decile": ("Worst tenth", "nine pairs in ten lie above"),
    "kl_share": ("KL share", "KL(full ‖ circuit) as a share of KL(full ‖ nothing kept); lower is better"),
}
_SHARES = ("normalised", "median", "worst_decile", "kl_share")


def page(
    record: RunRecord,
    circuit: Circuit,
    scores: Scores | None,
    faithfulness: Mapping[str, Any],
    task: Mapping[str, Any],
    wiring: Mapping[str, Any],
) -> str:
    """The page of a run, as the text of one HTML file.

    Args:
        record: the run.
        circuit: what it found.
        scores: the scores it found it by, if ``circuit`` does not hold them itself.
        faithfulness: ``metric, full, nothing_kept, circuit, normalised, median, worst_decile, kl_share,
            n_held_out`` as ``--json`` prints them; each figure may have its interval beside it (``normalised_interval:
            [low, high]``), told of in ``interval_note``; ``threshold`` is the t of "faithful at t"; ``curve`` is a list
            of ``{n_edges, normalised, normalised_interval}``. What is missing, None or not finite is not shown.
        task: ``example: {clean, corrupted, answers, wrong}`` as text, and anything else worth a line (``n_train``).
        wiring: ``feeds`` and, to mark edges on no path, ``inputs`` and ``outputs``; ``class``, ``n_writers``,
            ``n_readers``, ``verified`` as ``voltmeter wire --json`` prints them.

    All text is escaped. Raises CircuitError or AddressError if ``wiring`` is not that of ``circuit``. Cost: a
    table of at most 5,000 rows and a drawing of at most 300 edges.
    """
    if circuit.scores is None and scores is not None:
        circuit = replace(circuit, scores=scores)
    rows = circuit.table()
    css, script = static("page.css"), static("page.js")
    text: str = template("page.html").render(
        css=css,
        script=script,
        policy=policy(css, script),
        title=f"{record.conditions.task} in {record.conditions.model}",
        headline=headline(circuit, faithfulness),
        notes=_notes(circuit, rows),
        conditions=_conditions(record, task, wiring),
        details=_details(record, task, wiring),
        figures=_figures(faithfulness),
        interval_note=faithfulness.get("interval_note"),
        threshold=faithfulness.get("threshold"),
        chart=chart(faithfulness.get("curve") or (), len(circuit), faithfulness.get("threshold")),
        drawing=draw(circuit, rows, wiring["feeds"]),
        rows=rows[:MOST_ROWS],
        n_rows=len(rows),
        loose=_loose(circuit, wiring),
        strongest=max((abs(row.score) for row in rows if row.score is not None), default=0.0),
        scored=circuit.scores is not None,
        example=task.get("example"),
        conditions_sign=record.conditions.sign,
    )
    return text


def headline(circuit: Circuit, faithfulness: Mapping[str, Any]) -> str:
    """What was found, in one sentence.

    "83 of 1,701 edges keep 93% of the logit difference on 220 held-out pairs (90-96%), KL share 6%."
    """
    n = len(circuit)
    edges = f"{n:,} of {len(circuit.edges):,} edges"
    normalised = faithfulness.get("normalised")
    if not is_number(normalised):
        return f"{edges} {'was' if n == 1 else 'were'} kept; how faithful the circuit is was not measured."
    text = f"{edges} {'keeps' if n == 1 else 'keep'} {normalised:.0%} of the {faithfulness.get('metric', 'metric')}"
    if faithfulness.get("n_held_out"):
        text += f" on {faithfulness['n_held_out']:,} held-out pairs"
    if faithfulness.get("normalised_interval"):
        low, high = faithfulness["normalised_interval"]
        text += f" ({low * 100:.0f}-{high:.0%})" if low >= 0 else f" ({low:.0%} to {high:.0%})"
    if is_number(faithfulness.get("kl_share")):
        text += f", KL share {faithfulness['kl_share']:.0%}"
    return text + "."


def _notes(circuit: Circuit, rows: Sequence[Row]) -> list[str]:
    notes = []
    ties = circuit.how.get("ties_at_border")
    if isinstance(ties, int) and ties:
        same = "edge scores" if ties == 1 else "edges score"
        notes.append(f"{ties:,} more {same} the same as the last one kept; the order of the wiring chose between them.")
    if len(rows) > MOST_ROWS:
        notes.append(f"The table lists the first {MOST_ROWS:,} of {len(rows):,} edges; circuit.json has them all.")
    return notes


def _conditions(record: RunRecord, task: Mapping[str, Any], wiring: Mapping[str, Any]) -> list[tuple[str, str]]:
    conditions = record.conditions
    model = f"{conditions.model} ({wiring['class']})" if wiring.get("class") else conditions.model
    shown = [
        ("Model", model),
        ("Task", conditions.task),
        ("Method", record.method),
        ("Fill", conditions.fill),
        ("Metric", conditions.metric),
        ("Seed", str(conditions.seed)),
        ("Precision", f"{conditions.dtype} on {record.device}"),
        ("Took", f"{record.seconds:,.1f} s, {record.peak_mib:,.0f} MiB"),
    ]
    if wiring.get("n_writers") is not None and wiring.get("n_readers") is not None:
        shown.append(("Wiring", f"{wiring['n_writers']:,} writers, {wiring['n_readers']:,} readers"))
    if task.get("n_train") is not None:
        shown.append(("Pairs", f"{task['n_train']:,} train, {task.get('n_held_out', 0):,} held out"))
    return shown


def _details(
    record: RunRecord, task: Mapping[str, Any], wiring: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    conditions = record.conditions
    task = {key: value for key, value in task.items() if key not in ("example", "n_train", "n_held_out")}
    groups = {
        "Settings": conditions.settings,
        "Task": task,
        "Wiring verified": wiring.get("verified") or {},
        "Versions": conditions.versions,
        "Digests": conditions.digests,
        "Run": {"command": " ".join(record.command), "started": record.started, "identity": record.identity},
    }
    return [(name, list(flat(group))) for name, group in groups.items() if group]


def _figures(faithfulness: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of (name, value, interval, meaning)."""
    shown = []
    for key, (name, meaning) in _FIGURES.items():
        value = faithfulness.get(key)
        if value is None or not is_number(value):
            continue
        write = _percent if key in _SHARES else number
        interval = faithfulness.get(f"{key}_interval")
        span = f"{write(interval[0])} to {write(interval[1])}" if interval else ""
        shown.append((name, write(value), span, meaning))
    return shown


def _loose(circuit: Circuit, wiring: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Kept edges on no path from input to output, where the wiring tells what these are."""
    if wiring.get("inputs") is None or wiring.get("outputs") is None:
        return frozenset()
    loose = set(circuit.disconnected(wiring["feeds"], wiring["inputs"], wiring["outputs"]))
    return frozenset(pair for pair, name in zip(circuit, circuit.names, strict=True) if name in loose)


def _percent(value: float | int) -> str:
    return f"{value:.1%}".replace("-", "−")
