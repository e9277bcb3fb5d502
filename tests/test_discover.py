"""Methods score edges, and faithfulness is what the definitions say. What every method promises: test_conformance."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import voltmeter as vm
from voltmeter.circuit import Circuit, Scores
from voltmeter.discover import METHODS, Judge, Method, method_named, prepare_fill
from voltmeter.discover.faithful import Faithfulness
from voltmeter.discover.masks import EdgeSp, draw, kept_probability
from voltmeter.discover.question import has_logits
from voltmeter.errors import CircuitError, FillError, KeepError, MetricError, TaskError, VoltmeterError
from voltmeter.task import Pairs, Task, metric_of
from voltmeter.task.metric import KL, LOGIT_DIFFERENCE

QUICK: dict[str, dict[str, Any]] = {
    "acdc": {"thresholds": (0.03, 0.3), "n_pairs": 8},
    "eap-ig-activations": {"n_points": 2},
    "edge-pruning": {"n_steps": 4},
    "edge-sp": {"n_steps": 12},
    "ensemble": {"member_settings": {"edge-sp": {"n_steps": 4}}},
    "node-sp": {"n_steps": 4},
    "ugs": {"n_steps": 4},
}


@pytest.fixture(scope="module")
def demo() -> tuple[vm.wiring.Wiring, Task]:
    model, task = vm.load("demo")
    assert task is not None
    return vm.wire(model, task.example), task


@pytest.fixture(scope="module")
def small(demo: tuple[vm.wiring.Wiring, Task]) -> tuple[vm.wiring.Wiring, Task]:
    """The same model on a few pairs."""
    wiring, task = demo
    return wiring, Task("few", task.train.batch(range(24)), task.held_out.batch(range(24)))


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> Method:
    return method_named(request.param, QUICK.get(request.param))


# conditions -------------------------------------------------------------------------------------------------------


def test_scores_under_other_fill_values_have_other_conditions(small: Any) -> None:
    """Though both fills are called the same."""
    wiring, task = small
    means = prepare_fill("mean", wiring, task).tensors  # type: ignore[attr-defined]
    mine, same, other = (
        vm.discover(wiring, task, "eap", vm.fill.tensor({name: by * mean for name, mean in means.items()})).conditions
        for by in (1, 1, 2)
    )
    assert (mine == same, mine == other) == (True, False)


# the answers -----------------------------------------------------------------------------------------------


def test_eap_is_the_gradient_of_the_metric(small: Any) -> None:
    """Against the slow reference, with every edge's keep a variable."""
    wiring, task = small
    pairs = task.train
    keep = torch.ones(len(wiring.edges), requires_grad=True)
    outputs = vm.run(wiring, pairs.clean, keep, vm.fill.resample(), pairs.corrupted, reference=True)
    LOGIT_DIFFERENCE(outputs, pairs).mean().backward()
    assert keep.grad is not None
    scores = vm.discover(wiring, task, method="eap")
    # float32: products over 32 positions x 64 features, in another order
    assert torch.allclose(scores.values, keep.grad, atol=1e-4 * float(keep.grad.abs().max()))


def test_edge_sp_finds_the_induction_circuit(demo: Any) -> None:
    """The previous-token heads feed the keys of the induction heads; nothing needs the queries (both runs share it)."""
    wiring, task = demo
    scores = vm.discover(wiring, task, method="edge-sp", n_steps=120)
    circuit = scores.circuit(faithful=0.9)
    assert len(circuit) <= 60
    keyed = [(w, r) for w, r in circuit if w in ("a0.h4", "a0.h5") and r.endswith("<k>")]
    assert len(keyed) >= 4
    measured = Judge(wiring, task, task.held_out, vm.fill.resample()).measure(circuit)
    assert measured.at(0.85)
    smaller = vm.discover(wiring, task, method="edge-sp", n_steps=120, target=20).circuit(edges=30)
    assert set(smaller.names) & set(circuit.names)


def test_masks_are_hard_concrete() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand((20000, 3), generator=generator)
    alpha = torch.tensor([-2.0, 0.0, 2.0])
    masks = draw(alpha, uniform)
    assert bool(((masks >= 0) & (masks <= 1)).all())
    assert bool((masks == 0).any())
    assert bool((masks == 1).any())
    # 20,000 draws: a share is known to about .0035 (one standard deviation)
    assert torch.allclose((masks > 0).float().mean(0), kept_probability(alpha), atol=0.015)


def test_faithfulness_is_as_defined(small: Any) -> None:
    wiring, task = small
    pairs, fill = task.held_out, vm.fill.resample()
    judge = Judge(wiring, task, pairs, fill, batch_size=7)
    keep = (torch.rand(len(wiring.edges), generator=torch.Generator().manual_seed(0)) < 0.7).float()
    with torch.no_grad():
        full = wiring.model(pairs.clean)
        none, kept = (vm.run(wiring, pairs.clean, k, fill, pairs.corrupted) for k in (torch.zeros_like(keep), keep))
    m = [LOGIT_DIFFERENCE(o, pairs).mean() for o in (none, kept, full)]
    kl = [-KL(o, pairs, full=full).mean() for o in (kept, none)]
    found = judge.measure(keep)
    assert found.normalised == pytest.approx(float((m[1] - m[0]) / (m[2] - m[0])), rel=1e-4)
    assert found.kl_share == pytest.approx(float(kl[0] / kl[1]), rel=1e-3)
    low, high = found.normalised_interval
    assert low <= found.normalised <= high
    assert judge.measure(torch.ones_like(keep)).normalised == pytest.approx(1.0, abs=1e-5)
    assert judge.measure(torch.zeros_like(keep)).normalised == 0.0


def test_a_circuit_of_another_wiring_is_not_measured(small: Any) -> None:
    """Its edges are as many: only their names tell."""
    wiring, task = small
    other = Circuit(wiring.edges.names[::-1], torch.ones(len(wiring.edges), dtype=torch.bool))
    judge = Judge(wiring, task, task.held_out, vm.fill.resample())
    says(lambda: judge.measure(other), KeepError, "the circuit belongs to another wiring")


def figures(demo: Any, values: Tensor, groups: list[str]) -> Faithfulness:
    """What a judge says of pairs whose metric is 0 with nothing kept, 1 in full, and ``values`` in between."""
    wiring, task = demo
    pairs = replace(task.held_out.batch(range(len(values))), groups=tuple(groups))
    judge = Judge(wiring, Task("few", pairs, pairs, task.metric), pairs, vm.fill.resample())
    judge.none, judge.full = torch.zeros_like(judge.none), torch.ones_like(judge.full)
    return judge._figures(values.double(), judge.none_kl)


def test_intervals_draw_whole_groups_whatever_their_sizes(demo: Any) -> None:
    """The spread of a mean of groups drawn with replacement, worked out by hand; pairs within a group are not drawn."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 4, (120,), generator=generator)
    worth = torch.rand(120, generator=generator)
    values = worth.repeat_interleave(sizes)
    names = [f"group {i}" for i in range(120) for _ in range(sizes[i])]
    found = figures(demo, values, names)
    # of a ratio of sums over groups (the delta method)
    deviation = float(((sizes * (worth - values.mean())) ** 2).sum().sqrt() / sizes.sum())
    low, high = found.normalised_interval
    # a quantile at 2.5% of 1,000 resamples is known to about 0.08 standard deviations
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.12)
    assert (low + high) / 2 == pytest.approx(found.normalised, abs=0.3 * deviation)
    assert (found.n_pairs, found.n_groups) == (int(sizes.sum()), 120)


def test_pairs_of_one_group_are_never_apart(demo: Any) -> None:
    """Each group's mean is the same: whatever is drawn, so is the figure."""
    found = figures(demo, torch.tensor([0.2, 0.8, 0.5, 0.3, 0.7, 0.5, 0.5]), ["a", "a", "b", "c", "c", "d", "d"])
    assert found.normalised_interval == pytest.approx((0.5, 0.5))
    assert figures(demo, torch.tensor([0.2, 0.4, 0.7, 0.9]), list("abcd")).median == pytest.approx(0.55), (
        "between the two in the middle"
    )


@pytest.mark.parametrize(
    ("normalised", "kl", "holds"), [(0.9, 0.1, True), (0.89, 0.0, False), (1.11, 0.0, False), (1.0, 0.11, False)]
)
def test_faithful_at_t_has_two_sides_and_a_kl(normalised: float, kl: float, holds: bool) -> None:
    interval = (normalised, normalised)
    figures = Faithfulness("m", 1.0, 0.0, normalised, normalised, interval, 1.0, 1.0, kl, interval, 9, 9)
    assert figures.at(0.9) is holds


def test_prepared_means_are_of_the_train_split(small: Any) -> None:
    wiring, task = small
    fill = prepare_fill("mean", wiring, task)
    with vm.record(wiring, ["a0.h1"]) as seen:
        wiring.model(task.train.clean)
    expected = seen["a0.h1"].mean((0, 1))
    assert torch.allclose(fill.tensors["a0.h1"].flatten(), expected, atol=1e-6)  # type: ignore[attr-defined]


@pytest.mark.parametrize("fill", ["zero", "mean", "mean-position", "resample"])
def test_every_fill_can_be_asked_for(small: Any, fill: str) -> None:
    assert vm.discover(*small, method="eap", fill=fill).conditions.fill == fill


# errors ----------------------------------------------------------------------------------------------------


def says(call: Callable[[], Any], kind: type[VoltmeterError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


def test_unknown_names(small: Any) -> None:
    says(lambda: vm.discover(*small, method="edge-ps"), VoltmeterError, "no method called 'edge-ps'", "edge-sp")
    says(lambda: vm.discover(*small, method="eap", fill="meen"), FillError, "no fill called 'meen'", "mean")
    says(lambda: vm.discover(*small, method="edge-sp", steps=3), VoltmeterError, "no setting called 'steps'", "n_steps")
    says(lambda: EdgeSp(objective="l2"), VoltmeterError, "no objective 'l2'", "kl, metric")


def test_a_circuit_is_asked_for_in_one_way(small: Any) -> None:
    scores = vm.discover(*small, method="eap")
    says(lambda: scores.circuit(), CircuitError, "how large")
    says(lambda: scores.circuit(edges=3, faithful=0.5), CircuitError, "how large")
    says(lambda: scores.circuit(edges=1000), CircuitError, "1,000", "257")
    read = Scores(scores.edges, scores.values, "eap", scores.conditions)
    says(lambda: read.circuit(faithful=0.9), CircuitError, "read from a file")
    assert isinstance(read.circuit(edges=3), Circuit)


@pytest.mark.parametrize("settings", [{"n_steps": 0}, {"price": -1.0}, {"price": 0.0, "target": 9}])
def test_settings_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    says(lambda: EdgeSp(**settings), VoltmeterError, "edge-sp cannot work with these settings\n", next(iter(settings)))
    assert EdgeSp(price=0.0).price == 0, "without a target, nothing is steered by it"


def test_a_question_that_cannot_be_meant(small: Any) -> None:
    """A batch of -1 pairs makes no batches: once, every score was 0. No method is asked before that is seen."""
    for size in (0, -1):
        says(lambda size=size: vm.discover(*small, "eap", batch_size=size), TaskError, f"a batch of {size} pairs")
    for seed in (-1, 2**32):
        says(lambda seed=seed: vm.discover(*small, "eap", seed=seed), VoltmeterError, f"the seed {seed} was given")


def test_faithful_at_one_is_what_all_edges_are(small: Any) -> None:
    """Up to rounding: kept edges are summed in another order than in the model."""
    scores = vm.discover(*small, method="eap")
    assert len(scores.circuit(faithful=1.0)) <= len(scores)
    for threshold in (0.0, -1.0, 1.1, float("nan")):
        says(lambda t=threshold: scores.circuit(faithful=t), CircuitError, f"faithful at {threshold:g}", "up to 1")


def test_a_metric_of_ones_own_is_given_all_that_the_model_returns(small: Any, method: Method) -> None:
    """Not only the logits at the answer, though the pairs have answers."""
    wiring, task = small
    shapes = set()

    def at_five(outputs: Tensor, pairs: Pairs) -> Tensor:
        shapes.add(tuple(outputs.shape[1:]))
        return outputs[:, 20].logsumexp(1)

    told = Task("mine", task.train, task.held_out, metric_of("mine", at_five))
    vm.discover(wiring, told, method=method)
    measured = Judge(wiring, told, told.held_out, vm.fill.resample()).measure(torch.ones(len(wiring.edges)))
    assert shapes == {(32, 65)}
    assert measured.kl_share == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        expected = wiring.model(told.held_out.clean)[:, 20].logsumexp(1).mean()
    assert measured.full == pytest.approx(float(expected), rel=1e-5)


def test_a_constant_metric_is_an_error(small: Any) -> None:
    wiring, task = small
    flat = metric_of("flat", lambda outputs, pairs: torch.ones(len(pairs)))
    told = Task("flat", task.train, task.held_out, flat)
    says(lambda: Judge(wiring, told, told.train, vm.fill.resample()), MetricError, "flat")


@pytest.mark.parametrize(
    "outputs", [{"scores": torch.zeros(2, 5)}, (torch.zeros(2), torch.zeros(2, 5)), torch.zeros(3, 5)]
)
def test_answers_are_not_looked_up_in_what_are_no_logits(outputs: Any) -> None:
    """A metric of one's own may need none of it."""
    pairs = Pairs.from_tokens([[1, 2], [1, 3]], [[2, 2], [2, 3]], [[0], [1]])
    assert not has_logits(outputs, pairs)
    assert has_logits({"logits": torch.zeros(2, 2, 5)}, pairs)


def test_tasks_without_logits_have_no_kl(small: Any) -> None:
    wiring, task = small
    first = metric_of("first", lambda outputs, pairs: outputs[:, -1, 0])
    bare = Pairs.of(task.train.clean, task.train.corrupted)
    told = Task("bare", bare, bare, first)
    judge = Judge(wiring, told, told.train, vm.fill.resample())
    assert judge.measure(torch.ones(len(wiring.edges))).kl_share is None
    assert vm.discover(wiring, told, method="edge-sp", n_steps=2).conditions.metric == "first"
