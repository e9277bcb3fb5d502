"""``bench/checked.py``: what the retargeting of a Go network rewards, which moments of an episode are asked of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, script
from torch import Tensor, nn

from voltmeter.task import Pairs

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "bench")  # where the scripts find what they are made of
    checked, go = script("bench/checked.py"), script("bench/checked_go.py")

SIDE = 7


def board() -> Tensor:
    """A 5 x 5 board in a 7 x 7 tensor."""
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, :5, :5] = True
    return mask


def log_prior(rare: tuple[int, int], illegal: tuple[int, int]) -> Tensor:
    """Every point alike but for one that is disliked and one that is held for illegal."""
    logits = torch.zeros(1, SIDE, SIDE)
    logits[0][rare], logits[0][illegal] = -6, -40
    flat = logits.flatten(1).masked_fill(~board().flatten(1), -50)
    return torch.cat([flat, torch.zeros(1, 1)], 1).log_softmax(1)


def sure_of(row: int, column: int) -> Tensor:
    logits = torch.full((1, SIDE * SIDE + 1), -30.0)
    logits[0, row * SIDE + column] = 30
    return logits


def surprise(logits: Tensor, prior: Tensor, line: int = 1) -> float:
    mask = {"mask": board()}
    pairs = Pairs.of({**mask, "x": torch.zeros(1)}, {**mask, "x": torch.ones(1)})
    return float(go.least_liked(line)((logits,), pairs, full=(prior,)))


def test_the_move_liked_least_is_worth_most() -> None:
    prior = log_prior(rare=(2, 2), illegal=(1, 1))
    rare, usual = surprise(sure_of(2, 2), prior), surprise(sure_of(3, 3), prior)
    assert rare == pytest.approx(-float(prior[0, 2 * SIDE + 2]), abs=1e-4)  # float32
    assert rare == pytest.approx(usual + 6, abs=1e-4)


@pytest.mark.parametrize("where", [(1, 1), (6, 6), (SIDE, 0)], ids=["illegal", "off the board", "pass"])
def test_what_is_not_allowed_is_worth_nothing(where: tuple[int, int]) -> None:
    """All of the mass is there, so that next to none (e^-60) is allowed, and that is the price."""
    assert surprise(sure_of(*where), log_prior(rare=(2, 2), illegal=(1, 1))) < -30


def test_lines_from_the_border() -> None:
    prior = log_prior(rare=(0, 0), illegal=(2, 3))
    anywhere, second, third = (go.allowed(prior, board(), line)[0, :-1].view(SIDE, SIDE) for line in (1, 2, 3))
    assert int(anywhere.sum()) == 24  # of 25, without the illegal one
    assert second.nonzero().tolist() == [[r, c] for r in (1, 2, 3) for c in (1, 2, 3) if (r, c) != (2, 3)]
    assert third.nonzero().tolist() == [[2, 2]]
    assert surprise(sure_of(0, 0), prior) > 0 > surprise(sure_of(0, 0), prior, line=3)


def test_what_a_move_at_random_is_worth() -> None:
    prior = log_prior(rare=(2, 2), illegal=(1, 1))
    ok = go.allowed(prior, board())
    told = {name: float(value[0]) for name, value in go.moves(prior, sure_of(2, 2).log_softmax(1), ok).items()}
    rare, usual = (-float(prior[0, row * SIDE + column]) for row, column in ((2, 2), (3, 3)))
    assert told["random"] == pytest.approx((rare + 23 * usual) / 24, abs=1e-4)  # float32
    assert told["most"] == told["chosen"] == pytest.approx(rare, abs=1e-4)
    assert told["spread"] == pytest.approx(0, abs=1e-4)
    assert told["share"] == pytest.approx(1, abs=1e-4)
    even = go.moves(prior, torch.zeros_like(prior).log_softmax(1), ok)
    assert float(even["spread"]) == pytest.approx(float(even["even"]), abs=1e-4)


def test_the_metric_has_a_gradient_and_it_is_finite() -> None:
    logits = sure_of(2, 2).requires_grad_()
    mask = {"mask": board()}
    pairs = Pairs.of({**mask, "x": torch.zeros(1)}, {**mask, "x": torch.ones(1)})
    go.least_liked(3)((logits,), pairs, full=(log_prior((2, 2), (1, 1)),)).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_the_best_size_is_the_smallest_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = {1: 2.0, 2: 5.0, 3: 4.995, 4: 4.0}

    class Judge:
        def __init__(self, *given: object) -> None: ...

        def measure(self, size: int) -> SimpleNamespace:
            return SimpleNamespace(circuit=worth[size])

    monkeypatch.setattr(go, "Judge", Judge)
    scores, task = SimpleNamespace(top=lambda size: size), SimpleNamespace(train=None)
    assert go.most_surprising(None, task, scores, [1, 2, 3, 4]) == 2
    worth[1] = 4.999
    assert go.most_surprising(None, task, scores, [1, 2, 3, 4]) == 1


class Agent(nn.Module):
    """Goes where it is told if success is asked for, straight on if not; and straight on wherever it is told to."""

    def forward(self, returns: Tensor, states: Tensor) -> Tensor:
        told = torch.where(returns[:, -1] > 0.5, states[:, -1, 0].long(), 2)
        return nn.functional.one_hot(told, 3).float()[:, None].expand(-1, 2, -1)


def test_only_moments_that_the_return_decides_are_asked_about() -> None:
    states = torch.tensor([0.0, 2.0, 1.0, 0.0]).view(4, 1, 1).expand(4, 2, 1).contiguous()
    returns = torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None].expand(4, 2).contiguous()
    pairs = checked.fork(Agent(), {"returns": returns, "states": states})
    assert pairs.answers[:, 0].tolist() == [0, 1, 2]
    assert pairs.wrong[:, 0].tolist() == [2, 2, 0]
    assert pairs.groups == ("room 0", "room 1", "room 0")
    assert torch.equal(pairs.clean["states"], pairs.corrupted["states"])
    assert torch.equal(pairs.clean["returns"], 1 - pairs.corrupted["returns"])
    assert pairs.position.tolist() == [1, 1, 1]
