"""A few pairs, for checks that try many circuits."""

from collections.abc import Sequence

from voltmeter.check.case import Case
from voltmeter.check.split import Split
from voltmeter.task.pairs import Pairs

FEWER = 32
"""Pairs. What is looked for on them is large (a quarter of the effect), or compared between edges on the same pairs."""


def few_train(case: Case) -> Split:
    """At most 32 train pairs, drawn by the seed; held-out ones where there are no others."""
    if case.task.train is case.task.held_out:
        return few_held_out(case)
    return Split.of(case.question, case.task.train.batch(_drawn(case, case.task.train)))


def few_held_out(case: Case) -> Split:
    """At most 32 held-out pairs, drawn by the seed."""
    if len(case.few) <= FEWER:
        return case.few
    return Split.of(case.question, case.few.pairs.batch(_drawn(case, case.few.pairs)))


def _drawn(case: Case, pairs: Pairs) -> Sequence[int]:
    return sorted(case.random("fewer").choose(len(pairs), FEWER))
