"""The expressions of RASP (Weiss et al. 2106.06981): what all have in common, and sequences made of sequences.

    Sop         tokens  indices  Constant  Map  SequenceMap  LinearSequenceMap

A sequence operation (s-op) gives one value per position. Its ``encoding`` says how a transformer holds that value:
CATEGORICAL, one dimension per possible value, or NUMERICAL, one dimension whose size is the value. Expressions are
frozen and compare by identity; what is ill-typed cannot be built.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias, TypeVar, Union

from voltmeter.errors import ProgramError
from voltmeter.rasp.functions import (
    ADD,
    AFTER,
    AT_LEAST,
    AT_MOST,
    BEFORE,
    DIV,
    FLOORDIV,
    MOD,
    MUL,
    SUB,
    Bound,
    Function,
    Operator,
    name_of,
)
from voltmeter.rasp.model import Value

Operand: TypeAlias = Union["Sop", Value]
NodeType = TypeVar("NodeType", bound="Node")

_DEPTH = 3
"""An unnamed expression is written out this deep in messages; what lies deeper is "..."."""


class Encoding(Enum):
    """How the residual stream holds a sequence."""

    CATEGORICAL = "categorical"
    NUMERICAL = "numerical"


CATEGORICAL, NUMERICAL = Encoding.CATEGORICAL, Encoding.NUMERICAL


@dataclass(frozen=True, eq=False, repr=False)
class Node(ABC):
    """Any expression. ``name`` is shown in messages and labels the dimensions it is compiled to."""

    name: str | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def operands(self) -> tuple["Node", ...]:
        """The expressions this one is made of."""

    @abstractmethod
    def written(self, depth: int) -> str:
        """The expression as one would write it, ``depth`` levels deep."""

    def named(self: NodeType, name: str) -> NodeType:
        """The same expression under a name."""
        return replace(self, name=name)

    def show(self, depth: int = _DEPTH) -> str:
        """Its name; without one, the expression itself."""
        return self.name or (self.written(depth - 1) if depth or not self.operands else "...")

    def __repr__(self) -> str:
        return self.show()

    def __bool__(self) -> bool:
        raise ProgramError(
            f"{self} has no single truth value: it has one at every position",
            mend="write comparisons one at a time (not 0 < x < 3), and SequenceMap where you would write and/or",
        )


def _operator(op: Operator) -> Callable[["Sop", Operand], "Sop"]:
    return lambda self, other: combine(op, self, other)


def _reflected(op: Operator) -> Callable[["Sop", Value], "Sop"]:
    return lambda self, other: combine(op, other, self)


@dataclass(frozen=True, eq=False, repr=False)
class Sop(Node, ABC):
    """A sequence operation. With a constant, an operator maps every value; with another s-op, it goes by position."""

    @property
    @abstractmethod
    def encoding(self) -> Encoding:
        """CATEGORICAL or NUMERICAL."""

    __add__, __radd__ = _operator(ADD), _reflected(ADD)
    __sub__, __rsub__ = _operator(SUB), _reflected(SUB)
    __mul__, __rmul__ = _operator(MUL), _reflected(MUL)
    __truediv__, __rtruediv__ = _operator(DIV), _reflected(DIV)
    __floordiv__, __rfloordiv__ = _operator(FLOORDIV), _reflected(FLOORDIV)
    __mod__, __rmod__ = _operator(MOD), _reflected(MOD)
    __lt__, __le__ = _operator(BEFORE), _operator(AT_MOST)
    __gt__, __ge__ = _operator(AFTER), _operator(AT_LEAST)

    def __neg__(self) -> "Sop":
        return combine(SUB, 0, self)


# What operands have to be ------------------------------------------------------------------------------------------


def need(node: Node, kind: type, what: str, *given: object) -> None:
    """Raise ProgramError unless all that ``node`` was given are of this kind, which ``what`` names."""
    for operand in given:
        if not isinstance(operand, kind):
            raise ProgramError(
                f"{node} needs {what}, and was given {operand!r}",
                mend="sequences are tokens, indices, Constant(...), Map, SequenceMap, Aggregate, SelectorWidth; "
                "selectors are Select(...) and their &, |, ~",
            )


def need_categories(node: Node, *given: Sop) -> None:
    """Raise ProgramError if any of the sequences is numerical."""
    wrong = [sop for sop in given if sop.encoding is NUMERICAL]
    if wrong:
        raise ProgramError(
            f"{node} looks categories up, but {wrong[0]} is numerical",
            mend=f"convert it: categorical({wrong[0]})",
        )


def shown(node: object, depth: int) -> str:
    """An operand as it is shown in an expression, whatever it is."""
    return node.show(depth) if isinstance(node, Node) else repr(node)


# Sequences ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Leaf(Sop):
    """What a program is given: its tokens, or the index of each position from 0 (BOS not counted)."""

    given: str

    @property
    def operands(self) -> tuple[Node, ...]:
        return ()

    @property
    def encoding(self) -> Encoding:
        return CATEGORICAL

    def written(self, depth: int) -> str:
        return self.given


tokens = Leaf("tokens")
indices = Leaf("indices")


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Sop):
    """The same value at every position."""

    value: Value
    encoding: Encoding = CATEGORICAL

    @property
    def operands(self) -> tuple[Node, ...]:
        return ()

    def written(self, depth: int) -> str:
        return f"Constant({self.value!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Map(Sop):
    """``f`` of each value. ``f`` may return None, and divide by zero: the position is then undefined."""

    f: Function
    sop: Sop
    encoding: Encoding = CATEGORICAL

    def __post_init__(self) -> None:
        need(self, Sop, "a sequence", self.sop)

    @property
    def operands(self) -> tuple[Node, ...]:
        return (self.sop,)

    def written(self, depth: int) -> str:
        x = shown(self.sop, depth)
        return self.f.show(x) if isinstance(self.f, Bound) else f"Map({name_of(self.f)}, {x})"


@dataclass(frozen=True, eq=False, repr=False)
class SequenceMap(Sop):
    """``f`` of two categorical sequences, position by position (numerical ones are added: LinearSequenceMap)."""

    f: Function
    a: Sop
    b: Sop
    encoding: Encoding = CATEGORICAL

    def __post_init__(self) -> None:
        need(self, Sop, "a sequence", self.a, self.b)
        need_categories(self, self.a, self.b)

    @property
    def operands(self) -> tuple[Node, ...]:
        return (self.a, self.b)

    def written(self, depth: int) -> str:
        a, b = shown(self.a, depth), shown(self.b, depth)
        return (
            f"({a} {self.f.sign} {b})" if isinstance(self.f, Operator) else f"SequenceMap({name_of(self.f)}, {a}, {b})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class LinearSequenceMap(Sop):
    """``factor_a * a + factor_b * b`` of two numerical sequences."""

    a: Sop
    b: Sop
    factor_a: int | float = 1.0
    factor_b: int | float = 1.0

    def __post_init__(self) -> None:
        need(self, Sop, "a sequence", self.a, self.b)
        wrong = [sop for sop in (self.a, self.b) if sop.encoding is not NUMERICAL]
        if wrong:
            raise ProgramError(
                f"{self} adds numbers, but {wrong[0]} is categorical",
                mend=f"convert it: numerical({wrong[0]})",
            )

    @property
    def operands(self) -> tuple[Node, ...]:
        return (self.a, self.b)

    @property
    def encoding(self) -> Encoding:
        return NUMERICAL

    def written(self, depth: int) -> str:
        return f"({self.factor_a:g} * {shown(self.a, depth)} + {self.factor_b:g} * {shown(self.b, depth)})"


# Operators ----------------------------------------------------------------------------------------------------------


def combine(op: Operator, a: object, b: object) -> Sop:
    """``a op b``: a Map where one is a constant, a SequenceMap of categories, a LinearSequenceMap of numbers."""
    if isinstance(a, Sop) and isinstance(b, Sop):
        return _combine_two(op, a, b)
    if isinstance(a, Sop) and isinstance(b, int | float | str):
        return Map(Bound(op, b, False), a, _result(op, a))
    if isinstance(b, Sop) and isinstance(a, int | float | str):
        return Map(Bound(op, a, True), b, _result(op, b))
    raise ProgramError(
        f"{op.sign} was given {a!r} and {b!r}",
        mend="give two sequences, or a sequence and a number or string",
    )


def _combine_two(op: Operator, a: Sop, b: Sop) -> Sop:
    if a.encoding is CATEGORICAL or b.encoding is CATEGORICAL:
        return SequenceMap(op, a, b)  # which refuses a mixture
    if op in (ADD, SUB):
        return LinearSequenceMap(a, b, 1.0, 1.0 if op is ADD else -1.0)
    if op.compares:
        return Map(Bound(op, 0, False), LinearSequenceMap(a, b, 1.0, -1.0))
    raise ProgramError(
        f"({a} {op.sign} {b}) has two numerical operands, and a transformer can only add and subtract those",
        mend="convert both with categorical(...) to look the result up",
    )


def _result(op: Operator, sop: Sop) -> Encoding:
    """Numbers stay numbers under arithmetic; truth values are categories."""
    return CATEGORICAL if op.compares else sop.encoding
