"""Many circuits tried on batches of pairs, each run from where it differs from what they share."""

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
from voltmeter.run.watch import outs_of
from voltmeter.task.metric import Metric, logits_at_answer
from voltmeter.task.pairs import Pairs
from voltmeter.wiring.inputs import call, expand_rows
from voltmeter.wiring.wiring import Wiring

_ROWS = 512  # of all circuits of a run: where time per circuit and row is least, or nearly, on models of all sizes
_MOST = 64
_ROOM = 1 << 30  # bytes of what writers write, in the circuits of a run or in the batches that are held ready


class Trials:
    """A batch on which circuits are tried, up to ``circuits`` in a run (None: as many as are worth it).

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
        circuits = _worth_it(self.wiring, self.batch) if self._asked is None else self._asked
        return Prefix(self.wiring, self.batch.clean, self.batch.fill, circuits, self._keep, late)

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


class Means:
    """The mean over the first ``count`` batches of train pairs, of circuits tried up to ``circuits`` at a time.

    Batches are held ready for a next trial as long as that takes up to a gigabyte; those past it are made anew each
    time and run whole, which costs more and gives the same up to rounding.
    """

    def __init__(self, question: Question, metric: Metric, count: int, circuits: int) -> None:
        self.question, self.metric, self.count, self.circuits = question, metric, count, circuits
        # About what is held of each: the writers' deltas, and of each circuit less than those.
        self.ready = max(1, min(count, _ROOM // ((1 + circuits) * _written(question.wiring, question.batch(0)))))

    @cached_property
    def full(self) -> float:
        """The full model's."""
        return float(torch.cat([each.full for each in self._each()]).mean())

    def alone(self, keep: Float[Tensor, "edge"]) -> float:
        """One circuit's, by runs of its own."""
        return float(torch.cat([each.alone(keep) for each in self._each()]).mean())

    def values(self, keep: Float[Tensor, "circuit edge"]) -> Float64[Tensor, "circuit"]:
        """Those of circuits tried together."""
        made = [
            each.values(keep) if number < self.ready else torch.stack([each.alone(one) for one in keep])
            for number, each in enumerate(self._each())
        ]
        return torch.cat(made, 1).mean(1)

    def _each(self) -> Iterator[Trials]:
        for number in range(self.count):
            if number < self.ready:
                yield trials_on(self.question, self.metric, number, self.circuits, self.ready)
            else:
                yield Trials(self.question.wiring, self.question.batch(number), self.metric, self.circuits)


def _worth_it(wiring: Wiring, batch: Batch) -> int:
    """How many circuits at a time: fewer cost more each; more do not fit the processor's caches, or nowhere."""
    return max(1, min(_MOST, _ROWS // len(batch.pairs), _ROOM // _written(wiring, batch)))


def _written(wiring: Wiring, batch: Batch) -> int:
    """Bytes of all that writers write of a batch. Costs a forward."""
    streams = outs_of(wiring, batch.clean).streams
    return sum(t.numel() * t.element_size() for t in streams if t is not None)


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
        for old in made[: max(0, len(made) - kept + 1)]:
            del question.ready[old]
        question.ready[key] = Trials(question.wiring, question.batch(number), metric, circuits)
    found: Trials = question.ready[key]
    return found


def in_chunks(count: int, size: int) -> Iterator[range]:
    """0 .. count - 1, ``size`` at a time."""
    return (range(at, min(at + size, count)) for at in range(0, count, size))
