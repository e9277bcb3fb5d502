"""What methods that learn masks share: the loss, Adam in a state of tensors, and a price that rises."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from voltmeter.discover.method import State
from voltmeter.discover.question import Batch, Question, cut_answers, has_logits
from voltmeter.errors import VoltmeterError
from voltmeter.task.metric import KL, Metric

OBJECTIVES = ("kl", "metric")


def cut_loss(question: Question, batch: Batch, keep: Tensor, objective: str) -> Tensor:
    """KL(full || cut) at the answers, averaged over pairs, with keep [example, edge].

    Minus the metric for the objective "metric", and where there are no answers or no logits to compare.
    """
    return cut_losses(question, batch, keep, objective).mean()


def cut_losses(question: Question, batch: Batch, keep: Tensor, objective: str) -> Tensor:
    """The same of every pair: [pair]."""
    answers = cut_answers(question.wiring, batch, keep, question.task.metric, axes="example edge")
    return -objective_of(question, batch, objective)(answers, batch.pairs, full=question.full_answers(batch))


def full_losses(question: Question, batch: Batch, objective: str) -> Tensor:
    """What the full model loses by the same count, of every pair: [pair]. 0 for KL."""
    full = question.full_answers(batch)
    return -objective_of(question, batch, objective)(full, batch.pairs, full=full)


def objective_of(question: Question, batch: Batch, objective: str) -> Metric:
    """What is followed: KL to the full model for "kl", where it returns logits to compare; else the task's metric."""
    if objective == "kl" and has_logits(question.full_answers(batch), batch.pairs):
        return KL
    return question.task.metric


def stakes(question: Question, batch: Batch, objective: str) -> Tensor:
    """How much more is lost with nothing kept than with everything: the unit in which prices are given. Float []."""
    with torch.no_grad():
        lost = cut_loss(question, batch, torch.zeros(len(batch.pairs), question.n_edges), objective)
        lost = lost - cut_loss(question, batch, torch.ones(len(batch.pairs), question.n_edges), objective)
    return lost.float().cpu().abs()


def rising(price: float, spread: float, share: float) -> float:
    """From ``price / spread`` to ``price * spread``, geometrically, as ``share`` goes from 0 to 1."""
    risen: float = price * spread ** (2 * share - 1)
    return risen


def adam_start(name: str, value: Tensor) -> State:
    """A state that holds ``value`` under ``name``, with Adam's two moments beside it."""
    return {name: value, f"{name}.mean": torch.zeros_like(value), f"{name}.square": torch.zeros_like(value)}


def adam(state: State, name: str, gradient: Tensor, number: int, rate: float | Tensor) -> State:
    """One step of Adam (betas .9, .999) for what the state holds under ``name``: the three tensors after it."""
    mean = 0.9 * state[f"{name}.mean"] + 0.1 * gradient
    square = 0.999 * state[f"{name}.square"] + 0.001 * gradient**2
    corrected = mean / (1 - 0.9 ** (number + 1))
    scale = (square / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8
    return {name: state[name] - rate * corrected / scale, f"{name}.mean": mean, f"{name}.square": square}


Wanted = Mapping[str, tuple[object, str, bool]]
"""Setting -> its value, what was expected, and whether it is that."""


def require(method: str, wanted: Wanted) -> None:
    """Raises VoltmeterError listing every setting that is not what was expected."""
    misses = [f"{name} is {value}, {what} was expected" for name, (value, what, fits) in wanted.items() if not fits]
    if misses:
        raise VoltmeterError(f"{method} cannot work with these settings", misses)


def common(n_steps: int, learning_rate: float, price: float, spread: float, initial: float) -> Wanted:
    """What every method that learns under a rising price expects."""
    return {
        "n_steps": (n_steps, "a whole number from 1", n_steps >= 1),
        "learning_rate": (learning_rate, "a number above 0", 0 < learning_rate < math.inf),
        "price": (price, "a number from 0", 0 <= price < math.inf),
        "spread": (spread, "a number from 1", 1 <= spread < math.inf),
        "initial": (initial, "a probability between 0 and 1", 0 < initial < 1),
    }


def require_objective(method: str, objective: str) -> None:
    """Raises VoltmeterError where there is no such objective."""
    if objective not in OBJECTIVES:
        raise VoltmeterError(f"{method} has no objective '{objective}'", [f"objectives: {', '.join(OBJECTIVES)}"])
