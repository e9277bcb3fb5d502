"""Wiring in the situations that real code brings: declared modules, hooks, autocast, odd layers, compiled parts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zoo
import zoo_plain
from specimen import Counts, Specimen, seeded
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from zoo_adding import PassThrough
from zoo_models import compiled
from zoo_parts import WIDTH, Adding, Block, EinsumAttention, Mlp, NoNorm, Trunk, alive, features, plainly, trunk
from zoo_refused import Dense, Highway, between, stacked_sum

import voltmeter
from voltmeter.errors import AddressError, WiringError

X = features(3, 8)
SPECIMENS = {specimen.name: specimen for specimen in zoo_plain.ZOO}
TWO_BLOCKS = Counts(11, 27, 110)


def counts(wiring: voltmeter.Wiring) -> Counts:
    return Counts(len(wiring.writers), len(wiring.readers), len(wiring.edges))


def engine_and_reference_agree(wiring: voltmeter.Wiring, inputs: Tensor) -> bool:
    keep = torch.rand(len(wiring.edges), generator=torch.Generator().manual_seed(0))
    fast, slow = (
        voltmeter.run(wiring, inputs, keep, voltmeter.fill.resample(), corrupted=inputs.flip(0), reference=reference)
        for reference in (False, True)
    )
    return torch.allclose(fast, slow, atol=1e-4)


# Declared modules


@pytest.mark.parametrize("bad", [Highway, lambda: Adding(stacked_sum)], ids=["highway", "stacked-sum"])
def test_a_declared_module_ends_one_stream_and_begins_another(bad: Callable[[], nn.Module]) -> None:
    model = between(bad)()
    with pytest.raises(WiringError, match=re.escape('declare=["blocks.1"]')):
        voltmeter.wire(model, X)
    wiring = voltmeter.wire(model, X, declare=["blocks.1"])
    assert {str(edge) for edge in wiring.edges} == {
        "input -> blocks.0.f",
        "input -> blocks.1",
        "blocks.0.f -> blocks.1",
        "blocks.1 -> blocks.2.f",
        "blocks.1 -> logits",
        "blocks.2.f -> logits",
    }
    assert engine_and_reference_agree(wiring, X)


def test_declaring_what_can_be_read_only_hides_its_parts() -> None:
    wiring = voltmeter.wire(trunk(Block, 2)(), X, declare=["blocks.0.attention"])
    assert counts(wiring) == Counts(8, 16, 1 + 2 + 12 * 3 + 7 + 8)
    assert engine_and_reference_agree(wiring, X)


def test_declaring_too_little_is_refused() -> None:
    with pytest.raises(WiringError):
        voltmeter.wire(between(Highway)(), X, declare=["blocks.1.f"])


def test_a_declared_module_that_is_not_there() -> None:
    with pytest.raises(AddressError, match=r"blocks\.7") as caught:
        voltmeter.wire(between(Highway)(), X, declare=["blocks.7"])
    assert "nearest: blocks." in str(caught.value)


def test_the_mend_for_what_no_module_holds_is_true() -> None:
    with pytest.raises(WiringError, match="into a module of its own and declare it"):
        voltmeter.wire(alive(Dense)(), X)


def test_bind_keeps_what_was_declared() -> None:
    wiring = voltmeter.wire(between(Highway)(), X, declare=["blocks.1"])
    assert wiring.bind(between(Highway)()).edges.names == wiring.edges.names


# Plain networks


@pytest.mark.parametrize("name", ["plain-mlp", "plain-cnn"])
def test_plain_networks_are_cut_by_unit(name: str) -> None:
    specimen: Specimen = SPECIMENS[name]
    inputs = specimen.example(3, 8)
    wiring = voltmeter.wire(specimen.build(), inputs)
    assert engine_and_reference_agree(wiring, inputs)
    assert [w.name for w in wiring.coarsen().writers] == ["input", "0", wiring.writers[-1].component]
    assert wiring.reader("0.u3" if name == "plain-mlp" else "0.c3").feeds == (
        "0.u3" if name == "plain-mlp" else "0.c3",
    )


def test_a_stream_with_too_many_edges_stays_whole() -> None:
    model = nn.Sequential(nn.Linear(200, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    wiring = voltmeter.wire(model, seeded(0, 3, 200))
    assert counts(wiring) == Counts(1 + 30, 1 + 4, 1 + 120)
    assert wiring.reader("0").feeds == tuple(f"0.u{n}" for n in range(30))
    assert counts(wiring.split("0").split("input", "units")) == Counts(230, 34, 6120)
    assert counts(wiring.merge("0")) == Counts(2, 5, 5)


def test_units_that_a_softmax_mixes_feed_every_part() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1), nn.Linear(4, 2)).eval()
    wiring = voltmeter.wire(model, seeded(0, 3, 6))
    assert wiring.reader("0.u1").feeds == ("0.u0", "0.u1", "0.u2", "0.u3")


def test_channels_feed_the_places_they_are_flattened_to() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    wiring = voltmeter.wire(model, seeded(0, 3, 2, 4, 4))
    assert wiring.reader("0.c1").feeds == tuple(f"0.u{n}" for n in range(4, 8))


# Splitting


def test_splits_add_up_and_leave_the_others_alone() -> None:
    wiring = voltmeter.wire(trunk(Block, 2)(), X)
    assert wiring.components == ("input", "a0", "m0", "a1", "m1", "logits")
    units = wiring.split("m0", "units")
    assert counts(units) == Counts(11 - 1 + 32, 27 - 1 + 32, 110 + 31 * 5 + 31 * (12 + 1 + 1))
    assert units.merge("m0.n3").edges.names == wiring.edges.names
    assert counts(units.merge("a0")).writers == 42 - 3
    assert counts(wiring.split("m0", "channels").split("m1", "positions")) == Counts(9 + 24 + 8, 27, 110 + 23 * 14 + 7)
    assert counts(wiring.coarsen()) == Counts(5, 5, 15)


@pytest.mark.parametrize(
    ("component", "into", "said"),
    [
        ("a7", "heads", "nearest: a1, a0"),
        ("m0", "heads", "it can be: units, channels, positions, whole"),
        ("m0", "heads", 'wiring.split("m0", "units"), or --split m0=units'),
        ("a0", "banana", "it can be: heads, channels, positions, whole"),
        ("logits", "units", "writes to no stream"),
    ],
)
def test_what_cannot_be_split(component: str, into: str, said: str) -> None:
    with pytest.raises(AddressError, match=re.escape(said)):
        voltmeter.wire(trunk(Block, 2)(), X).split(component, into)


def test_parts_along_positions_need_the_length_they_were_wired_with() -> None:
    wiring = voltmeter.wire(trunk(Block, 2)(), X).split("m0", "positions")
    keep = torch.ones(len(wiring.edges))
    with pytest.raises(WiringError, match="8 parts along axis 1, and has 5"):
        voltmeter.run(wiring, X[:, :5], keep, voltmeter.fill.zero())


class TwoStreams(nn.Module):
    """One layer reads two streams, and writes to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Mlp(), Mlp(), Mlp()
        self.mix, self.head = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x + self.a(x), y + self.b(y)
        x = x + self.mix(torch.cat([x, y], -1))
        return self.head(x + self.c(x))


def test_a_component_that_reads_two_streams_is_a_reader_of_each() -> None:
    wiring = voltmeter.wire(alive(TwoStreams)(), (X, 1.1 * X.flip(0)))
    mixed = [reader.name for reader in wiring.readers if reader.component == "block"]
    assert mixed == ["block<main>", "block<b.down>"]
    assert "b -> block<b.down>" in wiring.edges
    assert "a -> block<b.down>" not in wiring.edges


def test_attention_across_streams_can_be_merged() -> None:
    """Queries are read from the decoder, keys and values from the encoder: whole, it is a reader of each."""
    specimen = next(s for s in zoo.ZOO if s.name == "t5")
    coarse = voltmeter.wire(specimen.build(), specimen.example(2, 6)).coarsen()
    across = [reader.name for reader in coarse.readers if reader.component.endswith("1.EncDecAttention")]
    assert across[:2] == [f"decoder.block.0.layer.1.EncDecAttention<{of}>" for of in ("main", "encoder.block")]
    assert coarse.coarsen().edges.names == coarse.edges.names


# Models as they come


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cell(x)[0]


def test_a_recurrent_layer_is_one_component() -> None:
    assert counts(voltmeter.wire(trunk(Recurrent)(), X)) == Counts(4, 4, 10)


class Biased(Trunk):
    """One block applied three times, its bias an addend of its own, in a stream that changes sign and scale."""

    def __init__(self) -> None:
        super().__init__([EinsumAttention()])

    def stream(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(3):
            x = (self.blocks[0](x) - x) * 0.5
        return x


def test_biases_are_constants_in_scaled_and_shared_sums() -> None:
    wiring = voltmeter.wire(alive(Biased)().double(), X.double())
    assert counts(wiring) == Counts(13, 37, 12 * (1 + 5 + 9) + 13)
    assert wiring.verified.sum_error < 1e-12


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.same = Block(), nn.Identity()

    def forward(self, *, x: Tensor) -> Tensor:
        return self.same(input=self.block(x=x))


class AllByKeyword(Trunk):
    def stream(self, x: Tensor) -> Tensor:
        x = self.embed(input=x)
        for block in self.blocks:
            x = block(x=x)
        return x


def test_modules_called_by_keyword() -> None:
    assert counts(voltmeter.wire(alive(lambda: AllByKeyword([ByKeyword(), ByKeyword()]))(), X)) == TWO_BLOCKS


def test_wiring_while_an_exception_is_handled() -> None:
    try:
        raise ValueError
    except ValueError:
        assert counts(voltmeter.wire(trunk(Block, 2)(), X)) == TWO_BLOCKS


def test_wiring_under_inference_mode() -> None:
    with torch.inference_mode():
        assert counts(voltmeter.wire(trunk(Block, 2)(), X)) == TWO_BLOCKS


def test_wiring_under_autocast() -> None:
    model = trunk(Block, 2)()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wiring = voltmeter.wire(model, X)
        cut = voltmeter.run(wiring, X, torch.ones(len(wiring.edges)), voltmeter.fill.zero())
        assert counts(wiring) == TWO_BLOCKS
        assert (cut - model(X)).abs().max() < 0.05 * cut.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_wiring_in_every_precision(dtype: torch.dtype) -> None:
    assert counts(voltmeter.wire(trunk(Block, 2)().to(dtype), X.to(dtype))) == TWO_BLOCKS


def test_hooks_that_are_there_stay_and_count() -> None:
    model = trunk(Block, 2)()
    model.blocks[0].register_forward_hook(lambda module, args, output: output * 1.0)
    model.blocks[1].register_forward_pre_hook(lambda module, args: (args[0] * 1.0,))
    model.register_forward_hook(lambda module, args, output: output * 2)
    wiring = voltmeter.wire(model, X)
    assert counts(wiring) == TWO_BLOCKS
    assert torch.allclose(voltmeter.run(wiring, X), model(X), atol=1e-5)


def test_a_module_that_two_blocks_share() -> None:
    model = trunk(Block, 2)()
    model.blocks[1].mlp = model.blocks[0].mlp
    assert counts(voltmeter.wire(model, X)) == TWO_BLOCKS


def test_a_run_that_raises_leaves_nothing_behind() -> None:
    model = trunk(Block, 2)()
    wiring = voltmeter.wire(model, X)
    hooks = len(module_hooks._global_forward_hooks), len(module_hooks._global_forward_pre_hooks)
    with pytest.raises(RuntimeError), voltmeter.record(wiring):
        model(X[..., :5])
    with voltmeter.record(wiring) as seen:
        with pytest.raises(RuntimeError):
            model(X[..., :5])
        model(X)
    assert len(seen) == len(wiring.writers)
    assert hooks == (len(module_hooks._global_forward_hooks), len(module_hooks._global_forward_pre_hooks))


def test_a_compiled_model_is_unwrapped_and_a_compiled_part_refused() -> None:
    assert counts(voltmeter.wire(compiled(), X)) == Counts(4, 4, 10)
    model = trunk(NoNorm)()
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    with pytest.raises(WiringError, match="compiled") as caught:
        voltmeter.wire(model, X)
    assert "blocks.1" in str(caught.value)


def test_a_scripted_part_is_refused() -> None:
    model = trunk(PassThrough)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        model.blocks[1] = torch.jit.trace(model.blocks[1], X)
    with pytest.raises(WiringError, match=r"(?s)compiled.*blocks\.1"):
        voltmeter.wire(model, X)


def test_the_digests_tell_weights_from_structure() -> None:
    first, other = trunk(lambda: Adding(plainly, Mlp()))(), trunk(lambda: Adding(plainly, Mlp()))()
    with torch.no_grad():
        other.head.bias += 1
    a, b = voltmeter.wire(first, X), voltmeter.wire(other, X)
    assert a.digest == b.digest
    assert a.model_digest != b.model_digest
    assert a.bind(first).model_digest == a.model_digest


def test_the_page_on_wiring_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "wiring.md").read_text()
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), {})
