"""Integrated gradients: exact where they must be, and along the paths that the papers define."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attributions import Score, answers, asked, close, recorded, scored, single_cuts, squared, weighted
from models import Residual, ResidualMlp, Transformer
from torch import Tensor
from zoo import ZOO

import voltmeter as vm
from voltmeter.discover import Question, ask, discover
from voltmeter.discover.attribution import Eap
from voltmeter.discover.ig import EapIgActivations, EapIgInputs, input_writers
from voltmeter.errors import VoltmeterError
from voltmeter.run.points import moved_point, plain_point
from voltmeter.task import Pairs, Task, metric_of
from voltmeter.task.metric import KL

LINEAR = Residual(norm="none", act="none")
CURVED = Transformer(layers=2, norm="rms", mlp="gated", kv=1)
FLOAT32 = 2e-7  # all in float64, but scores are handed over in float32: 2^-24, and sums of a few such


@pytest.mark.parametrize("method", [Eap(), EapIgInputs(), EapIgActivations()], ids=lambda m: m.name)
@pytest.mark.parametrize("fill", ["zero", "mean", "resample"])
def test_exact_where_the_model_is_linear(method: Any, fill: str) -> None:
    question = asked(LINEAR, weighted, fill)
    assert close(scored(method, question), single_cuts(question).mean(1), FLOAT32)


@pytest.mark.parametrize("method", [EapIgInputs(1), EapIgActivations(1)], ids=lambda m: m.name)
def test_one_point_is_eap(method: Any) -> None:
    question = asked(CURVED, squared)
    assert close(scored(method, question), scored(Eap(), question), FLOAT32)


# paths -----------------------------------------------------------------------------------------------------


def inputs_by_hand(model: ResidualMlp, clean: Tensor, corrupted: Tensor, n_points: int) -> dict[str, Tensor]:
    """The definition from the weights: what an edge adds to what is read is a probe times its writer's plain delta."""
    names = ["input", "blocks.0", "blocks.1"]
    edges = [f"{w} -> {r}" for at, r in enumerate(["blocks.0", "blocks.1", "logits"]) for w in names[: at + 1]]
    total = {edge: torch.zeros((), dtype=torch.float64) for edge in edges}

    def outs(x: Tensor, probes: dict[str, Tensor], deltas: list[Tensor]) -> list[Tensor]:
        written = [x]
        for block, reader in zip([*model.blocks, None], ["blocks.0", "blocks.1", "logits"], strict=True):
            read = sum(written)
            for writer, delta in zip(names, deltas[: len(written)], strict=False):
                read = read + probes[f"{writer} -> {reader}"] * delta
            written.append(model.head(read) if block is None else block(read) - read)
        return written

    zeros = dict(total)
    with torch.no_grad():
        plain, other = (outs(model.embed(x), zeros, []) for x in (clean, corrupted))
    deltas = [a - b for a, b in zip(plain[:3], other[:3], strict=True)]
    for k in range(1, n_points + 1):
        probes = {edge: torch.zeros((), dtype=torch.float64, requires_grad=True) for edge in edges}
        at = other[0] + k / n_points * deltas[0]
        squared(outs(at, probes, deltas)[-1]).mean().backward()
        total = {edge: total[edge] + probes[edge].grad / n_points for edge in edges}
    return total


def test_the_inputs_path_is_as_defined() -> None:
    """With the clean run's deltas at every point, though the writers write something else there."""
    question = asked(Residual(norm="layer", act="gelu", seed=3), squared)
    pairs = question.task.train
    expected = inputs_by_hand(question.wiring.model, pairs.clean, pairs.corrupted, 4)
    assert set(expected) == set(question.wiring.edges.names)
    found = scored(EapIgInputs(4), question)
    assert close(found, torch.stack([expected[name] for name in question.wiring.edges.names]), FLOAT32)
    assert not close(found, scored(EapIgInputs(1), question), 0.01), "the path makes no difference here"


def limit(method: type[Any], question: Any, n_points: int) -> Tensor:
    """Of sums over ever more points: the error of one falls as 1/m, that of the two together as 1/m^2."""
    one, two = (scored(method(points), question) for points in (n_points, 2 * n_points))
    return 2 * two - one


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_point_is_the_run_whose_inputs_are_kept_in_part(share: float) -> None:
    question = asked(CURVED, squared, "mean", batch_size=3)
    values, expected = values_at(question, [share], squared)
    assert close(values, expected, 1e-12)  # float64, the same sums in another order


def values_at(question: Question, shares: list[float], score: Score) -> tuple[Tensor, Tensor]:
    """The metric at points of the inputs' path, and by the reference engine with the inputs' edges kept in part."""
    batch, wiring = question.batch(0), question.wiring
    moving = input_writers(wiring)
    plain, _ = plain_point(wiring, batch.clean, batch.fill, lambda out: score(out).sum())
    found = [moved_point(plain, moving, share, lambda out: score(out).sum())[1].detach() for share in shares]
    from_inputs = torch.isin(wiring.edges.writer_numbers, torch.tensor(sorted(moving)))
    keep = torch.where(from_inputs, torch.tensor(shares, dtype=torch.float64)[:, None], 1.0)
    with torch.no_grad():
        return torch.stack(found), answers(question, keep).sum(1)


def test_with_many_points_an_inputs_edges_add_up_to_its_effect() -> None:
    """Completeness of integrated gradients (Sundararajan et al. 2017), for a metric that is not linear."""
    question = asked(CURVED, squared, "mean", n_pairs=2)
    from_input = question.wiring.edges.writer_numbers == question.wiring.writer("input").number
    keep = torch.stack([torch.ones(question.n_edges), (~from_input).float()]).double()
    with torch.no_grad():
        full, cut = answers(question, keep).mean(1)
    found = limit(EapIgInputs, question, 16)[from_input].sum()
    assert float(found) == pytest.approx(float(full - cut), rel=2e-2)  # 1/m^2 = 4e-3, times a curvature


def test_with_many_points_every_writers_edges_add_up_to_its_effect() -> None:
    question = asked(CURVED, squared)
    numbers = question.wiring.edges.writer_numbers
    writers = range(len(question.wiring.writers))
    keep = torch.stack([torch.ones(question.n_edges), *((numbers != w).float() for w in writers)]).double()
    with torch.no_grad():
        found = answers(question, keep).mean(1)
    effects = found[0] - found[1:]
    limits = limit(EapIgActivations, question, 24)
    assert close(torch.stack([limits[numbers == w].sum() for w in writers]), effects, 5e-3)  # 1/m^2 = 2e-3


def test_activations_are_slopes_on_the_writers_own_path() -> None:
    """Central differences at each point, of the metric along one edge's keep."""
    question = asked(CURVED, squared)
    numbers, step = question.wiring.edges.writer_numbers, 1e-5
    edges = [0, 7, 20, question.n_edges - 1]
    slopes = []
    for edge in edges:
        keep = torch.ones(6, question.n_edges, dtype=torch.float64)
        for k, at in ((1, 0), (2, 2), (3, 4)):
            keep[at : at + 2, numbers == numbers[edge]] = k / 3
            keep[at, edge] += step
            keep[at + 1, edge] -= step
        with torch.no_grad():
            found = answers(question, keep).mean(1)
        slopes.append((found[0::2] - found[1::2]).sum() / (2 * step) / 3)
    # a difference quotient keeps about 1e-16 / 1e-5 of the metric, and is off by step^2
    assert close(scored(EapIgActivations(3), question)[edges], torch.stack(slopes), 1e-6)


def test_the_rows_run_at_once_do_not_matter() -> None:
    question = asked(CURVED, squared)
    whole, few = (EapIgActivations(3, max_rows=rows) for rows in (256, 5))
    assert few.steps(question) > whole.steps(question)
    assert close(scored(few, question), scored(whole, question), FLOAT32)


# what they can be asked ------------------------------------------------------------------------------------


def test_kl_has_a_gradient_on_the_way() -> None:
    """At the clean run it has none, and that is one of the points."""
    model, task = vm.load("demo")
    assert task is not None
    wiring = vm.wire(model, task.example)
    few = Task("few", task.train.batch(range(8)), task.held_out.batch(range(8)), KL)
    inputs = discover(wiring, few, EapIgInputs()).values
    assert float(inputs.abs().max()) > 1e-3
    edges = ask(wiring, few, "resample")
    activations = EapIgActivations(2)
    first = activations.step(edges, activations.start(edges), 0)["total"]
    assert float(first.abs().max()) > 1e-3


def test_two_streams_and_a_mapping_of_inputs() -> None:
    """An encoder-decoder: both embeddings move, and cross-attention's keys are read off the moved encoder's stream."""
    specimen = next(s for s in ZOO if s.name == "t5")
    wiring = vm.wire(specimen.build(), specimen.example(2, 6))
    assert len(wiring.inputs) == 2
    pairs = Pairs.of(specimen.example(2, 6), {k: t.flip(1) for k, t in specimen.example(2, 6).items()})

    def score(out: Any) -> Tensor:
        return out.logits[:, -1, :5].mean(1)

    task = Task("random", pairs, pairs, metric_of("first", lambda out, _: score(out)))
    question = ask(wiring, task, "resample")
    values, expected = values_at(question, [0.0, 0.4], score)
    assert close(values, expected, 1e-5)  # float32
    assert not close(values[1:], values[:1], 1e-2)
    for method in (EapIgInputs(2), EapIgActivations(1)):
        assert bool((scored(method, question) != 0).any())


def test_a_points_streams_are_the_models_own() -> None:
    """No run moves anything in place: the same question twice gives the same numbers, and the inputs are as before."""
    question = asked(Residual(act="tanh"), squared)
    pairs = question.task.train
    before, outs = pairs.clean.clone(), recorded(question.wiring, pairs.clean)
    first, second = (scored(EapIgInputs(), question) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(pairs.clean, before)
    assert all(torch.equal(outs[name], out) for name, out in recorded(question.wiring, pairs.clean).items())


def test_scores_by_example_add_up_to_those_of_all() -> None:
    question = asked(CURVED, squared, n_pairs=2)
    batch = question.batch(0)
    totals = []
    for rows in (1, 2):
        listener, value = plain_point(
            question.wiring, batch.clean, batch.fill, lambda out: squared(out).sum(), rows=rows
        )
        value.backward()
        totals.append(listener.total)
    assert close(totals[1].sum(0), totals[0][0], 1e-12)  # float64, sums in another order
    assert not close(totals[1][0], totals[1][1], 0.01)


@pytest.mark.parametrize("make", [lambda: EapIgInputs(0), lambda: EapIgActivations(-1), lambda: EapIgActivations(2, 0)])
def test_settings_that_cannot_be_meant(make: Any) -> None:
    with pytest.raises(VoltmeterError, match=r"cannot work with these settings\n.*a whole number from 1 was expected"):
        make()
