"""Head importance scores for pruning, of nodes and of edges."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from voltmeter.discover.attribution import layers_of, refuse_kl, summed_metric
from voltmeter.discover.method import Method, State, register
from voltmeter.discover.question import Question
from voltmeter.errors import VoltmeterError
from voltmeter.run.points import plain_point
from voltmeter.wiring.wiring import Wiring

LEVELS = ("edge", "node")
_LEAST_NORM = 1e-6  # of a layer's scores, so that a dead layer's are not blown up; as in the ACDC paper's code


@register
@dataclass(frozen=True)
class Hisp(Method):
    """HISP: how large the metric's first-order change is, by example, when an edge (or a node) is cut.

    ``level="edge"``: |(out_s - fill_s) · d metric / d x_r|, the absolute value taken of each example before averaging.
    Source: Miller et al. 2407.08734, after Michel et al. 1905.10650.

    ``level="node"``: the same for a writer and all its readers, |(out_s - fill_s) · d metric / d out_s|, averaged and
    then divided by the L2 norm over the writers of its layer (attention and MLP of one block together). An edge gets
    the lesser of the scores of its two ends, so that the edges above a threshold are those between the nodes above it;
    a reader's score is the largest of those of the writers it feeds, and outputs are always kept. Source: the "HISP" of
    Conmy et al. 2304.14997; there a head's query, key and value are nodes of their own and the score is that of a zero
    fill, here a head is one node and the fill is the one asked for.

    Costs one forward and one backward per batch; affordable for all parts. Scores are magnitudes.
    """

    name: ClassVar[str] = "hisp"
    sign: ClassVar[str] = "magnitude: how much cutting the edge changes the metric, either way"

    level: str = "edge"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise VoltmeterError(f"hisp has no level '{self.level}'", mend=f"levels: {', '.join(LEVELS)}")

    def steps(self, question: Question) -> int:
        return question.n_batches

    def start(self, question: Question) -> State:
        refuse_kl(question, self.name)
        count = question.n_edges if self.level == "edge" else len(question.wiring.writers)
        return {"total": torch.zeros(count, dtype=torch.float64)}

    def step(self, question: Question, state: State, number: int) -> State:
        batch = question.batch(number)
        score = summed_metric(question, batch, self.name)
        point, value = plain_point(question.wiring, batch.clean, batch.fill, score, rows=len(batch.pairs))
        value.backward()
        effects = point.total if self.level == "edge" else by_writer(question.wiring, point.total)
        return {"total": state["total"] + effects.abs().sum(0)}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        mean = state["total"] / len(question.task.train)
        if self.level == "edge":
            return mean
        return between_nodes(question.wiring, normalised(question.wiring, mean))


def by_writer(wiring: Wiring, edges: Float64[Tensor, "example edge"]) -> Float64[Tensor, "example writer"]:
    """Sums over the edges of each writer: the gradient of an output is the sum of those of its readers."""
    made = edges.new_zeros(len(edges), len(wiring.writers))
    return made.index_add_(1, wiring.edges.writer_numbers, edges)


def normalised(wiring: Wiring, nodes: Float64[Tensor, "writer"]) -> Float64[Tensor, "writer"]:
    """Divided by the L2 norm over each layer; writers of no layer (inputs) are one layer together."""
    layers, made = layers_of(wiring), nodes.clone()
    for layer in (*layers, frozenset(w.component for w in wiring.writers).difference(*layers)):
        mine = [w.number for w in wiring.writers if w.component in layer]
        made[mine] = nodes[mine] / nodes[mine].norm().clamp(min=_LEAST_NORM)
    return made


def between_nodes(wiring: Wiring, nodes: Float64[Tensor, "writer"]) -> Float64[Tensor, "edge"]:
    """For each edge the lesser score of its two ends."""
    reads = nodes.new_full((len(wiring.readers),), torch.inf)
    for reader in wiring.readers:
        if reader.feeds:
            reads[reader.number] = max(nodes[wiring.writer(name).number] for name in reader.feeds)
    return torch.minimum(nodes[wiring.edges.writer_numbers], reads[wiring.edges.reader_numbers])
