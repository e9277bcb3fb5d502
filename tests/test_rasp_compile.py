"""The compiler: its models do what the oracle says, and are wired as the original compiler's are."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import rasp_known
import torch
from conftest import asset
from hypothesis import given, settings
from hypothesis import strategies as st
from rasp_known import TABLE
from safetensors.torch import load_file
from torch import Tensor

import voltmeter as vm
from voltmeter.errors import ProgramError
from voltmeter.rasp.compile import Compilation, compile_program
from voltmeter.rasp.language import (
    EQ,
    LEQ,
    LT,
    NEQ,
    TRUE,
    Aggregate,
    Constant,
    Encoding,
    LinearSequenceMap,
    Map,
    Select,
    Selector,
    SelectorWidth,
    SequenceMap,
    Sop,
    evaluate,
    indices,
    length,
    numerical,
    tokens,
)

# Numbers of size 1 to 10 through a few layers of float64; steps 100 steep make it 100 times more.
CLOSE = 1e-9
EXPORTS = ("reverse", "hist", "length", "frac_prevs_x", "sort_unique", "sort_freq", "shuffle_dyck")


@functools.cache
def compiled(name: str) -> Compilation:
    known = TABLE[name]
    return compile_program(known.sop, known.vocabulary, known.max_length, name=name, causal=known.causal)


def rows_of(vocabulary: Sequence[Any], length: int, most: int = 300) -> list[tuple[Any, ...]]:
    """All inputs of a length; evenly spaced ones where there are more than ``most``."""
    count = len(vocabulary) ** length
    return list(itertools.islice(itertools.product(vocabulary, repeat=length), 0, None, -(-count // most)))


def assert_agrees(made: Compilation, sop: Sop, rows: Sequence[Any], causal: bool = False) -> int:
    """The model's outputs are the oracle's, dimension by dimension. Returns how many positions were compared."""
    decoded = made.model.interface.decoded
    outputs = made.model(made.model.encode(rows))[:, 1:]
    said = [evaluate(sop, row, causal) for row in rows]
    if decoded is None:
        expected = torch.tensor(said, dtype=outputs.dtype)[:, :, None]
    else:
        known = {None: [0.0] * len(decoded), **dict(zip(decoded, torch.eye(len(decoded)).tolist(), strict=True))}
        expected = torch.tensor([[known[value] for value in values] for values in said], dtype=outputs.dtype)
    assert outputs.shape == expected.shape
    off = (outputs - expected).abs().amax(-1)
    at, position = divmod(int(off.argmax()), off.shape[1])
    found = outputs[at, position].tolist()
    assert off[at, position] < CLOSE, f"{sop} of {rows[at]}: {found}, not {said[at][position]!r}"
    return off.numel()


def check(sop: Sop, vocabulary: Sequence[Any], max_length: int, causal: bool = False, **settings: Any) -> Compilation:
    """Compile, and compare with the oracle on inputs of every length."""
    made = compile_program(sop, vocabulary, max_length, causal=causal, **settings)
    for count in range(1, max_length + 1):
        assert_agrees(made, sop, rows_of(vocabulary, count), causal)
    return made


# What the models compute -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_known_answers(name: str) -> None:
    for row, expected in TABLE[name].rows:
        (found,) = compiled(name).model.compute([row])
        for value, correct in zip(found, expected, strict=True):
            assert correct is None or value == (
                pytest.approx(correct, abs=CLOSE) if isinstance(correct, float) else correct
            )


@pytest.mark.parametrize("name", TABLE)
def test_the_oracle_on_inputs_of_every_length(name: str) -> None:
    """Undefined positions too: they hold no category at all."""
    known = TABLE[name]
    for count in range(1, known.max_length + 1):
        rows = rows_of(known.vocabulary, count)
        assert assert_agrees(compiled(name), known.sop, rows, known.causal) == count * len(rows)


CORNERS: dict[str, Sop] = {
    "a number left at BOS is not read where nothing is selected": Aggregate(
        Select(indices, indices, LT), numerical(Map(lambda x: x + 5 if x > 0 else 7, numerical(tokens)))
    ),
    "a category left at BOS is no key": SelectorWidth(
        Select(Map(lambda x: x < 2, numerical(tokens)), indices, lambda key, query: key)
    ),
    "nor a query": Aggregate(
        Select(tokens, Map(lambda x: 1 if x < 2 else 2, numerical(tokens)), EQ),
        numerical(rasp_known.at(indices - 1, Map(lambda x: x < 3, numerical(tokens)))),
    ),
    "a default of categories is passed on": SelectorWidth(
        Select(Aggregate(Select(indices, indices - 1, EQ), tokens, 3), tokens, EQ)
    ),
    "a default of numbers": Aggregate(Select(indices, indices, LT), numerical(tokens), 2.5) - numerical(tokens),
    "the default where the query is undefined": Aggregate(Select(indices, 2 / indices, EQ), tokens, 9),
    "what is undefined as a number": numerical(rasp_known.at(indices - 1, tokens)),
    "and mapped on": numerical(Map(lambda x: 10 - x, numerical(rasp_known.at(indices - 1, tokens)))),
    "a function of one sequence twice": SequenceMap(lambda a, b: a * b, tokens, tokens),
    "a number added to itself": numerical(tokens) + numerical(tokens),
    "the same number in both": LinearSequenceMap(*[numerical(tokens)] * 2, 2, -3),
    "a mean of fractions": Aggregate(Select(indices, indices, LEQ), numerical(tokens / 3)),
    "a mean compared": Aggregate(Select(indices, indices, LEQ), numerical(tokens / 3)) > 0.5,
    "numbers with the same result on both sides of a step": Map(lambda x: abs(x - 2), numerical(tokens)),
    "a factor of zero": LinearSequenceMap(numerical(tokens), numerical(indices), 0, 1),
    "a number divided": numerical(tokens) / 4 + 1,
    "a constant divided by a number": numerical(12 / numerical(tokens)),
    "tuples inside": Map(lambda pair: pair[0] > pair[1], SequenceMap(lambda a, b: (a, b), tokens, indices)),
    "a selector twice": SequenceMap(lambda a, b: (a + b) % 4, *[SelectorWidth(Select(tokens, tokens, LT))] * 2),
    "a predicate that gives None, in the opposite": SelectorWidth(~Select(tokens, indices, lambda key, query: None)),
    "and in a union": SelectorWidth(Select(tokens, indices, lambda key, query: None) | rasp_known.PREVIOUS),
    "a predicate that divides by zero": SelectorWidth(~Select(tokens, indices, lambda key, query: key / query > 1)),
    "a lone constant number": Constant(2.5, Encoding.NUMERICAL),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("what", CORNERS)
def test_corners(what: str, causal: bool) -> None:
    check(CORNERS[what], (1, 2, 3), 4, causal)


def test_long_inputs_make_steps_steeper() -> None:
    """1/30 and 1/31 are 0.001 apart: a ramp of 1/100 would blur widths 29 and 30."""
    made = compile_program(length, (1, 2), 40)
    rows = [[1] * count for count in range(1, 41)]
    assert [made.model.compute([row])[0][0] for row in rows] == list(range(1, 41))


TOKEN, INDEX = st.integers(0, 2), st.integers(0, 3)


@st.composite
def tables(draw: Any, first: int, second: int, values: int) -> Any:
    """A function of two small integers, by table; it may be undefined."""
    cells = st.one_of(st.none(), st.integers(0, values - 1))
    made = draw(st.lists(cells, min_size=first * second, max_size=first * second).filter(any_defined))
    return lambda a, b: made[a * second + b]


def any_defined(cells: list[Any]) -> bool:
    return any(cell is not None for cell in cells)


@given(tables(3, 4, 3), st.booleans())
@settings(max_examples=25)
def test_any_function_of_two_sequences(table: Any, causal: bool) -> None:
    check(SequenceMap(table, tokens, indices), (0, 1, 2), 4, causal)
    check(numerical(SequenceMap(table, tokens, indices)), (0, 1, 2), 4, causal)


@given(tables(4, 4, 2), tables(3, 4, 2), st.sampled_from(["and", "or", "not", "nest"]), st.booleans())
@settings(max_examples=25)
def test_any_selector(one: Any, other: Any, how: str, causal: bool) -> None:
    """Predicates by table, over the same keys and queries and over others."""
    a = Select(indices, indices, lambda key, query: bool(one(key, query)))
    b = Select(tokens, indices, lambda key, query: bool(other(key, query)))
    made: dict[str, Selector] = {"and": a & b, "or": a | b, "not": ~b, "nest": ~(a & ~b) | (b & a)}
    width = SelectorWidth(made[how])
    check(width, (0, 1, 2), 3, causal)
    check(Aggregate(made[how], numerical(tokens)), (0, 1, 2), 3, causal)


@given(
    st.lists(st.integers(-30, 30), min_size=3, max_size=3, unique=True),
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
@settings(max_examples=25)
def test_any_function_of_a_number(numbers: list[int], results: list[int]) -> None:
    table = {number / 7: result for number, result in zip(numbers, results, strict=True)}
    number = numerical(Map(lambda token: numbers[token] / 7, tokens))
    check(Map(lambda x: table[x], number), (0, 1, 2), 2)
    check(numerical(Map(lambda x: table[x], number)), (0, 1, 2), 2)


# How they are made -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, known in TABLE.items() if known.where])
def test_where(name: str) -> None:
    named = {str(node): components[-1] for node, components in compiled(name).where.items()}
    assert {expression: named.get(expression) for expression in TABLE[name].where} == TABLE[name].where


def test_a_width_is_found_in_two_steps() -> None:
    assert [components for node, components in compiled("hist").where.items() if node.name == "hist"] == [
        ("a0.h0", "m0")
    ]


def test_equal_expressions_are_computed_once() -> None:
    def twice() -> Sop:
        return SequenceMap(max, SelectorWidth(Select(tokens, tokens, NEQ)), length - 1)

    sop = SequenceMap(min, twice(), twice() + 0)
    assert compile_program(sop, (1, 2), 3).model.shape.heads == 2


def test_compiling_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    compile_program(TABLE["hist"].sop, (1, 2), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_dimensions_are_labelled() -> None:
    labels = compiled("reverse").model.interface.labels
    assert labels[:11] == (
        *("one", "tokens:1", "tokens:2", "tokens:3", "tokens:BOS", "tokens:compiler_pad"),
        *(f"indices:{at}" for at in range(5)),
    )
    assert [label for label in labels if label.startswith("length")] == [
        "length_2_selector_width_attn_output",
        *(f"length_2:{width}" for width in range(6)),
    ]


def without_numbers(labels: Sequence[str]) -> list[str]:
    """ "map_42:True" as "map:True": the two compilers count in different orders."""
    return [re.sub(r"_\d+(?=:|$|_selector)", "", label) for label in labels]


def export(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = asset("tracr") / name
    return json.loads((path / "program.json").read_text()), load_file(path / "weights.safetensors")


def edges_in(program: dict[str, Any], weights: dict[str, Tensor]) -> set[str]:
    """The edges that an export's weights make: a dimension that one component writes and another reads."""
    writes: dict[str, Tensor] = {
        "input.tok": weights["token_embed/embeddings"].any(0),
        "input.pos": weights["pos_embed/embeddings"].any(0),
    }
    reads: dict[str, Tensor] = {}
    width = weights["transformer/layer_0/attn/query/w"].shape[1] // program["num_heads"]
    for layer in range(program["num_layers"]):
        part = {key.split("/", 2)[2]: value for key, value in weights.items() if f"layer_{layer}/" in key}
        for head in range(program["num_heads"]):
            own = slice(head * width, (head + 1) * width)
            for port in ("query", "key", "value"):
                reads[f"a{layer}.h{head}<{port[0]}>"] = part[f"attn/{port}/w"][:, own].any(1)
            writes[f"a{layer}.h{head}"] = part["attn/linear/w"][own].any(0)
        reads[f"m{layer}"], writes[f"m{layer}"] = part["mlp/linear_1/w"].any(1), part["mlp/linear_2/w"].any(0)
    order = [*writes, "logits"]

    def before(writer: str, reader: str) -> bool:
        return order.index(writer) < order.index(reader.split("<")[0])

    return {f"{w} -> {r}" for w in writes for r in reads if before(w, r) and (writes[w] & reads[r]).any()}


# Of whether all brackets close, 0 at BOS leaves "yes": it is taken away lest it be read where nothing is selected.
# The original does without, and is right because the last position always exists.
MORE = {"shuffle_dyck": {"input.tok -> a4.h0<v>"}}


@pytest.mark.parametrize("name", EXPORTS)
def test_the_original_compilers_layers_labels_and_edges(name: str) -> None:
    program, weights = export(name)
    made = compiled(name)
    shape = made.model.shape
    assert (shape.layers, shape.heads) == (program["num_layers"], program["num_heads"])
    labels = program["residual_labels"]
    assert Counter(without_numbers(made.model.interface.labels)) == Counter(without_numbers(labels))
    found = {edge for edge in made.provenance if not edge.endswith("logits")}
    assert found == edges_in(program, weights) | MORE.get(name, set())


@pytest.mark.parametrize("name", EXPORTS)
def test_the_original_compilers_outputs(name: str) -> None:
    program, _ = export(name)
    found = compiled(name).model.compute(program["inputs"])
    if program["output_encoding"]:
        assert found == program["outputs"]
    else:  # computed in float32 there, and BOS had 5e-7 of the attention
        assert (torch.tensor(found) - torch.tensor(program["outputs"])).abs().max() < 1e-6


# Wiring ------------------------------------------------------------------------------------------------------------


@functools.cache
def wired(name: str) -> tuple[Any, Tensor, Tensor]:
    """The wiring (laws 1 and 2 are verified as it is made), inputs, and others to resample from."""
    known, model = TABLE[name], compiled(name).model
    rows = model.encode(rows_of(known.vocabulary, known.max_length, 100))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return vm.wire(model, rows[order[:4]]).split("input"), rows, rows.roll(7, 0)


WIRED = [name for name in TABLE if name not in ("length", "length_causal", "constant")]


@pytest.mark.parametrize("fill", ["zero", "resample"])
@pytest.mark.parametrize("name", WIRED)
def test_the_edges_of_the_dataflow_suffice(name: str, fill: str) -> None:
    wiring, inputs, corrupted = wired(name)
    edges, provenance = [str(edge) for edge in wiring.edges], compiled(name).provenance
    assert set(provenance) <= set(edges)
    keep = torch.tensor([float(edge in provenance) for edge in edges])
    fills = {"zero": vm.fill.zero(), "resample": vm.fill.resample()}[fill]
    kept = vm.run(wiring, inputs, keep, fills, corrupted if fill == "resample" else None)
    assert (kept - wiring.model(inputs)).abs().max() < CLOSE
    nothing = vm.run(wiring, inputs, keep * 0, fills, corrupted if fill == "resample" else None)
    if fill == "resample":
        assert (nothing - wiring.model(corrupted)).abs().max() < CLOSE
    else:
        assert (nothing - wiring.model(inputs)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "fill", "count"),
    [("reverse", "resample", 2), ("reverse", "zero", 9), ("frac_prevs_x", "resample", 3), ("frac_prevs_x", "zero", 5)],
)
def test_as_many_edges_are_necessary_as_in_the_originals(name: str, fill: str, count: int) -> None:
    """One at a time, raw outputs; all of them are in the dataflow, and what is unnecessary changes nothing at all."""
    wiring, inputs, corrupted = wired(name)
    fills = {"zero": vm.fill.zero(), "resample": vm.fill.resample()}[fill]
    single = 1 - torch.eye(len(wiring.edges))
    cut = vm.run(wiring, inputs, single, fills, corrupted if fill == "resample" else None, axes="circuit edge")
    change = (cut - wiring.model(inputs))[:, :, 1:].abs().amax((1, 2, 3))
    changes = {str(edge): float(size) for edge, size in zip(wiring.edges, change, strict=True)}
    necessary = {edge for edge, change in changes.items() if change > 1e-6}
    assert len(necessary) == count
    assert necessary <= set(compiled(name).provenance)
    assert max(change for edge, change in changes.items() if edge not in necessary) < 1e-15


def test_an_edge_says_what_it_carries() -> None:
    carries = compiled("reverse").carries
    assert carries["input.tok -> a3.h0<v>"] == ("tokens:1", "tokens:2", "tokens:3")
    assert carries["input.tok -> a3.h0<q>"] == ("one",)
    assert carries["a3.h0 -> logits"] == ("reverse_5:1", "reverse_5:2", "reverse_5:3")


@pytest.mark.parametrize("coldness", [20, 30.0])
def test_bos_keeps_a_share_that_coldness_sets(coldness: float) -> None:
    known = TABLE["reverse"]
    made = compile_program(known.sop, known.vocabulary, known.max_length, coldness=coldness)
    kept = 1 - made.model(made.model.encode([(1, 2, 3)]))[0, 1:].amax(-1)
    # BOS has e^(-coldness / 2) of the selected position's weight, the others e^-coldness.
    assert kept.tolist() == pytest.approx([math.exp(-coldness / 2)] * 3, rel=1e-3)


def test_steps_are_as_steep_as_asked() -> None:
    blunt = compile_program(TABLE["hist"].sop, (1, 2), 2, mlp_exactness=20)
    sharp = compile_program(TABLE["hist"].sop, (1, 2), 2, mlp_exactness=1000)
    steepest = [float(made.model.layers[0].mlp.first.weight.max()) for made in (blunt, sharp)]  # type: ignore[union-attr]
    assert steepest == [20.0, 1000.0]


# Refusals ----------------------------------------------------------------------------------------------------------


WIDE = numerical(Map(lambda x: x * 1.01**x, indices))
FAR_APART = numerical(Map(lambda token: (0, 2e-6, 1e12)[token], tokens)).named("far")
TIMES: list[str] = []
TRUE_OR_1 = Map(lambda token: {"a": True, "b": 1, "c": 2}[token], tokens).named("true_or_1")
ONE_CATEGORY = "which are equal and so one category\n  it makes them True and False\n"
ALIKE = "  treat equal values alike, or let what it reads give them one type: bool(x), int(x)"
UNUSABLE = "the vocabulary cannot be used"
EACH_ONCE = "give each token once: equal values (1, 1.0, True) are one token, and so are equal spellings (1, '1')"
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "an ambiguous aggregate": (
        lambda: compile_program(Aggregate(Select(tokens, tokens, TRUE), tokens).named("any"), ("a", "b"), 2),
        "any selects several different categories at once\n  input ['a', 'b']\n"
        "  position 0 selects positions [0, 1], which hold ['a', 'b']\n"
        "  narrow the selector to one position, or take the mean: numerical(...); "
        "or name the inputs that the program is for: inputs=",
    ),
    "a function that fails on a token": (
        lambda: compile_program(tokens < 2, (1, "a"), 3),
        "(tokens < 2) fails on 'a': TypeError: '<' not supported between instances of 'str' and 'int'\n"
        "  make its function accept every value that can reach it",
    ),
    "tokens that are no numbers": (
        lambda: compile_program(numerical(tokens), ("a", "b"), 3),
        "Map(identity, tokens) is numerical, but gives 'a'\n  give finite numbers, or leave it categorical",
    ),
    "too many pairs": (
        lambda: compile_program(SequenceMap(max, tokens, indices).named("top"), range(300), 100),
        "top would look up 300 x 100 pairs of values, more than 20000\n"
        "  use a smaller vocabulary or max_length, or map the operands to fewer values first",
    ),
    "too many categories": (
        lambda: compile_program(SequenceMap(lambda a, b: a * 100 + b, tokens, indices).named("id"), range(100), 100),
        "id can take 10000 different values, more than 1000\n"
        "  use a smaller vocabulary or max_length, or map it to fewer values; numbers may stay numerical(...)",
    ),
    "too many numbers to tell apart": (
        lambda: compile_program((Aggregate(Select(tokens, tokens, EQ), WIDE).named("mean") > 3).named("far"), "ab", 12),
        "far maps mean, which can be more than 20000 different numbers\n"
        "  use a smaller max_length or fewer values, or leave it numerical and only add and subtract",
    ),
    "numbers too close": (
        lambda: compile_program((numerical(tokens) > 1).named("more"), (1, 1.0000001), 3),
        "more tells 1.0 from 1.0000001, which are too close\n  it makes them False and True\n"
        "  round in the function, or scale the numbers up first",
    ),
    "undefined everywhere": (
        lambda: compile_program(Map(lambda x: None, tokens).named("nothing"), "ab", 3),
        "nothing is undefined everywhere\n  let its function give a value for some input",
    ),
    "tuples as the output": (
        lambda: compile_program(SequenceMap(lambda a, b: (a, b), tokens, indices).named("pairs"), "ab", 3),
        "pairs gives ('a', 0), which is neither a number nor a string\n"
        "  let the last operation give plain values; inner ones may give tuples",
    ),
    "no tokens": (
        lambda: compile_program(tokens, (), 3),
        f"the vocabulary is empty\n  vocabulary []\n  {EACH_ONCE}",
    ),
    "a token twice": (
        lambda: compile_program(tokens, "aba", 3),
        f"{UNUSABLE}\n  vocabulary ['a', 'b', 'a']\n  it repeats 'a', as 'a'\n  {EACH_ONCE}",
    ),
    "BOS as a token": (
        lambda: compile_program(tokens, ("a", "<s>"), 3, bos="<s>"),
        f"{UNUSABLE}\n  vocabulary ['a', '<s>']\n"
        f"  it has '<s>' in it: '<s>' and 'compiler_pad' are the compiler's own\n  {EACH_ONCE}",
    ),
    "tokens that are equal, or spelled alike": (
        lambda: compile_program(tokens, (1, True, 2.0, "2.0"), 3),
        f"{UNUSABLE}\n  vocabulary [1, True, 2.0, '2.0']\n"
        f"  it repeats 1, as True\n  it repeats 2.0, as '2.0'\n  {EACH_ONCE}",
    ),
    "a token that equals BOS": (
        lambda: compile_program(tokens, (1, 2), 3, bos=True),
        f"{UNUSABLE}\n  vocabulary [1, 2]\n"
        f"  it has 1 in it: True and 'compiler_pad' are the compiler's own\n  {EACH_ONCE}",
    ),
    "a token that is not equal to itself": (
        lambda: compile_program(tokens, (math.nan, 1), 3),
        f"{UNUSABLE}\n  vocabulary [nan, 1]\n  nan is no number or string\n  {EACH_ONCE}",
    ),
    "attention that attends everything alike": (
        lambda: compile_program(tokens, "ab", 3, coldness=0, mlp_exactness=-1),
        "the model would not tell values apart\n  coldness is 0\n  mlp_exactness is -1\n"
        "  give a number above zero: 100 is usual",
    ),
    "numbers too close beside a large one": (
        lambda: compile_program(Map(lambda x: x > 0, FAR_APART), (0, 1, 2), 3),
        "Map(lambda, far) tells 0.0 from 2e-06, which are too close beside 1e+12, the largest\n"
        "  it makes them False and True\n  round in the function, or scale the numbers up first",
    ),
    "a result without a hash": (
        lambda: compile_program(Map(lambda x: [x], tokens), "a", 1),
        "Map(lambda, tokens) gives ['a'] for 'a', which cannot be told from other values by == and hash\n"
        "  give numbers, strings, or tuples of them",
    ),
    "a function with a memory": (
        lambda: compile_program(Map(lambda x: TIMES.append(x) or len(TIMES), tokens).named("times"), "a", 1),  # type: ignore[func-returns-value]
        "times gives 2 now, and gave something else when it was asked for its values\n"
        "  its function has to give equal results for equal values: no chance, no state, no fresh objects",
    ),
    "a number beyond float64": (
        lambda: compile_program(numerical(Map(lambda x: 10**309, tokens)), "a", 1),
        f"Map(lambda, tokens) is numerical, but gives 1{'0' * 309}\n  give finite numbers, or leave it categorical",
    ),
    "a function that tells True from 1": (
        lambda: compile_program(Map(lambda x: x is True, TRUE_OR_1).named("is_true"), "abc", 2),
        f"is_true tells True from 1, {ONE_CATEGORY}{ALIKE}",
    ),
    "one that tells pairs with them apart": (
        lambda: compile_program(SequenceMap(lambda x, at: x is True, TRUE_OR_1, indices).named("is_true"), "abc", 2),
        f"is_true tells True, 0 from 1, 0, {ONE_CATEGORY}{ALIKE}",
    ),
    "a selector that tells True from 1": (
        lambda: compile_program(
            SelectorWidth(Select(TRUE_OR_1, indices, lambda key, at: key is True, name="t")), "ab", 2
        ),
        f"t tells True, 0 from 1, 0, {ONE_CATEGORY}{ALIKE}",
    ),
    "numbers too large for steps": (
        lambda: compile_program((numerical(tokens) > 3).named("more"), (0, 2**28), 2),
        "more would be off by up to 3e-06: its steps are too steep for numbers as large as it reads\n"
        "  it reads up to 2.68435e+08, and 1e-06 is allowed\n"
        "  scale the numbers down first, or compile with blunter steps (mlp_exactness=)",
    ),
    "numbers too large to hold": (
        lambda: compile_program(Aggregate(Select(tokens, tokens, EQ), 1e9 * numerical(tokens)).named("sum"), (1, 2), 2),
        "(1000000000.0 * Map(identity, tokens)) can be as large as 2e+09, and compiled models hold up to 1e+09\n"
        "  scale the numbers down first, or leave them categorical",
    ),
    "too many numbers, and too large": (
        lambda: compile_program(Aggregate(Select(tokens, tokens, EQ), WIDE).named("mean") * 1e9 - WIDE, "ab", 12),
        "(mean * 1000000000.0) can be as large as 1.22724e+10, and compiled models hold up to 1e+09\n"
        "  scale the numbers down first, or leave them categorical",
    ),
    "inputs that the model cannot be given": (
        lambda: compile_program(tokens, "ab", 3, inputs=["az", "ab", "abab", ""]),
        "a program was said to be for inputs that its model cannot be given\n"
        "  input ['a', 'z'] has tokens that the vocabulary has not: 'z'\n"
        "  input ['a', 'b', 'a', 'b'] has 4 tokens, from 1 to 3 were expected\n"
        "  input [] has 0 tokens, from 1 to 3 were expected\n"
        "  leave them out, or compile for them (vocabulary=, max_length=)",
    ),
    "no positions": (
        lambda: compile_program(tokens, "ab", 0),
        "max_length is 0\n  compile for at least one position after BOS",
    ),
    "an input that is too long": (
        lambda: compiled("reverse").model.compute([(1, 2, 3, 1, 2, 3)]),
        "reverse was compiled for 5 tokens after BOS; 6 were given\n  input (1, 2, 3, 1, 2, 3)\n"
        "  give shorter inputs, or compile for longer ones (max_length=)",
    ),
    "an unknown token": (
        lambda: compiled("reverse").model.compute([(1, 4)]),
        "reverse has no token 4\n  input (1, 4)\n  its tokens are 1, 2, 3\n"
        "  use its own tokens, or compile it with yours (vocabulary=)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    ask, expected = REFUSED[what]
    with pytest.raises(ProgramError) as caught:
        ask()
    assert str(caught.value) == expected


def test_equal_values_of_two_types_are_one_category() -> None:
    check(Map(lambda x: x + 1, TRUE_OR_1), "abc", 3)
    check(SelectorWidth(Select(TRUE_OR_1, tokens, lambda key, query: key == 1)), "abc", 3)
    check(rasp_known.at(indices - 1, TRUE_OR_1), "abc", 3)


def test_numbers_that_are_not_too_large_are_kept_to_a_millionth() -> None:
    sop = Map(lambda x: x > 3, numerical(tokens))
    blunt, usual = (compile_program(sop, (0, 2**most), 2, mlp_exactness=e).model for most, e in ((29, 10), (26, 100)))
    for model in (blunt, usual):
        rows = [(0, model.interface.vocabulary[1])]
        wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # False, True
        assert (model(model.encode(rows))[0, 1:] - wanted).abs().max() < 1e-6


def test_too_many_numbers_are_no_harm_where_none_is_told_from_another() -> None:
    check(Aggregate(Select(tokens, tokens, EQ), WIDE) - WIDE, "ab", 8)


def test_a_program_may_be_for_some_inputs_only() -> None:
    """The position of each token's only occurrence: two of a kind would be ambiguous."""
    sop = Aggregate(Select(tokens, tokens, EQ), indices)
    permutations = list(itertools.permutations("abc"))
    made = compile_program(sop, "abc", 3, inputs=permutations)
    assert_agrees(made, sop, permutations)
    with pytest.raises(ProgramError, match="selects several different categories at once"):
        compile_program(sop, "abc", 3)


def test_a_program_that_is_ambiguous_on_short_inputs_only() -> None:
    """At length 3 both selectors choose index 0; at length 2 one of them chooses index 1."""
    first = Select(indices, Constant(0), EQ) | Select(indices, 3 - length, EQ)
    program = Aggregate(first, tokens).named("first_of_three")
    with pytest.raises(ProgramError, match="first_of_three") as raised:
        compile_program(program, ("a", "b"), 3)
    assert "inputs=" in str(raised.value)
    of_three = list(itertools.product("ab", repeat=3))
    model = compile_program(program, ("a", "b"), 3, inputs=of_three).model
    assert model.compute(of_three) == [[row[0]] * 3 for row in of_three]


def test_a_program_for_no_inputs() -> None:
    with pytest.raises(ProgramError, match="a program was said to be for no inputs at all"):
        compile_program(Aggregate(Select(indices, indices, EQ), tokens), ("a", "b"), 3, inputs=[])
