"""The engine: cut edges exactly, at close to the cost of a plain run.

``delta[s] = fill_s - out_s`` is written once, into one buffer per stream, when ``s`` writes. What the readers of a
call read is one matrix product,

    reads = x + ((1 - keep) * scale) @ delta[:n]

(or, for readers most of whose edges are cut, the same number from the other end: constants + fills - keep @ delta;
the rounding of all that was added and taken away again would else be normalised up to size),
and so is the backward of it: ``d keep = -G @ delta[:n]^T`` and ``gdelta[:n] += (1 - keep)^T @ G``, the latter
into one shared buffer that each writer then takes its gradient from. A token threaded through writes and reads makes
autograd run them in the opposite order of the forward. The tape belongs to one call and is used once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.errors import TapeError, WiringError
from voltmeter.run.ahead import readings_ahead
from voltmeter.run.fill import FillValues
from voltmeter.run.keep import Keep, of_site
from voltmeter.run.memory import own, room
from voltmeter.run.padding import mask_for
from voltmeter.wiring.plan import Site, State, Write
from voltmeter.wiring.tap import Listener, ReadingCall, readings_of
from voltmeter.wiring.wiring import Wiring

Rows = slice | list[int]

_APART = 16  # entries: 64 bytes in float32


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


class _Write(torch.autograd.Function):
    """Put deltas on the tape; give the writer its gradient when all its readers have had theirs."""

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        tape: Tape,
        stream: int,
        rows: Rows,
        outs: Tensor,
        fill: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        write_deltas(tape, stream, rows, outs, fill, mask)
        ctx.tape, ctx.stream, ctx.rows, ctx.dtype, ctx.mask = tape, stream, rows, outs.dtype, mask
        ctx.fill_shape = None if fill is None else fill.shape
        return token.clone()

    @staticmethod
    def backward(ctx: Any, gtoken: Tensor) -> Any:
        tape: Tape = ctx.tape
        _claim(tape)
        if ctx.stream not in tape.gdelta:  # nothing after it was read through a cut
            return gtoken, None, None, None, None, None, None
        grad = tape.gdelta[ctx.stream][ctx.rows]
        if ctx.mask is not None:
            grad = grad * ctx.mask
        gfill = None
        if ctx.needs_input_grad[5] and ctx.fill_shape is not None:
            gfill = grad.sum_to_size(ctx.fill_shape)
        gouts = grad.neg().to(ctx.dtype) if ctx.needs_input_grad[4] else None
        return gtoken, None, None, None, gouts, gfill, None


@dataclass(frozen=True, eq=False)
class Share:
    """How much of each delta, and of where a mix starts from, goes into what some readers read.

    ``deltas`` [..., readings, n]; ``fills`` [..., readings, 1] is 1 for a reading that starts from the fills, 0 for one
    that starts from ``x``, and None where all do the latter.
    """

    deltas: Tensor
    fills: Tensor | None

    @classmethod
    def of(cls, keep: Tensor, scale: Tensor | None, dtype: torch.dtype, both: bool) -> "tuple[Share, Tensor]":
        """The share, and the part of each delta that is cut, in the shape of ``keep``."""
        kept = keep.to(dtype)
        cut = 1 - kept
        if scale is not None:
            kept, cut = kept * scale, cut * scale
        if not both:
            return cls(cut, None), cut
        nearer = kept.abs().sum(-1, keepdim=True) < cut.abs().sum(-1, keepdim=True)  # most is cut
        return cls(torch.where(nearer, -kept, cut), nearer.to(cut.dtype)), cut

    def whole(self) -> Tensor:
        """The coefficients of [fills, x, deltas], or of [x, deltas]: [..., readings, n + 1 or 2]."""
        if self.fills is None:
            return torch.cat([torch.ones_like(self.deltas[..., :1]), self.deltas], -1)
        return torch.cat([self.fills, 1 - self.fills, self.deltas], -1)

    def start(self, x: Tensor, from_fills: Tensor | None, shape: torch.Size) -> Tensor:
        """Where each reading starts: [readings, *shape]."""
        if self.fills is None or from_fills is None:
            return x[None]
        places = self.fills[..., 0, 0].numel()
        share = self.fills.reshape(places, -1, 1).transpose(0, 1)  # [readings, place, 1]
        mixed = share * from_fills.reshape(1, places, -1) + (1 - share) * x.reshape(1, places, -1)
        return mixed.reshape(-1, *shape)


@dataclass(frozen=True, eq=False)
class Ahead:
    """Readings of a later state, to be begun with the first ``n`` deltas."""

    state: int
    share: Share
    n: int


@dataclass(frozen=True, eq=False)
class Begun:
    """Readings of a state as far as the first ``n`` deltas: [readings, *x.shape]."""

    n: int
    mixed: Tensor


class _Read(torch.autograd.Function):
    """What each reader of a call reads: [readings, *x.shape].

    ``begun`` holds what was mixed of it before. The readings to begin stand in ``ahead``; ``begin`` takes them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        tape: Tape,
        stream: int,
        rows: Rows,
        x: Tensor,
        keep: Tensor,
        scale: Tensor | None,
        from_fills: Tensor | None,
        begun: Begun | None,
        ahead: list[Ahead],
        begin: Callable[[list[Ahead], Tensor], None],
    ) -> tuple[Tensor, Tensor]:
        share, cut = Share.of(keep, scale, tape.delta[stream].dtype, from_fills is not None)
        ctx.tape, ctx.stream, ctx.rows, ctx.scale = tape, stream, rows, scale
        ctx.save_for_backward(cut)
        ctx.x_shape, ctx.keep_dtype, ctx.x_dtype = x.shape, keep.dtype, x.dtype
        if begun is not None:
            fresh = tape.delta[stream][_past(rows, begun.n)]
            reads = mix(share.deltas[..., begun.n :], fresh, x.shape)
            reads += begun.mixed.view_as(reads)  # the earlier state may have had its positions apart
            reads += share.start(x, from_fills, x.shape)
        else:
            starts = [x] if from_fills is None else [from_fills, x]
            pieces = tape.after(stream, rows, starts)
            whole = _with_ahead(share, ahead)
            mixed = mix(whole, pieces, x.shape)
            reads = mixed
            if ahead:
                # A copy, so that the readings at hand can be let go of before it is used.
                begin(ahead, mixed[keep.shape[-2] :].clone())
                # Not a view: the model may go on to change it in place, which autograd allows no view.
                reads = own(mixed[: keep.shape[-2]])
        return reads.to(x.dtype), token.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, gtoken: Tensor) -> Any:
        tape: Tape = ctx.tape
        _claim(tape)
        (cut,) = ctx.saved_tensors
        delta = tape.delta[ctx.stream][ctx.rows]
        g = grad.to(delta.dtype)
        gkeep = None
        if ctx.needs_input_grad[5]:
            gkeep = _against(g, delta, cut).neg_()
            gkeep = (gkeep if ctx.scale is None else gkeep * ctx.scale).to(ctx.keep_dtype)
        _accumulate(tape.gradient(ctx.stream), ctx.rows, cut, g)
        gx = g.sum(0).reshape(ctx.x_shape).to(ctx.x_dtype) if ctx.needs_input_grad[4] else None
        return gtoken, None, None, None, gx, gkeep, None, None, None, None, None


def _claim(tape: Tape) -> None:
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


# The three products, for each shape of ``cut``: [readings, n], [batch, readings, n], [batch, position, readings, n].


def _places(cut: Tensor, delta: Tensor) -> tuple[int, int]:
    """How many places have a cut of their own, and the entries at each."""
    places = cut[..., 0, 0].numel()
    return places, delta[0].numel() // places


def _with_ahead(share: Share, ahead: list[Ahead]) -> Tensor:
    """The coefficients of all rows to be mixed: [..., readings and those ahead, starts and deltas]."""
    whole = share.whole()
    starts = whole.shape[-1] - share.deltas.shape[-1]
    return torch.cat([whole, *(torch.nn.functional.pad(a.share.deltas[..., : a.n], (starts, 0)) for a in ahead)], -2)


def mix(share: Tensor, pieces: Tensor, shape: torch.Size) -> Tensor:
    """share @ pieces: [readings, *shape]."""
    readings, n = share.shape[-2:]
    # Not a view of the product: see _Read.forward.
    reads = room((readings, *shape), pieces.dtype, pieces.device)
    if share.dim() == 2:
        torch.mm(share, pieces.flatten(1), out=reads.view(readings, -1))
        return reads
    places, width = _places(share, pieces)
    by_place = reads.view(readings, places, width).transpose(0, 1)
    torch.bmm(share.reshape(places, readings, n), pieces.reshape(n, places, width).transpose(0, 1), out=by_place)
    return reads


def _against(grad: Tensor, delta: Tensor, cut: Tensor) -> Tensor:
    """grad · delta for every reading and writer, in the shape of ``cut``."""
    readings, n = cut.shape[-2:]
    if cut.dim() == 2:
        return grad.reshape(readings, -1) @ delta.reshape(n, -1).t()
    places, width = _places(cut, delta)
    left = grad.reshape(readings, places, width).transpose(0, 1)
    right = delta.reshape(n, places, width).permute(1, 2, 0)
    return torch.bmm(left, right).reshape(cut.shape)


def _accumulate(total: Tensor, rows: Rows, cut: Tensor, grad: Tensor) -> None:
    """total[rows] += cut^T @ grad, in place."""
    readings, n = cut.shape[-2:]
    whole = isinstance(rows, slice)
    part = total[rows]
    if cut.dim() == 2:
        part.view(n, -1).addmm_(cut.t(), grad.reshape(readings, -1))
    else:
        places, width = _places(cut, part)
        part.view(n, places, width).transpose(0, 1).baddbmm_(
            cut.reshape(places, readings, n).transpose(1, 2), grad.reshape(readings, places, width).transpose(0, 1)
        )
    if not whole:
        total[rows] = part


class Cut(Listener):
    """A run with edges cut. One per run."""

    wants_constants = True

    def __init__(self, wiring: Wiring, inputs: Any, keep: Keep, fills: FillValues) -> None:
        self.wiring, self.inputs, self.keep, self.fills = wiring, inputs, keep, fills
        self.members = wiring.plan.stream_writers
        self.local = {w: at for members in self.members for at, w in enumerate(members)}
        self.ahead = readings_ahead(wiring.plan)
        self.cuts_most = bool((keep.values < 0.5).any())  # some reader may
        self.begin()

    def begin(self) -> None:
        self.tape = Tape(tuple(len(m) for m in self.members))
        self.token = torch.zeros(())  # a gradient passes through it from the first write or read that has one
        self.masks: dict[int, Tensor | None] = {}
        self.heard: set[int] = set()  # writers that have written
        self.biases: dict[int, Tensor] = {}  # by the number of the write that brought them
        self.reads: dict[tuple[int, ...], Tensor] = {}
        self.begun: dict[int, Begun] = {}  # by the state they are readings of

    def wrote(self, write: Write, outs: Tensor) -> None:
        if write.stream not in self.masks:
            name = self.wiring.streams[write.stream].name
            self.masks[write.stream] = mask_for(self.inputs, outs.shape[1:], name)
        rows = as_rows([self.local[w] for w in write.writers])
        fill = self.fills.rows(write.stream, rows, outs)
        mask = self.masks[write.stream]
        self.heard.update(write.writers)
        self.token = _Write.apply(self.token, self.tape, write.stream, rows, outs, fill, mask)  # type: ignore[no-untyped-call]

    def constant(self, write: Write, value: Tensor) -> None:
        self.biases[write.number] = value.detach()

    def stands(self, state: State, x: Tensor) -> None:
        self.keep.check_positions(x, self.wiring.streams[state.stream].name)
        silent = [self.wiring.writers[m].name for m in state.members if m not in self.heard]
        if silent:
            raise WiringError(f"{len(silent)} writers of a stream were not heard before it was read", silent)
        self.reads.clear()

    def read(self, reading: ReadingCall) -> Any:
        states = self.wiring.plan.states
        return reading.evaluate({n: self._reads(reading.site, states[n], x) for n, x in reading.xs.items()})

    def _reads(self, site: Site, state: State, x: Tensor) -> Tensor:
        key = (state.number, *readings_of(site, state.number))
        if key not in self.reads:
            keep = of_site(self.wiring, site, state.number, self.keep.values)
            rows = as_rows([self.local[m] for m in state.members])
            from_fills = self._from_fills(state, rows, x)
            begun = self.begun.pop(state.number, None)
            ahead = self._ahead(state, from_fills is not None)
            made, self.token = _Read.apply(  # type: ignore[no-untyped-call]
                self.token, self.tape, state.stream, rows, x, keep, self._scale(state), from_fills,
                begun, ahead, self._begin,
            )  # fmt: skip
            self.reads[key] = made
        return self.reads[key]

    def _begin(self, ahead: list[Ahead], mixed: Tensor) -> None:
        """Remember what was mixed ahead: [readings of all in ``ahead``, *x.shape]."""
        counts = [one.share.deltas.shape[-2] for one in ahead]
        for one, rows in zip(ahead, mixed.split(counts), strict=True):
            self.begun[one.state] = Begun(one.n, rows)

    def _like(self, stream: int) -> Tensor:
        """A tensor of the shape, dtype and device of a stream's deltas; its entries mean nothing."""
        return self.tape.delta[stream][0]

    def _scale(self, state: State) -> Tensor | None:
        """The coefficients of a state's members, None where all are 1."""
        return None if set(state.scales) == {1.0} else self._like(state.stream).new_tensor(state.scales)

    @torch.no_grad()
    def _ahead(self, state: State, both: bool) -> list[Ahead]:
        """The readings to begin with those of ``state``."""
        dtype, n, made = self.tape.delta[state.stream].dtype, len(state.members), []
        for later, site in self.ahead.get(state.number, ()):
            if later.number not in self.begun:
                keep = of_site(self.wiring, site, later.number, self.keep.values)
                share, _ = Share.of(keep, self._scale(later), dtype, both)
                made.append(Ahead(later.number, share, n))
        return made

    @torch.no_grad()
    def _from_fills(self, state: State, rows: Rows, x: Tensor) -> Tensor | None:
        """What is read when nothing is kept: constants + fills, and at padding ``x``. Of the shape of ``x``.

        None where that is never the better start: no reader has most of its edges cut, or the fills differ from example
        to example (what is read is then no smaller than what was written, and adding them up would cost too much).
        """
        if not self.cuts_most:
            return None
        like = self._like(state.stream)
        if self.fills.by_example(state.stream, like.dim()):
            return None
        fill = self.fills.rows(state.stream, rows, like[None])
        return nothing_kept(state, fill, self.biases, self.masks[state.stream], x, like)


def nothing_kept(
    state: State, fill: Tensor | None, biases: Mapping[int, Tensor], mask: Tensor | None, x: Tensor, like: Tensor
) -> Tensor:
    """Constants + fills, and at padding ``x``: what is read of a state when nothing is kept, of the shape of ``x``.

    ``fill`` [members of the state, *stream shape]; ``like``: a tensor of the shape and dtype of the stream's deltas.
    """
    total = like.new_zeros(like.shape)
    if fill is not None:
        total += torch.tensordot(like.new_tensor(state.scales), fill.to(like.dtype), 1)
    for number, scale in state.constants:
        if number in biases:
            total += scale * biases[number].reshape(total.shape)
    if mask is not None:
        total = torch.where(mask, total, x.reshape(total.shape).to(total.dtype))
    return total.reshape(x.shape)


class _Pull(torch.autograd.Function):
    """A reading call as the model makes it, whose backward pulls the gradient to each reading alone.

    The model's own backward through the call (and the norm before it) would compute the sum of the same again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        arrived: Callable[[ReadingCall, Tensor], list[Tensor]],
        reading: ReadingCall,
        *xs: Tensor,
    ) -> Tensor:
        ctx.arrived, ctx.reading = arrived, reading
        output: Tensor = reading.plain()
        return output.clone() if output._is_view() else output  # the model may go on to change it in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, None, *ctx.arrived(ctx.reading, grad)


class Attribute(Cut):
    """The gradient with respect to ``keep`` at keep = 1, without a masked forward.

    The forward is the plain one. As the gradient of each reading call's output comes by, it is pulled back to the
    input of every reading alone, and set against the deltas: d metric / d keep = -G · delta.
    """

    wants_constants = False

    def __init__(self, wiring: Wiring, inputs: Any, fills: FillValues) -> None:
        super().__init__(wiring, inputs, Keep(torch.ones(len(wiring.edges)), "edge"), fills)
        self.total = torch.zeros(len(wiring.edges), dtype=torch.float64)

    def wrote(self, write: Write, outs: Tensor) -> None:
        with torch.no_grad():
            super().wrote(write, outs.detach())

    def read(self, reading: ReadingCall) -> Any:
        if reading.is_product:
            token = torch.zeros((), requires_grad=True)  # the graph may begin here
            return _Pull.apply(token, self._arrived, reading, *reading.xs.values())  # type: ignore[no-untyped-call]
        output = reading.plain()
        tensor = reading.tensor(output)
        if not tensor.requires_grad:  # nothing before it does: here the graph begins
            begun = tensor.detach().requires_grad_().clone()
            output = tree_map(lambda leaf: begun if leaf is tensor else leaf, output)
            tensor = begun
        tensor.register_hook(lambda grad: self._score(reading, reading.pull(grad)))
        return output

    def _arrived(self, reading: ReadingCall, grad: Tensor) -> list[Tensor]:
        """The gradient of every state read, from that of the output."""
        pulled = reading.pull(grad)
        self._score(reading, pulled)
        return [pulled[number].sum(0) for number in reading.xs]

    def _score(self, reading: ReadingCall, pulls: Mapping[int, Tensor]) -> None:
        for number, pulled in pulls.items():
            state = self.wiring.plan.states[number]
            rows = as_rows([self.local[m] for m in state.members])
            delta = self.tape.delta[state.stream][rows]
            scores = -(pulled.reshape(len(pulled), -1).to(delta.dtype) @ delta.reshape(len(delta), -1).t())
            scores = scores.double().cpu() * torch.tensor(state.scales, dtype=torch.float64)
            for reader, row in zip(readings_of(reading.site, number), scores, strict=True):
                start = self.wiring.edges.starts[reader]
                self.total[start : start + len(row)] += row


def _past(rows: Rows, n: int) -> Rows:
    """All but the first ``n``."""
    return rows[n:] if isinstance(rows, list) else slice(rows.start + n, rows.stop)


def as_rows(numbers: list[int]) -> Rows:
    """A slice where the rows are consecutive: no copy."""
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return numbers
