"""Structure decides, not values: components whose weights are zero are wired like all others.

Compiled and handcrafted transformers have many: layers that do nothing, heads that are silent among others that speak.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import pytest
import torch
import zoo
import zoo_plain
from specimen import Specimen, edges_of, enliven, mapped, sequential_story
from torch import Tensor, nn

import voltmeter
from voltmeter.wiring import Wiring
from voltmeter.wiring.algebra import is_flat
from voltmeter.wiring.trace import record

EXACT = 1e-12  # float64, a few dozen additions of numbers of size 1
WIDTH, HEAD_SIZE, HIDDEN, VOCABULARY, POSITIONS = 12, 3, 5, 7, 8
LAYERS = 2


@dataclass(frozen=True)
class Shape:
    """A transformer as compilers write it: no norm, no mask, the answer in some dimensions of the stream."""

    heads: int = 2
    unembedded: bool = False
    causal: bool = False


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        size = shape.heads * HEAD_SIZE
        self.q, self.k, self.v = (nn.Linear(WIDTH, size) for _ in range(3))
        self.out = nn.Linear(size, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.shape.heads, HEAD_SIZE)).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / HEAD_SIZE**0.5
        if self.shape.causal:
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Compiled(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tok, self.pos = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(LAYERS))
        self.unembed = nn.Parameter(torch.empty(WIDTH, 4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids) + self.pos(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return x @ self.unembed if self.shape.unembedded else x[..., 2:6]


def tokens(seed: int, length: int = 5) -> Tensor:
    return torch.randint(0, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(seed))


def built(shape: Shape, *zeros: str) -> nn.Module:
    """A model in which every parameter that one of ``zeros`` matches is zero."""
    model = enliven(Compiled(shape)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(re.search(pattern, name) for pattern in zeros):
                parameter.zero_()
    return model


SHAPES = [Shape(), Shape(heads=1), Shape(heads=1, unembedded=True, causal=True), Shape(causal=True)]
ZEROS = {
    "nothing": (),
    "attention of a layer": ("blocks.0.attention",),
    "MLP of a layer": ("blocks.0.mlp",),
    "a whole layer": ("blocks.1",),
    "every layer": ("blocks",),
    "queries and keys": (r"attention\.[qk]",),
    "values": (r"attention\.v",),
    "outputs": (r"attention\.out", r"mlp\.2"),
    "inputs of the MLPs": (r"mlp\.0",),
    "biases": ("bias",),
    "positions": ("pos",),
}


@functools.cache
def wired(shape: Shape, zeros: str) -> Wiring:
    return voltmeter.wire(built(shape, *ZEROS[zeros]), tokens(0))


def verified(wiring: Wiring) -> bool:
    found = wiring.verified
    return max(found.sum_error, found.law1_error, found.law2_error) < EXACT


each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_shape
@pytest.mark.parametrize("zeros", ZEROS)
def test_a_silent_component_is_wired_like_any_other(shape: Shape, zeros: str) -> None:
    wiring = wired(shape, zeros)
    assert {str(edge) for edge in wiring.edges} == edges_of(sequential_story(LAYERS, shape.heads, shape.heads))
    assert verified(wiring)


@each_shape
def test_the_input_is_divided_where_positions_are_silent(shape: Shape) -> None:
    parts = wired(shape, "positions").split("input")
    assert [writer.name for writer in parts.writers][:2] == ["input.tok", "input.pos"]
    assert verified(parts)


def test_units_of_a_silent_mlp() -> None:
    units = wired(SHAPES[0], "every layer").split("m1", "units")
    assert [w.name for w in units.writers if w.component == "m1"] == [f"m1.n{n}" for n in range(HIDDEN)]
    assert [r.name for r in units.readers if r.component == "m1"] == [f"m1.n{n}" for n in range(HIDDEN)]


@pytest.mark.parametrize("head", [0, 1])
def test_a_silent_head_beside_one_that_speaks(head: int) -> None:
    model = built(Shape())
    rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
    attention = model.get_submodule("blocks.1.attention")
    with torch.no_grad():
        for projection in (attention.q, attention.k, attention.v):
            projection.weight[rows] = 0
            projection.bias[rows] = 0
        attention.out.weight[:, rows] = 0
    wiring = voltmeter.wire(model, tokens(0))
    assert wiring.edges.names == wired(Shape(), "nothing").edges.names
    with voltmeter.record(wiring, [f"a1.h{head}", f"a1.h{1 - head}"]) as seen, torch.no_grad():
        model(tokens(1))
    assert not seen[f"a1.h{head}"].any()
    assert seen[f"a1.h{1 - head}"].any()


def test_cutting_a_silent_component_changes_nothing() -> None:
    wiring, ids = wired(Shape(), "attention of a layer"), tokens(1)
    keep = torch.tensor([float(edge.writer not in ("a0.h0", "a0.h1")) for edge in wiring.edges])
    found = voltmeter.run(wiring, ids, keep, voltmeter.fill.zero())
    assert torch.allclose(found, wiring.model(ids), rtol=0, atol=EXACT)
    assert not torch.allclose(voltmeter.run(wiring, ids, 1 - keep, voltmeter.fill.zero()), found)


# The same of every model of the zoos

SPECIMENS = {s.name: s for s in (*zoo.ZOO, *zoo_plain.ZOO) if s.expect is not None}
# What is computed between a reading and where its parts are told apart: norms, rotations, one more product, experts.
LAYERED = (
    "gpt2-eager", "neox-parallel", "llama", "qwen3", "gemma2", "olmo2", "bloom", "qwen3-moe-grouped", "deepseek-v3",
    "mamba", "t5", "attention-einsum", "torch-encoder", "baddbmm", "layerscale", "nested",
)  # fmt: skip


def wire(specimen: Specimen, silent: str = "") -> Wiring:
    model = specimen.build()
    parameters = [p for name, p in model.named_parameters() if silent and silent in name]
    assert bool(parameters) == bool(silent)
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
    dtype = torch.float64 if specimen.float64 else torch.float32
    inputs = mapped(lambda x: x.to(dtype) if x.is_floating_point() else x, specimen.example(3, 8))
    return voltmeter.wire(model.to(dtype), inputs)


@pytest.mark.parametrize("name", LAYERED)
def test_a_silent_layer_of_any_model(name: str) -> None:
    """Norms and low-rank projections included: DeepSeek's heads are found behind two products."""
    assert wire(SPECIMENS[name], silent=".1.").edges.names == wire(SPECIMENS[name]).edges.names


# Other values that could be taken for structure


def test_a_silent_channel_is_fed_by_its_own_layer_alone() -> None:
    specimen = SPECIMENS["plain-cnn"]
    model = specimen.build()
    model[1].weight.data[3] = 0  # of the batch norm
    wiring = voltmeter.wire(model, specimen.example(3, 8))
    assert [reader.feeds for reader in wiring.readers if reader.component == "0"] == [(f"0.c{n}",) for n in range(8)]


def test_a_transposition_of_zeros_moves_entries() -> None:
    """Of a square of zeros nothing is seen to move."""
    for view, flat in ((lambda x: x.mT, False), (lambda x: x[:, [1, 0, 2]], False), (lambda x: x[:, [0, 1, 2]], True)):
        x, model = torch.zeros(2, 3, 3), nn.Identity()
        recording = record(model, lambda view=view, x=x: view(x), x)
        assert is_flat(recording.ops[-1], recording) == flat
