"""What a run was made from, loaded again as it was then, or not at all."""

from __future__ import annotations

import shlex
from dataclasses import replace

import torch

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.directory import RUN, Run
from voltmeter.cli.asked import Asked
from voltmeter.cli.options import dtype_named
from voltmeter.cli.subject import Subject, load_subject
from voltmeter.errors import FormatError, LoadError, VoltmeterError
from voltmeter.wiring.load import digest_of

_SHOWN = 12  # characters of a digest


def circuit_in(run: Run) -> Circuit:
    """The circuit that a run found. Raises FormatError where it found none."""
    if run.circuit is None:
        raise FormatError(f"the run in {run.directory} holds no circuit", mend="give a run of voltmeter discover")
    return run.circuit


def asked_for(run: Run, model: str | None = None, task: str | None = None) -> Asked:
    """What ``run`` was asked, ``model`` and ``task`` in place of its own where they now lie somewhere else."""
    asked = Asked.of_command(run.record.command, str(run.directory / RUN))
    return replace(asked, model=model or asked.model, task=task or asked.task)


def subject_of(run: Run, asked: Asked, device: torch.device) -> Subject:
    """The model, wiring and task of a run.

    Raises LoadError where one of them is gone, FormatError naming each whose digest is not the one that the run was
    made with.
    """
    try:
        subject = load_subject(asked, dtype_named(asked.dtype), device)
    except VoltmeterError as error:
        raise LoadError(
            f"what the run in {run.directory} was made from cannot be loaded",
            [error.problem, *error.details],
            "stand where the run was made, or say where they are now with --model and --task",
        ) from error
    _require_unchanged(run, asked, subject)
    return subject


def _require_unchanged(run: Run, asked: Asked, subject: Subject) -> None:
    """As the run's conditions say; a digest that they lack cannot be compared."""
    then = run.record.conditions.digests
    now = {
        "model": (asked.model, digest_of(subject.wiring.model)),
        "wiring": (f"of {asked.model}", subject.wiring.digest),
        "task": (asked.task, subject.task.digest),
    }
    changed = [
        f"{name} ({what}): {then[name][:_SHOWN]} when the run was made, {digest[:_SHOWN]} now"
        for name, (what, digest) in now.items()
        if name in then and then[name] != digest
    ]
    if changed:
        raise FormatError(
            f"what the run in {run.directory} was made from has changed since",
            changed,
            f"bring back what it was, or find the circuit again: {shlex.join(run.record.command)}",
        )
