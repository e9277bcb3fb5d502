"""Uniform gradient sampling, and the learned ("optimal") constants that cut edges may carry."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voltmeter.discover.constants import constants_start, constants_step, fill_from, with_constants
from voltmeter.discover.learning import adam, adam_start, common, cut_loss, require, require_objective, rising, stakes
from voltmeter.discover.method import Method, State, register, seeded, with_gradient
from voltmeter.discover.question import Question
from voltmeter.run.fill import Fixed


class Sample(NamedTuple):
    """Keeps drawn for a batch, and which of them were drawn uniformly between 0 and 1."""

    keep: Float[Tensor, "example edge"]
    between: Bool[Tensor, "example edge"]


def sample(kept: Float[Tensor, "edge"], uniform: Float[Tensor, "example edge"]) -> Sample:
    """Keeps that are uniform on (0, 1) with probability kept (1 - kept), else 1 or 0, and on average ``kept``."""
    window = kept * (1 - kept)
    place = (uniform - kept) / window + 0.5
    return Sample(1 - place.clamp(0, 1), (place > 0) & (place < 1))


def gradient(drawn: Sample, of_keep: Float[Tensor, "example edge"]) -> Float[Tensor, "edge"]:
    """The gradient of the expected loss with respect to the probabilities, from that of the batch's mean loss.

    Of an edge only the examples count in which its keep lies between 0 and 1. Over them d loss / d keep averages to
    loss(kept) - loss(cut), which is the derivative wanted: no bias from relaxing the mask.
    """
    count = drawn.between.sum(0)
    return (of_keep * drawn.between).sum(0) * len(of_keep) / count.clamp(min=1)


@final
@register
@dataclass(frozen=True)
class Ugs(Method):
    """Uniform gradient sampling (Li & Janson 2409.09951): each edge's probability of being kept, learned.

    For every example an edge is kept, cut, or (with probability p (1 - p)) somewhere between, uniformly; only from the
    last comes its gradient, which is that of the expected loss of edges kept or cut, without the bias of a relaxed
    mask. Minimised is KL(full || cut) at the answer (or minus the metric) plus a price on the expected number of edges,
    which rises as for ``edge-sp``, with its unit; an edge's score is its probability, averaged over the last half.

    ``learn_fill`` trains the constants that cut edges carry along with the probabilities ("optimal" ablation). They
    begin at the question's fill, which must be a constant (ask with ``fill="mean"``), and ``learned_fill`` returns
    them: what the scores say holds under that fill. Without it cut edges carry the question's own fill.

    Costs about two forward+backward passes per step, ``n_steps`` steps of one batch. Deterministic by seed.

    From their code [P]: the sampling, its gradient averaged over the examples drawn between, Adam at .05, the first
    probability sigmoid(1) = .73, constants from the means. Ours: the rising price (theirs: one run for each fixed
    price), one draw for each pair of a batch of 32 (theirs: 12 for each of 5), fewer steps (theirs 10,000), the
    constants' rate relative to what is written (theirs .001) and their gradient from edges cut in part too, no penalty
    on nodes, and edges that lie on no path are not taken out of a draw.
    Affordable over heads, channels and neurons (memory: pairs x edges); not over latents.
    """

    name: ClassVar[str] = "ugs"
    sign: ClassVar[str] = "positive: the probability of being kept, averaged over a rising price"

    n_steps: int = 400
    learning_rate: float = 0.05
    price: float = 1.0
    spread: float = 10.0
    objective: str = "kl"
    initial: float = 0.73
    learn_fill: bool = False
    fill_rate: float = 0.01

    def __post_init__(self) -> None:
        require_objective(self.name, self.objective)
        wanted = common(self.n_steps, self.learning_rate, self.price, self.spread, self.initial)
        rate = {"fill_rate": (self.fill_rate, "a number above 0", 0 < self.fill_rate < math.inf)}
        require(self.name, {**wanted, **rate})

    def steps(self, question: Question) -> int:
        return self.n_steps

    def start(self, question: Question) -> State:
        logit = torch.full((question.n_edges,), math.log(self.initial / (1 - self.initial)))
        unit = stakes(question, question.batch(0), self.objective) / question.n_edges
        state = adam_start("logit", logit) | {"total": torch.zeros_like(logit), "unit": unit}
        return state | constants_start(question) if self.learn_fill else state

    def step(self, question: Question, state: State, number: int) -> State:
        kept = state["logit"].sigmoid()
        batch = question.batch(number)
        constants, batch = with_constants(question, state, batch) if self.learn_fill else ({}, batch)
        drawn = sample(kept, torch.rand((len(batch.pairs), len(kept)), generator=seeded(question, number)))
        keep = drawn.keep.requires_grad_()
        with_gradient(cut_loss(question, batch, keep, self.objective), question.task.metric.name, self.name).backward()
        assert keep.grad is not None
        price = rising(self.price, self.spread, number / max(1, self.n_steps - 1)) * state["unit"]
        slope = (gradient(drawn, keep.grad) + price) * kept * (1 - kept)
        learned = adam(state, "logit", slope, number, self.learning_rate)
        late = number >= self.n_steps // 2
        total = state["total"] + learned["logit"].sigmoid() * late
        return {**state, **learned, **constants_step(state, constants, number, self.fill_rate), "total": total}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["total"] / (self.n_steps - self.n_steps // 2)

    @property
    def learns_fill(self) -> bool:
        return self.learn_fill

    def learned_fill(self, question: Question, state: State) -> Fixed | None:
        if not self.learn_fill:
            return None
        how = f"trained with ugs for {self.n_steps} steps on the train pairs of {question.task.name}"
        return fill_from(question, state, f"{how} (seed {question.seed})")
