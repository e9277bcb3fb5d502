"""The programs that voltmeter knows: what a person, the oracle and the compiled model say of each is the same."""

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest
import torch
from conftest import asset

import voltmeter as vm
from voltmeter.errors import ProgramError
from voltmeter.rasp.agree import agreement
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.language import Map, evaluate, tokens
from voltmeter.rasp.model import Value
from voltmeter.rasp.programs import Program, compiled, known, program, programs
from voltmeter.rasp.wired import wiring_of

ALL = programs()
IN_THE_ISSUE = set(
    re.findall(
        r"\w+",
        """
        reverse frac_prevs_x hist length sort sort_unique sort_freq pair_balance shuffle_dyck shuffle_dyck2 count
        previous_token induction first_occurrence most_frequent_token majority palindrome token_at_index shift pattern
        ngram_match modular_count argmax_position dedupe_mask bracket_depth caesar_shift alternation first_last_equal
        cumulative_any
        """,
    )
)
EXPORTS = ("reverse", "frac_prevs_x", "hist", "length", "sort_unique", "sort_freq", "shuffle_dyck")


def same(a: Value | None, b: Value | None) -> bool:
    """Equal; numbers up to the rounding of a mean."""
    if a is None or b is None or isinstance(a, str) or isinstance(b, str):
        return a == b
    return math.isclose(a, b, abs_tol=1e-12)


@functools.cache
def made(given: Program) -> Compiled:
    """Over every input, up to 2,048 of them."""
    return compiled(given, limit=2048)


def on_each(names: str) -> pytest.MarkDecorator:
    """The test for every program; ``names`` is what it calls the argument."""
    return pytest.mark.parametrize(names, ALL, ids=lambda p: p.name)


# --- every one of them ----------------------------------------------------------------------------


def test_there_are_enough_of_them_and_those_that_were_asked_for() -> None:
    names = [p.name for p in ALL]
    assert len(names) >= 34
    assert len(set(names)) == len(names)
    assert len(IN_THE_ISSUE) == 29
    assert set(names) >= IN_THE_ISSUE
    tags = {tag for p in ALL for tag in p.tags}
    assert tags >= {"redundant", "veto", "cancellation", "backup", "ignored"}


@on_each("given")
def test_it_says_what_it_computes_and_has_examples(given: Program) -> None:
    assert given.docs
    assert len(given.examples) >= 2
    for row, expected in given.examples:
        assert len(row) == len(expected) <= given.max_length
        assert set(row) <= set(given.vocabulary)


@on_each("given")
def test_the_oracle_says_what_a_person_worked_out(given: Program) -> None:
    for row, expected in given.examples:
        said = evaluate(given.sop, row, given.causal)
        assert all(map(same, said, expected)), f"{row}: {said}, by hand {expected}"


@on_each("given")
def test_the_compiled_model_says_what_the_oracle_says(given: Program) -> None:
    model = made(given).model
    found = agreement(given, model=model)
    assert found.agrees, found.shown
    assert found.positions > 0
    for row, _ in given.examples:  # of all lengths
        assert agreement(given, [row], model=model).agrees


@on_each("given")
def test_an_output_that_never_changes_is_known_to(given: Program) -> None:
    assert (len(set(made(given).outputs)) == 1) == (given.name in ("length", "sort_unique"))


# --- inputs ---------------------------------------------------------------------------------------


def test_inputs_are_all_of_them_in_order_or_a_sample_in_that_order() -> None:
    hist, orders = program("hist"), program("sort_unique")
    every = list(itertools.product((1, 2, 3), repeat=5))
    assert hist.inputs() == tuple(every)
    assert orders.inputs() == tuple(itertools.permutations((1, 2, 3, 4, 5)))
    for given, everything in ((hist, every), (orders, list(orders.inputs()))):
        some = given.inputs(limit=50)
        assert len(set(some)) == 50
        assert [everything.index(row) for row in some] == sorted(everything.index(row) for row in some)
        assert some == given.inputs(limit=50) != given.inputs(limit=50, seed=1)
        assert given.count_inputs() == len(everything)


def test_a_compiled_program_has_inputs_outputs_and_provenance() -> None:
    made = compiled(program("frac_prevs_x"), limit=20)
    assert len(made.inputs) == len(made.outputs) == 20
    assert "input.tok -> m0" in (made.provenance or ())
    assert all(map(same, made.outputs[3], evaluate(program("frac_prevs_x").sop, made.inputs[3])))


@pytest.mark.parametrize("name", EXPORTS)
def test_those_of_the_original_compiler_are_the_same_programs(name: str) -> None:
    exported = json.loads((asset("tracr") / name / "program.json").read_text())
    given = program(name)
    assert (list(given.vocabulary), given.max_length) == (exported["vocab"], exported["max_seq_len"])
    for row, expected in zip(exported["inputs"], exported["outputs"], strict=True):
        said = evaluate(given.sop, row, given.causal)
        # 1e-6: the exports were computed in float32
        assert all(a == b or (isinstance(b, float) and abs(a - b) < 1e-6) for a, b in zip(said, expected, strict=True))


def test_more_inputs_than_a_machine_counts_are_sampled_too() -> None:
    given = dataclasses.replace(program("caesar_shift"), vocabulary=tuple(range(26)), max_length=40)
    assert given.count_inputs() > 2**63
    some = given.inputs(limit=9)
    assert len(set(some)) == 9
    assert list(some) == sorted(some)
    assert some == given.inputs(limit=9) != given.inputs(limit=9, seed=1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"distinct": True}, "it is for 5 different ones, and its vocabulary has 3 tokens"),
        ({"vocabulary": ()}, "it is for 5 positions, and its vocabulary has 0 tokens"),
        ({"max_length": 0}, "it is for 0 positions, and its vocabulary has 3 tokens"),
    ],
)
def test_a_program_without_inputs_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ProgramError) as refused:
        dataclasses.replace(program("hist"), **change)
    assert str(refused.value) == (
        f"hist has no inputs: {why}\n  give at least one position, and as many tokens as inputs need"
    )


# --- what single cuts misjudge --------------------------------------------------------------------


class Cuts:
    """A compiled program whose edges can be cut under a zero fill. Only those that its dataflow uses: few others."""

    def __init__(self, name: str) -> None:
        given: Compiled = compiled(program(name), limit=24)
        self.tokens = given.model.encode(given.inputs)
        self.wiring = wiring_of(given).wiring
        self.names = [str(edge) for edge in self.wiring.edges]
        self.plain = given.model(self.tokens)
        self.used = given.provenance or ()
        each = self.changes([{edge} for edge in self.used])
        self.necessary = tuple(edge for edge, changes in zip(self.used, each, strict=True) if changes)

    def changes(self, cuts: Sequence[Collection[str]]) -> list[bool]:
        """Of each set of edges, whether the output changes when all in it are cut."""
        keep = torch.tensor([[float(name not in cut) for name in self.names] for cut in cuts], dtype=torch.float64)
        outputs = vm.run(self.wiring, self.tokens, keep, vm.fill.zero(), axes="circuit edge")
        moved = (outputs - self.plain)[:, :, 1:].abs().amax((1, 2, 3))
        return (moved > 1e-6).tolist()  # rounding is 1e-12, an effect about 1

    def all_but(self, kept: Iterable[str]) -> set[str]:
        return set(self.names) - set(kept)


@pytest.mark.parametrize("name", [p.name for p in ALL if "redundant" in p.tags])
def test_of_redundant_paths_either_may_be_cut_and_not_both(name: str) -> None:
    cuts = Cuts(name)
    spare = [edge for edge in cuts.used if edge not in cuts.necessary]
    pairs = list(itertools.combinations(spare, 2))[::7]  # one in seven of all pairs will do
    assert any(cuts.changes(pairs))
    assert cuts.changes([cuts.all_but(cuts.necessary)]) == [True]  # what is necessary does not suffice


@pytest.mark.parametrize(("name", "at_least"), [("veto", 8), ("cancellation", 2)])
def test_necessary_edges_that_a_smaller_circuit_does_without(name: str, at_least: int) -> None:
    cuts = Cuts(name)
    assert cuts.changes([cuts.all_but(cuts.necessary)]) == [False]
    without_one = cuts.changes([cuts.all_but(set(cuts.necessary) - {edge}) for edge in cuts.necessary])
    assert without_one.count(False) >= at_least


def test_a_backup_steps_in_when_the_cut_is_complete() -> None:
    cuts = Cuts("backup")
    pairs = [pair for pair in itertools.product(cuts.necessary, cuts.used) if len(set(pair)) == 2]
    assert False in cuts.changes(pairs[::3])  # one in three of all pairs will do


# --- sabotage -------------------------------------------------------------------------------------


def test_agreement_notices_a_damaged_model() -> None:
    given = program("hist")
    model = compiled(given).model
    model.layers[0].mlp.second.weight[:, 0] += 0.01
    found = agreement(given, model=model)
    assert not found.agrees
    assert found.disagreeing > 0
    assert found.worst > 1e-6
    shown = found.shown[0]
    assert shown.oracle == tuple(evaluate(given.sop, shown.given))
    assert 1 <= len(found.shown) <= 5


def test_agreement_counts_what_is_undefined_and_samples() -> None:
    found = agreement(program("previous_token"), limit=100)
    assert (found.inputs, found.of, found.undefined, found.positions) == (100, 243, 100, 400)


def test_agreement_notices_a_value_that_the_model_cannot_say() -> None:
    @known("ab", 2, {"ab": "ba"})
    def other_letter() -> Map:
        """The other letter."""
        return Map(lambda letter: "ab"[letter == "a"], tokens)

    @known("ab", 2, {"ab": "xy"})
    def far_letter() -> Map:
        """A letter that the first program never says."""
        return Map(lambda letter: "xy"[letter == "b"], tokens)

    assert agreement(other_letter).agrees
    found = agreement(far_letter, model=compiled(other_letter).model)
    assert found.disagreeing == found.inputs
    assert found.worst == math.inf


def test_an_unknown_program_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ProgramError) as refused:
        program("revers")
    assert str(refused.value) == (
        "there is no program 'revers'\n  nearest: reverse, three_paths, frac_prevs_x\n"
        "  list them with `voltmeter programs`"
    )
