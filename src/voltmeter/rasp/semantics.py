"""What one operation does to the values at one position. The oracle and the compiler agree on this and share no more.

Undefined is None: a function of an undefined value is undefined, and so is one that divides by zero.
"""

import math
import sys
from collections.abc import Sequence

from voltmeter.errors import ProgramError
from voltmeter.rasp.functions import Category, Function, Predicate
from voltmeter.rasp.nodes import LinearSequenceMap, Node
from voltmeter.rasp.selectors import Select


def apply(node: Node, f: Function | Predicate, *given: Category | None) -> Category | None:
    """``f`` of the given values.

    Raises:
        ProgramError: ``f`` fails with anything but an ArithmeticError, or gives what cannot be a category; names
            ``node`` and the values.
    """
    if any(value is None for value in given):
        return None
    try:
        found = f(*given)
    except ArithmeticError:
        return None
    except Exception as error:
        values = ", ".join(map(repr, given))
        raise ProgramError(
            f"{node} fails on {values}: {type(error).__name__}: {error}",
            mend="make its function accept every value that can reach it",
        ) from error
    if not _is_category(found):
        values = ", ".join(map(repr, given))
        raise ProgramError(
            f"{node} gives {found!r} for {values}, which cannot be told from other values by == and hash",
            mend="give numbers, strings, or tuples of them",
        )
    return found


def apply_alike(
    node: Node, f: Function | Predicate, forms: Sequence[tuple[Category | None, ...]]
) -> list[Category | None]:
    """``f`` of each of several forms of one value (of one pair), which are equal: 1 and True.

    Raises:
        ProgramError: ``f`` tells two of them apart, which no compiled model can: equal values are one category.
    """
    found = [apply(node, f, *form) for form in forms]
    for form, result in zip(forms, found, strict=True):
        if result != found[0]:
            first, other = (", ".join(map(repr, each)) for each in (forms[0], form))
            raise ProgramError(
                f"{node} tells {first} from {other}, which are equal and so one category",
                [f"it makes them {found[0]!r} and {result!r}"],
                "treat equal values alike, or let what it reads give them one type: bool(x), int(x)",
            )
    return found


def _is_category(value: object) -> bool:
    """Whether a dict finds it again: lists have no hash, and NaN is not equal to itself."""
    try:
        return value in {value: None} and not (isinstance(value, float) and math.isnan(value))
    except TypeError:
        return False


def holds(node: Select, key: Category | None, query: Category | None) -> bool | None:
    """Whether the query selects the key; None where either is undefined."""
    found = apply(node, node.predicate, key, query)
    return None if found is None else bool(found)


def number(node: Node, value: Category | None) -> float:
    """``value`` as a number; undefined is 0.

    Raises:
        ProgramError: it is not one.
    """
    if value is None:
        return 0.0
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ProgramError(
            f"{node} is numerical, but gives {value!r}",
            mend="give finite numbers, or leave it categorical",
        )
    return float(value)


def linear(node: LinearSequenceMap, a: Category | None, b: Category | None) -> float:
    """The weighted sum of two numbers."""
    return node.factor_a * number(node, a) + node.factor_b * number(node, b)


def mean(values: Sequence[float]) -> float:
    """The mean, the same in whatever order the values come."""
    return math.fsum(values) / len(values)
