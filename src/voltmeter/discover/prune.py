"""Exact pruning: from scores to a circuit that suffices and is 1-minimal (no single kept edge can be cut).

    start    the smallest prefix of the edges, best first, that was found to suffice
    lower    edge by edge, worst first: cut it if what is left still suffices
    stop     when one whole round has cut nothing

The scores only say where to begin and in which order to try: whatever they are, the answer suffices and is 1-minimal,
and both are judged once more at the end. Good scores make the prefix short, and where several circuits are 1-minimal
they choose among them.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool
from torch import Tensor

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.scores import Scores
from voltmeter.discover.criteria import Counted, Criterion
from voltmeter.errors import CircuitError

_WAYS = 8  # sizes judged at once between two


def prune(scores: Scores, suffices: Criterion, *, signed: bool = False, chunk: int = 32) -> Circuit:
    """A sufficient circuit of which no single edge can be cut, found in the order of ``scores``.

    The prefix begins at the first sufficient size of a geometric grid and is narrowed between it and the last size that
    was not; where sufficiency does not grow with size, a smaller one may exist. Edges are then decided one after the
    other, exactly as if each were tried alone; up to ``chunk`` of them are judged at once under a guess of what comes
    out, and those behind a wrong guess are judged again.

    ``circuit.how`` tells the prefix's size, how many circuits were ``judged``, and whether nothing kept suffices
    (``empty_suffices``): then the circuit is empty, and the criterion asks for nothing. Costs about ten circuits for
    the prefix and from 2 to 4 for each of its edges. Raises CircuitError if the full model does not suffice, and if the
    criterion says two things of one circuit.
    """
    judge = Counted(suffices, chunk)
    order = scores.order(signed)
    size = _smallest_prefix(judge, order)
    kept = _prefix(order, size)
    if size:
        kept = _one_minimal(judge, kept, order.flip(0))
    how = {
        "rule": "pruned",
        "criterion": str(suffices),
        "signed": signed,
        "prefix": size,
        "judged": judge.judged,
        "empty_suffices": size == 0,
    }
    return Circuit(scores.edges, kept, scores, how)


def is_one_minimal(suffices: Criterion, circuit: Circuit, chunk: int = 32) -> bool:
    """Whether a circuit suffices and none of its edges can be cut: judges it, and it without each edge."""
    judge = Counted(suffices, chunk)
    edges = circuit.kept.nonzero().flatten().tolist()
    return judge(circuit.kept[None]) == [True] and not any(judge(_singles(circuit.kept, edges)))


# The prefix ------------------------------------------------------------------------------------------------------


def _prefix(order: Tensor, size: int) -> Bool[Tensor, "edge"]:
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:size]] = True
    return kept


def _smallest_prefix(judge: Counted, order: Tensor) -> int:
    """The first sufficient size of the grid, then narrowed between it and the size before."""
    n = len(order)
    full, nothing = judge(torch.stack([_prefix(order, n), _prefix(order, 0)]))
    if not full:
        raise CircuitError(
            "the full model, with every edge kept, does not satisfy the criterion",
            [f"criterion: {judge.criterion}"],
            "a criterion compares with the full model: give it more tolerance, or a lower threshold",
        )
    if nothing:
        return 0
    low, high = 0, n  # low does not suffice, high does
    for sizes in _grid(n):
        answers = judge(torch.stack([_prefix(order, size) for size in sizes]))
        if True in answers:
            first = answers.index(True)
            low, high = ([low, *sizes])[first], sizes[first]
            break
        low = sizes[-1]
    while high - low > 1:
        sizes = sorted({low + (high - low) * part // _WAYS for part in range(1, _WAYS)} - {low})
        answers = judge(torch.stack([_prefix(order, size) for size in sizes]))
        first = answers.index(True) if True in answers else len(sizes)
        low, high = ([low, *sizes])[first], ([*sizes, high])[first]
    return high


def _grid(n: int) -> Iterator[list[int]]:
    """Sizes below ``n``, each about 1.4 times the one before, a few at a time."""
    sizes = [size for power in range(2 * n.bit_length() + 1) if (size := round(2 ** (power / 2))) < n]
    sizes = sorted(set(sizes))
    return (sizes[at : at + 4] for at in range(0, len(sizes), 4))


# One edge after the other ----------------------------------------------------------------------------------------


def _one_minimal(judge: Counted, kept: Bool[Tensor, "edge"], worst_first: Tensor) -> Bool[Tensor, "edge"]:
    """Rounds over the kept edges, until one has cut nothing."""
    while True:
        edges = [edge for edge in worst_first.tolist() if kept[edge]]
        lowered = _round(judge, kept, edges)
        if torch.equal(lowered, kept):
            if not judge(kept[None])[0]:
                raise CircuitError(
                    f"the criterion first accepted a circuit of {int(kept.sum()):,} edges, and then refused it",
                    [f"criterion: {judge.criterion}"],
                    "a criterion must say the same of a circuit every time: no sampling, no changing data",
                )
            return kept
        kept = lowered


def _round(judge: Counted, kept: Bool[Tensor, "edge"], edges: list[int]) -> Bool[Tensor, "edge"]:
    """Each edge tried once: cut where what is left still suffices.

    The guess is that the next edges fare as the last one did. If it could be cut: the circuits judged lack one more
    edge each, and hold up to the first that does not suffice. If not: each lacks one edge, up to the first that does.
    """
    kept, at, width, cutting = kept.clone(), 0, 1, False
    while at < len(edges):
        tried = edges[at : at + width]
        answers = judge(_running(kept, tried) if cutting else _singles(kept, tried))
        agreed = answers.index(not cutting) if (not cutting) in answers else len(tried)
        if cutting:
            kept[tried[:agreed]] = False
        if agreed == len(tried):
            at, width = at + agreed, min(2 * width, judge.chunk)
        else:  # the first that fared otherwise is decided too
            if not cutting:
                kept[tried[agreed]] = False
            at, width, cutting = at + agreed + 1, max(1, agreed), not cutting
    return kept


def _singles(kept: Bool[Tensor, "edge"], edges: list[int]) -> Bool[Tensor, "circuit edge"]:
    """The circuit without each of the edges."""
    rows = kept.repeat(len(edges), 1)
    rows[torch.arange(len(edges)), edges] = False
    return rows


def _running(kept: Bool[Tensor, "edge"], edges: list[int]) -> Bool[Tensor, "circuit edge"]:
    """The circuit without the first edge, without the first two, and so on."""
    rows = kept.repeat(len(edges), 1)
    for at, edge in enumerate(edges):
        rows[at:, edge] = False
    return rows
