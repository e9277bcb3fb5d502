"""Brackets that open and close. In a shuffle-Dyck word each kind of bracket balances by itself, however they cross."""

from voltmeter.rasp.language import (
    Aggregate,
    LinearSequenceMap,
    Map,
    SelectorWidth,
    SequenceMap,
    Sop,
    equals,
    numerical,
)
from voltmeter.rasp.programs.pieces import anywhere, everywhere, is_token, last, share_so_far, so_far, where
from voltmeter.rasp.programs.program import known


def _balance(opening: str, closing: str) -> Sop:
    """The share of opening brackets among the tokens so far, less that of closing ones."""
    opens, closes = (share_so_far(is_token(bracket)) for bracket in (opening, closing))
    return LinearSequenceMap(opens, closes, 1.0, -1.0).named(f"balance_{opening}{closing}")


def _shuffle_dyck(*pairs: str) -> Sop:
    """No balance is ever below zero, and at the end all are zero."""
    balances = [_balance(*pair) for pair in pairs]
    below, zero = balances[0] < 0, equals(balances[0], 0)
    for balance in balances[1:]:
        below = SequenceMap(lambda a, b: a or b, below, balance < 0)
        zero = SequenceMap(lambda a, b: a and b, zero, equals(balance, 0))
    ever_below = Aggregate(everywhere, numerical(below)).named("ever_below")
    never_below = Map(lambda share: share == 0, ever_below).named("never_below")
    return SequenceMap(lambda a, b: a and b, last(zero), never_below)


@known("()x", 5, {"(()": (1, 1, 1 / 3), "(x)x": (1, 1 / 2, 0, 0), "))": (-1, -1)})
def pair_balance() -> Sop:
    """The share of "(" among the tokens so far, less that of ")"."""
    return _balance("(", ")")


@known("()", 6, {"(())()": (True,) * 6, "())(": (False,) * 4, "(()": (False,) * 3, "()": (True,) * 2})
def shuffle_dyck() -> Sop:
    """Whether the brackets balance, everywhere."""
    return _shuffle_dyck("()")


@known("(){}", 4, {"({)}": (True,) * 4, "(}": (False,) * 2, "(){": (False,) * 3, "{{}}": (True,) * 4})
def shuffle_dyck2() -> Sop:
    """Whether round and curly brackets balance, each kind by itself, everywhere."""
    return _shuffle_dyck("()", "{}")


def _depth() -> Sop:
    opened, closed = (SelectorWidth(so_far & where(is_token(bracket), True)) for bracket in "()")
    return (opened - closed).named("depth")


@known("()", 6, {"(()())": (1, 2, 1, 2, 1, 0), "))(": (-1, -2, -1)})
def bracket_depth() -> Sop:
    """How many brackets are open after each position; below zero where too many closed."""
    return _depth()


@known("()", 6, {"(())()": (True,) * 6, "())(": (False,) * 4, "(()": (False,) * 3, "()": (True,) * 2})
def dyck_by_depth() -> Sop:
    """Whether the brackets balance, everywhere: what shuffle_dyck computes, by counting instead of by shares."""
    depth = _depth()
    ends, sinks = equals(last(depth), 0), anywhere(depth < 0)
    return SequenceMap(lambda closed, sunk: closed and not sunk, ends, sinks)
