"""What a search may cost, how many states it visits and how many numbers it holds in memory; and how it can end."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

Search: TypeAlias = Literal["whole", "stopped", "unsure"]  # all seen; out of budget; all seen, but up to rounding

MOST_NUMBERS = 2**27  # 1 GiB in float64
_COMPARISONS = 1_000  # of two sets of edges take about as long as one state


class SpentError(Exception):
    """The next step would cost more than is left. It was not made."""


@final
@dataclass
class Budget:
    """``spent`` of ``limit`` states. What is asked for is asked for before it is done, and counts only if it is."""

    limit: int
    spent: int = 0

    def spend(self, states: int) -> None:
        """Raises SpentError where that many are not left."""
        if self.spent + states > self.limit:
            raise SpentError
        self.spent += states

    def require(self, states: int) -> None:
        """The same, and spends none: for what is spent piece by piece, and no piece is worth it without the others."""
        if self.spent + states > self.limit:
            raise SpentError

    def compare(self, sets: int, made: int = 0) -> None:
        """Spend what it costs to find the minimal ones of so many sets, which grows with their square, and to make
        ``made`` of them: a state each.
        """
        self.spend(made + sets * sets // _COMPARISONS)


def require_room(numbers: int) -> None:
    """Raises SpentError where so many numbers are more than may be held."""
    if numbers > MOST_NUMBERS:
        raise SpentError
