"""The random steps of ``generate``: one new sequence, made of ones that are there.

Functions and predicates drawn here are values that can be compared and shown, total, and of few results.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from voltmeter.rasp.functions import ADD, BEFORE, MOD, MUL, SUB, Bound, Named, Predicate
from voltmeter.rasp.language import (
    EQ,
    GEQ,
    GT,
    LEQ,
    LT,
    NEQ,
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
    indices,
    numerical,
)
from voltmeter.rasp.model import Value
from voltmeter.rasp.nodes import CATEGORICAL
from voltmeter.rasp.programs.pieces import KeyIs, Offset


@dataclass(frozen=True, eq=False)
class Drawn:
    """A sequence, the values it takes on the inputs tried, its operations, and whether the tokens change it."""

    sop: Sop
    values: tuple[Value, ...]
    size: int
    depends: bool = True

    @property
    def is_categorical(self) -> bool:
        return self.sop.encoding is CATEGORICAL

    @property
    def counts(self) -> bool:
        """Whether all values are numbers."""
        return not any(isinstance(value, str) for value in self.values)


Operand: TypeAlias = Callable[[Callable[[Drawn], bool]], Drawn]
"""Draws one of the sequences there are that fits."""


@dataclass(frozen=True)
class Lookup(Named):
    """A function given by its table, of one value or two; ``other`` is its result for what the table lacks."""

    table: tuple[tuple[tuple[Value, ...], Value], ...]
    other: Value

    @property
    def name(self) -> str:
        if len(self.table) > 4:
            return f"table of {len(self.table)}"
        return "{" + ", ".join(f"{'/'.join(map(str, given))}: {result}" for given, result in self.table) + "}"

    def __call__(self, *given: Value) -> Value:
        return dict(self.table).get(given, self.other)


@dataclass(frozen=True)
class Relation:
    """A predicate given by the pairs of key and query for which it holds."""

    pairs: frozenset[tuple[Value, Value]]

    def __call__(self, key: Value, query: Value) -> bool:
        return (key, query) in self.pairs


def draw_sop(rng: random.Random, operand: Operand, taste: Sequence[float]) -> Sop:
    """A sequence of any kind; ``taste``, drawn by ``draw_taste``, says which are likely."""
    [maker] = rng.choices(_MAKERS, weights=taste)
    return maker(rng, operand)


def draw_taste(rng: random.Random) -> tuple[float, ...]:
    """How likely each kind is in one program: some are chains, some join many small parts, some are all numbers."""
    joins, numbers = rng.choice((1, 1, 4)), rng.choice((1, 1, 4))
    often = (3, 3 * joins, 4, 3, 2 * joins, numbers, 2 * numbers, joins * numbers, joins * numbers, 2 * numbers)
    return tuple(weight * rng.uniform(0.5, 1.5) for weight in often)


def _categorical(drawn: Drawn) -> bool:
    return drawn.is_categorical


def _countable(drawn: Drawn) -> bool:
    return drawn.is_categorical and drawn.counts


def _any(drawn: Drawn) -> bool:
    return True


# Categories


def _map(rng: random.Random, operand: Operand) -> Sop:
    x = operand(_categorical)
    if x.counts and rng.random() < 0.4:
        sign = rng.choice((ADD, SUB, MOD, MUL))
        return Map(Bound(sign, rng.choice((2, 3)), False), x.sop)
    return Map(_lookup(rng, [(value,) for value in x.values]), x.sop)


def _sequence_map(rng: random.Random, operand: Operand) -> Sop:
    a = operand(_categorical)
    b = operand(lambda drawn: drawn.is_categorical and drawn is not a)
    if a.counts and b.counts and rng.random() < 0.4:
        return SequenceMap(rng.choice((ADD, SUB)), a.sop, b.sop)
    return SequenceMap(_lookup(rng, [(u, v) for u in a.values for v in b.values]), a.sop, b.sop)


def _two_widths(rng: random.Random, operand: Operand) -> Sop:
    """Two widths, added or compared: two heads side by side."""
    return SequenceMap(rng.choice((ADD, SUB, BEFORE)), _width(rng, operand), _width(rng, operand))


def _lookup(rng: random.Random, given: Sequence[tuple[Value, ...]]) -> Lookup:
    """A random table into a few values, at least two of which occur in it."""
    codomains: tuple[tuple[Value, ...], ...] = ((False, True), (0, 1, 2), (1, 2, 3, 4), ("p", "q", "r"))
    results = rng.choice(codomains)
    drawn: list[Value] = list(rng.sample(results, 2))
    drawn += rng.choices(results, k=max(len(given) - 2, 0))
    rng.shuffle(drawn)
    return Lookup(tuple(zip(given, drawn, strict=False)), results[0])


def _aggregate(rng: random.Random, operand: Operand) -> Sop:
    """Mostly by a selector that points to one position: others mostly select several categories."""
    x = operand(_categorical)
    points = rng.random() < 0.7
    default = rng.choice(x.values) if rng.random() < 0.3 else None
    return Aggregate(_pointer(rng, operand) if points else _selector(rng, operand), x.sop, default)


def _width(rng: random.Random, operand: Operand) -> Sop:
    return SelectorWidth(_selector(rng, operand))


# Numbers


def _number(rng: random.Random, operand: Operand) -> Sop:
    """A category as a number: itself, where it is one, or a random one for each."""
    x = operand(_categorical)
    if x.counts and rng.random() < 0.5:
        return numerical(x.sop)
    return numerical(Map(_numbers(rng, x.values), x.sop))


def _numbers(rng: random.Random, values: Sequence[Value]) -> Lookup:
    results = (0, 1, *rng.choices((0, 1, 2, -1), k=max(len(values) - 2, 0)))
    return Lookup(tuple(((value,), result) for value, result in zip(values, results, strict=False)), 0)


def _mean(rng: random.Random, operand: Operand) -> Sop:
    x = operand(_any)
    numbers = numerical(Map(_numbers(rng, x.values), x.sop)) if x.is_categorical else x.sop
    return Aggregate(_selector(rng, operand), numbers)


def _two_means(rng: random.Random, operand: Operand) -> Sop:
    """The difference of two means: two heads side by side."""
    return LinearSequenceMap(_mean(rng, operand), _mean(rng, operand), 1.0, -1.0)


def _sum(rng: random.Random, operand: Operand) -> Sop:
    """Two numbers, weighted and added; categories are made numbers first."""
    a = operand(_any)
    b = operand(lambda drawn: drawn is not a)
    x, y = (
        numerical(Map(_numbers(rng, each.values), each.sop)) if each.is_categorical else each.sop for each in (a, b)
    )
    return LinearSequenceMap(x, y, rng.choice((1.0, 2.0)), rng.choice((1.0, -1.0, 0.5)))


def _threshold(rng: random.Random, operand: Operand) -> Sop:
    """Whether a number is above one that lies midway between two of its values; or any map, where there is none."""
    x = operand(_any)
    if x.is_categorical:
        return _map(rng, operand)
    numbers = [float(value) for value in x.values]
    gaps = [(low + high) / 2 for low, high in itertools.pairwise(numbers) if high - low > 1e-3]
    return x.sop > rng.choice(gaps) if gaps else _map(rng, operand)


# Selectors


def _selector(rng: random.Random, operand: Operand) -> Selector:
    """One select, or two joined, or the opposite of one."""
    shape = rng.random()
    if shape < 0.4:
        return _select(rng, operand)
    if shape < 0.6:
        return _select(rng, operand) & _select(rng, operand)
    if shape < 0.8:
        return _select(rng, operand) | _select(rng, operand)
    return ~_select(rng, operand)


def _select(rng: random.Random, operand: Operand) -> Select:
    keys, queries = operand(_categorical), operand(_categorical)
    if rng.random() < 0.2:
        queries = keys
    return Select(keys.sop, queries.sop, _predicate(rng, keys, queries))


def _predicate(rng: random.Random, keys: Drawn, queries: Drawn) -> Predicate:
    kinds: list[Predicate] = [KeyIs(rng.choice(keys.values)), _relation(rng, keys, queries), EQ, NEQ]
    if keys.counts and queries.counts:
        kinds += [LT, LEQ, GT, GEQ, Offset(rng.choice((-2, -1, 1, 2)))]
    if rng.random() < 0.05:
        return TRUE
    return rng.choice(kinds)


def _relation(rng: random.Random, keys: Drawn, queries: Drawn) -> Relation:
    pairs = [(key, query) for key in keys.values for query in queries.values]
    return Relation(frozenset(rng.sample(pairs, rng.randint(1, len(pairs)))))


def _pointer(rng: random.Random, operand: Operand) -> Select:
    """Each position looks at one index: so many places away, a fixed one, or one that was computed."""
    how = rng.random()
    if how < 0.4:
        return Select(indices, indices, Offset(rng.choice((-2, -1, 1))))
    if how < 0.6:
        return Select(indices, Constant(rng.choice((0, 1, 2))), EQ)
    return Select(indices, operand(_countable).sop, EQ)


_MAKERS = (_map, _sequence_map, _aggregate, _width, _two_widths, _number, _mean, _two_means, _sum, _threshold)
