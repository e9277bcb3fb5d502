"""Subnetwork probing: learn which edges to keep, as hard concrete masks.

A mask is drawn anew for every example and step (Louizos et al. 1712.01312; subnetwork probing: Cao et al. 2104.03514;
stretch (-.1, 1.1), temperature 2/3, initial probability .9 as there):

    mask = clamp(stretch(sigmoid((log u - log(1 - u) + alpha) / temperature)), 0, 1)

and alpha is trained by Adam so that the cut model answers as the full one does, with few masks expected to be kept.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.learning import adam, adam_start, common, cut_loss, require, require_objective, rising, stakes
from voltmeter.discover.method import Method, State, method_named, register, run_method, seeded, with_gradient
from voltmeter.discover.question import Question

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3


def draw(alpha: Float[Tensor, "mask"], uniform: Float[Tensor, "example mask"]) -> Float[Tensor, "example mask"]:
    """Hard concrete masks from uniform noise."""
    noise = torch.log(uniform) - torch.log1p(-uniform)
    soft = torch.sigmoid((noise + alpha) / TEMPERATURE)
    return (LOW + (HIGH - LOW) * soft).clamp(0, 1)


def kept_probability(alpha: Float[Tensor, "mask"]) -> Float[Tensor, "mask"]:
    """P(mask > 0)."""
    return torch.sigmoid(alpha - TEMPERATURE * math.log(-LOW / HIGH))


def alpha_of(probability: float) -> float:
    """The alpha at which a mask is kept with this probability."""
    return math.log(probability / (1 - probability)) + TEMPERATURE * math.log(-LOW / HIGH)


def noise(shape: tuple[int, ...], question: Question, number: int) -> Tensor:
    """Uniform noise of one step, off the ends, where the logarithm is infinite."""
    return torch.rand(shape, generator=seeded(question, number)).clamp(1e-6, 1 - 1e-6)


@dataclass(frozen=True)
class Probing(Method):
    """Subnetwork probing of one thing or another: edges, or nodes.

    Minimises KL(full || cut) at the answer plus a price on the expected number of masks kept. In place of KL stands
    minus the metric with ``objective="metric"``, and where there are no answers or no logits to compare. ``price`` is
    what keeping every mask would cost, in units of what keeping none loses. It rises geometrically over the run from
    ``price / spread`` to ``price * spread``, so that masks leave in the order of their worth and one run ranks circuits
    of all sizes. With a ``target`` number of masks the price is steered to end there instead.
    """

    sign: ClassVar[str] = "positive: the probability of being kept, averaged over a rising price"

    n_steps: int = 400
    learning_rate: float = 0.1
    price: float = 1.0
    spread: float = 10.0
    target: int | None = None
    objective: str = "kl"
    initial: float = 0.9

    def __post_init__(self) -> None:
        require_objective(self.name, self.objective)
        wanted = dict(common(self.n_steps, self.learning_rate, self.price, self.spread, self.initial))
        if self.target is not None:
            wanted["target"] = (self.target, "a whole number from 1, or None", self.target >= 1)
            wanted["price"] = (self.price, "a number above 0 to be steered", 0 < self.price < math.inf)
        require(self.name, wanted)

    @abstractmethod
    def n_masks(self, question: Question) -> int:
        """How many masks are learned."""

    @abstractmethod
    def keep(self, question: Question, masks: Float[Tensor, "example mask"]) -> Float[Tensor, "example edge"]:
        """The keep of every edge under the masks."""

    @abstractmethod
    def starting(self, question: Question) -> Float[Tensor, "mask"]:
        """The alphas to begin with."""

    @abstractmethod
    def of_edges(self, question: Question, kept: Float[Tensor, "mask"]) -> Float[Tensor, "edge"]:
        """The scores of the edges, from the probabilities with which masks were kept."""

    def steps(self, question: Question) -> int:
        return self.n_steps

    def start(self, question: Question) -> State:
        alpha = self.starting(question)
        unit = stakes(question, question.batch(0), self.objective) / self.n_masks(question)
        price = torch.tensor(self.price)
        return adam_start("alpha", alpha) | {"total": torch.zeros_like(alpha), "unit": unit, "price": price}

    def step(self, question: Question, state: State, number: int) -> State:
        batch = question.batch(number)
        alpha = state["alpha"].clone().requires_grad_()
        masks = draw(alpha, noise((len(batch.pairs), len(alpha)), question, number))
        loss = cut_loss(question, batch, self.keep(question, masks), self.objective)
        loss = with_gradient(loss, question.task.metric.name, self.name)
        price = self._price(question, state, number)
        (loss.cpu() + price * state["unit"] * kept_probability(alpha).sum()).backward()
        assert alpha.grad is not None
        learned = adam(state, "alpha", alpha.grad, number, self.learning_rate)
        late = number >= self.n_steps // 2
        total = state["total"] + kept_probability(learned["alpha"]) * late
        return learned | {"total": total, "unit": state["unit"], "price": price}

    def _price(self, question: Question, state: State, number: int) -> Tensor:
        """What one mask that is expected to be kept costs at this step."""
        share = number / max(1, self.n_steps - 1)
        if self.target is None:
            return torch.tensor(rising(self.price, self.spread, share))
        # Wanted: from all masks to the target, geometrically, over the first four fifths of the run.
        count = self.n_masks(question)
        wanted = count * (self.target / count) ** min(1.0, share / 0.8)
        surplus = float(kept_probability(state["alpha"]).sum()) / wanted - 1
        return state["price"] * math.exp(max(-0.1, min(0.1, surplus)))

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return self.of_edges(question, state["total"] / (self.n_steps - self.n_steps // 2))


@final
@register
@dataclass(frozen=True)
class EdgeSp(Probing):
    """Edge-level subnetwork probing: one mask for every edge; see ``Probing`` for what is minimised.

    An edge's score is its probability of being kept, averaged over the last half of the run, in which the price rises
    (or comes to its ``target`` number of edges). ``warm_start`` names a method whose scores set where the masks begin
    ("eap"): alphas are spread by ``warm_gain`` standard deviations around the initial one, in the order of |score|.

    Costs about two forward+backward passes per step, ``n_steps`` steps of one batch, and what the warm start costs.
    Defaults: mask constants as in Cao et al. [P]; steps, learning rate, price and spread are ours, chosen on
    ``stories-pronoun`` (seed 0), see docs/discover.md; the warm start is after 2510.06811 [A], its form ours.
    Affordable over heads, channels and neurons (memory: pairs x edges); not over latents, whose edges are too many.
    """

    name: ClassVar[str] = "edge-sp"

    warm_start: str = "none"
    warm_gain: float = 2.0

    def n_masks(self, question: Question) -> int:
        return question.n_edges

    def keep(self, question: Question, masks: Float[Tensor, "example mask"]) -> Float[Tensor, "example edge"]:
        return masks

    def starting(self, question: Question) -> Float[Tensor, "mask"]:
        alpha = torch.full((question.n_edges,), alpha_of(self.initial))
        if self.warm_start == "none":
            return alpha
        scores = run_method(method_named(self.warm_start), question)
        return alpha + self.warm_gain * normal_ranks(scores.abs())

    def of_edges(self, question: Question, kept: Float[Tensor, "mask"]) -> Float[Tensor, "edge"]:
        return kept


def normal_ranks(values: Float[Tensor, "edge"]) -> Float[Tensor, "edge"]:
    """Each value's rank as the quantile of a standard normal; equal values share the mean of their ranks."""
    found = mean_ranks(values) / len(values)
    return torch.erfinv(2 * found - 1).float() * math.sqrt(2)


def mean_ranks(values: Float[Tensor, "edge"]) -> Float[Tensor, "edge"]:
    """Ranks from .5 for the lowest to n - .5 for the highest; equal values share the mean of theirs. float64."""
    _, which, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks: Tensor = ends - counts / 2
    return ranks[which]
