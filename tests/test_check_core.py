"""What every check stands on: findings, clocks, cases, splits, the list of checks, and ``check`` itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import voltmeter as vm
from voltmeter.check import registry
from voltmeter.check.case import FEW, Case, Random
from voltmeter.check.check import circuit_digest, with_clock
from voltmeter.check.clock import Clock
from voltmeter.check.files import findings_bytes, findings_from, load_findings, save_findings
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Findings, Picture, within
from voltmeter.check.registry import checks, chosen, register
from voltmeter.check.split import Split
from voltmeter.circuit import Circuit, Scores
from voltmeter.discover import Judge
from voltmeter.discover.discover import ask
from voltmeter.discover.question import Question
from voltmeter.errors import CheckError, CircuitError, FillError, FormatError, LoadError
from voltmeter.files import parse_object
from voltmeter.task.metric import metric_named
from voltmeter.task.task import Task
from voltmeter.wiring.wiring import Wiring


class Demo(NamedTuple):
    task: Task
    wiring: Wiring
    scores: Scores

    def question(self, metric: str = "logit-difference", fill: str = "resample") -> Question:
        return ask(self.wiring, replace(self.task, metric=metric_named(metric)), fill)


@pytest.fixture(scope="module")
def demo() -> Demo:
    model, task = vm.load("demo")
    assert task is not None
    small = replace(task, train=task.train.batch(range(32)), held_out=task.held_out.batch(range(70)))
    wiring = vm.wire(model, small.example)
    return Demo(small, wiring, vm.discover(wiring, small, method="eap"))


@pytest.fixture
def own() -> Iterator[Callable[..., None]]:
    """Registers checks of a test's own, and forgets them after it."""
    before = dict(registry._KNOWN)

    def add(name: str, run: Callable[[Case], Finding] | None = None) -> None:
        register(name, f"does {name} hold?")(run or (lambda case: finding(name)))

    yield add
    registry._KNOWN.clear()
    registry._KNOWN.update(before)


def finding(check: str = "sound", verdict: Any = HOLDS, **more: Any) -> Finding:
    given = {"figure": 0.9, "low": 0.8, "high": 1.0, "against": "the full model", "says": f"{check} is said"}
    return Finding(check, verdict, **{**given, **more})


# findings --------------------------------------------------------------------------------------------------------


def test_a_finding_is_plain_data() -> None:
    made = finding(
        figure=math.nan, low=-math.inf, high=2.0, details=({"edge": "a -> b", "f": (1, 2)},), seconds=0.12345
    )
    assert (made.figure, made.low, made.high) == (None, None, 2.0)
    assert made.as_dict() == {
        "check": "sound",
        "verdict": "holds",
        "figure": None,
        "low": None,
        "high": 2.0,
        "against": "the full model",
        "says": "sound is said",
        "details": [{"edge": "a -> b", "f": [1, 2]}],
        "counted": {},
        "seconds": 0.123,
    }
    assert str(made) == "sound: holds. sound is said"


def test_what_is_no_finding_is_refused() -> None:
    with pytest.raises((CheckError, TypeError), match="maybe"):  # the latter where annotations are checked
        finding(verdict="maybe")
    with pytest.raises(FormatError, match="details holds values that a file cannot keep"):
        finding(details=({"f": torch.ones(2)},))
    with pytest.raises(FormatError, match=r"data\.values\[1\] is nan"):
        Picture("bars", "a title", "x", "y", {"values": [1.0, math.nan]})


@pytest.mark.parametrize(
    ("low", "high", "at_least", "at_most", "verdict"),
    [
        (0.91, 0.95, 0.9, 1.1, HOLDS),
        (0.9 - 5e-6, 1.0, 0.9, None, HOLDS),  # rounding of float32 sums
        (0.9 - 5e-5, 1.0, 0.9, None, CANNOT_TELL),
        (0.5, 0.89, 0.9, None, FAILS),
        (1.2, 1.3, 0.9, 1.1, FAILS),
        (0.5, 1.3, 0.9, 1.1, CANNOT_TELL),
        (0.0, 0.1, None, 0.1, HOLDS),
        (0.2, 0.3, None, 0.1, FAILS),
        (math.nan, math.nan, 0.9, None, CANNOT_TELL),
        (-math.inf, math.inf, None, None, CANNOT_TELL),
    ],
)
def test_a_verdict_comes_from_an_interval(
    low: float, high: float, at_least: float | None, at_most: float | None, verdict: str
) -> None:
    assert within(low, high, at_least, at_most) == verdict


def test_findings_are_counted_and_found_by_name() -> None:
    three = Findings((finding("a"), finding("b", FAILS, says="b is bad."), finding("c", CANNOT_TELL)), {"seed": 1})
    assert str(three) == "3 findings: 1 holds, 1 fails (b: b is bad), 1 cannot tell (c: c is said)"
    assert three.counts == "3 findings: 1 holds, 1 fails (b), 1 cannot tell (c)"
    assert str(Findings((finding("a"),))) == "1 finding: 1 holds"
    assert Findings((finding("a", FAILS), finding("b", FAILS))).counts == "2 findings: 0 hold, 2 fail (a, b)"
    assert (three["b"].verdict, three[0].check, len(three[1:])) == ("fails", "a", 2)
    assert [each.check for each in three.of(HOLDS)] == ["a"]
    assert three.as_dict()["verdicts"] == {"holds": 1, "fails": 1, "cannot tell": 1}
    with pytest.raises(CheckError) as error:
        three["d"]
    assert str(error.value) == "no check 'd' was made\n  made: a, b, c"


def test_findings_come_back_as_they_were(tmp_path: Path) -> None:
    picture = Picture("lines", "a title", "n", "f", {"x": [1, 2], "lines": {"f": [0.1, None]}}, line=0.5)
    made = Findings((finding("a", picture=picture, details=({"row": 3},)), finding("b", seconds=1.25)), {"seed": 1})
    save_findings(tmp_path / "findings.json", made)
    assert load_findings(tmp_path / "findings.json") == made
    damaged = (tmp_path / "findings.json").read_bytes().replace(b"0.9", b"0.8", 1)
    with pytest.raises(FormatError, match=r"it is damaged: its digest is not that of its content"):
        findings_from(damaged, "it")
    with pytest.raises(FormatError, match="it is no findings file of voltmeter: it does not say its kind"):
        findings_from(b"{}", "it")
    with pytest.raises(LoadError, match="there is no file nowhere"):
        load_findings("nowhere")
    assert parse_object(findings_bytes(made), "it")["kind"] == "findings"


# clocks, cases, random numbers -----------------------------------------------------------------------------------


def test_a_clock_runs_out() -> None:
    forever = Clock()
    assert (forever.left, forever.over, forever.share(3)) == (math.inf, False, forever)
    short = Clock(0.02)
    assert 0 < short.share(2).left <= 0.01
    time.sleep(0.03)
    assert short.over
    assert short.left == 0
    assert short.share(2).over


def test_random_numbers_are_those_of_one_check() -> None:
    def drawn(seed: int, name: str) -> list[int]:
        return Random(seed, name).permutation(50)

    assert drawn(0, "stable") == drawn(0, "stable")
    others = [(1, "stable"), (0, "complete"), (0, "stables"), (0, "not-trivial"), (0, "not-over-optimised")]
    assert len({tuple(drawn(*each)) for each in [(0, "stable"), *others]}) == 6, "no two checks draw the same"
    assert sorted(Random(2**32 - 1, "x").choose(9, 4)) == sorted(set(Random(2**32 - 1, "x").choose(9, 4)))
    assert Random(0, "x").uniform(2, 3).shape == (2, 3)


def test_runs_that_several_checks_need_are_made_once(
    demo: Demo, own: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    set_up = Judge.__init__
    monkeypatch.setattr(Judge, "__init__", lambda self, *given: (made.append(self), set_up(self, *given))[1])
    for name in ("one", "two", "three"):
        own(name, lambda case, name=name: finding(name, figure=float(case.held_out.full.mean() + case.few.full.mean())))
    vm.check(demo.scores.circuit(edges=9), demo.task, only=["one", "two", "three"])
    assert len(made) == 2, "all held-out pairs, and a few"


def test_a_case_has_its_pairs(demo: Demo) -> None:
    case = Case(demo.scores.circuit(edges=5), demo.question())
    assert (len(case.held_out), len(case.train), len(case.few)) == (70, 32, FEW)
    assert len(set(case.few.pairs.rows)) == FEW
    assert set(case.few.pairs.rows) < set(demo.task.held_out.rows)
    assert case.few.pairs.rows == Case(case.circuit, case.question).few.pairs.rows
    assert case.few.pairs.rows != Case(case.circuit, case.question, seed=1).few.pairs.rows
    assert with_clock(case, Clock(1.0)).held_out is case.held_out
    assert [case.circuit.edges[n] for n in case.edges] == list(case.circuit.names)
    same = replace(demo.task, held_out=demo.task.train)
    again = Case(case.circuit, ask(demo.wiring, same))
    assert again.train is again.held_out


# a split, against the judge of one circuit -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split(demo: Demo) -> Split:
    """Twenty pairs in batches of twelve."""
    question = demo.question()
    return Split(Judge(question.wiring, question.task, question.task.held_out.batch(range(20)), question.fill, 12))


@pytest.mark.parametrize("together", [3, 9])  # nine are run at once, from the first reader at which they part
@pytest.mark.parametrize("metric", ["logit-difference", "kl"])
def test_many_circuits_are_measured_as_one_by_one(demo: Demo, metric: str, together: int) -> None:
    question = demo.question(metric, "resample" if metric == "kl" else "mean")
    judge = Judge(question.wiring, question.task, question.task.held_out.batch(range(20)), question.fill, 12)
    base = demo.scores.circuit(edges=40)
    tried = [base.without_edges([name]) for name in base.names[:together]]
    measured = Split(judge).measure(torch.stack([circuit.mask() for circuit in tried]), near=base.mask())
    for n, circuit in enumerate(tried):
        one = judge.measure(circuit)
        # float32 sums over the pairs in another order
        assert float(measured.f[n]) == pytest.approx(one.normalised, abs=2e-5)
        assert measured.interval(n) == pytest.approx(one.normalised_interval, abs=2e-5)
        assert bool(measured.faithful(0.5)[n]) == one.at(0.5)
        share = measured.kl_share
        assert (share is None) == (metric == "kl")
        if share is not None:
            assert float(share[n]) == pytest.approx(one.kl_share, abs=2e-5)
    assert Split(judge).full.tolist() == judge.full.tolist()
    assert Split(judge).nothing.tolist() == judge.none.tolist()


def test_a_split_reads_anything_of_the_answers_in_order(demo: Demo, split: Split) -> None:
    """Circuits and pairs are not mixed up, in batches or together."""
    keeps = torch.zeros(9, len(demo.wiring.edges))
    keeps[::2] = 1.0

    def rows(answers: Any, pairs: Any, full: Any) -> Tensor:
        return torch.stack([torch.tensor(pairs.rows).double(), (answers - full).abs().amax(1).double()], dim=1)

    told = split.read(keeps, rows)
    assert told.shape == (9, 20, 2)
    assert told[:, :, 0].tolist() == [list(map(float, split.pairs.rows))] * 9
    assert bool((told[::2, :, 1] < 1e-4).all()), "everything kept is the full model; float32"
    assert bool((told[1::2, :, 1] > 1e-2).all())


# the list of checks ----------------------------------------------------------------------------------------------


def test_checks_are_in_their_order_and_chosen_by_name(own: Callable[..., None]) -> None:
    own("zeal")
    names = [each.name for each in checks()]
    assert names[0] == "faithful"
    assert names[-1] == "zeal"
    assert [each.name for each in chosen(["zeal", "faithful"])] == ["faithful", "zeal"]
    assert [each.name for each in chosen("zeal")] == ["zeal"]
    with pytest.raises(CheckError) as error:
        chosen(["faithfull", "zeal", "zest"])
    lines = str(error.value).splitlines()
    assert lines[0] == "there are no such checks"
    assert lines[1].startswith("  'faithfull': nearest: faithful")
    assert lines[2].startswith("  'zest': nearest: ")
    assert lines[3].startswith("  checks: faithful, ")
    with pytest.raises(CheckError, match="nothing to check\n  no check was named"):
        chosen([])


def test_a_name_is_taken_once(own: Callable[..., None]) -> None:
    def mine(case: Case) -> Finding:
        return finding("mine")

    own("mine", mine)
    own("mine", mine)  # as a notebook does when a cell is run again
    with pytest.raises(CheckError, match="there is a check called 'faithful' already\n  it asks: does it do what"):
        own("faithful", mine)


# check -----------------------------------------------------------------------------------------------------------


def plain(findings: Findings) -> dict[str, Any]:
    """All but what differs from one time to the next."""
    told = findings.as_dict()
    for each in told["findings"]:
        del each["seconds"]
    return told


def test_check_tells_each_finding_and_under_what_conditions(demo: Demo, own: Callable[..., None]) -> None:
    own("bad", lambda case: finding("bad", FAILS))
    told: list[Finding] = []
    circuit = demo.scores.circuit(edges=257)
    findings = vm.check(circuit, demo.task, only=["bad", "faithful"], told=told.append)
    assert told == list(findings)
    assert [each.verdict for each in findings] == [HOLDS, FAILS]
    assert findings["faithful"].figure == pytest.approx(1, abs=1e-6)  # everything is kept; float32
    conditions = findings.conditions
    named = {k: conditions[k] for k in ("model", "task", "fill", "metric", "method", "n_edges", "threshold", "budget")}
    assert named == {
        "model": "HookedModel",
        "task": "induction-demo",
        "fill": "resample",
        "metric": "logit-difference",
        "method": "eap",
        "n_edges": 257,
        "threshold": 0.9,
        "budget": None,
    }
    assert conditions["circuit"]["rule"] == "top"
    assert conditions["digests"]["circuit"] == circuit_digest(circuit)
    assert conditions["digests"]["task"] == demo.task.digest


def test_the_same_is_found_each_time_and_the_model_is_left_as_it_was(demo: Demo) -> None:
    circuit = demo.scores.circuit(edges=40)
    model = demo.wiring.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = vm.check(circuit, demo.task, only="faithful")
    assert plain(first) == plain(vm.check(circuit, demo.task, only="faithful"))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_budget_is_honoured_and_what_was_left_out_is_said(demo: Demo, own: Callable[..., None]) -> None:
    shares: list[float] = []

    def slow(case: Case) -> Finding:
        shares.append(case.clock.left)
        while not case.clock.over:
            time.sleep(0.01)
        return finding("slow", counted={"left_out": "some circuits"})

    own("slow", slow)
    for name in ("later", "last"):
        own(name, lambda case, name=name: (time.sleep(0.3), finding(name))[1])
    findings = vm.check(demo.scores.circuit(edges=9), demo.task, only=["slow", "later", "last"], budget=0.2)
    assert [each.verdict for each in findings] == [HOLDS, HOLDS, CANNOT_TELL]
    assert 0 < shares[0] <= 0.1, "half of what three checks have: twice an even share, rounded"
    assert findings["last"].says == "not looked at: the budget of 0.2 s was used up"
    assert findings["last"].counted == {"left_out": "all of it"}
    assert findings["last"].figure is None
    assert findings.conditions["budget"] == 0.2


def test_without_a_budget_there_is_no_deadline(demo: Demo, own: Callable[..., None]) -> None:
    own("timeless", lambda case: finding("timeless", figure=float(math.isinf(case.clock.left))))
    assert vm.check(demo.scores.circuit(edges=9), demo.task, only="timeless")["timeless"].figure == 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"threshold": 1.5}, "faithful at 1.5 was asked for, a number between 0 and 1 was expected"),
        ({"threshold": math.nan}, "faithful at nan was asked for, a number between 0 and 1 was expected"),
        ({"budget": 0.0}, "a budget of 0 s was given, a number above 0 was expected"),
        ({"budget": math.nan}, "a budget of nan s was given, a number above 0 was expected"),
    ],
)
def test_what_nothing_can_be_held_against_is_refused(demo: Demo, given: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckError) as error:
        vm.check(demo.scores.circuit(edges=5), demo.task, **given)
    assert str(error.value) == says


def test_a_circuit_that_does_not_know_its_question_is_refused(demo: Demo) -> None:
    circuit = Circuit.from_edges(demo.wiring, ["a0.h0 -> logits"])
    with pytest.raises(CircuitError) as error:
        vm.check(circuit)
    assert str(error.value) == (
        "the circuit does not know its wiring and task\n"
        "  it was read from a file, or put together by hand\n"
        "  check(circuit, task, wiring=wiring)"
    )
    with pytest.raises(CircuitError, match="the circuit does not know its wiring\n"):
        vm.check(circuit, demo.task)
    assert vm.check(circuit, demo.task, wiring=demo.wiring, only="faithful")["faithful"].verdict == FAILS


def test_a_circuit_of_another_wiring_is_refused(demo: Demo) -> None:
    circuit = Circuit.from_edges(["a -> b", "a -> c"], ["a -> b"])
    with pytest.raises(CircuitError, match="the circuit is of another wiring\n  it has 2 edges to choose from, the"):
        vm.check(circuit, demo.task, wiring=demo.wiring)


def test_a_fill_of_ones_own_is_not_guessed(demo: Demo) -> None:
    """Scores read from a file name the fill; its values are not at hand."""
    scores = replace(demo.scores, conditions=replace(demo.scores.conditions, fill="optimal"), faithful=None)
    circuit = scores.top(9)
    with pytest.raises(FillError) as error:
        vm.check(circuit, demo.task, wiring=demo.wiring)
    assert str(error.value) == (
        "the circuit was found under a fill of its own, 'optimal'\n  give it: check(..., fill=...)"
    )
    found = vm.check(circuit, demo.task, wiring=demo.wiring, fill="mean", only="faithful")
    assert found.conditions["fill"] == "mean"
    assert vm.check(replace(circuit, scores=None), demo.task, wiring=demo.wiring, only="faithful").conditions[
        "fill"
    ] == ("resample")


def test_a_check_answers_with_its_own_finding(demo: Demo, own: Callable[..., None]) -> None:
    own("mistaken", lambda case: finding("other"))
    with pytest.raises(CheckError) as error:
        vm.check(demo.scores.circuit(edges=5), demo.task, only="mistaken")
    assert str(error.value) == ("the check mistaken answered with a finding of 'other', its own Finding was expected")


@pytest.mark.parametrize("n", [0, 257])
def test_empty_and_full_circuits_are_found_out(demo: Demo, n: int) -> None:
    found = vm.check(demo.scores.circuit(edges=n), demo.task, only="faithful")["faithful"]
    assert found.verdict == (HOLDS if n else FAILS)
    assert found.figure == pytest.approx(1.0 if n else 0.0, abs=1e-6)  # float32


def test_pairs_of_one_group_tell_nothing_of_others(demo: Demo) -> None:
    """An interval over one group would have no width, and look certain."""
    alone = replace(demo.task.held_out.batch(range(6)), groups=("one",) * 6)
    found = vm.check(demo.scores.circuit(edges=257), replace(demo.task, held_out=alone), only="faithful")["faithful"]
    assert found.verdict == CANNOT_TELL
    assert found.says.endswith("; its pairs are of one group, which says nothing of others")
