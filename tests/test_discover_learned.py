"""Methods that learn masks, the constants learned with them, and their mixtures."""

import copy
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import Tensor

import voltmeter as vm
from voltmeter.discover import Judge, Method, Question, ask, method_named, prepare_fill
from voltmeter.discover.constants import optimal_fill
from voltmeter.discover.discretise import prune
from voltmeter.discover.ensemble import Ensemble
from voltmeter.discover.learning import adam, adam_start
from voltmeter.discover.masks import EdgeSp, draw, mean_ranks, normal_ranks
from voltmeter.discover.method import State, run_method
from voltmeter.discover.nodes import NodeSp, of_readers
from voltmeter.discover.prune import is_one_minimal
from voltmeter.discover.pruning import EdgePruning
from voltmeter.discover.ugs import Sample, Ugs, gradient, sample
from voltmeter.errors import FillError, VoltmeterError
from voltmeter.task import Task

SHORT: dict[str, Method] = {
    "edge-sp from eap": EdgeSp(n_steps=4, warm_start="eap"),
    "edge-pruning of nodes": EdgePruning(n_steps=4, node_target=0.5),
    "ugs with a fill": Ugs(n_steps=4, learn_fill=True),
}
"""Settings with which a state holds more; how methods do by default: test_conformance.py."""


@pytest.fixture(scope="module")
def demo() -> tuple[vm.wiring.Wiring, Task]:
    model, task = vm.load("demo")
    assert task is not None
    return vm.wire(model, task.example), task


@pytest.fixture(scope="module")
def few(demo: Any) -> tuple[vm.wiring.Wiring, Task]:
    wiring, task = demo
    return wiring, Task("few", task.train.batch(range(16)), task.held_out.batch(range(16)))


@pytest.fixture(scope="module")
def question(few: Any) -> Question:
    return ask(*few, "mean", seed=2, batch_size=8)


def finished(method: Method, question: Question) -> State:
    """The state after the last step."""
    state = method.start(question)
    for number in range(method.steps(question)):
        state = method.step(question, state, number)
    return state


# all of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_stopped_after_any_step_it_resumes_to_the_same(method: Method, question: Question) -> None:
    kept: list[State] = []
    whole = run_method(method, question, lambda step, steps, state: kept.append(copy.deepcopy(state)))
    assert all(isinstance(tensor, Tensor) for state in kept for tensor in state.values())
    for done, state in enumerate(kept, 1):
        assert torch.equal(run_method(method, question, resume=(done, state)), whole)
    assert whole.shape == (257,)
    assert bool(whole.isfinite().all())


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_a_step_leaves_the_state_before_it_alone(method: Method, question: Question) -> None:
    state = method.start(question)
    for number in range(min(3, method.steps(question))):
        before = copy.deepcopy(state)
        after = method.step(question, state, number)
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], before[name]) for name in state)
        state = after


@pytest.mark.parametrize(
    "method", [NodeSp(n_steps=60), EdgePruning(n_steps=120), Ugs(n_steps=120)], ids=lambda m: m.name
)
def test_the_induction_circuit_is_found(demo: Any, method: Method) -> None:
    """Keys of the induction heads from the previous-token heads 4 and 5, whose values are of the input."""
    wiring, task = demo
    best = vm.discover(wiring, task, method, batch_size=8).top(60)
    assert {"input -> a0.h4<v>", "input -> a0.h5<v>"} <= set(best.names)
    keyed = [(w, r) for w, r in best if w in ("a0.h4", "a0.h5") and r.startswith("a1.") and r.endswith("<k>")]
    assert len(keyed) >= 8


# learning --------------------------------------------------------------------------------------------------


def test_adam_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(5, generator=generator, dtype=torch.float64)
    parameter = value.clone().requires_grad_()
    theirs = torch.optim.Adam([parameter], lr=0.03)
    state = adam_start("x", value)
    for number in range(6):
        slope = torch.randn(5, generator=generator, dtype=torch.float64)
        parameter.grad = slope
        theirs.step()
        state = adam(state, "x", slope, number, 0.03)
    # float64: the same operations in another order
    assert torch.allclose(state["x"], parameter.detach(), rtol=1e-12)


def test_equal_values_share_their_ranks() -> None:
    assert mean_ranks(torch.tensor([3.0, 1.0, 3.0, 7.0])).tolist() == [2.0, 0.5, 2.0, 3.5]
    normal = normal_ranks(torch.arange(1001.0))
    assert float(normal[500]) == pytest.approx(0, abs=1e-6)
    # the quantile of a standard normal at 2.5%, from ranks that are steps of .001
    assert float(normal[25]) == pytest.approx(-1.96, abs=0.01)


def test_a_warm_start_begins_in_the_order_of_the_other_scores(question: Question) -> None:
    cold, warm = (EdgeSp(warm_start=name, warm_gain=1.5).start(question)["alpha"] for name in ("none", "eap"))
    assert len(cold.unique()) == 1
    scores = run_method(method_named("eap"), question).abs()
    assert torch.equal(torch.argsort(warm, stable=True), torch.argsort(scores, stable=True))
    # an even grid of quantiles: its deviation falls short of 1.5 by the tails it leaves out
    assert float((warm - cold).std()) == pytest.approx(1.5, rel=0.02)
    assert float(warm.mean()) == pytest.approx(float(cold[0]), abs=1e-4)


# nodes -----------------------------------------------------------------------------------------------------


def test_an_edge_scores_the_product_of_its_ends(question: Question) -> None:
    state = finished(NodeSp(n_steps=4), question)
    kept = dict(zip((w.name for w in question.wiring.writers), state["total"] / 2, strict=True))
    scores = NodeSp(n_steps=4).values(question, state)
    for score, (writer, reader) in zip(scores, question.wiring.edges, strict=True):
        expected = kept[writer] * (1 if reader == "logits" else kept[reader.partition("<")[0]])
        assert float(score) == pytest.approx(float(expected), rel=1e-5)  # float32


def test_a_reader_of_several_is_kept_with_any_of_them() -> None:
    wiring = models.wired(models.Transformer(layers=1, heads=2, kv=1, mlp="gated", seed=1))
    kept = torch.rand(len(wiring.writers), generator=torch.Generator().manual_seed(0))
    found = of_readers(wiring, kept)
    shared = wiring.reader("a0.kv0<k>")
    assert len(shared.feeds) == 2
    one, other = (kept[wiring.writer(name).number] for name in shared.feeds)
    assert float(found[shared.number]) == pytest.approx(float(one + other - one * other), rel=1e-5)
    assert float(found[wiring.reader(wiring.outputs[0]).number]) == 1


def test_cutting_what_a_node_writes_cuts_the_node(question: Question) -> None:
    """Edges into a component of which nothing is kept change nothing: the mask may stand at the writer alone."""
    wiring, batch = question.wiring, question.batch(0)
    nodes = (torch.rand(len(wiring.writers), generator=torch.Generator().manual_seed(3)) < 0.6).float()
    at_writer = NodeSp().keep(question, nodes[None])[0]
    both_ends = at_writer * of_readers(wiring, nodes)[wiring.edges.reader_numbers]
    assert int(both_ends.sum()) < int(at_writer.sum())
    one, other = (vm.run(wiring, batch.clean, keep, batch.fill) for keep in (at_writer, both_ends))
    # float32 logits of about 30, summed from another start
    assert torch.allclose(one, other, atol=1e-3)


# edge pruning ----------------------------------------------------------------------------------------------


def test_edge_pruning_is_steered_to_its_targets(few: Any) -> None:
    question = ask(*few, batch_size=2)
    state = finished(EdgePruning(n_steps=300, edge_target=0.7, node_target=0.4), question)
    uniform = torch.rand((400, 1), generator=torch.Generator().manual_seed(0))
    cut = {name: 1 - draw(state[name], uniform.expand(-1, len(state[name]))).mean() for name in ("edges", "nodes")}
    # the multipliers swing around the targets, and stop where the run does
    assert float(cut["edges"]) == pytest.approx(0.7, abs=0.2)
    assert float(cut["nodes"]) == pytest.approx(0.4, abs=0.2)


def test_without_a_target_nothing_presses_on_the_nodes(question: Question) -> None:
    free, pressed = (finished(EdgePruning(n_steps=6, node_target=target), question) for target in (None, 0.9))
    assert not bool(free["nodes.multipliers"].any())
    assert bool(pressed["nodes.multipliers"].all())
    assert bool(free["edges.multipliers"].all())


# uniform gradient sampling ---------------------------------------------------------------------------------


def test_keeps_are_drawn_as_they_should() -> None:
    kept = torch.tensor([0.05, 0.5, 0.9])
    drawn = sample(kept, torch.rand((40000, 3), generator=torch.Generator().manual_seed(0)))
    between = drawn.keep[:, 1][drawn.between[:, 1]]
    # of 40,000 draws: a share is known to about .0025 (one standard deviation)
    assert torch.allclose(drawn.keep.mean(0), kept, atol=0.01)
    assert torch.allclose(drawn.between.float().mean(0), kept * (1 - kept), atol=0.01)
    assert bool(((drawn.keep == 0) | (drawn.keep == 1) | drawn.between).all())
    assert [float(between.quantile(q)) for q in (0.25, 0.5, 0.75)] == pytest.approx([0.25, 0.5, 0.75], abs=0.02)


def test_the_gradient_is_that_of_edges_kept_or_cut() -> None:
    """Of a loss that is far from linear in between: what counts is loss(1) - loss(0), the other edge on average."""
    kept = torch.tensor([0.3, 0.6])
    drawn = sample(kept, torch.rand((60000, 2), generator=torch.Generator().manual_seed(1)))
    keep = drawn.keep.clone().requires_grad_()
    (keep[:, 0] ** 3 * (1 + keep[:, 1])).mean().backward()
    assert keep.grad is not None
    found = gradient(drawn, keep.grad)
    cubed = float((drawn.keep[:, 0] ** 3).mean())
    # about 12,600 and 14,400 draws between: the mean of 3x^2 (1 + y) is known to about .02
    assert found.tolist() == pytest.approx([1.6, cubed], abs=0.06)


def test_an_edge_never_drawn_between_has_no_gradient() -> None:
    drawn = Sample(torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1, dtype=torch.bool))
    assert gradient(drawn, torch.tensor([[5.0], [7.0]])).tolist() == [0.0]


# learned constants -----------------------------------------------------------------------------------------


def loss_under(few: Any, fill: Any, circuit: Any) -> float:
    """KL(full || circuit) on the train pairs, averaged."""
    wiring, task = few
    measured = Judge(wiring, task, task.train, fill)
    share = measured.measure(circuit).kl_share
    assert share is not None
    return share * float(measured.none_kl.mean())


def test_an_optimal_fill_loses_less_than_the_means(few: Any) -> None:
    wiring, task = few
    circuit = vm.discover(wiring, task, "eap", "mean").top(120)
    learned = optimal_fill(wiring, task, circuit, steps=30)
    assert (learned.name, learned.needs_corrupted) == ("optimal", False)
    means = prepare_fill("mean", wiring, task)
    assert loss_under(few, learned, circuit) < 0.8 * loss_under(few, means, circuit)
    again = optimal_fill(wiring, task, circuit.mask(torch.float32), steps=30)
    assert all(torch.equal(value, again.tensors[name]) for name, value in learned.tensors.items())  # type: ignore[attr-defined]
    assert learned.over == "trained for 30 steps on the train pairs of few (seed 0), 120 edges kept"  # type: ignore[attr-defined]


def test_constants_that_no_cut_edge_carries_stay_the_means(few: Any) -> None:
    wiring, task = few
    keep = torch.tensor([float(edge.writer != "a0.h4") for edge in wiring.edges])
    means, learned = prepare_fill("mean", wiring, task), optimal_fill(wiring, task, keep, steps=3)
    changed = [name for name, value in learned.tensors.items() if not torch.equal(value, means.tensors[name])]  # type: ignore[attr-defined]
    assert changed == ["a0.h4"]


def test_ugs_returns_the_fill_it_learned(question: Question) -> None:
    method = Ugs(n_steps=4, learn_fill=True)
    learned = method.learned_fill(question, finished(method, question))
    assert learned is not None
    assert learned.name == "optimal"
    assert learned.over == "trained with ugs for 4 steps on the train pairs of few (seed 2)"  # type: ignore[attr-defined]
    assert not torch.equal(learned.tensors["a0.h4"], question.fill.tensors["a0.h4"])  # type: ignore[attr-defined]
    assert Ugs().learned_fill(question, {}) is None


def test_constants_begin_at_a_constant(few: Any) -> None:
    wiring, task = few
    says(lambda: vm.discover(wiring, task, Ugs(learn_fill=True)), "the resample fill is none", "fill='mean'")
    says(lambda: optimal_fill(wiring, task, torch.ones(257), start="zero"), "the zero fill is none to begin from")
    each = {w.name: torch.zeros(8, 1, 64) for w in wiring.writers}
    varying = ask(wiring, task, vm.fill.tensor(each), batch_size=8)
    says(lambda: Ugs(learn_fill=True).start(varying), "the tensor fill is none", kind=FillError)
    says(lambda: vm.fill.optimal({}, " "), "nothing says on what", "provenance", kind=FillError)
    says(lambda: optimal_fill(wiring, task, torch.ones(257), steps=0), "0 steps, at least 1")


# mixtures, and nothing -------------------------------------------------------------------------------------


def test_an_ensemble_is_made_of_what_its_members_find_alone(question: Question) -> None:
    eap = run_method(method_named("eap"), question).abs().double()
    nodes = run_method(NodeSp(n_steps=3), question).abs().double()
    made = {how: Ensemble(("eap", "node-sp"), {"node-sp": {"n_steps": 3}}, how) for how in ("rank", "z")}
    expected = {
        "rank": (mean_ranks(eap) + mean_ranks(nodes)) / (2 * 257),
        "z": sum((each - each.mean()) / each.std(unbiased=False) for each in (eap, nodes)) / 2,
    }
    for how, method in made.items():
        # scores are float32
        assert torch.allclose(run_method(method, question), expected[how].float(), rtol=1e-4, atol=1e-5)
    flat = Ensemble(("prune-only", "eap"), combine="z")
    assert torch.allclose(
        run_method(flat, question), ((eap - eap.mean()) / eap.std(unbiased=False) / 2).float(), atol=1e-5
    )


def test_prune_only_finds_a_one_minimal_circuit_without_scores(few: Any) -> None:
    found = vm.discover(*few, "prune-only")
    assert not bool(found.values.any())

    def suffices(keep: Tensor) -> Tensor:
        return keep[:, [5, 70, 200]].all(1)

    circuit = prune(found, suffices)
    assert circuit.kept.nonzero().flatten().tolist() == [5, 70, 200]
    assert is_one_minimal(suffices, circuit)


def says(call: Callable[[], Any], *parts: str, kind: type[VoltmeterError] = VoltmeterError) -> None:
    with pytest.raises(kind) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: NodeSp(n_steps=0), ("node-sp cannot work", "n_steps is 0", "from 1")),
        (lambda: NodeSp(objective="l2"), ("node-sp has no objective 'l2'", "kl, metric")),
        (lambda: EdgePruning(edge_target=0.0, initial=1.0), ("edge_target is 0.0", "initial is 1.0")),
        (lambda: EdgePruning(node_target=2.5), ("node_target is 2.5", "up to 2, or None")),
        (lambda: EdgePruning(multiplier_rate=0.0), ("multiplier_rate is 0.0",)),
        (lambda: Ugs(fill_rate=0.0, spread=0.5), ("fill_rate is 0.0", "spread is 0.5")),
        (lambda: Ensemble(combine="best"), ("combine by 'best'", "rank, z")),
        (lambda: Ensemble(()), ("these members", "it has none")),
        (lambda: Ensemble(("eap", "eap")), ("eap stands in it twice",)),
        (lambda: Ensemble(("ensemble",)), ("it names itself",)),
        (lambda: Ensemble(("eap",), {"edge-sp": {}}), ("settings for edge-sp, which is no member",)),
        (lambda: Ensemble(("eap", "edge-ps")), ("no method called 'edge-ps'", "edge-sp")),
        (lambda: Ensemble(("edge-sp",), {"edge-sp": {"steps": 2}}), ("no setting called 'steps'",)),
    ],
)
def test_settings_that_cannot_be_meant(make: Callable[[], Method], parts: tuple[str, ...]) -> None:
    says(make, *parts)


def test_a_warm_start_names_a_method(question: Question) -> None:
    says(lambda: EdgeSp(warm_start="epa").start(question), "no method called 'epa'", "eap")
