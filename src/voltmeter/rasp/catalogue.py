"""Values that a component took, each once: what makes an exact search over circuits small.

Two runs that keep different edges often come to the same numbers, and from there on are one. Values are the same here
when no entry differs by more than ``SAME`` of the largest one (at least 1): six orders of magnitude under the usual
tolerance of a truth, four over the rounding of a component. The first of equal values stands for the others.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.errors import TruthError

SAME = 1e-12


@final
class Catalogue:
    """Distinct tensors of one shape, numbered from 0 as they come.

    A value is found by a fingerprint, its product with a fixed random vector whose entries add up to 1 in size: values
    that differ by no more than ε have fingerprints that differ by no more than ε, so only neighbouring cells of width
    2 ε are looked into, and what is found there is compared entry by entry.
    """

    def __init__(self, like: Tensor) -> None:
        self.within = SAME * max(1.0, float(like.abs().max()) if like.numel() else 1.0)
        weights = torch.rand(like.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
        self._weights = (weights / weights.abs().sum()).to(like.dtype)
        self._cells: dict[int, list[int]] = {}
        self._size = like.numel()
        self.values: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.values)

    @property
    def held(self) -> int:
        """How many numbers are held in memory."""
        return len(self.values) * self._size

    def numbers(self, values: Float[Tensor, "row *shape"]) -> list[int]:
        """The number of each value; new ones get the next. Raises TruthError for one that is not finite."""
        prints = (values.reshape(len(values), -1) @ self._weights).tolist()
        if not all(map(math.isfinite, prints)):
            raise TruthError(
                "with some edges cut the model computes numbers that are not finite",
                mend="look at its weights, or use another fill",
            )
        return [self._number(value, mark) for value, mark in zip(values, prints, strict=True)]

    def _number(self, value: Tensor, mark: float) -> int:
        cell = math.floor(mark / (2 * self.within))
        for near in (cell, cell - 1, cell + 1):
            for number in self._cells.get(near, ()):
                if float((self.values[number] - value).abs().max()) <= self.within:
                    return number
        self._cells.setdefault(cell, []).append(len(self.values))
        self.values.append(value.clone())  # a row of a batch would keep the whole batch
        return len(self.values) - 1
