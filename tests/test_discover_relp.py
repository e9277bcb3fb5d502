"""Relevance rules: values stay, gradients are those of formulas worked out by hand, however the model writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attributions import asked, close, scored, single_cuts, squared, weighted
from conftest import asset
from models import Residual, Transformer
from specimen import seeded
from torch import Tensor, nn
from zoo import ZOO

import voltmeter as vm
from voltmeter.discover import ask
from voltmeter.discover.attribution import Eap
from voltmeter.discover.relp import RelP
from voltmeter.run.points import plain_point
from voltmeter.run.relevance import RelevanceRules
from voltmeter.task import Pairs, Task, metric_of

FLOAT32 = 2e-7  # scores are handed over in float32
EXACT = 1e-12  # float64, a few operations


def x_of(*shape: int, seed: int = 0) -> Tensor:
    return seeded(seed, *shape).double()


def under_rules(function: Callable[..., Tensor], *inputs: Tensor, held_patterns: bool = True) -> list[Tensor]:
    """The gradients of a weighted sum of the function under the rules. The value must be the plain one."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    with RelevanceRules(held_patterns):
        # not the leaves themselves: the function may work in place
        out = function(*(leaf + 0 for leaf in leaves))
    assert close(out.detach(), function(*(x.clone() for x in inputs)), 1e-15), "the value changed"
    weights = x_of(*out.shape, seed=9)
    grads = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))


def relu_in_place(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu in place": relu_in_place,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu by hand": gelu_by_hand,
    "silu": F.silu,
    "silu by hand": lambda x: x * torch.sigmoid(x),
    "silu from exp": lambda x: x / (1 + torch.exp(-x)),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "power": lambda x: 1.5**x,
    "sigmoid by hand": lambda x: 1 / (1 + torch.exp(-x)),
    "square": lambda x: x**2,
    "by keyword": lambda x: F.gelu(input=torch.pow(input=torch.relu(input=x), exponent=2)),
    "divided by keyword": lambda x: torch.div(x, other=1 + torch.exp(-x)),
    "squared relu": lambda x: F.relu(x).square(),
    "softplus": F.softplus,
    "soft cap": lambda x: 3.0 * torch.tanh(x / 3.0),
    "one less": lambda x: 1 - torch.sigmoid(x),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_functions_are_their_slope_from_zero(name: str) -> None:
    function, x = ELEMENTWISE[name], x_of(4, 7)
    start = function(torch.zeros(1).double())
    expected = x_of(4, 7, seed=9) * (function(x.clone()) - start) / x
    assert close(under_rules(function, x)[0], expected, EXACT)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_at_zero_the_slope_is_the_derivative(name: str) -> None:
    (found,) = under_rules(ELEMENTWISE[name], torch.zeros(3).double())
    above = torch.full((3,), 1e-6).double()
    slope = (ELEMENTWISE[name](above.clone()) - ELEMENTWISE[name](0 * above)) / above
    # a slope over 1e-4 against one over 1e-6: a curvature of about 1 between them
    assert float((found - x_of(3, seed=9) * slope).abs().max()) < 1e-3


def layer_norm_by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)


def rms_norm_by_hand(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


WEIGHT = x_of(6, seed=4)
NORMS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {  # and whether it takes the mean away
    "layer norm": (lambda x: F.layer_norm(x, (6,)), True),
    "layer norm by hand": (layer_norm_by_hand, True),
    "rms norm": (lambda x: F.rms_norm(x, (6,), eps=1e-6), False),
    "rms norm by hand": (rms_norm_by_hand, False),
    "rms norm by keyword": (lambda x: F.rms_norm(input=x, normalized_shape=(6,), eps=1e-6), False),
    "divided by its size": (lambda x: torch.div(x, other=x.square().mean(-1, keepdim=True) ** 0.5), False),
    "rms norm by a power": (lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).pow(-0.5), False),
    "normalize": (lambda x: 6**0.5 * F.normalize(x, dim=-1), False),
    "group norm": (lambda x: F.group_norm(x[..., None], 1)[..., 0], True),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_scale_is_held(name: str) -> None:
    function, centred = NORMS[name]
    x, weights = x_of(4, 6), x_of(4, 6, seed=9)
    if centred:
        scale = (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        expected = (weights - weights.mean(-1, keepdim=True)) * scale
    else:
        expected = weights * x.square().mean(-1, keepdim=True).rsqrt()
    assert close(under_rules(function, x)[0], expected, 1e-5)  # eps is in some and not in others


def test_a_norms_weight_passes_through() -> None:
    x = x_of(4, 6)
    with_weight = under_rules(lambda x: F.layer_norm(x, (6,), WEIGHT, WEIGHT), x)[0]
    by_hand = under_rules(lambda x: layer_norm_by_hand(x) * WEIGHT + WEIGHT, x)[0]
    assert close(with_weight, by_hand, EXACT)
    assert not close(with_weight, under_rules(lambda x: F.layer_norm(x, (6,)), x)[0], 0.1)


@pytest.mark.parametrize("multiply", [torch.mul, lambda a, b: (a * 1.0).mul_(b)], ids=["out of place", "in place"])
def test_factors_get_half_each(multiply: Any) -> None:
    a, b = x_of(4, 6), x_of(4, 6, seed=1)
    weights = x_of(4, 6, seed=9)
    found = under_rules(multiply, a, b)
    assert close(found[0], weights * b / 2, EXACT)
    assert close(found[1], weights * a / 2, EXACT)


def test_a_gate() -> None:
    """silu(gate) · up: half of each, and the gate's slope from zero."""
    gate, up, weights = x_of(4, 6), x_of(4, 6, seed=1), x_of(4, 6, seed=9)
    found = under_rules(lambda g, u: F.silu(g) * u, gate, up)
    assert close(found[0], weights * up * torch.sigmoid(gate) / 2, EXACT)
    assert close(found[1], weights * F.silu(gate) / 2, EXACT)
    both = torch.cat([up, gate], -1)
    (glu,) = under_rules(F.glu, both)
    expected = [torch.sigmoid(gate), up * (torch.sigmoid(gate) - 0.5) / gate]
    assert close(glu, torch.cat([weights * e / 2 for e in expected], -1), EXACT)


def test_what_is_changed_in_place_is_no_longer_what_it_was() -> None:
    """x was overwritten after sigmoid(x) was made of it: x · sigmoid is then a product of two."""

    def overwritten(x: Tensor, y: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        x += y
        return x * gate

    x, y = x_of(4, 6), x_of(4, 6, seed=1)
    found = under_rules(overwritten, x, y)
    weights, gate = x_of(4, 6, seed=9), torch.sigmoid(x)
    assert close(found[1], weights * gate / 2, EXACT)
    assert close(found[0], weights * (gate / 2 + (x + y) / 2 * (gate - 0.5) / x), EXACT)


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


@pytest.mark.parametrize("attend", [explicit, F.scaled_dot_product_attention], ids=["explicit", "fused"])
def test_patterns_are_held(attend: Any) -> None:
    q, k, v = (x_of(2, 5, 4, seed=n) for n in range(3))
    found = under_rules(attend, q, k, v)
    pattern = torch.softmax(q @ k.mT / 2, -1)
    assert close(found[2], pattern.mT @ x_of(2, 5, 4, seed=9), EXACT)
    assert not found[0].any()
    assert not found[1].any()
    free = under_rules(attend, q, k, v, held_patterns=False)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    plain = torch.autograd.grad((explicit(*leaves) * x_of(2, 5, 4, seed=9)).sum(), leaves)
    assert all(close(a, b, EXACT) for a, b in zip(free, plain, strict=True))


# the method ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["zero", "resample"])
def test_exact_where_the_model_is_linear(fill: str) -> None:
    question = asked(Residual(norm="none", act="none"), weighted, fill)
    assert close(scored(RelP(), question), single_cuts(question).mean(1), FLOAT32)


def by_hand(model: nn.Module, x: Tensor, other: Tensor) -> list[Tensor]:
    """x + down(gelu(up(norm(x)))) once and a linear head: the scores of its three edges, from the weights."""
    block = model.blocks[0]
    start, end = model.embed(x), model.embed(other)
    deltas = [start - end, block(start) - start - (block(end) - end)]
    up = block.up(block.norm(start))
    head = torch.linspace(-1, 1, 15, dtype=x.dtype).view(3, 5) @ model.head.weight  # the metric's weights, through it
    slope = F.gelu(up) / up
    centred = ((head @ block.down.weight) * slope @ block.up.weight) * block.norm.weight
    scale = (start.var(-1, unbiased=False, keepdim=True) + block.norm.eps).rsqrt()
    inward = (centred - centred.mean(-1, keepdim=True)) * scale
    return [(d * g).flatten(1).sum(1).mean() for d, g in ((deltas[0], inward), (deltas[0], head), (deltas[1], head))]


def test_a_block_by_hand() -> None:
    question = asked(Residual(blocks=1, norm="layer", act="gelu"), weighted)
    assert question.wiring.edges.names == ("input -> blocks.0", "input -> logits", "blocks.0 -> logits")
    with torch.no_grad():
        expected = by_hand(question.wiring.model, question.task.train.clean, question.task.train.corrupted)
    found = scored(RelP(), question)
    assert close(found, torch.stack(expected), FLOAT32)
    assert not close(found, scored(Eap(), question), 0.01)


def test_held_patterns_leave_queries_and_keys_without_a_score() -> None:
    question = asked(Transformer(layers=2, norm="rms", mlp="gated"), squared)
    into = torch.tensor([edge.reader.endswith(("<q>", "<k>")) for edge in question.wiring.edges])
    held, free = (scored(RelP(patterns), question) for patterns in (True, False))
    assert not held[into].any()
    assert bool((free[into] != 0).all())
    assert bool((held[~into] != 0).all())


@pytest.mark.parametrize("name", ["gpt2-eager", "gpt2-sdpa", "neox-parallel", "llama", "gemma2"])
def test_families(name: str) -> None:
    """The forward is the plain one; the rules reach these models' own norms and activations."""
    specimen = next(s for s in ZOO if s.name == name)
    wiring = vm.wire(specimen.build(), specimen.example(2, 5))
    inputs = specimen.example(2, 5)
    pairs = Pairs.of(inputs, inputs.flip(1))
    task = Task("random", pairs, pairs, metric_of("first", lambda out, _: out.logits[:, -1, :4].sum(1)))
    question = ask(wiring, task, "resample")
    batch, seen = question.batch(0), []
    for rules in (RelevanceRules, None):
        keep = {} if rules is None else {"rules": rules}
        plain_point(wiring, inputs, batch.fill, lambda out: seen.append(out.logits) or out.logits.sum(), **keep)
    assert close(seen[0], seen[1], 1e-6)
    first, second, plain = (scored(m, question) for m in (RelP(), RelP(), Eap()))
    assert bool(first.isfinite().all())
    assert torch.equal(first, second)
    assert not close(first, plain, 0.01)


def test_gelu_by_hand_is_gelu() -> None:
    """GPT-2's activation is written out in its own code: the same scores as with torch's."""
    specimen = next(s for s in ZOO if s.name == "gpt2-eager")
    found = []
    for activation in (None, nn.GELU(approximate="tanh")):
        model = specimen.build().double()
        for block in model.transformer.h:
            block.mlp.act = block.mlp.act if activation is None else activation
        inputs = specimen.example(2, 5)
        wiring = vm.wire(model.eval(), inputs)
        pairs = Pairs.of(inputs, inputs.flip(1))
        task = Task("random", pairs, pairs, metric_of("first", lambda out, _: out.logits[:, -1, :4].sum(1)))
        found.append(scored(RelP(), ask(wiring, task, "zero")))
    assert close(found[0], found[1], FLOAT32)


def test_a_trained_llama() -> None:
    model, _ = vm.load(str(asset("stories260K")))
    tokens = torch.randint(3, 500, (2, 9))
    wiring = vm.wire(model, tokens)
    pairs = Pairs.of(tokens, tokens.flip(1))
    task = Task("random", pairs, pairs, metric_of("first", lambda out, _: out.logits[:, -1, :9].sum(1)))
    found = scored(RelP(), ask(wiring, task, "resample"))
    assert bool(found.isfinite().all())
    # the embedding's tokens differ at the last place, whose logits are asked for
    assert float(found[wiring.edges.find("input -> logits")].abs()) > 0
