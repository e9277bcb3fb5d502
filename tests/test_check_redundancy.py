"""Another circuit outside, a backup that wakes, two ways inside: each found and named, and not where there is none."""

from __future__ import annotations

from dataclasses import replace

import planted
import pytest
import torch
from planted import THROUGH, Planted, bent, clipped, pairs_of, plant, sign_task, straight

from voltmeter.check import cuts, elsewhere
from voltmeter.check.backups import Losses, either
from voltmeter.check.case import Case
from voltmeter.check.clock import Clock
from voltmeter.check.elsewhere import look_again
from voltmeter.check.redundancy import redundant
from voltmeter.circuit import Circuit
from voltmeter.discover.known import known_question
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.setting import Question, setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.wired import wiring_of
from voltmeter.task import Task
from voltmeter.task.metric import ACCURACY, LOGIT_DIFFERENCE, Metric, metric_of


@pytest.mark.parametrize("name", ["sound", "two_steps", "cancellation", "veto", "spare_edge", "overfitted"])
def test_where_nothing_else_does_it(name: str) -> None:
    found = redundant(planted.PLANTED[name]().case())
    assert found.verdict == "holds"
    assert found.figure is not None
    assert abs(found.figure) < 0.1
    assert found.says.endswith("nothing makes up for a writer of the circuit that is cut")
    assert found.details == ()


def three_ways() -> Planted:
    """Three components each write the sign of s to y, of which the metric asks for one; the circuit is one of them."""
    parts = {name: clipped({"s": 1}, "y") for name in ("first", "second", "third")}
    enough = metric_of("enough", lambda outputs, pairs: LOGIT_DIFFERENCE(outputs, pairs).clamp(-2, 2))
    return plant("three ways", parts, THROUGH, "", task=replace(sign_task("ways", absent=True), metric=enough))


def test_another_circuit_is_found_and_named() -> None:
    found = redundant(planted.wrong_circuit().case())
    assert found.verdict == "fails"
    assert "first (2 edges) does the same, 100%" not in found.says  # it has two edges: "do the same"
    assert "first (2 edges) do the same, 100%" in found.says
    assert "beside it nothing more does" in found.says
    edges = [row["name"] for row in found.details if row["what"] == "other circuit"]
    assert edges == list(THROUGH)


def test_circuits_are_looked_for_again_and_again() -> None:
    """Beside the circuit there are two others, and then no more."""
    case = three_ways().case()
    looked = look_again(case)
    names = [[str(case.wiring.edges[at]) for at in other.kept.nonzero().flatten().tolist()] for other in looked.others]
    assert sorted(names) == [["input -> second", "second -> logits"], ["input -> third", "third -> logits"]]
    assert [round(rest.f, 1) for rest in looked.rests] == [1.0, 1.0, 0.0]


def test_a_rest_that_overshoots_holds_two_circuits() -> None:
    """y = s + s - s, and the circuit is what is taken off: either of the others alone is the full model."""
    parts = {"first": straight({"s": 1}, {"y": 1}), "second": straight({"s": 1}, {"y": 1})}
    less = straight({"s": -1}, {"y": 1})
    known = plant("over", {**parts, "less": less}, ("input -> less", "less -> logits"), "")
    looked = look_again(known.case())
    assert [round(rest.f, 2) for rest in looked.rests] == [2, 1, 0]
    assert [round(other.f, 2) for other in looked.others] == [1, 1]


@pytest.mark.parametrize("metric", [LOGIT_DIFFERENCE, ACCURACY])
def test_gradients_find_it_where_there_are_many_edges(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of KL where the metric has none."""
    monkeypatch.setattr(elsewhere, "EXACT", 0)
    known = planted.wrong_circuit()
    found = redundant(replace(known, task=replace(known.task, metric=metric)).case())
    assert (found.verdict, found.says.count("first (2 edges) do the same")) == ("fails", 1)


def test_what_only_fits_the_train_pairs_is_not_told_as_another_circuit() -> None:
    """On train pairs t is as good as s, and found first; in held-out ones it is no signal: the whole rest is told."""
    parts = {"first": clipped({"t": 1}, "y"), "second": clipped({"s": 1}, "y")}
    task = replace(planted.overfitted().task, metric=three_ways().task.metric)
    found = redundant(plant("wrong", parts, ("input -> decoy0", "decoy0 -> logits"), "", task=task).case())
    assert found.verdict == "fails"
    assert "first, second" in found.says
    assert "do the same, 100%" in found.says


def test_one_of_an_or_pair_is_made_up_for_by_the_other() -> None:
    found = redundant(planted.or_pair().case())
    assert found.verdict == "fails"
    assert "cutting first loses 100% in the circuit and 0% in the full model: second makes up for it" in found.says
    assert [(row["name"], row["by"]) for row in found.details] == [("first", "second")]


def test_both_of_an_or_pair_in_the_circuit_are_told_and_no_fault() -> None:
    known = planted.or_pair()
    found = redundant(known.but(*known.kept, "input -> second", "second -> third").case())
    assert found.verdict == "holds"
    assert found.says.endswith("inside the circuit, second or first is enough")


def test_a_way_of_two_steps_and_one_of_one_inside() -> None:
    """No component of the one way can be cut together with any of the other."""
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        "second": straight({"p": 1}, {"q": 1}),
        "third": straight({"s": 1}, {"t": 1}),
        "clip": clipped({"q": 1, "t": 1}, "y"),
    }
    task = sign_task("chains", absent=True)
    known = plant("chains", parts, (), "", task=task)
    kept = ("input -> first", "first -> second", "second -> clip", "input -> third", "third -> clip", "clip -> logits")
    case = known.but(*kept).case()
    found = either(case, Losses(case, case.few))
    assert found is not None
    assert (found.writer, set(found.partners)) == ("third", {"first", "second"})
    assert found.loss == pytest.approx(1, abs=0.05)


def test_a_backup_that_wakes_is_found() -> None:
    """'second' reads what 'first' wrote: silent while it is there. The rest alone cannot do it, for it needs 'clip'."""
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        "second": bent(({"s": 1, "p": -1}, {"q": 1}), ({"s": -1, "p": 1}, {"q": -1})),
        "clip": clipped({"p": 1, "q": 1}, "y"),
    }
    kept = ("input -> first", "first -> clip", "clip -> logits")
    found = redundant(plant("wakes", parts, kept, "", task=sign_task("wakes", absent=True)).case())
    assert found.verdict == "fails"
    assert found.figure == pytest.approx(0, abs=0.1)
    assert "in the full model: second makes up for it (both cut: " in found.says


def test_of_a_chain_the_last_is_named() -> None:
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        "second": straight({"s": 1}, {"q": 1}),
        "third": straight({"q": 1}, {"t": 1}),
        "clip": clipped({"p": 1, "t": 1}, "y"),
    }
    kept = ("input -> first", "first -> clip", "clip -> logits")
    found = redundant(plant("chain", parts, kept, "", task=sign_task("chain", absent=True)).case())
    assert [(row["name"], row["by"]) for row in found.details] == [("first", "third")]


def test_several_that_share_the_work_of_a_backup_are_not_one() -> None:
    """Three others give a third each."""
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        **{f"third{i}": straight({"s": 0.34}, {"q": 1}) for i in range(3)},
        "clip": clipped({"p": 1, "q": 1}, "y"),
    }
    kept = ("input -> first", "first -> clip", "clip -> logits")
    found = redundant(plant("shared", parts, kept, "", task=sign_task("shared", absent=True)).case())
    assert found.verdict == "fails"
    assert "no one component outside makes up for it, but they do together" in found.says
    assert found.details[0]["by"] is None


def test_made_up_for_on_some_pairs_only_cannot_be_told() -> None:
    """Of ten groups, the second signal is there in three or four."""
    sides = []
    for split in ("train", "held out"):
        pairs = planted.sign_pairs(split, absent=True, second=True)
        clean, corrupted = pairs.clean.clone(), pairs.corrupted.clone()
        gone = torch.tensor([int(group.rsplit(" ", 1)[1]) >= 4 for group in pairs.groups])
        clean[gone, 1] = corrupted[gone, 1] = 0.0
        sides.append(pairs_of(clean, corrupted, clean[:, 0].sign(), split))
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        "second": straight({"t": 1}, {"q": 1}),
        "third": clipped({"p": 1, "q": 1}, "y"),
    }
    kept = ("input -> first", "first -> third", "third -> logits")
    found = redundant(plant("some pairs", parts, kept, "", task=Task("some", *sides)).case())
    assert found.verdict == "cannot tell"
    assert "too few pairs to say if it is made up for" in found.says


# Compiled programs --------------------------------------------------------------------------------------------------


def compiled_case(name: str, fill: str = "resample") -> Case:
    """A minimal circuit of a program, by its certificate, asked on all of its inputs."""
    known = compiled(program(name))
    wiring = wiring_of(known).wiring
    asked = known_question(known, wiring, setting_of(known, Question(fill)), "distance")
    return Case(Circuit.from_edges(wiring, truth(known, fill).minimal[0]), asked)


def test_a_compiled_backup_is_found_and_a_plain_program_has_none() -> None:
    found = redundant(compiled_case("backup"))
    assert found.verdict == "fails"
    plain = redundant(compiled_case("hist"))
    assert plain.verdict == "holds"


# What is no case ----------------------------------------------------------------------------------------------------


def test_circuits_of_no_edges_and_of_all() -> None:
    sound = planted.sound()
    empty = redundant(sound.but().case())
    assert empty.verdict == "cannot tell"
    assert "the circuit is empty" in empty.says
    assert redundant(sound.but(*sound.wiring.edges.names).case()).verdict == "holds"


def test_one_group_says_nothing_of_spread() -> None:
    known = planted.sound()
    alone = replace(known.task.held_out, groups=("all",) * len(known.task.held_out))
    found = redundant(replace(known, task=Task("one group", known.task.train, alone)).case())
    assert found.verdict == "cannot tell"
    assert "of one group" in found.says


def test_out_of_time_is_no_clean_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    """One piece of circuits is always measured; here a piece is one circuit."""
    monkeypatch.setattr(cuts, "_PIECE", 1)
    found = redundant(planted.two_steps().case(clock=Clock(1e-9)))
    assert found.verdict == "cannot tell"
    assert "the time was used up" in found.counted["left_out"]


def test_the_same_twice() -> None:
    assert redundant(planted.or_pair().case()) == redundant(planted.or_pair().case())
