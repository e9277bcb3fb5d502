"""What circuits do on some pairs: many circuits, every pair, metric and KL side by side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.discover.faithful import Judge
from voltmeter.discover.intervals import Groups, interval
from voltmeter.discover.question import Batch, Question, cut_answers, reduced
from voltmeter.errors import KeepError
from voltmeter.run.keep import require_rows_first
from voltmeter.run.prefix import Prefix
from voltmeter.task.metric import KL
from voltmeter.task.pairs import Pairs
from voltmeter.wiring.inputs import expand_rows
from voltmeter.wiring.wiring import Wiring

_WORTH = 32  # circuits near another one from which rehearsing that one, some fifteen forwards, pays for itself
_ROWS = 512  # circuits times pairs of a run: where time per circuit levels off on a CPU (as for ``exact``)

Reading = Callable[[Any, Pairs, Any], Tensor]
"""Of what a model answered to pairs, and what the full model does: something [pair, ...] to be told of each."""


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Pairs on which circuits are measured; ``judge`` holds the runs that do not depend on the circuit."""

    judge: Judge

    @classmethod
    def of(cls, question: Question, pairs: Pairs) -> "Split":
        """Costs three forwards of the pairs."""
        return cls(Judge(question.wiring, question.task, pairs, question.fill))

    @property
    def pairs(self) -> Pairs:
        return self.judge.pairs

    def __len__(self) -> int:
        return len(self.judge.pairs)

    @cached_property
    def groups(self) -> Groups:
        """For intervals: pairs of one group are drawn together."""
        return Groups(self.pairs.groups)

    @property
    def full(self) -> Float64[Tensor, "pair"]:
        """The metric with every edge kept."""
        return self.judge.full

    @property
    def nothing(self) -> Float64[Tensor, "pair"]:
        """The metric with no edge kept."""
        return self.judge.none

    def read(
        self, keep: Float[Tensor, "circuit edge"], reading: Reading, near: Float[Tensor, "edge"] | None = None
    ) -> Tensor:
        """``reading`` of every circuit's answers: [circuit, pair, ...].

        ``near``: what the circuits nearly are; each is then run from the first reader at which one differs from it.
        Costs a masked forward of the pairs for each circuit, or less.
        """
        parts = [
            torch.cat([part.cpu() for part in self._read(batch, full, keep, reading, near)])
            for batch, full in zip(self.judge.batches, self.judge.answers, strict=True)
        ]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def _read(self, batch: Batch, full: Any, keep: Tensor, reading: Reading, near: Tensor | None) -> Iterator[Tensor]:
        """[some circuits, pair, ...], over all circuits."""
        wiring, metric = self.judge.wiring, self.judge.task.metric
        if near is None or len(keep) < _WORTH or not _runs_as_rows(wiring):
            for circuit in keep:
                yield reading(cut_answers(wiring, batch, circuit, metric), batch.pairs, full)[None]
            return
        prefix = Prefix(wiring, batch.clean, batch.fill, max(1, _ROWS // len(batch.pairs)), near)
        for some in keep.split(prefix.circuits):
            times = len(some)
            flat = tree_map(lambda leaf: leaf.flatten(0, 1) if isinstance(leaf, Tensor) else leaf, prefix.run(some))
            pairs = batch.pairs.batch(list(range(len(batch.pairs))) * times)
            told = reading(reduced(flat, pairs, metric), pairs, expand_rows(full, times))
            yield told.view(times, len(batch.pairs), *told.shape[1:])

    def measure(self, keep: Float[Tensor, "circuit edge"], near: Float[Tensor, "edge"] | None = None) -> "Measured":
        """The metric, and KL to the full model where there are logits, of every circuit on every pair."""
        metric, with_kl = self.judge.task.metric, self.judge.with_kl

        def both(answers: Any, pairs: Pairs, full: Any) -> Tensor:
            values = metric(answers, pairs, full=full).double()
            kl = -KL(answers, pairs, full=full).double() if with_kl else torch.zeros_like(values)
            return torch.stack([values, kl], dim=1)

        told = self.read(keep, both, near).double()
        return Measured(self, told[..., 0], told[..., 1] if with_kl else None)


def _runs_as_rows(wiring: Wiring) -> bool:
    """Whether circuits can be run as one batch: not where examples lie along another axis, or the model mixes them."""
    try:
        require_rows_first(wiring)
    except KeepError:
        return False
    return True


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """Circuits on the pairs of a split."""

    split: Split
    values: Float64[Tensor, "circuit pair"]
    kl: Float64[Tensor, "circuit pair"] | None
    """KL(full ‖ circuit); None where the model returns no logits, or KL is the metric itself."""

    @property
    def f(self) -> Float64[Tensor, "circuit"]:
        """Faithfulness: (m(circuit) − m(nothing kept)) / (m(full) − m(nothing kept))."""
        full, nothing = self.split.full, self.split.nothing
        return (self.values - nothing).mean(1) / (full - nothing).mean()

    @property
    def drawn(self) -> Float64[Tensor, "circuit resample"]:
        """``f`` of each bootstrap draw of the groups."""
        full, nothing = self.split.full, self.split.nothing
        return self.split.groups.drawn(self.values - nothing) / self.split.groups.drawn(full - nothing)

    @property
    def each(self) -> Float64[Tensor, "circuit pair"]:
        """f of each pair by itself; not finite where the full model and nothing kept agree on it."""
        return (self.values - self.split.nothing) / (self.split.full - self.split.nothing)

    @property
    def kl_share(self) -> Float64[Tensor, "circuit"] | None:
        """KL(full ‖ circuit) over KL(full ‖ nothing kept)."""
        return None if self.kl is None else self.kl.mean(1) / self.split.judge.none_kl.mean()

    def interval(self, circuit: int = 0) -> tuple[float, float]:
        """95% of ``f``, bootstrapped over groups."""
        return interval(self.drawn[circuit])

    def faithful(self, threshold: float) -> Bool[Tensor, "circuit"]:
        """Whether each is faithful at ``threshold`` as ``Faithfulness.at`` says; KL as the metric has no share."""
        near = (self.f >= threshold - 1e-5) & (self.f <= 2 - threshold + 1e-5)  # the rounding of Faithfulness.at
        return near if self.kl_share is None else near & (self.kl_share <= 1 - threshold + 1e-5)
