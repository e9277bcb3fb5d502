"""``Wiring``: a model's streams, its writers and readers, and the edges between them.

A wiring is a value. It holds the model but never changes it, and holds no state of any run.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from voltmeter.errors import AddressError, nearest
from voltmeter.wiring.plan import Plan
from voltmeter.wiring.rows import Rows
from voltmeter.wiring.streams import Survey
from voltmeter.wiring.tap import Modes

if TYPE_CHECKING:
    from voltmeter.wiring.weights import HeadWeights


class Edge(NamedTuple):
    """From a writer to a reader of the same stream."""

    writer: str
    reader: str

    def __str__(self) -> str:
        return f"{self.writer} -> {self.reader}"


@dataclass(frozen=True)
class Writer:
    """A component (or part of one) whose output is an addend of a stream."""

    name: str
    number: int
    stream: int
    module: str  # path of the module
    kind: str  # input, head, unit, block, norm
    component: str  # what it is a part of, or its own name
    linearised: bool = False  # a share of a normalised sum, with the norm's scale of the run held


@dataclass(frozen=True)
class Reader:
    """An operation (or part of one) that reads a state of a stream."""

    name: str
    number: int
    stream: int
    state: int
    module: str
    kind: str  # q, k, v, unit, block, norm, output
    component: str  # what it is a part of, or its own name
    feeds: tuple[str, ...]  # the writers computed from it


@dataclass(frozen=True)
class Stream:
    """A running sum: the names of what writes to it and of what reads it, in order."""

    name: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """What was measured when the model was wired; see ``verify.py``."""

    sum_error: float
    law1_error: float
    law2_error: float


class Edges(Sequence[Edge]):
    """All edges, ordered by reader (as the model computes them), then by writer."""

    def __init__(
        self, writers: Sequence[Writer], readers: Sequence[Reader], members: Sequence[tuple[int, ...]]
    ) -> None:
        self._writers = tuple(w.name for w in writers)
        self._readers = tuple(r.name for r in readers)
        self._members = [members[r.state] for r in readers]
        self.starts: tuple[int, ...] = tuple(_running([len(m) for m in self._members]))

    @cached_property
    def writer_numbers(self) -> Tensor:
        """Int [edge]: the writer of each edge."""
        return torch.tensor([w for m in self._members for w in m], dtype=torch.long)

    @cached_property
    def reader_numbers(self) -> Tensor:
        """Int [edge]: the reader of each edge."""
        return torch.tensor([r for r, m in enumerate(self._members) for _ in m], dtype=torch.long)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every edge as ``writer -> reader``."""
        return tuple(f"{self._writers[w]} -> {self._readers[r]}" for r, m in enumerate(self._members) for w in m)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: n for n, name in enumerate(self.names)}

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, at: int) -> Edge: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Edge, ...]: ...
    def __getitem__(self, at: int | slice) -> Edge | tuple[Edge, ...]:
        if isinstance(at, slice):
            return tuple(self[n] for n in range(*at.indices(len(self))))
        writer, _, reader = self.names[at].partition(" -> ")
        return Edge(writer, reader)

    def __iter__(self) -> Iterator[Edge]:
        for reader, members in zip(self._readers, self._members, strict=True):
            for writer in members:
                yield Edge(self._writers[writer], reader)

    def find(self, edge: Edge | str) -> int:
        """The position of an edge. Raises AddressError, naming the nearest ones."""
        name = str(edge).replace("→", "->")
        if name not in self._positions:
            raise AddressError(
                f"there is no edge '{name}'",
                [nearest(name, self.names), "an edge runs from a writer to a reader computed after it"],
                "list them with list(wiring.edges)",
            )
        return self._positions[name]

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """As ``list.index``."""
        at = self._positions.get(str(value), -1)
        if at < start or (stop is not None and at >= stop):
            raise ValueError(f"{value!s} is not an edge here")
        return at

    def __contains__(self, value: object) -> bool:
        return str(value) in self._positions

    def __repr__(self) -> str:
        return f"<{len(self):,} edges: {', '.join(str(e) for e in self[:2])}, ...>"


def _running(counts: Iterable[int]) -> Iterator[int]:
    total = 0
    yield total
    for count in counts:
        total += count
        yield total


@dataclass(frozen=True, eq=False)
class Wiring:
    """What a model computes, as writers, readers and edges, verified.

    Made by ``voltmeter.wire``. ``split`` and ``merge`` return other divisions of the same model.
    """

    model: nn.Module
    streams: tuple[Stream, ...]
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    edges: Edges
    verified: Verified
    example: Any = field(repr=False)
    survey: Survey = field(repr=False)
    plan: Plan = field(repr=False)
    modes: Modes = field(repr=False)
    rows: Rows = field(repr=False)
    divisions: Mapping[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        v = self.verified
        return (
            f"{type(self.model).__name__} · {len(self.writers)} writers · {len(self.readers)} readers · "
            f"{len(self.edges):,} edges · sums to {v.sum_error:.0e}, law 1 to {v.law1_error:.0e}, "
            f"law 2 to {v.law2_error:.0e}"
        )

    @cached_property
    def digest(self) -> str:
        """Of the edges' names and the model's class: equal when circuits mean the same."""
        text = "\n".join((type(self.model).__name__, *self.edges.names))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def feeds(self) -> dict[str, tuple[str, ...]]:
        """Reader name -> the writers computed from what it reads."""
        return {r.name: r.feeds for r in self.readers}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Writers computed from no reader: where paths start."""
        fed = {w for r in self.readers for w in r.feeds}
        return tuple(w.name for w in self.writers if w.name not in fed)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Readers that feed no writer: where paths end."""
        return tuple(r.name for r in self.readers if not r.feeds)

    @cached_property
    def components(self) -> tuple[str, ...]:
        """What can be split and merged: ``input``, ``a0``, ``m0``, ...; in order of reading, inputs first."""
        begin = [w.component for w in self.writers if w.kind == "input"]
        others = [*(r.component for r in self.readers), *(w.component for w in self.writers)]
        return tuple(dict.fromkeys([*begin, *others]))

    def component_of(self, name: str) -> str:
        """The component that a name is, or is a part of; the name itself when nothing is called so."""
        node = self._writer_of.get(name) or self._reader_of.get(name)
        return name if node is None else node.component

    @cached_property
    def _writer_of(self) -> dict[str, Writer]:
        return {w.name: w for w in self.writers}

    @cached_property
    def _reader_of(self) -> dict[str, Reader]:
        return {r.name: r for r in self.readers}

    def writer(self, name: str) -> Writer:
        """The writer of that name. Raises AddressError."""
        if name not in self._writer_of:
            raise _no_node(name, "writer", list(self._writer_of))
        return self._writer_of[name]

    def reader(self, name: str) -> Reader:
        """The reader of that name. Raises AddressError."""
        if name not in self._reader_of:
            raise _no_node(name, "reader", list(self._reader_of))
        return self._reader_of[name]

    @property
    def model_digest(self) -> str:
        """Of the names, types and values of all weights and buffers. Costs reading them once; not remembered."""
        made = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            if isinstance(tensor, Tensor):
                made.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                made.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return made.hexdigest()[:16]

    def bind(self, model: nn.Module) -> "Wiring":
        """The same wiring over another model of the same structure (a checkpoint, a twin), traced and verified anew.

        Raises AddressError when the other model has other edges, and whatever ``wire`` raises.
        """
        from voltmeter.wiring.wire import wire

        other = wire(model, self.example, self.divisions, declare=self.plan.opaque)
        if other.edges.names != self.edges.names:
            mine, theirs = set(self.edges.names), set(other.edges.names)
            raise AddressError(
                f"the other model has other edges: {len(theirs):,} against {len(mine):,}",
                [*(f"only here: {e}" for e in sorted(mine - theirs)[:4]),
                 *(f"only there: {e}" for e in sorted(theirs - mine)[:4])],
                "bind a model of the same structure, or wire it by itself",
            )  # fmt: skip
        return other

    def weights(self, head: str) -> "HeadWeights":
        """The weight matrices of an attention head: ``wiring.weights("a1.h0").W_Q`` [d_model, d_head].

        Under grouped-query attention keys and values are those of the head's key/value head. Costs one forward pass on
        the example. Raises AddressError when no head is called so, WiringError when its queries, keys, values or output
        are not plain products with weights (a low-rank projection; a norm over all heads, before they divide), or not
        made from a stream (learned queries).
        """
        from voltmeter.wiring.weights import head_weights

        return head_weights(self, head)

    def split(self, component: str, into: str = "parts") -> "Wiring":
        """Divide a component, and leave the others as they are.

        ``component`` is one of ``components``, or the name of a part of one. ``into`` is "heads", "units" (hidden
        units), "channels" or "positions" (of what it writes), or "parts": whichever is natural; of the input, its
        addends (``input.tok``, ``input.pos``).

        Returns another wiring, verified again: about five forward passes on the example. Raises AddressError when
        there is no such component, or when it cannot be divided so.
        """
        from voltmeter.wiring.wire import divide

        return divide(self, component, into)

    def merge(self, component: str) -> "Wiring":
        """Make a component one writer and one reader again; ``"input"`` likewise. Returns another wiring."""
        from voltmeter.wiring.wire import divide

        return divide(self, component, "whole")

    def coarsen(self) -> "Wiring":
        """Every component whole: no heads, no units. Returns another wiring."""
        from voltmeter.wiring.wire import coarsen

        return coarsen(self)


def _no_node(name: str, kind: str, known: Sequence[str]) -> AddressError:
    mend = f"list them all with [n.name for n in wiring.{kind}s]"
    return AddressError(f"no {kind} is called '{name}'", [nearest(name, known)], mend)
