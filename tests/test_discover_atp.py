"""AtP*: queries and keys by cutting them one by one, dropped layers by detaching them one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attributions import asked, close, recorded, scored, single_cuts, squared, weighted
from models import Residual, Transformer, built
from torch import Tensor
from zoo import ZOO

import voltmeter as vm
from voltmeter.discover import Question, ask
from voltmeter.discover.atp import AtPStar, readers_of_layers
from voltmeter.discover.attribution import Eap
from voltmeter.discover.hisp import Hisp
from voltmeter.errors import VoltmeterError
from voltmeter.run import heads
from voltmeter.run.points import plain_point
from voltmeter.task import Pairs, Task, metric_of

FLOAT32 = 2e-7  # scores are handed over in float32
GROUPED = Transformer(layers=2, heads=2, kv=1, norm="rms", mlp="gated", rotary=True, seed=1)
PARALLEL = Transformer(layers=3, heads=2, norm="layer", parallel=True, seed=2)


def test_with_neither_it_is_the_absolute_score_of_each_example() -> None:
    question = asked(PARALLEL, squared)
    assert close(scored(AtPStar(qk_fix=False, grad_drop=False), question), scored(Hisp(), question), FLOAT32)


def test_exact_where_the_model_is_linear() -> None:
    """Without dropped layers, which leave effects out on purpose."""
    question = asked(Residual(norm="none", act="none"), weighted)
    found = scored(AtPStar(grad_drop=False), question)
    assert close(found, single_cuts(question).abs().mean(1), FLOAT32)


# queries and keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [GROUPED, PARALLEL], ids=["grouped", "parallel"])
def test_heads_change_as_in_a_run_with_that_edge_cut(recipe: Transformer) -> None:
    """In the reference engine, of which only the first head after the cut is looked at."""
    question = asked(recipe, squared, batch_size=3)
    batch, wiring = question.batch(0), question.wiring
    point, _ = plain_point(wiring, batch.clean, batch.fill, lambda out: squared(out).sum())
    tried = 0
    for kind in ("q", "k"):
        for rows in (4, 256):
            for cuts, changes in heads.changes_of_heads(wiring, batch.clean, point.deltas, kind, rows):
                for at, cut in enumerate(cuts):
                    for reader, member in list(cut.items())[:: 3 if rows == 256 else 100]:
                        edge = wiring.edges.starts[reader] + member
                        for name in wiring.readers[reader].feeds:
                            expected = change_of(question, edge, name)
                            assert close(changes[wiring.writer(name).number][at], expected, 1e-10), edge
                            tried += 1
    assert tried > 20


def change_of(question: Question, edge: int, head: str) -> Tensor:
    """Plain - cut of what a head writes, by the reference engine with that edge cut."""
    from voltmeter.run.keep import Keep
    from voltmeter.run.reference import ReferenceCut
    from voltmeter.wiring.tap import LOOPED, Tap

    batch, wiring = question.batch(0), question.wiring
    outs = []
    for value in (1.0, 0.0):
        keep = torch.ones(question.n_edges, dtype=torch.float64)
        keep[edge] = value
        listener = ReferenceCut(wiring, batch.clean, Keep(keep, "edge"), batch.fill)
        with torch.no_grad(), Tap(wiring.model, wiring.plan, listener, LOOPED):
            wiring.model(batch.clean)
        outs.append(listener.out[wiring.writer(head).number])
    return outs[0] - outs[1]


def test_queries_and_keys_by_definition() -> None:
    """The change of what the head writes times the metric's gradient there: all effects after it to first order."""
    question = asked(GROUPED, squared, batch_size=3)
    wiring, batch = question.wiring, question.batch(0)
    found = scored(AtPStar(grad_drop=False), question)
    plain = scored(Hisp(), question)
    wanted = frozenset(w.number for w in wiring.writers if w.kind == "head")
    point, value = plain_point(wiring, batch.clean, batch.fill, lambda out: squared(out).sum(), wanted=wanted)
    value.backward()
    for reader in wiring.readers:
        start, stop = wiring.edges.starts[reader.number : reader.number + 2]
        if reader.kind not in ("q", "k"):
            assert close(found[start:stop], plain[start:stop], FLOAT32)
            continue
        for edge in (start, stop - 1):
            total = torch.zeros(3, dtype=torch.float64)
            for head in reader.feeds:
                gradient = point.out_gradients[wiring.writer(head).number]
                total += (gradient * change_of(question, edge, head)).flatten(1).sum(1)
            assert float(found[edge]) == pytest.approx(float(total.abs().mean()), rel=1e-6)


def test_a_writers_gradient_is_that_of_what_it_writes() -> None:
    """By central differences: a nudge to what it writes is a fill a little further on."""
    question = asked(PARALLEL, squared, batch_size=3)
    wiring, batch, step = question.wiring, question.batch(0), 1e-5
    head = wiring.writer("a1.h0")
    point, value = plain_point(
        wiring, batch.clean, batch.fill, lambda out: squared(out).sum(), wanted=frozenset({head.number})
    )
    value.backward()
    keep = torch.ones(2, question.n_edges, dtype=torch.float64)
    keep[:, wiring.edges.writer_numbers == head.number] = torch.tensor([[1 - step], [1 + step]], dtype=torch.float64)
    with torch.no_grad():
        out = vm.run(wiring, batch.clean, keep, batch.fill, axes="circuit edge")
    slope = (squared(out[0]) - squared(out[1])).sum() / (2 * step)
    delta = point.deltas[0][point.local[head.number]]
    assert float((point.out_gradients[head.number] * delta).sum()) == pytest.approx(float(slope), rel=1e-6)


def test_a_saturated_softmax_has_an_effect_and_no_gradient() -> None:
    """The blind spot that the fix is for: the first layer's queries, made twenty times larger."""
    recipe = Transformer(layers=1, heads=1, kv=1, norm="layer", mlp="none", seed=4)
    question = asked(recipe, squared)
    model = built(recipe)
    with torch.no_grad():
        model.blocks[0].attention.query.weight *= 60
    wiring = vm.wire(model, question.task.train.clean)
    question = ask(wiring, question.task, "resample")
    edge = wiring.edges.find("input -> a0.h0<q>")
    effect = float(single_cuts(question)[edge].abs().mean())
    assert effect > 0.1
    assert float(scored(Eap(), question)[edge].abs()) < 1e-2 * effect
    assert 0.2 * effect < float(scored(AtPStar(grad_drop=False), question)[edge]) < 5 * effect


# dropped layers --------------------------------------------------------------------------------------------


def dropped_by_hand(question: Question, dropped: int | None) -> Tensor:
    """From the weights of a residual MLP: [example, edge], what block ``dropped`` writes being a constant."""
    model, pairs, names = question.wiring.model, question.task.train, [w.name for w in question.wiring.writers]
    outs = [recorded(question.wiring, x) for x in (pairs.clean, pairs.corrupted)]
    probes = {edge: torch.zeros(len(pairs), 1, 1).double().requires_grad_() for edge in question.wiring.edges.names}
    written = [model.embed(pairs.clean)]
    for at, block in enumerate([*model.blocks, None]):
        reader = f"blocks.{at}" if block is not None else "logits"
        read = sum(written) + sum(probes[f"{w} -> {reader}"] * (outs[0][w] - outs[1][w]) for w in names[: at + 1])
        made = model.head(read) if block is None else block(read) - read
        written.append(made.detach() if at == dropped else made)
    grads = torch.autograd.grad(squared(written[-1]).sum(), list(probes.values()), allow_unused=True)
    return torch.stack([torch.zeros(len(pairs)).double() if g is None else g.flatten() for g in grads], 1)


def test_dropped_layers_by_hand() -> None:
    """The paper's mean: of absolute values of each example, over the layers but the reader's own."""
    question = asked(Residual(blocks=3, norm="layer", act="tanh", seed=7), squared)
    by_layer = torch.stack([dropped_by_hand(question, layer) for layer in range(3)]).abs().sum(0)
    into_logits = torch.tensor([edge.reader == "logits" for edge in question.wiring.edges])
    expected = (by_layer / torch.where(into_logits, 3, 2)).mean(0)
    found = scored(AtPStar(), question)
    assert close(found, expected, FLOAT32)
    plain = dropped_by_hand(question, None).abs().mean(0)
    assert close(found[into_logits], plain[into_logits], FLOAT32), "no layer lies between these and the metric"
    assert not close(found, plain, 0.01)


@pytest.mark.parametrize("recipe", [GROUPED, PARALLEL], ids=["sequential", "parallel"])
def test_no_gradient_passes_through_a_dropped_layer(recipe: Transformer) -> None:
    """Attention and MLP together: what is left of the embedding's gradient is autograd's, with that block detached."""
    question = asked(recipe, squared, "zero", batch_size=3)
    wiring, batch = question.wiring, question.batch(0)
    embedding = recorded(wiring, batch.clean)["input"]
    from_input = wiring.edges.writer_numbers == wiring.writer("input").number
    point, value = plain_point(wiring, batch.clean, batch.fill, lambda out: squared(out).sum())
    for at, dropped in enumerate([frozenset(), *readers_of_layers(wiring)]):
        point.forget()
        point.dropped = dropped
        value.backward(retain_graph=True)
        gradient = embedding_gradient(wiring.model, batch.clean, None if at == 0 else at - 1)
        expected = (gradient * embedding).sum()
        assert float(point.total[0, from_input].sum()) == pytest.approx(float(expected), rel=1e-9)
        into = torch.isin(wiring.edges.reader_numbers, torch.tensor(sorted(dropped)))
        assert not point.total[0, into].any()


def embedding_gradient(model: Any, ids: Tensor, dropped: int | None) -> Tensor:
    """Of the metric, with what one block adds taken for a constant."""
    seen: list[Tensor] = []

    def begin(module: Any, args: Any) -> Any:
        seen.append(args[0].detach().requires_grad_())
        return (seen[0],)

    block = None if dropped is None else model.blocks[dropped]
    handles = [model.blocks[0].register_forward_pre_hook(begin)]
    for module in () if block is None else (block.attention, block.mlp):
        handles.append(module.register_forward_hook(lambda module, args, out: out.detach()))
    try:
        return torch.autograd.grad(squared(model(ids)).sum(), seen[0])[0]
    finally:
        for handle in handles:
            handle.remove()


def test_one_layer_alone_cannot_be_dropped() -> None:
    """An edge into the only layer has its whole gradient."""
    question = asked(Residual(blocks=1), squared)
    assert close(scored(AtPStar(), question), scored(Hisp(), question), FLOAT32)


# what it can be asked --------------------------------------------------------------------------------------


def test_cross_attention() -> None:
    """An encoder-decoder: keys read the encoder's stream, what the head writes is in the decoder's."""
    specimen = next(s for s in ZOO if s.name == "t5")
    wiring = vm.wire(specimen.build(), specimen.example(2, 6))
    inputs = specimen.example(2, 6)
    pairs = Pairs.of(inputs, {name: t.flip(1) for name, t in inputs.items()})
    task = Task("random", pairs, pairs, metric_of("first", lambda out, _: out.logits[:, -1, :5].mean(1)))
    found = scored(AtPStar(), ask(wiring, task, "resample"))
    crossing = [r for r in wiring.readers if r.kind == "k" and "encoder" in wiring.streams[r.stream].name]
    assert bool(found.isfinite().all())
    assert crossing
    assert any(bool((found[wiring.edges.starts[r.number] :][:3] > 0).any()) for r in crossing)


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(VoltmeterError, match=r"atp\* cannot work with these settings\n.*max_rows is 0"):
        AtPStar(max_rows=0)
