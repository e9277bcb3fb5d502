"""A case's method done again, for as long as there is time, and what came of it."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from voltmeter.check.again import found_again
from voltmeter.check.case import Case
from voltmeter.check.clock import Clock
from voltmeter.circuit.circuit import Circuit
from voltmeter.discover.method import Method, Progress, State
from voltmeter.discover.question import Question
from voltmeter.errors import VoltmeterError


@final
@dataclass(frozen=True)
class NotFound:
    """Why a method found nothing: the time was used up, or it raised an error."""

    why: str


class _TimeIsUp(Exception):
    pass


def repeat(case: Case, method: Method, question: Question) -> Circuit | NotFound:
    """As many edges as the case's circuit has, found by ``method`` on another question. Nothing where it raises one of
    voltmeter's errors, or where the case's clock stops it between two of its steps."""
    if case.clock.over:
        return NotFound("the time was used up")
    try:
        return found_again(method, question, case.circuit, _watched(case.clock))
    except _TimeIsUp:
        return NotFound("the time was used up")
    except VoltmeterError as error:
        return NotFound(error.problem)


def _watched(clock: Clock) -> Progress:
    def look(step: int, steps: int, state: State) -> None:
        if clock.over and step < steps:
            raise _TimeIsUp

    return look


def with_seed(question: Question, seed: int) -> Question:
    """The same question with its batches drawn, and its method's random numbers, by another seed."""
    return Question(question.wiring, question.task, question.fill, seed % 2**32, question.batch_size)


def on_groups(question: Question, numbers: list[int]) -> Question:
    """The same question with the train pairs of some groups, by number, in the order of their names; each as often as
    its number is there."""
    pairs = question.task.train
    names = sorted(set(pairs.groups))
    rows: dict[str, list[int]] = {name: [] for name in names}
    for row, name in enumerate(pairs.groups):
        rows[name].append(row)
    chosen = torch.tensor([row for number in numbers for row in rows[names[number]]])
    train = pairs.batch(chosen)
    held_out = train if question.task.train is question.task.held_out else question.task.held_out
    task = replace(question.task, train=train, held_out=held_out)
    return Question(question.wiring, task, question.fill, question.seed, question.batch_size)


def jaccard(kept: Tensor) -> Tensor:
    """Of every two of ``kept`` [circuit, edge]: edges in both over edges in either; 1 for two empty ones."""
    one = kept.double()
    both = one @ one.T
    sizes = one.sum(1)
    either = sizes[:, None] + sizes - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
