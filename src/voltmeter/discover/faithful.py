"""How faithful a circuit is, and the smallest circuit that is faithful enough.

    f = (m(circuit) - m(nothing kept)) / (m(full) - m(nothing kept))

with m the mean over pairs, unclipped; beside it the median and the worst decile of the per-pair figure, and
KL(full || circuit) as a share of KL(full || nothing kept). "Faithful at t" means t <= f <= 2 - t and KL share <= 1 - t.
Intervals bootstrap over the pairs' groups.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.scores import Scores
from voltmeter.discover.intervals import Groups, interval
from voltmeter.discover.question import Batch, cut_answers, has_logits, make_batch, plain_answers
from voltmeter.errors import CircuitError
from voltmeter.run.fill import Fill
from voltmeter.task.metric import KL, require_not_constant
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.wiring import Wiring

_ROUNDING = 1e-5  # of f in float32, where sums are in another order; and 1 - .9 is a little less than .1 in binary


@dataclass(frozen=True)
class Faithfulness:
    """What a circuit keeps of the behaviour. Intervals are 95%, bootstrapped over groups."""

    metric: str
    full: float
    nothing_kept: float
    circuit: float
    normalised: float
    normalised_interval: tuple[float, float]
    median: float
    worst_decile: float
    kl_share: float | None  # None where the model returns no logits to compare
    kl_share_interval: tuple[float, float] | None
    n_pairs: int
    n_groups: int

    def at(self, threshold: float) -> bool:
        """Whether the circuit is faithful at ``threshold``."""
        kl = 0.0 if self.kl_share is None else self.kl_share
        within = threshold - _ROUNDING <= self.normalised <= 2 - threshold + _ROUNDING
        return within and kl <= 1 - threshold + _ROUNDING

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``--json`` prints it."""
        plain = {name: _finite(getattr(self, name)) for name in self.__dataclass_fields__ if name != "n_pairs"}
        return plain | {"n_held_out": self.n_pairs}


def _finite(value: Any) -> Any:
    """As JSON can say it: a figure that is not finite is None, and so is an interval with such an end."""
    if isinstance(value, tuple):
        return list(value) if all(math.isfinite(end) for end in value) else None
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Judge:
    """Measures circuits on one split of a task, remembering the runs that do not depend on the circuit.

    Costs three forwards per batch when made and one masked forward per batch and circuit. Raises MetricError when the
    metric says the same of the full model and of nothing kept, on every pair.
    """

    def __init__(self, wiring: Wiring, task: Task, pairs: Pairs, fill: Fill, batch_size: int = 64) -> None:
        self.wiring, self.task, self.pairs = wiring, task, pairs
        self._groups = Groups(pairs.groups)
        self.batches: list[Batch] = []
        self.answers: list[Any] = []
        for number, part in enumerate(pairs.batches(batch_size)):
            batch = make_batch(wiring, part, fill, number)
            self.batches.append(batch)
            self.answers.append(plain_answers(wiring, batch, task.metric))
        self.with_kl = has_logits(self.answers[0], self.batches[0].pairs) and task.metric.name != "kl"
        self.full = self._over(lambda batch, full: full)[0]
        nothing = torch.zeros(len(wiring.edges))
        self.none, self.none_kl = self._kept(nothing)
        require_not_constant(task.metric.name, self.full, self.none)

    def _over(self, answers_of: Any) -> tuple[Float[Tensor, "pair"], Float[Tensor, "pair"]]:
        values, divergences = [], []
        with torch.no_grad():
            for batch, full in zip(self.batches, self.answers, strict=True):
                answers = answers_of(batch, full)
                values.append(self.task.metric(answers, batch.pairs, full=full).double().cpu())
                kl = -KL(answers, batch.pairs, full=full) if self.with_kl else torch.zeros(len(batch.pairs))
                divergences.append(kl.double().cpu())
        return torch.cat(values), torch.cat(divergences)

    def _kept(self, keep: Circuit | Tensor) -> tuple[Float[Tensor, "pair"], Float[Tensor, "pair"]]:
        return self._over(lambda batch, full: cut_answers(self.wiring, batch, keep, self.task.metric))

    def measure(self, circuit: Circuit | Tensor) -> Faithfulness:
        """How faithful a circuit (or a keep [edge]) is on these pairs. Raises KeepError if it is of another wiring."""
        values, divergences = self._kept(circuit)
        return self._figures(values, divergences)

    def _figures(self, values: Tensor, divergences: Tensor) -> Faithfulness:
        each = (values - self.none) / (self.full - self.none)
        each = each[torch.isfinite(each)]
        drawn = self._groups.drawn
        f_low, f_high = interval(drawn(values - self.none) / drawn(self.full - self.none))
        kl, kl_interval = None, None
        if self.with_kl or self.task.metric.name == "kl":
            ours, theirs = (divergences, self.none_kl) if self.with_kl else (-values, -self.none)
            kl = float(ours.mean() / theirs.mean())
            kl_interval = interval(drawn(ours) / drawn(theirs))
        return Faithfulness(
            self.task.metric.name,
            float(self.full.mean()),
            float(self.none.mean()),
            float(values.mean()),
            float((values.mean() - self.none.mean()) / (self.full.mean() - self.none.mean())),
            (f_low, f_high),
            float(each.quantile(0.5)) if len(each) else math.nan,
            float(each.quantile(0.1)) if len(each) else math.nan,
            kl,
            kl_interval,
            len(self.pairs),
            self._groups.count,
        )


def smallest_faithful(
    judge: Judge,
    scores: Scores,
    threshold: float,
    signed: bool = False,
    tried: Callable[[int, Faithfulness], None] | None = None,
) -> Circuit:
    """The smallest top-k circuit that is faithful at ``threshold`` on the judge's pairs, with some to spare.

    "To spare": the lower end of f's interval, too, reaches the threshold, so that other pairs of the same kind may be
    expected to agree. Sizes are tried on a geometric grid from below, then by bisection between the last unfaithful
    and the first faithful one: about thirty masked runs over the split. Raises CircuitError for a threshold that is
    not above 0 and up to 1, and when not even all edges are faithful.
    """
    if not 0 < threshold <= 1:
        raise CircuitError(f"faithful at {threshold:g} was asked for, a number above 0 and up to 1 was expected")
    n = len(scores)
    grid = sorted({max(1, round(n ** (i / 28))) for i in range(29)} | {n})

    def enough(size: int) -> bool:
        found = judge.measure(scores.top(size, signed=signed))
        if tried is not None:
            tried(size, found)
        return found.at(threshold) and found.normalised_interval[0] >= threshold - _ROUNDING

    low, high = 0, None
    for size in grid:
        if enough(size):
            high = size
            break
        low = size
    if high is None:
        raise CircuitError(
            f"no circuit of these scores is faithful at {threshold}", [f"tried sizes up to all {n:,} edges"]
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return scores.top(high, signed=signed)
