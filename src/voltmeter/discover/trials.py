"""Many circuits tried on one batch of pairs, each run from where it differs from what they share."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.discover.question import Batch, Question, cut_answers, has_logits, plain_answers, reduced
from voltmeter.run.late import Late, late_products
from voltmeter.run.padding import with_positions
from voltmeter.run.prefix import Prefix
from voltmeter.task.metric import Metric, logits_at_answer
from voltmeter.task.pairs import Pairs
from voltmeter.wiring.inputs import call, expand_rows
from voltmeter.wiring.wiring import Wiring


class Trials:
    """A batch on which circuits are tried, up to ``circuits`` in a run (None: as many as fit the caches well).

    ``keep``: what the circuits have in common; the model is run from the first reader that differs from it. Costs about
    ten forwards when ``values`` is first asked for, and one of ``circuits`` times the batch.
    """

    def __init__(
        self,
        wiring: Wiring,
        batch: Batch,
        metric: Metric,
        circuits: int | None = None,
        keep: Float[Tensor, "edge"] | None = None,
    ) -> None:
        self.wiring, self.batch, self.metric = wiring, batch, metric
        self._asked, self._keep = circuits, keep
        self._one_full = plain_answers(wiring, batch, metric)
        self.full = metric(self._one_full, batch.pairs, full=self._one_full).double().cpu()

    @cached_property
    def _prefix(self) -> Prefix:
        """Made when it is first needed: ``alone`` does without."""
        late = _late(self.wiring, self.batch, self.metric)
        return Prefix(self.wiring, self.batch.clean, self.batch.fill, self._asked, self._keep, late)

    @cached_property
    def _pairs(self) -> Pairs:
        return _over_again(self.batch.pairs, self._prefix.circuits)

    @cached_property
    def _full(self) -> Any:
        return expand_rows(self._one_full, self._prefix.circuits) if "full" in self.metric.needs else None

    def values(self, keep: Float[Tensor, "circuit edge"]) -> Float64[Tensor, "circuit pair"]:
        """The metric of every pair under every circuit; any number of circuits."""
        return torch.cat([self._values(part) for part in keep.split(self._prefix.circuits)])

    def _values(self, keep: Tensor) -> Tensor:
        count, circuits = len(keep), self._prefix.circuits
        padded = torch.cat([keep, keep[-1:].expand(circuits - count, -1)])  # one size, whatever is tried
        outputs = self._prefix.run(padded)
        flat = tree_map(lambda leaf: leaf.flatten(0, 1) if isinstance(leaf, Tensor) else leaf, outputs)
        values = self.metric(reduced(flat, self._pairs, self.metric), self._pairs, full=self._full)
        return values.double().cpu().view(circuits, -1)[:count]

    def alone(self, keep: Float[Tensor, "edge"]) -> Float64[Tensor, "pair"]:
        """The metric of every pair under one circuit, by a plain cut run: nothing is shared or batched."""
        with torch.no_grad():
            answers = cut_answers(self.wiring, self.batch, keep, self.metric)
            return self.metric(answers, self.batch.pairs, full=self._one_full).double().cpu()


def _over_again(pairs: Pairs, times: int) -> Pairs:
    return pairs.batch(list(range(len(pairs))) * times)


def _late(wiring: Wiring, batch: Batch, metric: Metric) -> Late | None:
    """Where the answer is read, and the products that matter nowhere else; None where it is not one place."""
    inputs, pairs = expand_rows(with_positions(wiring.model, batch.clean), 2), _over_again(batch.pairs, 2)
    with torch.no_grad():
        outputs = call(wiring.model, inputs)
    if not metric.at_answer or pairs.is_sequence or not has_logits(outputs, pairs) or bool((pairs.position < 0).any()):
        return None
    positions = pairs.position.to(logits_at_answer(outputs, pairs).device)
    found = late_products(wiring.model, inputs, positions, lambda outputs: logits_at_answer(outputs, pairs))
    return Late(positions[: len(batch.pairs)], found.lengths)


def trials_on(question: Question, metric: Metric, number: int, circuits: int | None = None, kept: int = 1) -> Trials:
    """A batch of the train pairs to try circuits on. The last ``kept`` made stay ready for the next step."""
    key = ("trials", metric.name, number, circuits)
    if key not in question.ready:
        made = [each for each in question.ready if each[0] == "trials"]
        for old in made[: len(made) - kept + 1]:
            del question.ready[old]
        question.ready[key] = Trials(question.wiring, question.batch(number), metric, circuits)
    found: Trials = question.ready[key]
    return found


def in_chunks(count: int, size: int) -> Iterator[range]:
    """0 .. count - 1, ``size`` at a time."""
    return (range(at, min(at + size, count)) for at in range(0, count, size))
