"""Models that a resumed run could get wrong without a word: each is run right, or whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws import assert_close
from specimen import enliven, seeded
from torch import Tensor, nn

import voltmeter as vm
from voltmeter.errors import KeepError, WiringError
from voltmeter.run.batched import Suffix
from voltmeter.run.keep import Keep
from voltmeter.run.late import Late, late_products, only_at
from voltmeter.run.prefix import Prefix
from voltmeter.wiring.inputs import altered, call, expand_rows
from voltmeter.wiring.resume import Rehearsal, Resumed

WIDTH = 6
EXACT = 1e-10  # float64


class Blocks(nn.Module):
    """x = x + f(norm(x)), three times; what the subclasses do besides is what is tried."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
            for _ in range(3)
        )

    def streamed(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        for block in self.blocks:
            x = x + block(x) * scale
        return x

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.read(self.streamed(self.embed(x)))
        return found


class BoundOfSlice(Blocks):
    """A tensor made at the beginning is used at the end where no argument is one."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        bound = x.isfinite().sum() * 0 + 2
        found: Tensor = self.read(self.streamed(x))[..., :bound]
        return found


class ReturnsItsOwn(Blocks):
    """A call returns a parameter itself: that is no result which the model keeps."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.embed.weight.to(x.dtype)
        found: Tensor = self.read(self.streamed(x @ weight))
        return found


class Cached(Blocks):
    """What is made in the first run of a size is kept for the next: that one makes fewer calls."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape not in self.kept:
            self.kept[x.shape] = torch.arange(x.shape[1], dtype=x.dtype)[None, :, None] / 2
        found: Tensor = self.read(self.streamed(self.embed(x), self.kept[x.shape]))
        return found


class Scratch(Blocks):
    """A layer's output lies in a buffer of the model while another reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("room", torch.zeros(64, 4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks[:2]:
            self.room[: len(x)] = block(x)
            also = self.blocks[2](x)
            x = x + self.room[: len(x)] + also
        found: Tensor = self.read(x)
        return found


class Mapped(Blocks):
    """A mask made inside ``torch.vmap``: what comes out of it was returned by no call."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.vmap(lambda place: (place > 1)[None])(torch.arange(x.shape[1]))  # [position, 1]
        found: Tensor = self.read(self.streamed(self.embed(x), mask))
        return found


class ByData(Blocks):
    """Which of two tensors from the beginning is used at the end depends on the circuit."""

    above = -float("inf")

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        low, high = torch.full_like(x[:1, :1, :1], 0.5), torch.full_like(x[:1, :1, :1], 2.0)
        found: Tensor = self.read(self.streamed(x))
        return found * (low if bool(found.sum() > self.above) else high)


def prefix_of(model: nn.Module, fill: str = "resample", **given: Any) -> tuple[vm.wiring.Wiring, Tensor, Any, Prefix]:
    model = enliven(model).double()
    inputs = seeded(0, 2, 4, WIDTH).double()
    wiring = vm.wire(model, inputs)
    chosen = vm.fill.resample() if fill == "resample" else vm.fill.zero()
    values = chosen.values_for(wiring, inputs, altered(inputs))
    return wiring, inputs, values, Prefix(wiring, inputs, values, **{"circuits": 3, **given})


def circuits_from(wiring: vm.wiring.Wiring, reader: int, seed: int) -> Tensor:
    """Three circuits that differ from the full one from this reader on."""
    keep = torch.ones(3, len(wiring.edges))
    start = wiring.edges.starts[reader]
    keep[:, start:] = (
        torch.rand(3, len(wiring.edges) - start, generator=torch.Generator().manual_seed(seed)) < 0.6
    ).float()
    keep[0, start] = 0
    return keep


def agrees(model: nn.Module) -> Prefix:
    """From every reader, twice over: a run must leave nothing behind for the next."""
    wiring, inputs, values, prefix = prefix_of(model)
    for seed in (1, 2):
        for reader in range(len(wiring.readers)):
            keep = circuits_from(wiring, reader, seed)
            alone = torch.stack([vm.run(wiring, inputs, one, values) for one in keep])
            assert_close(prefix.run(keep), alone, EXACT, f"from {wiring.readers[reader].name}")
    return prefix


def last_start(prefix: Prefix) -> Any:
    return prefix._start(max(prefix._calls.values()))


@pytest.mark.parametrize("model", [Blocks, BoundOfSlice, ReturnsItsOwn], ids=lambda m: m.__name__)
def test_what_is_used_after_the_start_is_kept(model: type[Blocks]) -> None:
    assert last_start(agrees(model())) is not None


@pytest.mark.parametrize("model", [Cached, Scratch, Mapped], ids=lambda m: m.__name__)
def test_what_cannot_be_resumed_is_run_whole(model: type[Blocks]) -> None:
    assert last_start(agrees(model())) is None


def test_a_model_keeps_no_stand_in_from_a_resumed_run() -> None:
    model = Cached()
    agrees(model)
    assert {type(kept) for kept in model.kept.values()} == {Tensor}
    model.kept.clear()
    agrees(model)


def test_a_circuit_that_takes_another_path_is_run_whole() -> None:
    model = ByData()
    wiring, _, _, prefix = prefix_of(model)
    assert last_start(prefix) is not None
    keep = circuits_from(wiring, len(wiring.readers) - 1, 1)
    low = prefix.run(keep)
    model.above = float("inf")  # what the rehearsal did not see
    assert_close(prefix.run(keep), 4 * low, EXACT)
    assert last_start(prefix) is None


def test_other_calls_than_rehearsed_are_an_error() -> None:
    """And so is the use of a result that was not used in the rehearsal; both name what happened."""
    model = ByData()
    wiring, _, _, prefix = prefix_of(model)
    start, rehearsal = last_start(prefix), prefix._rehearsal
    assert start is not None
    assert isinstance(rehearsal, Rehearsal)
    keep = torch.ones(3, len(wiring.edges), dtype=torch.float64)
    listener = Suffix(wiring, prefix._inputs, keep, prefix._fill, prefix._shared, start)
    given = (wiring.model, wiring.plan, listener, wiring.modes, start)
    model.above = float("inf")
    used = r"a result was used that was not when the model was rehearsed\n  by (__)?mul"
    with pytest.raises(WiringError, match=used), torch.no_grad(), Resumed(*given):
        call(model, prefix._inputs)
    model.embed = nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, WIDTH)).double()
    other = r"the model made other calls than when it was rehearsed\n  call 0 is tanh"
    with pytest.raises(WiringError, match=other), torch.no_grad(), Resumed(*given):
        call(model, prefix._inputs)


def test_a_keep_in_float64_is_not_rounded() -> None:
    wiring, inputs, values, prefix = prefix_of(Blocks(), keep=None)
    keep = torch.full((1, len(wiring.edges)), 1 / 3, dtype=torch.float64)
    expected = vm.run(wiring, inputs, keep, values, axes="circuit edge")
    assert_close(prefix.run(keep), expected, EXACT)
    shared = Prefix(wiring, inputs, values, circuits=1, keep=keep[0])
    assert_close(shared.run(keep), expected, EXACT)


def test_what_cannot_be_rehearsed_for_is_refused() -> None:
    with pytest.raises(KeepError, match="0 circuits at a time were asked for, at least 1 was expected"):
        prefix_of(Blocks(), circuits=0)
    with pytest.raises(KeepError, match=r"what circuits have in common has shape \[3\], \[10\] was expected"):
        prefix_of(Blocks(), keep=torch.ones(3))


class PositionsFirst(Blocks):
    """The stream is [position, row, feature]."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.read(self.streamed(self.embed(x.transpose(0, 1).contiguous()))).transpose(0, 1)
        return found


def test_a_stream_whose_first_axis_is_not_the_batch_takes_one_keep_for_all() -> None:
    """Whatever the sizes are: by itself, four positions of two examples are taken for two of four."""
    model = enliven(PositionsFirst()).double()
    inputs = seeded(0, 2, 4, WIDTH).double()
    wiring = vm.wire(model, inputs)
    many = seeded(1, 4, 4, WIDTH).double()
    keep, zero = torch.ones(len(wiring.edges)), vm.fill.zero()
    keep[1] = 0
    assert_close(vm.run(wiring, many, keep, zero), vm.run(wiring, many, keep, zero, reference=True), EXACT)
    told = r"the stream 'main' has not its examples along axis 0.*\n  it has shape \[4, 2, 6\] for 2 rows"
    for axes, rows in (("circuit edge", 2), ("example edge", 4)):
        with pytest.raises(KeepError, match=told):
            vm.run(wiring, many, keep.expand(rows, -1), zero, axes=axes)
    with pytest.raises(KeepError, match=told):
        Prefix(wiring, many, zero.values_for(wiring, many), circuits=2)
    here = r"it has shape \[4, 2, 6\] for 2 rows"  # in the run at hand, where the example did not show it
    with pytest.raises(KeepError, match=here):
        Keep(keep[None], "example edge").check_fits(torch.zeros(4, 2, WIDTH), "main", 2)


class SeesPadding(Blocks):
    """Takes a mask, and lets padding be seen all the same: positions are mixed before each block."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x) + block[0](x).roll(1, 1)
        found: Tensor = self.read(x)
        return found


def test_padding_that_is_seen_is_right() -> None:
    """A reader that leads nowhere still changes what is written at padding, where nothing is cut."""
    model = enliven(SeesPadding()).double()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = {"x": seeded(0, 2, 4, WIDTH).double(), "attention_mask": mask}
    corrupted = {**inputs, "x": seeded(1, 2, 4, WIDTH).double()}
    wiring = vm.wire(model, inputs)
    for fill in (vm.fill.zero(), vm.fill.resample()):
        values = fill.values_for(wiring, inputs, corrupted)
        prefix = Prefix(wiring, inputs, values, circuits=2)
        for reader in range(len(wiring.readers)):
            keep = torch.ones(2, len(wiring.edges))
            start = wiring.edges.starts[reader]
            keep[:, start:], keep[1, -1] = 0, 1
            whole = vm.run(wiring, inputs, keep, values, axes="circuit edge")
            assert_close(prefix.run(keep), whole, EXACT, f"{fill.name} from {wiring.readers[reader].name}")


# products made only where the answer is read


class Late3d(nn.Module):
    """Positions are mixed, then a product over them by another layout."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout, self.first, self.last = layout, nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Parameter(torch.zeros(7, 4))
        self.of_table = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).cumsum(1)
        if self.layout == "positions first":
            return self.last(x.transpose(0, 1).contiguous()).transpose(0, 1)
        if self.layout == "flat, positions first":
            flat = x.transpose(0, 1).reshape(-1, 4)
            return self.last(flat.view(-1, 4)).view(x.shape[1], x.shape[0], 4).transpose(0, 1)
        if self.layout == "sorted":  # as tokens that are sent to experts
            flat = x.reshape(-1, 4)
            order = flat[:, 0].argsort()
            return self.last(flat[order])[order.argsort()].view(x.shape)
        return self.last(x) + self.of_table(self.table)[: x.shape[1]]


@pytest.mark.parametrize("layout", ["positions first", "flat, positions first", "sorted", "a table besides"])
def test_late_products_are_right_for_any_layout(layout: str) -> None:
    """Tried on two copies of the batch and used on as many as there are circuits, of sizes that look like others."""
    model = enliven(Late3d(layout))
    for batch, length, copies in ((1, 5, 5), (1, 4, 2), (2, 4, 2), (3, 4, 1)):
        x, at = seeded(1, batch, length, 4), torch.full((batch,), length - 1)

        def answer(outputs: Tensor, places: Tensor) -> Tensor:
            return outputs[torch.arange(len(outputs)), places]

        twice = at.repeat(2)
        late = late_products(model, expand_rows(x, 2), twice, lambda out, places=twice: answer(out, places))
        found = Late(at, late.lengths).repeated(copies)
        many = expand_rows(x, copies)
        with torch.no_grad():
            whole = model(many)
            with only_at(found):
                part = model(many)
        # float32: a product over fewer rows rounds otherwise
        assert_close(answer(part, found.positions), answer(whole, found.positions), 1e-5, f"{batch} of {length}")
        if layout == "a table besides":
            assert id(model.last.weight) in late.lengths
