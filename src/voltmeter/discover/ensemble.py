"""Several methods' scores as one, and no scores at all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.masks import mean_ranks
from voltmeter.discover.method import Method, State, method_named, register
from voltmeter.discover.question import Question
from voltmeter.errors import VoltmeterError

_COMBINE = ("rank", "z")


class _Turn(NamedTuple):
    """A step of the ensemble: which member's, and the member's own step; -1 is its start."""

    member: int
    step: int


@final
@register
@dataclass(frozen=True)
class Ensemble(Method):
    """The mean of several methods' |scores|, each brought to one scale.

    ``combine="rank"``: the share of edges that score lower (equal ones count half). ``"z"``: standard scores (mean 0,
    deviation 1; all 0 where a method scores every edge alike). ``members`` are names of methods; ``member_settings``
    holds the settings of any of them. Each member is run as it would be alone, by the same seed, so that its part in
    the result is its own scores.

    Costs what its members cost together. Source: the best entries of the BlackboxNLP 2025 shared task are ensembles
    [A]; rank and mean as combinations are ours. The default members are the cheapest gradient and the learned masks.
    Affordable where all its members are.
    """

    name: ClassVar[str] = "ensemble"
    sign: ClassVar[str] = "magnitude: how far up the edge stands in the members' order, either sign"

    members: Sequence[str] = ("eap", "edge-sp")
    member_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    combine: str = "rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if self.combine not in _COMBINE:
            raise VoltmeterError(f"ensemble cannot combine by '{self.combine}'", [f"it can by: {', '.join(_COMBINE)}"])
        repeated = sorted({name for name in self.members if self.members.count(name) > 1})
        strays = [name for name in self.member_settings if name not in self.members]
        misses = ["it names itself"] if self.name in self.members else []
        misses += ["it has none"] if not self.members else []
        misses += [f"{name} stands in it twice" for name in repeated]
        misses += [f"there are settings for {name}, which is no member" for name in strays]
        if misses:
            raise VoltmeterError(f"an ensemble cannot be made of these members: {', '.join(self.members)}", misses)
        self._methods()

    def _methods(self) -> list[Method]:
        return [method_named(name, self.member_settings.get(name)) for name in self.members]

    def _turns(self, question: Question) -> Iterator[_Turn]:
        """Every member's start and steps, one member after the other."""
        for member, method in enumerate(self._methods()):
            for step in range(-1, method.steps(question)):
                yield _Turn(member, step)

    def steps(self, question: Question) -> int:
        return sum(1 for _ in self._turns(question))

    def start(self, question: Question) -> State:
        return {}

    def step(self, question: Question, state: State, number: int) -> State:
        turn = list(self._turns(question))[number]
        method = self._methods()[turn.member]
        before = _of(turn.member, state)
        mine = method.start(question) if turn.step < 0 else method.step(question, before, turn.step)
        done = {name: tensor for name, tensor in state.items() if not name.startswith(f"{turn.member}.")}
        if turn.step + 1 == method.steps(question):
            mine = {"scores": method.values(question, mine)}
        return done | {f"{turn.member}.{name}": tensor for name, tensor in mine.items()}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        scale = _ranked if self.combine == "rank" else _standard
        scores = [_of(member, state)["scores"] for member in range(len(self.members))]
        return torch.stack([scale(each.detach().cpu().abs()) for each in scores]).mean(0)


def _of(member: int, state: State) -> State:
    """The state of one member."""
    prefix = f"{member}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _ranked(values: Float[Tensor, "edge"]) -> Float[Tensor, "edge"]:
    return mean_ranks(values) / len(values)


def _standard(values: Float[Tensor, "edge"]) -> Float[Tensor, "edge"]:
    values = values.double()
    deviation = values.std(unbiased=False)
    return (values - values.mean()) / deviation if deviation > 0 else torch.zeros_like(values)


@final
@register
@dataclass(frozen=True)
class PruneOnly(Method):
    """No scores: every edge gets 0, so that the order is that of the wiring.

    The baseline that tells what learning adds: ``discretise.prune`` finds a 1-minimal circuit from any order. By
    itself it ranks nothing. Costs nothing. No settings. Affordable over all parts; pruning them is not.
    """

    name: ClassVar[str] = "prune-only"
    sign: ClassVar[str] = "none: every edge scores 0"

    def steps(self, question: Question) -> int:
        return 1

    def start(self, question: Question) -> State:
        return {}

    def step(self, question: Question, state: State, number: int) -> State:
        return state

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return torch.zeros(question.n_edges)
