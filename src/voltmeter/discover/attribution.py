"""Edge attribution patching."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.method import Method, State, register, with_gradient
from voltmeter.discover.question import Question, reduced
from voltmeter.errors import MetricError
from voltmeter.run.run import attribute
from voltmeter.task.metric import KL


@register
@dataclass(frozen=True)
class Eap(Method):
    """EAP: the gradient of the metric with respect to every edge's keep, at keep = 1, averaged over train pairs.

    Equal to (out_s - fill_s) · d metric / d x_r, the first-order estimate of what cutting the edge costs. Costs one
    forward and one backward per batch, and a forward for resample fills. Source: Syed et al. 2310.10348. No settings.
    """

    name: ClassVar[str] = "eap"

    def steps(self, question: Question) -> int:
        return question.n_batches

    def start(self, question: Question) -> State:
        if question.task.metric == KL:
            raise MetricError(
                "eap takes the gradient at the full model, where kl is at its best: it is zero for every edge",
                mend="use logit-difference or log-probability, or another method",
            )
        return {"total": torch.zeros(question.n_edges, dtype=torch.float64)}

    def step(self, question: Question, state: State, number: int) -> State:
        batch = question.batch(number)
        metric = question.task.metric
        full = question.full_answers(batch) if "full" in metric.needs else None

        def score(outputs: Any) -> Tensor:
            values = metric(reduced(outputs, batch.pairs, metric), batch.pairs, full=full)
            return with_gradient(values.sum(), metric.name, self.name)

        gradient, _ = attribute(question.wiring, batch.clean, batch.fill, batch.corrupted, score)
        return {"total": state["total"] + gradient}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["total"] / len(question.task.train)
