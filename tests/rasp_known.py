"""Programs with known answers: one table, used by the tests of the language, the compiler and what is built on both.

They are those of tracr's public library that ``shared/assets/tracr`` has the original compiler's exports of, written
from what they compute, and a few more that reach corners of the language.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from voltmeter.rasp.language import (
    EQ,
    LEQ,
    LT,
    TRUE,
    Aggregate,
    Constant,
    LinearSequenceMap,
    Map,
    Select,
    Selector,
    SelectorWidth,
    SequenceMap,
    Sop,
    categorical,
    equals,
    indices,
    length,
    numerical,
    tokens,
)

PREVIOUS = Select(indices, indices, LEQ)
ALL = Select(tokens, tokens, TRUE)


@dataclass(frozen=True)
class Known:
    """A program, what it is compiled for, and rows with their outputs (None: undefined), worked out by hand.

    ``where`` has the components that hold named expressions, as read off the original compiler's weights.
    """

    sop: Sop
    vocabulary: Any
    max_length: int
    rows: tuple[tuple[Any, list[Any]], ...]
    where: dict[str, str]
    causal: bool = False


def at(position: Sop, sop: Sop) -> Aggregate:
    return Aggregate(Select(indices, position, EQ), sop)


def previous_share(bools: Sop) -> Aggregate:
    return Aggregate(PREVIOUS, numerical(bools))


def reverse() -> Sop:
    opposite = (length - indices).named("opp_idx") - 1
    return at(opposite.named("opp_idx-1"), tokens).named("reverse")


def hist() -> SelectorWidth:
    return SelectorWidth(Select(tokens, tokens, EQ)).named("hist")


def sort_unique(values: Sop, keys: Sop) -> Aggregate:
    target = SelectorWidth(Select(keys, keys, LT)).named("target_pos")
    return Aggregate(Select(target, indices, EQ), values)


def sort_freq(max_length: int) -> Sop:
    """Equal counts are put in order of position: a whole count apart, and positions within it."""
    keys = SequenceMap(lambda count, index: count + index / max_length, -hist(), indices)
    return sort_unique(tokens, keys).named("sort_freq")


def balance(opening: str, closing: str) -> LinearSequenceMap:
    opens = previous_share(equals(tokens, opening).named("bools_open")).named("opens")
    closes = previous_share(equals(tokens, closing).named("bools_close")).named("closes")
    return LinearSequenceMap(opens, closes, 1, -1, name=f"balance_{opening}{closing}")


def shuffle_dyck(*pairs: tuple[str, str]) -> Sop:
    balances = [balance(*pair) for pair in pairs]
    below = reduce(lambda a, b: SequenceMap(_or, a, b), [each < 0 for each in balances])
    zero = reduce(lambda a, b: SequenceMap(_and, a, b), [equals(each, 0) for each in balances])
    negative = numerical(below).named("any_negative")
    has_negative = Aggregate(Select(indices, indices, TRUE), negative).named("has_neg")
    last_zero = at(length - 1, zero).named("last_zero")
    return SequenceMap(_and, last_zero, equals(has_negative, 0).named("not_has_neg")).named("shuffle_dyck")


def _and(a: bool, b: bool) -> bool:
    return a and b


def _or(a: bool, b: bool) -> bool:
    return a or b


def same_neighbour() -> Sop:
    before = Aggregate(Select(indices, indices - 1, EQ), tokens, default="none")
    return SequenceMap(lambda a, b: a == b, tokens, before).named("same_neighbour")


def elsewhere() -> Sop:
    """How many other positions hold the same token or lie before this one."""
    same: Selector = Select(tokens, tokens, EQ)
    here = Select(indices, indices, EQ)
    return SelectorWidth((same | Select(indices, indices, LT)) & ~here).named("elsewhere")


TABLE: dict[str, Known] = {
    "reverse": Known(
        reverse(),
        (1, 2, 3),
        5,
        (((1, 2, 3), [3, 2, 1]), ((1, 1, 2, 2, 3), [3, 2, 2, 1, 1]), ((2,), [2])),
        {"length": "m0", "opp_idx": "m1", "opp_idx-1": "m2", "reverse": "a3.h0"},
    ),
    "hist": Known(hist(), (1, 2, 3), 5, (((1, 2, 1, 1), [3, 1, 3, 3]), ((3, 3), [2, 2])), {"hist": "m0"}),
    "length": Known(length, (1, 2, 3), 5, (((1, 2), [2, 2]), ((3, 3, 3, 1, 2), [5] * 5)), {"length": "m0"}),
    "frac_prevs_x": Known(
        previous_share(equals(tokens, "x")).named("frac_prevs"),
        ("w", "x", "y", "z"),
        5,
        (("xwxy", [1.0, 1 / 2, 2 / 3, 1 / 2]), ("wwwwx", [0.0, 0.0, 0.0, 0.0, 1 / 5])),
        {"(tokens == 'x')": "m0", "frac_prevs": "a1.h0"},
    ),
    "sort_unique": Known(
        sort_unique(tokens, tokens).named("sort"),
        (1, 2, 3, 4, 5),
        5,
        (((3, 1, 2), [1, 2, 3]), ((5, 4, 3, 2, 1), [1, 2, 3, 4, 5]), ((2, 2, 1), [1, 2, None])),
        {"target_pos": "m0", "sort": "a1.h0"},
    ),
    "sort_freq": Known(
        sort_freq(5),
        (1, 2, 3),
        5,
        (((1, 2, 2, 3, 2), [2, 2, 2, 1, 3]), ((3, 1), [3, 1])),
        {"hist": "m0", "(0 - hist)": "m1", "target_pos": "m3", "sort_freq": "a4.h0"},
    ),
    "shuffle_dyck": Known(
        shuffle_dyck(("(", ")")),
        ("(", ")"),
        6,
        (("(())()", [True] * 6), ("())(", [False] * 4), ("(()", [False] * 3)),
        {
            "opens": "a1.h0",
            "closes": "a1.h1",
            "balance_()": "m2",
            "any_negative": "m3",
            "last_zero": "a4.h0",
            "has_neg": "a4.h1",
            "not_has_neg": "m4",
            "shuffle_dyck": "m5",
        },
    ),
    "shuffle_dyck2": Known(
        shuffle_dyck(("(", ")"), ("[", "]")),
        ("(", ")", "[", "]"),
        4,
        (("([)]", [True] * 4), ("[)](", [False] * 4), ("[]]", [False] * 3)),
        {},
    ),
    "same_neighbour": Known(
        same_neighbour(), ("a", "b"), 5, (("aabba", [False, True, False, True, False]), ("a", [False])), {}
    ),
    "elsewhere": Known(elsewhere(), ("a", "b"), 4, (("aba", [1, 1, 2]), ("b", [0])), {}),
    "elsewhere_causal": Known(elsewhere(), ("a", "b"), 4, (("aba", [0, 1, 2]), ("b", [0])), {}, causal=True),
    "length_causal": Known(length, ("a", "b"), 4, (("aba", [1, 2, 3]),), {}, causal=True),
    "tokens": Known(tokens, ("a", "b"), 3, (("ab", ["a", "b"]),), {"tokens": "input.tok"}),
    "constant": Known(Constant("c"), ("a", "b"), 3, (("ab", ["c", "c"]),), {"Constant('c')": "m0"}),
    "mean_index": Known(
        Aggregate(Select(tokens, tokens, EQ), numerical(indices)) * 2 - 1,
        ("a", "b"),
        5,
        (("aba", [1.0, 1.0, 1.0]), ("aabb", [0.0, 0.0, 4.0, 4.0])),
        {},
    ),
    "next_or_nothing": Known(at(indices + 1, tokens), ("a", "b"), 4, (("abb", ["b", "b", None]), ("a", [None])), {}),
    "rounded": Known(
        Map(lambda share: round(share, 1), categorical(previous_share(equals(tokens, "a")))),
        ("a", "b"),
        6,
        (("aab", [1, 1, 0.7]), ("bbba", [0, 0, 0, 0.2])),
        {},
    ),
}
