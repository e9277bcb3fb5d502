"""Small questions for the attribution methods, and oracles that know nothing of how the methods work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import Recipe, Wiring, cast, wired
from torch import Tensor

import voltmeter as vm
from voltmeter.discover import Method, Question, ask
from voltmeter.discover.method import run_method
from voltmeter.run.fill import Fill
from voltmeter.task import Pairs, Task, metric_of
from voltmeter.wiring.inputs import call

Score = Callable[[Tensor], Tensor]  # what the model returned -> a number per example


def weighted(output: Tensor) -> Tensor:
    """A linear score: different weights for different entries."""
    weights = torch.linspace(-1, 1, output[0].numel(), dtype=output.dtype).view(output.shape[1:])
    return (output * weights).flatten(1).sum(1)


def squared(output: Tensor) -> Tensor:
    return weighted(output) ** 2


def asked(
    recipe: Recipe, score: Score, fill: str | Fill = "resample", *, n_pairs: int = 3, batch_size: int = 2, seed: int = 0
) -> Question:
    """Random inputs and others, three positions long, scored by ``score``; in float64."""
    wiring = wired(recipe)
    clean, corrupted = (cast(recipe.inputs(n_pairs, 3, seed + more), torch.float64) for more in (0, 10_000))
    pairs = Pairs.of(clean, corrupted)
    task = Task("random", pairs, pairs, metric_of("score", lambda outputs, _: score(outputs)))
    return ask(wiring, task, fill, batch_size=batch_size)


def scored(method: Method, question: Question) -> Tensor:
    return run_method(method, question).double()


def answers(question: Question, keep: Tensor, axes: str = "circuit edge") -> Tensor:
    """The metric with edges cut, by the slow reference, on all pairs: [circuit, pair]."""
    pairs, metric = question.task.train, question.task.metric
    rows = []
    for one in keep:
        out = vm.run(question.wiring, pairs.clean, one, question.fill, pairs.corrupted, axes="edge", reference=True)
        rows.append(metric(out, pairs))
    return torch.stack(rows)


def single_cuts(question: Question) -> Tensor:
    """What cutting each edge alone costs, [edge, pair]."""
    count = question.n_edges
    keep = torch.cat([torch.ones(1, count), 1 - torch.eye(count)]).double()
    with torch.no_grad():
        found = answers(question, keep)
    return found[:1] - found[1:]


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Within ``tolerance`` of the largest entry."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def recorded(wiring: Wiring, inputs: Any) -> dict[str, Tensor]:
    """All writers' outputs in the plain run."""
    with vm.record(wiring) as seen, torch.no_grad():
        call(wiring.model, inputs)
    return dict(seen)
