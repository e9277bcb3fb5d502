"""What a circuit puts out beside the full model and beside nothing kept, and which simple rules explain it."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voltmeter.check.board import Region, on_board, regions
from voltmeter.check.case import Case
from voltmeter.check.finding import FAILS, Verdict, within
from voltmeter.check.outputs import PutOut
from voltmeter.check.rules import NOTHING_KEPT, Rule, features_of, rules_for
from voltmeter.discover.intervals import Groups, interval

EXPLAINED = 0.95  # of what is put out: a rule that says it this often leaves nothing for a circuit to explain
UNREACHED = 1e-5  # of how far cutting everything moves the logits: float32 sums in another order differ by about that

CIRCUIT, FULL, NOTHING = range(3)  # the runs that are looked at

Share = tuple[float, float, float]  # and its 95% interval


@dataclass(frozen=True)
class Explained:
    """How often a rule says what the circuit puts out (95% interval), what the full model does, and what is right.

    ``counts``: whether a circuit that it explains is trivial.
    """

    name: str
    agrees: float
    low: float
    high: float
    full: float
    right: float | None
    counts: bool = True

    @property
    def verdict(self) -> Verdict:
        return within(self.low, self.high, at_most=EXPLAINED)


@final
class Look:
    """``seen`` under the runs above, and what there is to say of it."""

    def __init__(self, case: Case, seen: PutOut) -> None:
        self.case, self.seen = case, seen
        self.groups = Groups(seen.groups)
        self.features = features_of(seen)
        self.there: Bool[Tensor, "unit row column"] | None = None if seen.readout.board is None else on_board(seen)

    @property
    def circuit(self) -> Int64[Tensor, "unit"]:
        """What the circuit puts out."""
        return self.seen.label[CIRCUIT]

    @property
    def full(self) -> Int64[Tensor, "unit"]:
        """What the full model puts out."""
        return self.seen.label[FULL]

    def shares(self, is_so: Tensor) -> Share:
        """The share of units of which something is so, and its interval; NaN counts for nothing."""
        values = is_so.double()
        drawn = self.groups.drawn(values.nan_to_num()) / self.groups.drawn((~values.isnan()).double())
        return mean(values), *interval(drawn)

    # Rules

    @cached_property
    def explained(self) -> list[Explained]:
        """Every rule and region, in the order in which they are looked at."""
        mine, theirs = (self._rules(run) for run in (CIRCUIT, FULL))
        return [
            *(self._explained(rule, full) for rule, full in zip(mine, theirs, strict=True)),
            *(self._within(region) for region in self.regions),
        ]

    @property
    def closest(self) -> Explained:
        """The first, and so the simplest, that explains it; where none does, what says most of it."""
        counting = [each for each in self.explained if each.counts]
        explaining = [each for each in counting if each.verdict == FAILS]
        return explaining[0] if explaining else max(counting, key=lambda each: each.agrees)

    @cached_property
    def regions(self) -> list[Region]:
        return [] if self.there is None else regions(self.there)

    def _rules(self, run: int) -> list[Rule]:
        seen = self.seen
        return rules_for(seen, self.features, seen.label[run], seen.label[NOTHING], self.case.random("folds"))

    def _explained(self, rule: Rule, full: Rule) -> Explained:
        of_full = mean(full.says == self.full)
        right = self.seen.right(rule.says)
        counts = rule.name != NOTHING_KEPT or of_full < EXPLAINED  # else the inputs of a pair ask for the same
        share, low, high = self.shares(rule.says == self.circuit)
        return Explained(rule.name, share, low, high, of_full, None if right is None else mean(right), counts)

    def _within(self, region: Region) -> Explained:
        share, low, high = self.shares(region.holds(self.circuit))
        return Explained(region.name, share, low, high, mean(region.holds(self.full)), None)

    # Questions

    @property
    def is_reached(self) -> bool:
        """Whether anything of the input comes through: logits differ somewhere from those with nothing kept."""
        for values in (self.seen.value, self.seen.margin.nan_to_num()):
            scale = float((values[FULL] - values[NOTHING]).abs().max())
            if float((values[CIRCUIT] - values[NOTHING]).abs().max()) > UNREACHED * scale:
                return True
        return not torch.equal(self.circuit, self.seen.label[NOTHING])

    @cached_property
    def asked(self) -> list[int]:
        """The labels asked for, the most frequent first; none where nothing says."""
        asked = self.seen.asked
        return [] if asked is None else most_frequent(asked[:, 0][asked[:, 0] >= 0])

    @property
    def asks_for_one(self) -> bool:
        """Whether all inputs of which it is known ask for the same."""
        return len(self.asked) == 1

    def follows(self, run: int) -> Share:
        """On what share of the pairs their own answers are above their own wrong ones."""
        margin = self.seen.margin[run]
        return self.shares(torch.where(margin.isnan(), torch.nan, (margin > 0).double()))

    def right(self, labels: Int64[Tensor, "unit"]) -> Float[Tensor, "unit"] | None:
        """1 where a label is an answer; None where nothing says what is."""
        return self.seen.right(labels) if self.asked else None

    @property
    def chance(self) -> float:
        """How often the most frequent answer is right."""
        right = self.right(torch.full_like(self.full, self.asked[0])) if self.asked else None
        return 0.0 if right is None else mean(right)

    def prefers(self, run: int) -> Share:
        """As ``follows``, of clean inputs alone: nobody said that wrong answers are right for the corrupted ones."""
        margin = self.seen.margin[run].masked_fill(self.seen.pair >= len(self.seen.pairs[0]), torch.nan)
        return self.shares(torch.where(margin.isnan(), torch.nan, (margin > 0).double()))

    def does_the_task(self, run: int = FULL) -> bool:
        """Whether it prefers a pair's own answers to its own wrong ones; where pairs have no wrong ones, whether it is
        right more often than the most frequent answer would be. True where nothing says what is right.

        A model that is right at first choice on half of the pairs, and says their wrong answers on the others, is no
        better than chance, however many answers there are to choose from.
        """
        if self.has_wrong:
            return self.prefers(run)[1] > 0.5
        right = self.right(self.seen.label[run])
        return right is None or self.shares(right)[1] > self.chance

    def misses_the_task(self, run: int, prefers: float) -> bool:
        """Whether it is shown that it does not: on less than the share ``prefers`` of the pairs their own answers are
        above their wrong ones, or it is right no more often than the most frequent answer."""
        if self.has_wrong:
            return self.prefers(run)[2] < prefers
        right = self.right(self.seen.label[run])
        return right is not None and self.shares(right)[2] <= self.chance

    @property
    def has_wrong(self) -> bool:
        """Whether some pair has an answer and a wrong one."""
        return bool(self.asked) and not bool(self.seen.margin[FULL].isnan().all())


def most_frequent(labels: Int64[Tensor, "unit"]) -> list[int]:
    """The labels there are, the most frequent first, of equals the lowest."""
    values, counts = labels.unique(return_counts=True)
    order: list[int] = values[torch.argsort(counts, descending=True, stable=True)].tolist()
    return order


def mean(values: Tensor) -> float:
    """Over those that are numbers."""
    return float(values.double().nanmean())
