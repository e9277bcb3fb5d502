"""Edge attribution patching, and what the methods that follow gradients share."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from voltmeter.discover.method import Method, State, register, with_gradient
from voltmeter.discover.question import Batch, Question, reduced
from voltmeter.errors import MetricError
from voltmeter.run.run import attribute
from voltmeter.task.metric import KL
from voltmeter.wiring.wiring import Wiring


def refuse_kl(question: Question, method: str) -> None:
    """Raises MetricError where the metric is KL, whose gradient at the full model is zero."""
    if question.task.metric == KL:
        raise MetricError(
            f"{method} takes the gradient at the full model, where kl is at its best: it is zero for every edge",
            mend="use logit-difference or log-probability, or another method",
        )


def summed_metric(question: Question, batch: Batch, method: str) -> Callable[[Any], Tensor]:
    """What the model returned -> the metric summed over the batch. It raises MetricError where that has no gradient."""
    metric = question.task.metric
    full = question.full_answers(batch) if "full" in metric.needs else None

    def score(outputs: Any) -> Tensor:
        values = metric(reduced(outputs, batch.pairs, metric), batch.pairs, full=full)
        return with_gradient(values.sum(), metric.name, method)

    return score


def layers_of(wiring: Wiring) -> tuple[frozenset[str], ...]:
    """The components of each layer, in order of reading.

    A layer is what stands under one numbered module (``transformer.h.3``, ``layer1.0``): attention and MLP together. A
    component outside of any is a layer of its own; inputs and outputs belong to none.
    """
    layers: dict[str, set[str]] = {}
    for reader in wiring.readers:
        if reader.feeds:
            layers.setdefault(_numbered(reader.module) or reader.component, set()).add(reader.component)
    return tuple(frozenset(components) for components in layers.values())


def _numbered(path: str) -> str | None:
    """``path`` up to its first number."""
    names = path.split(".")
    numbers = [at for at, name in enumerate(names) if name.isdigit()]
    return ".".join(names[: numbers[0] + 1]) if numbers else None


@dataclass(frozen=True)
class AtFullModel(Method):
    """A method that looks at the full model once for each batch, and averages what it finds over the train pairs."""

    @abstractmethod
    def of_batch(self, question: Question, batch: Batch) -> Float64[Tensor, "edge"]:
        """The scores of a batch, summed over its pairs."""

    def steps(self, question: Question) -> int:
        return question.n_batches

    def start(self, question: Question) -> State:
        refuse_kl(question, self.name)
        return {"total": torch.zeros(question.n_edges, dtype=torch.float64)}

    def step(self, question: Question, state: State, number: int) -> State:
        return {"total": state["total"] + self.of_batch(question, question.batch(number))}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["total"] / len(question.task.train)


@final
@register
@dataclass(frozen=True)
class Eap(AtFullModel):
    """EAP: the gradient of the metric with respect to every edge's keep, at keep = 1, averaged over train pairs.

    Equal to (out_s - fill_s) · d metric / d x_r, the first-order estimate of what cutting the edge costs. Costs one
    forward and one backward per batch, and a forward for resample fills. Source: Syed et al. 2310.10348. No settings.
    """

    name: ClassVar[str] = "eap"

    def of_batch(self, question: Question, batch: Batch) -> Float64[Tensor, "edge"]:
        score = summed_metric(question, batch, self.name)
        gradient, _ = attribute(question.wiring, batch.clean, batch.fill, batch.corrupted, score)
        return gradient
