"""Stable: the method done again by other seeds and from other pairs. Planted: methods that waver in either."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from planted import PLANTED, Planted
from torch import Tensor

import voltmeter as vm
from voltmeter.check import check, stability
from voltmeter.check.again import found_again
from voltmeter.check.clock import Clock
from voltmeter.check.finding import Finding
from voltmeter.check.repeated import jaccard, on_groups, with_seed
from voltmeter.circuit import Circuit
from voltmeter.discover import METHODS, Method, Question, method_named
from voltmeter.discover.method import State, seeded
from voltmeter.errors import MetricError


@dataclass(frozen=True)
class Fixed(Method):
    """The first ``kept`` edges score highest, whatever is asked; the others are drawn anew for each question."""

    name: ClassVar[str] = "fixed, for a test"
    kept: int = 2
    by_seed: bool = False
    by_pairs: bool = False
    refuses: bool = False

    def steps(self, question: Question) -> int:
        return 2

    def start(self, question: Question) -> State:
        return {"scores": torch.zeros(question.n_edges)}

    def step(self, question: Question, state: State, number: int) -> State:
        if self.refuses:
            raise MetricError("nothing to follow")
        drawn = torch.zeros(question.n_edges)
        if self.by_seed:
            drawn += torch.rand(question.n_edges, generator=seeded(question, number))
        if self.by_pairs:
            clean = question.task.train.clean.double().sum()
            drawn += torch.rand(question.n_edges, generator=torch.Generator().manual_seed(int(1e6 * clean.abs())))
        drawn[: self.kept] += 10
        return {"scores": drawn}

    def values(self, question: Question, state: State) -> Tensor:
        return state["scores"]


def planted(kept: int) -> Planted:
    """A model with a circuit of its first edges, as ``Fixed`` finds them."""
    sound = PLANTED["two_steps"]()
    return sound.but(*sound.wiring.edges.names[:kept])


def found(method: Method | None, kept: int = 2, clock: Clock | None = None) -> Finding:
    return stability.stable(planted(kept).case(method, clock))


def told(finding: Finding, verdict: str, *parts: str) -> None:
    assert finding.verdict == verdict, finding.says
    for part in parts:
        assert part in finding.says, finding.says


def test_what_is_always_found_is_stable() -> None:
    finding = found(Fixed(kept=3), 3)
    told(
        finding,
        "holds",
        "by another seed, circuits share 100%",
        "from other pairs 100%",
        "3 of the 3 edges are found every time",
    )
    assert (finding.figure, finding.low, finding.high) == (1, 1, 1)
    assert [(row["by another seed"], row["from other pairs"]) for row in finding.details] == [(1, 1)] * 3
    assert finding.counted == {"by another seed": 5, "from other pairs": 5}


def test_eap_finds_the_planted_circuit_again() -> None:
    told(stability.stable(PLANTED["two_steps"]().case(method_named("eap"))), "holds")


@pytest.mark.parametrize("wavers", ["by_seed", "by_pairs"])
def test_a_method_that_wavers(wavers: str) -> None:
    method, sound = Fixed(kept=0, **{wavers: True}), planted(4)
    finding = stability.stable(sound.but(*found_again(method, sound.case().question, sound.circuit).names).case(method))
    kind, other = ("by another seed", "from other pairs")[:: 1 if wavers == "by_seed" else -1]
    told(finding, "fails", "rarely found again", " -> ")
    assert finding.figure is not None
    assert finding.figure < 0.6
    assert "100% (" not in finding.says.split(kind)[1].split(")")[0], finding.says
    assert "100% (" in finding.says.split(other)[1].split(")")[0], finding.says
    assert [row[other] for row in finding.details if row["in the circuit"]] == [1] * 4
    assert all(row[kind] >= 0.5 for row in finding.details if not row["in the circuit"])


def test_random_scores_are_not_stable() -> None:
    told(found(method_named("random"), 4), "fails")


def test_edges_that_come_and_go_are_named() -> None:
    """Four edges are always found, the fifth is another each time."""
    finding = found(Fixed(kept=4, by_seed=True, by_pairs=True), 5)
    assert finding.verdict != "holds"
    assert "4 of the 5 edges are found every time; rarely found again: " in finding.says
    always = [row["edge"] for row in finding.details if row["by another seed"] == row["from other pairs"] == 1]
    assert set(always) == set(planted(4).kept)
    assert finding.picture is not None
    assert finding.picture.data["values"] == sorted(finding.picture.data["values"])


def test_one_odd_run_in_nine_cannot_tell() -> None:
    """Of ten pairs of circuits four are with the odd one: the mean is .6 + .4 / 3, and the interval reaches 1."""
    kept = torch.zeros(5, 12, dtype=torch.bool)
    kept[:, :4] = True
    kept[4, :4] = torch.tensor([True, True, False, False])
    kept[4, 4:6] = True
    random = planted(4).case().random("a")
    mean, low, high = stability._mean(kept, random)
    assert mean == pytest.approx(0.6 + 0.4 * 2 / 6)
    assert low < 0.8 < high
    told_of = {"seed": (mean, low, high), "pairs": (1.0, 1.0, 1.0)}
    assert stability._verdict(told_of, False) == "cannot tell"
    assert stability._verdict({"seed": (1.0, 1.0, 1.0)}, True) == "cannot tell"
    assert stability._verdict({"seed": (0.1, 0.0, 0.2)}, True) == "fails"


def test_a_circuit_made_by_hand() -> None:
    told(found(None), "cannot tell", "how the circuit was found is not known")


@pytest.mark.parametrize("all_edges", [False, True])
def test_an_empty_circuit_and_a_full_one(all_edges: bool) -> None:
    sound = PLANTED["two_steps"]()
    finding = stability.stable(sound.but(*(sound.wiring.edges.names if all_edges else ())).case(Fixed()))
    told(finding, "cannot tell", "28 of 28 edges" if all_edges else "0 of 28 edges")


def test_a_method_that_refuses() -> None:
    told(found(Fixed(refuses=True)), "cannot tell", "fewer than 3 circuits were found", "nothing to follow")


def test_no_time() -> None:
    finding = found(Fixed(), clock=Clock(1e-9))
    told(finding, "cannot tell", "the time was used up")


def test_time_for_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps are done, two a run; then the time is up: what was found is told, and cannot hold."""
    monkeypatch.setattr(Clock, "over", property(lambda clock: len(done) >= 8))
    done: list[int] = []
    step = Fixed.step

    def counted(self: Fixed, question: Question, state: State, number: int) -> State:
        done.append(number)
        return step(self, question, state, number)

    monkeypatch.setattr(Fixed, "step", counted)
    finding = found(Fixed(), clock=Clock(100.0))
    told(finding, "cannot tell", "by another seed, circuits share 100%")
    assert finding.counted == {"by another seed": 5, "from other pairs": 1, "left_out": "the time was used up"}


def test_check_takes_the_method_from_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, Fixed.name, Fixed)
    sound = PLANTED["two_steps"]()
    scores = vm.discover(sound.wiring, sound.task, Fixed(kept=0, by_seed=True))
    assert check(scores.top(4), only="stable")[0].verdict == "fails"


# What it is made of


def test_jaccard_is_that_of_circuits() -> None:
    names = tuple(f"w{n} -> r{n}" for n in range(9))
    kept = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    kept[3] = False
    circuits = [Circuit(names, row) for row in kept]
    expected = [[one.jaccard(other) for other in circuits] for one in circuits]
    assert torch.allclose(jaccard(kept), torch.tensor(expected, dtype=torch.float64))
    assert float(jaccard(kept)[3, 3]) == 1


def test_groups_are_drawn_whole() -> None:
    question = PLANTED["sound"]().case().question
    asked = on_groups(question, [3, 3, 0])
    names = sorted(set(question.task.train.groups))
    assert list(asked.task.train.groups) == [names[3]] * 8 + [names[0]] * 4
    assert asked.task.held_out is question.task.held_out
    same = replace(question.task, train=question.task.held_out)
    whole = Question(question.wiring, same, question.fill)
    drawn = on_groups(whole, [1]).task
    assert drawn.train is drawn.held_out


def test_another_seed_shuffles_the_batches() -> None:
    question = PLANTED["sound"]().case().question
    assert with_seed(question, 1).order != with_seed(question, 2).order
