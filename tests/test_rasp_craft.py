"""Weights by hand, and a handcrafted model beside another."""

from __future__ import annotations

import copy
import doctest
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rasp_known import TABLE
from torch import nn

import voltmeter as vm
from voltmeter.circuit.circuit import Circuit
from voltmeter.errors import AddressError, VoltmeterError
from voltmeter.rasp.compare import compare, compare_circuits, rank_unexplained
from voltmeter.rasp.compile import compile_program
from voltmeter.rasp.craft import blank, place_attention, place_lookup, space
from voltmeter.rasp.model import CompiledTransformer

INPUTS = list(itertools.product("abc", repeat=3))
NONE = torch.zeros(len(INPUTS), 3, dtype=torch.bool)


def before(key: Any, query: Any) -> bool:
    return bool(key == query - 1)


def empty() -> CompiledTransformer:
    sequences = {"previous": "abc", "pair": (True, False), "share": None, "most": ("few", "many")}
    return blank("abc", 4, sequences, "pair", layers=2, heads=2, d_head=6, d_mlp=12)


def with_previous() -> CompiledTransformer:
    return place_attention(
        empty(), "a0.h1", keys="indices", queries="indices", selects=before, values="tokens", writes="previous"
    )


def repeats() -> CompiledTransformer:
    """Whether a token is the one before it."""
    table = {(a, b): a == b for a in "abc" for b in "abc"}
    return place_lookup(with_previous(), "m1", ("tokens", "previous"), table, writes="pair")


def broken() -> nn.Module:
    """NaN wherever "c", row 2 of the embedding, stands last."""

    class Broken(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = repeats()(rows)
            outputs[rows[:, -1] == 2, -1, 0] = float("nan")
            return outputs

    return Broken().eval()


def answer(row: tuple[str, ...]) -> list[bool]:
    return [a == b for a, b in itertools.pairwise(row)]


def test_a_pattern_and_a_lookup_compute() -> None:
    for row, found in zip(INPUTS, repeats().compute(INPUTS), strict=True):
        assert found[1:] == answer(row)


def test_the_first_position_has_nothing_before_it_and_gets_nothing() -> None:
    model = repeats()
    first = model(model.encode(INPUTS))[:, 1]
    assert first.abs().max() < 1e-15  # e^-50 of BOS's attention is left


def test_what_is_placed_is_where_it_was_put() -> None:
    model = repeats()
    wiring = vm.wire(model, model.encode(INPUTS[1:5])).split("input")
    used = {"input.pos -> a0.h1<q>", "input.pos -> a0.h1<k>", "input.tok -> a0.h1<v>", "a0.h1 -> m1", "m1 -> logits"}
    used |= {"input.tok -> a0.h1<q>", "input.tok -> a0.h1<k>", "input.tok -> m1"}  # "one", BOS, and the tokens
    keep = torch.tensor([float(str(edge) in used) for edge in wiring.edges])
    assert len(used) == int(keep.sum())
    tokens = model.encode(INPUTS)
    assert (vm.run(wiring, tokens, keep, vm.fill.zero()) - model(tokens)).abs().max() < 1e-15


def test_placing_leaves_the_model_as_it_was() -> None:
    model = empty()
    state = copy.deepcopy(model.state_dict())
    placed = place_lookup(model, "m0", "tokens", {"a": True}, writes="pair")
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert placed.compute([["a"]]) == [[True]]


def test_numbers_are_averaged_and_looked_up_by_the_nearest() -> None:
    model = blank("ab", 4, {"is_a": None, "share": None, "most": ("few", "many")}, "most", layers=2, d_head=6, d_mlp=8)
    model = place_lookup(model, "m0", "tokens", {"a": 1}, writes="is_a")
    model = place_attention(
        model, "a1.h0", keys="tokens", queries="tokens", selects=lambda k, q: True, values="is_a", writes="share"
    )
    model = place_lookup(model, "m1", "share", {0.0: "few", 1.0: "many"}, writes="most")
    assert model.compute(["aab", "abb"]) == [["many"] * 3, ["few"] * 3]
    share = model.interface.labels.index("share")
    assert space(model, "share").number == share


def test_a_sequence_may_be_looked_up_beside_itself() -> None:
    model = place_lookup(empty(), "m0", ("tokens", "tokens"), {("a", "a"): True, ("a", "b"): False}, writes="pair")
    assert model(model.encode([["a", "b"]]))[0, 1:].tolist() == [[1, 0], [0, 0]]


def test_two_lookups_share_an_mlp() -> None:
    model = place_lookup(empty(), "m0", "tokens", {"a": True}, writes="pair")
    model = place_lookup(model, "m0", "tokens", {"b": False}, writes="pair")
    assert model(model.encode([["a", "b", "c"]]))[0, 1:].tolist() == [[1, 0], [0, 1], [0, 0]]


def test_a_compiled_model_can_be_extended() -> None:
    """Its third layer's MLP is free: 2 and 3 are looked up again there, and come out twice as strong."""
    known = TABLE["reverse"]
    model = compile_program(known.sop, known.vocabulary, known.max_length).model
    doubled = place_lookup(model, "m3", "reverse_5", {2: 2, 3: 3}, writes="reverse_5")
    assert doubled(model.encode([[1, 2, 3]]))[0, 1:].round(decimals=9).tolist() == [[0, 0, 2], [0, 2, 0], [1, 0, 0]]


def test_the_values_of_a_sequence() -> None:
    model = empty()
    assert set(space(model, "tokens").at) == set("abc")
    assert list(space(model, "indices").at) == [0, 1, 2, 3]
    assert list(space(model, "pair").at) == [True, False]
    assert list(space(model, "most").at) == ["few", "many"]


def attend(**changes: Any) -> Callable[[], object]:
    usual = {"at": "a0.h0", "keys": "indices", "queries": "indices", "values": "tokens", "writes": "previous"}
    asked: dict[str, Any] = {**usual, "selects": before} | changes
    return lambda: place_attention(asked.pop("model", empty()), asked.pop("at"), **asked)


EDGES = ("input -> m0", "input -> logits", "m0 -> logits")
STEEPNESS, USUAL = "the model would not tell values apart\n  ", "\n  give a number above zero: 100 is usual"
SEQUENCES = "it has indices, most, one, pair, previous, share, tokens"
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no such head": (
        attend(at="a2.h0"),
        "handcrafted has no head 'a2.h0'\n  its heads are a0.h0 to a1.h1",
    ),
    "no head at all": (attend(at="m0"), "handcrafted has no head 'm0'\n  its heads are a0.h0 to a1.h1"),
    "no such sequence": (
        attend(keys="index"),
        f"handcrafted holds no sequence 'index'\n  nearest: indices, one, pair\n  {SEQUENCES}",
    ),
    "keys that are numbers": (
        attend(keys="share"),
        "'share' is a number, and attention compares categories\n  look it up into one first",
    ),
    "values that do not fit": (
        attend(writes="pair"),
        "'tokens' cannot be copied to 'pair'\n  'pair' has no dimension for 'a'\n  'pair' has no dimension for 'b'\n"
        "  'pair' has no dimension for 'c'\n  give both the same values, or make both numbers",
    ),
    "categories as a number": (
        attend(writes="share"),
        "'tokens' cannot be copied to 'share'\n  give both the same values, or make both numbers",
    ),
    "a head in use": (
        attend(model=with_previous(), at="a0.h1"),
        "a0.h1 is already in use\n  choose another head",
    ),
    "a head that is too narrow": (
        lambda: place_attention(
            blank("ab", 4, {"out": "ab"}, "out", layers=1, d_head=3, d_mlp=1),
            "a0.h0",
            keys="indices",
            queries="indices",
            selects=before,
            values="tokens",
            writes="out",
        ),
        "a0.h0 needs d_head 4, and the model has 3\n"
        "  place it in a model with wider heads, or select over fewer values",
    ),
    "no such MLP": (
        lambda: place_lookup(empty(), "m2", "tokens", {"a": True}, writes="pair"),
        "handcrafted has no MLP 'm2'\n  they are m0 to m1",
    ),
    "no free units": (
        lambda: place_lookup(
            place_lookup(empty(), "m0", "tokens", {"a": True}, writes="pair"),
            "m0",
            ("tokens", "indices"),
            {(token, at): 1 for token in "abc" for at in range(4)},
            writes="share",
        ),
        "m0 has 11 free hidden units, and 12 are needed\n"
        "  place it in another layer, or in a model with a larger d_mlp",
    ),
    "no such value to read": (
        lambda: place_lookup(empty(), "m0", "tokens", {"d": True}, writes="pair"),
        "'tokens' has no value 'd'\n  its values are 'a', 'b', 'c'",
    ),
    "no such value to write": (
        lambda: place_lookup(empty(), "m0", "tokens", {"a": "yes"}, writes="pair"),
        "'pair' has no value 'yes'\n  its values are True, False",
    ),
    "a key of another length": (
        lambda: place_lookup(empty(), "m0", ("tokens", "indices"), {"a": True}, writes="pair"),
        "the table's ('a',) has 1 values\n  give one for each of tokens, indices",
    ),
    "an empty table": (
        lambda: place_lookup(empty(), "m0", "tokens", {}, writes="pair"),
        "the table is empty\n  give it at least one value to look up",
    ),
    "a number beside another": (
        lambda: place_lookup(empty(), "m0", ("share", "tokens"), {(0, "a"): True}, writes="pair"),
        "'share' is a number, and is to be looked up together with 1 more sequences\n"
        "  look it up by itself first, into a categorical sequence",
    ),
    "an output that is not computed": (
        lambda: blank("ab", 4, {"sum": None}, "out", layers=1, d_head=1, d_mlp=1),
        "the output 'out' is not computed\n  sequences: sum\n  name each sequence once, the output among them",
    ),
    "a name in use": (
        lambda: blank("ab", 4, {"tokens": None}, "tokens", layers=1, d_head=1, d_mlp=1),
        "'tokens' is a sequence of every model\n  sequences: tokens\n  name each sequence once, the output among them",
    ),
    "a vocabulary that repeats": (
        lambda: blank((1, True), 4, {"sum": None}, "sum", layers=1, d_head=1, d_mlp=1),
        "the vocabulary cannot be used\n  vocabulary [1, True]\n  it repeats 1, as True\n"
        "  give each token once: equal values (1, 1.0, True) are one token, and so are equal spellings (1, '1')",
    ),
    "sizes of zero": (
        lambda: blank("ab", 4, {"sum": None}, "sum", layers=0, d_head=1, d_mlp=0),
        "the model would have no room\n  layers is 0\n  d_mlp is 0\n  give sizes of 1 or more",
    ),
    "values that labels cannot hold": (
        lambda: blank("ab", 4, {"a:b": None, "d": ("1", 2, 2), "n": ()}, "d", layers=1, d_head=1, d_mlp=1),
        "labels 'name:value' would not say which sequence and value they stand for\n  'a:b' has a colon in its name\n"
        "  'd' has 2 twice\n  'd' has the text '1', which is read as 1\n  'n' has no values: None makes it a number\n"
        "  give names without colons, each value once, and numbers and truth values as such, not as text",
    ),
    "a pattern that selects nothing": (
        attend(keys="tokens", queries="tokens", selects=lambda key, query: key == 1),
        "a0.h0 would only ever attend BOS: selects holds for no key of 'tokens' and query of 'tokens'\n"
        "  keys 'a', 'b', 'c'\n  queries 'a', 'b', 'c'\n"
        "  select some of these values (their types count: 1 is not '1')",
    ),
    "attention without a score": (attend(coldness=0), f"{STEEPNESS}coldness is 0{USUAL}"),
    "attention that is all or nothing": (attend(coldness=math.inf), f"{STEEPNESS}coldness is inf{USUAL}"),
    "steps of no steepness": (
        lambda: place_lookup(empty(), "m0", "share", {0.0: True, 1.0: False}, writes="pair", exactness=math.nan),
        f"{STEEPNESS}exactness is nan{USUAL}",
    ),
    "a number looked up by what is none": (
        lambda: place_lookup(empty(), "m0", "share", {(0.0, "a"): True, "b": True, 1: True}, writes="pair"),
        "'share' is a number, and the table has other keys\n  (0.0, 'a')\n  'b'\n  give one number for each key",
    ),
    "numbers too close to look up": (
        lambda: place_lookup(empty(), "m0", "share", {0.0: True, 1e-9: False}, writes="pair"),
        "the table's keys for 'share' are too close to tell apart\n  0.0 and 1e-09\n  keep them more than 1e-06 apart",
    ),
    "no number to write": (
        lambda: place_lookup(empty(), "m0", "tokens", {"a": "many"}, writes="share"),
        "'share' is a number, and 'many' is none\n  give a finite number",
    ),
    "circuits with an edge that the wiring has not": (
        lambda: compare_circuits(["m0 -> logits"], ["m0 -> m0"], edges=EDGES),
        "1 name is no edge of this wiring\n  m0 -> m0: m0 does not read m0\n"
        "  write 'writer -> reader', such as 'a0.h3 -> a1.h6<k>'; wiring.edges lists them all",
    ),
    "a circuit with what is no edge": (
        lambda: compare_circuits(["m0 -> logits"], ["m0"]),
        "'m0' is not the name of an edge\n  write 'writer -> reader', such as 'a0.h3 -> a1.h6<k>'",
    ),
    "circuits of other wirings": (
        lambda: compare_circuits(Circuit.from_edges(EDGES, []), Circuit.from_edges(EDGES[1:], [])),
        "the circuits are of wirings with other edges\n  input -> m0 (only in one)\n  compare models of one shape",
    ),
    "outputs of another shape": (
        lambda: compare(repeats(), nn.Embedding(5, 3).eval(), INPUTS),
        "the other model gives outputs [27, 4, 3], and handcrafted [27, 4, 2]\n  both give [input, position, output], "
        "BOS's position included, with the same output dimensions",
    ),
    "a model in training mode": (
        lambda: compare(repeats(), nn.Sequential(nn.Embedding(5, 2), nn.Dropout()), INPUTS),
        "a model that is compared is in training mode, in which chance and batches change its outputs\n"
        "  call .eval() on it",
    ),
    "outputs that are no numbers": (
        lambda: rank_unexplained(repeats(), broken(), INPUTS[-3:]),
        "the other model gives outputs that are not finite for 1 of 3 inputs\n  input ('c', 'c', 'c')\n"
        "  check its weights",
    ),
    "nothing counted": (
        lambda: compare(repeats(), repeats(), INPUTS, counted=NONE),
        "counted is [27, 3] and has 0 positions in it, for 27 inputs of 3\n"
        "  give one truth value per input and position (BOS left out), at least one of them true",
    ),
    "another number of positions counted": (
        lambda: compare(repeats(), repeats(), INPUTS, counted=~NONE[:, 1:]),
        "counted is [27, 2] and has 54 positions in it, for 27 inputs of 3\n"
        "  give one truth value per input and position (BOS left out), at least one of them true",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    ask, expected = REFUSED[what]
    with pytest.raises(VoltmeterError) as caught:
        ask()
    assert str(caught.value) == expected


def test_an_unknown_place_is_an_address_error() -> None:
    with pytest.raises(AddressError):
        attend(at="a9.h9")()


# Beside another model ----------------------------------------------------------------------------------------------


def forgetful() -> CompiledTransformer:
    """``repeats`` that does not know "c" after "c", and takes "b" after "a" for a repeat."""
    table = {(a, b): a == b for a in "abc" for b in "abc"} | {("c", "c"): False, ("b", "a"): True}
    return place_lookup(with_previous(), "m1", ("tokens", "previous"), table, writes="pair")


AFTER_FIRST = ~NONE
AFTER_FIRST[:, 0] = False


def test_a_model_agrees_with_itself() -> None:
    found = compare(repeats(), repeats(), INPUTS)
    assert (found.agreement, found.largest, found.mean_kl) == (1.0, 0.0, 0.0)
    assert rank_unexplained(repeats(), repeats(), INPUTS) == []


def test_where_two_models_disagree() -> None:
    found = compare(forgetful(), repeats(), INPUTS, counted=AFTER_FIRST)
    wrong = [[pair in (("c", "c"), ("a", "b")) for pair in itertools.pairwise(row)] for row in INPUTS]
    assert (~found.agrees[:, 1:]).tolist() == wrong
    assert found.agreement == 1 - sum(map(sum, wrong)) / 54
    assert found.disagreement.tolist() == [sum(row) / 2 for row in wrong]
    assert found.largest == 1.0
    # True against False: KL of logits (1, 0) and (0, 1) is tanh(1/2).
    assert found.kl is not None
    assert found.kl[INPUTS.index(("c", "c", "a")), 1] == pytest.approx(float(torch.tensor(0.5).tanh()))


def test_what_is_not_counted_does_not_count() -> None:
    known = AFTER_FIRST & compare(forgetful(), repeats(), INPUTS).agrees
    assert compare(forgetful(), repeats(), INPUTS, counted=known).agreement == 1.0
    assert rank_unexplained(forgetful(), repeats(), INPUTS, counted=known) == []


def test_the_unexplained_worst_first() -> None:
    ranked = rank_unexplained(forgetful(), repeats(), INPUTS, counted=AFTER_FIRST)
    assert ranked[0].given == ("c", "c", "c")
    assert ranked[0].positions == (1, 2)
    assert ranked[0].handcrafted[1:] == (False, False)
    assert ranked[0].other[1:] == (True, True)
    wrong = [row for row in INPUTS if {("c", "c"), ("a", "b")} & set(itertools.pairwise(row))]
    assert {each.given for each in ranked} == set(wrong)
    counts = [len(each.positions) for each in ranked]
    assert counts == sorted(counts, reverse=True)


def test_among_as_many_positions_the_largest_kl_is_worst() -> None:
    """The other model is surer of "c" after "c" than of "b" after "a"."""
    other = repeats()
    unit = other.layers[1].mlp.second.weight[:, 8]  # type: ignore[union-attr, index]  # the ninth entry: ("c", "c")
    unit.mul_(3)
    ranked = rank_unexplained(forgetful(), other, [("a", "b", "c"), ("c", "c", "a")], counted=AFTER_FIRST[:2])
    assert [each.given for each in ranked] == [("c", "c", "a"), ("a", "b", "c")]
    assert ranked[0].amount > ranked[1].amount


def test_scale_makes_logits_of_ones() -> None:
    sure = copy.deepcopy(repeats())
    sure.unembedding.weight.mul_(5)
    assert (compare(repeats(), sure, INPUTS).mean_kl or 0) > 0.05
    assert compare(repeats(), sure, INPUTS, scale=5).mean_kl == pytest.approx(0, abs=1e-15)


def test_numbers_are_compared_within_a_tolerance() -> None:
    known = TABLE["frac_prevs_x"]
    model = compile_program(known.sop, known.vocabulary, known.max_length).model
    other = copy.deepcopy(model)
    other.unembedding.weight.mul_(1.01)
    found = compare(model, other, ["xw", "ww"])
    assert found.kl is None
    assert found.mean_kl is None
    assert found.agrees.tolist() == [[False, False], [True, True]]
    assert found.largest == pytest.approx(0.01)
    assert compare(model, other, ["xw", "ww"], tolerance=0.02).agreement == 1.0
    (worst,) = rank_unexplained(model, other, ["xw", "ww"])
    assert (worst.given, worst.positions, worst.amount) == (("x", "w"), (0, 1), pytest.approx(0.01))


# Circuits ----------------------------------------------------------------------------------------------------------


def test_the_edges_of_two_circuits() -> None:
    first, second = ["input -> m0", "m0 -> logits"], ["input -> logits", "m0 -> logits"]
    found = compare_circuits(first, second)
    assert (found.both, found.only_first, found.only_second) == (
        ("m0 -> logits",),
        ("input -> m0",),
        ("input -> logits",),
    )
    assert found.jaccard == 1 / 3
    assert compare_circuits(Circuit.from_edges(EDGES, first), second, edges=EDGES) == found
    assert compare_circuits(first, Circuit.from_edges(EDGES[::-1], second)) == found  # in whatever order
    assert compare_circuits([], []).jaccard == 1.0


def test_the_example_of_compare_circuits() -> None:
    (example,) = doctest.DocTestFinder().find(compare_circuits, globs={"compare_circuits": compare_circuits})
    assert doctest.DocTestRunner().run(example) == (0, 1)
