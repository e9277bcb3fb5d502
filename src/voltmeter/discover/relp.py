"""Relevance patching."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

from jaxtyping import Float64
from torch import Tensor

from voltmeter.discover.attribution import AtFullModel, summed_metric
from voltmeter.discover.method import register
from voltmeter.discover.question import Batch, Question
from voltmeter.run.points import plain_point
from voltmeter.run.relevance import RelevanceRules


@final
@register
@dataclass(frozen=True)
class RelP(AtFullModel):
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

    def of_batch(self, question: Question, batch: Batch) -> Float64[Tensor, "edge"]:
        score = summed_metric(question, batch, self.name)
        rules = partial(RelevanceRules, self.held_patterns)
        point, value = plain_point(question.wiring, batch.clean, batch.fill, score, rules=rules)
        value.backward()
        return point.total[0]
