"""What one further cut does, for every edge at once.

Cutting an edge changes what one component writes; everything before it is as it was, and everything after it reads
the same stream plus that change. So the cuts of all edges are one batch that grows as the components are walked, and a
cut costs a forward pass from its reader on, not a whole masked run.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.rasp.machine import Machine, sum_of
from voltmeter.rasp.setting import Setting

_CHUNK = 2**23  # numbers in the largest tensor of a chunk: 64 MiB in float64


@final
@dataclass(frozen=True, eq=False)
class Base:
    """A run with some edges cut: what every writer wrote, every reader read, and the answer."""

    cut: frozenset[int]
    outs: list[Float[Tensor, "batch pos d_model"]]
    reads: dict[tuple[int, int], Float[Tensor, "batch pos d_model"]]  # by part and reader
    answer: Float[Tensor, "batch real output"]


@torch.no_grad()
def run_cut(setting: Setting, cut: Iterable[int]) -> Base:
    """Run with the edges numbered in ``cut`` cut."""
    machine, gone = setting.machine, frozenset(cut)
    outs, reads = [setting.tok, setting.pos.expand_as(setting.tok)], {}
    severed: dict[tuple[int, int], set[int]] = {}
    for edge in gone:
        writer, at, number = machine.ends[edge]
        severed.setdefault((at, number), set()).add(writer)
    for at, part in enumerate(machine.parts):
        if part.n_before == 2 + at:  # else a further head of a layer, which reads what the first one does
            whole = machine.constants[at] + sum_of(outs)
            nothing = (machine.constants[at] + setting.fills[: part.n_before].sum(0)).expand_as(setting.tok)
        for number in range(len(part.readers)):
            lost = severed.get((at, number), set())
            kept = [writer for writer in range(part.n_before) if writer not in lost]
            if len(lost) <= len(kept):  # from whichever end is nearer
                steps = [setting.fills[writer] - outs[writer] for writer in sorted(lost)]
                reads[at, number] = sum_of([whole, *steps])
            else:
                steps = [outs[writer] - setting.fills[writer] for writer in kept]
                reads[at, number] = sum_of([nothing, *steps])
        outs.append(part(*(reads[at, number] for number in range(len(part.readers)))))
    return Base(gone, outs[:-1], reads, outs[-1])


def run_kept(setting: Setting, kept: Iterable[int]) -> Base:
    """Run with only the edges numbered in ``kept``."""
    return run_cut(setting, set(range(len(setting.machine.edges))) - set(kept))


@torch.no_grad()
def further_cuts(
    setting: Setting, base: Base, edges: Sequence[int], skip_inert: bool = True
) -> Float[Tensor, "edge batch"]:
    """How much the answer differs from the uncut model's, at each input, when one more edge is cut: for all ``edges``.

    Edges that cannot matter (what the cut changes lies where the reader's weights are exactly zero) get the base's own
    figure without being run; ``skip_inert=False`` runs them too. Any other costs a forward pass from its reader on.
    """
    changes = setting.changes(base.answer).repeat(len(edges), 1)
    walk = _Walk(setting, base)
    order = [at for at in range(len(edges)) if edges[at] not in base.cut]
    if skip_inert:
        order = [at for at in order if not walk.is_inert(edges[at])]
    order.sort(key=lambda at: setting.machine.ends[edges[at]][1])
    for chunk in _chunks(order, walk.chunk):
        changes[chunk] = setting.changes(walk.answers([edges[at] for at in chunk]))
    return changes


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@final
class _Walk:
    """Cuts on top of one base."""

    def __init__(self, setting: Setting, base: Base) -> None:
        self.setting, self.machine, self.base = setting, setting.machine, base
        ends = [self.machine.ends[edge] for edge in base.cut]
        self.severed = {(part, reader): [w for w, p, r in ends if (p, r) == (part, reader)] for _, part, reader in ends}
        self.remembered = {w for w, _, _ in ends}
        self._stream: Tensor | None = None  # what readers of the layer at hand read that get every change

    @property
    def chunk(self) -> int:
        """How many cuts are walked at once."""
        widest = max(len(reader.weight) for part in self.machine.parts for reader in part.readers)
        batch, length, d_model = self.setting.tok.shape
        return max(1, _CHUNK // (batch * length * max(widest, d_model, length) * (1 + len(self.remembered))))

    def is_inert(self, edge: int) -> bool:
        """Whether the cut changes nothing that the reader's weights touch."""
        writer, part, reader = self.machine.ends[edge]
        return not bool((self._touched[writer] & self.machine.parts[part].readers[reader].reads).any())

    @cached_property
    def _touched(self) -> list[Tensor]:
        """For each writer, the residual dimensions in which its fill differs from what it wrote."""
        fills = self.setting.fills
        return [(out != fill).any(0).any(0) for out, fill in zip(self.base.outs, fills, strict=True)]

    def answers(self, edges: Sequence[int]) -> Float[Tensor, "cut batch real output"]:
        """The answer with each of ``edges`` cut too. They are sorted by part."""
        self._stream = None  # of an earlier chunk
        total: Tensor = self.setting.tok.new_zeros((0, *self.setting.tok.shape))  # the change of the stream so far
        beside = total  # the change by heads of the layer at hand, which read the stream before it
        each: dict[int, Tensor] = {}  # the share of a writer, where some reader does not get it
        ends = [self.machine.ends[edge] for edge in edges]
        for at in range(ends[0][1], len(self.machine.parts)):
            part = self.machine.parts[at]
            if part.n_before == 2 + at:  # everything before it can be read; else it is a further head of a layer
                total, beside = total + beside, torch.zeros_like(beside)
                self._stream = None
            new = [(w, reader) for w, there, reader in ends if there == at]
            out = part.combine(*self._projected(at, total, each, new))
            if at == len(self.machine.parts) - 1:
                return out
            change = out - self.base.outs[2 + at]
            total, beside = _lengthened(total, len(new)), _lengthened(beside, len(new)) + change
            each = {w: _lengthened(tensor, len(new)) for w, tensor in each.items()}
            if 2 + at in self.remembered:
                each[2 + at] = change
        raise AssertionError("the last part is the answer")

    def _projected(
        self, part: int, total: Tensor, each: dict[int, Tensor], new: list[tuple[int, int]]
    ) -> Iterator[Float[Tensor, "cut batch pos k"]]:
        """What each reader of a part makes of the stream: of the cuts made before it, then of those made at it."""
        for number, reader in enumerate(self.machine.parts[part].readers):
            older = reader(self._older(part, number, total, each))
            newer = reader(self.base.reads[part, number]).repeat(len(new), 1, 1, 1)
            for row, (writer, which) in enumerate(new):
                if which == number:
                    newer[row] += (self.setting.fills[writer] - self.base.outs[writer]) @ reader.weight.T
            yield torch.cat([older, newer])

    def _older(self, part: int, number: int, total: Tensor, each: dict[int, Tensor]) -> Tensor:
        """What a reader reads in the cuts made before it; the same for all readers of a layer that get all of it."""
        reads = self.base.reads[part, number]
        if (part, number) in self.severed:
            lost = [each[writer] for writer in self.severed[part, number] if writer in each]
            return reads + total - sum_of(lost) if lost else reads + total
        if self._stream is None or len(self._stream) != len(total):
            self._stream = reads + total
        return self._stream


def _lengthened(tensor: Tensor, by: int) -> Tensor:
    """With ``by`` rows of zeros behind."""
    return torch.cat([tensor, tensor.new_zeros((by, *tensor.shape[1:]))])


def names_of(machine: Machine, edges: Iterable[int]) -> tuple[str, ...]:
    """The names of numbered edges, in the wiring's order."""
    return tuple(machine.edges[edge] for edge in sorted(edges))
