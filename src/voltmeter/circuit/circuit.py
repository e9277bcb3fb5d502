"""Which edges are kept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voltmeter.circuit.names import ARROW, find_edges
from voltmeter.circuit.paths import on_a_path
from voltmeter.circuit.scores import Row, Scores, checked_edges, edges_digest
from voltmeter.errors import CircuitError
from voltmeter.files import plain

_PRINTED = 88  # characters, before "..."


@runtime_checkable
class HasEdges(Protocol):
    """A wiring, or anything else that lists edges."""

    @property
    def edges(self) -> Sequence[Any]: ...


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges of one wiring, the scores it was chosen by, and how.

    ``edges`` are all the wiring's edges, in its order; ``kept`` says which are in the circuit (a private copy
    on the CPU); ``how`` is plain data. Nothing is edited in place: each method returns a new circuit. Raises
    CircuitError if there is not one flag to each edge, an edge stands twice, or the scores are of other edges.
    Equality is by content, of all four fields; ``set(a) == set(b)`` asks for the same edges only.
    """

    edges: tuple[str, ...]
    kept: Bool[Tensor, "edge"]
    scores: Scores | None = None
    how: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", checked_edges(self.edges))
        object.__setattr__(self, "kept", _checked_flags(self.kept, len(self.edges)))
        object.__setattr__(self, "how", plain(self.how, "how"))
        if self.scores is not None and self.scores.edges != self.edges:
            raise CircuitError("a circuit and its scores belong to different wirings", _difference(self, self.scores))

    @classmethod
    def from_edges(
        cls,
        wiring: HasEdges | Sequence[Any],
        names: Iterable[str | tuple[str, str]],
        aliases: Mapping[str, str] | None = None,
    ) -> "Circuit":
        """The circuit of the edges called ``names``, of a wiring or a list of all its edges.

        Either end may be a TransformerLens hook name; ``aliases`` are further names of nodes (``names.grouped``
        lets query heads stand for the key/value head they share). Raises AddressError listing every unknown
        name with those nearest to it.
        """
        edges = checked_edges(wiring.edges if isinstance(wiring, HasEdges) else wiring)
        kept = torch.zeros(len(edges), dtype=torch.bool)
        kept[find_edges(names, edges, aliases)] = True
        return cls(edges, kept, None, {"rule": "named"})

    # As a set of edges

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for name in self.names:
            writer, reader = name.split(ARROW)
            yield writer, reader

    def __contains__(self, edge: str | tuple[str, str]) -> bool:
        """Whether an edge is kept. Raises AddressError for one the wiring has not: it is not merely absent."""
        return bool(self.kept[find_edges([edge], self.edges)[0]])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The kept edges, in wiring order."""
        return tuple(name for name, kept in zip(self.edges, self.kept.tolist(), strict=True) if kept)

    @cached_property
    def edges_digest(self) -> str:
        """Digest of all the wiring's edges, in order."""
        return edges_digest(self.edges)

    def mask(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "edge"]:
        """The ``keep`` of ``run``: 1 where an edge is kept, 0 where it carries the fill."""
        return self.kept.to(dtype)

    def __and__(self, other: "Circuit") -> "Circuit":
        return self._with(other, self.kept & _same_wiring(self, other).kept, "and")

    def __or__(self, other: "Circuit") -> "Circuit":
        return self._with(other, self.kept | _same_wiring(self, other).kept, "or")

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self._with(other, self.kept & ~_same_wiring(self, other).kept, "minus")

    def __invert__(self) -> "Circuit":
        """Every edge the circuit does not keep."""
        return replace(self, kept=~self.kept, how={"rule": "not", "of": [self.how]})

    def _with(self, other: "Circuit", kept: Tensor, rule: str) -> "Circuit":
        scores = self.scores if self.scores == other.scores else None
        return Circuit(self.edges, kept, scores, {"rule": rule, "of": [self.how, other.how]})

    def jaccard(self, other: "Circuit") -> float:
        """Edges in both over edges in either; 1 for two empty circuits."""
        both, either = self & other, self | other
        return len(both) / len(either) if len(either) else 1.0

    def with_edges(self, names: Iterable[str | tuple[str, str]]) -> "Circuit":
        """A copy that keeps these edges too."""
        return self._edited(names, True, "with")

    def without_edges(self, names: Iterable[str | tuple[str, str]]) -> "Circuit":
        """A copy with these edges cut. Cutting an edge that was not kept changes nothing."""
        return self._edited(names, False, "without")

    def _edited(self, names: Iterable[str | tuple[str, str]], keep: bool, rule: str) -> "Circuit":
        found = find_edges(names, self.edges)
        kept = self.kept.clone()
        kept[found] = keep
        return replace(self, kept=kept, how={"rule": rule, "edges": [self.edges[i] for i in found], "of": [self.how]})

    # As a graph

    def disconnected(
        self, feeds: Mapping[str, Sequence[str]], inputs: Sequence[str], outputs: Sequence[str]
    ) -> tuple[str, ...]:
        """The kept edges that lie on no path of kept edges from an input to an output.

        Under resample fills they can be cut without changing anything; under other fills they cannot.

        Args:
            feeds: for each reader, the writers of the component it belongs to (``wiring.feeds``).
            inputs: the writers fed by no reader.
            outputs: the readers that feed no writer.

        Raises AddressError if a kept edge has an end that none of the three knows. Cost: one pass over the edges.
        """
        connected = on_a_path(tuple(self), feeds, inputs, outputs)
        return tuple(name for name, on in zip(self.names, connected, strict=True) if not on)

    def prune_disconnected(
        self, feeds: Mapping[str, Sequence[str]], inputs: Sequence[str], outputs: Sequence[str]
    ) -> "Circuit":
        """A copy without ``disconnected`` edges; ``how["pruned"]`` counts them."""
        gone = set(self.disconnected(feeds, inputs, outputs))
        kept = self.kept & torch.tensor([edge not in gone for edge in self.edges], dtype=torch.bool)
        return replace(self, kept=kept, how={**self.how, "pruned": len(gone)})

    # As text

    def table(self) -> tuple[Row, ...]:
        """The kept edges with their scores, highest |score| first; in wiring order if they were not scored."""
        if self.scores is None:
            return tuple(Row(writer, reader, None) for writer, reader in self)
        kept = self.kept.tolist()
        values = self.scores.values.tolist()
        return tuple(Row.of(self.edges[i], values[i]) for i in self.scores.order().tolist() if kept[i])

    def __str__(self) -> str:
        count = f"{len(self):,} edge{'' if len(self) == 1 else 's'}"
        if not len(self):
            return count
        shown: list[str] = []
        for name in self.names:
            if shown and len(", ".join([*shown, name])) > _PRINTED:
                return f"{count}: {', '.join(shown)}, ..."
            shown.append(name)
        return f"{count}: {', '.join(shown)}"

    def __repr__(self) -> str:
        return f"Circuit({len(self):,} of {len(self.edges):,} edges)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return (
            self.edges == other.edges
            and torch.equal(self.kept, other.kept)
            and self.how == other.how
            and self.scores == other.scores
        )

    def __hash__(self) -> int:
        return hash((self.edges_digest, self.kept.numpy().tobytes()))


def _checked_flags(kept: Tensor, n: int) -> Tensor:
    if kept.shape != (n,):
        raise CircuitError(f"{tuple(kept.shape)} flags were given for {n:,} edges, expected one each")
    if kept.dtype != torch.bool:
        raise CircuitError(
            f"kept must be boolean, {kept.dtype} was given", mend="choose with Scores.top, or compare: values > 0"
        )
    return kept.detach().to("cpu", copy=True).contiguous()


def _same_wiring(one: Circuit, other: Circuit) -> Circuit:
    if one.edges != other.edges:
        raise CircuitError("two circuits of different wirings cannot be compared", _difference(one, other))
    return other


def _difference(one: HasEdges, other: HasEdges) -> list[str]:
    mine, theirs = set(one.edges), set(other.edges)
    only = [f"only the first has {edge}" for edge in one.edges if edge not in theirs]
    only += [f"only the second has {edge}" for edge in other.edges if edge not in mine]
    counts = f"the first has {len(one.edges):,} edges, the second {len(other.edges):,}"
    return [counts, *only] if only else [counts, "the edges are the same, their order is not"]
