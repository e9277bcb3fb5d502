"""Every edge cut alone: the oracle of all that estimates it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.learning import require
from voltmeter.discover.method import Method, State, register
from voltmeter.discover.question import Question
from voltmeter.discover.trials import in_chunks, trials_on

_EDGES_PER_STEP = 256


@register
@dataclass(frozen=True)
class Exact(Method):
    """Each edge cut alone: what the metric loses, full model minus cut, as a mean over the train pairs.

    Exact, and the oracle of attribution: no gradient, no order, no interaction. Known as edge activation patching
    ("exact edge patching" in MIB, 2504.13151). Costs less than a forward per edge and batch: nothing before the cut is
    computed again, and many edges are cut in one run. ``circuits``: how many, 0 for as many as are worth it.
    Affordable for heads on models of thousands of edges; for neurons and latents take an attribution method first.
    """

    name: ClassVar[str] = "exact"

    circuits: int = 0

    def __post_init__(self) -> None:
        require(self.name, {"circuits": (self.circuits, "a whole number from 0", self.circuits >= 0)})

    def _chunks(self, question: Question) -> list[range]:
        return list(in_chunks(question.n_edges, _EDGES_PER_STEP))

    def steps(self, question: Question) -> int:
        return question.n_batches * len(self._chunks(question))

    def start(self, question: Question) -> State:
        return {"lost": torch.zeros(question.n_edges, dtype=torch.float64)}

    def step(self, question: Question, state: State, number: int) -> State:
        chunks = self._chunks(question)
        edges = chunks[number % len(chunks)]
        trials = trials_on(question, question.task.metric, number // len(chunks), self.circuits or None)
        keep = torch.ones(len(edges), question.n_edges)
        keep[torch.arange(len(edges)), torch.tensor(edges)] = 0
        lost = state["lost"].clone()
        lost[edges.start : edges.stop] += (trials.full - trials.values(keep)).sum(1)
        return {"lost": lost}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["lost"] / len(question.task.train)
