"""Does one number for all positions hide what single positions do?

An edge that raises the metric at one position and lowers it at another scores nothing when positions are merged, though
cutting it at either of them matters. Scores are EAP's (2310.10348), kept apart by the reading position; that merging
cancels them is the observation of position-aware discovery (PEAP, 2502.04577).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from voltmeter.check.case import Case
from voltmeter.check.check import left_out
from voltmeter.check.cuts import no_interval, percent
from voltmeter.check.finding import Finding, Picture, within
from voltmeter.check.pieces import listed
from voltmeter.check.registry import register
from voltmeter.discover.attribution import refuse_kl, summed_metric
from voltmeter.discover.intervals import RESAMPLES, Groups, interval
from voltmeter.discover.question import Batch, make_batch
from voltmeter.errors import KeepError, MetricError
from voltmeter.run.record import record
from voltmeter.run.run import run
from voltmeter.task.pairs import Pairs
from voltmeter.wiring.inputs import call, device_of

HIDDEN = 0.05  # of the best edges: one in twenty, what is lost by chance when other pairs are taken
CANCELS = 0.5  # 1 - |sum| / sum of sizes: more than half of what an edge does is undone elsewhere
_NUMBERS = 1 << 24  # of a keep by example, position and edge: 64 MiB in float32, and as much for its gradient
_HELD = 1 << 27  # scores of all pairs: 512 MiB; of a model with more edges fewer pairs are looked at
_CANDIDATES = 4  # times the circuit's size: edges that may come among the best in a bootstrap draw
_NO_TRAIN_BATCH = -1  # a number that no batch of the question has, which remembers by number what the full model says
_NOTHING = 1e-5  # of the largest: what float32 leaves of sums that cancel
_ROWS, _SHOWN = 200, 20  # edges in the details, and in the picture


@register("positions", "does merging positions hide edges, by cancellation between them?")
def positions(case: Case) -> Finding:
    """The best edges by what they do at single positions, against the best when positions are merged.

    Both lists are as long as the circuit. It fails where more than ``HIDDEN`` of the first are not in the second and
    more than half of what they do cancels between positions; it cannot tell where the model has no positions. Scores
    are averages over at most 64 held-out pairs at the same position: what stands there should play the same part in
    all of them. Costs a forward and a backward with a keep for each position.
    """
    try:
        pairs = _pairs(case)
        found = Scored(case, pairs, _by_position(case, pairs))
    except (KeepError, MetricError) as error:
        return left_out("positions", f"there is nothing to compare: {error.problem}", _AGAINST)
    why = no_interval(case.few) or ("" if found.size else "the circuit is empty: no list is as short as that")
    if why:
        return left_out("positions", why, _AGAINST)
    low, high = found.interval()
    return Finding(
        "positions",
        within(low, high, at_most=HIDDEN),
        found.figure,
        low,
        high,
        _AGAINST,
        _says(case, found, low, high),
        tuple(_row(case, found, edge) for edge in found.most_hidden()[:_ROWS]),
        {"pairs": len(pairs), "groups": len(set(pairs.groups)), "positions": found.scores.shape[1]},
        _picture(case, found),
    )


_AGAINST = f"the best edges when positions are merged; {HIDDEN:.0%} of the others may be hidden by cancellation"


def _pairs(case: Case) -> Pairs:
    """As many of the few as there is room for. Raises KeepError where the model has no positions."""
    pairs = case.few.pairs
    length = max(_length(case, batch) for batch in case.few.judge.batches)
    return pairs.batch(range(min(len(pairs), max(2, _HELD // (length * len(case.keep))))))


def _by_position(case: Case, pairs: Pairs) -> Float[Tensor, "pair position edge"]:
    """d metric / d keep at 1, of every pair and reading position. Raises KeepError where there are no positions."""
    refuse_kl(case.question, "the effect of single positions")
    longest = max(_length(case, batch) for batch in case.few.judge.batches)
    parts = []
    for some in pairs.batches(max(1, _NUMBERS // (longest * len(case.keep)))):
        batch = make_batch(case.wiring, some, case.question.fill, _NO_TRAIN_BATCH)
        parts.append(_gradient(case, batch, _length(case, batch)))
    return torch.cat([pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


def _length(case: Case, batch: Batch) -> int:
    """How many positions the model's streams have on a batch. Raises KeepError where they have no such axis."""
    if batch.pairs.n_positions is not None:
        return batch.pairs.n_positions
    first = case.wiring.writers[0].name
    with record(case.wiring, [first]) as seen, torch.no_grad():
        call(case.wiring.model, batch.clean)
    if seen[first].dim() != 3:
        raise KeepError("the model has no positions")
    return seen[first].shape[1]


def _gradient(case: Case, batch: Batch, length: int) -> Float[Tensor, "pair position edge"]:
    shape = (len(batch.pairs), length, len(case.keep))
    keep = torch.ones(shape, device=device_of(case.wiring.model), requires_grad=True)
    score = summed_metric(case.question, batch, "the effect of single positions")
    with torch.enable_grad():
        outputs = run(case.wiring, batch.clean, keep, batch.fill, batch.corrupted, axes="example position edge")
        (gradient,) = torch.autograd.grad(score(outputs), keep)
    return gradient.cpu()


@final
@dataclass(frozen=True, eq=False)
class Scored:
    """Every pair's scores by position, and what becomes of them when positions are merged."""

    case: Case
    pairs: Pairs
    scores: Float[Tensor, "pair position edge"]

    @property
    def size(self) -> int:
        """How many edges are the best: as many as the circuit has."""
        return len(self.case.circuit)

    @cached_property
    def by_position(self) -> Float[Tensor, "position edge"]:
        return self.scores.double().mean(0)

    @cached_property
    def apart(self) -> Float[Tensor, "edge"]:
        """What an edge does at single positions, all added up without their signs."""
        return self.by_position.abs().sum(0)

    @cached_property
    def merged(self) -> Float[Tensor, "edge"]:
        return self.by_position.sum(0).abs()

    @cached_property
    def hidden(self) -> Bool[Tensor, "edge"]:
        return hidden(self.apart[None], self.merged[None], self.size)[0]

    @property
    def figure(self) -> float:
        """The share of the best edges that merging hides."""
        return int(self.hidden.sum()) / max(1, self.size)

    def interval(self) -> tuple[float, float]:
        """95%, bootstrapped over groups, among the edges that may be one of the best."""
        many = min(len(self.apart), _CANDIDATES * self.size)
        among = torch.cat([self.apart.topk(many).indices, self.merged.topk(many).indices]).unique()
        groups = Groups(self.pairs.groups)
        at_once = max(1, _NUMBERS // (RESAMPLES * self.scores.shape[1]))
        apart, merged = [], []
        for some in among.split(at_once):
            drawn = groups.drawn(self.scores[:, :, some].permute(2, 1, 0).double())  # [edge, position, resample]
            apart.append(drawn.abs().sum(1))
            merged.append(drawn.sum(1).abs())
        shares = hidden(torch.cat(apart).T, torch.cat(merged).T, self.size).double().sum(1) / self.size
        return interval(shares)

    def cancelled(self, edge: int) -> float:
        """1 - |sum| / sum of sizes: 0 where positions agree, 1 where they undo each other."""
        return float(1 - self.merged[edge] / self.apart[edge].clamp(min=torch.finfo(torch.float64).tiny))

    def most_hidden(self) -> list[int]:
        """The best edges by position, hidden ones first, then by what they do."""
        best = self.apart.topk(self.size).indices.tolist()
        return sorted(best, key=lambda edge: (not bool(self.hidden[edge]), -float(self.apart[edge])))


def hidden(apart: Float[Tensor, "row edge"], merged: Float[Tensor, "row edge"], size: int) -> Bool[Tensor, "row edge"]:
    """In each row, those of the ``size`` best by position that are not of the best merged, because they cancel.

    Of edges that do equally much by position, but for rounding, those that cancel least are the best.
    """
    if size >= apart.shape[1]:
        return torch.zeros_like(apart, dtype=torch.bool)
    rounded = merged.masked_fill(merged <= _NOTHING * apart.amax(1, keepdim=True), 0)
    is_listed = rounded > rounded.topk(size + 1, dim=1).values[:, -1:]  # for sure: not by the order among equals
    settled = apart + _NOTHING * merged
    best = torch.zeros_like(is_listed).scatter_(1, settled.topk(size, dim=1).indices, True)
    return best & ~is_listed & (merged < (1 - CANCELS) * apart)


# In words --------------------------------------------------------------------------------------------------------


def _says(case: Case, found: Scored, low: float, high: float) -> str:
    names = [case.circuit.edges[edge] for edge in found.most_hidden() if bool(found.hidden[edge])]
    of = f"of the {found.size:,} edges that do most at single positions"
    if not names:
        return f"none {of} is hidden when positions are merged ({percent(low)} to {percent(high)})"
    are = "is" if len(names) == 1 else "are"
    return (
        f"{len(names):,} {of} {are} hidden when positions are merged ({percent(low)} to {percent(high)}), as what they "
        f"do at one position they undo at another: {listed(names)}; at most {HIDDEN:.0%} was asked for"
    )


def _row(case: Case, found: Scored, edge: int) -> dict[str, Any]:
    at = found.by_position[:, edge]
    return {
        "edge": case.circuit.edges[edge],
        "hidden": bool(found.hidden[edge]),
        "kept": bool(case.circuit.kept[edge]),
        "merged": round(float(at.sum()), 6),
        "by_position": round(float(found.apart[edge]), 6),
        "cancelled": round(found.cancelled(edge), 4),
        "highest_at": int(at.argmax()),
        "lowest_at": int(at.argmin()),
    }


def _picture(case: Case, found: Scored) -> Picture:
    """What the edges that cancel most do at each position."""
    edges = found.most_hidden()[:_SHOWN]
    data = {
        "x": list(range(len(found.by_position))),
        "y": [case.circuit.edges[edge] for edge in edges],
        "values": [found.by_position[:, edge].tolist() for edge in edges],
    }
    return Picture("heat", "What edges do at each position", "position", "edge", data)
