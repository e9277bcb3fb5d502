"""``positions``: edges that merging positions hides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import PLANTED, claims, position_cancellation, positions_apart, sound

from voltmeter.check import positions as looked_at
from voltmeter.check.positions import _by_position, hidden, positions
from voltmeter.discover import method_named
from voltmeter.discover.discover import ask
from voltmeter.discover.method import run_method
from voltmeter.task import metric_of
from voltmeter.task.metric import ACCURACY, KL


@pytest.mark.parametrize(("name", "verdict"), claims("positions"))
def test_it_says_what_is_planted(name: str, verdict: str) -> None:
    found = positions(PLANTED[name]().case())
    assert found.verdict == verdict, found.says


def test_hidden_edges_are_named_with_their_positions() -> None:
    found = positions(position_cancellation().case())
    assert found.figure == pytest.approx(2 / 3)
    assert found.says.startswith(
        "2 of the 3 edges that do most at single positions are hidden when positions are merged"
    )
    rows = {row["edge"]: row for row in found.details}
    assert set(list(rows)[:2]) == {"input -> first", "first -> mix"}
    first = rows["first -> mix"]
    assert (first["hidden"], first["cancelled"], first["highest_at"], first["lowest_at"]) == (True, 1.0, 0, 1)
    assert found.picture is not None
    assert len(found.picture.data["values"][0]) == 3


def test_scores_by_position_add_up_to_eap() -> None:
    planted = positions_apart()
    case = planted.case()
    merged = _by_position(case, case.few.pairs).double().sum(1).mean(0)
    task = replace(planted.task, train=planted.task.held_out, held_out=planted.task.held_out)
    scores = run_method(method_named("eap"), ask(planted.wiring, task, "resample"))
    # float32 keeps
    assert torch.allclose(merged, torch.as_tensor(scores).double(), atol=1e-5)


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        (KL, "takes the gradient at the full model, where kl is at its best"),
        (ACCURACY, "accuracy"),
    ],
)
def test_metrics_without_a_gradient_cannot_tell(metric: object, why: str) -> None:
    planted = position_cancellation()
    found = positions(replace(planted, task=replace(planted.task, metric=metric)).case())
    assert found.verdict == "cannot tell"
    assert why in found.says


def test_a_model_without_positions_cannot_tell() -> None:
    found = positions(sound().case())
    assert found.says == "there is nothing to compare: the model has no positions"


def test_metrics_of_ones_own_are_followed() -> None:
    planted = position_cancellation()

    def right(outputs: torch.Tensor, pairs: object) -> torch.Tensor:
        return outputs[:, 2, 0] * (1 - 2 * pairs.answers[:, 0])  # type: ignore[attr-defined]

    task = replace(planted.task, metric=metric_of("own", right))
    assert positions(replace(planted, task=task).case()).verdict == "fails"


def test_empty_and_full_circuits() -> None:
    planted = position_cancellation()
    assert positions(planted.but().case()).verdict == "cannot tell"
    found = positions(planted.but(*planted.wiring.edges.names).case())
    assert (found.verdict, found.figure) == ("holds", 0)


def test_what_is_hidden() -> None:
    """Of the two best by position: the first is kept by merging, the second is not, and cancels."""
    apart = torch.tensor([[4.0, 3.0, 1.0, 0.5]], dtype=torch.float64)
    merged = torch.tensor([[4.0, 0.1, 1.0, 0.5]], dtype=torch.float64)
    assert hidden(apart, merged, 2).tolist() == [[False, True, False, False]]
    assert hidden(apart, merged, 3).tolist() == [[False, True, False, False]]
    assert not bool(hidden(apart, merged, 4).any()), "it is in either list"
    nothing = merged * torch.tensor([1.0, 0, 1, 1])
    assert not bool(hidden(apart, nothing, 4).any()), "all edges are in either list"
    least = apart * torch.tensor([1.0, 1, 1e-9, 1e-9])
    none = merged * torch.tensor([1.0, 0, 1e-9, 1e-9])
    assert hidden(least, none, 2).tolist() == [[False, True, False, False]], "not by the order among those of nothing"
    half = torch.tensor([[4.0, 1.6, 3.0, 0.5]], dtype=torch.float64)
    assert not bool(hidden(apart, half, 2).any()), "it is out of the list, but little of it cancels"
    equal, told = torch.tensor([[2.0, 1.0, 1.0 + 1e-12, 0.5]]).double(), torch.tensor([[2.0, 1.0, 0.0, 0.5]]).double()
    assert not bool(hidden(equal, told, 2).any()), "of two that do as much, the one that does not cancel is the best"


def test_of_many_edges_fewer_pairs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = position_cancellation()
    monkeypatch.setattr(looked_at, "_HELD", 10 * 3 * len(planted.wiring.edges))
    found = looked_at.positions(planted.case())
    assert (found.verdict, found.counted["pairs"]) == ("fails", 10)
