"""Run the model as it is and keep what its writers wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from voltmeter.run.padding import with_positions
from voltmeter.wiring.inputs import call
from voltmeter.wiring.plan import State, Write
from voltmeter.wiring.tap import Listener, ReadingCall, Tap, refuse_tapped
from voltmeter.wiring.wiring import Wiring


@dataclass(frozen=True)
class Outs:
    """What was written in one run: per stream [writer of the stream, *stream shape]; and the streams' shapes."""

    streams: tuple[Tensor | None, ...]
    shapes: tuple[torch.Size, ...]


class _Watch(Listener):
    def __init__(self, wiring: Wiring) -> None:
        self.local = {w: at for members in wiring.plan.stream_writers for at, w in enumerate(members)}
        self.counts = [len(m) for m in wiring.plan.stream_writers]
        self.streams: dict[int, Tensor] = {}
        self.shapes: dict[int, torch.Size] = {}

    def wrote(self, write: Write, outs: Tensor) -> None:
        if write.stream not in self.streams:
            self.shapes[write.stream] = outs.shape[1:]
            dtype = torch.float32 if outs.dtype in (torch.bfloat16, torch.float16) else outs.dtype
            self.streams[write.stream] = outs.new_empty((self.counts[write.stream], *outs.shape[1:]), dtype=dtype)
        for writer, out in zip(write.writers, outs, strict=True):
            self.streams[write.stream][self.local[writer]] = out

    def stands(self, state: State, x: Tensor) -> None:
        self.shapes.setdefault(state.stream, x.shape)

    def read(self, reading: ReadingCall) -> Any:
        return reading.plain()


def require_untapped(wiring: Wiring) -> None:
    """Raises WiringError inside ``record`` of the same model."""
    refuse_tapped(wiring.model)


def outs_of(wiring: Wiring, inputs: Any, params: Mapping[str, Tensor] | None = None) -> Outs:
    """What every writer writes on ``inputs``, without gradients. Costs about one forward.

    The model runs to its end: leaving it after the last write would save the logits, but leave its own hooks in pieces.
    """
    require_untapped(wiring)
    watch, inputs = _Watch(wiring), with_positions(wiring.model, inputs)
    with torch.no_grad(), Tap(wiring.model, wiring.plan, watch, wiring.modes, params):
        call(wiring.model, inputs)
    count = len(wiring.streams)
    return Outs(
        tuple(watch.streams.get(n) for n in range(count)),
        tuple(watch.shapes.get(n, torch.Size()) for n in range(count)),
    )
