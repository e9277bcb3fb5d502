"""HISP by loops over examples; the baselines by their definitions."""

from __future__ import annotations

import pytest
import torch
from attributions import asked, close, recorded, scored, single_cuts, squared, weighted
from models import Residual, Transformer
from torch import Tensor
from zoo import ZOO

import voltmeter as vm
from voltmeter.discover import Question, ask
from voltmeter.discover.attribution import layers_of
from voltmeter.discover.baseline import Magnitude, Random
from voltmeter.discover.hisp import Hisp
from voltmeter.errors import MetricError, VoltmeterError
from voltmeter.task import Pairs, Task, metric_of
from voltmeter.task.metric import KL

CURVED = Transformer(layers=2, norm="layer", mlp="plain", seed=2)
FLOAT32 = 2e-7  # scores are handed over in float32


def slopes(question: Question) -> Tensor:
    """The gradient to every edge's keep, example by example through the reference engine: [example, edge]."""
    pairs, rows = question.task.train, []
    for at in range(len(pairs)):
        one = pairs.batch([at])
        keep = torch.ones(question.n_edges, dtype=torch.float64, requires_grad=True)
        out = vm.run(question.wiring, one.clean, keep, question.fill, one.corrupted, reference=True)
        rows.append(torch.autograd.grad(question.task.metric(out, one).sum(), keep)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("fill", ["zero", "resample"])
def test_edges_by_loops(fill: str) -> None:
    question = asked(CURVED, squared, fill)
    expected = slopes(question)
    assert close(scored(Hisp(), question), expected.abs().mean(0), FLOAT32)
    assert not close(expected.mean(0).abs(), expected.abs().mean(0), 0.01), "the order makes no difference here"


def test_exact_where_the_model_is_linear() -> None:
    question = asked(Residual(norm="none", act="none"), weighted)
    assert close(scored(Hisp(), question), single_cuts(question).abs().mean(1), FLOAT32)


def test_nodes_by_loops() -> None:
    question = asked(CURVED, squared)
    wiring, found = question.wiring, slopes(question)
    nodes = {}
    for writer in wiring.writers:
        mine = [at for at, edge in enumerate(wiring.edges) if edge.writer == writer.name]
        nodes[writer.name] = found[:, mine].sum(1).abs().mean()
    layers = [["input"], ["a0.h0", "a0.h1", "m0"], ["a1.h0", "a1.h1", "m1"]]
    score = {n: nodes[n] / torch.stack([nodes[m] for m in layer]).norm() for layer in layers for n in layer}
    expected = [min(score[w], score.get(r.split("<")[0], torch.tensor(torch.inf))) for w, r in wiring.edges]
    assert close(scored(Hisp("node"), question), torch.stack(expected), FLOAT32)


def test_layers_are_the_numbered_modules() -> None:
    layers = layers_of(asked(CURVED, squared).wiring)
    assert layers == (frozenset({"a0", "m0"}), frozenset({"a1", "m1"}))


def test_what_hisp_cannot_be_asked() -> None:
    with pytest.raises(VoltmeterError, match=r"hisp has no level 'head'\n.*levels: edge, node"):
        Hisp("head")
    model, task = vm.load("demo")
    assert task is not None
    told = Task("kl", task.train.batch(range(4)), task.held_out.batch(range(4)), KL)
    with pytest.raises(MetricError, match="hisp takes the gradient at the full model, where kl is at its best"):
        vm.discover(vm.wire(model, task.example), told, Hisp())


def test_random_scores_follow_the_seed_alone() -> None:
    question = asked(CURVED, squared)
    again, other = (ask(question.wiring, question.task, "zero", seed=seed) for seed in (0, 1))
    first = scored(Random(), question)
    assert torch.equal(first, scored(Random(), again))
    assert not torch.equal(first, scored(Random(), other))
    assert len(first.unique()) == question.n_edges


@pytest.mark.parametrize("fill", ["zero", "resample"])
def test_magnitude_is_the_size_of_what_is_carried(fill: str) -> None:
    question = asked(Transformer(layers=1, seed=5), squared, fill)
    pairs = question.task.train
    clean, other = (recorded(question.wiring, x) for x in (pairs.clean, pairs.corrupted))
    carried = {name: out - other[name] * (fill == "resample") for name, out in clean.items()}
    expected = [carried[writer].flatten(1).norm(dim=1).mean() for writer, _ in question.wiring.edges]
    assert close(scored(Magnitude(), question), torch.stack(expected), FLOAT32)


def test_magnitude_leaves_padding_out() -> None:
    specimen = next(s for s in ZOO if s.name == "gpt2-padded")
    wiring = vm.wire(specimen.build(), specimen.example(2, 6))
    clean = specimen.example(3, 6)
    pairs = Pairs.of(clean, {**clean, "input_ids": clean["input_ids"].roll(1, 0) * clean["attention_mask"]})
    task = Task("padded", pairs, pairs, metric_of("first", lambda out, _: out.logits[:, 0, 0]))
    real = clean["attention_mask"][..., None]
    assert not bool(real.all())
    outs = recorded(wiring, clean)
    expected = torch.stack([(outs[writer] * real).flatten(1).norm(dim=1).mean() for writer, _ in wiring.edges])
    assert close(scored(Magnitude(), ask(wiring, task, "zero")), expected, 1e-6)  # float32
