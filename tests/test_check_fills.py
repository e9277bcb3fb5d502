"""Same under other fills: planted circuits whose faithfulness depends on what cut edges carry, and others."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from planted import COPY, PLANTED, THROUGH, Planted, bent, plant, straight

import voltmeter as vm
from voltmeter.check import fills
from voltmeter.check.case import Case
from voltmeter.check.clock import Clock
from voltmeter.check.finding import Finding
from voltmeter.check.norms import norm_ratio
from voltmeter.discover import ask
from voltmeter.discover.question import make_batch
from voltmeter.task import Task
from voltmeter.task.metric import ACCURACY


@cache
def leans_on_a_constant() -> Planted:
    """y = relu(s + p) - 2 = s, where 'still' writes p = 2 whatever it reads: cutting it shows under zero alone."""
    parts = {
        "still": straight({"1": 1.0}, {"p": 2}),
        "first": bent(({"s": 1, "p": 1}, {"y": 1}), ({"1": 2.0}, {"y": -1})),
    }
    return plant("leans_on_a_constant", parts, THROUGH, "'still -> first' is cut, and carries the same in every run")


@cache
def drowned() -> Planted:
    """The right circuit, in a stream ten times as large as the answer."""
    return plant("drowned", {"first": COPY, "loud": straight({"1": 1.0}, {"e": 40})}, THROUGH, "no fault")


def found(planted: Planted, clock: Clock | None = None) -> Finding:
    return fills.same_under_other_fills(planted.case(clock=clock))


def told(finding: Finding, verdict: str, *parts: str) -> None:
    assert finding.verdict == verdict, finding.says
    for part in parts:
        assert part in finding.says, finding.says


def test_the_right_circuit_is_right_under_every_fill() -> None:
    finding = found(PLANTED["sound"]())
    told(finding, "holds", "faithful under resample, its own fill (it keeps 100%)", "faithful under zero (100%)")
    assert [row["fill"] for row in finding.details] == ["resample", "zero", "mean", "mean-position"]
    assert [row["faithful"] for row in finding.details] == ["holds"] * 4
    assert [row["overlap"] for row in finding.details] == [1] * 4
    assert finding.counted == {"pairs": 40, "fills": 4}
    assert finding.picture is not None
    assert (finding.picture.kind, finding.picture.line, len(finding.picture.data["names"])) == ("bars", 0.9, 4)


def test_the_wrong_circuit_is_wrong_under_every_fill() -> None:
    told(found(PLANTED["wrong_circuit"]()), "holds", "not faithful under resample", "not faithful under zero")


def test_a_circuit_that_leans_on_a_constant() -> None:
    finding = found(leans_on_a_constant())
    told(finding, "fails", "faithful under resample, its own fill (it keeps 100%), not faithful under zero")
    assert finding.against == "f of 100% (100% to 100%) under its own fill, resample"
    assert {row["fill"]: row["faithful"] for row in finding.details} == {
        "resample": "holds",
        "zero": "fails",
        "mean": "holds",
        "mean-position": "holds",
    }
    assert finding.figure == pytest.approx(finding.details[1]["f"], abs=1e-4)  # details are rounded to four digits


def test_overlap_is_that_of_the_best_edges() -> None:
    one, other = (torch.tensor([at in kept for at in range(6)]) for kept in ((0, 1, 2), (0, 1, 5)))
    row = fills.Under("zero", 1.0, 1.0, 1.0, None, "holds", 1.0, one)
    assert row.row(other)["overlap"] == 0.5
    assert row.row(None)["overlap"] is None


def test_a_change_of_size_is_told() -> None:
    told(found(drowned()), "holds", "what the output reads has", "times under zero: that alone may be why")
    assert "that alone" not in found(PLANTED["sound"]()).says


def test_the_ratio_of_norms_by_hand() -> None:
    """Under zero, with only 'first -> logits' kept, the output reads what 'first' writes and nothing else."""
    planted = drowned().but("first -> logits")
    case = planted.case()
    batch = make_batch(planted.wiring, case.few.pairs, vm.fill.zero())
    model, x = planted.model, case.few.pairs.clean
    with torch.no_grad():
        stream = model.embed(x)
        empty = torch.zeros_like(stream)
        cut = model.get_submodule("first")(empty)
        for name in model.names:
            stream = stream + model.get_submodule(name)(stream)
    assert float(cut.norm()) == 0
    assert norm_ratio(planted.wiring, batch, case.keep) == 0
    whole = torch.ones_like(case.keep)
    assert norm_ratio(planted.wiring, batch, whole) == pytest.approx(1, abs=1e-12)
    kept = drowned().case().keep
    with torch.no_grad():
        cut = model.get_submodule("first")(model.embed(x))
    expected = float(cut.norm(dim=1).sum() / stream.norm(dim=1).sum())
    assert norm_ratio(planted.wiring, batch, kept) == pytest.approx(expected, rel=1e-12)


def test_a_metric_without_gradient_has_no_overlap() -> None:
    sound = PLANTED["sound"]()
    task = Task("right or wrong", sound.task.train, sound.task.held_out, ACCURACY)
    finding = fills.same_under_other_fills(
        Planted("stepwise", sound.model, task, THROUGH, "", frozenset(), frozenset(), frozenset(), "resample").case()
    )
    assert {row["overlap"] for row in finding.details} == {None}
    told(finding, finding.verdict, "faithful under resample")


@pytest.mark.parametrize("all_edges", [False, True])
def test_an_empty_circuit_and_a_full_one(all_edges: bool) -> None:
    sound = PLANTED["sound"]()
    finding = found(sound.but(*(sound.wiring.edges.names if all_edges else ())))
    told(finding, "holds", "faithful under resample" if all_edges else "not faithful under resample")
    zeroed = replace(sound, kept=sound.wiring.edges.names if all_edges else (), fill="zero")
    told(found(zeroed), "holds", "faithful under zero, its own" if all_edges else "not faithful under zero, its own")


def test_a_fill_under_which_nothing_can_be_measured_is_told() -> None:
    """With a corrupted run that does the same, resample has nothing to tell apart; the other fills have."""
    sound = PLANTED["sound"]()
    corrupted = sound.task.held_out.clean.clone()
    corrupted[:, 2] += 1  # the noise, which touches no answer
    pairs = sound.task.held_out
    same = vm.task.Pairs.of(pairs.clean, corrupted, pairs.answers, pairs.wrong, groups=pairs.groups)
    task = Task("noise only", sound.task.train, same)
    finding = found(Planted("noise only", sound.model, task, THROUGH, "", *[frozenset[str]()] * 3, "zero"))
    told(finding, "holds", "faithful under zero, its own fill", "; not measured under resample")
    assert "the same for the full model and for nothing kept" in finding.counted["left_out"]["resample"]


def test_no_time() -> None:
    finding = found(PLANTED["sound"](), Clock(1e-9))
    told(finding, "cannot tell", "not measured under zero, mean, mean-position")
    assert finding.figure is None


def test_a_fill_of_ones_own_is_one_more() -> None:
    sound = PLANTED["sound"]()
    case = sound.case()
    values = {writer.name: torch.zeros(1, 8, dtype=torch.float64) for writer in sound.wiring.writers}
    own = Case(case.circuit, ask(sound.wiring, sound.task, vm.fill.tensor(values, "mine")))
    finding = fills.same_under_other_fills(own)
    told(finding, "holds", "faithful under mine, its own fill")
    assert finding.counted["fills"] == 5
