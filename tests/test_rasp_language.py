"""The language evaluated directly: known answers, what is undefined, and refusals in so many words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import rasp_known
from hypothesis import given
from hypothesis import strategies as st

from voltmeter.errors import ProgramError
from voltmeter.rasp.language import (
    EQ,
    FALSE,
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
    categorical,
    equals,
    evaluate,
    indices,
    length,
    nodes,
    numerical,
    tokens,
)

SHARE = Aggregate(Select(indices, indices, LEQ), numerical(equals(tokens, 1))).named("share")
EVEN = Map(lambda x: x if x % 2 == 0 else None, indices).named("even")
ROWS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@pytest.mark.parametrize("name", rasp_known.TABLE)
def test_known_answers(name: str) -> None:
    known = rasp_known.TABLE[name]
    for row, expected in known.rows:
        assert evaluate(known.sop, row, known.causal) == expected


OPERATORS: dict[str, tuple[Sop, list[Any]]] = {
    "add": (tokens + 1, [2, 3, 5]),
    "add on the left": (1 + tokens, [2, 3, 5]),
    "subtract": (tokens - indices, [1, 1, 2]),
    "subtract on the left": (10 - tokens, [9, 8, 6]),
    "multiply": (tokens * tokens, [1, 4, 16]),
    "multiply on the left": (3 * indices, [0, 3, 6]),
    "divide": (tokens / 2, [0.5, 1, 2]),
    "divide on the left, by zero": (4 / indices, [None, 4, 2]),
    "floor": (tokens // 2, [0, 1, 2]),
    "floor on the left": (9 // tokens, [9, 4, 2]),
    "remainder": (tokens % 2, [1, 0, 0]),
    "remainder on the left": (7 % tokens, [0, 1, 3]),
    "negate": (-tokens, [-1, -2, -4]),
    "less": (tokens < 2, [True, False, False]),
    "at most": (tokens <= 2, [True, True, False]),
    "more": (tokens > indices, [True, True, True]),
    "at least": (tokens >= 2, [False, True, True]),
    "equal": (equals(tokens, 2), [False, True, False]),
    "equal, two": (equals(tokens - 1, indices), [True, True, False]),
    "numbers add": (numerical(tokens) + numerical(indices), [1.0, 3.0, 6.0]),
    "numbers subtract": (numerical(tokens) - numerical(indices), [1.0, 1.0, 2.0]),
    "numbers compare": (numerical(tokens - 2) < numerical(indices - 1), [False, False, False]),
    "numbers are weighed": (LinearSequenceMap(numerical(tokens), numerical(indices), 2, -3), [2.0, 1.0, 2.0]),
    "a number and a constant": (numerical(tokens) * 2 + 1, [3.0, 5.0, 9.0]),
    "a constant": (Constant("c"), ["c", "c", "c"]),
    "a constant number": (numerical(Constant(2)), [2.0, 2.0, 2.0]),
    "a number as a category": (categorical(numerical(tokens)), [1.0, 2.0, 4.0]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    sop, expected = OPERATORS[name]
    assert evaluate(sop, [1, 2, 4]) == expected


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (EQ, [1, 1, 1]),
        (NEQ, [2, 2, 2]),
        (LT, [0, 1, 2]),
        (LEQ, [1, 2, 3]),
        (GT, [2, 1, 0]),
        (GEQ, [3, 2, 1]),
        (TRUE, [3, 3, 3]),
        (FALSE, [0, 0, 0]),
    ],
)
def test_a_comparison_is_of_the_key_with_the_query(comparison: Any, expected: list[int]) -> None:
    assert evaluate(SelectorWidth(Select(indices, indices, comparison)), "abc") == expected


UNDEFINED: dict[str, tuple[Sop, list[Any]]] = {
    "stays so through maps": (EVEN + 1, [1, None, 3]),
    "and through pairs": (SequenceMap(lambda a, b: f"{a}{b}", EVEN, tokens), ["0a", None, "2c"]),
    "a key that is undefined is not selected": (SelectorWidth(Select(EVEN, indices, TRUE)), [2, 2, 2]),
    "nor by the opposite": (SelectorWidth(~Select(EVEN, indices, TRUE)), [0, 0, 0]),
    "nor together with what selects it": (
        SelectorWidth(Select(EVEN, indices, FALSE) | Select(indices, indices, TRUE)),
        [2, 2, 2],
    ),
    "a query that is undefined selects nothing": (SelectorWidth(~Select(indices, EVEN, FALSE)), [3, 0, 3]),
    "where nothing is selected": (Aggregate(Select(indices, indices, LT), Constant("c")), [None, "c", "c"]),
    "or the default": (Aggregate(Select(indices, indices, LT), Constant("c"), "d"), ["d", "c", "c"]),
    "the default of numbers is 0": (Aggregate(Select(indices, indices, LT), numerical(indices)), [0, 0, 0.5]),
    "or another": (Aggregate(Select(indices, indices, LT), numerical(indices), 7), [7, 0, 0.5]),
    "as a number it is 0": (numerical(EVEN + 1), [1, 0, 3]),
    "selected, it is what is found": (rasp_known.at(indices, EVEN), [0, None, 2]),
}


@pytest.mark.parametrize("what", UNDEFINED)
def test_undefined(what: str) -> None:
    sop, expected = UNDEFINED[what]
    assert evaluate(sop, "abc") == expected


def test_nodes_come_once_operands_first() -> None:
    doubled = tokens + 1
    root = SequenceMap(lambda a, b: a, doubled, Aggregate(Select(doubled, tokens, EQ), doubled))
    found = nodes(root)
    assert len(found) == len(set(found)) == 5
    assert found[-1] is root
    assert all(found.index(operand) < at for at, node in enumerate(found) for operand in node.operands)


def test_a_deep_program_is_no_trouble() -> None:
    sop: Sop = tokens
    for _ in range(3000):
        sop = sop + 1
    assert evaluate(sop, [0]) == [3000]


@given(ROWS)
def test_reversing_twice_changes_nothing(row: list[int]) -> None:
    reverse = rasp_known.reverse()
    once = [value for value in evaluate(reverse, row) if value is not None]
    assert once == row[::-1]
    assert evaluate(reverse, once) == row


@given(ROWS, st.booleans(), st.sampled_from([EQ, LT, GEQ]), st.sampled_from([NEQ, GT, LEQ]))
def test_selectors_obey_de_morgan(row: list[int], causal: bool, first: Any, second: Any) -> None:
    a, b = Select(tokens, indices, first), Select(indices, tokens, second)

    def widths(selector: Selector) -> list[Any]:
        return evaluate(SelectorWidth(selector), row, causal)

    assert widths(~(a & b)) == widths(~a | ~b)
    assert widths(~(a | b)) == widths(~a & ~b)
    assert widths(~~a) == widths(a)
    seen = widths(rasp_known.ALL)  # fewer when causal
    assert [u + v for u, v in zip(widths(a), widths(~a), strict=True)] == seen


@given(ROWS, st.permutations(range(6)))
def test_a_mean_does_not_depend_on_the_order(row: list[int], order: list[int]) -> None:
    """To the last bit: the compiler finds the same floats from sets of values, which have no order."""
    mean = Aggregate(rasp_known.ALL, numerical(tokens / 3))
    mixed = [row[at] for at in order if at < len(row)]
    assert evaluate(mean, row) == evaluate(mean, mixed)


# Refusals ----------------------------------------------------------------------------------------------------------

NEEDS_CATEGORIES = "looks categories up, but share is numerical\n  convert it: categorical(share)"
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "ambiguous": (
        lambda: evaluate(Aggregate(Select(tokens, tokens, LEQ), indices).named("first"), [2, 1]),
        "first selects several different categories at once\n  input [2, 1]\n"
        "  position 0 selects positions [0, 1], which hold [0, 1]\n"
        "  narrow the selector to one position, or take the mean: numerical(...)",
    ),
    "ambiguous with the undefined": (
        lambda: evaluate(Aggregate(rasp_known.ALL, EVEN), "ab"),
        "Aggregate(Select(tokens, tokens, TRUE), even) selects several different categories at once\n"
        "  input ['a', 'b']\n  position 0 selects positions [0, 1], which hold [0, None]\n"
        "  narrow the selector to one position, or take the mean: numerical(...)",
    ),
    "a function that fails": (
        lambda: evaluate(tokens < 3, ["a"]),
        "(tokens < 3) fails on 'a': TypeError: '<' not supported between instances of 'str' and 'int'\n"
        "  input ['a']\n  make its function accept every value that can reach it",
    ),
    "a predicate that fails": (
        lambda: evaluate(SelectorWidth(Select(tokens, indices, LT)), ["a"]),
        "Select(tokens, indices, LT) fails on 'a', 0: TypeError: '<' not supported between instances of "
        "'str' and 'int'\n  input ['a']\n  make its function accept every value that can reach it",
    ),
    "no number": (
        lambda: evaluate(numerical(tokens), ["a"]),
        "Map(identity, tokens) is numerical, but gives 'a'\n  input ['a']\n"
        "  give finite numbers, or leave it categorical",
    ),
    "not finite": (
        lambda: evaluate(numerical(Map(lambda x: float("inf"), tokens)), [1]),
        "Map(lambda, tokens) is numerical, but gives inf\n  input [1]\n  give finite numbers, or leave it categorical",
    ),
    "numerical keys": (lambda: Select(SHARE, tokens, EQ), f"Select(share, tokens, EQ) {NEEDS_CATEGORIES}"),
    "numerical in a sequence map": (
        lambda: SequenceMap(max, tokens, SHARE),
        f"SequenceMap(max, tokens, share) {NEEDS_CATEGORIES}",
    ),
    "a mixture": (lambda: SHARE + tokens, f"(share + tokens) {NEEDS_CATEGORIES}"),
    "a product of numbers": (
        lambda: SHARE * SHARE,
        "(share * share) has two numerical operands, and a transformer can only add and subtract those\n"
        "  convert both with categorical(...) to look the result up",
    ),
    "a sum of categories": (
        lambda: LinearSequenceMap(tokens, SHARE),
        "(1 * tokens + 1 * share) adds numbers, but tokens is categorical\n  convert it: numerical(tokens)",
    ),
    "one truth value": (
        lambda: 0 < indices < 3,
        "(indices > 0) has no single truth value: it has one at every position\n"
        "  write comparisons one at a time (not 0 < x < 3), and SequenceMap where you would write and/or",
    ),
    "a default that is not equal to itself": (
        lambda: Aggregate(Select(tokens, tokens, EQ), tokens, default=float("nan")),
        "Aggregate(Select(tokens, tokens, EQ), tokens) was given the default nan, which cannot be a value\n"
        "  give a number, a string, True or False; None leaves it undefined",
    ),
    "an operand of no kind": (
        lambda: tokens + None,
        "+ was given tokens and None\n  give two sequences, or a sequence and a number or string",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    ask, expected = REFUSED[what]
    with pytest.raises(ProgramError) as caught:
        ask()
    assert str(caught.value) == expected


KINDS = (
    "\n  sequences are tokens, indices, Constant(...), Map, SequenceMap, Aggregate, SelectorWidth; "
    "selectors are Select(...) and their &, |, ~\n"
)
MIXED_UP = {
    "Map(len, Select(tokens, tokens, EQ))": "Map(len, Select(tokens, tokens, EQ)) needs a sequence, "
    f"and was given Select(tokens, tokens, EQ){KINDS}",
    "SelectorWidth(tokens)": f"SelectorWidth(tokens) needs a selector, and was given tokens{KINDS}",
    "Aggregate(tokens, tokens)": f"Aggregate(tokens, tokens) needs a selector, and was given tokens{KINDS}",
    "Select(tokens, 3, EQ)": f"Select(tokens, 3, EQ) needs a sequence, and was given 3{KINDS}",
    "numerical(tokens == 'x')": "numerical() was given False, which is no sequence\n"
    "  tokens == 'x' only compares identity: write equals(tokens, 'x')\n",
    "evaluate(Select(tokens, tokens, EQ), 'ab')": "evaluate() was given Select(tokens, tokens, EQ), which is no "
    "sequence\n  give tokens, indices, or what is made of them; a selector needs SelectorWidth or Aggregate\n",
    "compile_program(tokens == 'x', 'xy', 3)": "compile_program() was given False, which is no sequence\n"
    "  tokens == 'x' only compares identity: write equals(tokens, 'x')\n",
    "compile_program('tokens', 'xy', 3)": "compile_program() was given 'tokens', which is no sequence\n"
    "  give tokens, indices, or what is made of them; a selector needs SelectorWidth or Aggregate\n",
    "Aggregate(Select(tokens, tokens, EQ), tokens, default=['x'])": "Aggregate(Select(tokens, tokens, EQ), tokens) "
    "was given the default ['x'], which cannot be a value\n"
    "  give a number, a string, True or False; None leaves it undefined\n",
    "compile_program(tokens, [0, 1], 3).model.compute([0, 1])": "program was given 0 for an input, which is a row of "
    "tokens\n  give a list of inputs, also of one: [[...]]\n",
    "Select(tokens, tokens, EQ) & tokens": "(Select(tokens, tokens, EQ) & tokens) needs a selector, "
    f"and was given tokens{KINDS}",
}


def test_sequences_and_selectors_are_not_mixed_up() -> None:
    """Asked of another process: in this one the annotations are checked, which notices sooner."""
    program = ["from voltmeter.errors import ProgramError", "from voltmeter.rasp.language import *"]
    program += ["from voltmeter.rasp.compile import compile_program"]
    for wrong in MIXED_UP:
        program += ["try:", f"    {wrong}", "except ProgramError as error:", "    print(error)"]
    run = subprocess.run([sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=True)
    assert run.stdout == "".join(MIXED_UP.values())


@pytest.mark.parametrize(
    ("sop", "shown"),
    [
        (length - indices - 1, "((length - indices) - 1)"),
        (rasp_known.reverse(), "reverse"),
        (
            SelectorWidth(~Select(tokens, tokens, EQ) & rasp_known.PREVIOUS),
            "SelectorWidth((~... & Select(indices, indices, LEQ)))",
        ),
        (
            Aggregate(Select(tokens, indices, lambda k, q: True), SHARE),
            "Aggregate(Select(tokens, indices, lambda), share)",
        ),
        ((tokens + 1 + 1 + 1).named("later") * 2, "(later * 2)"),
        (tokens + 1 + 2 + 3, "(((tokens + 1) + 2) + 3)"),
        (tokens + 1 + 2 + 3 + 4, "(((... + 2) + 3) + 4)"),
        (Constant("c"), "Constant('c')"),
    ],
)
def test_expressions_are_shown_as_written(sop: Sop, shown: str) -> None:
    assert str(sop) == shown
