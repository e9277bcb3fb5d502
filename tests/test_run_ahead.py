"""What is done in advance or used again for speed, and that nobody can tell but by the clock."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterator

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import EXACT, EXACT_GRADIENT, assert_close
from models import Transformer
from specimen import enliven
from torch import Tensor, nn

import voltmeter
from voltmeter import fill, run
from voltmeter.run import engine, memory
from voltmeter.run.ahead import readings_ahead
from voltmeter.run.keep import AXES
from voltmeter.wiring.wiring import Wiring

CPU = torch.device("cpu")
TRANSFORMER = Transformer(layers=3, heads=2, kv=2)
PARALLEL = Transformer(layers=3, heads=2, kv=2, parallel=True)


def ahead_of(wiring: Wiring) -> dict[str, list[str]]:
    """The first reader of a state -> the readers that are begun with it."""
    readers: dict[int, list[str]] = {}
    for reader in wiring.readers:
        readers.setdefault(reader.state, []).append(reader.name)
    found = readings_ahead(wiring.plan)
    return {readers[state][0]: [name for s, _ in later for name in readers[s.number]] for state, later in found.items()}


# Readings begun before their state stands


def test_an_mlp_is_begun_with_the_attention_before_it_and_the_logits_with_the_last() -> None:
    wiring = models.wired(Transformer(layers=3, heads=4, kv=4))
    assert ahead_of(wiring) == {"a0.h0<q>": ["m0"], "a1.h0<q>": ["m1"], "a2.h0<q>": ["m2", "logits"]}


def test_where_attention_and_mlp_read_one_state_only_the_logits_are_begun() -> None:
    wiring = models.wired(Transformer(layers=3, heads=4, kv=4, parallel=True))
    assert ahead_of(wiring) == {"a2.h0<q>": ["logits"]}


def test_few_readings_are_not_worth_it() -> None:
    assert ahead_of(models.wired(Transformer(layers=2, heads=1, kv=1))) == {}


def test_what_was_begun_is_not_mixed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The MLP's own product is over the deltas that came since: its layer's heads."""
    wiring = models.wired(Transformer(layers=3, heads=4, kv=4))
    products: list[tuple[int, int]] = []
    mix = engine.mix

    def counted(share: Tensor, pieces: Tensor, shape: torch.Size) -> Tensor:
        products.append((share.shape[-2], share.shape[-1]))
        return mix(share, pieces, shape)

    monkeypatch.setattr(engine, "mix", counted)
    tokens = models.tokens(2, 5, 0)
    keep = torch.zeros(len(wiring.edges), dtype=torch.float64)
    with torch.no_grad():
        run(wiring, tokens, keep, fill.resample(), models.tokens(2, 5, 1))
    of_mlps = [product for product in products if product[0] == 1]
    assert of_mlps == [(1, 4), (1, 4), (1, 4), (1, 5)]  # the logits: four heads and the last MLP


class RowsAtLast(nn.Module):
    """Attention over [batch, position, feature]; from its MLP on the stream is kept as [batch * position, feature]."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Transformer(layers=1, heads=4, kv=4).build()

    def forward(self, ids: Tensor) -> Tensor:
        x, block = self.model.embedded(ids), self.model.blocks[0]
        x = (x + block.attention(block.attention_norm(x))).flatten(0, 1)
        x = x + block.mlp(block.mlp_norm(x))
        return self.model.unembed(self.model.norm(x)).unflatten(0, ids.shape)


class Joined(nn.Module):
    """Two streams, of which one is the other's addend: the states of the second do not begin with the first writer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (Transformer(layers=1, heads=4, kv=4).build() for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        left, right = (model.blocks[0](model.embedded(ids)) for model in (self.left, self.right))
        return self.right.unembed(left + right)


@functools.cache
def wired(model: type[nn.Module]) -> Wiring:
    return voltmeter.wire(enliven(model()).double(), models.tokens(2, 4, 9))


def several_begun(wiring: Wiring) -> int:
    return sum(len(later) for later in readings_ahead(wiring.plan).values())


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("model", [RowsAtLast, Joined])
def test_what_was_begun_is_of_other_places_or_of_later_rows(model: type[nn.Module], axes: str) -> None:
    wiring = wired(model)
    assert several_begun(wiring) >= 2
    sizes = {"edge": len(wiring.edges), "circuit": 2, "example": 3, "position": 5}
    drawn = torch.Generator().manual_seed(0)
    values = torch.rand([sizes[axis] for axis in axes.split()], generator=drawn, dtype=torch.float64)
    clean, other, found = models.tokens(3, 5, 0), models.tokens(3, 5, 1), []
    for reference in (False, True):
        keep = values.clone().requires_grad_()
        output = run(wiring, clean, keep, fill.resample(), other, axes=axes, reference=reference)
        found.append((output, torch.autograd.grad(output.sin().sum(), keep)[0]))
    assert_close(found[0][0], found[1][0], EXACT)
    assert_close(found[0][1], found[1][1], EXACT_GRADIENT)


# Memory that is used again


@pytest.fixture(autouse=True)
def _no_blocks() -> Iterator[None]:
    memory.forget()
    yield
    memory.forget()


def large() -> Tensor:
    return memory.room((512, 1024), torch.float32, CPU)


def test_living_tensors_share_no_memory() -> None:
    tensors = [large() for _ in range(7)]  # more than there are blocks
    assert len({tensor.data_ptr() for tensor in tensors}) == 7
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert [float(tensor.mean()) for tensor in tensors] == list(range(7))


def test_a_view_keeps_its_memory() -> None:
    first = large()
    place, view = first.data_ptr(), first[3:].t()
    del first
    assert large().data_ptr() != place
    del view
    assert large().data_ptr() == place


def test_what_is_owned_is_no_view_and_keeps_its_memory() -> None:
    whole = large()
    place, view = whole.data_ptr(), whole[1:, ::2]
    mine = memory.own(view)
    assert (mine.data_ptr(), mine.shape, mine.stride()) == (view.data_ptr(), view.shape, view.stride())
    assert view._is_view()
    assert not mine._is_view()
    del whole, view
    assert large().data_ptr() != place


def test_tensors_of_every_device_can_be_owned() -> None:
    """Also where PyTorch lends none to other libraries (DLPack), as on meta."""
    view = torch.empty(4, 6, device="meta")[1:, ::2]
    mine = memory.own(view)
    assert (mine.device, mine.shape, mine.stride()) == (view.device, view.shape, view.stride())


def test_a_block_more_than_twice_too_large_is_not_lent() -> None:
    place = memory.room((1024, 1024), torch.float32, CPU).data_ptr()
    assert memory.room((300, 1024), torch.float32, CPU).data_ptr() != place
    assert memory.room((600, 1024), torch.float32, CPU).data_ptr() == place


def test_blocks_are_aligned_and_of_the_type_asked_for() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensor = memory.room((700, 1024), dtype, CPU)
        assert tensor.data_ptr() % 64 == 0
        assert (tensor.dtype, tensor.shape, tensor.is_contiguous()) == (dtype, (700, 1024), True)


def test_forgotten_blocks_stay_valid_while_a_tensor_lives() -> None:
    tensor = large().fill_(3.0)
    memory.forget()
    others = [large().fill_(5.0) for _ in range(3)]
    assert len(others) == 3
    assert float(tensor.mean()) == 3.0


def test_blocks_go_with_the_last_wiring_that_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to give them back by hand; and the end of another wiring takes none."""
    monkeypatch.setattr(memory, "_runners", weakref.WeakSet())  # those of other tests are alive
    model, inputs = TRANSFORMER.build().double().eval(), models.tokens(2, 4, 0)
    wirings = [voltmeter.wire(model, inputs) for _ in range(2)]
    for each in wirings:
        run(each, inputs, torch.ones(len(each.edges)), fill.zero())
    del each
    large()
    for left in (1, 0):
        wirings.pop()
        gc.collect()
        assert len(memory._blocks) == left


def poison() -> None:
    """Leave not-a-number in every block that is free."""
    gc.collect()  # a graph that was used may still hold its tape
    blocks = [memory.room((len(block) - 64,), torch.uint8, CPU) for block in list(memory._blocks)]
    for block in blocks:
        block.fill_(255)  # NaN in every floating type


@settings(max_examples=6)
@given(st.sampled_from((TRANSFORMER, PARALLEL)), st.booleans(), st.integers(0, 99))
def test_what_memory_held_before_is_never_read(recipe: Transformer, with_gradient: bool, seed: int) -> None:
    wiring = models.wired(recipe)
    clean, other = models.tokens(64, 12, seed), models.tokens(64, 12, seed + 1)
    drawn = torch.Generator().manual_seed(seed)
    keep = torch.rand(len(wiring.edges), generator=drawn, dtype=torch.float64)

    def once() -> list[Tensor]:
        mine = keep.clone().requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            output = run(wiring, clean, mine, fill.resample(), other)
        if not with_gradient:
            return [output]
        output.square().sum().backward()
        assert mine.grad is not None
        return [output.detach(), mine.grad]

    memory._LARGE, kept = 1 << 10, memory._LARGE  # the tensors of a test are small
    try:
        expected = once()
        assert memory._blocks
        poison()
        found = once()
    finally:
        memory._LARGE = kept
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_runs_alive_at_once_keep_apart() -> None:
    """The tape of the first is still needed when the second is made: its gradient comes last."""
    wiring = models.wired(TRANSFORMER)
    clean, other = models.tokens(64, 12, 0), models.tokens(64, 12, 1)
    memory._LARGE, kept = 1 << 10, memory._LARGE
    try:
        keeps = [torch.full((len(wiring.edges),), value, dtype=torch.float64).requires_grad_() for value in (0.3, 0.6)]
        together = [run(wiring, clean, keep, fill.resample(), other).square().sum() for keep in keeps]
        for value in reversed(together):
            value.backward()
        for keep in keeps:
            alone = keep.detach().clone().requires_grad_()
            run(wiring, clean, alone, fill.resample(), other).square().sum().backward()
            assert keep.grad is not None
            assert alone.grad is not None
            assert torch.equal(keep.grad, alone.grad)
    finally:
        memory._LARGE = kept


@pytest.mark.parametrize("off", [0, 16, 48])
def test_where_a_block_begins_makes_no_difference(monkeypatch: pytest.MonkeyPatch, off: int) -> None:
    """The readings at hand are the first rows of a product that begins somewhere in its block, not at its start."""
    wiring = models.wired(Transformer(layers=3, heads=4, kv=4))
    clean, other = models.tokens(16, 8, 0), models.tokens(16, 8, 1)
    keep = torch.rand(len(wiring.edges), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def once() -> tuple[Tensor, Tensor]:
        mine = keep.clone().requires_grad_()
        output = run(wiring, clean, mine, fill.resample(), other)
        output.square().sum().backward()
        assert mine.grad is not None
        return output.detach(), mine.grad

    expected = once()

    def begins_at(size: int, dtype: type) -> np.ndarray:
        whole = np.zeros(size + 128, dtype=dtype)
        start = (off - whole.ctypes.data) % 64
        return whole[start : start + size]

    monkeypatch.setattr(memory, "_LARGE", 1 << 10)
    monkeypatch.setattr(memory.np, "empty", begins_at)
    found = once()
    assert memory._blocks
    assert {block.ctypes.data % 64 for block in memory._blocks} == {off}
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
