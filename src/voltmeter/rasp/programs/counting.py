"""How many, how often, and of what."""

from voltmeter.rasp import language
from voltmeter.rasp.language import (
    EQ,
    GT,
    Aggregate,
    Select,
    SelectorWidth,
    SequenceMap,
    Sop,
    equals,
    indices,
    numerical,
    tokens,
)
from voltmeter.rasp.programs.pieces import (
    KeyIs,
    everywhere,
    histogram,
    is_token,
    occurrence,
    share_so_far,
    where,
)
from voltmeter.rasp.programs.program import known


@known((1, 2, 3), 5, {(1, 1, 2): (3, 3, 3), (3,): (1,)})
def length() -> Sop:
    """How many tokens there are, everywhere."""
    return language.length


@known((1, 2, 3), 5, {(1, 1, 2): (2, 2, 1), (3, 1, 3, 2, 3): (3, 1, 3, 1, 3)})
def hist() -> Sop:
    """How often the token of each position occurs."""
    return histogram()


@known("wxyz", 5, {"xwxz": (1, 1 / 2, 2 / 3, 1 / 2), "yyx": (0, 0, 1 / 3)})
def frac_prevs_x() -> Sop:
    """The share of x among the tokens up to here."""
    return share_so_far(is_token("x"))


@known("abc", 5, {"abca": (2, 2, 2, 2), "bc": (0, 0), "aaaaa": (5, 5, 5, 5, 5)})
def count() -> Sop:
    """How many a there are, everywhere."""
    return SelectorWidth(Select(tokens, tokens, KeyIs("a")))


@known("abc", 5, {"abca": (2, 2, 2, 2), "bb": (0, 0), "abc": (3, 3, 3)})
def count_singletons() -> Sop:
    """How many tokens occur only once, everywhere."""
    return SelectorWidth(where(histogram(), 1))


@known("abc", 5, {"aabaa": (1, 1, 1, 1, 1), "baca": (2, 2, 2, 2), "aaa": (0, 0, 0)})
def modular_count() -> Sop:
    """How many a there are, modulo 3, everywhere."""
    return SelectorWidth(where(tokens, "a")) % 3


@known((0, 1), 6, {(1, 0, 1, 1, 0, 1): (1, 1, 0, 1, 1, 0), (0, 0, 1): (0, 0, 1)}, causal=True)
def running_parity() -> Sop:
    """How many ones so far, modulo 2."""
    return SelectorWidth(where(tokens, 1)) % 2  # causal attention sees no later one


@known("abc", 5, {"abbcb": "bbbbb", "abbca": "aaaaa", "cba": "ccc"})
def most_frequent_token() -> Sop:
    """The token that occurs most often, everywhere; of equally frequent ones the first."""
    score = SequenceMap(lambda times, index: 5 * times - index, histogram(), indices)
    better = SelectorWidth(Select(score, score, GT))
    return Aggregate(where(better, 0), tokens)


@known("ab", 5, {"aab": (True,) * 3, "abab": (False,) * 4, "babab": (False,) * 5})
def majority() -> Sop:
    """Whether more than half of the tokens are a, everywhere."""
    return Aggregate(everywhere, numerical(is_token("a"))) > 0.5


@known("abc", 5, {"abacb": (3, 3, 3, 3, 3), "cc": (1, 1), "bab": (2, 2, 2)})
def distinct_count() -> Sop:
    """How many different tokens there are, everywhere."""
    return SelectorWidth(where(occurrence(), 0))


@known("abc", 5, {"abbc": (2, 1, 1, 2), "aab": (1, 1, 1), "cab": (3, 3, 3)})
def double_hist() -> Sop:
    """How many different tokens occur just as often as the token of each position."""
    times = histogram()
    return SelectorWidth(Select(times, times, EQ) & where(occurrence(), 0))


@known("abc", 5, {"aaa": (True,) * 3, "aab": (False,) * 3, "c": (True,)})
def all_equal() -> Sop:
    """Whether all tokens are the same, everywhere."""
    return equals(histogram(), language.length)


@known((1, 2, 3), 5, {(1, 2, 3): (2, 2, 2), (1, 1, 2, 3): (7 / 4,) * 4})
def mean_token() -> Sop:
    """The mean of the tokens, everywhere."""
    return Aggregate(everywhere, numerical(tokens))
