"""How large the state is that the output is read from, with edges cut and without."""

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.question import Batch
from voltmeter.run.engine import Cut
from voltmeter.run.keep import Keep
from voltmeter.run.padding import with_positions
from voltmeter.wiring.calls import ReadingCall, readings_of
from voltmeter.wiring.inputs import call, device_of
from voltmeter.wiring.plan import State, Write
from voltmeter.wiring.tap import Listener, Tap
from voltmeter.wiring.wiring import Wiring


def norm_ratio(wiring: Wiring, batch: Batch, keep: Float[Tensor, "edge"]) -> float:
    """The norm of what the output reads, cut over full, summed over pairs. Costs two masked forwards of the batch.

    A norm before the output divides by it: where it changes much, what the kept edges carry counts for more or less
    than it did in the full model.
    """
    cut, full = (_norm(wiring, batch, values) for values in (keep, torch.ones_like(keep)))
    return cut / full if full else 1.0


@torch.no_grad()
def _norm(wiring: Wiring, batch: Batch, keep: Tensor) -> float:
    inputs = with_positions(wiring.model, batch.clean)
    listener = _Outputs(wiring, Cut(wiring, inputs, Keep(keep.to(device_of(wiring.model)), "edge"), batch.fill))
    with Tap(wiring.model, wiring.plan, listener, wiring.modes):
        call(wiring.model, inputs)
    return sum(float(read.double().flatten(1).norm(dim=1).sum()) for read in listener.read_by.values())


@final
class _Outputs(Listener):
    """A cut run, of which is kept what the readers that feed nothing further read: reader -> [pair, ...]."""

    wants_constants = True

    def __init__(self, wiring: Wiring, cut: Cut) -> None:
        self.cut = cut
        self.ends = {wiring.reader(name).number for name in wiring.outputs}
        self.read_by: dict[int, Tensor] = {}

    def begin(self) -> None:
        self.cut.begin()

    def portion(self, write: Write) -> Write | None:
        return self.cut.portion(write)

    def stands(self, state: State, x: Tensor) -> None:
        self.cut.stands(state, x)

    def wrote(self, write: Write, outs: Tensor) -> None:
        self.cut.wrote(write, outs)

    def constant(self, write: Write, value: Tensor) -> None:
        self.cut.constant(write, value)

    def read(self, reading: ReadingCall) -> Any:
        return self.cut.read(_Heard(reading, self))


@final
class _Heard(ReadingCall):
    """A reading call of which is kept what it is evaluated at."""

    def __init__(self, call: ReadingCall, listener: _Outputs) -> None:
        super().__init__(call.site, call.xs)
        self.call, self.listener = call, listener

    def plain(self) -> Any:
        return self.call.plain()

    def evaluate(self, reads: Mapping[int, Tensor]) -> Any:
        for state, of_state in reads.items():
            for reader, read in zip(readings_of(self.site, state), of_state, strict=True):
                if reader in self.listener.ends:
                    self.listener.read_by[reader] = read
        return self.call.evaluate(reads)

    def tensor(self, output: Any) -> Tensor:
        return self.call.tensor(output)
