"""AtP*: attribution patching without its two blind spots, saturated attention and effects that cancel."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from voltmeter.discover.attribution import AtFullModel, layers_of, summed_metric
from voltmeter.discover.learning import require
from voltmeter.discover.method import register
from voltmeter.discover.question import Batch, Question
from voltmeter.errors import VoltmeterError
from voltmeter.run.heads import changes_of_heads
from voltmeter.run.points import Gradients, plain_point
from voltmeter.wiring.wiring import Wiring

Score = Float64[Tensor, "gradient example edge"]


@final
@register
@dataclass(frozen=True)
class AtPStar(AtFullModel):
    """AtP*: the absolute EAP score of each example, averaged; queries and keys exact, and once without each layer.

    ``qk_fix``: of an edge into a head's query or key, the change of what the head *writes* when that edge is cut, its
    softmax made anew, times the metric's gradient with respect to what it writes. The gradient through a saturated
    softmax is near zero though cutting the edge moves it far. (A key/value head of grouped-query attention: summed over
    the heads that share it.)

    ``grad_drop``: the mean, over layers, of the absolute score when no gradient passes through that layer. Direct and
    indirect effects that cancel in the whole gradient do not without the layer that carries the indirect one. A layer
    is a block, attention and MLP together (``layers_of``). The reader's own layer is left out, without it the score is
    zero: this is the paper's 1/(L - 1). Where there is no other layer the whole gradient is taken.

    Costs per batch one forward, one backward and one more for each layer (with ``grad_drop``), and with ``qk_fix`` 2W
    forwards, W the most writers before any head (``run/heads.py``: one run cuts an edge of every head in every layer).
    Memory: gradients of every head's output for every layer dropped; ``max_rows`` bounds the rows of those forwards.
    Affordable over heads; over neurons with ``qk_fix=False``. Source: Kramár et al. 2403.00745, equations 5-11 (for
    nodes; here for edges). Scores are magnitudes.
    """

    name: ClassVar[str] = "atp*"
    sign: ClassVar[str] = "magnitude: how much cutting the edge changes the metric, either way"

    qk_fix: bool = True
    grad_drop: bool = True
    max_rows: int = 256

    def __post_init__(self) -> None:
        require(self.name, {"max_rows": (self.max_rows, "a whole number from 1", self.max_rows >= 1)})

    def of_batch(self, question: Question, batch: Batch) -> Float64[Tensor, "edge"]:
        wiring = question.wiring
        score = summed_metric(question, batch, self.name)
        heads = frozenset(w.number for w in wiring.writers if w.kind == "head") if self.qk_fix else frozenset()
        point, value = plain_point(wiring, batch.clean, batch.fill, score, rows=len(batch.pairs), wanted=heads)
        drops = readers_of_layers(wiring) if self.grad_drop else []
        scores, gradients = _backward(point, value, [frozenset(), *drops])
        if self.qk_fix:
            scores = self._with_queries_and_keys(wiring, batch, point, scores, gradients)
        return mean_without_own(wiring, scores.abs(), drops).sum(0)

    def _with_queries_and_keys(
        self, wiring: Wiring, batch: Batch, point: Gradients, scores: Score, gradients: dict[int, Tensor]
    ) -> Score:
        """The scores, those of edges into queries and keys exact up to what the head writes."""
        made = scores.clone()
        for kind in ("q", "k"):
            readers = [r for r in wiring.readers if r.kind == kind]
            numbers = torch.tensor([r.number for r in readers], dtype=torch.long)
            made[..., torch.isin(wiring.edges.reader_numbers, numbers)] = 0
            for cuts, changes in changes_of_heads(wiring, batch.clean, point.deltas, kind, self.max_rows):
                for reader in readers:
                    mine = [at for at, cut in enumerate(cuts) if reader.number in cut]
                    edges = [wiring.edges.starts[reader.number] + cuts[at][reader.number] for at in mine]
                    for head in (wiring.writer(name).number for name in reader.feeds):
                        if mine and head in gradients:  # else nothing reads what it writes
                            made[..., edges] += _products(gradients[head], changes[head][mine], len(batch.pairs))
        return made


def readers_of_layers(wiring: Wiring) -> list[frozenset[int]]:
    """The numbers of the readers of each layer. Raises VoltmeterError where two layers read in one call."""
    layers = layers_of(wiring)
    made = [frozenset(r.number for r in wiring.readers if r.component in layer) for layer in layers]
    torn = [
        site.call.place
        for site in wiring.plan.sites
        for layer in made
        if site.call is not None and 0 < len(layer & (here := {r.reader for r in site.readings})) < len(here)
    ]
    if torn:
        raise VoltmeterError(
            "atp* cannot drop the gradient of one layer alone", torn, "two layers read in one call; use grad_drop=False"
        )
    return made


def _backward(point: Gradients, value: Tensor, drops: list[frozenset[int]]) -> tuple[Score, dict[int, Tensor]]:
    """One backward pass for each set of readers dropped: scores, and head -> gradients [drop, *stream shape]."""
    scores, gradients = [], []
    for at, dropped in enumerate(drops):
        point.forget()
        point.dropped = dropped
        value.backward(retain_graph=at + 1 < len(drops))
        scores.append(point.total)
        gradients.append(point.out_gradients)
    return torch.stack(scores), {head: torch.stack([g[head] for g in gradients]) for head in gradients[0]}


def mean_without_own(wiring: Wiring, scores: Score, drops: list[frozenset[int]]) -> Float64[Tensor, "example edge"]:
    """The mean over the dropped layers that are not the reader's own; ``scores[0]``, with none dropped, if all are."""
    if not drops:
        return scores[0]
    readers = wiring.edges.reader_numbers
    other = torch.stack([~torch.isin(readers, torch.tensor(sorted(d))) for d in drops]).double()
    count = other.sum(0)
    mean = (scores[1:] * other[:, None]).sum(0) / count.clamp(min=1)
    return torch.where(count > 0, mean, scores[0])


def _products(gradients: Tensor, changes: Tensor, examples: int) -> Float64[Tensor, "gradient example cut"]:
    """gradient · change, summed over all but the examples."""
    left = gradients.reshape(len(gradients), examples, -1)
    right = changes.reshape(len(changes), examples, -1).to(left.dtype)
    return torch.einsum("gem,cem->gec", left, right).double().cpu()
