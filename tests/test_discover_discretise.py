"""From scores to circuits: the rules, and exact pruning against every subset."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given as drawn_from
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import voltmeter as vm
from voltmeter.circuit import Circuit, Scores
from voltmeter.discover import Judge, ask
from voltmeter.discover.criteria import Faithful, Within
from voltmeter.discover.discretise import given, greedy, prune, threshold, top_k
from voltmeter.discover.prune import is_one_minimal
from voltmeter.errors import CircuitError
from voltmeter.task import Task

EDGES = tuple(f"w{at} -> r{at}" for at in range(8))


def scores(*values: float) -> Scores:
    return given(EDGES[: len(values)], torch.tensor(values, dtype=torch.float64))


def needs(*families: set[int]) -> Callable[[Tensor], Tensor]:
    """A criterion that any superset of one of ``families`` meets."""

    def suffices(keep: Tensor) -> Tensor:
        kept = [set(row.nonzero().flatten().tolist()) for row in keep]
        return torch.tensor([any(family <= each for family in families) for each in kept], dtype=torch.bool)

    return suffices


def kept(circuit: Circuit) -> set[int]:
    return set(circuit.kept.nonzero().flatten().tolist())


@pytest.fixture(scope="module")
def few() -> tuple[vm.wiring.Wiring, Task]:
    model, task = vm.load("demo")
    assert task is not None
    return vm.wire(model, task.example), Task("few", task.train.batch(range(16)), task.held_out.batch(range(16)))


# rules that run nothing ------------------------------------------------------------------------------------


def test_top_k_and_threshold_go_by_magnitude_unless_signed() -> None:
    found = scores(0.5, -3.0, 1.0, 0.0)
    assert (kept(top_k(found, 2)), kept(top_k(found, 2, signed=True))) == ({1, 2}, {0, 2})
    assert (kept(threshold(found, 1.0)), kept(threshold(found, 0.5, signed=True))) == ({1, 2}, {0, 2})
    assert threshold(found, 1.0).how == {"rule": "threshold", "least": 1.0, "signed": False}


def test_a_plain_tensor_makes_scores() -> None:
    found = given(EDGES[:2], torch.tensor([1, 2.0]))
    assert (found.method, found.conditions.fill) == ("given", "unknown")


def test_greedy_grows_paths_from_the_outputs(few: Any) -> None:
    """The highest score is of an edge into a head; before it comes the edge from that head to the output."""
    wiring, _ = few
    values = torch.zeros(len(wiring.edges))
    far, near, other = (wiring.edges.find(e) for e in ("input -> a1.h0<q>", "a1.h0 -> logits", "a1.h1 -> logits"))
    values[far], values[near], values[other] = 9.0, -2.0, 1.0
    found = given(wiring.edges, values)
    assert kept(greedy(wiring, found, 1)) == {near}
    assert kept(greedy(wiring, found, 2)) == {near, far}, "now the head is there"
    assert kept(greedy(wiring, found, 3)) == {near, far, other}
    assert kept(greedy(wiring, found, 1, signed=True)) == {other}
    assert greedy(wiring, found, 3).how == {"rule": "greedy", "n": 3, "signed": False, "kept": 3}
    assert len(greedy(wiring, found, len(found))) == len(found), "all edges here lead to the output"


@pytest.mark.parametrize("seed", range(3))
def test_greedy_circuits_lead_to_the_output_at_every_size(few: Any, seed: int) -> None:
    wiring, _ = few
    found = given(wiring.edges, torch.randn(len(wiring.edges), generator=torch.Generator().manual_seed(seed)))
    before: set[int] = set()
    for n in range(0, 60, 7):
        circuit = greedy(wiring, found, n)
        assert len(circuit) == n
        assert before <= kept(circuit)
        before = kept(circuit)
        readers = {reader for _, reader in circuit}
        reached = {"logits"}
        for _ in range(3):  # as deep as the model
            reached |= {r for w, s in circuit if s in reached for r, fed in wiring.feeds.items() if w in fed}
        assert readers <= reached


# exact pruning ---------------------------------------------------------------------------------------------


def test_a_unique_circuit_is_found_from_any_order() -> None:
    for values in itertools.permutations((1.0, 2.0, 3.0, 4.0)):
        found = prune(scores(*values), needs({0, 3}))
        assert kept(found) == {0, 3}
        assert found.how["empty_suffices"] is False


def test_of_several_circuits_the_better_scored_is_found() -> None:
    suffices = needs({0, 1}, {2, 3})
    assert kept(prune(scores(4, 3, 2, 1), suffices)) == {0, 1}
    assert kept(prune(scores(1, 2, 3, 4), suffices)) == {2, 3}


def one_by_one(values: Tensor, suffices: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The same, slowly: every edge tried alone, worst first, round after round."""
    now = start.clone()
    order = [e for e in torch.argsort(values, descending=True, stable=True).flip(0).tolist() if start[e]]
    while True:
        before = now.clone()
        for edge in order:
            less = now.clone()
            less[edge] = False
            if now[edge] and bool(suffices(less[None].float())[0]):
                now = less
        if torch.equal(before, now):
            return now


@settings(max_examples=150)
@drawn_from(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 9))
def test_pruning_decides_as_one_edge_at_a_time_does(seed: int, n: int, chunk: int) -> None:
    """Under criteria in which sufficiency does not grow with size: any table of subsets, the full one in it."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(2**n, generator=generator) < 0.5
    table[-1] = True
    places = 2 ** torch.arange(n)
    found = given(EDGES[:n], torch.randn(n, generator=generator).double())

    def suffices(keep: Tensor) -> Tensor:
        return table[(keep.long() * places).sum(1)]

    circuit = prune(found, suffices, chunk=chunk)
    start = torch.zeros(n, dtype=torch.bool)
    start[found.order()[: circuit.how["prefix"]]] = True
    assert bool(suffices(start[None].float())[0])
    assert torch.equal(circuit.kept, one_by_one(found.values.abs(), suffices, start))
    assert circuit.how["empty_suffices"] == bool(table[0])
    if not table[0]:
        assert is_one_minimal(suffices, circuit)
        less = circuit.kept.nonzero().flatten().tolist()
        assert all(not suffices((circuit.kept & (torch.arange(n) != e))[None].float())[0] for e in less)


def test_the_prefix_is_the_smallest_where_sufficiency_grows_with_size() -> None:
    for n in (1, 2, 3, 7, 40, 257):
        edges = tuple(f"w{at} -> r{at}" for at in range(n))
        values = torch.arange(n, 0, -1).double()
        for last in {0, n // 3, n // 2, n - 1}:
            circuit = prune(given(edges, values), needs({last}))
            assert circuit.how["prefix"] == last + 1
            assert kept(circuit) == {last}


def test_good_guesses_cost_few_runs() -> None:
    """100 edges of which the best 10 are needed: sized, one round that keeps all, and a look at the whole."""
    values = torch.arange(100, 0, -1).double()
    edges = tuple(f"w{at} -> r{at}" for at in range(100))
    well = prune(given(edges, values), needs(set(range(10))))
    assert (kept(well), well.how["prefix"]) == (set(range(10)), 10)
    assert well.how["judged"] <= 30 + 10 + 1
    badly = prune(given(edges, values.flip(0)), needs(set(range(10))))
    assert kept(badly) == set(range(10))
    # from all 100 edges: each cut or kept once, once more for the 10 that stay, and what is judged behind wrong guesses
    assert badly.how["judged"] <= 40 + 2 * 110


def test_judged_counts_circuits_that_the_criterion_was_asked_about() -> None:
    asked: list[int] = []
    suffices = needs({1, 4})

    def counting(keep: Tensor) -> Tensor:
        asked.append(len(keep))
        return suffices(keep)

    circuit = prune(scores(*map(float, range(8))), counting, chunk=3)
    assert circuit.how["judged"] == sum(asked)
    assert max(asked) <= 3


def test_nothing_kept_may_suffice() -> None:
    circuit = prune(scores(1, 2, 3), needs(set()))
    assert len(circuit) == 0
    assert circuit.how["empty_suffices"] is True
    assert is_one_minimal(needs(set()), circuit)


def test_one_minimal_is_checked_both_ways() -> None:
    circuit = top_k(scores(3, 2, 1), 2)
    assert is_one_minimal(needs({0, 1}), circuit)
    assert not is_one_minimal(needs({0}), circuit), "an edge too many"
    assert not is_one_minimal(needs({0, 2}), circuit), "not sufficient"


def says(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(CircuitError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


def test_what_cannot_be_pruned_is_refused(few: Any) -> None:
    wiring, _ = few
    says(lambda: prune(scores(1, 2), lambda keep: torch.zeros(len(keep), dtype=torch.bool)), "the full model", "tolera")
    says(lambda: prune(scores(1, 2), lambda keep: keep), "torch.float32 [2, 2]", "about 2 circuits", "one truth value")
    says(lambda: prune(scores(1, 2), needs({0}), chunk=0), "0 circuits were to be judged at once")
    says(lambda: greedy(wiring, scores(1, 2), 1), "another wiring", "257")
    good = given(wiring.edges, torch.zeros(len(wiring.edges)))
    says(lambda: greedy(wiring, good, 258), "258 edges was asked for", "257")
    says(lambda: greedy(wiring, good, -1), "-1 edges")


def test_a_criterion_that_changes_its_mind_is_refused() -> None:
    calls = iter([True, False, True] + [False] * 50)  # full, nothing, the prefix of one edge; then never again

    def fickle(keep: Tensor) -> Tensor:
        return torch.tensor([next(calls) for _ in keep], dtype=torch.bool)

    says(lambda: prune(scores(1, 2), fickle, chunk=1), "first accepted a circuit of 1 edges", "every time")


# criteria on a model ---------------------------------------------------------------------------------------


def test_within_compares_with_the_full_model(few: Any) -> None:
    """The largest change of a logit at the answer, over all pairs, in batches that do not divide them."""
    wiring, task = few
    question = ask(wiring, task, batch_size=6)
    pairs, rows = task.train, torch.arange(16)
    keep = (torch.rand((3, len(wiring.edges)), generator=torch.Generator().manual_seed(0)) < 0.97).float()
    with torch.no_grad():
        full = wiring.model(pairs.clean)[rows, pairs.position]
        each = [vm.run(wiring, pairs.clean, k, vm.fill.resample(), pairs.corrupted)[rows, pairs.position] for k in keep]
    changes = [float((out - full).abs().max()) for out in each]
    middle = sorted(changes)[1]
    assert len(set(changes)) == 3
    # float32: a sum of 257 terms in another order
    for tolerance in (middle * 1.001, middle * 0.999):
        assert Within(question, tolerance)(keep).tolist() == [change <= tolerance for change in changes]
    assert Within(question, 1e-3)(torch.ones(1, len(wiring.edges))).tolist() == [True]


def test_faithful_is_the_judges_word(few: Any) -> None:
    wiring, task = few
    judge = Judge(wiring, task, task.train, vm.fill.resample())
    keep = torch.stack([torch.ones(len(wiring.edges)), torch.zeros(len(wiring.edges))])
    assert Faithful(judge, 0.9)(keep).tolist() == [True, False]
    assert str(Faithful(judge, 0.9)) == "faithful at 0.9"


def test_a_trained_model_is_pruned_to_a_circuit_that_is_faithful_and_one_minimal(few: Any) -> None:
    wiring, task = few
    judge = Judge(wiring, task, task.train.batch(range(6)), vm.fill.resample())
    found = prune(vm.discover(wiring, task, "eap"), Faithful(judge, 0.8))
    assert judge.measure(found).at(0.8)
    assert 3 < len(found) < found.how["prefix"]
    assert is_one_minimal(Faithful(judge, 0.8), found)
    assert found.how["criterion"] == "faithful at 0.8"
