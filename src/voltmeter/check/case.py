"""What is checked: a circuit, on the question it answers."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.check.clock import Clock
from voltmeter.check.split import Split
from voltmeter.circuit.circuit import Circuit
from voltmeter.discover.method import Method
from voltmeter.discover.question import Question
from voltmeter.files import digest_bytes
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.wiring import Wiring

FEW = 64  # pairs for checks that try many circuits


@final
@dataclass(frozen=True, eq=False)
class Case:
    """A circuit and what is asked of it. Runs that several checks need are made once, when first asked for.

    ``threshold``: the t of "faithful at t". ``method``: what found the circuit, with its settings, where that is known
    and can be done again. ``clock``: how long the check at hand may take.
    """

    circuit: Circuit
    question: Question
    threshold: float = 0.9
    method: Method | None = None
    seed: int = 0
    clock: Clock = field(default_factory=Clock)

    @property
    def wiring(self) -> Wiring:
        return self.question.wiring

    @property
    def task(self) -> Task:
        return self.question.task

    @cached_property
    def keep(self) -> Float[Tensor, "edge"]:
        """The circuit as a keep."""
        return self.circuit.mask()

    @property
    def edges(self) -> list[int]:
        """The numbers of the kept edges."""
        return self.circuit.kept.nonzero().flatten().tolist()

    @cached_property
    def held_out(self) -> Split:
        """All held-out pairs."""
        return self._split(self.task.held_out)

    @cached_property
    def train(self) -> Split:
        """All train pairs; the held-out ones where they are the same."""
        return self.held_out if self.task.train is self.task.held_out else self._split(self.task.train)

    @cached_property
    def few(self) -> Split:
        """At most ``FEW`` held-out pairs, drawn by the seed: for checks that try many circuits."""
        pairs = self.task.held_out
        if len(pairs) <= FEW:
            return self.held_out
        return self._split(pairs.batch(sorted(self.random("few").permutation(len(pairs))[:FEW])))

    def _split(self, pairs: Pairs) -> Split:
        return Split.of(self.question, pairs)

    def random(self, name: str) -> "Random":
        """Random numbers of one check: the same whatever other checks drew."""
        return Random(self.seed, name)


@final
class Random:
    """A seeded source. Two of the same seed and name give the same numbers."""

    def __init__(self, seed: int, name: str) -> None:
        number = int(digest_bytes(f"{seed} {name}".encode())[:15], 16)
        self.generator = torch.Generator().manual_seed(number)

    def permutation(self, n: int) -> list[int]:
        """0 .. n - 1 in some order."""
        return torch.randperm(n, generator=self.generator).tolist()

    def choose(self, n: int, count: int) -> list[int]:
        """``count`` of 0 .. n - 1, each at most once."""
        return self.permutation(n)[:count]

    def uniform(self, *shape: int) -> Float[Tensor, "..."]:
        """From 0 up to 1."""
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)
