"""Axes of charts: which values get a tick, and where a value stands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 5.0)
_SPREAD = 20.0  # largest over smallest, from which whole positive numbers are better told apart on a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high``, laid from ``start`` to ``end`` (of a page, so upright ones run backwards)."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share

    def ticks(self, most: int = 6) -> tuple[tuple[float, str], ...]:
        """(place, text) of round values, at most about ``most`` of them."""
        values = _powers(self.low, self.high, most) if self.logarithmic else _round(self.low, self.high, most)
        return tuple((self(value), told(value)) for value in values)


def axis(values: Iterable[float], start: float, end: float, whole: Sequence[float] = (), pad: float = 0.04) -> Axis:
    """A linear axis with room for all of ``values``, some beside them, and at least for ``whole``."""
    given = [*values, *whole]
    low, high = min(given, default=0.0), max(given, default=1.0)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    room = pad * (high - low)
    held = set(whole)  # an axis that begins at 0 begins there
    return Axis(low if low in held else low - room, high if high in held else high + room, start, end)


def logarithmic_or_not(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis for positive values far apart, a linear one for others."""
    if values and min(values) > 0 and max(values) / min(values) >= _SPREAD:
        return Axis(min(values), max(values), start, end, logarithmic=True)
    return axis(values, start, end)


def _round(low: float, high: float, most: int) -> list[float]:
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(s * power for s in (*_STEPS, 10.0) if s * power >= least * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float, most: int) -> list[float]:
    base = 2.0 if math.log2(high / low) <= 2 * most else 10.0
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / (most + 2)))
    return [base**power for power in range(first, last + 1, every)]


def told(value: float) -> str:
    """A tick's text: as short as tells it, with a minus sign and not a hyphen."""
    if value and (abs(value) < 1e-4 or abs(value) >= 1e6):
        digits, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}".replace("-", "−")
    return f"{round(value, 10):,.6g}".replace("-", "−")
