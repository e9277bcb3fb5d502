"""``minimal``: single edges that can be cut for free, and edges that undo each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from planted import (
    COPY,
    PLANTED,
    THROUGH,
    cancellation,
    claims,
    or_pair,
    plant,
    sound,
    spare_edge,
    straight,
    two_steps,
    veto,
)  # fmt: skip

from voltmeter.check import cuts, minimality
from voltmeter.check.clock import Clock
from voltmeter.check.minimality import minimal, rests
from voltmeter.task import Pairs, Task, metric_of


@pytest.mark.parametrize(("name", "verdict"), claims("minimal"))
def test_it_says_what_is_planted(name: str, verdict: str) -> None:
    found = minimal(PLANTED[name]().case())
    assert found.verdict == verdict, found.says


def rows(found: Any, **wanted: Any) -> list[str]:
    """The edges of the rows that have these values."""
    return [row["edges"] for row in found.details if all(row[name] == value for name, value in wanted.items())]


def test_a_spare_edge_is_named() -> None:
    found = minimal(spare_edge().case())
    assert (found.figure, found.low, found.high) == pytest.approx((1 / 3,) * 3)
    assert found.says == "1 of 3 edges can be cut for free: decoy0 -> first"
    assert rows(found, **{"is": "free"}) == ["decoy0 -> first"]
    assert found.details[0]["change"] == 0


def test_a_sound_circuit_names_the_edge_that_does_least() -> None:
    found = minimal(two_steps().case())
    assert (found.figure, found.low, found.high) == (0, 0, 0)
    assert found.says.startswith("none of 5 edges can be cut for free: the one that does least, '")
    assert "and 1.00% was asked for" in found.says
    assert found.picture is not None
    assert found.picture.line == 0.01


def test_edges_that_cancel_are_cut_together() -> None:
    """Each of the four destroys the answer alone; a pair, one of 'second' and one of 'third', can go."""
    found = minimal(cancellation().case())
    pairs = {"second -> logits, third -> logits", "input -> second, input -> third"}
    assert pairs <= set(rows(found, **{"is": "free"}))
    assert found.figure == pytest.approx(4 / 6)
    assert "can be cut together, though not one by one" in found.says
    singles = [row for row in found.details if ", " not in row["edges"]]
    assert all(row["is"] == "needed" for row in singles), singles


def test_cancellation_is_not_seen_by_single_cuts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimality, "UNDOES", 0.0)
    monkeypatch.setattr(minimality.Tried, "_components", lambda self: iter(()))
    assert minimal(cancellation().case()).verdict == "holds"


def test_a_veto_goes_with_what_it_vetoes() -> None:
    """Cut alone, f is three times what it was; all of the component's edges cut, nothing changes."""
    found = minimal(veto().case())
    alone = next(row for row in found.details if row["edges"] == "first -> second")
    assert (alone["is"], alone["f"]) == ("needed", pytest.approx(2, abs=1e-4))
    assert "input -> second, first -> second, second -> logits" in rows(found, **{"is": "free"})


def test_two_ways_to_the_same_are_each_free_but_not_both() -> None:
    planted = or_pair()
    both = planted.but(*planted.kept, "input -> second", "second -> third")
    found = minimal(both.case())
    assert found.verdict == "fails"
    assert "4 of 5 edges can be cut for free, each by itself" in found.says
    assert "(all 4 that look so, cut at once, change 100.0% of the effect)" in found.says


def test_what_is_free_depends_on_the_size() -> None:
    """An even share of what a faithful circuit may lose: 0.1 over 28 edges; never more than a hundredth."""
    planted = sound()
    whole = planted.but(*planted.wiring.edges.names).case()
    assert minimality.least(whole) == pytest.approx(0.1 / len(whole.keep))
    assert minimality.least(planted.case()) == 0.01


def test_an_empty_circuit_and_one_group_cannot_tell() -> None:
    planted = sound()
    assert minimal(planted.but().case()).says == "the circuit is empty: there is nothing to cut"
    held_out = replace(planted.task.held_out, groups=("one",) * len(planted.task.held_out))
    found = minimal(replace(planted, task=replace(planted.task, held_out=held_out)).case())
    assert found.verdict == "cannot tell"
    assert "of one group" in found.says


def test_all_edges_can_be_cut_but_for_two() -> None:
    planted = sound()
    found = minimal(planted.but(*planted.wiring.edges.names).case())
    n = len(planted.wiring.edges)
    assert found.figure == pytest.approx((n - 2) / n)
    assert f"{n - 2} of {n} edges can be cut for free, each by itself: input -> decoy0, " in found.says
    assert f" and {n - 6} more" in found.says


def test_what_pairs_leave_open_cannot_tell() -> None:
    """'second' adds noise, of which cutting it takes about as much away from each pair as is free."""
    parts = {"first": COPY, "second": straight({"n": 1}, {"y": 0.048})}
    planted = plant("noisy", parts, (*THROUGH, "input -> second", "second -> logits"), "not enough pairs")

    def right(outputs: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        return outputs[:, 0] * pairs.clean[:, 0].sign()

    splits = (planted.task.train, planted.task.held_out)
    unanswered = (Pairs.of(pairs.clean, pairs.corrupted, groups=pairs.groups) for pairs in splits)
    own = replace(planted, task=Task("own", *unanswered, metric_of("own", right)))
    found = minimal(own.case())
    assert found.verdict == "cannot tell"
    assert found.says == (
        "2 of 4 edges may be free: input -> second, second -> logits; on 40 pairs a change of 1.00% of the effect "
        "cannot be told from none there, more pairs could"
    )
    assert "each_pair" in found.details[0], "no answers, no logits, no KL: how far each pair moved"


def test_a_large_circuit_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimality, "N_EDGES", 3)
    planted = sound()
    found = minimal(planted.but(*planted.wiring.edges.names).case())
    assert found.counted["edges"] == 3
    assert "of 3 edges" in found.says


def test_a_budget_that_is_used_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "_PIECE", 4)
    found = minimal(cancellation().case(clock=Clock(1e-9)))
    assert found.counted["edges"] == 4
    assert found.counted["left_out"]


def test_what_undoes_what() -> None:
    """Exactly opposite: nothing is left. The same: twice as much. Half of it: half."""
    moved = torch.tensor([[1.0, -2, 0], [-1, 2, 0], [1, -2, 0], [-0.5, 1, 0]], dtype=torch.float64)
    found = rests(moved)
    assert found[0].tolist() == pytest.approx([2, 0, 2, 0.5])
    assert torch.equal(found, found.T)
