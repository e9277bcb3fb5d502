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
from typing import Any

import torch
from torch import Tensor

from voltmeter.errors import WiringError, counted
from voltmeter.run.ahead import readings_ahead
from voltmeter.run.fill import FillValues
from voltmeter.run.keep import Keep, of_site
from voltmeter.run.memory import keep_while, own
from voltmeter.run.mixing import Ahead, Begun, Share, accumulate, against, mix, with_ahead
from voltmeter.run.padding import mask_for
from voltmeter.run.tape import Rows, Tape, as_rows, claim, in_own_precision, write_deltas
from voltmeter.wiring.inputs import batch_size
from voltmeter.wiring.plan import Site, State, Write
from voltmeter.wiring.tap import Listener, ReadingCall, readings_of
from voltmeter.wiring.wiring import Wiring


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
        claim(tape)
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
            whole = with_ahead(share, ahead)
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
        claim(tape)
        (cut,) = ctx.saved_tensors
        delta = tape.delta[ctx.stream][ctx.rows]
        g = grad.to(delta.dtype)
        gkeep = None
        if ctx.needs_input_grad[5]:
            gkeep = against(g, delta, cut).neg_()
            gkeep = (gkeep if ctx.scale is None else gkeep * ctx.scale).to(ctx.keep_dtype)
        accumulate(tape.gradient(ctx.stream), ctx.rows, cut, g)
        gx = g.sum(0).reshape(ctx.x_shape).to(ctx.x_dtype) if ctx.needs_input_grad[4] else None
        return gtoken, None, None, None, gx, gkeep, None, None, None, None, None


def _past(rows: Rows, n: int) -> Rows:
    """All but the first ``n``."""
    return rows[n:] if isinstance(rows, list) else slice(rows.start + n, rows.stop)


class Cut(Listener):
    """A run with edges cut. One per run."""

    wants_constants = True

    def __init__(self, wiring: Wiring, inputs: Any, keep: Keep, fills: FillValues) -> None:
        self.wiring, self.inputs, self.keep, self.fills = wiring, inputs, keep, fills
        self.members = wiring.plan.stream_writers
        self.local = {w: at for members in self.members for at, w in enumerate(members)}
        self.ahead = readings_ahead(wiring.plan)
        self.cuts_most = bool((keep.values < 0.5).any())  # some reader may
        self.rows = 1 if keep.axes == "edge" else batch_size(inputs)
        keep_while(wiring)
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
        self.keep.check_fits(x, self.wiring.streams[state.stream].name, self.rows)
        silent = [self.wiring.writers[m].name for m in state.members if m not in self.heard]
        if silent:
            raise WiringError(
                f"{counted(len(silent), 'writer', 'writers')} of a stream did not write before it was read", silent
            )
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
        with in_own_precision(like.device):
            total += torch.tensordot(like.new_tensor(state.scales), fill.to(like.dtype), 1)
    for number, scale in state.constants:
        if number in biases:
            total += scale * biases[number].reshape(total.shape)
    if mask is not None:
        total = torch.where(mask, total, x.reshape(total.shape).to(total.dtype))
    return total.reshape(x.shape)
