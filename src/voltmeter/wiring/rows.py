"""Whether each row of a batch is computed for itself, whatever rows it is with.

Circuits, and keeps that differ from example to example, are run as rows of one batch. A model that mixes its rows
(statistics over the batch, contrastive heads, ``y - y.mean(0)``) would mix those circuits and nothing would show it.
Found by comparing the run of one row alone, which is traced anyway, with the same row's share of the whole batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from voltmeter.wiring import inputs as of
from voltmeter.wiring.streams import Survey

REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError)
"""What torch and models raise for inputs of a size that they do not take."""


@dataclass(frozen=True)
class Rows:
    """How the rows of a batch stand to each other.

    ``mixed``: what shows that a row is not computed for itself alone; empty when nothing does. ``whole``: outputs that
    have no rows, such as a loss or a mean over the batch, as numbers of leaves of what the model returns.
    """

    mixed: str = ""
    whole: frozenset[int] = frozenset()


def trace_alone(trace: Callable[[Any], Survey], inputs: Any) -> Survey | Exception:
    """The trace of the first row alone, or what the model says when it does not run on one (BatchNorm, for one)."""
    try:
        return trace(of.rows(inputs, slice(0, 1)))
    except REFUSALS as error:
        return error


def compare_rows(batch: Survey, alone: Survey | Exception, count: int, tolerance: float) -> Rows:
    """``count``: the rows of ``batch``, of which ``alone`` is the first. Costs nothing: both runs are recorded.

    ``tolerance`` is that of the laws, relative to a tensor's largest entry: another batch size takes other kernels,
    which round otherwise.
    """
    if isinstance(alone, Exception):
        said = str(alone).partition("\n")[0]
        return Rows(f"it does not run on one row alone ({type(alone).__name__}: {said})")
    ours, theirs = batch.recording.outputs, alone.recording.outputs
    if len(ours) != len(theirs):
        return Rows(f"it returns {len(ours)} tensors for {count} rows, and {len(theirs)} for one")
    whole = frozenset(
        number
        for (number, value), (_, other) in zip(ours, theirs, strict=True)
        if not _has_rows(*_tensors(batch, alone, value, other), count)
    )
    outputs = [(value, other) for (n, value), (_, other) in zip(ours, theirs, strict=True) if n not in whole]
    for value, other in (*_states(batch, alone), *outputs):
        if not _agree(*_tensors(batch, alone, value, other), count, tolerance):
            return Rows(f"a row comes out otherwise in its batch than alone, first in {_place(batch, value)}", whole)
    return Rows("", whole)


def _states(batch: Survey, alone: Survey) -> Iterator[tuple[int, int]]:
    """What is read of each stream, in both runs."""
    for mine, theirs in zip(batch.streams, alone.streams, strict=True):
        for state, other in zip(mine.states, theirs.states, strict=True):
            if batch.recording.values[state].dynamic:
                yield state, other


def _tensors(batch: Survey, alone: Survey, value: int, other: int) -> tuple[Tensor, Tensor]:
    return batch.recording.values[value].tensor, alone.recording.values[other].tensor


def _has_rows(batch: Tensor, alone: Tensor, count: int) -> bool:
    """Axis 0 grows with the batch: [row, ...] or [row * position, ...]."""
    return batch.dim() > 0 and batch.shape[0] == count * alone.shape[0]


def _agree(batch: Tensor, alone: Tensor, count: int, tolerance: float) -> bool:
    """The first row in its batch is the row alone."""
    if not _has_rows(batch, alone, count) or batch.shape[1:] != alone.shape[1:]:
        return False
    if not alone.numel():
        return True
    gap = (batch[: len(alone)].double() - alone.double()).abs().max()
    return bool(gap <= tolerance * batch.double().abs().max())


def _place(survey: Survey, value: int) -> str:
    call = survey.call_of(value)
    return "the model itself" if call is None else call.key.place
