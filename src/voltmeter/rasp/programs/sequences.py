"""Tokens moved, compared and found again."""

from voltmeter.rasp.language import (
    EQ,
    LT,
    NEQ,
    Aggregate,
    Constant,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    Sop,
    equals,
    indices,
    length,
    tokens,
)
from voltmeter.rasp.programs.pieces import (
    Offset,
    anywhere,
    at,
    earlier,
    first,
    is_token,
    last,
    occurrence,
    previous,
    reversed_,
    same_token,
    shifted,
    where,
)
from voltmeter.rasp.programs.program import known

# Moved


@known((1, 2, 3), 5, {(1, 2, 3): (3, 2, 1), (1, 1, 2, 3, 3): (3, 3, 2, 1, 1), (2,): (2,)})
def reverse() -> Sop:
    """The tokens, last first."""
    return reversed_(tokens)


@known("abcd", 4, {"abcd": "cdab", "dda": "bbc"})
def caesar_shift() -> Sop:
    """Each letter replaced by the second after it, d followed by a."""
    return Map(lambda letter: "abcd"["cdab".index(letter)], tokens)


@known("abc", 5, {"abcab": (None, "a", "b", "c", "a"), "cc": (None, "c")}, causal=True)
def previous_token() -> Sop:
    """The token before each position."""
    return previous(tokens)


@known("abc", 5, {"abcab": ("b", "c", "a", "b", None), "cc": ("c", None)})
def next_token() -> Sop:
    """The token after each position."""
    return shifted(tokens, -1)


@known("abc", 5, {"abcab": (None, None, "a", "b", "c"), "ca": (None, None)}, causal=True)
def shift() -> Sop:
    """The tokens moved two places to the right."""
    return shifted(tokens, 2)


@known("abc", 5, {"abcc": "cabc", "ab": "ba", "b": "b"})
def rotate() -> Sop:
    """The tokens moved one place to the right, the last one coming in on the left."""
    return at((indices - 1) % length, tokens)


@known("abc", 5, {"abcab": "ccccc", "bba": "aaa", "ab": (None, None)})
def token_at_index() -> Sop:
    """The token at index 2, everywhere."""
    return at(Constant(2), tokens)


@known("abc", 5, {"abcab": "bbbbb", "bba": "aaa", "c": "c"})
def last_token() -> Sop:
    """The last token, everywhere."""
    return last(tokens)


@known("abcd", 4, {"abcd": "badc", "ddab": "ddba", "abc": ("b", "a", None)})
def swap_pairs() -> Sop:
    """The tokens of each pair of neighbours exchanged."""
    partner = Map(lambda index: index + 1 if index % 2 == 0 else index - 1, indices)
    return at(partner, tokens)


# Found again


@known(
    "abc",
    5,
    {"abcab": (None, None, None, "b", "c"), "aabaa": (None, "a", None, "b", "a"), "abc": (None, None, None)},
    causal=True,
)
def induction() -> Sop:
    """What followed the latest earlier occurrence of the token."""
    nth = occurrence()
    after_same = Select(previous(tokens), tokens, EQ)
    after_latest = Select(previous(nth), nth, Offset(-1))
    return Aggregate(after_same & after_latest, tokens)


@known("abc", 5, {"abacb": (0, 1, 0, 3, 1), "ccc": (0, 0, 0)})
def first_occurrence() -> Sop:
    """The index where the token of each position first occurs."""
    return Aggregate(same_token & where(occurrence(), 0), indices)


@known("abc", 5, {"abacb": (True, True, False, True, False), "ccc": (True, False, False)}, causal=True)
def dedupe_mask() -> Sop:
    """Whether the token occurs for the first time: what to keep so that no token stays twice."""
    return equals(occurrence(), 0)


@known("abc", 5, {"ababb": (False, False, False, True, False), "aaaa": (False, False, True, True)}, causal=True)
def ngram_match() -> Sop:
    """Whether this token and the one before it occurred as neighbours before."""
    before = previous(tokens)
    same_pair = Select(before, before, EQ) & same_token & earlier
    return SelectorWidth(same_pair) > 0


@known("ab", 5, {"ababa": (None, None, True, False, True), "abba": (None, None, False, False)}, causal=True)
def pattern() -> Sop:
    """Whether "aba" ends here."""
    ends = SequenceMap(lambda a, b: a == "b" and b == "a", previous(tokens), tokens)
    return SequenceMap(lambda a, rest: a == "a" and rest, shifted(tokens, 2), ends)


@known("xyz", 5, {"yzxyx": (False, False, True, True, True), "yy": (False, False)}, causal=True)
def cumulative_any() -> Sop:
    """Whether an x has been seen so far."""
    return anywhere(is_token("x"))  # causal attention sees no later one


# Compared


@known("abc", 5, {"abcab": (True,) * 5, "abbc": (False,) * 4, "c": (True,)})
def alternation() -> Sop:
    """Whether no two neighbours are equal, everywhere."""
    return equals(anywhere(equals(previous(tokens), tokens)), False)


@known("abc", 5, {"abca": (True,) * 4, "abc": (False,) * 3, "b": (True,)})
def first_last_equal() -> Sop:
    """Whether the first and the last token are equal, everywhere."""
    return equals(first(tokens), last(tokens))


@known("abc", 5, {"abcba": (True,) * 5, "abca": (False,) * 4, "cc": (True,) * 2})
def palindrome() -> Sop:
    """Whether the tokens read the same from either end, everywhere."""
    differs = SequenceMap(NEQ, tokens, reversed_(tokens))
    return equals(anywhere(differs), False)


@known((1, 2, 3), 5, {(1, 2, 2, 3): (True,) * 4, (1, 3, 2): (False,) * 3, (3,): (True,)})
def is_sorted() -> Sop:
    """Whether no token is less than the one before it, everywhere."""
    falls = SequenceMap(LT, tokens, previous(tokens))
    return equals(anywhere(falls), False)
