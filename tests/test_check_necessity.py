"""``necessary`` and ``complete``: what the rest of the model does without the circuit, and with more cut from both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import PLANTED, Sum, backup, claims, or_pair, sound, wrong_circuit
from torch import Tensor

import voltmeter as vm
from voltmeter.check import necessity
from voltmeter.check.clock import Clock
from voltmeter.check.cuts import Differences, measure_while
from voltmeter.check.necessity import Knocked, complete, necessary
from voltmeter.circuit import Circuit
from voltmeter.errors import KeepError
from voltmeter.task import Pairs, Task


@pytest.mark.parametrize(("name", "verdict"), claims("necessary"))
def test_necessary_says_what_is_planted(name: str, verdict: str) -> None:
    found = necessary(PLANTED[name]().case())
    assert found.verdict == verdict, found.says


@pytest.mark.parametrize(("name", "verdict"), claims("complete"))
def test_complete_says_what_is_planted(name: str, verdict: str) -> None:
    found = complete(PLANTED[name]().case())
    assert found.verdict == verdict, found.says


def test_what_is_necessary_is_told_beside_random_cuts() -> None:
    found = necessary(sound().case())
    assert found.figure == pytest.approx(0, abs=1e-6)  # float32 keeps
    assert found.says.startswith("with the circuit alone cut, the full model keeps 0% of the logit-difference (")
    assert found.against == "21 random sets of 2 edges cut instead: half leave 100% or more"
    assert len(found.details) == 21
    assert found.counted == {"pairs": 40, "groups": 10, "circuits": 23}
    assert found.picture is not None
    assert found.picture.data["names"][0] == "the circuit"


def test_needing_all_edges_says_nothing() -> None:
    """As many random edges are all edges too."""
    planted = sound()
    found = necessary(planted.but(*planted.wiring.edges.names).case())
    assert found.verdict == "cannot tell"
    assert "cutting 15 edges at random leaves no more (0%, in the middle)" in found.says


def test_an_empty_circuit_is_not_needed_and_not_complete() -> None:
    case = sound().but().case()
    assert (necessary(case).verdict, complete(case).verdict) == ("fails", "fails")
    assert "the circuit is empty, nothing was cut" in necessary(case).says
    assert complete(case).figure == pytest.approx(1)
    assert complete(case).says.startswith("with nothing else cut, the circuit keeps 0% of the logit-difference")


def test_all_edges_are_complete() -> None:
    planted = or_pair()
    found = complete(planted.but(*planted.wiring.edges.names).case())
    assert (found.verdict, found.figure) == ("holds", pytest.approx(0, abs=1e-6))


def test_one_group_cannot_tell() -> None:
    """However many pairs: nothing says how much groups differ."""
    planted = wrong_circuit()
    pairs = replace(planted.task.held_out, groups=("one",) * len(planted.task.held_out))
    case = replace(planted, task=replace(planted.task, held_out=pairs)).case()
    for found in (necessary(case), complete(case)):
        assert found.verdict == "cannot tell"
        assert "of one group" in found.says


def test_a_metric_that_is_no_better_on_average_cannot_tell() -> None:
    """Pairs that the full model is right about, and as many that it is as wrong about."""
    planted = sound()
    half, other = planted.task.held_out.batch(range(20)), planted.task.held_out.batch(range(20))
    pairs = Pairs.of(
        torch.cat([half.clean, other.clean]),
        torch.cat([half.corrupted, other.corrupted]),
        torch.cat([half.answers, other.wrong]),
        torch.cat([half.wrong, other.answers]),
        groups=half.groups * 2,
    )
    case = replace(planted, task=Task("none", planted.task.train, pairs)).case()
    for found in (necessary(case), complete(case)):
        assert found.verdict == "cannot tell"
        assert found.says.startswith("on average the full model does as well as with nothing kept")


def test_a_knocked_out_writer_shows_its_backup() -> None:
    """Cut from the full model with all its edges, 'first' is made up for; cut in the circuit's edges only, it is not.

    Only where what 'second' reads of it is cut too does it step in.
    """
    case = backup().case()
    first = next(writer.number for writer in case.wiring.writers if writer.name == "first")
    knocked = [Knocked((first,), whole) for whole in (True, False)]
    apart = Differences(*necessity._both(case, case.few, *knocked)).f.abs().tolist()
    assert apart == pytest.approx([1, 0], abs=1e-5)  # float32 keeps
    found = complete(case)
    assert "and the full model 100%" in found.says
    assert found.details[0]["apart"] == pytest.approx(1, abs=1e-3)


def test_the_worst_set_is_searched_for() -> None:
    """It takes both of two writers cut: neither is worth anything by itself, and no half may hold both."""
    search = necessity.Search(or_pair().case())
    worst = search.worst()
    assert search.tried[worst] == max(search.tried.values())
    singles = {knocked.writers for knocked in search.tried if len(knocked.writers) == 1}
    assert len(singles) == len(search.writers) == 3
    assert Knocked((), False) in search.tried


def test_a_budget_that_is_used_up_is_told() -> None:
    over = Clock(1e-9)
    found = complete(or_pair().case(clock=over))
    assert found.counted["left_out"] == "the search for the worst set: the time was used up"
    assert found.counted["sets"] < 26
    case = or_pair().case(clock=over)
    keep = torch.ones(200, len(case.keep))
    assert len(measure_while(over, case.few, keep).values) == 4
    assert len(measure_while(over, case.few, keep, case.keep).values) == 64
    assert len(measure_while(Clock(), case.few, keep).values) == 200


def test_the_same_is_found_each_time() -> None:
    for check in (necessary, complete):
        first, again = (check(or_pair().case(seed=3)) for _ in range(2))
        assert first == again


def test_differences_of_pairs_do_not_cancel_without_logits() -> None:
    """Half of the pairs up, half down by as much: f stays as it was, and the other figure does not."""
    case = sound().case()
    measured = case.few.measure(torch.stack([case.keep, torch.ones_like(case.keep)]))
    whole = case.few.full - case.few.nothing
    signs = torch.where(torch.arange(len(whole)) % 2 == 0, 1.0, -1.0).double()
    moved = replace(measured, values=case.few.full[None] + 0.5 * (signs * whole.mean())[None], kl=None)
    still = replace(measured, values=case.few.full[None], kl=None)
    found = Differences(moved, still)
    assert (float(found.f[0]), float(found.other[0])) == pytest.approx((0, 0.5), abs=1e-9)
    low, high = found.interval()
    assert low == pytest.approx(0.5, abs=0.1)
    assert high == pytest.approx(0.5, abs=0.1)


def test_circuits_of_another_size_are_told_apart() -> None:
    """The same circuit, with an edge that carries noise beside it: as necessary, beside random sets of its own size."""
    planted = sound()
    bigger = planted.but(*planted.kept, "input -> decoy0")
    found = necessary(bigger.case())
    assert found.verdict == "holds"
    assert "random sets of 3 edges" in found.against
    assert len(Circuit.from_edges(planted.wiring, bigger.kept)) == 3


class Turned(Sum):
    """The same with its stream as [position, batch, dimension]: circuits cannot be run as one batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(0, 1).clone()
        for name in self.names:
            x = x + self.get_submodule(name)(x)
        return self.head(x[0])


def test_circuits_that_cannot_be_one_batch_are_run_one_by_one() -> None:
    planted = sound()
    sides = {
        name: Pairs.of(
            pairs.clean[:, None].expand(-1, 3, -1).clone(),
            pairs.corrupted[:, None].expand(-1, 3, -1).clone(),
            pairs.answers,
            pairs.wrong,
            groups=pairs.groups,
        )
        for name, pairs in (("train", planted.task.train), ("held_out", planted.task.held_out))
    }
    turned = Turned({name: planted.model.get_submodule(name) for name in planted.model.names}, 0.0)
    case = replace(planted, model=turned.double().eval(), task=Task("turned", **sides)).case()
    with pytest.raises(KeepError, match="has not its examples along axis 0"):
        vm.run(case.wiring, case.task.example, torch.ones(2, len(case.keep)), vm.fill.zero(), axes="circuit edge")
    assert (necessary(case).verdict, complete(case).verdict) == ("holds", "holds")
