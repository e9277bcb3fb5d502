"""RASP (Weiss et al. 2106.06981) evaluated directly in Python: the oracle of every compiled model.

    opposite = length - indices - 1
    reverse = Aggregate(Select(indices, opposite, EQ), tokens).named("reverse")
    evaluate(reverse, ["a", "b", "c"])          ["c", "b", "a"]

What is undefined stays undefined (None) through maps, and is never selected. Numbers cannot be undefined: a transformer
holds a number as the size of one dimension, so an undefined one reads 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

from voltmeter.errors import ProgramError
from voltmeter.rasp.functions import EQ, FALSE, GEQ, GT, LEQ, LT, NEQ, SAME, TRUE, Category, Identity
from voltmeter.rasp.model import Value
from voltmeter.rasp.nodes import (
    CATEGORICAL,
    NUMERICAL,
    Constant,
    Encoding,
    Leaf,
    LinearSequenceMap,
    Map,
    Node,
    Operand,
    SequenceMap,
    Sop,
    combine,
    indices,
    tokens,
)
from voltmeter.rasp.selectors import Aggregate, Select, Selector, SelectorAnd, SelectorNot, SelectorOr, SelectorWidth
from voltmeter.rasp.semantics import apply, holds, linear, mean, number

__all__ = [
    "EQ",
    "FALSE",
    "GEQ",
    "GT",
    "LEQ",
    "LT",
    "NEQ",
    "TRUE",
    "Aggregate",
    "Constant",
    "Encoding",
    "LinearSequenceMap",
    "Map",
    "Node",
    "Select",
    "Selector",
    "SelectorAnd",
    "SelectorNot",
    "SelectorOr",
    "SelectorWidth",
    "SequenceMap",
    "Sop",
    "categorical",
    "equals",
    "evaluate",
    "indices",
    "length",
    "nodes",
    "numerical",
    "tokens",
]

Values: TypeAlias = list[Category | None]
Selection: TypeAlias = list[list[bool | None]]
"""[query][key]; None where the key or the query is undefined, which no and, or, not can mend."""


length = SelectorWidth(Select(tokens, tokens, TRUE), name="length")


def numerical(sop: Sop) -> Sop:
    """The same values as numbers: one dimension whose size is the value.

    A map, constant or sequence map gives its result as a number at once; an aggregate becomes the mean of numbers;
    anything else is converted by a Map. Raises ProgramError if it is no sequence.
    """
    need_sequence("numerical", sop)
    if sop.encoding is NUMERICAL:
        return sop
    if isinstance(sop, Map | SequenceMap | Constant):
        return replace(sop, encoding=NUMERICAL)
    if isinstance(sop, Aggregate):
        return replace(sop, sop=numerical(sop.sop))
    return Map(Identity(), sop, NUMERICAL)


def categorical(sop: Sop) -> Sop:
    """The same values as categories: one dimension per possible value. Raises ProgramError if it is no sequence."""
    need_sequence("categorical", sop)
    if sop.encoding is CATEGORICAL:
        return sop
    if isinstance(sop, Map | SequenceMap | Constant):
        return replace(sop, encoding=CATEGORICAL)
    return Map(Identity(), sop)


def need_sequence(what: str, given: object) -> None:
    """Raise ProgramError unless ``what`` was given a sequence."""
    if not isinstance(given, Sop):
        raise ProgramError(
            f"{what}() was given {given!r}, which is no sequence",
            mend="tokens == 'x' only compares identity: write equals(tokens, 'x')"
            if isinstance(given, bool)
            else "give tokens, indices, or what is made of them; a selector needs SelectorWidth or Aggregate",
        )


def equals(a: Operand, b: Operand) -> Sop:
    """Whether two sequences, or a sequence and a constant, hold the same value (``==`` itself compares identity)."""
    return combine(SAME, a, b)


_KNOWN = "build programs from tokens, indices, Constant, Map, SequenceMap, Aggregate, SelectorWidth, Select and &, |, ~"


def nodes(root: Node) -> tuple[Node, ...]:
    """Every expression that ``root`` is made of, each once, operands before what uses them, ``root`` last."""
    found: dict[Node, None] = {}
    todo = [(root, False)]
    while todo:
        node, ready = todo.pop()
        if node in found:
            continue
        if ready:
            found[node] = None
        else:
            todo.append((node, True))
            todo.extend((operand, False) for operand in reversed(node.operands))
    return tuple(found)


def evaluate(sop: Sop, row: Sequence[Value], causal: bool = False) -> list[Value | None]:
    """The value of ``sop`` at each position of ``row``; numbers as floats, None where it is undefined.

    ``causal`` lets a position select only itself and earlier ones.

    Raises:
        ProgramError: an aggregate selects several different categories, a function fails, or a numerical sequence is
            given something that is not a number; the message names the operation and shows the row. Or ``sop`` is no
            sequence.
    """
    need_sequence("evaluate", sop)
    values: dict[Node, Values] = {}
    selections: dict[Node, Selection] = {}
    for node in nodes(sop):
        try:
            if isinstance(node, Selector):
                selections[node] = _select(node, values, selections, causal)
            elif isinstance(node, Sop):
                found = _compute(node, row, values, selections)
                values[node] = [number(node, v) for v in found] if node.encoding is NUMERICAL else found
        except ProgramError as error:
            raise ProgramError(error.problem, [f"input {list(row)}", *error.details], error.mend) from error.__cause__
    return cast("list[Value | None]", values[sop])  # pairs arise only within lowered selectors


def _compute(node: Sop, row: Sequence[Value], values: dict[Node, Values], selections: dict[Node, Selection]) -> Values:
    match node:
        case Constant(value=value):
            return [value] * len(row)
        case Map(f=f, sop=x):
            return [apply(node, f, v) for v in values[x]]
        case SequenceMap(f=f, a=a, b=b):
            return [apply(node, f, u, v) for u, v in zip(values[a], values[b], strict=True)]
        case LinearSequenceMap(a=a, b=b):
            return [linear(node, u, v) for u, v in zip(values[a], values[b], strict=True)]
        case SelectorWidth(selector=selector):
            return [sum(key is True for key in keys) for keys in selections[selector]]
        case Aggregate(selector=selector, sop=x):
            return [_aggregate(node, keys, values[x], at) for at, keys in enumerate(selections[selector])]
        case Leaf(given=given):
            return list(row) if given == "tokens" else list(range(len(row)))
    raise ProgramError(f"{node} is no sequence that voltmeter knows", mend=_KNOWN)


def _aggregate(node: Aggregate, keys: Sequence[bool | None], values: Values, query: int) -> Category | None:
    where = [at for at, key in enumerate(keys) if key]
    held = [values[at] for at in where]
    if not held:
        return node.default
    if node.encoding is NUMERICAL:
        return mean([number(node, v) for v in held])
    if any(v != held[0] for v in held):
        raise ProgramError(
            f"{node} selects several different categories at once",
            [f"position {query} selects positions {where}, which hold {held}"],
            "narrow the selector to one position, or take the mean: numerical(...)",
        )
    return held[0]


def _select(node: Selector, values: dict[Node, Values], selections: dict[Node, Selection], causal: bool) -> Selection:
    match node:
        case SelectorAnd(a=a, b=b):
            return _both(selections[a], selections[b], all)
        case SelectorOr(a=a, b=b):
            return _both(selections[a], selections[b], any)
        case SelectorNot(a=a):
            made = [[None if key is None else not key for key in keys] for keys in selections[a]]
            return _causal(made) if causal else made
        case Select(keys=k, queries=q):
            made = [[holds(node, key, query) for key in values[k]] for query in values[q]]
            return _causal(made) if causal else made
    raise ProgramError(f"{node} is no selector that voltmeter knows", mend=_KNOWN)


def _both(a: Selection, b: Selection, how: Callable[[list[bool]], bool]) -> Selection:
    pairs = ([*zip(u, v, strict=True)] for u, v in zip(a, b, strict=True))
    return [[None if u is None or v is None else how([u, v]) for u, v in row] for row in pairs]


def _causal(selection: Selection) -> Selection:
    """No query selects a later key."""
    return [[key if at <= query else False for at, key in enumerate(keys)] for query, keys in enumerate(selection)]
