"""Circuits with edges cut, measured one piece after the other while there is time; and what a difference is."""

from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from voltmeter.check.clock import Clock
from voltmeter.check.split import Measured, Split
from voltmeter.discover.intervals import interval

_PIECE = 64  # circuits between two looks at the clock, where they are run from where they differ: after a rehearsal
_FEW = 4  # where each is run from the start: a rehearsal would cost as much again


def measure_while(
    clock: Clock, split: Split, keep: Float[Tensor, "circuit edge"], near: Float[Tensor, "edge"] | None = None
) -> Measured:
    """Every circuit on every pair; under a deadline those of the first pieces, at least one piece.

    ``near`` is as in ``Split.measure``: give it where circuits differ from it late. Without, each is run by itself.
    """
    if not len(keep):
        return _nothing(split)
    pieces = keep.split(_FEW if near is None else _PIECE)
    found = [split.measure(pieces[0], near)]
    for piece in pieces[1:]:
        if clock.over:
            break
        found.append(split.measure(piece, near))
    kl = [each.kl for each in found if each.kl is not None]
    return Measured(split, torch.cat([each.values for each in found]), torch.cat(kl) if kl else None)


def measure_once(split: Split, keep: Float[Tensor, "circuit edge"]) -> Measured:
    """Every circuit on every pair, where several may be the same: each is run once, by itself."""
    different, which = keep.unique(dim=0, return_inverse=True)
    found = measure_while(Clock(), split, different)
    return Measured(split, found.values[which], None if found.kl is None else found.kl[which])


def _nothing(split: Split) -> Measured:
    empty = torch.zeros(0, len(split), dtype=torch.float64)
    return Measured(split, empty, empty if split.judge.with_kl else None)


@final
class Differences:
    """What circuits do otherwise than another one (or each than its own other one), as shares of the whole effect.

    ``f``: [circuit], the difference in faithfulness. ``other``: [circuit], that of the KL share; where there is no KL,
    the mean over pairs of how far the metric moved, as a share of the mean effect: so that pairs which move in opposite
    directions do not look as if nothing had happened.
    """

    def __init__(self, ones: Measured, others: Measured) -> None:
        split = ones.split
        self.split, self.whole = split, split.full - split.nothing
        self.moved = ones.values - others.values
        if ones.kl is None or others.kl is None or not float(split.judge.none_kl.mean()) > 0:
            self.moved_otherwise, self.unit = self.moved.abs(), self.whole
        else:
            self.moved_otherwise, self.unit = ones.kl - others.kl, split.judge.none_kl

    @property
    def f(self) -> Float64[Tensor, "circuit"]:
        return self.moved.mean(1) / self.whole.mean()

    @property
    def other(self) -> Float64[Tensor, "circuit"]:
        return self.moved_otherwise.mean(1) / self.unit.mean()

    @property
    def size(self) -> Float64[Tensor, "circuit"]:
        """The larger of the two, without its sign."""
        return torch.maximum(self.f.abs(), self.other.abs())

    def interval(self, circuit: int = 0) -> tuple[float, float]:
        """95% of ``size``, bootstrapped over groups."""
        ends = [_of_size(self._drawn(of[circuit], unit)) for of, unit in self._both()]
        return max(low for low, _ in ends), max(high for _, high in ends)

    def interval_of_f(self, circuit: int = 0) -> tuple[float, float]:
        """95% of the difference in f, without its sign."""
        return _of_size(self._drawn(self.moved[circuit], self.whole))

    def _both(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.moved, self.whole), (self.moved_otherwise, self.unit)

    def _drawn(self, values: Tensor, unit: Tensor) -> Tensor:
        drawn = self.split.groups.drawn
        found: Tensor = drawn(values) / drawn(unit)
        return found


def _of_size(samples: Float[Tensor, "resample"]) -> tuple[float, float]:
    """The interval of a number, as one of its size: from 0 where its sign is not known."""
    low, high = interval(samples)
    if low <= 0 <= high:
        return 0.0, max(0.0, -low, high)
    return min(abs(low), abs(high)), max(abs(low), abs(high))


def percent(share: float) -> str:
    """ "12%"; a little less than nothing is "0%"."""
    text = f"{share:.0%}"
    return "0%" if text == "-0%" else text


def signed(share: float) -> str:
    """ "+12%", "-3%"; a little more or less than nothing is "0%"."""
    text = f"{share:+.0%}"
    return "0%" if text in ("+0%", "-0%") else text


def no_interval(split: Split) -> str:
    """Why nothing can be said of these pairs; empty where something can."""
    if split.groups.count < 2:
        return "the held-out pairs are of one group: nothing says how much they vary; at least two groups are needed"
    whole = split.full - split.nothing
    if float(whole.mean().abs()) <= 1e-6 * float(whole.abs().mean()):  # float32 sums in another order differ by that
        return "on average the full model does as well as with nothing kept: there is no effect to have a share of"
    return no_clear_effect(split)


def no_clear_effect(split: Split) -> str:
    """That the full model is not clearly better or worse than nothing kept, where it is not: a share of what may be
    nothing can be any number. Else empty."""
    low, high = interval(split.groups.drawn(split.full - split.nothing))
    if not low <= 0 <= high:
        return ""
    full, nothing = float(split.full.mean()), float(split.nothing.mean())
    return (
        f"the full model's {split.judge.task.metric.name} is {full:.3g} and with nothing kept it is {nothing:.3g}, "
        "which these pairs cannot tell apart: there is no clear effect to have a share of"
    )
