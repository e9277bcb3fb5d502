"""Edge-level subnetwork probing: learn which edges to keep, as hard concrete masks.

The mask of an edge is drawn anew for every example and step (Louizos et al. 1712.01312; subnetwork probing: Cao et
al. 2104.03514; stretch (-.1, 1.1), temperature 2/3, initial probability .9 as there):

    mask = clamp(stretch(sigmoid((log u - log(1 - u) + alpha) / temperature)), 0, 1)

and alpha is trained by Adam so that the cut model answers as the full one does, with few edges expected to be kept.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.method import Method, State, register, seeded, with_gradient
from voltmeter.discover.question import Batch, Question, cut_answers, has_logits
from voltmeter.errors import VoltmeterError
from voltmeter.task.metric import KL

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3


def draw(alpha: Float[Tensor, "edge"], uniform: Float[Tensor, "example edge"]) -> Float[Tensor, "example edge"]:
    """Hard concrete masks from uniform noise."""
    noise = torch.log(uniform) - torch.log1p(-uniform)
    soft = torch.sigmoid((noise + alpha) / TEMPERATURE)
    return (LOW + (HIGH - LOW) * soft).clamp(0, 1)


def kept_probability(alpha: Float[Tensor, "edge"]) -> Float[Tensor, "edge"]:
    """P(mask > 0)."""
    return torch.sigmoid(alpha - TEMPERATURE * math.log(-LOW / HIGH))


@register
@dataclass(frozen=True)
class EdgeSp(Method):
    """Edge-level subnetwork probing.

    Minimises KL(full || cut) at the answer plus a price on the expected number of edges. In place of KL stands minus
    the metric with ``objective="metric"``, and where there are no answers or no logits to compare. ``price`` is what
    keeping every edge would cost, in units of what keeping none loses. It rises geometrically over the run from
    ``price / spread`` to ``price * spread``, so that edges leave in the order of their worth and one run ranks circuits
    of all sizes: an edge's score is its probability of being kept, averaged over the last half of the run. With
    ``target`` edges the price is steered to end there instead.

    Costs about two forward+backward passes per step, ``n_steps`` steps of one batch. Defaults: mask constants as in
    Cao et al.; steps, learning rate, price and spread chosen on ``stories-pronoun`` (seed 0), see docs/discover.md.
    """

    name: ClassVar[str] = "edge-sp"
    sign: ClassVar[str] = "positive: the probability of being kept, averaged over a rising price"

    n_steps: int = 400
    learning_rate: float = 0.1
    price: float = 1.0
    spread: float = 10.0
    target: int | None = None
    objective: str = "kl"
    initial: float = 0.9

    def __post_init__(self) -> None:
        if self.objective not in ("kl", "metric"):
            raise VoltmeterError(f"edge-sp has no objective '{self.objective}'", ["objectives: kl, metric"])
        misses = self._misses()
        if misses:
            raise VoltmeterError("edge-sp cannot work with these settings", misses)

    def _misses(self) -> list[str]:
        least = 0 if self.target is None else math.ulp(0.0)  # a price of nothing cannot be steered
        wanted = {
            "n_steps": ("a whole number from 1", self.n_steps >= 1),
            "learning_rate": ("a number above 0", 0 < self.learning_rate < math.inf),
            "price": (f"a number {'above' if least else 'from'} 0", least <= self.price < math.inf),
            "spread": ("a number from 1", 1 <= self.spread < math.inf),
            "target": ("a number of edges from 1, or None", self.target is None or self.target >= 1),
            "initial": ("a probability between 0 and 1", 0 < self.initial < 1),
        }
        return [f"{k} is {getattr(self, k)}, {what} was expected" for k, (what, fits) in wanted.items() if not fits]

    def steps(self, question: Question) -> int:
        return self.n_steps

    def start(self, question: Question) -> State:
        start = math.log(self.initial / (1 - self.initial)) + TEMPERATURE * math.log(-LOW / HIGH)
        alpha = torch.full((question.n_edges,), start)
        zero = torch.zeros_like(alpha)
        with torch.no_grad():
            batch = question.batch(0)
            lost = self._loss(question, batch, torch.zeros(len(batch.pairs), question.n_edges))
            lost = lost - self._loss(question, batch, torch.ones(len(batch.pairs), question.n_edges))
        unit = lost.float().cpu().abs() / question.n_edges
        state = {"alpha": alpha, "mean": zero, "square": zero.clone(), "total": zero.clone()}
        return state | {"unit": unit, "price": torch.tensor(self.price)}

    def step(self, question: Question, state: State, number: int) -> State:
        batch = question.batch(number)
        alpha = state["alpha"].clone().requires_grad_()
        uniform = torch.rand((len(batch.pairs), question.n_edges), generator=seeded(question, number))
        keep = draw(alpha, uniform.clamp(1e-6, 1 - 1e-6))
        loss = with_gradient(self._loss(question, batch, keep), question.task.metric.name, self.name)
        price = self._price(question, state, number)
        (loss.cpu() + price * state["unit"] * kept_probability(alpha).sum()).backward()
        assert alpha.grad is not None
        return self._adam(state, alpha.grad, number) | {"price": price, "unit": state["unit"]}

    def _loss(self, question: Question, batch: Batch, keep: Tensor) -> Tensor:
        full = question.full_answers(batch)
        answers = cut_answers(question.wiring, batch, keep, question.task.metric, axes="example edge")
        if self.objective == "kl" and has_logits(full, batch.pairs):
            return -KL(answers, batch.pairs, full=full).mean()
        return -question.task.metric(answers, batch.pairs, full=full).mean()

    def _price(self, question: Question, state: State, number: int) -> Tensor:
        """What one expected edge costs at this step."""
        share = number / max(1, self.n_steps - 1)
        if self.target is None:
            return torch.tensor(self.price * self.spread ** (2 * share - 1))
        # Wanted: from all edges to the target, geometrically, over the first four fifths of the run.
        wanted = question.n_edges * (self.target / question.n_edges) ** min(1.0, share / 0.8)
        surplus = float(kept_probability(state["alpha"]).sum()) / wanted - 1
        return state["price"] * math.exp(max(-0.1, min(0.1, surplus)))

    def _adam(self, state: State, gradient: Tensor, number: int) -> State:
        """One step of Adam (betas .9, .999), and the running total of what is kept over the last half."""
        mean = 0.9 * state["mean"] + 0.1 * gradient
        square = 0.999 * state["square"] + 0.001 * gradient**2
        corrected = mean / (1 - 0.9 ** (number + 1))
        scale = (square / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8
        alpha = state["alpha"] - self.learning_rate * corrected / scale
        late = number >= self.n_steps // 2
        return {
            "alpha": alpha,
            "mean": mean,
            "square": square,
            "total": state["total"] + kept_probability(alpha) * late,
        }

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["total"] / (self.n_steps - self.n_steps // 2)
