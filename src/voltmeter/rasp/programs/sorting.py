"""Tokens in order, and where in that order they are. Sorting counts for each position how many come before it."""

from voltmeter.rasp.language import GT, LT, Aggregate, Select, SelectorWidth, SequenceMap, Sop, indices, tokens
from voltmeter.rasp.programs.pieces import (
    broken_ties,
    histogram,
    is_token,
    so_far,
    sorted_by,
    where,
)
from voltmeter.rasp.programs.program import known


@known((1, 2, 3), 5, {(3, 1, 2, 1): (1, 1, 2, 3), (2, 2): (2, 2), (3, 2, 1, 3, 2): (1, 2, 2, 3, 3)})
def sort() -> Sop:
    """The tokens in ascending order."""
    return sorted_by(tokens, broken_ties(tokens, 5))


@known((1, 2, 3, 4, 5), 5, {(3, 1, 5): (1, 3, 5), (5, 4, 1, 3, 2): (1, 2, 3, 4, 5)}, distinct=True)
def sort_unique() -> Sop:
    """The tokens, no two of which are equal, in ascending order."""
    return sorted_by(tokens, tokens)


@known(
    (1, 2, 3),
    5,
    {(3, 1, 3): (3, 3, 1), (1, 2, 2, 3, 2): (2, 2, 2, 1, 3), (1, 2, 1, 2, 3): (1, 2, 1, 2, 3), (2, 1): (2, 1)},
)
def sort_freq() -> Sop:
    """The tokens by how often they occur, the most frequent first; equally frequent ones stay as they stood."""
    return sorted_by(tokens, broken_ties(-1 * histogram(), 5))


@known((1, 2, 3, 4), 4, {(3, 1, 2, 1): (3, 0, 2, 0), (4, 4, 1): (1, 1, 0)})
def rank() -> Sop:
    """How many tokens are less than this one."""
    return SelectorWidth(Select(tokens, tokens, LT))


@known((1, 2, 3, 4), 4, {(2, 4, 1, 4): (1, 1, 1, 1), (1, 2, 3): (2, 2, 2), (3, 3): (0, 0)})
def argmax_position() -> Sop:
    """The index of the largest token, everywhere; of equal ones the first."""
    score = SequenceMap(lambda token, index: 4 * token - index, tokens, indices)
    better = SelectorWidth(Select(score, score, GT))
    return Aggregate(where(better, 0), indices)


@known((1, 2, 3, 4), 4, {(2, 4, 2, 3): (2, 2, 2, 2), (3, 1): (1, 1), (4,): (4,)})
def min_token() -> Sop:
    """The least token, everywhere."""
    less = SelectorWidth(Select(tokens, tokens, LT))
    return Aggregate(where(less, 0), tokens)


@known((1, 2, 3), 5, {(1, 2, 1, 3, 2): (1, 2, 2, 3, 3), (3, 1): (3, 3), (1, 1): (1, 1)})
def running_max() -> Sop:
    """The largest token so far."""
    three, two = (SelectorWidth(so_far & where(is_token(token), True)) > 0 for token in (3, 2))
    return SequenceMap(lambda some3, some2: 3 if some3 else 2 if some2 else 1, three, two)
