"""The search finds every minimal circuit: against all 2^n subsets, tried one by one with the engine."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch
from known_models import cancellation, export, planted, random_model, three_cancel, two_paths, veto

import voltmeter
from voltmeter.errors import TruthError
from voltmeter.rasp import catalogue, search
from voltmeter.rasp.antichain import NOTHING, Family, edges_of, kept_of, minimal, unions
from voltmeter.rasp.budget import Budget, SpentError
from voltmeter.rasp.catalogue import Catalogue
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.effects import further_cuts, run_cut, run_kept
from voltmeter.rasp.refill import fill_values_of
from voltmeter.rasp.search import can_matter, minimal_circuits, witnesses
from voltmeter.rasp.setting import FILLS, Question, Setting, setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.wired import wiring_of

budget_module = importlib.import_module("voltmeter.rasp.budget")

PLENTY = 1_000_000
SEEDS = (0, 9, 13, 33, 50, 75, 89)  # of 120, some whose necessary edges are not what they need


def searched(compiled: Compiled, question: Question, limit: int = PLENTY) -> search.Found:
    return minimal_circuits(*put(compiled, question), limit)


def put(compiled: Compiled, question: Question) -> tuple[Setting, list[int]]:
    """The question over all inputs, and the few that its search begins with."""
    setting = setting_of(compiled, question)
    changes = further_cuts(setting, run_cut(setting, ()), range(len(setting.machine.edges)))
    return setting, witnesses(changes, question.tolerance)


def tried(compiled: Compiled, question: Question) -> tuple[frozenset[int], ...]:
    """Every minimal sufficient circuit, by running every circuit there is (of the edges into anything at all)."""
    wiring = wiring_of(compiled).wiring
    tokens = compiled.model.encode(compiled.inputs)
    fill = fill_values_of(question, compiled.model, wiring, tokens)
    dead = {"a0.h0<q>", "a0.h0<k>", "a0.h0<v>"} | {f"a{n}.h0<{kind}>" for n in (1, 2, 3) for kind in "qkv"}
    planted_here = compiled.name == "planted"  # its heads have no weights: what they read is nothing to them
    free = [at for at, edge in enumerate(wiring.edges) if not planted_here or edge.reader not in dead]
    free = [at for at in free if not planted_here or not wiring.edges[at].writer.startswith(("a", "input.pos"))]
    assert len(free) <= 14
    full = compiled.model(tokens)[:, 1:]
    subsets = list(itertools.product((0.0, 1.0), repeat=len(free)))
    sufficient: list[frozenset[int]] = []
    for start in range(0, len(subsets), 512):
        chunk = torch.tensor(subsets[start : start + 512], dtype=torch.float64)
        keep = torch.zeros(len(chunk), len(wiring.edges), dtype=torch.float64)
        keep[:, free] = chunk
        with torch.no_grad():
            out = voltmeter.run(wiring, tokens, keep, fill, axes="circuit edge")[:, :, 1:]
        effects = (out - full).abs().amax((1, 2, 3))
        sufficient += [
            frozenset(free[at] for at in row.nonzero().flatten().tolist())
            for row, effect in zip(chunk, effects.tolist(), strict=True)
            if effect <= question.tolerance
        ]
    return tuple(one for one in sufficient if not any(other < one for other in sufficient))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_models_against_all_their_circuits(seed: int, fill: str) -> None:
    compiled, question = random_model(seed, whole=seed != 9), Question(fill, seed=seed)
    found = searched(compiled, question)
    assert found.complete
    assert set(found.minimal) == set(tried(compiled, question))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("make", [veto, cancellation, two_paths])
def test_planted_models_against_all_their_circuits(make: object, fill: str) -> None:
    assert callable(make)
    compiled, question = make(), Question(fill)
    found = searched(compiled, question)
    assert found.complete
    assert set(found.minimal) == set(tried(compiled, question))
    if fill == "zero":
        assert len(found.minimal) == (2 if make is two_paths else 1)


def test_random_models_are_of_both_kinds() -> None:
    """So that the comparison above is of something: with necessary edges that are the minimal circuit, and not."""
    grades = [truth(random_model(seed), "zero", seed=seed).grades for seed in SEEDS]
    assert {grade.unique for grade in grades} == {"yes", "no"}
    assert {grade.one_minimal for grade in grades} == {True, False}


def test_what_counts_as_the_same_does_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three orders of magnitude either way: no distinction that matters is near the merging."""
    cases = [
        (export("shuffle_dyck"), Question("zero")),
        (random_model(2), Question("mean")),
        (veto(), Question("zero")),
    ]
    for compiled, question in cases:
        found = set()
        setting, rows = put(compiled, question)
        for same in (1e-9, 1e-12, 1e-14):
            monkeypatch.setattr(catalogue, "SAME", same)
            found.add(frozenset(minimal_circuits(setting, rows, PLENTY).minimal))
        assert len(found) == 1


def test_every_minimal_circuit_suffices_and_none_of_its_edges_can_go() -> None:
    compiled, question = export("shuffle_dyck"), Question("zero")
    setting, found = setting_of(compiled, question), searched(compiled, question)
    for circuit in found.minimal:
        assert setting.effect(run_kept(setting, circuit).answer) <= question.tolerance
        for edge in circuit:
            assert setting.effect(run_kept(setting, circuit - {edge}).answer) > question.tolerance


def test_few_inputs_are_enough_and_more_are_added_where_they_are_not() -> None:
    compiled, question = export("reverse"), Question("zero")
    setting = setting_of(compiled, question)
    whole = minimal_circuits(setting, range(len(compiled.inputs)), PLENTY)
    one = minimal_circuits(setting, [0], PLENTY)  # 1 1 1 1 1 reversed is itself: most circuits suffice
    assert one.complete
    assert whole.minimal == one.minimal
    assert 1 < len(one.rows) < 20


def test_the_search_stops_at_its_limit() -> None:
    found = searched(export("shuffle_dyck"), Question("zero"), limit=500)
    assert (found.search, found.minimal) == ("stopped", ())
    assert 0 < found.searched <= 500
    assert searched(export("shuffle_dyck"), Question("zero")).complete


def test_what_is_over_the_limit_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product of readings, every union of families and every comparison is paid for before it is made."""
    made: list[int] = []

    def watched(*families: Family) -> Family:
        made.append(math.prod(map(len, families)))
        return unions(*families)

    monkeypatch.setattr(search, "unions", watched)
    compiled = random_model(3, layers=2, whole=False)  # dense: readings of 2, 4, 8, ... values
    for limit in (10, 100, 1_000):
        made.clear()
        found = searched(compiled, Question("zero"), limit)
        assert found.search == "stopped"
        assert sum(made) <= found.searched <= limit


def test_many_sets_of_edges_are_paid_for_as_they_are_compared() -> None:
    budget = Budget(500)
    budget.compare(30)  # as good as free
    assert budget.spent == 0
    budget.compare(500)
    assert budget.spent == 250
    with pytest.raises(SpentError):
        budget.compare(1_000)
    assert budget.spent == 250  # for what was done


def test_values_in_memory_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = export("reverse")
    assert searched(compiled, Question("zero")).complete
    monkeypatch.setattr(budget_module, "MOST_NUMBERS", 20_000)
    assert searched(compiled, Question("zero")).search == "stopped"


def test_a_catalogue_keeps_rows_and_not_the_batch_they_came_in() -> None:
    book = Catalogue(torch.zeros(3, dtype=torch.float64))
    book.numbers(torch.zeros(1_000, 3, dtype=torch.float64))
    assert (len(book), book.held) == (1, 3)
    assert book.values[0].untyped_storage().nbytes() == 3 * 8


def test_a_walk_that_exact_runs_refute_at_its_own_inputs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """No input can be added, so a walk more would say the same."""
    once = searched(export("hist"), Question("zero"))
    setting = setting_of(export("hist"), Question("zero"))
    monkeypatch.setattr(search, "_failed_on", lambda *_: [once.rows[0]])
    found = minimal_circuits(setting, once.rows, PLENTY)
    assert (found.search, found.minimal, found.searched) == ("unsure", (), once.searched)


def test_numbers_that_are_not_finite_are_no_value() -> None:
    with pytest.raises(TruthError, match="with some edges cut the model computes numbers that are not finite"):
        Catalogue(torch.zeros(2)).numbers(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))


def test_edges_left_out_of_the_search_carry_nothing() -> None:
    """Cutting all edges that cannot matter, of any circuit, changes nothing."""
    for name in ("reverse", "shuffle_dyck", "sort_unique"):
        for fill in FILLS:
            setting = setting_of(export(name), Question(fill))
            matters = can_matter(setting)
            assert 0 < sum(matters) < len(matters) / 2
            for _ in range(3):
                kept = (torch.rand(len(matters)) < 0.8).tolist()
                some = run_kept(setting, [e for e, keep in enumerate(kept) if keep]).answer
                fewer = run_kept(setting, [e for e, keep in enumerate(kept) if keep and matters[e]]).answer
                # Zeros were added, or numbers of the size of rounding; ramps are up to 100 steep.
                torch.testing.assert_close(some, fewer, rtol=0, atol=1e-10)


def test_three_that_cancel_together() -> None:
    found = searched(three_cancel(), Question("zero"))
    setting = setting_of(three_cancel(), Question("zero"))
    names = [sorted(setting.machine.edges[e] for e in circuit) for circuit in found.minimal]
    assert names == [["input.tok -> m0", "m0 -> logits"]]


def test_many_redundant_paths_multiply() -> None:
    """Two independent pairs of paths: four minimal circuits."""
    steps = [({"x": 1, "1": -2}, {label: 1}) for label in "pprr"]  # 1 where the token is 3
    ramps = [({label: 1}, {"out": by}) for label, by in (("p", 1), ("r", 10))]
    ends = [({label: 1, "1": -1}, {"out": -by}) for label, by in (("p", 1), ("r", 10))]
    found = searched(planted([*([step] for step in steps), [*ramps, *ends]], ["p", "r"]), Question("zero"))
    assert found.complete
    assert [len(circuit) for circuit in found.minimal] == [5] * 4


# The pieces ---------------------------------------------------------------------------------------------------


def test_antichains() -> None:
    assert minimal([0b110, 0b100, 0b011, 0b111, 0b100]) == (0b100, 0b011)
    assert minimal([]) == ()
    assert unions(NOTHING, (1, 2), (4,)) == (5, 6)
    assert unions((1, 2), ()) == ()
    assert edges_of(0b1011) == frozenset({0, 1, 3})
    assert kept_of([3, 0, 1, 1]) == 0b1011


def test_a_catalogue_numbers_what_is_the_same_once() -> None:
    like = torch.randn(4, 3, dtype=torch.float64)
    book = Catalogue(like)
    near, far = 0.4e-12, 1e-9
    values = torch.stack([like, like + near, like + far, like - near, -like])
    assert book.numbers(values) == [0, 0, 1, 0, 2]
    assert len(book) == 3
    assert torch.equal(book.values[0], like)


def test_a_catalogue_finds_values_on_either_side_of_a_cell() -> None:
    like = torch.zeros(8, dtype=torch.float64)
    book = Catalogue(like)
    for seed in range(200):
        value = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        noise = (torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 999)) - 0.5) * 1e-12
        first, second = book.numbers(torch.stack([value, value + noise]))
        assert first == second


def test_witnesses_show_every_change() -> None:
    changes = torch.tensor([[0.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert set(witnesses(changes, 0.5, extra=0)) == {1, 2}
    assert witnesses(changes, 0.5, extra=2)[-1] == 0
    assert witnesses(changes[:0], 0.5, extra=9) == [0, 1, 2, 3]
