"""Every edge cut alone, and ACDC: fast forms give what the slow and obvious ones give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import voltmeter as vm
from voltmeter.discover import ask, trials
from voltmeter.discover.acdc import Acdc, _Guess
from voltmeter.discover.exact import Exact
from voltmeter.discover.method import State, final_state
from voltmeter.discover.trials import Trials
from voltmeter.errors import MetricError, VoltmeterError
from voltmeter.task import Task
from voltmeter.task.metric import KL, LOGIT_DIFFERENCE, metric_of


@pytest.fixture(scope="module")
def few() -> tuple[vm.wiring.Wiring, Task]:
    model, task = vm.load("demo")
    assert task is not None
    return vm.wire(model, task.example), Task("few", task.train.batch(range(8)), task.held_out.batch(range(8)))


def searched(few: Any, **settings: Any) -> State:
    method = Acdc(**{"thresholds": (0.03,), "n_pairs": 8, **settings})
    return final_state(method, ask(*few, batch_size=8))


@pytest.mark.parametrize("fill", ["resample", "zero"])
def test_exact_is_what_each_cut_costs(few: Any, fill: str) -> None:
    wiring, task = few
    scores = vm.discover(wiring, task, Exact(circuits=40), fill)
    pairs, values = task.train, ask(wiring, task, fill).fill
    with torch.no_grad():
        full = LOGIT_DIFFERENCE(wiring.model(pairs.clean), pairs).mean()
    for edge in range(0, len(wiring.edges), 9):
        keep = torch.ones(len(wiring.edges))
        keep[edge] = 0
        cut = LOGIT_DIFFERENCE(vm.run(wiring, pairs.clean, keep, values, pairs.corrupted), pairs).mean()
        # float32, logits of size 10
        assert abs(float(scores.values[edge]) - float(full - cut)) < 1e-5


def test_fast_acdc_decides_as_sequential_acdc(few: Any) -> None:
    for order in ("last-first", "random"):
        fast, slow = (searched(few, fast=quick, order=order) for quick in (True, False))
        assert torch.equal(fast["keep"], slow["keep"])
        assert 0 < int(fast["keep"].sum()) < 60
        assert int(fast["tried"][0]) == int(slow["tried"][0])  # no edge is tried whose reader leads nowhere by then


def test_wrong_guesses_cost_runs_and_change_nothing(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = searched(few)
    monkeypatch.setattr(_Guess, "cut", lambda self, edges: [edge % 3 > 0 for edge in edges])
    wrong = searched(few)
    assert torch.equal(right["keep"], wrong["keep"])
    assert int(wrong["tried"][1]) > int(right["tried"][1])


def test_every_decision_is_the_published_one(few: Any) -> None:
    """From the outputs backwards, an edge goes when the circuit as it stands loses less than the threshold by it."""
    wiring, task = few
    found = searched(few, objective="metric", thresholds=(0.5,), absolute=True)
    pairs, fill = task.train, vm.fill.resample()

    def loss(keep: torch.Tensor) -> float:
        return -float(LOGIT_DIFFERENCE(vm.run(wiring, pairs.clean, keep, fill, pairs.corrupted), pairs).mean())

    keep = torch.ones(len(wiring.edges))
    now = loss(keep)
    for edge in found["order"].tolist():
        without = keep.clone()
        without[edge] = 0
        then = loss(without)
        if then - now < 0.5:
            keep, now = without, then
    assert torch.equal(keep, found["keep"][0])
    readers = wiring.edges.reader_numbers[found["order"]]
    assert bool((readers.diff() <= 0).all())


def test_a_score_is_the_largest_threshold_that_keeps_the_edge(few: Any) -> None:
    levels = (0.01, 0.1)
    method, question = Acdc(thresholds=levels, n_pairs=8), ask(*few, batch_size=8)
    state = final_state(method, question)
    for edge, score in enumerate(method.values(question, state).tolist()):
        kept = [level for level, keep in zip(levels, state["keep"][:, edge].tolist(), strict=True) if keep]
        assert score == max(kept, default=0)
    assert set(method.values(question, state).tolist()) == {0, *levels}


def test_a_share_of_no_loss_is_no_threshold(few: Any) -> None:
    """Where keeping nothing loses nothing, a share of that is below what it costs to cut an edge that does nothing."""
    wiring, task = few
    worse = metric_of("how wrong", lambda outputs, pairs: -LOGIT_DIFFERENCE(outputs, pairs))
    with pytest.raises(MetricError) as told:
        searched((wiring, replace(task, metric=worse)), objective="metric")
    told.match(r"keeping no edge loses nothing, so a share of that loss is no threshold\n  loss \(metric\) of the full")
    told.match("give absolute=True with thresholds in units of the loss, another metric, or other corrupted inputs")


def test_batches_past_the_room_there_is_run_whole_and_decide_alike(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three batches one is held ready, and would be of three hundred."""
    method = Acdc(thresholds=[0.3], n_pairs=0)
    questions = [ask(*few, batch_size=3) for _ in range(2)]
    ample = final_state(method, questions[0])
    monkeypatch.setattr(trials, "_ROOM", 1)
    scant = final_state(method, questions[1])
    assert [len(question.ready) for question in questions] == [3, 1]
    assert torch.equal(ample["keep"], scant["keep"])
    assert 0 < int(scant["keep"].sum()) < 60
    # float32, differences of losses up to 12
    assert torch.allclose(ample["cost"], scant["cost"], atol=2e-5, equal_nan=True)


def test_the_larger_the_batch_the_fewer_circuits_in_a_run(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in a run stay the same; and there is room for them."""
    wiring, task = few

    def circuits(size: int) -> int:
        return Trials(wiring, ask(wiring, task, batch_size=size).batch(0), LOGIT_DIFFERENCE)._prefix.circuits

    monkeypatch.setattr(trials, "_ROWS", 24)
    assert [circuits(size) for size in (4, 8)] == [6, 3]
    assert circuits(4) * 4 == circuits(8) * 8 == 24
    written = 17 * 4 * 32 * 64 * 4  # writers, pairs, positions, entries, bytes
    monkeypatch.setattr(trials, "_ROOM", 2 * written)
    assert [circuits(size) for size in (4, 8)] == [2, 1]


def test_one_by_one_nothing_is_rehearsed(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal holds what a whole batch of circuits computes: the sequential form has no use for it."""

    def refuse(*args: Any) -> None:
        raise AssertionError("rehearsed")

    monkeypatch.setattr(trials, "Prefix", refuse)
    question = ask(*few, batch_size=8)
    tried = trials.trials_on(question, KL, 0, 1)
    assert float(tried.alone(torch.ones(question.n_edges)).abs().max()) < 1e-6  # float32: KL to itself
    with pytest.raises(AssertionError, match="rehearsed"):
        tried.values(torch.ones(1, question.n_edges))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(VoltmeterError) as told:
        Acdc(thresholds=(), order="sideways", circuits=0)
    text = str(told.value)
    assert "acdc cannot work with these settings" in text
    assert Acdc(thresholds=[0.1, 0.3]) == Acdc(thresholds=(0.1, 0.3))
    for line in ("thresholds is (), numbers above 0 was expected", "order is sideways", "circuits is 0"):
        assert line in text
    with pytest.raises(VoltmeterError, match="circuits is -1"):
        Exact(circuits=-1)
