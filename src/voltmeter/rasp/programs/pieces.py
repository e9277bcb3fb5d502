"""Pieces that several programs are made of. Predicates are values, so that equal pieces are compiled once."""

from dataclasses import dataclass

from voltmeter.rasp.language import (
    EQ,
    LEQ,
    LT,
    TRUE,
    Aggregate,
    Constant,
    Select,
    SelectorWidth,
    SequenceMap,
    Sop,
    equals,
    indices,
    length,
    numerical,
    tokens,
)
from voltmeter.rasp.model import Value


@dataclass(frozen=True)
class Offset:
    """The key ``by`` more than the query: of indices, so many places to the right."""

    by: int

    def __call__(self, key: int, query: int) -> bool:
        return key == query + self.by


@dataclass(frozen=True)
class KeyIs:
    """Keys of one value, whatever the query."""

    value: Value

    def __call__(self, key: Value, query: Value) -> bool:
        return key == self.value


everywhere = Select(indices, indices, TRUE).named("everywhere")
earlier = Select(indices, indices, LT).named("earlier")
so_far = Select(indices, indices, LEQ).named("so_far")  # this position too
same_token = Select(tokens, tokens, EQ).named("same_token")


def where(sop: Sop, value: Value) -> Select:
    """Every position that holds ``value``, seen from everywhere."""
    return Select(sop, indices, KeyIs(value))


def anywhere(sop: Sop) -> Sop:
    """Whether ``sop`` is True at some position."""
    return SelectorWidth(where(sop, True)) > 0


def shifted(sop: Sop, by: int) -> Sop:
    """``sop``, ``by`` places to the right. What comes in from outside is undefined."""
    return Aggregate(Select(indices, indices, Offset(-by)), sop)


def previous(sop: Sop) -> Sop:
    """``sop`` at the position before."""
    return shifted(sop, 1)


def at(place: Sop, sop: Sop) -> Sop:
    """``sop`` at the index that ``place`` says."""
    return Aggregate(Select(indices, place, EQ), sop)


def first(sop: Sop) -> Sop:
    """``sop`` at the first position, everywhere."""
    return at(Constant(0), sop)


def last(sop: Sop) -> Sop:
    """``sop`` at the last position, everywhere."""
    return at(length - 1, sop)


def reversed_(sop: Sop) -> Sop:
    """``sop``, last first."""
    opposite = (length - indices).named("opposite_plus_1") - 1
    return at(opposite.named("opposite"), sop)


def histogram() -> Sop:
    """How often the token of each position occurs."""
    return SelectorWidth(same_token).named("histogram")


def occurrence() -> Sop:
    """How often the token of each position occurred before it."""
    return SelectorWidth(same_token & earlier).named("occurrence")


def share_so_far(sop: Sop) -> Sop:
    """The share of positions up to here where ``sop`` is True."""
    return Aggregate(so_far, numerical(sop))


def place_by(keys: Sop) -> Sop:
    """Where each position goes when sorted by ``keys``, no two of which are equal."""
    return SelectorWidth(Select(keys, keys, LT)).named("target_position")


def sorted_by(values: Sop, keys: Sop) -> Sop:
    """``values`` in ascending order of ``keys``, no two of which are equal."""
    return Aggregate(Select(place_by(keys), indices, EQ), values)


def broken_ties(keys: Sop, max_length: int) -> Sop:
    """Whole ``keys`` with a fraction added that grows from left to right, so that no two are equal."""
    return SequenceMap(lambda key, index: key + index / max_length, keys, indices)


def is_token(token: Value) -> Sop:
    """Whether each token is this one."""
    return equals(tokens, token)
