"""Circuits drawn at random that look like a given one: of its size, made of ways from inputs to outputs; or of its
shape, with as many edges between each two kinds of nodes."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from math import comb
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from voltmeter.check.case import Random
from voltmeter.circuit.circuit import Circuit
from voltmeter.wiring.wiring import Wiring

_TRIES = 10  # for each circuit wanted: it may be one that was drawn before
_WAYS = 4  # drawn of a shape, of which the one with most edges on a way from input to output is taken
_BLOCK = 4096


@final
class _Dice:
    """Whole numbers from a seeded source, many drawn at once."""

    def __init__(self, random: Random) -> None:
        self._drawn = self._blocks(random)

    @staticmethod
    def _blocks(random: Random) -> Iterator[float]:
        while True:
            yield from random.uniform(_BLOCK).tolist()

    def below(self, n: int) -> int:
        return int(next(self._drawn) * n)

    def some(self, of: list[int], count: int) -> list[int]:
        """``count`` of a list, each at most once."""
        of = list(of)
        for at in range(count):
            other = at + self.below(len(of) - at)
            of[at], of[other] = of[other], of[at]
        return of[:count]


def of_size(circuit: Circuit, wiring: Wiring, count: int, random: Random) -> Bool[Tensor, "circuit edge"]:
    """At most ``count`` others of as many edges, no two alike: ways from input to output, walked backwards at random,
    until there are enough edges; where no whole way fits any more, single edges. Any edges, where there are not as many
    circuits of ways."""
    dice, graph = _Dice(random), _Graph(wiring)

    def draw() -> list[int]:
        kept: dict[int, None] = {}
        failed = 0
        while len(kept) < len(circuit) and failed < 2 * _TRIES:
            new = [edge for edge in graph.way(dice) if edge not in kept]
            if new and len(kept) + len(new) <= len(circuit):
                kept.update(dict.fromkeys(new))
            else:
                failed += 1
        others = [edge for edge in range(len(circuit.edges)) if edge not in kept]
        return [*kept, *dice.some(others, len(circuit) - len(kept))]

    def any_edges() -> list[int]:
        return dice.some(list(range(len(circuit.edges))), len(circuit))

    return _others(circuit, (draw, any_edges), count)


def of_shape(circuit: Circuit, wiring: Wiring, count: int, random: Random) -> Bool[Tensor, "circuit edge"]:
    """At most ``count`` others, no two alike, with as many edges as the circuit has from each layer and kind of writer
    to each layer and kind of reader; where that leaves next to no choice, from each kind to each kind."""
    dice, graph = _Dice(random), _Graph(wiring)
    edges = _edges_of(circuit)
    classes = _Classes(_fine(wiring))
    if _ways_to_choose(edges, classes) <= count:
        classes = _Classes(_coarse(wiring))
    wanted = Counter(classes.of[edge] for edge in edges)

    def once() -> list[int]:
        return [edge for kind, number in wanted.items() for edge in dice.some(classes.members[kind], number)]

    def draw() -> list[int]:
        return max((once() for _ in range(_WAYS)), key=graph.connected)

    return _others(circuit, (draw,), count)


def _edges_of(circuit: Circuit) -> list[int]:
    return circuit.kept.nonzero().flatten().tolist()


def _others(circuit: Circuit, draws: Sequence[Callable[[], list[int]]], count: int) -> Bool[Tensor, "circuit edge"]:
    """What is drawn, each once and never the circuit itself: of the first until it has little new, then of the next."""
    known = {frozenset(_edges_of(circuit))}
    found: list[frozenset[int]] = []
    for draw in draws:
        for _ in range(_TRIES * count):
            if len(found) == count:
                break
            drawn = frozenset(draw())
            if drawn not in known:
                known.add(drawn)
                found.append(drawn)
    kept = torch.zeros(len(found), len(circuit.edges), dtype=torch.bool)
    for row, drawn in zip(kept, found, strict=True):
        row[sorted(drawn)] = True
    return kept


@final
class _Graph:
    """Which edges come into each reader, and which readers feed the writer of each edge."""

    def __init__(self, wiring: Wiring) -> None:
        starts = wiring.edges.starts
        self._into = [range(starts[at], starts[at + 1]) for at in range(len(wiring.readers))]
        feeding: dict[str, list[int]] = {}
        for reader in wiring.readers:
            for writer in reader.feeds:
                feeding.setdefault(writer, []).append(reader.number)
        self._behind = [feeding.get(writer.name, []) for writer in wiring.writers]
        self._writers = wiring.edges.writer_numbers.tolist()
        self._readers = wiring.edges.reader_numbers.tolist()
        self._fed = [{wiring.writer(name).number for name in reader.feeds} for reader in wiring.readers]
        self._ends = [wiring.reader(name).number for name in wiring.outputs]

    def way(self, dice: _Dice) -> list[int]:
        """Edges from an output back to an input."""
        edges: list[int] = []
        readers = self._ends
        while readers:
            into = self._into[readers[dice.below(len(readers))]]
            if not into:
                break
            edges.append(into[dice.below(len(into))])
            readers = self._behind[self._writers[edges[-1]]]
        return edges

    def connected(self, edges: list[int]) -> int:
        """How many of the edges lie on a way from an input to an output that is made of them."""
        begun = {writer for writer, behind in enumerate(self._behind) if not behind}
        ended = set(self._ends)
        for edge in sorted(edges):  # in the order in which they are read
            if self._writers[edge] in begun:
                begun |= self._fed[self._readers[edge]]
        for edge in sorted(edges, reverse=True):
            if self._readers[edge] in ended:
                ended.update(self._behind[self._writers[edge]])
        return sum(self._writers[edge] in begun and self._readers[edge] in ended for edge in edges)


@final
class _Classes:
    """Edges by class: ``of`` [edge], and the ``members`` of each."""

    def __init__(self, of: list[Hashable]) -> None:
        self.of = of
        self.members: dict[Hashable, list[int]] = {}
        for edge, kind in enumerate(of):
            self.members.setdefault(kind, []).append(edge)


def _fine(wiring: Wiring) -> list[Hashable]:
    """The component of the writer, and that and the kind of the reader."""
    return [
        (wiring.writers[w].component, wiring.readers[r].component, wiring.readers[r].kind) for w, r in _ends(wiring)
    ]


def _coarse(wiring: Wiring) -> list[Hashable]:
    return [(wiring.writers[w].kind, wiring.readers[r].kind) for w, r in _ends(wiring)]


def _ends(wiring: Wiring) -> Iterator[tuple[int, int]]:
    return zip(wiring.edges.writer_numbers.tolist(), wiring.edges.reader_numbers.tolist(), strict=True)


def _ways_to_choose(edges: list[int], classes: _Classes) -> int:
    ways = 1
    for kind, number in Counter(classes.of[edge] for edge in edges).items():
        ways *= comb(len(classes.members[kind]), number)
    return ways
