"""Selectors between the positions of a sequence, and the two sequences made of them.

    Selector    Select  SelectorAnd  SelectorOr  SelectorNot
    Sop         Aggregate  SelectorWidth

A selector has no encoding: it is never held in the residual stream, only computed by attention as it is used.
"""

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

from voltmeter.errors import ProgramError
from voltmeter.rasp.functions import Predicate, name_of
from voltmeter.rasp.model import Value, is_value
from voltmeter.rasp.nodes import CATEGORICAL, Encoding, Node, Sop, need, need_categories, shown


@dataclass(frozen=True, eq=False, repr=False)
class Selector(Node, ABC):
    """For each position (the query), which positions (the keys) it looks at."""

    def __and__(self, other: "Selector") -> "SelectorAnd":
        return SelectorAnd(self, other)

    def __or__(self, other: "Selector") -> "SelectorOr":
        return SelectorOr(self, other)

    def __invert__(self) -> "SelectorNot":
        return SelectorNot(self)


@dataclass(frozen=True, eq=False, repr=False)
class Select(Selector):
    """Query position q selects key position k where ``predicate(keys[k], queries[q])``."""

    keys: Sop
    queries: Sop
    predicate: Predicate

    def __post_init__(self) -> None:
        need(self, Sop, "a sequence", self.keys, self.queries)
        need_categories(self, self.keys, self.queries)

    @property
    def operands(self) -> tuple[Node, ...]:
        return (self.keys, self.queries)

    def written(self, depth: int) -> str:
        return f"Select({shown(self.keys, depth)}, {shown(self.queries, depth)}, {name_of(self.predicate)})"


@dataclass(frozen=True, eq=False, repr=False)
class _Joined(Selector, ABC):
    """Two selectors and the sign between them."""

    a: Selector
    b: Selector
    sign: ClassVar[str]

    def __post_init__(self) -> None:
        need(self, Selector, "a selector", self.a, self.b)

    @property
    def operands(self) -> tuple[Node, ...]:
        return (self.a, self.b)

    def written(self, depth: int) -> str:
        return f"({shown(self.a, depth)} {self.sign} {shown(self.b, depth)})"


@final
@dataclass(frozen=True, eq=False, repr=False)
class SelectorAnd(_Joined):
    """What both select."""

    sign = "&"


@final
@dataclass(frozen=True, eq=False, repr=False)
class SelectorOr(_Joined):
    """What either selects."""

    sign = "|"


@dataclass(frozen=True, eq=False, repr=False)
class SelectorNot(Selector):
    """What the other does not select. A position where a key or query is undefined is in neither."""

    a: Selector

    def __post_init__(self) -> None:
        need(self, Selector, "a selector", self.a)

    @property
    def operands(self) -> tuple[Node, ...]:
        return (self.a,)

    def written(self, depth: int) -> str:
        return f"~{shown(self.a, depth)}"


@dataclass(frozen=True, eq=False, repr=False)
class Aggregate(Sop):
    """The mean of the selected numbers, or the one category that all selected positions hold.

    Where nothing is selected it is ``default``; without one, 0 for numbers and undefined for categories.
    """

    selector: Selector
    sop: Sop
    default: Value | None = None

    def __post_init__(self) -> None:
        need(self, Selector, "a selector", self.selector)
        need(self, Sop, "a sequence", self.sop)
        if self.default is not None and not is_value(self.default):
            raise ProgramError(
                f"{self} was given the default {self.default!r}, which cannot be a value",
                mend="give a number, a string, True or False; None leaves it undefined",
            )

    @property
    def operands(self) -> tuple[Node, ...]:
        return (self.selector, self.sop)

    @property
    def encoding(self) -> Encoding:
        return self.sop.encoding

    def written(self, depth: int) -> str:
        return f"Aggregate({shown(self.selector, depth)}, {shown(self.sop, depth)})"


@dataclass(frozen=True, eq=False, repr=False)
class SelectorWidth(Sop):
    """How many positions each position selects."""

    selector: Selector

    def __post_init__(self) -> None:
        need(self, Selector, "a selector", self.selector)

    @property
    def operands(self) -> tuple[Node, ...]:
        return (self.selector,)

    @property
    def encoding(self) -> Encoding:
        return CATEGORICAL

    def written(self, depth: int) -> str:
        return f"SelectorWidth({shown(self.selector, depth)})"
