"""Better than chance: planted wrong circuits of the right size, circuits any others are as good as, and noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from planted import COPY, PLANTED, THROUGH, Planted, plant, sign_task, straight
from torch import nn

import voltmeter as vm
from voltmeter.check import chance
from voltmeter.check.chance import PERMUTED, SHUFFLED, Control, Rank
from voltmeter.check.clock import Clock
from voltmeter.check.draws import of_shape, of_size
from voltmeter.check.finding import Finding
from voltmeter.circuit import Circuit
from voltmeter.discover import Method, method_named
from voltmeter.task import Task, metric_of
from voltmeter.task.metric import ACCURACY

N_SPARE = 6


@cache
def wide() -> Planted:
    """y = s by one component, among more that carry noise."""
    spare = {f"spare{n}": straight({"n": 1, "t": n + 1.0}, {"d": 1, "e": 1}) for n in range(N_SPARE)}
    return plant("wide", {"first": COPY, **spare}, THROUGH, "no fault")


@cache
def crowd() -> Planted:
    """y = the sum of components that each write their share of s: most of them, whichever, do most of it."""
    parts = {f"part{n}": straight({"s": 1}, {"y": 1 / N_SPARE}) for n in range(N_SPARE)}
    return plant("crowd", parts, (), "any other edges are as good")


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random circuits just enough to fail; tests of circuits that hold ask for more."""
    monkeypatch.setattr(chance, "DRAWN", 20)


def found(planted: Planted, method: Method | None = None, clock: Clock | None = None) -> Finding:
    return chance.better_than_chance(planted.case(method, clock))


def told(finding: Finding, verdict: str, *parts: str) -> None:
    assert finding.verdict == verdict, finding.says
    for part in parts:
        assert part in finding.says, finding.says


# Random circuits


def test_the_right_circuit_beats_others_and_eap_finds_nothing_on_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way is the only one there is: with any answers it is found, and faithful on the task, which is no fault."""
    monkeypatch.setattr(chance, "DRAWN", 60)
    finding = found(wide(), method_named("eap"))
    told(finding, "holds", "the circuit keeps 100%; ", "100% of 60 random circuits of its size are worse")
    told(finding, "holds", "random circuits of its shape are worse (the nearest keeps ")
    told(finding, "holds", f"with {SHUFFLED} eap finds a circuit that is faithful on the true task (100%)")
    assert f"{PERMUTED}: the model's output is the same for two different inputs" in finding.counted["left_out"]
    assert (finding.figure, finding.low, finding.high) == (1, 1, 1)
    assert [row["what"] for row in finding.details][2:] == [f"the method on {SHUFFLED}", f"the method on {PERMUTED}"]
    assert finding.picture is not None
    assert finding.picture.line == pytest.approx(1)
    assert set(finding.picture.data["lines"]) == {"random, of its size", "random, of its shape"}


def test_a_wrong_circuit_of_the_right_size() -> None:
    finding = found(wide().but("input -> spare0", "spare0 -> logits"))
    told(finding, "fails", "the circuit keeps 0%; ")
    assert finding.high is not None
    assert finding.high < 0.95


def test_a_circuit_that_any_others_are_as_good_as() -> None:
    """All edges of the crowd but a few from decoys and a few that matter."""
    edges = crowd().wiring.edges.names
    kept = [edge for edge in edges if edge not in ("input -> part0", "decoy0 -> part1", "decoy1 -> part2")]
    told(found(crowd().but(*kept)), "fails", "are worse")


def test_the_full_circuit_and_the_empty_one() -> None:
    names = wide().wiring.edges.names
    told(found(wide().but(*names)), "cannot tell", f"{len(names)} of {len(names)} edges, and no other circuit")
    told(found(wide().but()), "cannot tell", "it has 0 of")


def test_a_model_with_few_other_circuits() -> None:
    """Of its shape there are fifteen others: left out, and told. Of one edge there are fourteen."""
    finding = found(PLANTED["sound"]())
    assert "circuits of its size are worse" in finding.says
    assert "of its shape" not in finding.says
    assert "only 15 random circuits of its shape" in finding.counted["left_out"]
    assert "the method on noise: how the circuit was found is not known" in finding.counted["left_out"]
    told(found(PLANTED["sound"]().but("first -> logits")), "cannot tell", "are too few random circuits to compare with")


def test_a_circuit_that_is_the_only_one_of_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chance, "of_shape", lambda circuit, *_: torch.zeros(0, len(circuit.edges), dtype=torch.bool))
    finding = found(wide())
    assert "circuits of its size are worse" in finding.says
    assert "only 0 random circuits of its shape" in finding.counted["left_out"]


def test_no_time() -> None:
    told(found(wide(), clock=Clock(1e-9)), "cannot tell", "0 of its size and 0 of its shape are too few")


def test_one_group_of_pairs() -> None:
    planted = wide()
    pairs = replace(planted.task.held_out, groups=("one",) * len(planted.task.held_out))
    alone = replace(planted, task=Task("one", planted.task.train, pairs))
    told(found(alone), "cannot tell", "the held-out pairs are of one group")


def test_few_circuits_cannot_hold() -> None:
    """Where the time was up after 40 of them, all worse: one in twenty may still be as good."""
    worse = torch.zeros(40, dtype=torch.float64)
    assert Rank(1.0, 1.0, 1.0, worse, False).verdict == "cannot tell"
    assert Rank(1.0, 1.0, 1.0, worse, True).verdict == "holds"
    assert Rank(0.5, 0.4, 0.6, worse, False).verdict == "fails"
    assert Rank(1.0, 1.0, 1.0, torch.zeros(59, dtype=torch.float64), False).verdict == "holds"
    assert Rank(0.95, 0.9, 1.0, torch.zeros(100, dtype=torch.float64), False).verdict == "cannot tell"


def test_as_good_counts_against() -> None:
    """The circuit itself, a copy of it with a useless edge, and nothing: one of three is worse."""
    planted = wide()
    case = planted.case()
    useless = planted.but(*THROUGH, "decoy0 -> logits").circuit.mask()
    keeps = torch.stack([case.keep, useless, torch.zeros_like(case.keep)])
    rank = chance._rank(case, case.few.measure(case.keep[None]), keeps)
    assert (rank.worse, rank.count, rank.nearest) == (1 / 3, 3, pytest.approx(1))


# How they are drawn


def test_random_circuits_are_of_the_size_and_no_two_alike() -> None:
    planted = wide().but(*THROUGH, "input -> spare1", "spare1 -> spare2", "spare2 -> logits")
    circuit, wiring = planted.circuit, planted.wiring
    drawn = of_size(circuit, wiring, 60, planted.case().random("size"))
    assert drawn.shape == (60, len(wiring.edges))
    assert set(drawn.sum(1).tolist()) == {5}
    assert len({tuple(row.tolist()) for row in drawn}) == 60
    assert not bool((drawn == circuit.kept).all(1).any())
    ends = (wiring.feeds, wiring.inputs, wiring.outputs)
    on_ways = [5 - len(Circuit(circuit.edges, row).disconnected(*ends)) for row in drawn]
    assert sum(on_ways) > 0.75 * 5 * 60  # edges drawn one by one would hardly ever lie on a way


def test_random_circuits_have_the_shape() -> None:
    """As many from input to a component, between components, and to the logits; each is a component of its own."""
    planted = wide().but(*THROUGH, "input -> spare1", "spare1 -> spare2", "spare2 -> logits")
    drawn = of_shape(planted.circuit, planted.wiring, 30, planted.case().random("shape"))
    for row in drawn:
        kinds = Counter(
            (edge.startswith("input"), edge.endswith("logits")) for edge in Circuit(planted.circuit.edges, row).names
        )
        assert kinds == {(True, False): 2, (False, False): 1, (False, True): 2}
    assert len({tuple(row.tolist()) for row in drawn}) == len(drawn) == 30


def test_the_shape_keeps_layers_where_they_have_heads() -> None:
    model, task = vm.load("demo")
    assert task is not None
    wiring = vm.wire(model, task.example)
    names = ["input -> a0.h1<v>", "a0.h1 -> a1.h2<k>", "input -> a1.h2<q>", "a1.h2 -> logits"]
    circuit = Circuit.from_edges(wiring, names)
    case = wide().case()
    for row in of_shape(circuit, wiring, 20, case.random("heads")):
        kinds = Counter(
            (writer.split(".")[0], reader.split(".")[0], reader.partition("<")[2])
            for writer, reader in Circuit(circuit.edges, row)
        )
        assert kinds == {
            ("input", "a0", "v>"): 1,
            ("a0", "a1", "k>"): 1,
            ("input", "a1", "q>"): 1,
            ("a1", "logits", ""): 1,
        }


# The method, on noise


def test_a_method_that_makes_something_of_nothing_cannot_tell() -> None:
    rank = Rank(1.0, 1.0, 1.0, torch.zeros(100, dtype=torch.float64), False)
    of_noise = Control(0.97, "holds", 0.1, False)
    assert chance._verdict({"size": rank}, {SHUFFLED: of_noise}) == "cannot tell"
    assert chance._verdict({"size": rank}, {SHUFFLED: replace(of_noise, is_the_circuit=True)}) == "holds"
    assert chance._verdict({"size": rank}, {SHUFFLED: replace(of_noise, verdict="fails")}) == "holds"
    controls = {SHUFFLED: of_noise, PERMUTED: Control(0.2, "fails")}
    says = chance._says(wide().case(method_named("eap")), 1.0, {"of its size": rank}, controls)
    assert f"with {SHUFFLED} eap finds a faithful circuit too (97%), so that finding one is no evidence" in says
    assert f"in {PERMUTED} eap finds nothing faithful (20%)" in says


def test_controls_that_cannot_be_made_are_told() -> None:
    """A metric that looks at no answer; answers that are all alike; a method that raises."""
    planted = wide()
    first = metric_of("first", lambda outputs, pairs: outputs[:, 0])
    case = replace(planted, task=Task("first", planted.task.train, planted.task.held_out, first)).case(
        method_named("eap")
    )
    assert chance._shuffled(case).why == "first does not look at the answers"
    pairs = planted.task.held_out
    alike = replace(pairs, answers=torch.zeros_like(pairs.answers), wrong=torch.ones_like(pairs.wrong))
    case = replace(planted, task=Task("alike", planted.task.train, alike)).case(method_named("eap"))
    assert chance._shuffled(case).why == "all pairs have the same answers, or none"
    stepwise = replace(planted, task=replace(planted.task, metric=ACCURACY)).case(method_named("eap"))
    assert "has no gradient" in chance._shuffled(stepwise).why


def test_the_method_is_done_again_in_a_model_of_shuffled_weights() -> None:
    """Some of these tiny models answer nothing at all when shuffled, and cannot be wired: that is told."""
    found_in = [chance._permuted(wide().case(method_named("eap"), seed=seed)) for seed in range(6)]
    assert any(control.f is not None and not control.finds_noise for control in found_in)
    assert all(control.f is not None or control.why for control in found_in)


def test_weights_change_places_in_a_copy() -> None:
    planted = wide()
    model: nn.Module = planted.model
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    twin = chance._with_shuffled_weights(model, planted.case().random("weights"))
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    moved = dict(twin.named_parameters())
    assert moved.keys() == before.keys()
    for name, weight in before.items():
        assert torch.equal(moved[name].flatten().sort().values, weight.flatten().sort().values)
    assert any(not torch.equal(moved[name], weight) for name, weight in before.items())


def test_answers_are_dealt_with_their_wrong_ones() -> None:
    pairs = sign_task("dealt").held_out
    dealt = chance._dealt(pairs, wide().case().random("deal"))
    assert dealt is not None
    assert torch.equal(dealt.answers + dealt.wrong, torch.ones_like(pairs.answers))
    assert not torch.equal(dealt.answers, pairs.answers)
    assert dealt.clean is pairs.clean
