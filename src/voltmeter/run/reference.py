"""The oracle: the same run, slow and obvious. One edge at a time, one reader at a time, ordinary autograd."""

from typing import Any

import torch
from torch import Tensor

from voltmeter.run.fill import FillValues
from voltmeter.run.keep import Keep
from voltmeter.run.padding import mask_for
from voltmeter.wiring.inputs import batch_size
from voltmeter.wiring.plan import State, Write
from voltmeter.wiring.tap import Listener, ReadingCall, readings_of
from voltmeter.wiring.wiring import Wiring


class ReferenceCut(Listener):
    """``x_r = constants + sum over writers s of out_s + (1 - keep) * (fill_s - out_s)``, by loops."""

    wants_constants = True

    def __init__(self, wiring: Wiring, inputs: Any, keep: Keep, fills: FillValues) -> None:
        self.wiring, self.inputs, self.keep, self.fills = wiring, inputs, keep, fills
        self.local = {w: at for members in wiring.plan.stream_writers for at, w in enumerate(members)}
        self.out: dict[int, Tensor] = {}
        self.difference: dict[int, Tensor] = {}  # fill_s - out_s, nothing at padding
        self.constants: dict[int, Tensor] = {}  # by the number of the write that brought them

    def wrote(self, write: Write, outs: Tensor) -> None:
        mask = mask_for(self.inputs, outs.shape[1:], self.wiring.streams[write.stream].name)
        for writer, out in zip(write.writers, outs, strict=True):
            fill = self.fills.rows(write.stream, [self.local[writer]], out[None])
            out = out.float() if out.dtype in (torch.bfloat16, torch.float16) else out.clone()
            difference = -out if fill is None else fill[0] - out
            self.out[writer] = out
            self.difference[writer] = difference if mask is None else difference * mask

    def constant(self, write: Write, value: Tensor) -> None:
        self.constants[write.number] = value

    def stands(self, state: State, x: Tensor) -> None:
        self.keep.check_fits(x, self.wiring.streams[state.stream].name, batch_size(self.inputs))

    def read(self, reading: ReadingCall) -> Any:
        reads = {}
        for number, x in reading.xs.items():
            state = self.wiring.plan.states[number]
            readers = readings_of(reading.site, number)
            reads[number] = torch.stack([self._cut(reader, state, x) for reader in readers])
        return reading.evaluate(reads)

    def _cut(self, reader: int, state: State, x: Tensor) -> Tensor:
        total, start = torch.zeros_like(x), self.wiring.edges.starts[reader]
        for number, scale in state.constants:
            if number in self.constants:
                total = total + scale * self.constants[number].reshape(x.shape)
        for at, (writer, scale) in enumerate(zip(state.members, state.scales, strict=True)):
            keep = self.keep.values[..., start + at].reshape(-1, 1)  # a row for each example (and position)
            difference = self.difference[writer].reshape(len(keep), -1)
            out = self.out[writer].reshape(len(keep), -1)
            total = total + scale * (out + (1 - keep) * difference).reshape(x.shape)
        return total.to(x.dtype)
