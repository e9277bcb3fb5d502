"""Node-level subnetwork probing: masks on components, not on edges."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.masks import Probing, alpha_of
from voltmeter.discover.method import register
from voltmeter.discover.question import Question
from voltmeter.wiring.wiring import Wiring


@final
@register
@dataclass(frozen=True)
class NodeSp(Probing):
    """Node-level subnetwork probing: one mask for every component; see ``Probing`` for what is minimised.

    An edge is kept if both its ends are. What a component reads matters only through what it writes, so the mask stands
    at its writer and cuts all edges from it. An edge's score is the product of its nodes' probabilities of being kept,
    averaged over the last half of the run; a reader that feeds several writers (keys and values under grouped queries)
    counts as kept if one of them is, and one that feeds none (the output) always. ``target`` counts nodes.

    This is the handicapped form that ACDC was compared with (2304.14997 [P]): it cannot tell apart the edges between
    two nodes. It is kept to a rising price alone: no sorting, and the loss as it is. Costs what ``edge-sp`` does:
    about two forward+backward passes per step. Settings as of ``edge-sp`` before it sorted, not tuned for nodes.
    Affordable wherever a masked forward is.
    """

    name: ClassVar[str] = "node-sp"
    sign: ClassVar[str] = "positive: the probability of being kept, averaged over a rising price"

    price: float = 1.0
    spread: float = 10.0
    falling: float = 1.0
    scale: float | None = None

    def n_masks(self, question: Question) -> int:
        return len(question.wiring.writers)

    def keep(self, question: Question, masks: Float[Tensor, "example mask"]) -> Float[Tensor, "example edge"]:
        return masks[:, question.wiring.edges.writer_numbers]

    def starting(self, question: Question) -> Float[Tensor, "mask"]:
        return torch.full((self.n_masks(question),), alpha_of(self.initial))

    def of_edges(self, question: Question, kept: Float[Tensor, "mask"]) -> Float[Tensor, "edge"]:
        edges = question.wiring.edges
        return kept[edges.writer_numbers] * of_readers(question.wiring, kept)[edges.reader_numbers]


def of_readers(wiring: Wiring, kept: Float[Tensor, "writer"]) -> Float[Tensor, "reader"]:
    """P(some writer that the reader feeds is kept), from each writer's own; 1 for readers that feed none."""
    number = {writer.name: writer.number for writer in wiring.writers}
    found = [1 - torch.prod(1 - kept[[number[name] for name in reader.feeds]]) for reader in wiring.readers]
    fed = torch.tensor([bool(reader.feeds) for reader in wiring.readers])
    return torch.where(fed, torch.stack(found), torch.ones(()))
