"""What is measured, on what: a model, its wiring, a task, and whether the model does it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from voltmeter.cli.asked import Asked
from voltmeter.cli.examples import require_fitting_lengths, require_known_tokens, run_once
from voltmeter.cli.screen import Screen, count, tiny
from voltmeter.discover.question import on_device
from voltmeter.errors import TaskError
from voltmeter.run.watch import outs_of
from voltmeter.task.gate import Gate, gate
from voltmeter.task.load import task_for
from voltmeter.task.task import Task
from voltmeter.wiring.load import LoadedModel, load_model
from voltmeter.wiring.wire import wire
from voltmeter.wiring.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model, wired on its task's inputs."""

    loaded: LoadedModel
    wiring: Wiring
    task: Task
    device: torch.device


@dataclass(frozen=True)
class Ability:
    """What the model does on the held-out pairs, and how long a plain forward over them took."""

    gate: Gate
    forward_seconds: float


def load_subject(asked: Asked, dtype: torch.dtype | None, device: torch.device) -> Subject:
    """Loads, checks that the model takes the task's tokens, and wires. Raises LoadError, TaskError, WiringError."""
    loaded = load_model(asked.model, dtype=dtype)
    loaded.model.to(device)
    task = task_for(loaded, asked.task, seed=asked.seed, metric=asked.metric, drop_misaligned=asked.drop_misaligned)
    require_known_tokens(task, loaded.model)
    example = _moved(task.example, device)
    run_once(loaded.model, example, f"{asked.model} does not run on the inputs of {task.name}", TaskError)
    require_fitting_lengths(task, loaded.model, asked.model, device)
    return Subject(loaded, wire(loaded.model, example, declare=asked.declare), task, device)


def _moved(inputs: Any, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map(lambda t: t.to(device) if isinstance(t, torch.Tensor) else t, inputs)


def ability(subject: Subject) -> Ability:
    """Whether the model does the task: two plain forwards over the held-out pairs. Raises MetricError."""

    def model(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = on_device(subject.wiring, (args, kwargs))
        return subject.wiring.model(*args, **kwargs)

    start = time.perf_counter()
    found = gate(subject.task, model)
    return Ability(found, (time.perf_counter() - start) / 2)


def width_of(wiring: Wiring) -> int | None:
    """The width of the main stream, which other tools ask for; None where it is no [batch, position, width]."""
    shape = outs_of(wiring, wiring.example).shapes[0]
    return shape[-1] if len(shape) == 3 else None


def show_wiring(screen: Screen, wiring: Wiring) -> None:
    """The line about a model."""
    screen.line("wiring", wiring_line(wiring))


def wiring_line(wiring: Wiring) -> str:
    """ "LlamaForCausalLM · 46 writers · 86 readers · 1,701 edges · sums to 2e-7, laws hold"."""
    n_streams = len(wiring.streams)
    parts = [
        type(wiring.model).__name__,
        *([f"{n_streams} streams"] if n_streams > 1 else []),
        f"{len(wiring.writers):,} writers",
        f"{len(wiring.readers):,} readers",
        f"{len(wiring.edges):,} edges",
        f"sums to {tiny(wiring.verified.sum_error)}, laws hold",
    ]
    return " · ".join(parts)


def show_task(screen: Screen, task: Task, found: Gate) -> None:
    """The line about a task, and a warning where the model does not do it."""
    dropped = len(task.how.get("dropped_rows") or ())
    parts = [
        task.name,
        f"{len(task.train):,} train, {len(task.held_out):,} held-out pairs",
        *(
            [f"{count(dropped, 'row', 'rows')} left out that {'does' if dropped == 1 else 'do'} not line up"]
            if dropped
            else []
        ),
        str(found),
    ]
    screen.line("task", " · ".join(parts))
    if not found.does_it:
        screen.warn("a circuit for what the model does not do explains nothing: give another task, or another model")
