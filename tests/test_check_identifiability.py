"""``identifiable``: edges that carry the same kept and cut, and what would show them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import COPY, PLANTED, THROUGH, Planted, bent, claims, constant_outside, constant_writer, plant, straight

from voltmeter.check.identifiability import identifiable, written
from voltmeter.task import Pairs, Task


@pytest.mark.parametrize(("name", "verdict"), claims("identifiable"))
def test_it_says_what_is_planted(name: str, verdict: str) -> None:
    found = identifiable(PLANTED[name]().case())
    assert found.verdict == verdict, found.says


def under(planted: Planted, fill: str) -> Planted:
    other = replace(planted, fill=fill)
    vars(other)["wiring"] = planted.wiring
    return other


def test_an_edge_that_carries_nothing_is_named() -> None:
    found = identifiable(constant_writer().case())
    assert found.says == (
        "1 edge of the circuit carries the same kept and cut, on every pair, and is in it by accident: still -> logits"
    )
    n = len(constant_writer().wiring.edges)
    readers = 2  # after 'still': decoy2 and the output
    assert found.figure == pytest.approx(readers / n)
    assert (found.low, found.high) == (None, None)
    assert found.details[0] == {
        "writer or input": "still",
        "is": "constant",
        "edges": 2,
        "kept": 1,
        "shown by": "a zero fill",
    }


def test_what_no_method_could_have_found_is_named() -> None:
    found = identifiable(constant_outside().case())
    assert found.says == (
        "2 edges outside the circuit, out of still, carry the same kept and cut on every pair: no method could have "
        "found them; a zero fill would show them"
    )


@pytest.mark.parametrize(
    ("fill", "verdict"), [("zero", "holds"), ("mean", "cannot tell"), ("mean-position", "cannot tell")]
)
def test_another_fill_shows_what_a_constant_does(fill: str, verdict: str) -> None:
    assert identifiable(under(constant_outside(), fill).case()).verdict == verdict


def test_pairs_that_agree_in_what_a_writer_reads() -> None:
    """The noise is the same in both runs of each pair: nothing that decoys write differs."""
    planted = plant("quiet", {"first": COPY}, THROUGH, "noise is the same in both runs")
    sides = {}
    for name, pairs in (("train", planted.task.train), ("held_out", planted.task.held_out)):
        corrupted = pairs.corrupted.clone()
        corrupted[:, 2] = pairs.clean[:, 2]
        sides[name] = replace(pairs, corrupted=corrupted)
    quiet = replace(planted, task=Task("quiet", **sides))
    found = identifiable(quiet.case())
    assert found.verdict == "cannot tell"
    assert "out of decoy0, decoy1, decoy2, carry the same" in found.says
    assert "a zero or mean fill, or pairs that differ in what they read would show them" in found.says
    still = [row for row in found.details if row["writer or input"].startswith("input, columns")]
    assert [(row["writer or input"], row["is"]) for row in still] == [
        ("input, columns 2 of 3", "the same in both runs")
    ]


def test_columns_that_never_vary_are_told() -> None:
    planted = plant("one column", {"first": COPY}, THROUGH, "the second signal is always 0")
    sides = {
        name: replace(pairs, clean=pairs.clean * torch.tensor([1.0, 0, 1]), corrupted=pairs.corrupted)
        for name, pairs in (("train", planted.task.train), ("held_out", planted.task.held_out))
    }
    found = identifiable(replace(planted, task=Task("one column", **sides)).case())
    assert found.verdict == "holds"
    assert [(row["writer or input"], row["is"]) for row in found.details] == [("input, columns 1 of 3", "constant")]


def test_writers_that_never_write_take_no_part() -> None:
    """'mute' has no weights: its edges are no miss of anybody's; kept, they are an accident."""
    parts = {"first": COPY, "mute": straight({"s": 1}, {})}
    planted = plant("mute", parts, THROUGH, "nothing is missed")
    found = identifiable(planted.case())
    assert found.verdict == "holds"
    assert (
        found.says == "all edges carry something else than their resample fill on some pair; mute never write anything"
    )
    assert identifiable(planted.but(*THROUGH, "mute -> logits").case()).verdict == "fails"


def test_what_wakes_when_something_is_cut_is_not_silent() -> None:
    """'second' writes s - p, which is zero in both runs and with nothing kept, but not with 'first' cut alone."""
    parts = {"first": straight({"s": 1}, {"p": 1, "y": 1}), "second": straight({"s": 1, "p": -1}, {"y": 1})}
    planted = plant("asleep", parts, THROUGH, "'second' is asleep")
    found = identifiable(planted.case())
    assert found.verdict == "cannot tell"
    assert "out of second, carry the same kept and cut on every pair" in found.says
    assert "inputs on which they write something would show them" in found.says
    second = next(each for each in written(planted.case()) if planted.wiring.writers[each.number].name == "second")
    assert second.is_same
    assert not second.is_silent


def test_rounding_is_nothing() -> None:
    """In float32 a writer's two runs may differ in their last digits."""
    parts = {"first": COPY, "still": straight({"1": 1.0}, {"e": 1e3}), "bend": bent(({"s": 1}, {"q": 1}))}
    planted = plant("float32", parts, THROUGH, "'still' is large and constant")
    model = planted.model.float()
    sides = {
        name: Pairs.of(pairs.clean.float(), pairs.corrupted.float(), pairs.answers, pairs.wrong, groups=pairs.groups)
        for name, pairs in (("train", planted.task.train), ("held_out", planted.task.held_out))
    }
    found = identifiable(replace(planted, model=model, task=Task("float32", **sides)).case())
    assert found.verdict == "cannot tell"
    assert "out of still, carry" in found.says


def test_what_wakes_in_the_circuit_is_no_accident() -> None:
    """'second' writes s - p: nothing in the full model, and all of the answer in a circuit that leaves 'first' out."""
    parts = {"first": straight({"s": 1}, {"p": 1, "y": 1}), "second": straight({"s": 1, "p": -1}, {"y": 1})}
    planted = plant("awake", parts, ("input -> second", "second -> logits"), "'second' is the circuit")
    case = planted.case()
    assert float(case.held_out.measure(case.keep[None]).f[0]) == pytest.approx(1)
    found = identifiable(case)
    assert found.verdict == "cannot tell", found.says
    assert found.counted["kept_edges_that_carry_nothing"] == 0
