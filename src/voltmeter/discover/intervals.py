"""Intervals by bootstrap over groups: pairs that share names and template are drawn together, or not at all."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 1000


@final
class Groups:
    """Groups of pairs, drawn with replacement as often as there are groups, a thousand times, by a fixed seed.

    A group comes whole, whatever its size: a ratio of two ``drawn`` sums is the ratio of means over the pairs drawn.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        number = {name: n for n, name in enumerate(sorted(set(groups)))}
        self.count = len(number)
        self._of = torch.tensor([number[name] for name in groups])
        chosen = torch.randint(self.count, (RESAMPLES, self.count), generator=torch.Generator().manual_seed(0))
        self._times = torch.zeros(RESAMPLES, self.count, dtype=torch.float64)
        self._times.scatter_add_(1, chosen, torch.ones_like(self._times))

    def drawn(self, values: Float[Tensor, "*rows pair"]) -> Float[Tensor, "*rows resample"]:
        """The sum of ``values`` over the pairs of each draw."""
        sums = torch.zeros(*values.shape[:-1], self.count, dtype=torch.float64)
        return sums.index_add_(-1, self._of, values.double()) @ self._times.T


def interval(samples: Float[Tensor, "resample"], level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of the samples that are finite; NaN where none is."""
    finite = samples[torch.isfinite(samples)]
    if not len(finite):
        return math.nan, math.nan
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=finite.dtype)
    low, high = torch.quantile(finite, ends).tolist()
    return low, high
