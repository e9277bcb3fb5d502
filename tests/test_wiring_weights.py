"""The weights of a head: whatever its model's way of keeping them, attention made of them is what the head wrote."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import zoo
import zoo_plain
from laws import EXACT, assert_close
from specimen import Specimen, enliven, mapped
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_parts import WIDTH, Adding, features, plainly, trunk

import voltmeter
from voltmeter.errors import AddressError, WiringError
from voltmeter.wiring import Wiring
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_settings import HookedSettings

SPECIMENS: dict[str, Specimen] = {s.name: s for s in (*zoo.ZOO, *zoo_plain.ZOO)}
HEAD_SIZE = WIDTH // 4


def example(name: str) -> object:
    inputs = SPECIMENS[name].example(2, 5)
    return mapped(lambda x: x.double() if x.is_floating_point() else x, inputs) if SPECIMENS[name].float64 else inputs


@functools.cache
def wired(name: str) -> Wiring:
    model = SPECIMENS[name].build()
    return voltmeter.wire(model.double() if SPECIMENS[name].float64 else model, example(name))


def assert_equal(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert torch.equal(found, expected)


# Where each model keeps them


def test_gpt2_keeps_them_fused_and_transposed() -> None:
    wiring = wired("gpt2-eager")
    attention = wiring.model.transformer.h[1].attn
    fused, size = attention.c_attn.weight, attention.embed_dim
    found, mine = wiring.weights("a1.h2"), slice(2 * 8, 3 * 8)
    for at, (matrix, bias) in enumerate(((found.W_Q, found.b_Q), (found.W_K, found.b_K), (found.W_V, found.b_V))):
        assert_equal(matrix, fused[:, at * size :][:, mine])
        assert_equal(bias, attention.c_attn.bias[at * size :][mine])
    assert_equal(found.W_O, attention.c_proj.weight[mine])
    assert_equal(found.b_O, attention.c_proj.bias)


def test_llama_shares_keys_and_values_between_heads() -> None:
    wiring = wired("llama")
    attention = wiring.model.model.layers[2].self_attn
    for head in range(4):
        found, mine, shared = wiring.weights(f"a2.h{head}"), slice(8 * head, 8 * head + 8), head // 2
        assert_equal(found.W_Q, attention.q_proj.weight[mine].T)
        assert_equal(found.W_K, attention.k_proj.weight[8 * shared :][:8].T)
        assert_equal(found.W_V, attention.v_proj.weight[8 * shared :][:8].T)
        assert_equal(found.W_O, attention.o_proj.weight[:, mine].T)
        assert (found.b_Q, found.b_K, found.b_V, found.b_O) == (None, None, None, None)


def test_neox_keeps_them_head_by_head() -> None:
    """[head, (q, k, v), size] along one axis."""
    wiring = wired("neox-parallel")
    attention = wiring.model.gpt_neox.layers[0].attention
    fused = attention.query_key_value
    weight, bias = fused.weight.unflatten(0, (4, 3, 8)), fused.bias.unflatten(0, (4, 3, 8))
    found = wiring.weights("a0.h3")
    for at, (matrix, shift) in enumerate(((found.W_Q, found.b_Q), (found.W_K, found.b_K), (found.W_V, found.b_V))):
        assert_equal(matrix, weight[3, at].T)
        assert_equal(shift, bias[3, at])
    assert_equal(found.W_O, attention.dense.weight[:, 24:].T)


def test_a_hooked_model_keeps_them_as_they_are_named() -> None:
    sizes = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_head": 3, "d_vocab": 7, "d_vocab_out": 7, "n_ctx": 8}
    settings = HookedSettings(**sizes, attention="causal", n_key_value_heads=2)
    model = enliven(HookedModel(settings)).double()
    wiring = voltmeter.wire(model, torch.arange(10).reshape(2, 5) % 7)
    attention = model.blocks[1].attn
    found = wiring.weights("a1.h3")
    expected = {name: getattr(attention, name)[3] for name in ("W_Q", "b_Q", "W_O")}
    expected |= {name: getattr(attention, f"_{name}")[1] for name in ("W_K", "b_K", "W_V", "b_V")}
    for name, value in (expected | {"b_O": attention.b_O}).items():
        assert_equal(getattr(found, name), value)


@pytest.mark.parametrize("name", ["attention-mlp", "attention-separate-heads", "torch-encoder"])
def test_shapes_are_those_of_transformer_lens(name: str) -> None:
    found = wired(name).weights(next(w.name for w in wired(name).writers if w.kind == "head"))
    shapes = [tuple(getattr(found, f"W_{letter}").shape) for letter in "QKVO"]
    assert shapes == [(WIDTH, HEAD_SIZE)] * 3 + [(HEAD_SIZE, WIDTH)]


@pytest.mark.parametrize("head", range(4))
def test_attention_made_of_them_is_what_the_head_wrote(head: int) -> None:
    wiring, x = wired("attention-mlp"), example("attention-mlp")
    with voltmeter.record(wiring, [f"a1.h{head}<q>", f"a1.h{head}"]) as seen, torch.no_grad():
        wiring.model(x)
    read = wiring.model.blocks[1].attention.norm(seen[f"a1.h{head}<q>"])
    w = wiring.weights(f"a1.h{head}")
    q, k, v = (read @ matrix + bias for matrix, bias in ((w.W_Q, w.b_Q), (w.W_K, w.b_K), (w.W_V, w.b_V)))
    scores = (q @ k.mT / HEAD_SIZE**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    assert_close(scores.softmax(-1) @ v @ w.W_O, seen[f"a1.h{head}"], EXACT)


# What they are


def test_they_are_copies_of_the_weights_of_now() -> None:
    wiring = voltmeter.wire(SPECIMENS["attention-mlp"].build(), SPECIMENS["attention-mlp"].example(2, 5))
    projection = wiring.model.blocks[0].attention.out
    before = wiring.weights("a0.h0")
    projection.weight.data += 1
    after = wiring.weights("a0.h0")
    assert_equal(after.W_O, projection.weight[:, :HEAD_SIZE].T)
    assert not torch.equal(before.W_O, after.W_O)
    assert not any(t.requires_grad for t in vars(after).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.W_O = before.W_O


def test_a_division_of_others_changes_nothing() -> None:
    wiring = wired("attention-mlp")
    other = wiring.merge("a0").split("m1", "units")
    for mine, theirs in zip(vars(other.weights("a1.h3")).values(), vars(wiring.weights("a1.h3")).values(), strict=True):
        assert_equal(mine, theirs)


# What is refused


@pytest.mark.parametrize("name", ["a0", "a7.h0", "m0", "input", "a0.h0<q>", ""])
def test_names_that_are_no_head(name: str) -> None:
    with pytest.raises(AddressError, match=f"no head is called '{name}'") as caught:
        wired("attention-mlp").weights(name)
    assert caught.value.details[0].startswith("nearest: a")
    assert caught.value.mend == "a head is a writer, such as a0.h0"


def test_heads_that_were_merged() -> None:
    with pytest.raises(AddressError, match="no component of this wiring is divided into heads") as caught:
        wired("attention-mlp").coarsen().weights("a0.h0")
    assert 'wiring.split("a0", "heads")' in caught.value.mend


@pytest.mark.parametrize(
    ("name", "what", "where"),
    [
        ("olmo2", "queries", "self_attn.q_norm"),  # normed over all heads before they divide
        ("deepseek-v3", "queries", "q_a_proj"),  # of low rank: two products
        ("attention-einsum", "queries", "in einsum"),
    ],
)
def test_projections_that_are_no_plain_products(name: str, what: str, where: str) -> None:
    with pytest.raises(WiringError, match=f"the {what} of 'a0.h0' are not one product of the stream") as caught:
        wired(name).weights("a0.h0")
    assert where in caught.value.details[0]
    assert "model's own parameters" in caught.value.mend


class LearnedQueries(nn.Module):
    """Every position asks its own question, whatever stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.empty(1, 2, 8, WIDTH // 2))
        self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        k, v = (made(x).unflatten(-1, (2, -1)).transpose(1, 2) for made in (self.key, self.value))
        q = self.asked[:, :, : x.shape[1]].expand(len(x), -1, -1, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_queries_that_no_stream_makes_have_no_weights() -> None:
    wiring = voltmeter.wire(trunk(lambda: Adding(plainly, LearnedQueries()), 1)(), features(3, 4))
    with pytest.raises(WiringError, match=r"the queries of 'a0\.h1' are not made from a stream") as caught:
        wiring.weights("a0.h1")
    assert caught.value.details == ("it reads a0.h1<k>, a0.h1<v>",)
    assert "named_parameters" in caught.value.mend
