"""``voltmeter check``: bring a circuit and its question, make the checks, show and write what they found."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer

from voltmeter.check import Findings, check, checks
from voltmeter.check.check import circuit_digest, require_usable
from voltmeter.check.files import FINDINGS, FINDINGS_PAGE, findings_bytes, load_findings
from voltmeter.check.registry import Check, chosen
from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.directory import read_run
from voltmeter.circuit.read import read_circuit
from voltmeter.cli.asked import Asked as AskedOfDiscover
from voltmeter.cli.endings import SOME_FAIL
from voltmeter.cli.options import device_named, dtype_named, require_names
from voltmeter.cli.rerun import asked_for, circuit_in, subject_of
from voltmeter.cli.screen import Screen
from voltmeter.cli.subject import Subject, ability, load_subject, show_task, show_wiring
from voltmeter.cli.verdicts import show_end, shown_as_made
from voltmeter.errors import CheckError, OutputError, VoltmeterError
from voltmeter.files import check_writable, read_bytes, write_directory
from voltmeter.report.findings import findings_page
from voltmeter.run.fill import Fill
from voltmeter.wiring.wiring import Wiring

BUDGET = 60.0  # seconds: a check that takes longer than a coffee is put off
_OF_A_FILE = ("fill", "metric", "split", "merge", "declare", "dtype", "drop_misaligned")


@dataclass(frozen=True)
class Asked:
    """What was typed after ``voltmeter check``, under the names of the flags."""

    run: Path | None = None
    circuit: Path | None = None
    model: str | None = None
    task: str | None = None
    fill: str | None = None
    metric: str | None = None
    split: tuple[str, ...] = ()
    merge: tuple[str, ...] = ()
    declare: tuple[str, ...] = ()
    dtype: str | None = None
    device: str | None = None
    drop_misaligned: bool = False
    only: tuple[str, ...] | None = None
    budget: float = BUDGET
    threshold: float = 0.9
    seed: int = 0
    out: Path | None = None

    @property
    def seconds(self) -> float | None:
        """The budget; None, which is no limit, for 0."""
        return None if self.budget == 0 else self.budget

    @property
    def place(self) -> Path | None:
        """Where findings go: beside a run by default, nowhere for a file."""
        if self.out is None and self.run is not None:
            whole = self.run if self.run.name not in ("", "..") else self.run.resolve()
            return whole.with_name(f"{whole.name}-findings")
        return self.out


@dataclass(frozen=True, eq=False)
class Brought:
    """A circuit, and what it is checked on. ``source`` says where both came from; ``fill`` is None for its own."""

    circuit: Circuit
    subject: Subject
    fill: str | Fill | None
    source: dict[str, Any]


def check_and_show(asked: Asked, as_json: bool) -> None:
    """Makes the checks and shows them, as lines or as one document. Exits with 1 where one fails."""
    start = time.perf_counter()
    wanted = _usable(asked)
    screen = Screen.open(stdout_is_a_document=as_json)
    brought = _brought(asked)
    if asked.place is not None:
        _require_place(asked.place, brought.circuit)
    _show(screen, brought)
    findings = _checked(asked, brought, wanted, screen)
    if asked.place is not None:
        _write(asked.place, findings)
    show_end(screen, findings, asked.place)
    if as_json:
        seconds = {"seconds": round(time.perf_counter() - start, 3)}
        written = {"written": None if asked.place is None else str(asked.place)}
        screen.document({**findings.as_dict(), **brought.source, **seconds, **written})
    if findings.of("fails"):
        raise typer.Exit(SOME_FAIL)


# Passes


def _usable(asked: Asked) -> tuple[Check, ...]:
    """The checks to make. Whatever can be refused before anything is loaded is."""
    if (asked.run is None) == (asked.circuit is None):
        both = asked.run is not None
        raise CheckError(
            "both RUN and --circuit were given" if both else "there is no circuit to check",
            mend="voltmeter check RUN, or voltmeter check --circuit FILE --model MODEL --task TASK",
        )
    if asked.circuit is not None:
        lacking = [f"--{name}" for name in ("model", "task") if getattr(asked, name) is None]
        if lacking:
            raise CheckError(
                f"{asked.circuit} does not say of which model it is, or on which task",
                [f"{name} was not given" for name in lacking],
                "voltmeter check --circuit FILE --model MODEL --task TASK",
            )
        require_names(asked.fill or "resample", asked.metric)
        dtype_named(asked.dtype)
    else:
        own = [f"--{name.replace('_', '-')}" for name in _OF_A_FILE if getattr(asked, name)]
        if own:
            raise CheckError(
                f"{', '.join(own)} {'is' if len(own) == 1 else 'are'} not for a run, which says so itself",
                mend=f"leave it out, or ask of its circuit alone: --circuit {asked.run}/circuit.json",
            )
    if asked.budget < 0 or math.isnan(asked.budget):
        raise CheckError(f"--budget {asked.budget:g} was given, seconds were expected, or 0 for no limit")
    require_usable(asked.threshold, asked.seconds)
    device_named(asked.device)
    return chosen(asked.only)


def _brought(asked: Asked) -> Brought:
    device = device_named(asked.device)
    return _from_run(asked, device) if asked.run is not None else _from_file(asked, device)


def _from_run(asked: Asked, device: torch.device) -> Brought:
    assert asked.run is not None
    if asked.run.is_file():
        raise CheckError(
            f"{asked.run} is a file, the directory of a run was expected",
            mend=f"voltmeter check --circuit {shlex.quote(str(asked.run))} --model MODEL --task TASK",
        )
    run = read_run(asked.run)
    circuit, of_run = circuit_in(run), asked_for(run, asked.model, asked.task)
    subject = subject_of(run, of_run, device)
    return Brought(
        circuit, subject, run.fill, {"run": str(asked.run), "model": of_run.model, "task": subject.task.name}
    )


def _from_file(asked: Asked, device: torch.device) -> Brought:
    assert asked.circuit is not None
    assert asked.model is not None
    assert asked.task is not None
    if asked.circuit.is_dir():
        raise CheckError(f"{asked.circuit} is a directory, a file was expected", mend="voltmeter check RUN for a run")
    of_file = AskedOfDiscover(
        asked.model,
        asked.task,
        metric=asked.metric,
        seed=asked.seed,
        declare=asked.declare,
        drop_misaligned=asked.drop_misaligned,
    )
    read_bytes(asked.circuit)  # that there is one, before a model is loaded
    subject = load_subject(of_file, dtype_named(asked.dtype), device)
    subject = replace(subject, wiring=_divided(subject, asked))
    circuit = read_circuit(asked.circuit, subject.wiring.edges, subject.wiring.feeds)
    source = {"circuit": str(asked.circuit), "model": asked.model, "task": subject.task.name}
    return Brought(circuit, subject, asked.fill, source)


def _divided(subject: Subject, asked: Asked) -> Wiring:
    wiring = subject.wiring
    for text in asked.split:
        name, _, into = text.partition("=")
        wiring = wiring.split(name.strip(), into.strip() or "parts")
    for name in asked.merge:
        wiring = wiring.merge(name)
    return wiring


def _show(screen: Screen, brought: Brought) -> None:
    """What is checked, and whether the model does what it is asked at all."""
    circuit, subject = brought.circuit, brought.subject
    show_wiring(screen, subject.wiring)
    show_task(screen, subject.task, ability(subject).gate)
    parts = [f"{len(circuit):,} of {len(circuit.edges):,} edges", *_origin(circuit)]
    screen.line("circuit", " · ".join(parts))
    screen.gap()


def _origin(circuit: Circuit) -> list[str]:
    if circuit.how.get("format") == "list of heads":
        nodes = circuit.how["nodes"]
        some = ", ".join(nodes[:6]) + (f" and {len(nodes) - 6} more" if len(nodes) > 6 else "")
        return [f"all edges among {some}", f"MLPs: {circuit.how['mlps']}"]
    if circuit.scores is not None:
        return [circuit.scores.method, f"found under fill {circuit.scores.conditions.fill}"]
    return [str(circuit.how.get("format", "by hand"))]


def _checked(asked: Asked, brought: Brought, wanted: tuple[Check, ...], screen: Screen) -> Findings:
    subject = brought.subject
    names = [each.name for each in wanted]
    with shown_as_made(screen, names, asked.seconds) as told:
        findings = check(
            brought.circuit,
            subject.task,
            wiring=subject.wiring,
            fill=brought.fill,
            threshold=asked.threshold,
            only=names,
            budget=asked.seconds,
            seed=asked.seed,
            told=told,
        )
    return Findings(findings.found, {**findings.conditions, "source": brought.source})


# Writing


def _require_place(out: Path, circuit: Circuit) -> None:
    """Raises the OutputError that writing would, before the checks and not after them."""
    check_writable(out, replace=_holds_findings_of(out, circuit_digest(circuit)))


def _write(out: Path, findings: Findings) -> None:
    digest = findings.conditions["digests"]["circuit"]
    contents: Mapping[str, bytes] = {
        FINDINGS: findings_bytes(findings),
        FINDINGS_PAGE: findings_page(findings, {each.name: each.asks for each in checks()}).encode(),
    }
    write_directory(out, contents, replace=_holds_findings_of(out, digest))


def _holds_findings_of(out: Path, digest: str) -> bool:
    """Whether findings of this circuit stand there, and nothing else. Raises OutputError if they are of another one."""
    if not os.path.isfile(out / FINDINGS):
        return False
    try:
        theirs = load_findings(out / FINDINGS).conditions["digests"]["circuit"]
    except (VoltmeterError, LookupError, TypeError):
        theirs = None
    if theirs != digest:
        raise OutputError(f"{out} already holds findings of another circuit", mend="give another directory with --out")
    strangers = sorted(path.name for path in out.iterdir() if path.name not in (FINDINGS, FINDINGS_PAGE))
    if strangers:
        raise OutputError(
            f"{out} holds findings, and files that are no part of them",
            strangers,
            "move them elsewhere, or give another directory with --out",
        )
    return True
