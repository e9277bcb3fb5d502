"""What kept edges are worth, beside random edges from outside: each of these is put into the circuit and cut again."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from voltmeter.check.case import Case, Random
from voltmeter.check.cuts import measure_while
from voltmeter.check.few import few_held_out
from voltmeter.check.pieces import without
from voltmeter.check.split import Split
from voltmeter.wiring.wiring import Wiring

RANDOM = 50
"""Random edges: enough to tell a share of two thirds from one of .9, for sixty kept edges at once."""

MOST_EDGES = 64
"""Kept edges judged; of a larger circuit as many are drawn."""


@final
@dataclass(frozen=True, eq=False)
class Effects:
    """The mean |change of the metric| when an edge is cut, in units of |full - nothing kept|.

    ``kept``: of the kept edges ``edges``, each cut from the circuit. ``random``: of edges outside, each cut from the
    circuit inflated by a random path through it. ``planned``: how many of both there would have been.
    """

    edges: tuple[int, ...]
    kept: Float64[Tensor, "edge"]
    random: Float64[Tensor, "random"]
    planned: tuple[int, int]
    total: int

    def counted(self) -> dict[str, Any]:
        """What was done, and left out."""
        found = {"edges_judged": len(self.edges), "edges_kept": self.total, "random_edges": len(self.random)}
        left = sum(self.planned) - len(self.edges) - len(self.random)
        return found | ({"left_out": left} if left else {})


def effects_of(case: Case) -> Effects:
    """Both kinds of effect on at most 32 held-out pairs; a budget is shared between them."""
    split, keep, draw = few_held_out(case), case.keep, case.random("inflated")
    edges = case.edges
    if len(edges) > MOST_EDGES:
        edges = sorted(edges[at] for at in draw.choose(len(edges), MOST_EDGES))
    outside = (~case.circuit.kept).nonzero().flatten().tolist()
    drawn = [outside[int(at * len(outside))] for at in draw.uniform(RANDOM).tolist()] if outside else []
    random = _random_effects(case, split, drawn, draw)
    kept = torch.zeros(0, dtype=torch.float64)
    if edges:
        base = split.measure(keep[None]).values
        cut = measure_while(case.clock, split, without(keep, [[edge] for edge in edges]), keep).values
        kept = _change(split, cut, base)
    return Effects(tuple(edges[: len(kept)]), kept, random, (len(edges), len(drawn)), len(case.edges))


def _random_effects(case: Case, split: Split, drawn: list[int], draw: Random) -> Float64[Tensor, "random"]:
    """Of each edge: what cutting it changes in the circuit with a random path through it."""
    if not drawn:
        return torch.zeros(0, dtype=torch.float64)
    graph, rows = _Graph(case.wiring), []
    for edge in drawn:
        inflated = case.keep.clone()
        inflated[graph.path_through(edge, draw)] = 1
        rows += [inflated, *without(inflated, [[edge]])]
    values = measure_while(case.clock.share(2), split, torch.stack(rows), case.keep).values
    return _change(split, values[1::2], values[: len(values) // 2 * 2 : 2])


def _change(split: Split, values: Float[Tensor, "circuit pair"], base: Tensor) -> Float64[Tensor, "circuit"]:
    unit = (split.full - split.nothing).mean().abs()
    return (values - base).abs().mean(1) / unit


@final
class _Graph:
    """The edges of a wiring by their ends."""

    def __init__(self, wiring: Wiring) -> None:
        self.edges, self.feeds = wiring.edges, wiring.feeds
        self.into: dict[str, list[int]] = {reader.name: [] for reader in wiring.readers}
        self.out_of: dict[str, list[int]] = {writer.name: [] for writer in wiring.writers}
        self.feeders: dict[str, list[str]] = {writer.name: [] for writer in wiring.writers}
        for number, edge in enumerate(wiring.edges):
            self.into[edge.reader].append(number)
            self.out_of[edge.writer].append(number)
        for reader, writers in wiring.feeds.items():
            for writer in writers:
                self.feeders[writer].append(reader)

    def path_through(self, edge: int, draw: Random) -> list[int]:
        """The edges of a random path from an input to an output, ``edge`` among them."""
        return [*self._back(edge, draw), edge, *self._on(edge, draw)]

    def _back(self, edge: int, draw: Random) -> list[int]:
        found: list[int] = []
        while before := [each for reader in self.feeders[self.edges[edge].writer] for each in self.into[reader]]:
            edge = before[draw.choose(len(before), 1)[0]]
            found.append(edge)
        return found

    def _on(self, edge: int, draw: Random) -> list[int]:
        found: list[int] = []
        while after := [each for writer in self.feeds[self.edges[edge].reader] for each in self.out_of[writer]]:
            edge = after[draw.choose(len(after), 1)[0]]
            found.append(edge)
        return found
