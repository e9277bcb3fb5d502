"""Subnetwork probing: learn which edges to keep, as hard concrete masks.

A mask is drawn anew for every example and step (Louizos et al. 1712.01312; subnetwork probing: Cao et al. 2104.03514;
stretch (-.1, 1.1), temperature 2/3, initial probability .9 as there):

    mask = clamp(stretch(sigmoid((log u - log(1 - u) + alpha) / temperature)), 0, 1)

and alpha is trained by Adam so that the cut model answers as the full one does, with few masks expected to be kept:
first under a rising price of keeping, then at numbers of masks kept that are drawn anew for every example.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.learning import (
    adam,
    adam_start,
    common,
    cut_losses,
    full_losses,
    require,
    require_objective,
    rising,
    stakes,
)
from voltmeter.discover.method import Method, State, method_named, register, run_method, seeded, with_gradient
from voltmeter.discover.question import Batch, Question

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3


def draw(alpha: Float[Tensor, "*rows mask"], uniform: Float[Tensor, "example mask"]) -> Float[Tensor, "example mask"]:
    """Hard concrete masks from uniform noise; alphas may be each example's own."""
    noise = torch.log(uniform) - torch.log1p(-uniform)
    soft = torch.sigmoid((noise + alpha) / TEMPERATURE)
    return (LOW + (HIGH - LOW) * soft).clamp(0, 1)


def kept_probability(alpha: Float[Tensor, "*rows mask"]) -> Float[Tensor, "*rows mask"]:
    """P(mask > 0)."""
    return torch.sigmoid(alpha - TEMPERATURE * math.log(-LOW / HIGH))


def alpha_of(probability: float) -> float:
    """The alpha at which a mask is kept with this probability."""
    return math.log(probability / (1 - probability)) + TEMPERATURE * math.log(-LOW / HIGH)


def noise(shape: tuple[int, ...], question: Question, number: int) -> Tensor:
    """Uniform noise of one step, off the ends, where the logarithm is infinite."""
    return torch.rand(shape, generator=seeded(question, number)).clamp(1e-6, 1 - 1e-6)


def shift_for(alpha: Float[Tensor, "mask"], counts: Float[Tensor, "size"]) -> Float[Tensor, "size"]:
    """What to take from every alpha so that this many masks are expected to be kept. By bisection, within 1e-4.

    A count of all masks or more gets what keeps each with a probability of next to 1.
    """
    low = alpha.min().repeat(len(counts)) - _REACH
    high = alpha.max().repeat(len(counts)) + _REACH
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_many = kept_probability(alpha - middle[:, None]).sum(1) > counts
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return (low + high) / 2


def tamed(lost: Float[Tensor, "pair"], scale: float) -> Float[Tensor, "pair"]:
    """``scale log(1 + lost / scale)``; linear below 0, where a circuit does better than the model by its metric."""
    return torch.where(lost > 0, scale * torch.log1p(lost.clamp(min=0) / scale), lost)


_REACH = 20.0  # an alpha this far up or down is kept or cut for certain in float32
_HALVINGS = 24  # of a range of some 100
_SIZES = 64  # at which scores are averaged
_SETTLED = 0.1  # of the learning rate is left at the end
_LATE = 2 / 3  # of the sorting counts for the scores


@dataclass(frozen=True)
class Probing(Method):
    """Subnetwork probing of one thing or another: edges, or nodes. A run has two parts.

    **Falling.** For the first ``falling`` of the steps, masks have a price. Minimised is

        mean over pairs of  scale log(1 + lost / scale)  +  price / n * expected number of masks kept

    where ``lost`` is KL(full || cut) at the answer, in units of what keeping none loses, and ``scale`` keeps a pair
    that is lost anyway from outweighing the others (None: ``lost`` as it is). In place of KL stands minus the metric
    with ``objective="metric"``, and where there are no answers or no logits to compare. The price rises geometrically
    from ``price / spread`` to ``price * spread``, so that masks leave in the order of their worth.

    **Sorting.** Then there is no price. Each example draws the number of masks it may keep, between ``smallest`` and
    ``largest`` shares of all, every octave alike, and all alphas are moved together so that as many are expected to be
    kept. Only the order of the alphas counts any more, and it is trained at all sizes at once: a mask has a gradient in
    the examples whose circuits end near it, where the others are all but surely kept or cut. A price alone teaches
    little about circuits that it passes by quickly, or never comes to, and those it does pass are noisy.

    With a ``target`` number of masks there is no sorting: the price is steered to end there, over the whole run.
    """

    sign: ClassVar[str] = "positive: the probability of being kept, averaged over circuits of all sizes"

    n_steps: int = 400
    learning_rate: float = 0.1
    price: float = 0.4
    spread: float = 4.0
    falling: float = 0.4
    smallest: float = 0.006
    largest: float = 0.5
    scale: float | None = 0.1
    target: int | None = None
    objective: str = "kl"
    initial: float = 0.9

    def __post_init__(self) -> None:
        require_objective(self.name, self.objective)
        wanted = dict(common(self.n_steps, self.learning_rate, self.price, self.spread, self.initial))
        sizes = f"{self.smallest:g} to {self.largest:g}"
        wanted |= {
            "falling": (self.falling, "a share from 0 to 1", 0 <= self.falling <= 1),
            "smallest to largest": (sizes, "shares from above 0 to 1", 0 < self.smallest <= self.largest <= 1),
            "scale": (self.scale, "a number above 0, or None", self.scale is None or 0 < self.scale < math.inf),
        }
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
        stake = stakes(question, question.batch(0), self.objective)
        stake = torch.where(stake > 0, stake, torch.ones(()))  # where nothing can be lost there is nothing to divide by
        price = torch.tensor(self.price)
        return adam_start("alpha", alpha) | {"total": torch.zeros_like(alpha), "stake": stake, "price": price}

    def step(self, question: Question, state: State, number: int) -> State:
        batch = question.batch(number)
        alpha = state["alpha"].clone().requires_grad_()
        if number < self._falls():
            price, moved = self._price(question, state, number), alpha
            cost = price / len(alpha) * kept_probability(alpha).sum()
        else:
            price, cost = state["price"], torch.zeros(())
            apart = noise((len(batch.pairs), 2), question, self.n_steps + number)  # a number that no step has
            moved = alpha - shift_for(alpha.detach(), self._drawn_sizes(len(alpha), apart))[:, None]
        masks = draw(moved, noise((len(batch.pairs), len(alpha)), question, number))
        (self._lost(question, batch, masks, state["stake"]) + cost).backward()
        assert alpha.grad is not None
        learned = adam(state, "alpha", alpha.grad, number, self._rate(number))
        total = self._total(state, learned["alpha"], number)
        return learned | {"total": total, "stake": state["stake"], "price": price}

    def _falls(self) -> int:
        """How many steps have a price."""
        return self.n_steps if self.target is not None else round(self.falling * self.n_steps)

    def _lost(self, question: Question, batch: Batch, masks: Tensor, stake: Tensor) -> Tensor:
        """What is minimised but for the price. Float []."""
        losses = cut_losses(question, batch, self.keep(question, masks), self.objective)
        losses = with_gradient(losses, question.task.metric.name, self.name)
        lost = (losses - full_losses(question, batch, self.objective)).cpu() / stake
        return (lost if self.scale is None else tamed(lost, self.scale)).mean()

    def _drawn_sizes(self, count: int, uniform: Float[Tensor, "example 2"]) -> Float[Tensor, "example"]:
        """How many masks each example may keep: one from each of as many equal slices of the logarithm."""
        slices = (uniform[:, 0].argsort().argsort() + uniform[:, 1]) / len(uniform)
        return self._sizes(count, slices)

    def _sizes(self, count: int, share: Float[Tensor, "size"]) -> Float[Tensor, "size"]:
        """From the smallest number of masks to the largest, geometrically, as ``share`` goes from 0 to 1."""
        return (count * self.smallest * (self.largest / self.smallest) ** share).clamp(min=1)

    def _rate(self, number: int) -> float:
        """The learning rate: it falls to a tenth while masks are sorted."""
        share = (number - self._falls()) / max(1, self.n_steps - self._falls())
        left: float = _SETTLED ** max(0.0, share)
        return self.learning_rate * left

    def _price(self, question: Question, state: State, number: int) -> Tensor:
        """What it costs at this step to keep all masks."""
        share = number / max(1, self._falls() - 1)
        if self.target is None:
            return torch.tensor(rising(self.price, self.spread, share))
        # Wanted: from all masks to the target, geometrically, over the first four fifths of the run.
        count = self.n_masks(question)
        wanted = count * (self.target / count) ** min(1.0, share / 0.8)
        surplus = float(kept_probability(state["alpha"]).sum()) / wanted - 1
        return state["price"] * math.exp(max(-0.1, min(0.1, surplus)))

    def _averaged_from(self) -> int:
        """The first step that counts for the scores: most of the sorting; where there is none, half of the run."""
        if not self._sorts():
            return self.n_steps // 2
        return self.n_steps - max(1, round(_LATE * (self.n_steps - self._falls())))

    def _total(self, state: State, alpha: Float[Tensor, "mask"], number: int) -> Float[Tensor, "mask"]:
        """The alphas (where nothing is sorted, the probabilities) summed over the steps that count."""
        if number < self._averaged_from():
            return state["total"]
        return state["total"] + (alpha if self._sorts() else kept_probability(alpha))

    def _sorts(self) -> bool:
        return self._falls() < self.n_steps

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        mean = state["total"] / (self.n_steps - self._averaged_from())
        if not self._sorts():
            return self.of_edges(question, mean)
        alpha = mean.double()  # in float32 a mask that is all but surely kept would tie with the next
        sizes = self._sizes(len(alpha), torch.linspace(0, 1, _SIZES, dtype=torch.float64))
        kept = kept_probability(alpha - shift_for(alpha, sizes)[:, None])
        return torch.stack([self.of_edges(question, each) for each in kept]).mean(0)


@final
@register
@dataclass(frozen=True)
class EdgeSp(Probing):
    """Edge-level subnetwork probing: one mask for every edge; see ``Probing`` for what is minimised.

    An edge's score is its probability of being kept, averaged over circuits of all sizes (every octave alike), by the
    alphas' mean over the last two thirds of the sorting; with a ``target``, averaged over the last half of the run.

    ``warm_start`` names a method whose scores set where the masks begin ("eap"): alphas are spread by ``warm_gain``
    standard deviations around the initial one, in the order of |score|.

    Costs about two forward+backward passes per step, ``n_steps`` steps of one batch, and what the warm start costs.
    Defaults: mask constants as in Cao et al. [P]; the sorting and all other settings are ours, chosen on
    ``stories-pronoun`` and ``stories-name``, see docs/discover.md; the warm start is after 2510.06811 [A], its form
    ours.
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
