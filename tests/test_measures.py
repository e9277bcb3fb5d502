"""Measures against counts made by hand, against brute force, and against a curve whose areas are known."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given as drawn_from
from hypothesis import settings
from hypothesis import strategies as st

import voltmeter as vm
from voltmeter.circuit import Circuit, Scores
from voltmeter.discover import Judge
from voltmeter.discover.discretise import given
from voltmeter.discover.measures import (
    AXES,
    SHARES,
    Curve,
    Match,
    auroc,
    average_precision,
    curve,
    edges_needed,
    match,
)
from voltmeter.errors import AddressError, CircuitError
from voltmeter.task import Task

EDGES = tuple(f"w{at} -> r{at}" for at in range(8))


def scores(*values: float) -> Scores:
    return given(EDGES[: len(values)], torch.tensor(values, dtype=torch.float64))


def edges(*numbers: int) -> list[str]:
    return [EDGES[number] for number in numbers]


# against a known circuit -----------------------------------------------------------------------------------


def test_auroc_counts_the_pairs_in_the_right_order() -> None:
    found = scores(0.9, 0.8, 0.7, 0.1)
    assert auroc(found, edges(0, 1)) == 1.0
    assert auroc(found, edges(0, 2)) == 3 / 4
    assert auroc(found, edges(3)) == 0.0


def test_ties_count_against() -> None:
    assert auroc(scores(1, 1, 1, 1), edges(0)) == 0.0
    assert auroc(scores(1, 1, 0, 0), edges(0)) == 2 / 3
    assert average_precision(scores(1, 1, 1, 1), edges(0)) == 1 / 4
    assert average_precision(scores(1, 1, 1, 1), edges(0, 1)) == (1 / 3 + 2 / 4) / 2


def test_average_precision_is_the_mean_of_precisions() -> None:
    found = scores(0.9, 0.8, 0.7, 0.1)
    assert average_precision(found, edges(0, 1)) == 1.0
    assert average_precision(found, edges(1, 3)) == (1 / 2 + 2 / 4) / 2
    assert average_precision(found, EDGES[:4]) == 1.0


def test_the_order_is_by_magnitude_unless_signed() -> None:
    found = scores(-3.0, 1.0, 2.0)
    assert (auroc(found, edges(0)), auroc(found, edges(0), signed=True)) == (1.0, 0.0)
    assert (average_precision(found, edges(0)), average_precision(found, edges(0), signed=True)) == (1.0, 1 / 3)


@settings(max_examples=60)
@drawn_from(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=2, max_size=8))
def test_measures_equal_brute_force(rows: list[tuple[int, bool]]) -> None:
    truth = [at for at, (_, inside) in enumerate(rows) if inside]
    others = [at for at, (_, inside) in enumerate(rows) if not inside]
    if not truth or not others:
        return
    size = [abs(value) for value, _ in rows]
    found = scores(*(float(value) for value, _ in rows))
    higher = sum(size[a] > size[b] for a in truth for b in others)
    assert auroc(found, edges(*truth)) == pytest.approx(higher / (len(truth) * len(others)))
    ranked = sorted(range(len(rows)), key=lambda at: (-size[at], at in truth))
    hits = [rank for rank, at in enumerate(ranked, 1) if at in truth]
    precisions = [sum(h <= rank for h in hits) / rank for rank in hits]
    assert average_precision(found, edges(*truth)) == pytest.approx(sum(precisions) / len(precisions))


def test_a_match_counts_edges() -> None:
    circuit = Circuit.from_edges(EDGES, edges(0, 1, 2, 3))
    assert match(circuit, edges(0, 1, 2, 3)) == Match(True, 1.0, 1.0)
    assert match(circuit, edges(0, 1, 5)) == Match(False, 0.5, 2 / 3)
    assert match(Circuit.from_edges(EDGES, []), edges(0)) == Match(False, None, 0.0)
    assert match(circuit, Circuit.from_edges(EDGES, edges(7))) == Match(False, 0.0, 0.0)


def test_truths_that_measure_nothing_are_refused() -> None:
    found = scores(1, 2)
    for measure in (auroc, average_precision):
        says(lambda measure=measure: measure(found, []), "the truth holds no edge", "count empty truths apart")
    says(lambda: match(Circuit.from_edges(EDGES, []), []), "the truth holds no edge")
    says(lambda: auroc(found, EDGES[:2]), "the truth holds all 2 edges", "apart")
    says(lambda: auroc(found, Circuit.from_edges(EDGES, edges(0))), "of another wiring", "a part of 8 edges")
    with pytest.raises(AddressError, match="w0 -> r1"):
        auroc(found, ["w0 -> r1"])


# by faithfulness -------------------------------------------------------------------------------------------


def test_areas_of_a_curve_that_is_one_everywhere() -> None:
    whole = Curve(SHARES, (1,) * 10, tuple(range(1, 11)), (1.0,) * 10)
    areas = whole.areas()
    assert list(areas) == [f"{kind}-{axis}" for axis in AXES for kind in ("cpr", "cmd")]
    # areas begin at the first size: .001 of all edges, and a tenth of the largest on a path
    assert [areas[f"cpr-{axis}"] for axis in AXES] == pytest.approx([0.999, 0.9, 1.0])
    assert [areas[f"cmd-{axis}"] for axis in AXES] == pytest.approx([0, 0, 0])


def test_areas_by_hand() -> None:
    found = Curve((0.01, 0.1, 1.0), (1, 10, 100), (0, 10, 40), (0.0, 2.0, 1.0))
    assert found.cpr("share") == pytest.approx(0.09 * 1 + 0.9 * 1.5)
    assert found.cmd("share") == pytest.approx(0.09 * 1 + 0.9 * 0.5)
    assert found.cpr("self") == pytest.approx(0.25 * 1 + 0.75 * 1.5)
    assert found.cpr("log") == pytest.approx(0.5 * 1 + 0.5 * 1.5)
    assert found.cmd("log") == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert found.as_dict()["on_path"] == [0, 10, 40]
    says(lambda: found.cpr("logs"), "over no axis 'logs'", "axes: share, self, log")
    none = Curve((0.1, 1.0), (0, 1), (0, 0), (0.0, 1.0))
    assert none.cpr("self") == 0.0


@pytest.fixture(scope="module")
def demo() -> Any:
    model, task = vm.load("demo")
    assert task is not None
    few = Task("few", task.train.batch(range(16)), task.held_out.batch(range(16)))
    wiring = vm.wire(model, task.example)
    return Judge(wiring, few, few.held_out, vm.fill.resample()), vm.discover(wiring, few, "eap")


def test_a_curve_is_made_of_top_k_circuits(demo: Any) -> None:
    judge, found = demo
    shares = (0.001, 0.1, 0.5, 1.0)
    made = curve(judge, found, shares)
    assert made.sizes == (0, 25, 128, 257)
    assert made.f == tuple(judge.measure(found.top(size)).normalised for size in made.sizes)
    assert (made.f[0], made.f[-1]) == (0.0, pytest.approx(1.0, abs=1e-5))  # float32: sums in another order
    off = found.top(25).disconnected(judge.wiring.feeds, judge.wiring.inputs, judge.wiring.outputs)
    assert made.on_path[1] == 25 - len(off)
    assert made.on_path[-1] == 257
    assert curve(judge, found, shares, signed=True).f[1] != made.f[1]


@pytest.mark.parametrize("shares", [(0.1,), (0.1, 0.1), (0.0, 1.0), (0.5, 2.0), ()])
def test_shares_that_make_no_curve(demo: Any, shares: tuple[float, ...]) -> None:
    says(lambda: curve(*demo, shares), "make no curve", "growing numbers")


def test_the_edges_needed_are_the_fewest(demo: Any) -> None:
    judge, found = demo
    made = edges_needed(judge, found)
    assert list(made) == [0.9, 0.95, 0.99]
    assert 0 < made[0.9] <= made[0.95] <= made[0.99] <= 257
    for threshold, size in made.items():
        assert judge.measure(found.top(size)).at(threshold)
        assert not judge.measure(found.top(size - 1)).at(threshold)
    says(lambda: edges_needed(judge, found, (0.9, 1.5, 0.0)), "faithful at 1.5, 0 was asked for")


def says(call: Any, *parts: str) -> None:
    with pytest.raises(CircuitError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


def test_the_grid_is_mibs() -> None:
    assert (len(SHARES), SHARES[0], SHARES[-1]) == (10, 0.001, 1.0)
    assert all(math.isclose(a * 1000, round(a * 1000)) for a in SHARES)
