"""Runs of models that are awkward to run: many inputs and outputs, shared modules, in-place code, the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import laws
import models
import pytest
import torch
import torch.nn.functional as F
from models import Residual, ResidualBlock, Wiring
from specimen import call, enliven, mapped, seeded, sequential_counts, tensors_of
from torch import Tensor, nn

import voltmeter
from voltmeter import fill, run
from voltmeter.run.run import attribute

WIDTH = models.WIDTH
BLOCK = Residual()
DECODER = models.Transformer(layers=2, heads=2, kv=2)


class Trunk(nn.Module):
    """Two residual blocks; subclasses say what comes before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([ResidualBlock(BLOCK), ResidualBlock(BLOCK)])
        self.head = nn.Linear(WIDTH, 5)

    def stream(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Any:
        return self.head(self.stream(self.embed(x)))


class Game(Trunk):
    """A board and some globals in; a policy and a value out, and what is no tensor beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.squares = nn.Linear(3 * 4 * 4, WIDTH)
        self.value = nn.Linear(WIDTH, 1)

    def forward(self, board: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
        x = self.squares(board.flatten(1)) + self.embed(state["globals"][0])
        x = self.stream(x)
        value = self.value(x).squeeze(-1)
        return {"policy": self.head(x), "value": (value, [value > 0]), "name": "game", "nothing": None}


class Positional(Trunk):
    """A tuple in, one entry of which is no tensor; a tuple out."""

    def forward(self, one: Tensor, other: Tensor, bold: bool) -> tuple[Tensor, Tensor]:
        x = self.stream(self.embed(one - other) * (2.0 if bold else 1.0))
        return self.head(x), self.head(x).softmax(-1)


class Twice(Trunk):
    """One block, applied three times; its weights are shared, its place in the stream is not."""

    def stream(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.blocks[0](x)
        return x


class Headless(Trunk):
    """Returns the stream itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.stream(self.embed(x))


class ReadInPlace(Trunk):
    """The first thing each block does with the stream is to overwrite a scaled copy of it."""

    def stream(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = (x + block.down(F.relu(block.up(x), inplace=True))).mul_(0.7)
        return x


class GatedInPlace(Trunk):
    """Two calls read the same state, behind an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList([nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 10)])

    def stream(self, x: Tensor) -> Tensor:
        for block, gate in zip(self.blocks, self.gates, strict=True):
            x = (x + block.down(torch.sigmoid(gate(x)) * block.up(x))).mul_(0.7)
        return x


class ActivatedInPlace(Trunk):
    """relu(x + f(x)): what is read is overwritten by the very call that reads it."""

    def stream(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = F.relu(x + block.down(torch.tanh(block.up(x))), inplace=True)
        return x


class StatedInPlace(Trunk):
    """As ActivatedInPlace, but what the call returns is not looked at."""

    def stream(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block.down(torch.tanh(block.up(x)))
            x.tanh_()
        return x


class Flat(Trunk):
    """The stream is kept as [batch * position, width]."""

    def stream(self, x: Tensor) -> Tensor:
        return super().stream(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class FlatFromTheStart(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class FlatBetween(models.Decoder):
    """Attention works on [batch, position, width]; the MLPs, and the sums behind them, on [batch * position, width]."""

    def __init__(self) -> None:
        super().__init__(DECODER)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedded(ids)
        for block in self.blocks:
            x = x + block.attention(block.attention_norm(x))
            flat = x.view(-1, WIDTH)
            x = (flat + block.mlp(block.mlp_norm(flat))).view(x.shape)
        return self.unembed(self.norm(x))


def lines(seed: int) -> Tensor:
    return seeded(seed, 2, 3, WIDTH)


def words(seed: int) -> Tensor:
    return models.tokens(2, 3, seed)


def rows(seed: int) -> Tensor:
    return seeded(seed, 2, WIDTH)


def games(seed: int) -> dict[str, Any]:
    return {
        "board": seeded(seed, 2, 3, 4, 4),
        "state": {"globals": (seeded(seed + 1, 2, WIDTH), "chess"), "turn": None},
    }


def positional(seed: int) -> tuple[Tensor, Tensor, bool]:
    return seeded(seed, 2, WIDTH), seeded(seed + 1, 2, WIDTH), True


@dataclass(frozen=True)
class Model:
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    edges: int

    def __str__(self) -> str:
        return self.build.__name__


CHAIN = 1 + 2 + 3  # edges of two blocks and a head
MODELS = (
    Model(Trunk, lines, CHAIN),
    Model(Game, games, CHAIN + 3),  # policy and value read apart
    Model(Positional, positional, CHAIN + 3),  # the head is used twice
    Model(Twice, lines, CHAIN + 4),
    Model(Headless, lines, CHAIN),
    Model(ReadInPlace, lines, CHAIN),
    Model(GatedInPlace, lines, CHAIN),
    Model(ActivatedInPlace, rows, CHAIN),
    Model(StatedInPlace, lines, CHAIN),
    Model(Flat, lines, CHAIN),
    Model(FlatFromTheStart, lines, CHAIN),
    Model(FlatBetween, words, sequential_counts(2, 2, 2).edges),
)
each = pytest.mark.parametrize("model", MODELS, ids=str)
_WIRED: dict[Model, Wiring] = {}


def double(inputs: Any) -> Any:
    return torch.utils._pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs
    )


def wired(model: Model) -> Wiring:
    if model not in _WIRED:
        _WIRED[model] = voltmeter.wire(enliven(model.build()).double(), double(model.inputs(50)))
    return _WIRED[model]


def inputs_of(model: Model) -> tuple[Any, Any]:
    return double(model.inputs(1)), double(model.inputs(2))


def assert_same(found: Any, expected: Any) -> None:
    pairs = list(zip(tensors_of(found), tensors_of(expected), strict=True))
    assert pairs
    for one, other in pairs:
        laws.assert_close(one, other, laws.EXACT)


@each
def test_laws_1_and_2(model: Model) -> None:
    wiring, (clean, corrupted) = wired(model), inputs_of(model)
    count = len(wiring.edges)
    if model.build not in (ActivatedInPlace, StatedInPlace):  # a stream per sum
        assert count == model.edges
    with torch.no_grad():
        expected, other = call(wiring.model, clean), call(wiring.model, corrupted)
    with laws.law_5(wiring.model, clean, corrupted):
        assert_same(run(wiring, clean), expected)
        assert_same(run(wiring, clean, torch.ones(count), fill.zero()), expected)
        assert_same(run(wiring, clean, torch.zeros(count), fill.resample(), corrupted), other)


@each
@pytest.mark.parametrize("axes", ["edge", "circuit edge", "example edge"])
@pytest.mark.parametrize("name", ["zero", "resample"])
def test_law_3(model: Model, axes: str, name: str) -> None:
    wiring, (clean, corrupted) = wired(model), inputs_of(model)
    sizes = {"circuit": 3, "example": 2, "edge": len(wiring.edges)}
    keep = seeded(4, *(sizes[axis] for axis in axes.split())).double().requires_grad_()
    found = []
    for reference in (False, True):
        output = run(wiring, clean, keep, getattr(fill, name)(), corrupted, axes=axes, reference=reference)
        metric = sum(laws.metric_of(tensor[None]) for tensor in tensors_of(output))
        found.append((output, torch.autograd.grad(metric, keep)[0]))
    assert_same(found[0][0], found[1][0])
    laws.assert_close(found[0][1], found[1][1], laws.EXACT_GRADIENT)


@each
def test_attribution(model: Model) -> None:
    """The gradient at all kept, with and without a masked forward."""
    wiring, (clean, corrupted) = wired(model), inputs_of(model)
    keep = torch.ones(len(wiring.edges), dtype=torch.float64, requires_grad=True)

    def score(output: Any) -> Tensor:
        return sum(laws.metric_of(tensor[None]) for tensor in tensors_of(output))

    expected = torch.autograd.grad(score(run(wiring, clean, keep, fill.resample(), corrupted)), keep)[0]
    with laws.law_5(wiring.model, clean, corrupted):
        found, _ = attribute(wiring, clean, fill.resample(), corrupted, score)
    laws.assert_close(found, expected, laws.EXACT_GRADIENT)


@each
def test_law_7(model: Model) -> None:
    wiring, (clean, corrupted) = wired(model), inputs_of(model)
    count = len(wiring.edges)
    whole = tensors_of(run(wiring, clean))
    alone = run(wiring, clean, 1 - torch.eye(count), fill.resample(), corrupted, axes="circuit edge")
    for edge in range(count):
        assert any(not torch.allclose(t[edge], w) for t, w in zip(tensors_of(alone), whole, strict=True))


def test_outputs_keep_their_structure() -> None:
    """What is no tensor is handed on; tensors gain an axis of circuits, whatever their type."""
    model = MODELS[1]
    wiring, (clean, _) = wired(model), inputs_of(model)
    output = run(wiring, clean, torch.ones(4, len(wiring.edges)), fill.zero(), axes="circuit edge")
    assert output["policy"].shape == (4, 2, 5)
    assert output["value"][0].shape == (4, 2)
    assert output["value"][1][0].shape == (4, 2)
    assert output["value"][1][0].dtype == torch.bool
    assert (output["name"], output["nothing"]) == ("game", None)


def test_positions_of_a_flat_stream() -> None:
    """[batch * position, width] has the positions of the keep, in their order."""
    for model, flat in ((MODELS[0], MODELS[9]), (MODELS[0], MODELS[10])):
        clean, _ = inputs_of(model)
        keep = seeded(6, 2, 3, CHAIN).double()
        found = [run(wired(m), clean, keep, fill.zero(), axes="example position edge") for m in (model, flat)]
        laws.assert_close(*found, laws.EXACT)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_model_is_wired_and_run_in_any_mode(mode: Callable[[], Any]) -> None:
    inputs = lines(1).double()
    model = enliven(Trunk()).double()
    expected = run(wired(MODELS[0]), inputs, torch.full((CHAIN,), 0.5), fill.zero())
    with mode():
        wiring = voltmeter.wire(model, inputs)
        assert wiring.edges.names == wired(MODELS[0]).edges.names
        laws.assert_close(run(wiring, inputs, torch.full((CHAIN,), 0.5), fill.zero()), expected, laws.EXACT)


def test_a_model_is_wired_and_run_while_an_error_is_handled() -> None:
    """Inside an except clause an exception is at hand, which is not the model's."""
    inputs = lines(1).double()
    expected = run(wired(MODELS[4]), inputs, torch.zeros(CHAIN), fill.zero())
    try:
        raise ValueError("something else")
    except ValueError:
        wiring = voltmeter.wire(enliven(Headless()).double(), inputs)
        found = run(wiring, inputs, torch.zeros(CHAIN), fill.zero())
    laws.assert_close(found, expected, laws.EXACT)


def test_a_compiled_model_is_run_as_it_was_before() -> None:
    inputs = lines(1).double()
    model = enliven(Trunk()).double()
    wiring = voltmeter.wire(torch.compile(model, backend="eager"), inputs)
    assert wiring.model is model
    assert wiring.digest == wired(MODELS[0]).digest
    keep = seeded(3, CHAIN).double()
    assert torch.equal(run(wiring, inputs, keep, fill.zero()), run(wired(MODELS[0]), inputs, keep, fill.zero()))


def test_hooks_of_the_models_own_stay_in_force() -> None:
    """Steering by a hook, before wiring or after: cut runs are of the model as it is called."""
    inputs = lines(1).double()
    plain, hooked = enliven(Trunk()).double(), enliven(Trunk()).double()
    late = voltmeter.wire(hooked, inputs)
    hooked.blocks[0].up.register_forward_hook(lambda module, given, out: out + 1)
    early = voltmeter.wire(hooked, inputs)
    plain.blocks[0].up.bias.data += 1
    expected = run(voltmeter.wire(plain, inputs), inputs, torch.full((CHAIN,), 0.3), fill.zero())
    for wiring in (early, late):
        laws.assert_close(run(wiring, inputs, torch.full((CHAIN,), 0.3), fill.zero()), expected, laws.EXACT)


def test_another_model_that_runs_meanwhile_is_left_alone() -> None:
    """A hook of the model runs a second one: no call of it is taken for one of the first."""
    inputs = lines(1).double()
    model, second = enliven(Trunk()).double(), enliven(Trunk(), seed=1).double()
    wiring = voltmeter.wire(model, inputs)
    expected, beside = run(wiring, inputs, torch.zeros(CHAIN), fill.zero()), second(inputs)
    seen: list[Tensor] = []
    model.blocks[1].register_forward_pre_hook(lambda *_: seen.append(second(inputs)))
    laws.assert_close(run(wiring, inputs, torch.zeros(CHAIN), fill.zero()), expected, laws.EXACT)
    assert len(seen) == 1
    assert torch.equal(seen[0], beside)


def test_rows_may_be_one_or_many() -> None:
    model = MODELS[0]
    wiring, keep = wired(model), seeded(3, CHAIN).double()
    many = seeded(8, 7, 4, WIDTH).double()
    whole = run(wiring, many, keep, fill.zero())
    for row in (slice(0, 1), slice(2, 5)):
        laws.assert_close(run(wiring, many[row], keep, fill.zero()), whole[row], laws.EXACT)
    assert mapped(torch.clone, many).shape == many.shape
