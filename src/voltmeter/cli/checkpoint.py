"""What is left of a run that was stopped: ``DIR.partial`` beside the run's directory ``DIR``.

    run.json             what run this is: command, method, conditions
    state.safetensors    the method's state after so many steps; replaced whole, now and then

A step depends on the question, the state and its number only, so that a resumed run gives the same bits as one that
was never stopped. Both files appear whole or not at all; a kill loses the steps since the last one saved.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from voltmeter.circuit.directory import RUN, RunRecord
from voltmeter.discover.method import State
from voltmeter.errors import FormatError, OutputError, VoltmeterError
from voltmeter.files import json_bytes, parse_json, parse_object, read_bytes, seal, unseal, write_file
from voltmeter.task.tree import digest

SCHEMA = 1
STATE = "state.safetensors"
SAVE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Saved:
    """A state, the number of steps that led to it, and how long they took."""

    step: int
    steps: int
    seconds: float
    state: State


@dataclass(frozen=True)
class Checkpoint:
    """Where a run is kept while it is unfinished. ``record`` says what run it is; its time and results are unused."""

    run: Path
    record: RunRecord

    @property
    def directory(self) -> Path:
        """``DIR.partial``."""
        return self.run.with_name(f"{self.run.name}.partial")

    def save(self, saved: Saved) -> None:
        """Writes the state in place of an older one. Raises OutputError."""
        write_file(self.directory / RUN, json_bytes(seal(self.record.as_dict(), "unfinished run", SCHEMA)))
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in saved.state.items()}
        about = {
            "identity": self.record.identity,
            "step": saved.step,
            "steps": saved.steps,
            "seconds": saved.seconds,
            "state_digest": digest(dict(sorted(tensors.items()))),
        }
        metadata = {"voltmeter": json.dumps(seal(about, "checkpoint", SCHEMA))}
        write_file(self.directory / STATE, save(tensors, metadata))

    def load(self, resume: bool) -> Saved | None:
        """The state to go on from; None where nothing was done before.

        Raises OutputError where an unfinished run is there and ``resume`` was not asked for, or it is another run, or
        a file stands in its place; FormatError where it is damaged.
        """
        if self.directory.exists() and not self.directory.is_dir():
            raise OutputError(
                f"{self.directory} is a file, and a run that is stopped is kept in a directory of that name",
                mend="give another directory with --out, or move the file",
            )
        if not (self.directory / STATE).exists():
            return None
        about, state = self._read()
        done = f"{about['step']:,} of {about['steps']:,} steps"
        if about["identity"] != self.record.identity:
            raise OutputError(
                f"{self.directory} holds an unfinished run of other settings ({done})",
                self._differences(),
                f"resume it with its own settings, give another directory with --out, or remove {self.directory}",
            )
        if not resume:
            raise OutputError(
                f"{self.directory} holds {done} of this run",
                mend=f"go on with --resume, or remove {self.directory} to begin anew",
            )
        return Saved(about["step"], about["steps"], about["seconds"], state)

    def remove(self) -> None:
        """Nothing is left of it. What somebody else put there stays."""
        with contextlib.suppress(OSError):  # it was never made, or holds more than is ours
            for name in (STATE, RUN):
                for path in (self.directory / name, *self.directory.glob(f".{name}.*.partial")):
                    path.unlink(missing_ok=True)
            self.directory.rmdir()

    def _read(self) -> tuple[dict[str, Any], State]:
        where = str(self.directory / STATE)
        try:
            with safe_open(where, framework="pt") as file:
                text = (file.metadata() or {}).get("voltmeter", "")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        except (SafetensorError, OSError) as error:
            raise _damaged(where, str(error)) from error
        about = unseal(parse_object(text.encode(), where), "checkpoint", SCHEMA, where)
        if digest(dict(sorted(state.items()))) != about["state_digest"]:
            raise _damaged(where, "its digest is not that of its state")
        return about, state

    def _differences(self) -> list[str]:
        try:
            document = parse_json(read_bytes(self.directory / RUN), str(self.directory / RUN))
            theirs = _flat({"method": document["method"], **document["conditions"]})
        except (VoltmeterError, LookupError, TypeError):
            return []
        ours = _flat({"method": self.record.method, **self.record.conditions.as_dict()})
        names = dict.fromkeys((*theirs, *ours))
        return [f"{n}: {theirs.get(n)} there, {ours.get(n)} here" for n in names if theirs.get(n) != ours.get(n)]


def _damaged(where: str, why: str) -> FormatError:
    return FormatError(f"{where} is damaged", [why], "remove its directory, and run again")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Keeper:
    """Holds the newest state of a run, and saves it every ten seconds and when asked to."""

    def __init__(self, checkpoint: Checkpoint, steps: int, before: Saved | None) -> None:
        self.checkpoint, self.steps = checkpoint, steps
        self.newest = before
        self.resumed_from = 0 if before is None else before.step
        self._seconds_before = 0.0 if before is None else before.seconds
        self._written = before
        self._start = self._last = time.monotonic()

    @property
    def seconds_here(self) -> float:
        """Since this began."""
        return time.monotonic() - self._start

    def done(self, step: int, state: State) -> None:
        """``state`` is what ``step`` steps led to."""
        self.newest = Saved(step, self.steps, self._seconds_before + self.seconds_here, state)
        if time.monotonic() - self._last >= SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> bool:
        """Writes the newest state, if there is one that is not yet written. Whether there is one at all."""
        if self.newest is not None and self.newest is not self._written:
            self.checkpoint.save(self.newest)
            self._written = self.newest
        self._last = time.monotonic()
        return self.newest is not None
