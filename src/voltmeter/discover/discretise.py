"""From one number per edge to a circuit: a step apart from every method, and the same for all of them.

    top_k       the highest scores
    threshold   every score from a number up
    greedy      grown from the outputs backwards, along paths
    prune       exact (``prune.py``): what it returns suffices, and none of its edges can be cut

The first three run nothing. The last asks a criterion (``criteria.py``).
"""

import heapq
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.scores import Conditions, Scores
from voltmeter.discover.prune import prune
from voltmeter.errors import CircuitError
from voltmeter.wiring.wiring import Wiring

__all__ = ["given", "greedy", "prune", "threshold", "top_k"]


def given(edges: Sequence[Any], values: Float[Tensor, "edge"], sign: str = "unknown") -> Scores:
    """Scores of numbers that no method here made, one for each of ``edges`` (a wiring's ``edges``, or names)."""
    return Scores(tuple(str(edge) for edge in edges), values, "given", Conditions.unknown(sign=sign))


def top_k(scores: Scores, n: int, signed: bool = False) -> Circuit:
    """The ``n`` edges of highest |score| (highest score if ``signed``); ties by edge order. As ``scores.top``."""
    return scores.top(n, signed)


def threshold(scores: Scores, least: float, signed: bool = False) -> Circuit:
    """Every edge whose |score| (score if ``signed``) is at least ``least``."""
    keys = scores.values if signed else scores.values.abs()
    return Circuit(scores.edges, keys >= least, scores, {"rule": "threshold", "least": least, "signed": signed})


def greedy(wiring: Wiring, scores: Scores, n: int, signed: bool = False) -> Circuit:
    """``n`` edges, each the highest of those that read into what is already there, from the outputs backwards.

    Every edge kept has a path of kept edges to an output; it may have none from an input, which
    ``circuit.prune_disconnected`` mends under resample fills. ``how["kept"]`` is less than ``n`` where no more edges
    lead to an output. Ties by edge order. Source: ``apply_greedy`` of the EAP-IG code (2403.17806). Raises CircuitError
    for scores of another wiring and for more edges than there are.
    """
    _require_wiring(wiring, scores)
    if not 0 <= n <= len(scores):
        raise CircuitError(f"a circuit of {n:,} edges was asked for, the wiring has {len(scores):,}")
    keys = (scores.values if signed else scores.values.abs()).tolist()
    into = _edges_into(wiring)
    readers_of = _readers_feeding(wiring)
    waiting = [(-keys[edge], edge) for name in wiring.outputs for edge in into[name]]
    heapq.heapify(waiting)
    chosen: list[int] = []
    reached = set(wiring.outputs)
    while waiting and len(chosen) < n:
        _, edge = heapq.heappop(waiting)
        chosen.append(edge)
        for reader in readers_of.get(wiring.edges[edge].writer, ()):
            if reader not in reached:
                reached.add(reader)
                for further in into[reader]:
                    heapq.heappush(waiting, (-keys[further], further))
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[chosen] = True
    how = {"rule": "greedy", "n": n, "signed": signed, "kept": len(chosen)}
    return Circuit(scores.edges, kept, scores, how)


def _edges_into(wiring: Wiring) -> dict[str, list[int]]:
    into: dict[str, list[int]] = {reader.name: [] for reader in wiring.readers}
    for at, edge in enumerate(wiring.edges):
        into[edge.reader].append(at)
    return into


def _readers_feeding(wiring: Wiring) -> dict[str, list[str]]:
    """Writer -> the readers it is computed from."""
    found: dict[str, list[str]] = {}
    for reader, writers in wiring.feeds.items():
        for writer in writers:
            found.setdefault(writer, []).append(reader)
    return found


def _require_wiring(wiring: Wiring, scores: Scores) -> None:
    if scores.edges != wiring.edges.names:
        raise CircuitError(
            "the scores belong to another wiring",
            [f"they are of {len(scores):,} edges, this wiring has {len(wiring.edges):,}; or their names differ"],
        )
