"""Each blind plant is what it says, shown by plain runs with edges cut and by no check."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT, script
from torch import Tensor

import voltmeter as vm
from voltmeter.discover import Faithfulness, Judge, prepare_fill
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.inputs import call

CHECKS = {
    *("faithful", "necessary", "complete", "minimal", "identifiable", "not-trivial", "redundant", "stable"),
    *("same-under-other-fills", "better-than-chance", "hypotheses", "not-over-optimised", "positions"),
}
EXACT = 1e-9  # float64, of answers of order 1 to 60: nothing was changed at all


def _scripts() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield script("bench/planted_blind.py")
        yield script("bench/planted_blind_models.py")


BLIND, MODELS = _scripts()


FAULTS = {builder.__name__: cache(builder) for builder in BLIND.FAULTS}


@cache
def controls() -> tuple[Any, ...]:
    """The sound plants, built once."""
    return tuple(builder() for builder in BLIND.SOUND)


@cache
def judge(plant: Any, split: str = "held_out", fill: str = "") -> Judge:
    chosen = prepare_fill(fill or plant.fill, plant.wiring, plant.task)
    return Judge(plant.wiring, plant.task, getattr(plant.task, split), chosen)


def measured(plant: Any, circuit: Any = None, split: str = "held_out", fill: str = "") -> Faithfulness:
    return judge(plant, split, fill).measure(plant.circuit if circuit is None else circuit)


def f(plant: Any, circuit: Any = None, split: str = "held_out", fill: str = "") -> float:
    return measured(plant, circuit, split, fill).normalised


def holds(plant: Any, circuit: Any = None, split: str = "held_out", fill: str = "") -> bool:
    """Faithful at .9: both figures."""
    return measured(plant, circuit, split, fill).at(0.9)


def said(plant: Any, pairs: Pairs) -> Tensor:
    """The token that the network gives the most to, [pair]."""
    with torch.no_grad():
        logits = call(plant.wiring.model, pairs.clean)
    if logits.ndim == 3:
        logits = logits[torch.arange(len(pairs)), pairs.position]
    return logits.argmax(-1)


# What faults come down to


def one_answer(plant: Any) -> bool:
    """The network says the same to every input, and the circuit is faithful to that."""
    return len(set(said(plant, plant.task.held_out).tolist())) == 1 and holds(plant)


def told_by(column: int | None) -> Callable[[Any], bool]:
    """The token in one column (None: where the answer is read) fixes what is said; the circuit is faithful."""

    def shows(plant: Any) -> bool:
        pairs = plant.task.held_out
        at = pairs.position if column is None else torch.full((len(pairs),), column % pairs.clean.shape[1])
        tokens = pairs.clean.gather(1, at[:, None])[:, 0].tolist()
        answers = said(plant, pairs).tolist()
        return len(set(zip(tokens, answers, strict=True))) == len(set(tokens)) > 1 and holds(plant)

    return shows


def right_at_most(share: float) -> Callable[[Any], bool]:
    """The network seldom says what the labels ask for, though the circuit does all it does."""

    def shows(plant: Any) -> bool:
        right = (said(plant, plant.task.held_out) == plant.task.held_out.answers[:, 0]).double().mean()
        return float(right) <= share and holds(plant)

    return shows


def fails(low: float, high: float) -> Callable[[Any], bool]:
    """Held-out f is between the two, and so the circuit is not faithful."""
    return lambda plant: low <= f(plant) <= high and not holds(plant)


def overfit(held_out: float) -> Callable[[Any], bool]:
    return lambda plant: holds(plant, split="train") and f(plant) <= held_out


def leaked(plant: Any) -> bool:
    """It holds on the held-out pairs, whose clean rows are the train rows, and does nothing on other rows."""
    rows = {tuple(row) for row in plant.task.train.clean.tolist()}
    assert {tuple(row) for row in plant.task.held_out.clean.tolist()} == rows
    fresh = MODELS.pairs("held_out", seed=5)
    other = Judge(plant.wiring, Task("fresh", fresh, fresh), fresh, vm.fill.zero())
    return holds(plant) and other.measure(plant.circuit).normalised < 0.1


def can_lose(*edges: str, alone: bool = True) -> Callable[[Any], bool]:
    """The circuit holds, and without ``edges`` gives the same; ``alone`` False: it needs every smaller set of them."""

    def shows(plant: Any) -> bool:
        same = [abs(f(plant, plant.circuit.without_edges(few)) - f(plant)) < EXACT for few in _smaller(edges, alone)]
        return (
            holds(plant)
            and abs(f(plant, plant.circuit.without_edges(edges)) - f(plant)) < EXACT
            and all(edge in plant.circuit for edge in edges)
            and not any(same)
        )

    return shows


def _smaller(edges: tuple[str, ...], alone: bool) -> list[tuple[str, ...]]:
    return [] if alone else [few for n in range(1, len(edges)) for few in itertools.combinations(edges, n)]


def some_edge_is_idle(plant: Any) -> bool:
    return holds(plant) and any(
        abs(f(plant, plant.circuit.without_edges([edge])) - f(plant)) < EXACT for edge in plant.circuit.names
    )


def survives(*cut: str) -> Callable[[Any], bool]:
    """Without ``cut`` the circuit does nothing and the network does all it did. No ``cut``: without the circuit."""

    def shows(plant: Any) -> bool:
        edges = cut or plant.circuit.names
        left = vm.Circuit.from_edges(plant.wiring, plant.wiring.edges.names).without_edges(edges)
        return holds(plant) and f(plant, plant.circuit.without_edges(edges)) < 0.1 and holds(plant, left)

    return shows


def some_cut_survives(plant: Any) -> bool:
    """One edge, or two, whose loss the circuit does not survive and the network does."""
    everything = vm.Circuit.from_edges(plant.wiring, plant.wiring.edges.names)
    for n in (1, 2):
        for few in itertools.combinations(plant.circuit.names, n):
            if f(plant, plant.circuit.without_edges(few)) < 0.1 and holds(plant, everything.without_edges(few)):
                return holds(plant)
    return False


def lost_under(fill: str) -> Callable[[Any], bool]:
    """Faithful under its own fill and not under another."""
    return lambda plant: holds(plant) and f(plant, fill=fill) < 0.1


def cancels_across_positions(*edges: str) -> Callable[[Any], bool]:
    """Cut everywhere, ``edges`` change nothing; cut at position 0 alone, they do."""

    def shows(plant: Any) -> bool:
        wiring, pairs = plant.wiring, plant.task.held_out
        at = torch.tensor([wiring.edges.names.index(edge) for edge in edges])
        everywhere = torch.ones(len(pairs), pairs.clean.shape[1], len(wiring.edges))
        first = everywhere.clone()
        everywhere[:, :, at] = 0
        first[:, 0, at] = 0
        plain = call(wiring.model, pairs.clean)
        moved = [
            float((vm.run(wiring, pairs.clean, keep, vm.fill.zero(), axes="example position edge") - plain).abs().max())
            for keep in (everywhere, first)
        ]
        return moved[0] < EXACT and moved[1] > 1 and holds(plant)

    return shows


def unstable(plant: Any) -> bool:
    """Train pairs or noise drawn anew give a circuit that has at most half in common with it."""
    method = "random" if plant.name == "random_method" else "eap"
    fresh = MODELS.pairs("train", seed=8, count=len(plant.task.train) // 2)
    again = Task("again", fresh, plant.task.held_out)
    scores = vm.discover(plant.wiring, again, method=method, fill="resample", seed=9)
    return plant.circuit.jaccard(scores.top(len(plant.circuit))) <= 0.5 and not holds(plant)


def opposite_in_the_mean(plant: Any) -> bool:
    found = measured(plant)
    return abs(found.normalised - 1) < EXACT and found.worst_decile <= -0.9


def loses_the_rest(plant: Any) -> bool:
    found = measured(plant)
    return abs(found.normalised - 1) < EXACT and found.kl_share is not None and found.kl_share > 0.9


SHOWS: dict[str, Callable[[Any], bool]] = {
    "always_one_answer": one_answer,
    "rewarded_constant": one_answer,
    "copies_first_token": told_by(0),
    "bigram": told_by(3),
    "bigram_of_the_adder": told_by(3),
    "program_copies_a_position": told_by(-1),
    "program_is_a_unigram_map": told_by(None),
    "board_player_in_the_corner": one_answer,
    "answers_exchanged": right_at_most(0.0),
    "answers_shuffled": right_at_most(0.35),
    "overfit_to_ten_pairs": overfit(0.1),
    "mildly_overfit": overfit(0.65),
    "leaked_held_out": leaked,
    "narrow_train_pairs": overfit(0.1),
    "dead_edge": can_lose("input -> junk1", "junk1 -> junk2", "junk2 -> logits"),
    "everything_kept": can_lose("input -> junk1", "junk1 -> junk2", "junk2 -> logits"),
    "cancelling_parts_kept": can_lose("plus -> logits", "minus -> logits", alone=False),
    "three_cancelling_parts_kept": can_lose("p -> logits", "q -> logits", "r -> logits", alone=False),
    "veto_from_single_cuts": can_lose("input -> press", "press -> burst"),
    "veto_kept_whole": can_lose("input -> press", "press -> burst", "burst -> logits", "input -> burst"),
    "demo_with_ten_dead_edges": some_edge_is_idle,
    "program_with_dead_edges": some_edge_is_idle,
    "program_keeps_what_cancels": some_edge_is_idle,
    "program_keeps_a_veto": some_edge_is_idle,
    "half_of_a_redundant_pair": survives("input -> bring_p", "bring_p -> merge"),
    "backup_that_wakes": survives("input -> move"),
    "second_adder_in_waiting": survives(),
    "norm_makes_up_for_what_is_cut": lambda plant: survives("add -> logits")(plant) and f(plant, fill="resample") < 0.5,
    "two_of_three_voters": survives("input -> bring_p"),
    "program_one_of_two_paths": some_cut_survives,
    "program_with_a_backup": some_cut_survives,
    "empty_circuit": fails(0, 0),
    "only_edges_into_the_output": fails(-0.1, 0.1),
    "one_operand_missing": fails(0.4, 0.6),
    "demo_without_previous_token_heads": fails(0.2, 0.6),
    "demo_half_of_the_heads": fails(0.1, 0.5),
    "program_lacks_an_edge": fails(0.2, 0.8),
    "random_edges_of_the_adder": fails(-0.1, 0.1),
    "random_edges_of_the_demo": fails(-0.1, 0.1),
    "random_method": unstable,
    "unstable_on_four_pairs": unstable,
    "circuit_of_another_task": fails(-0.1, 0.1),
    "complement_given": fails(-0.1, 0.1),
    "more_than_the_model": fails(1.4, 1.6),
    "only_the_suppressor": fails(-1, -0.4),
    "opposite_on_half_of_the_pairs": opposite_in_the_mean,
    "rest_of_the_distribution_lost": loses_the_rest,
    "constant_writer_unseen": lost_under("zero"),
    "right_only_under_mean_fill": lost_under("zero"),
    "cue_never_varies": lost_under("zero"),
    "corruption_misses_an_operand": lost_under("mean"),
    "edge_cancels_across_positions": cancels_across_positions("sway -> pool"),
    "two_edges_cancel_across_positions": can_lose("up -> pool", "down -> pool", alone=False),
}


def test_the_registry_is_large_enough_and_says_what_it_should() -> None:
    assert len(FAULTS) >= 24
    assert len(controls()) >= 24
    assert FAULTS.keys() == SHOWS.keys()
    assert len({plant.name for plant in controls()}) == len(controls())
    for plant in controls():
        assert not plant.wrong
        assert set(plant.excused) <= CHECKS, plant.name


@pytest.mark.parametrize("name", ["always_one_answer", "leaked_held_out", "unstable_on_four_pairs"])
def test_a_plant_is_the_same_every_time(name: str) -> None:
    (builder,) = (each for each in BLIND.FAULTS if each.__name__ == name)
    one, other = FAULTS[name](), builder()
    assert one.circuit.names == other.circuit.names
    assert one.task.digest == other.task.digest


@pytest.mark.parametrize("name", SHOWS)
def test_a_fault_is_what_it_says(name: str) -> None:
    plant = FAULTS[name]()
    assert plant.name == name
    assert plant.says.endswith(".")
    assert plant.wrong
    assert set(plant.wrong) <= CHECKS
    assert SHOWS[name](plant), (measured(plant, split="train"), measured(plant))


def test_sound_circuits_are_faithful_and_need_every_edge() -> None:
    for plant in controls():
        assert holds(plant, split="train"), plant.name
        assert holds(plant), plant.name
        assert abs(f(plant, ~plant.circuit)) < 0.1, plant.name
        whole = f(plant)
        for edge in plant.circuit.names:
            assert abs(f(plant, plant.circuit.without_edges([edge])) - whole) > 0.01, (plant.name, edge)


def test_sound_circuits_hold_under_other_fills_or_say_so() -> None:
    for plant in controls():
        if not plant.excused:
            for fill in ("zero", "mean", "resample"):
                assert holds(plant, fill=fill), (plant.name, fill)


def test_sound_networks_say_different_things() -> None:
    """And what their labels ask for, where there are labels."""
    for plant in controls():
        pairs = plant.task.held_out
        if pairs.answers.shape[1]:
            answers = said(plant, pairs)
            assert float((answers == pairs.answers[:, 0]).double().mean()) > 0.9, plant.name
            assert int(answers.bincount().max()) < 0.7 * len(pairs), plant.name
