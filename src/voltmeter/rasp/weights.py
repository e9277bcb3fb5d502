"""What a head and an MLP are made of, stated over residual dimensions, before it becomes matrices.

A hidden unit reads a weighted sum of dimensions, rectifies it, and writes it to others. A head is a list of such sums
for its queries, one for its keys, one for its values, and what each value writes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TypeAlias

from voltmeter.rasp.functions import Category

Sum: TypeAlias = dict[int, float]
"""A weighted sum of residual dimensions: dimension to weight. As something written: what is added to each."""

Cells: TypeAlias = Sequence[tuple[float, Sum]]
"""Numbers in rising order, each with what is written for it."""


@dataclass(frozen=True)
class Space:
    """Where the residual stream holds a sequence: a dimension per category, or the one dimension of a number."""

    at: Mapping[Category, int]
    number: int | None = None

    def write(self, value: Category | None) -> Sum:
        """What has to be added to the stream to hold ``value`` here; nothing for what is undefined."""
        if value is None:
            return {}
        if self.number is None:
            return {self.at[value]: 1.0}
        amount = float(value)  # type: ignore[arg-type]  # numerical spaces are given numbers
        return {self.number: amount} if amount else {}

    @property
    def dimensions(self) -> tuple[int, ...]:
        """All its dimensions."""
        return tuple(self.at.values()) if self.number is None else (self.number,)


@dataclass(frozen=True)
class Unit:
    """A hidden unit of an MLP: ``relu(reads · x)``, times ``writes``. It has no bias: it reads "one" instead."""

    reads: Sum
    writes: Sum


@dataclass(frozen=True)
class Head:
    """One attention head: scores are Σ queries[i] · keys[i]; values[j] of what is attended is written by outputs[j]."""

    queries: tuple[Sum, ...]
    keys: tuple[Sum, ...]
    values: tuple[Sum, ...]
    outputs: tuple[Sum, ...]

    @property
    def width(self) -> int:
        """The d_head it needs."""
        return max(len(self.queries), len(self.values))


_ULP = 2.0**-53  # what float64 rounds off, as a share of a number


# MLPs --------------------------------------------------------------------------------------------------------------


def look_up(table: Iterable[tuple[Sequence[int], Sum]], one: int) -> list[Unit]:
    """A unit per row that writes something: it is 1 where all dimensions of the row are 1, else 0."""
    units = []
    for dimensions, writes in table:
        reads = {at: float(count) for at, count in Counter(dimensions).items()}  # one may stand in a row twice
        if len(dimensions) > 1:
            reads[one] = 1.0 - len(dimensions)
        if writes:
            units.append(Unit(reads, writes))
    return units


def steps(number: int, cells: Cells, one: int, exactness: float) -> list[Unit]:
    """A piecewise-constant function: each number writes what its cell says, with a ramp halfway between neighbours.

    The ramp between two is ``1 / exactness`` wide, and at most half of their distance.
    """
    units = look_up([((one,), cells[0][1])], one)
    for (x, before), (y, after) in pairwise(cells):
        change = _difference(after, before)
        if not change:
            continue
        slope, middle = max(exactness, 2.0 / (y - x)), (x + y) / 2
        for half, sign in ((0.5, 1.0), (-0.5, -1.0)):  # relu(z + 1/2) - relu(z - 1/2) climbs from 0 to 1
            reads = {number: slope, one: half - slope * middle}
            units.append(Unit(reads, {at: sign * amount for at, amount in change.items()}))
    return units


def rounding(cells: Cells, exactness: float) -> float:
    """How far rounding may take what ``steps`` writes: each step multiplies what it reads by its slope."""
    largest, steepness = max(abs(x) for x, _ in cells), defaultdict[int, float](float)
    for (x, before), (y, after) in pairwise(cells):
        for at, amount in _difference(after, before).items():
            steepness[at] += max(exactness, 2.0 / (y - x)) * abs(amount)
    return _ULP * largest * max(steepness.values(), default=0.0)


def linear(terms: Sequence[tuple[int, float]], constant: float, to: int, one: int) -> list[Unit]:
    """``Σ factor * x + constant``. Each x passes as relu(x) - relu(-x)."""
    units = [Unit({x: sign}, {to: sign * factor}) for x, factor in terms for sign in (-1.0, 1.0) if factor]
    return units + look_up([((one,), {to: constant})] if constant else [], one)


def decode_width(share: int, widths: Space, one: int, bos: int, exactness: float) -> list[Unit]:
    """Category w where ``share``, the attention that BOS gets beside w selected positions, is 1 / (1 + w).

    BOS itself, which attends only itself, is left without a category.
    """
    most_first = sorted(widths.at, key=lambda w: 1 / (1 + float(w)))  # type: ignore[arg-type]  # widths are counts
    cells = [(1 / (1 + float(w)), widths.write(w)) for w in most_first]  # type: ignore[arg-type]
    nothing = {at: -amount for at, amount in cells[-1][1].items()}
    return [*steps(share, cells, one, exactness), Unit({bos: 1.0}, nothing)]


def _difference(after: Sum, before: Sum) -> Sum:
    found = {at: after.get(at, 0.0) - before.get(at, 0.0) for at in [*after, *before]}
    return {at: amount for at, amount in found.items() if amount}


# Heads -------------------------------------------------------------------------------------------------------------


def pattern(
    keys: Space, queries: Space, selects: Callable[[Category, Category], bool], coldness: float
) -> tuple[list[Sum], list[Sum]]:
    """Queries and keys whose score is ``coldness`` where the query selects the key, and 0 elsewhere.

    Whichever of the two has fewer categories is passed on as it is.
    """
    hit = [(k, q) for k, q in product(keys.at, queries.at) if selects(k, q)]
    of_query: dict[Category, Sum] = {}
    of_key: dict[Category, Sum] = {}
    by_key = len(keys.at) <= len(queries.at)
    for k, q in hit:
        inner = k if by_key else q
        of_query.setdefault(inner, {})[queries.at[q]] = coldness
        of_key.setdefault(inner, {})[keys.at[k]] = 1.0
    return list(of_query.values()), list(of_key.values())


def copy(source: Space, target: Space) -> tuple[list[Sum], list[Sum]]:
    """Values and outputs that carry a sequence from one place to another as it is."""
    if source.number is not None and target.number is not None:
        return [{source.number: 1.0}], [{target.number: 1.0}]
    return [{at: 1.0} for at in source.at.values()], [{target.at[value]: 1.0} for value in source.at]
