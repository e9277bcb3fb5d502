"""What a method must beat: random scores, and the size of what an edge carries."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from voltmeter.discover.method import Method, State, register, seeded
from voltmeter.discover.question import Batch, Question
from voltmeter.run.padding import mask_for
from voltmeter.run.watch import outs_of


@register
@dataclass(frozen=True)
class Random(Method):
    """Uniform random numbers from 0 to 1 by the question's seed, whatever the task. Costs nothing. No settings."""

    name: ClassVar[str] = "random"
    sign: ClassVar[str] = "none: random numbers"

    def steps(self, question: Question) -> int:
        return 1

    def start(self, question: Question) -> State:
        return {"scores": torch.zeros(question.n_edges)}

    def step(self, question: Question, state: State, number: int) -> State:
        return {"scores": torch.rand(question.n_edges, generator=seeded(question, number))}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["scores"]


@register
@dataclass(frozen=True)
class Magnitude(Method):
    """How far cutting an edge moves what its reader reads: the L2 norm of out_s - fill_s over all places and features,
    times the coefficient of ``s`` in what is read, averaged over train pairs.

    It looks at no metric and at nothing after the reader, so that all readers of a writer get one score (unless the
    model scales its stream on the way). Costs one forward per batch, and one for resample fills. No settings.
    """

    name: ClassVar[str] = "magnitude"
    sign: ClassVar[str] = "magnitude: how far cutting the edge moves what is read"

    def steps(self, question: Question) -> int:
        return question.n_batches

    def start(self, question: Question) -> State:
        return {"total": torch.zeros(len(question.wiring.writers), dtype=torch.float64)}

    def step(self, question: Question, state: State, number: int) -> State:
        return {"total": state["total"] + _norms(question, question.batch(number))}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        wiring = question.wiring
        scales = torch.tensor([s for r in wiring.readers for s in wiring.plan.states[r.state].scales]).abs()
        return scales * state["total"][wiring.edges.writer_numbers] / len(question.task.train)


def _norms(question: Question, batch: Batch) -> Float64[Tensor, "writer"]:
    """The L2 norm of each writer's delta, summed over the examples of a batch."""
    wiring = question.wiring
    total = torch.zeros(len(wiring.writers), dtype=torch.float64)
    outs = outs_of(wiring, batch.clean)
    for stream, members in enumerate(wiring.plan.stream_writers):
        written = outs.streams[stream]
        if written is None:
            continue
        fill = batch.fill.rows(stream, slice(None), written)
        delta = written if fill is None else written - fill
        mask = mask_for(batch.clean, outs.shapes[stream], wiring.streams[stream].name)
        delta = delta if mask is None else delta * mask
        norms = delta.reshape(len(members), len(batch.pairs), -1).norm(dim=-1).sum(1)
        total[list(members)] = norms.double().cpu()
    return total
