"""Examples of one position: the same wiring as of long ones, or a refusal that asks for more."""

from __future__ import annotations

import pytest
import torch
import zoo
import zoo_plain
from specimen import Specimen, mapped
from test_families import EXACT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo_models import plain_cnn, plain_mlp
from zoo_parts import (
    HEADS,
    WIDTH,
    Adding,
    Attention,
    Block,
    EinsumAttention,
    alive,
    features,
    images,
    plainly,
    rows,
    trunk,
)

import voltmeter
from voltmeter import fill, run
from voltmeter.errors import WiringError
from voltmeter.wiring import Wiring

SPECIMENS = {s.name: s for s in (*zoo.ZOO, *zoo_plain.ZOO)}
# Queries, keys and values fused and apart, shared heads, rotary and other positions, norms on queries; two projections.
ATTENTIVE = (
    "gpt2-eager", "gpt2-sdpa", "gpt-neo", "neox-parallel", "gptj", "llama", "qwen3", "gemma2", "phi3", "olmo2", "bloom",
    "falcon-new", "cohere", "deepseek-v3", "bert", "attention-mlp", "attention-only", "torch-encoder", "dict-output",
)  # fmt: skip


def example(specimen: Specimen, length: int) -> object:
    dtype = torch.float64 if specimen.float64 else torch.float32
    return mapped(lambda x: x.to(dtype) if x.is_floating_point() else x, specimen.example(3, length))


def wired(specimen: Specimen, length: int) -> Wiring:
    model = specimen.build()
    return voltmeter.wire(model.double() if specimen.float64 else model, example(specimen, length))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_one_position_shows_the_heads_as_many_do(name: str) -> None:
    """Attention over one position looks at it whatever its query and key are; they are readers all the same."""
    specimen = SPECIMENS[name]
    assert wired(specimen, 1).edges.names == wired(specimen, 8).edges.names


def test_what_was_wired_on_one_position_runs_on_many() -> None:
    short, long = (wired(SPECIMENS["llama"], length) for length in (1, 8))
    ids = SPECIMENS["llama"].example(2, 6)
    keep = torch.rand(len(long.edges), generator=torch.Generator().manual_seed(0)).double()
    found, expected = (run(wiring, ids, keep, fill.zero()).logits for wiring in (short, long))
    assert torch.allclose(found, expected, rtol=0, atol=EXACT)


def test_a_decoder_that_has_only_begun() -> None:
    """T5's decoder is often given its first token alone."""
    specimen = SPECIMENS["t5"]
    inputs = specimen.example(3, 8)
    wiring = voltmeter.wire(specimen.build(), {**inputs, "decoder_input_ids": inputs["decoder_input_ids"][:, :1]})
    assert wiring.edges.names == wired(specimen, 8).edges.names


def test_a_position_that_sees_itself_alone() -> None:
    """A mask may leave one entry of many."""

    class Myopic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            only = torch.eye(x.shape[1], dtype=torch.bool)
            return self.out(F.scaled_dot_product_attention(q, k, v, only).transpose(1, 2).flatten(2))

    wiring = voltmeter.wire(trunk(lambda: Adding(plainly, Myopic()), 1)(), features(3, 4))
    assert len(wiring.readers) == 3 * HEADS + 1


class Fused(Attention):
    """Attention that insists on a fused kernel, which cannot be opened."""

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().forward(x)


@pytest.mark.parametrize("attention", [EinsumAttention, Fused], ids=["einsum", "fused"])
def test_refused_where_one_position_hides_the_heads(attention: type[nn.Module]) -> None:
    """An einsum over one position multiplies no matrices."""
    with pytest.raises(WiringError, match="attention looks at one position alone") as caught:
        voltmeter.wire(trunk(lambda: Block(attention), 2)(), features(3, 1))
    assert caught.value.details == ("blocks.0.attention: its softmax runs over one entry",)
    assert caught.value.mend == "give an example with at least 2 positions"
    longer = voltmeter.wire(trunk(lambda: Block(attention), 2)(), features(3, 2))
    assert len(longer.readers) == 2 * (3 * HEADS + 1) + 1


class OneExpert(nn.Module):
    """A router's softmax over a single expert is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.up, self.down = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)) * self.router(x).softmax(-1))


def test_models_without_positions_are_not_asked_for_any() -> None:
    assert len(voltmeter.wire(alive(plain_mlp)(), rows(3, 1)).edges) > 0
    assert len(voltmeter.wire(alive(plain_cnn)(), images(3, 1)).edges) > 0
    assert len(voltmeter.wire(trunk(lambda: Adding(plainly, OneExpert()))(), rows(3, 1)).edges) == 10
