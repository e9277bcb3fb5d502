"""Train against held-out pairs: a circuit that fits the train pairs only, and data that were not held out."""

from __future__ import annotations

from dataclasses import replace

import planted
import pytest
import torch
from planted import COPY, THROUGH, pairs_of, plant, straight

from voltmeter.check.optimisation import (
    CHOICES,
    GAP,
    SEARCHED,
    Gap,
    _f_gap,
    _half,
    _verdict,
    best_of,
    not_over_optimised,
)
from voltmeter.task import Pairs, Task
from voltmeter.task.tree import row_digests


@pytest.mark.parametrize("name", ["sound", "two_steps", "or_pair"])
def test_sound_circuits_are_as_good_on_held_out_pairs(name: str) -> None:
    found = not_over_optimised(planted.PLANTED[name]().case())
    assert found.verdict == "holds"
    assert abs(found.figure or 0) < GAP
    assert f"up to {GAP:+.0%} was allowed" in found.says


def test_a_circuit_that_fits_the_train_pairs_only_is_caught() -> None:
    found = not_over_optimised(planted.overfitted().case())
    assert found.verdict == "fails"
    assert found.low is not None
    assert found.figure is not None
    assert found.figure > found.low > 0.8  # f is 1 against about 0
    assert "f is 100% on train pairs" in found.says
    assert found.counted["kl_gap"][1] > 0.5


def test_worse_on_train_pairs_is_no_over_optimisation() -> None:
    """The two splits of the overfitted circuit, changed over."""
    known = planted.overfitted()
    turned = replace(known, task=Task("turned", known.task.held_out, known.task.train))
    found = not_over_optimised(turned.case())
    assert found.verdict == "cannot tell"
    assert found.high is not None
    assert found.high < -0.8


def test_either_figure_can_tell() -> None:
    level, above, wide = Gap(0.0, -0.05, 0.05), Gap(0.3, 0.2, 0.4), Gap(0.1, -0.1, 0.3)
    assert [_verdict(level, None), _verdict(above, None), _verdict(wide, None)] == ["holds", "fails", "cannot tell"]
    assert [_verdict(level, other) for other in (level, above, wide)] == ["holds", "fails", "cannot tell"]
    assert _verdict(Gap(-0.3, -0.4, -0.2), level) == "cannot tell"  # held-out pairs are easier: nothing was shown


def test_two_splits_are_drawn_apart() -> None:
    """Even where both are the same pairs: drawn alike, their difference would be nothing in every draw."""
    case = planted.overfitted().case()
    same = case.held_out.measure(case.keep[None])
    gap = _f_gap(same, same)
    assert gap.value == 0
    assert gap.high - gap.low > 1.3 * (same.interval()[1] - same.interval()[0])  # √2, as variances add up


def test_nothing_held_out_tells_nothing() -> None:
    known = planted.sound()
    found = not_over_optimised(replace(known, task=Task("all", known.task.train, known.task.train)).case())
    assert found.verdict == "cannot tell"
    assert "holds nothing out" in found.says


def test_leaked_inputs_are_left_out() -> None:
    """Half of the held-out inputs are train inputs, in other pairs: the fault shows on the other half as it is."""
    known = planted.overfitted()
    half = not_over_optimised(replace(known, task=_leaking(known.task, 20)).case())
    assert half.verdict == "fails"
    assert "; the clean input of 50% of the held-out pairs is that of a train pair, so that the others" in half.says
    assert half.counted["held_out_pairs"] == 20
    assert half.low is not None
    assert half.low > 0.8  # with the leaked pairs it would be about .5
    every = not_over_optimised(replace(known, task=_leaking(known.task, 40)).case())
    assert every.verdict == "cannot tell"
    assert "100% of the held-out pairs is that of a train pair: next to nothing is held out" in every.says


def _leaking(task: Task, count: int) -> Task:
    """The first clean inputs held out are replaced by train ones; what they are paired with stays."""
    train, held_out = task.train, task.held_out
    clean, answers = held_out.clean.clone(), held_out.answers.clone()
    clean[:count], answers[:count] = train.clean[:count], train.answers[:count]
    pairs = Pairs.of(clean, held_out.corrupted, answers[:, 0], 1 - answers[:, 0], groups=held_out.groups)
    return Task("leaking", train, pairs)


def test_one_group_says_nothing_of_spread() -> None:
    known = planted.sound()
    alone = replace(known.task.held_out, groups=("all",) * len(known.task.held_out))
    found = not_over_optimised(replace(known, task=Task("one group", known.task.train, alone)).case())
    assert found.verdict == "cannot tell"
    assert "of one group" in found.says


# The curve --------------------------------------------------------------------------------------------------------


def test_best_of_n_by_counting() -> None:
    assert best_of(1, 4).tolist() == pytest.approx([0.25] * 4)
    assert best_of(4, 4).tolist() == [1, 0, 0, 0]
    assert best_of(2, 3).tolist() == pytest.approx([2 / 3, 1 / 3, 0])  # of the pairs 12 13 23
    for n in CHOICES:
        assert float(best_of(n, SEARCHED).sum()) == pytest.approx(1)


def test_circuits_are_chosen_by_half_of_the_train_pairs() -> None:
    case = planted.sound().case()
    half = set(row_digests(_half(case, case.random("half")).pairs.clean))
    assert len(half) == planted.N_PAIRS // 2
    assert half < set(row_digests(case.task.train.clean))


def test_choosing_by_noise_gains_where_it_chooses_and_nothing_elsewhere() -> None:
    """What swaps put in or out is noise in the answer: its mean over half of the train pairs is chance."""
    parts = {"first": COPY, **{f"noise{i}": straight({"n": 1.5}, {"y": 1}) for i in range(4)}}
    kept = (*THROUGH, "noise0 -> logits", "noise1 -> logits")
    known = plant("noise", parts, kept, "", task=_long_noise())
    found = not_over_optimised(known.case())
    first, last = found.details[0], found.details[-1]
    assert (first["best_of"], last["best_of"]) == (1, 32)
    gained = last["f_where_chosen"] - first["f_where_chosen"]
    assert gained > 0.02
    assert last["f_held_out"] - first["f_held_out"] < gained / 2
    assert found.picture is not None
    assert list(found.picture.data["lines"]) == ["on the pairs it was chosen by", "on held-out pairs"]


def _long_noise() -> Task:
    """Noise that happens to go with the answer in train pairs, and against it in held-out ones."""
    sides = []
    for split, lean in (("train", 0.5), ("held out", -0.5)):
        generator = torch.Generator().manual_seed(len(split))
        sign = planted.signs(planted.N_PAIRS, generator)
        clean, corrupted = (torch.zeros(planted.N_PAIRS, 3, dtype=torch.float64) for _ in range(2))
        clean[:, 0], corrupted[:, 0] = 1.5 * sign, -1.5 * sign
        clean[:, 2] = lean * sign + planted.drawn(-1, 1, planted.N_PAIRS, generator)
        sides.append(pairs_of(clean, corrupted, sign, split))
    return Task("noise", *sides)


def test_circuits_of_no_edges_and_of_all_have_no_curve() -> None:
    sound = planted.sound()
    for circuit in (sound.but(), sound.but(*sound.wiring.edges.names)):
        found = not_over_optimised(circuit.case())
        assert (found.verdict, found.figure, found.picture) == ("holds", pytest.approx(0), None)
        assert found.counted["circuits"] == 0


def test_the_same_twice() -> None:
    assert not_over_optimised(planted.or_pair().case()) == not_over_optimised(planted.or_pair().case())
