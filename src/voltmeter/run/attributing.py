"""The gradient of a metric with respect to every edge's keep, from one plain forward and one backward."""

from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.errors import TapeError
from voltmeter.run.engine import Cut
from voltmeter.run.fill import FillValues
from voltmeter.run.keep import Keep
from voltmeter.run.tape import as_rows, in_own_precision
from voltmeter.wiring.plan import Write
from voltmeter.wiring.tap import ReadingCall, readings_of
from voltmeter.wiring.wiring import Wiring

L = TypeVar("L")


class _Pull(torch.autograd.Function):
    """A reading call as the model makes it, whose backward pulls the gradient to each reading alone.

    The model's own backward through the call (and the norm before it) would compute the sum of the same again.
    """

    @staticmethod
    def forward(ctx: Any, token: Tensor, listener: "ReferenceType[Attribute]", number: int, *xs: Tensor) -> Tensor:
        ctx.listener, ctx.number = listener, number
        output: Tensor = alive(listener).readings[number].plain()
        return output.clone() if output._is_view() else output  # the model may go on to change it in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, None, *alive(ctx.listener).arrived(ctx.number, grad)


def alive(listener: ReferenceType[L]) -> L:
    """What is referred to. Raises TapeError where it is gone."""
    found = listener()
    if found is None:
        raise TapeError(
            "the listener of this run was let go of before its backward pass",
            mend="keep what plain_point or moved_point returned until there are no more backward passes",
        )
    return found


class Attribute(Cut):
    """The gradient with respect to ``keep`` at keep = 1, without a masked forward.

    The forward is the plain one. As the gradient of each reading call's output comes by, it is pulled back to the
    input of every reading alone, and set against the deltas: d metric / d keep = -G · delta.

    ``readings`` are known to the run's graph by number alone, and this only weakly: what a reading holds leads back to
    the graph, which would keep itself, and every delta with it, for ever.
    """

    wants_constants = False

    def __init__(self, wiring: Wiring, inputs: Any, fills: FillValues) -> None:
        super().__init__(wiring, inputs, Keep(torch.ones(len(wiring.edges)), "edge"), fills)
        self.total = torch.zeros(len(wiring.edges), dtype=torch.float64)
        self.readings: list[ReadingCall] = []

    def wrote(self, write: Write, outs: Tensor) -> None:
        with torch.no_grad():
            super().wrote(write, outs.detach())

    def read(self, reading: ReadingCall) -> Any:
        self.readings.append(reading)
        me, number = ref(self), len(self.readings) - 1
        if reading.is_product:
            token = torch.zeros((), requires_grad=True)  # the graph may begin here
            return _Pull.apply(token, me, number, *reading.xs.values())  # type: ignore[no-untyped-call]
        output = reading.plain()
        tensor = reading.tensor(output)
        if not tensor.requires_grad:  # nothing before it does: here the graph begins
            begun = tensor.detach().requires_grad_().clone()
            output = tree_map(lambda leaf: begun if leaf is tensor else leaf, output)
            tensor = begun
        tensor.register_hook(lambda grad: alive(me).came_by(number, grad))
        return output

    def came_by(self, number: int, grad: Tensor) -> None:
        """The gradient of a reading's output came by."""
        self._score(self.readings[number], self.readings[number].pull(grad))

    def arrived(self, number: int, grad: Tensor) -> list[Tensor]:
        """The gradient of every state read, from that of the output."""
        reading = self.readings[number]
        pulled = reading.pull(grad)
        self._score(reading, pulled)
        return [pulled[state].sum(0) for state in reading.xs]

    def _score(self, reading: ReadingCall, pulls: Mapping[int, Tensor]) -> None:
        for number, pulled in pulls.items():
            state = self.wiring.plan.states[number]
            rows = as_rows([self.local[m] for m in state.members])
            delta = self.tape.delta[state.stream][rows]
            with in_own_precision(delta.device):
                scores = -(pulled.reshape(len(pulled), -1).to(delta.dtype) @ delta.reshape(len(delta), -1).t())
            scores = scores.double().cpu() * torch.tensor(state.scales, dtype=torch.float64)
            for reader, row in zip(readings_of(reading.site, number), scores, strict=True):
                start = self.wiring.edges.starts[reader]
                self.total[start : start + len(row)] += row
