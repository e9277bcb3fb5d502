"""Rewrites a program into the operations that a transformer has: shared nodes, one Select per selector, no constants.

    Constant(c)              Map of indices to c
    SequenceMap(f, x, x)     Map of x
    ~Select                  Select with the opposite predicate
    Select & Select          Select over pairs of keys and pairs of queries, whose predicate asks both (likewise |)
    equal expressions        one

Operands come first, so that each rewriting meets operands that are rewritten already.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from typing import Any

from voltmeter.errors import ProgramError
from voltmeter.rasp.functions import Category, Function, Predicate
from voltmeter.rasp.language import nodes
from voltmeter.rasp.model import Value
from voltmeter.rasp.nodes import Constant, Leaf, Map, Node, SequenceMap, Sop, indices, tokens
from voltmeter.rasp.selectors import Select, Selector, SelectorAnd, SelectorNot, SelectorOr


@dataclass(frozen=True)
class Always:
    """The function that gives one value whatever it is given."""

    value: Value

    def __call__(self, x: Category) -> Value:
        return self.value


@dataclass(frozen=True)
class Diagonal:
    """A function of two values, both the same."""

    f: Function

    def __call__(self, x: Category) -> Category | None:
        return self.f(x, x)


@dataclass(frozen=True)
class Pair:
    """The function that makes one category of two."""

    def __call__(self, a: Category, b: Category) -> Category:
        return (a, b)


@dataclass(frozen=True)
class Opposite:
    """The predicate that holds where another does not; where that is undefined, so is this."""

    predicate: Predicate

    def __call__(self, key: Category, query: Category) -> bool | None:
        found = self.predicate(key, query)
        return None if found is None else not found


@dataclass(frozen=True)
class Both:
    """Two predicates as one, undefined where either is.

    ``pairs`` says whether keys, and whether queries, are pairs with a half for each.
    """

    first: Predicate
    second: Predicate
    how: Callable[[tuple[bool, bool]], bool]
    pairs: tuple[bool, bool]

    def __call__(self, key: Category, query: Category) -> bool | None:
        keys = key if self.pairs[0] and isinstance(key, tuple) else (key, key)
        queries = query if self.pairs[1] and isinstance(query, tuple) else (query, query)
        first, second = self.first(keys[0], queries[0]), self.second(keys[1], queries[1])
        return None if first is None or second is None else self.how((bool(first), bool(second)))


@dataclass(frozen=True)
class Lowered:
    """The rewritten program. ``became`` leads from each original expression to what computes it now."""

    root: Sop
    became: dict[Node, Node]


def lower(sop: Sop) -> Lowered:
    """Rewrite ``sop``; what it computes stays the same."""
    share = _Share({})
    became: dict[Node, Node] = {}
    for node in nodes(sop):
        became[node] = share(_rewrite(_rebuilt(node, became), share))
    root = became[sop]
    assert isinstance(root, Sop)
    return Lowered(root, became)


@dataclass(frozen=True)
class _Share:
    """Gives the first of each set of equal expressions. Functions are equal when they are the same object."""

    seen: dict[Hashable, Node]

    def __call__(self, node: Node) -> Node:
        if isinstance(node, Leaf):
            return tokens if node.given == "tokens" else indices
        key = (type(node), *((type(v), v) for v in (getattr(node, field.name) for field in fields(node))))
        try:
            return self.seen.setdefault(key, node)
        except TypeError:  # a function that cannot be hashed is shared with nothing
            return node

    def pair(self, a: Sop, b: Sop) -> Sop:
        made = self(SequenceMap(Pair(), a, b, name=f"{a.show(0)}_and_{b.show(0)}".replace("...", "x")))
        assert isinstance(made, Sop)
        return made


def _rebuilt(node: Node, became: dict[Node, Node]) -> Node:
    """``node`` over what its operands became."""
    changed: dict[str, Any] = {}
    for field in fields(node):
        operand = getattr(node, field.name)
        if isinstance(operand, Node):
            changed[field.name] = became[operand]
    return replace(node, **changed) if changed else node


def _rewrite(node: Node, share: _Share) -> Node:
    match node:
        case Constant(value=value):
            return Map(Always(value), indices, node.encoding, name=node.name or "constant")
        case SequenceMap(f=f, a=a, b=b) if a is b:
            return Map(Diagonal(f), a, node.encoding, name=node.name)
        case SelectorNot(a=Select() as a):
            return replace(a, predicate=Opposite(a.predicate), name=node.name)
        case SelectorAnd(a=Select() as a, b=Select() as b):
            return replace(_combine(a, b, all, share), name=node.name)
        case SelectorOr(a=Select() as a, b=Select() as b):
            return replace(_combine(a, b, any, share), name=node.name)
    if isinstance(node, Selector) and not isinstance(node, Select):
        raise ProgramError(f"{node} is no selector that voltmeter knows", mend="use Select and its &, |, ~")
    return node


def _combine(a: Select, b: Select, how: Callable[[tuple[bool, bool]], bool], share: _Share) -> Select:
    """One select that asks both predicates. Keys (queries) that are the same sequence need no pairs."""
    pairs = a.keys is not b.keys, a.queries is not b.queries
    keys = share.pair(a.keys, b.keys) if pairs[0] else a.keys
    queries = share.pair(a.queries, b.queries) if pairs[1] else a.queries
    return Select(keys, queries, Both(a.predicate, b.predicate, how, pairs))
