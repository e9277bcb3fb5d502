"""The question a method is asked: this wiring, on this task, under this fill."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.errors import FillError, MetricError, TaskError, VoltmeterError, nearest
from voltmeter.run import fill as fills
from voltmeter.run.fill import Fill, FillValues
from voltmeter.run.keep import KeepLike
from voltmeter.run.run import run
from voltmeter.task.metric import Metric, logits_at_answer
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.inputs import call, device_of
from voltmeter.wiring.wiring import Wiring

FILLS = ("zero", "mean", "mean-position", "resample")
_CACHED_BYTES = 1 << 30


def prepare_fill(fill: Fill | str, wiring: Wiring, task: Task, batch_size: int = 64) -> Fill:
    """A fill by name; means are taken over the clean inputs of the task's train split.

    Held-out pairs may be longer than any train pair: positions past the train pairs' carry the mean of their last one.
    """
    if isinstance(fill, Fill):
        return fill
    require_fill_name(fill)
    if fill == "zero":
        return fills.zero()
    if fill == "resample":
        return fills.resample()
    whole = task.train.clean
    batches = [
        tree_map(lambda t, at=at: t[at : at + batch_size] if isinstance(t, Tensor) and t.dim() else t, whole)
        for at in range(0, len(task.train), batch_size)
    ]
    moved = [on_device(wiring, batch) for batch in batches]
    if fill == "mean":
        return fills.mean(wiring, moved)
    longest = max(task.train.n_positions or 0, task.held_out.n_positions or 0)
    return fills.mean_position(wiring, moved, length=longest or None)


def require_fill_name(name: str) -> None:
    """Raises FillError, naming the nearest, where there is no such fill."""
    if name not in FILLS:
        raise FillError(f"there is no fill called '{name}'", [nearest(name, FILLS)], f"fills: {', '.join(FILLS)}")


def on_device(wiring: Wiring, inputs: Any) -> Any:
    """Inputs moved to the model."""
    device = device_of(wiring.model)
    return tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, inputs)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some pairs on the model's device, with the fills for them."""

    number: int
    pairs: Pairs
    clean: Any
    corrupted: Any
    fill: FillValues


@dataclass(frozen=True, eq=False)
class Question:
    """What a method is asked. ``batches`` are the train pairs, shuffled once by ``seed``."""

    wiring: Wiring
    task: Task
    fill: Fill
    seed: int = 0
    batch_size: int = 32
    _cache: dict[int, Batch] = field(default_factory=dict, repr=False)
    _full: dict[int, Any] = field(default_factory=dict, repr=False)  # what the full model answers to batches kept
    ready: dict[Any, Any] = field(default_factory=dict, repr=False)  # what else is worth keeping between steps

    def __post_init__(self) -> None:
        if len(self.wiring.edges) == 0:
            raise TaskError("the wiring has no edges")
        if self.batch_size < 1:
            raise TaskError(f"a batch of {self.batch_size} pairs was asked for, at least 1 is needed")
        if not 0 <= self.seed < 2**32:
            raise VoltmeterError(f"the seed {self.seed} was given, a whole number from 0 to {2**32 - 1} was expected")

    @property
    def n_edges(self) -> int:
        """How many edges there are to score."""
        return len(self.wiring.edges)

    @cached_property
    def order(self) -> list[int]:
        """The train pairs, shuffled by the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self.task.train), generator=generator).tolist()

    @property
    def n_batches(self) -> int:
        """How many batches the train split makes."""
        return -(-len(self.task.train) // self.batch_size)

    def batch(self, number: int) -> Batch:
        """One batch of train pairs, its fills computed (and kept, while there is room for them)."""
        number %= self.n_batches
        if number in self._cache:
            return self._cache[number]
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        made = make_batch(self.wiring, self.task.train.batch(rows), self.fill, number)
        size = sum(t.numel() * t.element_size() for t in made.fill.streams if t is not None)
        if size * (len(self._cache) + 1) <= _CACHED_BYTES:
            self._cache[number] = made
        return made

    def full_answers(self, batch: Batch) -> Any:
        """What the full model answers to a batch: the same every time a method comes back to it."""
        if batch.number in self._full:
            return self._full[batch.number]
        made = plain_answers(self.wiring, batch, self.task.metric)
        if batch.number in self._cache:
            self._full[batch.number] = made
        return made

    def batches(self) -> Iterator[Batch]:
        """Every train pair once."""
        return (self.batch(n) for n in range(self.n_batches))


def make_batch(wiring: Wiring, pairs: Pairs, fill: Fill, number: int = 0) -> Batch:
    """Pairs on the model's device with their fills."""
    clean, corrupted = on_device(wiring, pairs.clean), on_device(wiring, pairs.corrupted)
    return Batch(number, pairs, clean, corrupted, fill.values_for(wiring, clean, corrupted))


def plain_answers(wiring: Wiring, batch: Batch, metric: Metric) -> Any:
    """What the full model answers, reduced to the logits that the metric looks at if it looks at nothing else."""
    with torch.no_grad():
        return reduced(call(wiring.model, batch.clean), batch.pairs, metric)


def cut_answers(wiring: Wiring, batch: Batch, keep: KeepLike, metric: Metric, axes: str | None = None) -> Any:
    """What the model answers with edges cut, reduced likewise. Gradients flow to ``keep``."""
    return reduced(run(wiring, batch.clean, keep, batch.fill, batch.corrupted, axes=axes), batch.pairs, metric)


def has_logits(outputs: Any, pairs: Pairs) -> bool:
    """Whether answers can be looked up in what the model returned."""
    if not bool((pairs.answers >= 0).any()):
        return False
    try:
        logits_at_answer(outputs, pairs)
    except MetricError:  # a metric that needs them says so itself
        return False
    return True


def reduced(outputs: Any, pairs: Pairs, metric: Metric) -> Any:
    """For a metric that reads nothing else, the logits at the answers: [pair, vocabulary]; else all of the outputs."""
    if pairs.is_sequence or not metric.at_answer or not has_logits(outputs, pairs):
        return outputs
    return logits_at_answer(outputs, pairs)[:, 0]
