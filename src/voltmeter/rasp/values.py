"""Which values each sequence of a program can take, found without running it.

Every operation is applied to all the values its operands can take (abstract interpretation over the vocabulary and
the positions), so a set may be larger than what inputs reach, never smaller.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise, product
from typing import TypeGuard

from voltmeter.errors import ProgramError
from voltmeter.rasp.functions import Category, Predicate
from voltmeter.rasp.model import Value
from voltmeter.rasp.nodes import NUMERICAL, Leaf, LinearSequenceMap, Map, Node, SequenceMap, Sop
from voltmeter.rasp.selectors import Aggregate, Select, SelectorWidth
from voltmeter.rasp.semantics import apply, apply_alike, linear, number

MOST_VALUES = 1_000
"""Categories that a sequence may have: each is a dimension of the residual stream."""

MOST_NUMBERS = 20_000
"""Numbers that a Map may tell apart: where its result changes between two of them, it takes two hidden units."""

MOST_PAIRS = 20_000
"""Pairs of values that a SequenceMap may look up: each is a hidden unit."""

_MOST_SUMS = 200_000
"""Sums of two numbers that are worked out before giving up: a second or so."""

TOO_CLOSE = 1e-6
"""Two numbers this near are one number: no step can be put between them that float64 arithmetic respects."""

_TOO_CLOSE_FOR_SIZE = 1e-9
"""So are two that are this near as a share of the largest. A step over a narrow gap g multiplies what it reads by
2 / g, and float64 keeps a product to 1e-16 of its size: what is written is then off by a few 1e-7 at most. (What steps
over wide gaps leave depends on ``mlp_exactness``: weights.rounding.)
"""

MOST_SIZE = 1e9
"""The size of numbers that a stream may hold: float64 keeps larger ones to no better than 1e-7 in each operation."""


@dataclass(frozen=True)
class Values:
    """What one sequence can hold.

    ``known`` are its categories, or its numbers in rising order; None stands for more numbers than MOST_NUMBERS, which
    is no harm until a Map needs to tell them apart, and ``bound`` is then what none exceeds in size. ``alike`` has the
    other forms of categories that are equal and yet of another type (True of 1). ``undefined`` says whether it can be
    without a value. ``at_bos`` is what stands at BOS, where no program is defined but the transformer computes all the
    same.
    """

    known: tuple[Category, ...] | None
    undefined: bool = False
    at_bos: Category | None = None
    bound: float = 0.0
    alike: Mapping[Category, tuple[Category, ...]] = field(default_factory=dict)

    def forms(self, value: Category) -> tuple[Category, ...]:
        """A known value in each form that it can have."""
        return (value, *self.alike.get(value, ()))

    @property
    def largest(self) -> float:
        """What no number among them exceeds in size."""
        return self.bound if self.known is None else max((abs(v) for v in self.known if _is_number(v)), default=0.0)


@dataclass(frozen=True)
class Limits:
    """What a program is compiled for: its tokens, and the number of positions after BOS."""

    vocabulary: tuple[Value, ...]
    max_length: int


def infer(order: Sequence[Node], limits: Limits) -> dict[Sop, Values]:
    """The values of each sequence among ``order`` (operands before what uses them).

    Raises:
        ProgramError: a function fails on a value that can reach it or tells equal ones apart, numbers are expected and
            something else is given, or there are too many values, or too large ones; names the operation.
    """
    found: dict[Sop, Values] = {}
    for node in order:
        if isinstance(node, Sop):
            found[node] = _check_count(node, _infer(node, found, limits))
        elif isinstance(node, Select):
            _check_predicate(node, found[node.keys], found[node.queries])
    _check_sizes(found)
    return found


def _infer(node: Sop, found: Mapping[Sop, Values], limits: Limits) -> Values:
    match node:
        case Leaf(given="tokens"):
            return Values(limits.vocabulary)
        case Leaf():
            return Values(tuple(range(limits.max_length)))
        case Map(sop=x):
            return _map_numbers(node, found[x]) if x.encoding is NUMERICAL else _map(node, found[x])
        case SequenceMap(a=a, b=b):
            return _sequence_map(node, found[a], found[b])
        case LinearSequenceMap(a=a, b=b):
            return _linear(node, found[a], found[b])
        case SelectorWidth():
            return Values(tuple(range(limits.max_length + 1)))
        case Aggregate(sop=x):
            return _mean(node, found[x], limits) if node.encoding is NUMERICAL else _aggregate(node, found[x])
    raise ProgramError(f"{node} was not lowered", mend="this is a fault of the compiler: please report the program")


def _map(node: Map, x: Values) -> Values:
    results = [made for v in x.known or () for made in apply_alike(node, node.f, [(form,) for form in x.forms(v)])]
    return _results(node, results, x.undefined, apply(node, node.f, x.at_bos))


def _sequence_map(node: SequenceMap, a: Values, b: Values) -> Values:
    first, second = a.known or (), b.known or ()
    if len(first) * len(second) > MOST_PAIRS:
        raise ProgramError(
            f"{node} would look up {len(first)} x {len(second)} pairs of values, more than {MOST_PAIRS}",
            mend="use a smaller vocabulary or max_length, or map the operands to fewer values first",
        )
    pairs = ([*product(a.forms(u), b.forms(v))] for u, v in product(first, second))
    results = [made for forms in pairs for made in apply_alike(node, node.f, forms)]
    return _results(node, results, a.undefined or b.undefined, apply(node, node.f, a.at_bos, b.at_bos))


def _results(node: Sop, results: Sequence[Category | None], undefined: bool, at_bos: Category | None) -> Values:
    """The values of a look-up: undefined ones are 0 where it is numerical, absent where it is categorical."""
    if node.encoding is NUMERICAL:
        missing = [0.0] if undefined else []
        return Values(_rising([*(number(node, v) for v in results), *missing]), at_bos=number(node, at_bos))
    return _categories((v for v in results if v is not None), undefined or None in results, at_bos)


def _map_numbers(node: Map, x: Values) -> Values:
    straight = affine(node)
    if straight is not None:
        bound = abs(straight[0]) * x.largest + abs(straight[1])
        known = None if x.known is None else _rising([number(node, apply(node, node.f, v)) for v in x.known])
        return Values(known, at_bos=number(node, apply(node, node.f, x.at_bos)), bound=bound)
    results = [result for _, result in cells(node, x)]
    at_bos = _at(cells(node, x), number(node, x.at_bos))
    return _results(node, results, False, at_bos)


def _linear(node: LinearSequenceMap, a: Values, b: Values) -> Values:
    at_bos = linear(node, a.at_bos, b.at_bos)
    if a.known is None or b.known is None or len(a.known) * len(b.known) > _MOST_SUMS:
        bound = abs(node.factor_a) * a.largest + abs(node.factor_b) * b.largest
        return Values(None, at_bos=at_bos, bound=bound)
    return Values(_rising([linear(node, u, v) for u, v in product(a.known, b.known)]), at_bos=at_bos)


def _aggregate(node: Aggregate, x: Values) -> Values:
    if node.default is None:
        return Values(x.known, undefined=True, alike=x.alike)
    every = [form for value in x.known or () for form in x.forms(value)]
    return _categories([*every, node.default], x.undefined, node.default)


def _mean(node: Aggregate, x: Values, limits: Limits) -> Values:
    """Means of up to max_length of the values: sums are exact, so that each mean is the very float the oracle finds."""
    default = number(node, node.default)
    steps = [Fraction(number(node, v)) for v in x.known or ()]
    sums, means = {Fraction(0)}, {default}
    for count in range(1, limits.max_length + 1):
        sums = {total + step for total in sums for step in steps} if len(sums) * len(steps) <= _MOST_SUMS else set()
        means |= {float(total) / count for total in sums}
        if x.known is None or not sums or len(means) > MOST_NUMBERS:
            return Values(None, at_bos=default, bound=max(x.largest, abs(default)))
    return Values(_rising(means), at_bos=default)


# Maps of numbers ---------------------------------------------------------------------------------------------------


def affine(node: Map) -> tuple[float, float] | None:
    """``(slope, intercept)`` where a Map of numbers is written ``x + 1``, ``2 * x``, ...: no steps are needed then."""
    sign = getattr(getattr(node.f, "operator", None), "sign", None)
    if node.encoding is not NUMERICAL or sign not in ("+", "-", "*", "/"):
        return None
    zero, one = apply(node, node.f, 0.0), apply(node, node.f, 1.0)
    if zero is None or one is None:
        return None  # 1 / x
    return number(node, one) - number(node, zero), number(node, zero)


def cells(node: Map, x: Values) -> list[tuple[float, Category | None]]:
    """Each number that ``x`` can be (and what stands at BOS) in rising order, with what ``node`` makes of it.

    Raises:
        ProgramError: there are too many to list, or two too close to be told apart have different results.
    """
    if x.known is None:
        raise ProgramError(
            f"{node} maps {node.sop}, which can be more than {MOST_NUMBERS} different numbers",
            mend="use a smaller max_length or fewer values, or leave it numerical and only add and subtract",
        )
    points = [(number(node, v), apply(node, node.f, v)) for v in x.known]
    _check_gaps(node, points)
    bos = number(node, x.at_bos)
    if all(abs(bos - v) > TOO_CLOSE for v, _ in points):
        points.append((bos, _at(points, bos)))
    return sorted(points, key=lambda point: point[0])


def _at(points: Sequence[tuple[float, Category | None]], x: float) -> Category | None:
    """The result at the point nearest to ``x``."""
    if not points:
        return None
    after = bisect_left([v for v, _ in points], x)
    return min(points[max(0, after - 1) : after + 1], key=lambda point: abs(point[0] - x))[1]


def _check_gaps(node: Map, points: Sequence[tuple[float, Category | None]]) -> None:
    largest = max((abs(v) for v, _ in points), default=0.0)
    least = max(TOO_CLOSE, _TOO_CLOSE_FOR_SIZE * largest)
    for (a, before), (b, after) in pairwise(points):
        if b - a <= least and before != after:
            beside = f" beside {largest:g}, the largest" if b - a > TOO_CLOSE else ""
            raise ProgramError(
                f"{node} tells {a!r} from {b!r}, which are too close{beside}",
                [f"it makes them {before!r} and {after!r}"],
                "round in the function, or scale the numbers up first",
            )


# Sets --------------------------------------------------------------------------------------------------------------


def _rising(numbers: Iterable[float]) -> tuple[Category, ...]:
    return tuple(sorted(set(numbers)))


def _categories(categories: Iterable[Category], undefined: bool, at_bos: Category | None) -> Values:
    """Each once, in order: numbers by size, the rest as they first come. Equal ones are one, in several forms."""
    once: dict[Category, Category] = {}
    alike: dict[Category, dict[str, Category]] = {}
    for each in categories:
        first = once.setdefault(each, each)
        if first is not each and repr(first) != repr(each):
            alike.setdefault(first, {})[repr(each)] = each
    known = list(once)
    if all(_is_number(v) for v in known):
        known.sort()  # type: ignore[call-arg]  # numbers, as just seen
    others = {value: tuple(forms.values()) for value, forms in alike.items()}
    return Values(tuple(known), undefined, at_bos, alike=others)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float)


def _check_predicate(node: Select, keys: Values, queries: Values) -> None:
    """Raise ProgramError if a predicate tells equal keys or queries apart."""
    for k, q in product(keys.known or (), queries.known or ()):
        if k in keys.alike or q in queries.alike:
            apply_alike(node, _as_bool(node.predicate), [*product(keys.forms(k), queries.forms(q))])


def _as_bool(predicate: Predicate) -> Predicate:
    def holds(key: Category, query: Category) -> bool | None:
        found = predicate(key, query)
        return None if found is None else bool(found)

    return holds


def _check_sizes(found: Mapping[Sop, Values]) -> None:
    """Raise ProgramError naming the first sequence with numbers that a stream does not hold well."""
    for node, values in found.items():
        if node.encoding is NUMERICAL and not values.largest <= MOST_SIZE:
            raise ProgramError(
                f"{node} can be as large as {values.largest:g}, and compiled models hold up to {MOST_SIZE:g}",
                mend="scale the numbers down first, or leave them categorical",
            )


def _check_count(node: Sop, values: Values) -> Values:
    count = None if values.known is None else len(values.known)
    if count == 0:
        raise ProgramError(f"{node} is undefined everywhere", mend="let its function give a value for some input")
    if node.encoding is NUMERICAL:
        many = count is not None and count > MOST_NUMBERS
        return Values(None, at_bos=values.at_bos, bound=values.largest) if many else values
    if count is not None and count > MOST_VALUES:
        raise ProgramError(
            f"{node} can take {count} different values, more than {MOST_VALUES}",
            mend="use a smaller vocabulary or max_length, or map it to fewer values; numbers may stay numerical(...)",
        )
    return values
