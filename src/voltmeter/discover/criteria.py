"""Which circuits suffice: criteria that ``prune`` asks.

A criterion is any function from keeps [circuit, edge], of ones and zeros, to one truth value for each. It must say the
same of a circuit every time. Two are here; a compiled model's own machine makes a faster one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.discover.faithful import Judge
from voltmeter.discover.question import Batch, Question, reduced
from voltmeter.errors import CircuitError
from voltmeter.run.run import run
from voltmeter.task.metric import logits_of

Criterion = Callable[[Tensor], Tensor]
"""Float [circuit, edge] -> Bool [circuit]."""


@final
@dataclass(frozen=True, eq=False)
class Within:
    """Whether outputs stay within ``tolerance`` of the full model's: the largest |change|, over all train pairs.

    ``observe`` takes what is compared from what the model returned for a batch; by default the logits, and of them only
    those at the answers where the task's metric looks at nothing else. Circuits are run as one batch; those that fail
    on some pairs are not run on the next ones. Costs at most one masked forward for each circuit and batch of pairs.
    """

    question: Question
    tolerance: float
    observe: Callable[[Any], Tensor] = logits_of

    def __call__(self, keep: Float[Tensor, "circuit edge"]) -> Bool[Tensor, "circuit"]:
        holds = torch.ones(len(keep), dtype=torch.bool)
        for batch in self.question.batches():
            left = holds.nonzero().flatten()
            if not len(left):
                break
            holds[left] = self._changes(batch, keep[left]) <= self.tolerance
        return holds

    @torch.no_grad()
    def _changes(self, batch: Batch, keep: Float[Tensor, "circuit edge"]) -> Float[Tensor, "circuit"]:
        question = self.question
        full = self.observe(question.full_answers(batch))
        outputs = run(question.wiring, batch.clean, keep, batch.fill, batch.corrupted, axes="circuit edge")
        changes = []
        for at in range(len(keep)):
            answers = tree_map(lambda leaf, at=at: leaf[at] if isinstance(leaf, Tensor) else leaf, outputs)
            answers = reduced(answers, batch.pairs, question.task.metric)
            changes.append((self.observe(answers) - full).abs().max())
        return torch.stack(changes).cpu()

    def __str__(self) -> str:
        return f"outputs within {self.tolerance:g} of the full model's"


@final
@dataclass(frozen=True, eq=False)
class Faithful:
    """Whether circuits are faithful at ``threshold`` on the judge's pairs (see ``Faithfulness.at``).

    Costs one masked forward for each circuit and batch of pairs.
    """

    judge: Judge
    threshold: float

    def __call__(self, keep: Float[Tensor, "circuit edge"]) -> Bool[Tensor, "circuit"]:
        return torch.tensor([self.judge.measure(one).at(self.threshold) for one in keep], dtype=torch.bool)

    def __str__(self) -> str:
        return f"faithful at {self.threshold:g}"


class Counted:
    """A criterion asked in chunks of at most ``chunk`` circuits, with a count of the circuits that were ``judged``."""

    def __init__(self, criterion: Criterion, chunk: int) -> None:
        if chunk < 1:
            raise CircuitError(f"{chunk} circuits were to be judged at once, at least 1 is needed")
        self.criterion, self.chunk, self.judged = criterion, chunk, 0

    def __call__(self, kept: Bool[Tensor, "circuit edge"]) -> list[bool]:
        """Whether each suffices. Raises CircuitError where the criterion does not give one truth value for each."""
        return [answer for part in kept.split(self.chunk) for answer in self._ask(part)]

    def _ask(self, kept: Bool[Tensor, "circuit edge"]) -> list[bool]:
        self.judged += len(kept)
        answer = self.criterion(kept.float())
        if answer.dtype != torch.bool or answer.shape != (len(kept),):
            raise CircuitError(
                f"the criterion answered with {answer.dtype} {list(answer.shape)} about {len(kept)} circuits",
                mend="return one truth value for each: a Bool [circuit]",
            )
        found: list[bool] = answer.tolist()
        return found
