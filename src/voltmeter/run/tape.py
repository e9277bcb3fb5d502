"""The buffers of one run: what every writer's fill differs by from what it wrote, and the gradients of that."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from voltmeter.errors import TapeError
from voltmeter.run.memory import room

Rows = slice | list[int]

_APART = 16  # entries: 64 bytes in float32


def as_rows(numbers: list[int]) -> Rows:
    """A slice where the rows are consecutive: no copy."""
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return numbers


def in_own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Inside, sums over deltas are made in their own precision, also under ``torch.autocast``."""
    return torch.autocast(device.type, enabled=False)


class Tape:
    """The buffers of one call: deltas, and in the backward pass their gradients."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        self.counts = counts
        self.rows: dict[int, Tensor] = {}  # two rows for where a mix starts from, so that it is one product
        self.delta: dict[int, Tensor] = {}  # the rows after them
        self.gdelta: dict[int, Tensor] = {}
        self.backward: int | None = None  # the one backward pass that may use it

    def buffer(self, stream: int, like: Tensor) -> Tensor:
        """The deltas [writer, *shape] of a stream; float32 for 16-bit streams."""
        if stream not in self.delta:
            dtype = torch.float32 if like.dtype in (torch.bfloat16, torch.float16) else like.dtype
            # Not zeros: a row is read only after it was written.
            self.rows[stream] = _rows(2 + self.counts[stream], like.shape, dtype, like.device)
            self.delta[stream] = self.rows[stream][2:]
        return self.delta[stream]

    def after(self, stream: int, rows: Rows, starts: list[Tensor]) -> Tensor:
        """What a mix adds up: ``starts``, then the deltas in ``rows``. A view where the rows are the first ones."""
        buffer = self.rows[stream]
        first = 2 - len(starts)
        for at, start in enumerate(starts, first):
            buffer[at] = start.reshape(buffer.shape[1:])
        if isinstance(rows, slice) and rows.start == 0:
            return buffer[first : 2 + rows.stop]
        return torch.cat([buffer[first:2], buffer[2:][rows]])

    def gradient(self, stream: int) -> Tensor:
        """The gradient of the deltas, zeros when first asked for."""
        if stream not in self.gdelta:
            delta = self.delta[stream]
            self.gdelta[stream] = _rows(len(delta), delta.shape[1:], delta.dtype, delta.device).zero_()
        return self.gdelta[stream]


def _rows(count: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for [count, *shape], a cache line between rows.

    Rows whose distance is a multiple of the page size fall into the same few lines of the cache, and a product over
    them takes a third longer.
    """
    size = shape.numel()
    made: Tensor = room((count, size + _APART), dtype, device)[:, :size].unflatten(1, shape)
    return made


def write_deltas(tape: Tape, stream: int, rows: Rows, outs: Tensor, fill: Tensor | None, mask: Tensor | None) -> None:
    """``fill - outs`` [writers, *stream shape] into the rows of a tape, zero at padding."""
    buffer = tape.buffer(stream, outs[0])
    if isinstance(rows, slice):
        target = buffer[rows]
        if outs.dtype != buffer.dtype:
            target.copy_(-outs if fill is None else fill - outs)
        elif fill is None:
            torch.neg(outs, out=target)
        else:
            torch.sub(fill, outs, out=target)
        if mask is not None:
            target.mul_(mask)
    else:
        value = -outs if fill is None else fill - outs
        buffer[rows] = (value if mask is None else value * mask).to(buffer.dtype)


def claim(tape: Tape) -> None:
    """Give the tape to the backward pass at hand; any other one raises TapeError."""
    if torch.is_grad_enabled():  # create_graph=True
        raise TapeError(
            "a run cannot be differentiated twice",
            ["its backward pass was asked for a graph of its own (create_graph=True)"],
            "take first derivatives only: backward() without create_graph",
        )
    now = torch._C._current_graph_task_id()
    if tape.backward is None:
        tape.backward = now
        torch.autograd.Variable._execution_engine.queue_callback(tape.gdelta.clear)
    elif tape.backward != now:
        raise TapeError(
            "this run's tape was already used by a backward pass",
            ["its buffers hold one gradient, and are not kept (retain_graph does not keep them)"],
            "call run(...) again for another backward pass",
        )
