"""From rows of inputs with answers to a task: who is whose corrupted twin, and what is held out.

Every row belongs to a group (an episode, a game, a pair of numbers in either order); half of the groups are held out.
A row's twin is another row of its own side and kind (the same board, the same position of the answer) with another
answer and of another group, so that a paired fill means something and no side is seen on the other.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from voltmeter.task import Metric, Pairs, Task
from voltmeter.task.metric import LOGIT_DIFFERENCE
from voltmeter.task.tree import Inputs, take_rows


def task_of(
    name: str,
    inputs: Inputs,
    answers: Tensor,
    groups: Sequence[str],
    *,
    position: Tensor | None = None,
    kinds: Sequence[Hashable] | None = None,
    count: int = 256,
    metric: Metric = LOGIT_DIFFERENCE,
    seed: int = 0,
) -> Task:
    """At most ``count`` pairs to learn from, and as many to be judged on, of groups of their own. ``answers`` [row]."""
    rng = random.Random(f"{name} {seed}")  # a text seeds the same on every machine
    names = sorted(set(groups))
    rng.shuffle(names)
    train = set(names[: len(names) // 2])
    sides = []
    for is_train in (True, False):
        rows = [row for row, group in enumerate(groups) if (group in train) == is_train]
        rng.shuffle(rows)
        twins = _twins(rows, answers.tolist(), groups, kinds or [None] * len(groups), rng)
        sides.append(_pairs(dict(list(twins.items())[:count]), inputs, answers, groups, position))
    return Task(name, *sides, metric, {"seed": seed, "held_out": f"{len(names) - len(train)} of {len(names)} groups"})


def _twins(
    rows: Sequence[int],
    answers: Sequence[int],
    groups: Sequence[str],
    kinds: Sequence[Hashable],
    rng: random.Random,
) -> dict[int, int]:
    """Row -> its twin; rows that have none are left out."""
    by_kind: dict[Hashable, list[int]] = {}
    for row in rows:
        by_kind.setdefault(kinds[row], []).append(row)
    found = {}
    for row in rows:
        fitting = [r for r in by_kind[kinds[row]] if answers[r] != answers[row] and groups[r] != groups[row]]
        if fitting:
            found[row] = rng.choice(fitting)
    return found


def _pairs(
    twins: dict[int, int], inputs: Inputs, answers: Tensor, groups: Sequence[str], position: Tensor | None
) -> Pairs:
    clean, corrupted = torch.tensor(list(twins)), torch.tensor(list(twins.values()))
    return Pairs.of(
        take_rows(inputs, clean),
        take_rows(inputs, corrupted),
        answers=answers[clean],
        wrong=answers[corrupted],
        position=None if position is None else position[clean],
        groups=[groups[row] for row in clean.tolist()],
    )
