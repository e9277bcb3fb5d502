"""Edge Pruning: masks on edges and on what writes to them, held to a target sparsity by Lagrange multipliers."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.learning import adam, adam_start, common, cut_loss, require, require_objective, stakes
from voltmeter.discover.masks import alpha_of, draw, kept_probability, noise
from voltmeter.discover.method import Method, State, register, with_gradient
from voltmeter.discover.question import Question

_WARM_UP = 200 / 3000  # of the run: the learning rate rises, then falls linearly to 0 (their code)
_RAMP = 2500 / 3000  # of the run: the wanted sparsity rises linearly from 0, then stands (their code)


@final
@register
@dataclass(frozen=True)
class EdgePruning(Method):
    """Edge Pruning: hard concrete masks trained to a target sparsity. Source: Bhaskar et al. 2406.16778.

    Each edge has a mask, and each writer one that all its edges share; an edge carries their product. Minimised is

        KL(full || cut) + l1 (s - t) + l2 (s - t)^2, for edges and, with multipliers of their own, for writers

    where s is the share of masks (as drawn) that is cut and t the target, which rises linearly from 0; the multipliers
    l1 and l2 begin at 0, are trained to raise what is minimised, and are in units of what keeping no edge loses. In
    place of KL stands minus the metric with ``objective="metric"``. Deterministic by seed.

    An edge's score is P(its mask > 0) P(its writer's mask > 0), averaged over the whole run: as the target rises, edges
    leave in the order of their worth, and one run ranks circuits of all sizes. (Theirs gives one circuit: that of the
    masks at the end, cut at the threshold where the sparsity is theirs. Ours is the same idea at every moment.)

    Costs about two forward+backward passes per step, ``n_steps`` steps of one batch, as ``edge-sp`` does.

    From their code [P]: mask constants, learning rates that warm up for 1/15 of the run and fall linearly, sparsity
    reached at 5/6 of it, edge targets .94 to 1.1 (1 and above: press as hard as the answer allows), the writers' term
    left out by default (``node_target=None``; theirs .72), batches of 32. Ours: the first probability (their alphas
    begin at 10, where next to no gradient comes through), rates of .1 for masks and multipliers (theirs .8) and
    the multipliers' unit, 400 steps (theirs 3,000), one draw for each example rather than for the batch, Adam without
    weight decay. With their constants, 400 steps give five to nine times as large a circuit for ``demo``.
    Affordable over heads, channels and neurons (memory: pairs x edges); not over latents.
    """

    name: ClassVar[str] = "edge-pruning"
    sign: ClassVar[str] = "positive: the probability of being kept, averaged over a rising sparsity"

    n_steps: int = 400
    learning_rate: float = 0.1
    multiplier_rate: float = 0.1
    edge_target: float = 1.0
    node_target: float | None = None
    objective: str = "kl"
    initial: float = 0.9

    def __post_init__(self) -> None:
        require_objective(self.name, self.objective)
        steps_and_rate = common(self.n_steps, self.learning_rate, 1.0, 1.0, self.initial)
        rate, edges, nodes = self.multiplier_rate, self.edge_target, self.node_target
        more = {
            "multiplier_rate": (rate, "a number above 0", 0 < rate < math.inf),
            "edge_target": (edges, "a sparsity above 0 and up to 2", 0 < edges <= 2),
            "node_target": (nodes, "a sparsity above 0 and up to 2, or None", nodes is None or 0 < nodes <= 2),
        }
        require(self.name, {**steps_and_rate, **more})

    def steps(self, question: Question) -> int:
        return self.n_steps

    def start(self, question: Question) -> State:
        n, w = question.n_edges, len(question.wiring.writers)
        state = {"total": torch.zeros(n), "unit": stakes(question, question.batch(0), self.objective)}
        for name, count in (("edges", n), ("nodes", w)):
            state |= adam_start(name, torch.full((count,), alpha_of(self.initial)))
            state |= adam_start(f"{name}.multipliers", torch.zeros(2))
        return state

    def step(self, question: Question, state: State, number: int) -> State:
        batch = question.batch(number)
        learned = {name: state[name].clone().requires_grad_() for name in ("edges", "nodes")}
        multipliers = {name: state[f"{name}.multipliers"].clone().requires_grad_() for name in learned}
        n, w = len(state["edges"]), len(state["nodes"])
        uniform = noise((len(batch.pairs), n + w), question, number)
        masks = {"edges": draw(learned["edges"], uniform[:, :n]), "nodes": draw(learned["nodes"], uniform[:, n:])}
        keep = masks["edges"] * masks["nodes"][:, question.wiring.edges.writer_numbers]
        loss = with_gradient(cut_loss(question, batch, keep, self.objective), question.task.metric.name, self.name)
        total = loss.cpu()
        for name, target in self._targets(number).items():
            surplus = 1 - masks[name].mean() - target
            total = total + state["unit"] * (multipliers[name][0] * surplus + multipliers[name][1] * surplus**2)
        total.backward()
        variables = learned | {f"{name}.multipliers": pair for name, pair in multipliers.items()}
        return self._learn(question, state, variables, number)

    def _targets(self, number: int) -> dict[str, float]:
        """The sparsities wanted at this step."""
        ramp = min(1.0, number / max(1.0, _RAMP * self.n_steps))
        wanted = {"edges": self.edge_target, "nodes": self.node_target}
        return {name: ramp * target for name, target in wanted.items() if target is not None}

    def _learn(self, question: Question, state: State, variables: dict[str, Tensor], number: int) -> State:
        """Adam for the alphas, and uphill for the multipliers."""
        step, warm_up = number + 1, max(1.0, _WARM_UP * self.n_steps)
        pace = min(step / warm_up, (self.n_steps - number) / max(1.0, self.n_steps - warm_up))
        after = dict(state)
        for name, variable in variables.items():
            if variable.grad is None:  # the writers' multipliers, where they have no target
                continue
            uphill = name.endswith("multipliers")
            rate = self.multiplier_rate if uphill else self.learning_rate
            after |= adam(state, name, -variable.grad if uphill else variable.grad, number, rate * min(1.0, pace))
        kept = kept_probability(after["edges"]) * kept_probability(after["nodes"])[question.wiring.edges.writer_numbers]
        return after | {"total": state["total"] + kept}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["total"] / self.n_steps
