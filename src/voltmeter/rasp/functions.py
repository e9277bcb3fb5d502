"""The functions of one or two values that programs are made of, where they have a name or a sign.

Plain Python functions serve as well; these can be compared (two equal expressions are then compiled once) and shown.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

from voltmeter.rasp.model import Value

Category: TypeAlias = Hashable
"""A value, or a tuple of them: a selector over two sequences is compiled to one over their pairs.

Values that are equal are one category, as they are one key of a dict: 1, 1.0 and True. A function that tells those
apart that can reach it (``x is True``, ``str(x)``) cannot be compiled: the compiler refuses it.
"""

Function: TypeAlias = Callable[..., Category | None]
Predicate: TypeAlias = Callable[..., bool | None]


class Named(ABC):
    """A function or predicate that says what it is called in messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called."""


@dataclass(frozen=True)
class Comparison:
    """A predicate of a key and a query with a name: ``LT(key, query)`` is ``key < query``."""

    name: str
    function: Callable[[Any, Any], bool]

    def __call__(self, key: Category, query: Category) -> bool:
        return self.function(key, query)


EQ = Comparison("EQ", operator.eq)
NEQ = Comparison("NEQ", operator.ne)
LT = Comparison("LT", operator.lt)
LEQ = Comparison("LEQ", operator.le)
GT = Comparison("GT", operator.gt)
GEQ = Comparison("GEQ", operator.ge)
TRUE = Comparison("TRUE", lambda key, query: True)
FALSE = Comparison("FALSE", lambda key, query: False)


@dataclass(frozen=True)
class Operator:
    """A function of two values with a sign. ``compares`` says that the result is a truth value, not a number."""

    sign: str
    function: Function
    compares: bool = False

    def __call__(self, a: Category, b: Category) -> Category | None:
        return self.function(a, b)


ADD, SUB, MUL = Operator("+", operator.add), Operator("-", operator.sub), Operator("*", operator.mul)
DIV, FLOORDIV = Operator("/", operator.truediv), Operator("//", operator.floordiv)
MOD = Operator("%", operator.mod)
BEFORE, AT_MOST = Operator("<", operator.lt, True), Operator("<=", operator.le, True)
AFTER, AT_LEAST = Operator(">", operator.gt, True), Operator(">=", operator.ge, True)
SAME = Operator("==", operator.eq, True)


@dataclass(frozen=True)
class Bound:
    """An operator with a constant on one side: a function of one value that can be compared and shown."""

    operator: Operator
    constant: Value
    constant_first: bool

    def __call__(self, x: Category) -> Category | None:
        return self.operator(self.constant, x) if self.constant_first else self.operator(x, self.constant)

    def show(self, x: str) -> str:
        a, b = (repr(self.constant), x) if self.constant_first else (x, repr(self.constant))
        return f"({a} {self.operator.sign} {b})"


@dataclass(frozen=True)
class Identity:
    """The function that changes nothing: what a change of encoding computes."""

    __name__ = "identity"

    def __call__(self, x: Category) -> Category:
        return x


def name_of(f: object) -> str:
    """What a function or predicate is called in messages."""
    name = f.name if isinstance(f, Comparison | Named) else getattr(f, "__name__", type(f).__name__)
    return "lambda" if name == "<lambda>" else str(name)
