"""Relevance patching."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.attribution import refuse_kl, summed_metric
from voltmeter.discover.method import Method, State, register
from voltmeter.discover.question import Question
from voltmeter.run.points import plain_point
from voltmeter.run.relevance import RelevanceRules


@register
@dataclass(frozen=True)
class RelP(Method):
    """RelP: EAP with the gradient replaced by the coefficient that layer-wise relevance propagation gives.

    (out_s - fill_s) · R, where R is the gradient of the metric with norms' scales held fixed, elementwise functions
    replaced by their slope from zero, and each factor of a product given half (``run/relevance.py`` says how the rules
    are found in any model's code). The forward is the model's own; what lies after the model, in the metric, is
    differentiated as usual.

    Attention is left to its gradient, as in the authors' own example for GPT-2 (LN-rule, identity rule and half rule
    alone). ``held_patterns=True`` holds its patterns fixed too; then no gradient reaches a query or a key, and their
    edges score zero.

    Costs one forward and one backward per batch, both dearer than EAP's (every norm and activation is a few calls
    more), and a forward for resample fills; affordable for all parts. Source: Jafari et al. 2508.21258, Table 1.
    """

    name: ClassVar[str] = "relp"

    held_patterns: bool = False

    def steps(self, question: Question) -> int:
        return question.n_batches

    def start(self, question: Question) -> State:
        refuse_kl(question, self.name)
        return {"total": torch.zeros(question.n_edges, dtype=torch.float64)}

    def step(self, question: Question, state: State, number: int) -> State:
        batch = question.batch(number)
        score = summed_metric(question, batch, self.name)
        rules = partial(RelevanceRules, self.held_patterns)
        point, value = plain_point(question.wiring, batch.clean, batch.fill, score, rules=rules)
        value.backward()
        return {"total": state["total"] + point.total[0]}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["total"] / len(question.task.train)
