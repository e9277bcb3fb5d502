"""Gradients at every reader: by example, under other rules of differentiation, or at a point off the plain run.

``run.attribute`` sets the gradient of a run's metric against the deltas of the same run, summed over examples. Methods
that want more of it stand on ``plain_point`` and ``moved_point``, whose listeners answer every read as the plain model
would and hear each reader's gradient as it comes by. Both return the score's value with its graph: the caller takes
it backward, once or (with ``retain_graph``) several times.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float64
from torch import Tensor

from voltmeter.run.attributing import Attribute, alive
from voltmeter.run.fill import FillValues
from voltmeter.run.keep import require_rows_first
from voltmeter.run.padding import with_positions
from voltmeter.run.tape import as_rows, in_own_precision
from voltmeter.run.watch import require_untapped
from voltmeter.wiring.calls import reread
from voltmeter.wiring.inputs import call
from voltmeter.wiring.plan import State
from voltmeter.wiring.tap import ReadingCall, Tap, readings_of
from voltmeter.wiring.wiring import Wiring

Rules = Callable[[], AbstractContextManager[Any]]  # entered wherever the model's calls are made


class _Asked(ReadingCall):
    """A reading call at inputs of its own, pulled back through under ``rules``, and not through ``dropped`` readers."""

    def __init__(self, reading: ReadingCall, xs: Mapping[int, Tensor], listener: "Gradients") -> None:
        super().__init__(reading.site, xs)
        self.is_moved = any(xs[n] is not x for n, x in reading.xs.items())
        self.inner = copy(reading)
        self.inner.xs = xs
        self._listener = ref(listener)  # which holds this

    @property
    def is_product(self) -> bool:
        return self.inner.is_product

    def plain(self) -> Any:
        return reread(self.inner, self.xs) if self.is_moved else self.inner.plain()

    def evaluate(self, reads: Mapping[int, Tensor]) -> Any:
        return self.inner.evaluate(reads)

    def tensor(self, output: Any) -> Tensor:
        return self.inner.tensor(output)

    def pull(self, grad: Tensor) -> dict[int, Tensor]:
        with alive(self._listener).rules():  # those of the forward do not reach into a backward pass
            pulled = self.inner.pull(grad)
        for state, grads in pulled.items():
            dropped = [at for at, r in enumerate(readings_of(self.site, state)) if r in alive(self._listener).dropped]
            if dropped:
                pulled[state] = grads.index_fill(0, torch.tensor(dropped, device=grads.device), 0)
        return pulled


class Gradients(Attribute):
    """A plain run. ``total`` [row, edge] collects (out - fill) · d score / d x of every edge, a row per example or one
    for all, over all backward passes until it is zeroed.

    ``dropped``: readers through which no gradient passes (it is zero for what they read). ``wanted``: writers for which
    the gradient of what they write is kept, in ``out_gradients`` [*stream shape].
    """

    def __init__(
        self, wiring: Wiring, inputs: Any, fills: FillValues, rows: int, rules: Rules, wanted: frozenset[int]
    ) -> None:
        super().__init__(wiring, inputs, fills)
        self.total = torch.zeros(rows, len(wiring.edges), dtype=torch.float64)
        self.rules, self.wanted = rules, wanted
        self.dropped: frozenset[int] = frozenset()
        self.out_gradients: dict[int, Tensor] = {}

    def forget(self) -> None:
        """Before another backward pass through the same graph."""
        self.total = torch.zeros_like(self.total)
        self.out_gradients = {}

    @property
    def deltas(self) -> Mapping[int, Tensor]:
        """fill - out, zero at padding: stream -> [writer of the stream, *stream shape]."""
        return self.tape.delta

    def read(self, reading: ReadingCall) -> Any:
        return self._answer(_Asked(reading, reading.xs, self))

    def _answer(self, asked: _Asked) -> Any:
        output = super().read(asked)
        if not asked.is_product:  # then the model's own graph leads on from here
            readers = {r.reader for r in asked.site.readings}
            me = ref(self)
            asked.tensor(output).register_hook(lambda grad: alive(me).stopped(readers, grad))
        return output

    def stopped(self, readers: set[int], grad: Tensor) -> Tensor | None:
        """The gradient that leads on from these readers: none where all are dropped."""
        return torch.zeros_like(grad) if readers <= self.dropped else None

    def _score(self, reading: ReadingCall, pulls: Mapping[int, Tensor]) -> None:
        for number, pulled in pulls.items():
            state = self.wiring.plan.states[number]
            readers = readings_of(reading.site, number)
            scores = self._products(state, pulled)
            for at, reader in enumerate(readers):
                start = self.wiring.edges.starts[reader]
                self.total[:, start : start + len(state.members)] += scores[:, at]
            self._keep_out_gradients(state, pulled)

    def _products(self, state: State, pulled: Tensor) -> Float64[Tensor, "row reading member"]:
        rows = as_rows([self.local[m] for m in state.members])
        delta, count = self.deltas[state.stream][rows], len(self.total)
        left = pulled.to(delta.dtype).reshape(len(pulled), count, -1).transpose(0, 1)
        with in_own_precision(delta.device):
            scores = torch.bmm(left, delta.reshape(len(delta), count, -1).permute(1, 2, 0)).neg_()
        return scores.double().cpu() * torch.tensor(state.scales, dtype=torch.float64)

    def _keep_out_gradients(self, state: State, pulled: Tensor) -> None:
        for member, scale in zip(state.members, state.scales, strict=True):
            if member in self.wanted:
                grad = scale * pulled.sum(0)
                self.out_gradients[member] = self.out_gradients.get(member, 0) + grad.reshape(
                    self.deltas[state.stream].shape[1:]
                )


class Moved(Gradients):
    """A run in which the writers ``moving`` write ``share`` of the way from their fill to what they write.

    Deltas are those of the plain run. What the readers read is moved, so the model's own streams are left as they are.
    """

    wants_writes = False

    def __init__(self, plain: Gradients, moving: frozenset[int], share: float) -> None:
        super().__init__(plain.wiring, plain.inputs, plain.fills, len(plain.total), plain.rules, frozenset())
        self.plain_deltas, self.moving, self.share = plain.deltas, moving, share
        self.shifts: dict[int, Tensor | None] = {}

    def begin(self) -> None:
        super().begin()
        self.shifts = {}

    @property
    def deltas(self) -> Mapping[int, Tensor]:
        return self.plain_deltas

    def stands(self, state: State, x: Tensor) -> None:
        return

    def read(self, reading: ReadingCall) -> Any:
        return self._answer(_Asked(reading, {n: self._moved(n, x) for n, x in reading.xs.items()}, self))

    def _moved(self, number: int, x: Tensor) -> Tensor:
        if number not in self.shifts:
            self.shifts[number] = self._shift(self.wiring.plan.states[number], x)
        shift = self.shifts[number]
        return x if shift is None else (x + shift).to(x.dtype)

    def _shift(self, state: State, x: Tensor) -> Tensor | None:
        """What is added to a state: (1 - share) of the deltas of the moving writers in it."""
        moving = [(m, scale) for m, scale in zip(state.members, state.scales, strict=True) if m in self.moving]
        if not moving:
            return None
        delta = self.deltas[state.stream][as_rows([self.local[m] for m, _ in moving])]
        scales = delta.new_tensor([scale for _, scale in moving])
        with in_own_precision(delta.device):
            total: Tensor = torch.tensordot(scales, delta, 1).reshape(x.shape)
        return (1 - self.share) * total


def plain_point(
    wiring: Wiring,
    inputs: Any,
    fills: FillValues,
    score: Callable[[Any], Tensor],
    *,
    rows: int = 1,
    rules: Rules = nullcontext,
    wanted: frozenset[int] = frozenset(),
) -> tuple[Gradients, Tensor]:
    """Run the model as it is. ``score(outputs)`` is one number, summed over examples; it is taken outside ``rules``.

    ``rows``: 1, or the batch size for scores by example. Costs one forward; a backward pass costs a backward and a
    pull-back for every reader. Raises KeepError for scores by example where examples cannot be told apart.
    """
    require_untapped(wiring)
    if rows > 1:
        require_rows_first(wiring)
    inputs = with_positions(wiring.model, inputs)
    return _scored(Gradients(wiring, inputs, fills, rows, rules, wanted), score)


def moved_point(
    plain: Gradients, moving: frozenset[int], share: float, score: Callable[[Any], Tensor]
) -> tuple[Gradients, Tensor]:
    """Run the model with the writers numbered in ``moving`` a ``share`` of the way from fill (0) to output (1).

    ``plain`` is the listener of a ``plain_point`` on the same inputs. Costs what ``plain_point`` does.
    """
    require_untapped(plain.wiring)
    return _scored(Moved(plain, moving, share), score)


def _scored(listener: Gradients, score: Callable[[Any], Tensor]) -> tuple[Gradients, Tensor]:
    wiring = listener.wiring
    with torch.enable_grad():
        with listener.rules(), Tap(wiring.model, wiring.plan, listener, wiring.modes):
            outputs = call(wiring.model, listener.inputs)
        return listener, score(outputs)
