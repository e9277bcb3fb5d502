"""What every method is: a state that grows step by step, and scores at the end.

The state is a dictionary of tensors and nothing else, and a step depends only on the question, the state and the
step's number. So a run can be stopped anywhere and resumed to the same result.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.question import Question
from voltmeter.errors import MetricError, VoltmeterError, nearest
from voltmeter.run.fill import Fixed

State = dict[str, Tensor]


@dataclass(frozen=True)
class Method(ABC):
    """A way to score edges. Subclasses are frozen dataclasses: their fields are the method's settings."""

    name: ClassVar[str]
    sign: ClassVar[str] = "positive: keeping the edge raises the metric"

    @abstractmethod
    def steps(self, question: Question) -> int:
        """How many steps there will be."""

    @abstractmethod
    def start(self, question: Question) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(self, question: Question, state: State, number: int) -> State:
        """The state after one more step."""

    @abstractmethod
    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        """One score per edge, from a finished state."""

    @property
    def learns_fill(self) -> bool:
        """Whether what cut edges carry is trained along with the scores."""
        return False

    def learned_fill(self, question: Question, state: State) -> Fixed | None:
        """The fill that was trained along with the scores, under which they hold; None where none was."""
        return None

    def settings(self) -> dict[str, Any]:
        """The settings as plain data."""
        return asdict(self)


METHODS: dict[str, type[Method]] = {}


def register(cls: type[Method]) -> type[Method]:
    """Make a method known by its name."""
    METHODS[cls.name] = cls
    return cls


def method_named(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """A method by name with settings. Raises VoltmeterError naming the nearest, or the settings there are."""
    if name not in METHODS:
        raise VoltmeterError(
            f"there is no method called '{name}'",
            [nearest(name, list(METHODS))],
            f"methods: {', '.join(sorted(METHODS))}",
        )
    cls = METHODS[name]
    known = [f.name for f in fields(cls)]
    unknown = [key for key in settings or {} if key not in known]
    if unknown:
        raise VoltmeterError(
            f"{name} has no setting called {', '.join(repr(u) for u in unknown)}",
            [f"its settings: {', '.join(known) or 'none'}"],
        )
    return cls(**(settings or {}))


def with_gradient(value: Tensor, metric: str, method: str) -> Tensor:
    """``value``, which must have a gradient. Raises MetricError where the metric is a step function, or detached."""
    if not value.requires_grad:
        raise MetricError(
            f"{metric} has no gradient, and {method} follows it",
            mend="use logit-difference or log-probability, or a metric of your own that is differentiable",
        )
    return value


Progress = Callable[[int, int, State], None]  # step done, steps in all, the state


def run_method(
    method: Method,
    question: Question,
    progress: Progress | None = None,
    resume: tuple[int, State] | None = None,
) -> Float[Tensor, "edge"]:
    """The scores after all steps, from ``resume`` (a step's number and the state after it) or from the start."""
    return scores_of(method, question, final_state(method, question, progress, resume))


def scores_of(method: Method, question: Question, state: State) -> Float[Tensor, "edge"]:
    """The scores of a finished state, in float32 on the CPU."""
    return method.values(question, state).detach().cpu().float()


def final_state(
    method: Method,
    question: Question,
    progress: Progress | None = None,
    resume: tuple[int, State] | None = None,
) -> State:
    """The state after all steps, from ``resume`` or from the start."""
    done, state = resume if resume is not None else (0, method.start(question))
    total = method.steps(question)
    for number in range(done, total):
        state = method.step(question, state, number)
        if progress is not None:
            progress(number + 1, total, state)
    return state


def seeded(question: Question, number: int) -> torch.Generator:
    """The random numbers of one step: the same whether or not the run was interrupted before it."""
    return torch.Generator().manual_seed(question.seed * 1_000_003 + number)
