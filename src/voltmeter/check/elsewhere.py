"""Looking for a circuit once more, outside of the one there is, and again outside of both."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voltmeter.check.case import Case
from voltmeter.check.cuts import measure_while
from voltmeter.check.few import few_train
from voltmeter.check.pieces import without
from voltmeter.discover.discretise import given, prune
from voltmeter.discover.question import cut_answers
from voltmeter.task.metric import KL

ROUNDS = 3
"""Circuits looked for. Who has found three others has seen that there is not one."""

SAME = 0.5
"""f from which edges "do it": more than half of the behaviour. Then cutting the circuit loses less than half."""

ENOUGH = 0.9
"""The share of what the whole rest does (of the full model's effect, if that is less) that a circuit in it is to do."""

EXACT = 600
"""Edges up to which each is cut by itself, and what is found is pruned until no edge can be cut. Beyond, gradients say
which edges matter, and the shortest prefix of them is taken."""

_POINTS = (0.25, 0.5, 0.75, 1.0)  # of the way from nothing kept to the rest: where a step saturates, one is flat


@final
@dataclass(frozen=True, eq=False)
class Measure:
    """f of a circuit on the held-out pairs, with its interval."""

    kept: Bool[Tensor, "edge"]
    f: float
    low: float
    high: float


@final
@dataclass(frozen=True, eq=False)
class Looked:
    """What was found outside: ``rests[0]`` is everything outside the circuit, ``rests[n]`` that without the first ``n``
    of the ``others``. ``tried``: circuits run to find them."""

    rests: tuple[Measure, ...]
    others: tuple[Measure, ...]
    tried: int


def look_again(case: Case) -> Looked:
    """The rest is measured; while it does the same, a circuit is found in it on train pairs, measured on held-out ones,
    and taken out. Costs one masked forward of the held-out pairs where the rest does not do it."""
    rest = ~case.circuit.kept
    rests, tried = [_measured(case, rest)], 0
    others: list[Measure] = []
    while rests[-1].low > SAME and len(others) < ROUNDS and not case.clock.over:
        search = _Search(case, rest)
        found = _measured(case, search.found())
        tried += search.tried
        if not found.low > SAME:  # of use on train pairs only; what does it on others is the rest as a whole
            found = rests[-1]
        others.append(found)
        rest = rest & ~found.kept
        rests.append(_measured(case, rest))
    return Looked(tuple(rests), tuple(others), tried)


def _measured(case: Case, kept: Bool[Tensor, "edge"]) -> Measure:
    found = case.held_out.measure(kept.float()[None])
    return Measure(kept, float(found.f[0]), *found.interval())


@final
class _Search:
    """A small circuit within ``rest``, on a few train pairs, that does nearly what the whole of it does."""

    def __init__(self, case: Case, rest: Bool[Tensor, "edge"]) -> None:
        self.case, self.rest, self.split = case, rest.float(), few_train(case)
        self.tried = 0
        self._unit = float((self.split.full - self.split.nothing).mean())
        self._level = ENOUGH * min(1.0, float(self._f(self.rest[None])[0]))

    def found(self) -> Bool[Tensor, "edge"]:
        if self._level <= 0:  # on these pairs the rest does nothing that a part of it could do
            return self.rest > 0
        exact = int(self.rest.sum()) <= EXACT
        worth = self._by_cutting() if exact else self._by_gradient()
        worth = (worth + 1e-30) * self.rest  # edges that were found before, or were given, come last
        if exact:
            return prune(given(self.case.wiring.edges, worth), self._suffice).kept & (self.rest > 0)
        return self._shortest(worth.argsort(descending=True, stable=True))

    def _f(self, keep: Float[Tensor, "circuit edge"]) -> Float[Tensor, "circuit"]:
        self.tried += len(keep)
        values = self.split.measure(keep, self.rest).values
        return (values - self.split.nothing).mean(1) / self._unit

    def _suffice(self, keep: Float[Tensor, "circuit edge"]) -> Bool[Tensor, "circuit"]:
        """Nothing kept may not: that would be no circuit."""
        keep = keep * self.rest
        return (self._f(keep) >= self._level) & (keep.sum(1) > 0)

    def _by_cutting(self) -> Float[Tensor, "edge"]:
        """|change of f| without each edge; of a rest where several do the same that is zero, and pruning decides."""
        edges = self.rest.nonzero().flatten().tolist()
        cuts = without(self.rest, [[edge] for edge in edges])
        values = measure_while(self.case.clock, self.split, cuts, self.rest).values
        self.tried += len(values)
        worth = torch.zeros(len(self.rest), dtype=torch.float64)
        whole = self.split.measure(self.rest[None]).values
        worth[edges[: len(values)]] = (values - whole).abs().mean(1)
        return worth

    def _by_gradient(self) -> Float[Tensor, "edge"]:
        """|gradient of the metric with respect to each keep|, over points on the way from nothing to the rest.

        Of KL in place of a metric that has none; without logits either, the order is that of the edges.
        """
        metric = self.case.task.metric
        total = torch.zeros(len(self.rest), dtype=torch.float64)
        for batch, full in zip(self.split.judge.batches, self.split.judge.answers, strict=True):
            for point in _POINTS:
                keep = (point * self.rest).requires_grad_()
                answers = cut_answers(self.case.wiring, batch, keep, metric)
                score = metric(answers, batch.pairs, full=full)
                if not score.requires_grad and self.split.judge.with_kl:  # a step function, such as accuracy
                    score = KL(answers, batch.pairs, full=full)
                if score.requires_grad:
                    total += torch.autograd.grad(score.sum(), keep)[0].double().cpu()
        return total.abs()

    def _shortest(self, order: Tensor) -> Bool[Tensor, "edge"]:
        """The first edges of an order: a geometric grid of sizes, then between the last two."""
        n = int(self.rest.sum())
        sizes = sorted({round(n ** (step / 16)) for step in range(17)})
        while True:
            keep = torch.stack([_first(order, size) for size in sizes])
            enough = self._f(keep.float()) >= self._level
            at = int(enough.long().argmax()) if bool(enough.any()) else len(sizes) - 1
            low, high = (sizes[at - 1] if at else 0), sizes[at]
            if high - low <= max(1, high // 20):  # to a twentieth: more decides nothing here
                return keep[at]
            sizes = sorted({low + (high - low) * part // 8 for part in range(1, 9)} - {low})


def _first(order: Tensor, size: int) -> Bool[Tensor, "edge"]:
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:size]] = True
    return kept
