"""How much time a check may take."""

import math
import time
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class Clock:
    """A deadline. Without one (``seconds`` None) every check does all it has planned, and its answer is the same each
    time; with one a check stops between two pieces of work, and its finding says how many there were."""

    seconds: float | None = None
    _started: float = field(default_factory=time.monotonic, repr=False)

    @property
    def left(self) -> float:
        """Seconds, from 0 on; infinite without a deadline."""
        if self.seconds is None:
            return math.inf
        return max(0.0, self.seconds - (time.monotonic() - self._started))

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self.left <= 0

    def share(self, parts: int) -> "Clock":
        """A clock with an even share of what is left among ``parts``."""
        return self if self.seconds is None else Clock(self.left / max(1, parts))
