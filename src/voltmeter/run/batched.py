"""A batch on which many circuits are run as one: what they have in common is kept, and mixed, once for all of them.

The deltas of writers before the circuits begin to differ are the same for every one of them; readers that the circuits
treat alike mix them once. ``Rehearsed`` runs the batch under what is common, ``Suffix`` the circuits from a start on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from voltmeter.run.engine import Cut, nothing_kept
from voltmeter.run.fill import FillValues
from voltmeter.run.idle import idle_readers
from voltmeter.run.keep import Keep, of_site
from voltmeter.run.mixing import mix
from voltmeter.run.padding import mask_for
from voltmeter.run.tape import Tape, as_rows, in_own_precision
from voltmeter.wiring.plan import Site, State, Write
from voltmeter.wiring.resume import Start
from voltmeter.wiring.tap import ReadingCall, readings_of
from voltmeter.wiring.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Shared:
    """What all circuits have in common, of one batch."""

    deltas: Mapping[int, Tensor]  # stream -> fill - out [writer of the stream, *stream shape of the batch]
    all_cut: dict[int, Tensor]  # state -> what is read of it when nothing is kept, where that is so in every circuit
    masks: dict[int, Tensor | None]  # stream -> where the real tokens are, in the repeated batch

    @property
    def is_padded(self) -> bool:
        """Whether there is padding, where nothing is ever cut."""
        return any(mask is not None for mask in self.masks.values())


class Batched(Cut):
    """A repeated batch, a circuit per copy. What is known is kept once for all of them."""

    wants_constants = False

    def __init__(self, wiring: Wiring, inputs: Any, keep: Tensor, fills: FillValues, shared: Shared) -> None:
        self.common, self.count = shared, len(keep)
        self.known_states: frozenset[int] = frozenset()  # those that are the same in every circuit
        self.known_writers: frozenset[int] = frozenset()
        self.row_of: dict[int, int] = {}  # of the other writers, in this run's own deltas
        edges = wiring.edges
        readers, n = edges.reader_numbers, len(wiring.readers)
        differing, cut = (keep != keep[:1]).any(0).cpu(), (keep != 1).any(0).cpu()
        self.differ = frozenset(readers[differing].tolist())
        self.plain = frozenset(range(n)) - set(readers[cut].tolist())  # readers of the stream as it is
        size = keep.abs().mean(0).cpu().double(), (1 - keep).abs().mean(0).cpu().double()
        kept, lost = (torch.zeros(n, dtype=torch.float64).index_add_(0, readers, each) for each in size)
        self.mostly_cut = frozenset((kept < lost).nonzero().flatten().tolist())
        super().__init__(wiring, inputs, Keep(keep, "circuit edge"), fills)
        self.ahead = {}

    def read(self, reading: ReadingCall) -> Any:
        readers = [r.reader for r in reading.site.readings]
        if self.plain.issuperset(readers):
            return reading.plain()
        if reading.divides:
            return self._by_reading(reading, readers)
        return super().read(reading)

    def _by_reading(self, reading: ReadingCall, readers: list[int]) -> Tensor:
        """The call's output, each column computed for no more circuits than need it.

        What is made of a known state is the same for every circuit, but for the readings in which the circuits differ.
        Later, readings of the stream as it is need no mixing.
        """
        ((number, x),) = reading.xs.items()
        once = number in self.known_states
        varied = self.differ if once else set(readers)
        each = [n for n, reader in enumerate(readers) if reader not in self.plain and reader in varied]
        output: Tensor | None = None
        if not once and any(reader in self.plain for reader in readers):
            output = reading.plain()
        if each:
            output = self._put(reading, each, x, False, output)
        if once and len(each) < len(readers):
            alike = [n for n in range(len(readers)) if n not in set(each)]
            output = self._put(reading, alike, x, True, output)
        assert output is not None
        return output

    def _put(self, reading: ReadingCall, which: list[int], x: Tensor, once: bool, output: Tensor | None) -> Tensor:
        """Put the columns of some readings into ``output``, computed for each circuit or once for all."""
        state = self.wiring.plan.states[reading.site.states[0]]
        site = replace(reading.site, readings=tuple(reading.site.readings[n] for n in which))
        for n, piece in zip(which, reading.columns(which, self._mixed(site, state, x, once)), strict=True):
            output = piece.new_empty(reading.shape) if output is None else output
            at = as_rows(list(reading.site.readings[n].columns or ()))
            output.unflatten(0, (-1, len(piece)))[..., at] = piece
        assert output is not None
        return output

    def _reads(self, site: Site, state: State, x: Tensor) -> Tensor:
        key = (state.number, *readings_of(site, state.number))
        if key not in self.reads:
            self.reads[key] = self._mixed(site, state, x)
        return self.reads[key]

    def _mixed(self, site: Site, state: State, x: Tensor, once: bool = False) -> Tensor:
        """What each reading reads: [readings, *x.shape], or ``once`` for all circuits: the rows of one."""
        readers = readings_of(site, state.number)
        keep = of_site(self.wiring, site, state.number, self.keep.values)  # [circuit, readings, members]
        if once or not self.differ & set(readers):
            keep = keep[0]
        x = x[: len(x) // self.count] if once else x
        sides = [self._from_cut(reader, state.number) for reader in readers]
        if len(set(sides)) == 1:
            return self._mixed_from(sides[0], state, x, keep, once)
        reads = x.new_empty((len(readers), *x.shape))
        for side in (False, True):
            at = [n for n, each in enumerate(sides) if each is side]
            reads[at] = self._mixed_from(side, state, x, keep[..., at, :], once)
        return reads

    def _from_cut(self, reader: int, state: int) -> bool:
        """Whether what it reads is mixed from what is read with all cut."""
        return reader in self.mostly_cut and state in self.common.all_cut

    def _mixed_from(self, all_cut: bool, state: State, x: Tensor, keep: Tensor, once: bool) -> Tensor:
        """Mixed from the nearer end: what stands, less what is cut; or what is read with all cut, and what is kept."""
        deltas, copies = self.common.deltas[state.stream], 1 if once else self.count
        share = (-keep if all_cut else 1 - keep).to(deltas.dtype)
        scale = self._scale(state)
        share = share if scale is None else share * scale
        reads = self._all_cut(state, x, copies) if all_cut else x.reshape(1, copies, -1)
        used = (share != 0).flatten(0, -2).any(0).tolist()
        known = [at for at, m in enumerate(state.members) if used[at] and m in self.known_writers]
        own = [at for at, m in enumerate(state.members) if used[at] and m not in self.known_writers]
        if known:
            rows = as_rows([self.local[state.members[at]] for at in known])
            reads = reads + _once_for_all(share[..., as_rows(known)], deltas[rows])
        if own:
            rows = as_rows([self.row_of[state.members[at]] for at in own])
            mixed = mix(share[..., as_rows(own)], self.tape.delta[state.stream][rows], x.shape)
            reads = reads + mixed.reshape(len(mixed), copies, -1)
        return reads.expand(share.shape[-2], copies, -1).reshape(-1, *x.shape).to(x.dtype)

    def _all_cut(self, state: State, x: Tensor, copies: int) -> Tensor:
        """What is read with all cut [1, circuit or 1, entries]: at padding, where nothing is, what stands."""
        made, mask = self.common.all_cut[state.number], self.common.masks.get(state.stream)
        if mask is not None:
            made = torch.where(mask[: len(made)], made, x.unflatten(0, (copies, -1)))
        return made.reshape(1, -1, x.numel() // copies)

    def _like(self, stream: int) -> Tensor:
        return self.common.deltas[stream][0]


def _once_for_all(share: Tensor, deltas: Tensor) -> Tensor:
    """share @ deltas, of deltas that all circuits share: [readings, circuit or 1, the entries of the batch]."""
    with in_own_precision(deltas.device):
        mixed = share.reshape(-1, share.shape[-1]) @ deltas.flatten(1)
    return mixed.view(-1, share.shape[-2], mixed.shape[-1]).transpose(0, 1)


class Rehearsed(Batched):
    """The repeated batch under the keep that all circuits share: its deltas are known before it runs."""

    wants_constants = True

    def begin(self) -> None:
        super().begin()
        self.known_writers = frozenset(range(len(self.wiring.writers)))
        self.not_constant: set[int] = set()  # streams with constants that are not the same in every circuit

    def at_hand(self) -> frozenset[int]:
        """The writers heard so far."""
        return frozenset(self.heard)

    def wrote(self, write: Write, outs: Tensor) -> None:
        if write.stream not in self.common.masks:
            name = self.wiring.streams[write.stream].name
            self.common.masks[write.stream] = mask_for(self.inputs, outs.shape[1:], name)
        self.heard.update(write.writers)

    def constant(self, write: Write, value: Tensor) -> None:
        super().constant(write, value)
        if write.divided is not None and write.divided.after is not None:
            self.not_constant.add(write.stream)

    def stands(self, state: State, x: Tensor) -> None:
        super().stands(state, x)
        if state.stream in self.not_constant:
            return
        like, once = self._like(state.stream), self._once(x)
        rows = as_rows([self.local[m] for m in state.members])
        if self.fills.by_example(state.stream, like.dim()):
            deltas = self.common.deltas[state.stream][rows]
            with in_own_precision(deltas.device):
                cut = torch.tensordot(like.new_tensor(state.scales), deltas, 1)
            self.common.all_cut[state.number] = once.to(like.dtype) + cut.reshape(once.shape)
            return
        fill = replace(self.fills, copies=1).rows(state.stream, rows, like[None])
        biases = {number: self._once(bias) for number, bias in self.biases.items()}
        mask = self.common.masks[state.stream]
        mask = None if mask is None else self._once(mask)
        self.common.all_cut[state.number] = nothing_kept(state, fill, biases, mask, once, like)

    def _once(self, tensor: Tensor) -> Tensor:
        """The rows of the first circuit."""
        return tensor[: len(tensor) // self.count]


class Suffix(Batched):
    """A batch of circuits from a start on: what writers before it wrote is known."""

    def __init__(
        self,
        wiring: Wiring,
        inputs: Any,
        keep: Tensor,
        fills: FillValues,
        shared: Shared,
        start: Start | None,
    ) -> None:
        self.start = start
        super().__init__(wiring, inputs, keep if shared.is_padded else _without_idle(wiring, keep), fills, shared)
        self.wanted = self._wanted()

    def _wanted(self) -> frozenset[int]:
        """The writers whose deltas some reader mixes in."""
        edges, keep = self.wiring.edges, self.keep.values.cpu()
        readers = edges.reader_numbers
        from_cut = torch.tensor([self._from_cut(r.number, r.state) for r in self.wiring.readers])
        used = torch.where(from_cut[readers], (keep != 0).any(0), (keep != 1).any(0))
        return frozenset(edges.writer_numbers[used].tolist())

    def begin(self) -> None:
        super().begin()
        self.known_writers = frozenset() if self.start is None else self.start.heard
        self.known_states = frozenset() if self.start is None else self.start.states
        self.heard, self.masks = set(self.known_writers), dict(self.common.masks)
        later = [[m for m in members if m not in self.known_writers] for members in self.members]
        self.row_of = {m: row for members in later for row, m in enumerate(members)}
        self.tape = Tape(tuple(map(len, later)))

    def portion(self, write: Write) -> Write | None:
        self.heard.update(write.writers)
        at = [n for n, writer in enumerate(write.writers) if writer in self.wanted]
        if not at or write.divided is None or len(at) == len(write.writers):
            return write if at else None
        columns = tuple(write.divided.columns[n] for n in at)
        writers = tuple(write.writers[n] for n in at)
        return replace(write, writers=writers, divided=replace(write.divided, columns=columns))

    def wrote(self, write: Write, outs: Tensor) -> None:
        # By circuit, so that a fill is not copied for each.
        apart = outs.unflatten(1, (self.count, -1))
        rows = as_rows([self.row_of[w] for w in write.writers])
        fill = replace(self.fills, copies=1).rows(
            write.stream, as_rows([self.local[w] for w in write.writers]), apart[:, 0]
        )
        buffer = self.tape.buffer(write.stream, outs[0].to(self._like(write.stream).dtype))
        made = (-apart if fill is None else fill[:, None] - apart).flatten(1, 2)
        mask = self.masks[write.stream]
        buffer[rows] = (made if mask is None else made * mask).to(buffer.dtype)


def _without_idle(wiring: Wiring, keep: Tensor) -> Tensor:
    """What leads nowhere in any of the circuits may read the stream as it is."""
    idle = torch.tensor(sorted(idle_readers(wiring, (keep != 0).any(0))), dtype=torch.long)
    return keep.masked_fill(torch.isin(wiring.edges.reader_numbers, idle).to(keep.device), 1.0)
