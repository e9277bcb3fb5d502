"""What one operation does to the values at one position. The oracle and the compiler agree on this and share no more.

Undefined is None: a function of an undefined value is undefined, and so is one that divides by zero.
"""

import math
from collections.abc import Sequence

from voltmeter.errors import ProgramError
from voltmeter.rasp.functions import Category, Function, Predicate
from voltmeter.rasp.nodes import LinearSequenceMap, Node
from voltmeter.rasp.selectors import Select


def apply(node: Node, f: Function | Predicate, *given: Category | None) -> Category | None:
    """``f`` of the given values.

    Raises:
        ProgramError: ``f`` fails with anything but an ArithmeticError; names ``node`` and the values.
    """
    if any(value is None for value in given):
        return None
    try:
        return f(*given)
    except ArithmeticError:
        return None
    except Exception as error:
        values = ", ".join(map(repr, given))
        raise ProgramError(
            f"{node} fails on {values}: {type(error).__name__}: {error}",
            mend="make its function accept every value that can reach it",
        ) from error


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
    if not isinstance(value, int | float) or not math.isfinite(value):
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
