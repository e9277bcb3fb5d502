"""What ``truth`` says of programs compiled by the original compiler, and of models made to defeat single cuts."""

from __future__ import annotations

import dataclasses
import importlib
from functools import cache

import pytest
import torch
from known_models import (
    COPY,
    cancellation,
    export,
    planted,
    random_model,
    three_cancel,
    two_paths,
    veto,
)

from voltmeter.errors import AddressError, TruthError
from voltmeter.rasp.certificate import Certificate
from voltmeter.rasp.compile import compile_program
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.effects import run_cut, run_kept
from voltmeter.rasp.explain import KINDS, explain
from voltmeter.rasp.language import Aggregate, Select, indices, tokens
from voltmeter.rasp.model import layers_of
from voltmeter.rasp.search import Found
from voltmeter.rasp.setting import Question, setting_of
from voltmeter.rasp.truth import truth

truth_module = importlib.import_module("voltmeter.rasp.truth")  # the package's name for it is the function's too

REVERSE = {
    ("resample", "paired"): "input.tok -> a3.h0<v>, a3.h0 -> logits",
    ("resample", "random"): "input.pos -> m1, m1 -> m2, m2 -> a3.h0<q>, input.pos -> a3.h0<k>, "
    "input.tok -> a3.h0<v>, a3.h0 -> logits",
}
FRAC_PREVS = "input.tok -> m0, m0 -> a1.h0<v>, a1.h0 -> logits"


def said(certificate: Certificate) -> str:
    return "\n".join(certificate.says)


@cache
def of_shuffle_dyck() -> Certificate:
    """Under zero: the longest search here, told once."""
    return truth(export("shuffle_dyck"), "zero")


# The figures found by brute force for the exports --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fill", "positions", "count"),
    [
        ("reverse", "resample", "paired", 2),
        ("reverse", "resample", "random", 6),
        ("reverse", "zero", "paired", 9),
        ("frac_prevs_x", "resample", "paired", 3),
        ("frac_prevs_x", "resample", "random", 5),
        ("frac_prevs_x", "zero", "paired", 5),
    ],
)
def test_necessary_edges_of_exports(name: str, fill: str, positions: str, count: int) -> None:
    for seed in (0, 1):  # the pairing does not matter
        certificate = truth(export(name), fill, positions, seed=seed)
        assert len(certificate.necessary) == count
        assert certificate.certified
        assert vars(certificate.grades) == {
            "sufficient": True,
            "one_minimal": True,
            "no_restoring_pair": True,
            "unique": "yes",
            "searched": certificate.grades.searched,
        }
        assert certificate.minimal == (certificate.necessary,)
        if (fill, positions) in REVERSE and name == "reverse":
            assert ", ".join(certificate.necessary) == REVERSE[fill, positions]
    if name == "frac_prevs_x" and positions == "paired" and fill == "resample":
        assert ", ".join(certificate.necessary) == FRAC_PREVS


def test_reverse_under_resampling_names_what_is_constant() -> None:
    certificate = truth(export("reverse"), "resample")
    why = {each.edge: (each.kind, each.why) for each in certificate.explained}
    assert why["m2 -> a3.h0<q>"] == (
        "constant writer",
        "m2 writes the same for every input, which is what the cut edge carries",
    )
    assert why["input.pos -> a3.h0<k>"][1].startswith("input.pos writes the same for every input")
    assert why["input.tok -> a0.h0<k>"] == (
        "constant reader",
        "input.tok varies, but a0.h0 writes the same for every input all the same",
    )
    assert set(why) == set(certificate.provenance) - set(certificate.necessary)
    assert set(certificate.necessary) <= set(certificate.provenance)


def test_all_circuits_of_reverse_are_covered_in_a_few_hundred_states() -> None:
    """Under two seconds in all on an idle machine: bench/truth.py prints the seconds."""
    for fill, most in (("resample", 20), ("zero", 449), ("mean", 488)):
        certificate = truth(export("reverse"), fill)
        assert certificate.search == "whole"
        assert 0 < certificate.grades.searched <= most


def test_two_edges_of_reverse_leak_and_the_gap_shows_it() -> None:
    at_1e6, at_3e7 = (truth(export("reverse"), "zero", tolerance=tolerance) for tolerance in (1e-6, 3e-7))
    assert (len(at_1e6.necessary), len(at_3e7.necessary)) == (9, 11)
    leaks = ("input.tok -> a3.h0<q>", "input.tok -> a3.h0<k>")
    assert set(at_3e7.necessary) - set(at_1e6.necessary) == set(leaks) == set(at_3e7.leaks)
    assert at_1e6.leaks == ()
    assert at_1e6.gap == pytest.approx(0.8 / 5.389e-7, rel=1e-3)
    assert at_1e6.strongest_other is not None
    assert at_1e6.strongest_other[1] == pytest.approx(5.389e-7, rel=1e-3)
    assert at_3e7.gap == pytest.approx(5.389e-7 / 2.2e-16, rel=0.02)  # over rounding: no other edge has any effect
    assert "2 of the necessary edges change the output by at most 5.39e-07, 1.5e+06 times less" in said(at_3e7)
    assert "with a tolerance between, 9 would be necessary" in said(at_3e7)
    assert "The gap is 1.48e+06: the smallest necessary effect is 0.8 (input.tok -> m1)" in said(at_1e6)


def test_length_never_changes_under_resampling() -> None:
    certificate = truth(export("length"), "resample")
    assert certificate.necessary == ()
    assert certificate.minimal == ((),)
    assert certificate.gap is None
    assert certificate.certified
    assert "With every edge cut the output is what it was (fill resample)" in said(certificate)
    assert "They" not in said(certificate)  # there is nobody it could be
    assert "None of the 13 edges is necessary" in said(certificate)
    assert "The one minimal circuit keeps no edge at all" in said(certificate)
    assert len(truth(export("length"), "zero").necessary) == 2


def test_sort_unique_is_only_ever_given_permutations() -> None:
    """Single cuts find four "necessary" edges; with every edge cut the output is what it was."""
    certificate = truth(export("sort_unique"), "resample")
    assert "All 120 inputs have the same output." in said(certificate)
    assert "With every edge cut the output is what it was (fill resample)" in said(certificate)
    assert "The one minimal circuit is another: no edge at all" in said(certificate)
    assert certificate.minimal == ((),)
    assert certificate.grades.unique == "no"


def test_shuffle_dyck_under_zero_is_sufficient_with_fewer_than_its_necessary_edges() -> None:
    certificate = of_shuffle_dyck()
    necessary = set(certificate.necessary)
    assert len(necessary) == 24
    assert vars(certificate.grades) == {
        "sufficient": True,
        "one_minimal": False,
        "no_restoring_pair": False,
        "unique": "no",
        "searched": certificate.grades.searched,
    }
    assert certificate.droppable == ("input.pos -> a4.h1<q>", "input.pos -> a4.h1<k>")
    assert "The necessary edges are sufficient, and so are 23 of them" in said(certificate)
    assert sorted(map(len, certificate.minimal)) == [19, 22]
    assert [set(circuit) < necessary for circuit in certificate.minimal].count(True) == 1


def test_shuffle_dyck_has_19_where_the_heads_of_a_layer_share_their_readers() -> None:
    """Published counts tie the heads' readers: an edge then goes to a layer's queries, keys or values."""
    setting = setting_of(export("shuffle_dyck"), Question("zero"))
    groups: dict[tuple[str, str], list[int]] = {}
    for edge, name in enumerate(setting.machine.edges):
        writer, _, reader = name.partition(" -> ")
        layer, dot, head = reader.partition(".")
        groups.setdefault((writer, layer + head[2:] if dot else reader), []).append(edge)
    cut = {group: setting.effect(run_cut(setting, edges).answer) for group, edges in groups.items()}
    necessary = {group for group, effect in cut.items() if effect > 1e-6}
    assert len(necessary) == 19

    def kept(chosen: set[tuple[str, str]]) -> float:
        return float(setting.effect(run_kept(setting, [e for group in chosen for e in groups[group]]).answer))

    assert kept(necessary) <= 1e-6
    assert [group for group in sorted(necessary) if kept(necessary - {group}) <= 1e-6] != []


def test_fewer_than_two_necessary_edges_are_counted_in_words() -> None:
    """Nothing is ever selected: attention averages all where a query or key is cut, unless the values are cut too."""
    nothing = Aggregate(Select(indices, indices, lambda key, query: key == query + 9), tokens)
    given = (("a", "b"), ("b", "a"))
    model = compile_program(nothing, ("a", "b"), 2).model
    two = truth(Compiled("nothing", model, given, ((None, None),) * 2), "zero")
    assert len(two.necessary) == 2
    assert "The necessary edges are sufficient, and so is one of them: without" in said(two)
    first = two.necessary[0]
    one = dataclasses.replace(two, effects={**dict.fromkeys(two.effects, 0.0), first: 1.0}, droppable=(first,))
    assert "The necessary edge is sufficient, and so is no edge at all: without" in said(one)


def test_decoded_output_forgives_what_raw_output_does_not() -> None:
    raw, decoded = of_shuffle_dyck(), truth(export("shuffle_dyck"), "zero", output="decoded")
    assert set(raw.necessary) - set(decoded.necessary) == {"input.tok -> m5"}
    assert max(decoded.effects.values()) <= 1  # a share of the answers
    assert (decoded.answers, decoded.gap, decoded.leaks) == (64 * 6, None, ())  # an edge changes an answer or none
    assert "The smallest necessary effect is 30 of 384 answers (input.tok -> m3); every other" in said(decoded)
    assert "alone changes some of the 384 decoded answers." in said(decoded)
    assert min(decoded.effects[edge] for edge in decoded.necessary) >= 1 / (64 * 6)


def test_a_narrow_gap_is_no_certificate(tmp_path: object) -> None:
    """Under the mean fill some effects of shuffle_dyck lie 58 times apart."""
    certificate = truth(export("shuffle_dyck"), "mean")
    assert not certificate.certified
    assert certificate.gap is not None
    assert certificate.gap == pytest.approx(58, abs=0.5)
    assert "No certificate: the gap is 58, under 100; the smallest necessary effect is 6.7e-06 (m0 -> m1)" in said(
        certificate
    )
    with pytest.raises(TruthError, match="there is no certificate of shuffle_dyck: its gap is 58") as caught:
        certificate.save(f"{tmp_path}/certificate.json")
    assert "m0 -> m1: 6.7e-06" in str(caught.value)


def test_the_document_is_what_the_command_prints() -> None:
    document = truth(export("reverse"), "zero").document()
    assert document["n_edges"] == 94
    assert len(document["necessary"]) == 9
    assert document["minimal"] == [document["necessary"]]
    assert set(document["grades"]) == {"sufficient", "one_minimal", "no_restoring_pair", "unique", "searched"}
    assert all(set(each) == {"edge", "why"} for each in document["explained"])
    assert document["gap"] > 1e6
    assert document["seconds"] > 0


# Where single cuts mislead -------------------------------------------------------------------------------------


def test_a_veto() -> None:
    """x + relu(u - 10 a): the veto's edges are necessary, and yet the output needs none of it."""
    certificate = truth(veto(), "zero")
    assert certificate.necessary == ("input.tok -> m0", "m0 -> m1", "m0 -> logits")
    assert certificate.grades.sufficient
    assert certificate.droppable == ("m0 -> m1",)
    assert not certificate.grades.one_minimal
    assert certificate.grades.unique == "no"
    assert certificate.minimal == (("input.tok -> m0", "m0 -> logits"),)
    assert ("m0 -> m1", "m1 -> logits") in certificate.restoring
    assert "with m0 -> m1 cut, cutting" in said(certificate)


def test_a_cancellation() -> None:
    """x + p - p: 1-minimal, and still not what the output needs; a restoring pair gives it away."""
    certificate = truth(cancellation(), "zero")
    assert len(certificate.necessary) == 6
    assert certificate.grades.sufficient
    assert certificate.grades.one_minimal
    assert certificate.grades.no_restoring_pair is False
    assert ("m1 -> logits", "m2 -> logits") in certificate.restoring
    assert certificate.grades.unique == "no"
    assert certificate.minimal == (("input.tok -> m0", "m0 -> logits"),)
    assert "The one minimal circuit is another: 2 edges, input.tok -> m0, m0 -> logits" in said(certificate)


def test_a_cancellation_of_three_passes_every_grade_but_the_last() -> None:
    certificate = truth(three_cancel(), "zero")
    assert len(certificate.necessary) == 8
    assert certificate.grades.sufficient
    assert certificate.grades.one_minimal
    assert certificate.grades.no_restoring_pair is True
    assert certificate.grades.unique == "no"
    assert certificate.minimal == (("input.tok -> m0", "m0 -> logits"),)


def test_two_paths_of_which_either_suffices() -> None:
    certificate = truth(two_paths(), "zero")
    assert certificate.necessary == ("m2 -> logits",)
    assert not certificate.grades.sufficient
    assert not certificate.grades.one_minimal
    assert certificate.grades.unique == "no"
    assert certificate.minimal == (
        ("input.tok -> m0", "m0 -> m2", "m2 -> logits"),
        ("input.tok -> m1", "m1 -> m2", "m2 -> logits"),
    )
    assert "The necessary edge is not sufficient: keeping only it changes the output by 1." in said(certificate)
    assert "There are 2 minimal circuits, of 3, 3 edges" in said(certificate)
    why = {each.edge: each for each in certificate.explained}
    assert why["m0 -> m2"].kind == "redundant"
    assert why["m0 -> m2"].why.endswith("does as well: cutting both changes the output by 1")


def test_the_limit_makes_uniqueness_presumed() -> None:
    certificate = truth(export("sort_freq"), "zero", limit=200)
    assert certificate.grades.unique == "presumed"
    assert 0 < certificate.grades.searched <= 200
    assert not certificate.minimal_is_complete
    assert certificate.minimal == (certificate.necessary,)
    assert "are the only minimal circuit, it is presumed: " in said(certificate)
    assert "states searched, which is not all." in said(certificate)
    assert certificate.grades.no_restoring_pair is None  # 22 x 22 pairs
    assert "Restoring pairs were not searched for" in said(certificate)
    known = truth(export("shuffle_dyck"), "zero", limit=500)
    assert (known.grades.unique, known.minimal_is_complete) == ("no", False)
    assert "The necessary edges are not the only minimal circuit, and not all are known" in said(known)
    (circuit,) = known.minimal
    assert len(circuit) < 24


def test_an_effect_at_the_tolerance_is_no_proof() -> None:
    """What lies within a tenth of τ may be on its other side but for the search's merging."""
    compiled = planted([[({"x": 1}, {"out": 1}), ({"x": 1, "1": -2}, {"out": 1})]])
    setting = setting_of(compiled, Question("zero"))
    effect = setting.effect(run_kept(setting, ()).answer)
    assert effect == 4
    for tolerance in (3.999, 3.8):
        near = truth(compiled, "zero", tolerance=tolerance)
        assert (near.grades.unique, near.search) == ("presumed", "unsure")
        assert "but rounding could have put one of them on the other side of the tolerance." in said(near)
        assert "not all" not in said(near)
    assert truth(compiled, "zero", tolerance=2.0).grades.unique == "yes"


def test_a_tolerance_of_the_size_of_what_is_merged_is_no_proof() -> None:
    """An effect of nothing is then as near as one that is over τ."""
    assert truth(veto(), "zero", tolerance=1e-9).grades.unique == "no"  # of exact runs
    copied = planted([[COPY]])
    assert truth(copied, "zero", tolerance=1e-9).grades.unique == "presumed"
    assert truth(copied, "zero", tolerance=1e-7).grades.unique == "yes"


def test_a_search_that_exact_runs_contradict_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The necessary edges suffice when run, so some minimal circuit is among them, whatever the search says."""
    other = Found((frozenset({0, 1, 2, 3, 4, 5}),), "whole", 7, (0,))
    monkeypatch.setattr(truth_module, "minimal_circuits", lambda *_: other)
    certificate = truth(export("hist"), "resample")
    assert (certificate.grades.unique, certificate.search) == ("presumed", "unsure")
    assert certificate.minimal == (certificate.necessary,)
    assert truth(veto(), "zero").grades.unique == "no"  # an edge can be dropped, which no search need say


# Explanations ------------------------------------------------------------------------------------------------


def test_every_kind_of_explanation() -> None:
    found: dict[str, str] = {}
    for compiled, fill in (
        (export("reverse"), "resample"),
        (export("reverse"), "zero"),
        (two_paths(), "zero"),
        (absorbing(), "resample"),
    ):
        explained = truth(compiled, fill).explained
        assert "was not tried" not in "".join(each.why for each in explained)
        found |= {each.kind: each.why for each in explained}
    assert set(found) == set(KINDS)
    assert found["below tolerance"] == "it changes the output by 5.39e-07, within the tolerance 1e-06"
    assert found["absorbed"] == "m0 varies, but m1 writes the same with the edge and without"
    assert "and nothing after passes that on" in found["lost"]


def test_redundancy_that_was_not_tried_is_said_to_be_untried() -> None:
    """Over the limit of pairs nothing is called redundant, and what is said instead says so."""
    whys = {each.edge: each.why for each in truth(two_paths(), "zero", limit=3).explained}
    assert "m0 -> m2" in whys
    for edge in ("m0 -> m2", "m1 -> m2"):
        assert whys[edge].endswith("; whether another edge does as well was not tried")


def test_a_writer_that_does_not_vary_is_not_said_to() -> None:
    """input.pos writes the same for every input; under zero the cut edge carries something else all the same."""
    compiled = planted([[COPY]], ["p"])
    with torch.no_grad():
        compiled.model.position_embedding.weight[:, 2] = 1.0
    (told,) = truth(dataclasses.replace(compiled, provenance=("input.pos -> m0",)), "zero").explained
    assert told.kind == "ignored"
    assert told.why == "input.pos writes something else than the cut edge carries, but m0 does not read the difference"


def test_a_writer_that_agrees_with_its_corrupted_run_only() -> None:
    """It varies, only not between the two of any pair: that is not "the same at every input"."""
    setting = setting_of(planted([[COPY]]), Question("resample"))
    paired = dataclasses.replace(setting, fills=setting.outs)  # as if each was paired with one that is alike
    (told,) = explain(paired, run_cut(paired, ()), [0], [0.0] * len(paired.machine.edges), [], 1)
    assert told.kind == "constant writer"
    assert told.why == "input.tok writes for every input what it writes for the one it is paired with"


def absorbing() -> Compiled:
    """m1 adds m0's x to its own x and passes on no more than 1 (plus x over 2): cut or not, the ramp is at its end."""
    unit = [({"x": 4, "p": 1}, {"out": 1}), ({"x": 4, "p": 1, "1": -1}, {"out": -1}), ({"x": 1, "1": -2}, {"out": 1})]
    return planted([[({"x": 1}, {"p": 1})], unit], ["p"])


def test_provenance_from_the_compiler_is_used_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = export("frac_prevs_x")
    told = truth(dataclasses.replace(compiled, provenance=("a1.h0 -> logits", "input.pos -> a1.h0<q>")), "resample")
    assert told.provenance_from == "program"
    assert told.provenance == ("input.pos -> a1.h0<q>", "a1.h0 -> logits")  # in the wiring's order
    assert [each.edge for each in told.explained] == ["input.pos -> a1.h0<q>"]
    monkeypatch.setattr(truth_module, "setting_of", lambda *_: pytest.fail("work was done before it was refused"))
    with pytest.raises(AddressError, match="names 1 edges that its model has not") as caught:
        truth(dataclasses.replace(compiled, provenance=("a1.h1 -> logits",)), "resample")
    assert "a1.h0 -> logits" in str(caught.value)


def test_provenance_from_weights_holds_the_truth() -> None:
    for certificate in (truth(export("hist"), "zero"), truth(export("sort_freq"), "zero"), of_shuffle_dyck()):
        assert certificate.provenance_from == "weights"
        assert set(certificate.necessary) <= set(certificate.provenance)


# What cannot be asked ------------------------------------------------------------------------------------------


def test_a_tolerance_above_all_effects_is_no_certificate(tmp_path: object) -> None:
    """Nothing is necessary then, whatever the model: by one cut at a time, or where two paths hide each other's."""
    for compiled, above in ((veto(), 1e6), (two_paths(), 1.5)):
        certificate = truth(compiled, "zero", tolerance=above)
        assert certificate.necessary == ()
        assert not certificate.certified
        assert f"No certificate: the tolerance {above:g} hides a change of" in said(certificate)
        assert "have the same output" not in said(certificate)
        with pytest.raises(TruthError, match=r"no edge is necessary, and the tolerance .* hides a change of .* up to"):
            certificate.save(f"{tmp_path}/certificate.json")


def test_restoring_pairs_are_counted_once() -> None:
    certificate = truth(cancellation(), "zero")
    assert len({frozenset(pair) for pair in certificate.restoring}) == len(certificate.restoring) > 0
    pairs = [set(pair) for pair in certificate.restoring if set(pair) <= set(certificate.necessary)]
    assert pairs, "some pair is of two necessary edges, which could be found from either"


def test_cuts_that_are_not_finite_are_no_small_effect() -> None:
    """A NaN is not over τ, and would make its edge unnecessary without a word."""
    big = planted([[({"x": 1e200}, {"out": 1})], [({"x": 1e200}, {"out": -1})]])
    with torch.no_grad():
        for layer in layers_of(big.model):
            layer.mlp.second.weight.mul_(1e200)
        big.model.layers[1].mlp.first.weight.zero_()
    with pytest.raises(TruthError, match="computes numbers that are not finite"):
        truth(big, "zero")
    fragile = planted([[({"x": 1, "p": -1}, {"out": 1})]], ["p"])  # finite while p takes x off again
    with torch.no_grad():
        fragile.model.token_embedding.weight[:3, 0] *= 1e160
        fragile.model.position_embedding.weight[:, 2] = 3e160
        layers_of(fragile.model)[0].mlp.second.weight.mul_(1e160)
    with pytest.raises(TruthError, match="with edges cut, planted computes numbers that are not finite") as caught:
        truth(fragile, "zero")
    assert "input.pos -> m0 cut: inf" in str(caught.value)


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_leaves_nothing(limit: int) -> None:
    with pytest.raises(TruthError, match=f"a limit of {limit} states leaves nothing to search"):
        truth(veto(), "zero", limit=limit)


def test_models_that_cannot_be_measured() -> None:
    compiled = random_model(0)
    compiled.model.float()
    with pytest.raises(TruthError, match="computes in float32, truths are told in float64"):
        truth(compiled, "zero")
    compiled = random_model(0)
    with torch.no_grad():
        compiled.model.token_embedding.weight[0] = float("inf")
    with pytest.raises(TruthError, match="numbers that are not finite"):
        truth(compiled, "zero")
    compiled = dataclasses.replace(random_model(0), inputs=((1, 2),), outputs=((0.0, 0.0),))
    with pytest.raises(TruthError, match="1 input cannot be paired"):
        truth(compiled, "resample")
