"""Equivalence, independence and minimality of circuits that have each, and of circuits that lack one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import planted
import pytest
import torch
from planted import COPY, THROUGH, Planted, Sum, clipped, pairs_of, plant, sign_task, straight

from voltmeter.check.clock import Clock
from voltmeter.check.finding import Finding
from voltmeter.check.hypotheses import LEVEL, hypotheses
from voltmeter.check.inflated import MOST_EDGES, RANDOM, _Graph, effects_of
from voltmeter.circuit import Circuit
from voltmeter.task import Task
from voltmeter.task.metric import LOGIT_DIFFERENCE, metric_of


def outcomes(found: Finding) -> dict[str, str]:
    return {row["test"]: row["outcome"] for row in found.details if " -> " not in row["test"]}


@pytest.mark.parametrize("name", ["sound", "two_steps", "or_pair"])
def test_sound_circuits_pass_all_three(name: str) -> None:
    found = hypotheses(planted.PLANTED[name]().case())
    assert found.verdict == "holds"
    assert "equivalent within ±10%" in found.says
    assert "nothing is left that could depend on the full model" in found.says
    assert "kept edges does less than random ones would" in found.says
    assert found.counted["random_edges"] == RANDOM


def test_a_wrong_circuit_fails_all_three() -> None:
    found = hypotheses(planted.wrong_circuit().case())
    assert found.verdict == "fails"
    assert set(outcomes(found).values()) == {"rejected"}
    assert "-100% off the full model's: not equivalent within ±10%" in found.says
    assert "(100% of the effect) depends on the full model (HSIC" in found.says


def test_an_edge_that_does_nothing_is_named() -> None:
    found = hypotheses(planted.spare_edge().case())
    assert found.verdict == "fails"
    assert outcomes(found) == {"equivalence": "shown", "independence": "not rejected", "minimality": "rejected"}
    assert found.says.endswith("1 of 3 kept edges do no more than random ones would: decoy0 -> first")
    assert [row["test"] for row in found.details if " -> " in row["test"]] == ["decoy0 -> first"]


def test_an_inflated_circuit_fails_minimality() -> None:
    """Every edge there is but four: those that do nothing are no better than the others that do nothing."""
    sound = planted.sound()
    left_out = {"input -> decoy0", "decoy0 -> decoy1", "decoy1 -> decoy2", "decoy2 -> logits"}
    found = hypotheses(sound.but(*(edge for edge in sound.wiring.edges.names if edge not in left_out)).case())
    assert found.verdict == "fails"
    assert outcomes(found)["minimality"] == "rejected"
    assert not {row["test"] for row in found.details} & set(THROUGH)


def test_edges_that_do_less_than_many_outside_fail_minimality() -> None:
    """Another component does three times as much, and half of the edges outside are its own: there are no decoys."""
    parts = {"first": COPY, "other": straight({"s": 3}, {"y": 1})}
    model = Sum(parts, 0.0).double().eval()
    found = hypotheses(replace(plant("outdone", parts, THROUGH, ""), model=model).case())
    assert outcomes(found)["minimality"] == "rejected"
    assert "2 of 2 kept edges do no more than random ones would" in found.says


def test_a_metric_that_the_full_model_lowers_is_judged_alike() -> None:
    worse = metric_of("worse", lambda outputs, pairs: -LOGIT_DIFFERENCE(outputs, pairs))
    for name, verdict in (("sound", "holds"), ("wrong_circuit", "fails")):
        known = planted.PLANTED[name]()
        found = hypotheses(replace(known, task=replace(known.task, metric=worse)).case())
        assert found.verdict == verdict
        assert outcomes(found)["equivalence"] == ("shown" if verdict == "holds" else "rejected")


def test_what_goes_on_without_the_circuit_fails_independence() -> None:
    found = hypotheses(planted.backup().case())
    assert found.verdict == "fails"
    assert outcomes(found) == {"equivalence": "shown", "independence": "rejected", "minimality": "not rejected"}


def test_a_rest_that_follows_something_else_is_independent() -> None:
    """Beside y = s there is noise in y from the other dimension: half of what is seen, and no part of the circuit."""
    parts = {"first": COPY, "second": straight({"t": 20}, {"y": 1})}
    found = hypotheses(plant("noise", parts, THROUGH, "t is drawn apart from s", task=_noisy()).case(threshold=0.5))
    row = next(row for row in found.details if row["test"] == "independence")
    # the full model sees t as well as s, so that the rest, which is t alone, must be called dependent
    assert row["outcome"] == "rejected"
    quiet = plant("quiet", {"first": COPY, "second": straight({"t": 0.5}, {"y": 1})}, THROUGH, "", task=_noisy())
    row = next(row for row in hypotheses(quiet.case(threshold=0.5)).details if row["test"] == "independence")
    assert row["outcome"] == "not rejected"  # t is a hundredth of what varies
    assert row["p"] is not None
    assert row["would_see"] <= 0.5


def _noisy() -> Task:
    """Signals of very different sizes, and t drawn apart from them."""
    sides = []
    for split in ("train", "held out"):
        generator = torch.Generator().manual_seed(len(split))
        sign = planted.signs(planted.N_PAIRS, generator)
        clean, corrupted = (torch.zeros(planted.N_PAIRS, 3, dtype=torch.float64) for _ in range(2))
        clean[:, 0], clean[:, 1] = sign * planted.drawn(0.5, 4, 40, generator), planted.drawn(-0.5, 0.5, 40, generator)
        pairs = pairs_of(clean, corrupted, sign, split)
        sides.append(replace(pairs, groups=tuple(f"{split} {i}" for i in range(len(pairs)))))
    return Task("noisy", *sides)


def test_constant_outputs_tell_nothing_of_dependence() -> None:
    """Two components each write the sign: the full model's metric is one number, and so is what the rest does."""
    parts = {name: clipped({"s": 1}, "y") for name in ("first", "second")}
    found = hypotheses(plant("two", parts, THROUGH, "", task=sign_task("two", absent=True)).case())
    assert outcomes(found)["independence"] == "no test"
    assert "the full model's metric is the same on every pair" in found.says


def test_too_little_data_to_show_equivalence_is_no_equivalence() -> None:
    """A margin of a thousandth, and noise of about as much: neither shown nor refuted."""
    parts = {"first": COPY, "second": straight({"n": 0.03}, {"y": 1})}
    found = hypotheses(plant("near", parts, THROUGH, "").case(threshold=0.999))
    assert found.verdict == "cannot tell"
    assert outcomes(found)["equivalence"] == "not shown"
    assert "is the least they could show" in found.says
    row = found.details[0]
    assert row["p"] > LEVEL
    assert row["would_see"] > 0.001


def test_circuits_of_no_edges_and_of_all() -> None:
    empty = hypotheses(planted.sound().but().case())
    assert (empty.verdict, outcomes(empty)["equivalence"]) == ("fails", "rejected")
    full = planted.sound().but(*planted.sound().wiring.edges.names)
    found = hypotheses(full.case())
    assert found.verdict == "cannot tell"
    assert "no edge is left outside to compare the kept ones with" in found.says


def test_one_group_says_nothing_of_spread() -> None:
    found = hypotheses(_in_one_group(planted.sound()).case())
    assert found.verdict == "cannot tell"
    assert "of one group" in found.says


def _in_one_group(known: Planted) -> Planted:
    alone = replace(known.task.held_out, groups=("all",) * len(known.task.held_out))
    return replace(known, task=Task("one group", known.task.train, alone))


def test_a_random_path_goes_from_input_to_output() -> None:
    known = planted.two_steps()
    wiring, draw = known.wiring, known.case().random("paths")
    graph = _Graph(wiring)
    for edge in range(len(wiring.edges)):
        path = graph.path_through(edge, draw)
        assert edge in path
        whole = Circuit.from_edges(wiring, [wiring.edges[at] for at in path])
        assert whole.disconnected(wiring.feeds, wiring.inputs, wiring.outputs) == ()
        assert len(set(path)) == len(path) <= 1 + len(known.model.names)


def test_effects_by_hand() -> None:
    """Cutting either kept edge of y = s loses all of it: |change| is the full model's effect, 1."""
    effects = effects_of(planted.sound().case())
    assert effects.kept.tolist() == pytest.approx([1, 1])
    assert effects.random.tolist() == pytest.approx([0] * RANDOM)
    assert effects.counted() == {"edges_judged": 2, "edges_kept": 2, "random_edges": RANDOM}
    assert MOST_EDGES >= 2


def test_out_of_time_is_told() -> None:
    found = hypotheses(planted.sound().case(clock=Clock(1e-9)))
    assert (found.counted["random_edges"], found.counted["left_out"]) == (32, RANDOM - 32)  # a piece of 64 circuits


def test_the_same_twice() -> None:
    def told(seed: int) -> dict[str, Any]:
        return hypotheses(planted.backup().case(seed=seed)).as_dict()

    assert told(0) == told(0)
    assert sign_task("other").digest != planted.sound().task.digest
