"""The laws in float32 and bfloat16, on the processor and (where there is one) on a GPU, against float64."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import laws
import models
import pytest
import torch
from cases import Case, Rewired
from models import Convolutional, Residual, Transformer, cast
from specimen import seeded
from torch import Tensor

import voltmeter
from voltmeter.run.engine import nothing_kept
from voltmeter.run.mixing import against
from voltmeter.run.points import plain_point
from voltmeter.run.tape import Tape

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
    ),
]
RECIPES: tuple[models.Recipe, ...] = (
    Transformer(layers=2, heads=4, kv=1, norm="rms", mlp="gated", biases=False, seed=9),  # with readings begun ahead
    Transformer(layers=2, heads=2, kv=2, norm="layer", mlp="plain", parallel=True, seed=5),
    Residual(blocks=3, norm="layer", seed=1),
    Convolutional(blocks=2),
)
# A result passes some thirty roundings, each of half a unit in the last place, which add up like a walk and are then
# stretched by norms and softmaxes: 16 units cover them with room to spare, and are far from any mistake.
UNITS = 16
TOLERANCE = {dtype: UNITS * torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16)}
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=["bias-free", "biased", "rows", "images"])
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
each_device = pytest.mark.parametrize("device", DEVICES)


@functools.cache
def twins(recipe: models.Recipe, dtype: torch.dtype, device: str) -> tuple[models.Wiring, models.Wiring]:
    """One model in ``dtype`` and in float64, with the same weights: those that ``dtype`` can hold."""
    low = models.enliven(recipe.build(), recipe.seed).to(dtype)
    high = copy.deepcopy(low).double()
    example = cast(recipe.inputs(2, 4, seed=91), dtype)
    return voltmeter.wire(low.to(device), example.to(device)), voltmeter.wire(high, cast(example, torch.float64))


@dataclass(frozen=True)
class OnDevice(Rewired):
    """A case whose inputs lie on a device."""

    device: str = "cpu"

    @property
    def inputs(self) -> Tensor:
        return super().inputs.to(self.device)

    @property
    def corrupted(self) -> Tensor:
        return super().corrupted.to(self.device)


@dataclass(frozen=True)
class Rounded(Rewired):
    """A case in float64, of the numbers that another precision can hold."""

    of: torch.dtype = torch.float32

    @property
    def inputs(self) -> Tensor:
        return cast(cast(super().inputs, self.of), self.dtype)

    @property
    def corrupted(self) -> Tensor:
        return cast(cast(super().corrupted, self.of), self.dtype)

    def keep(self) -> Tensor:
        return super().keep().to(self.of).to(self.dtype)


def pair(case: Case, device: str) -> tuple[Rewired, Rewired]:
    low, high = twins(case.recipe, case.dtype, device)
    exact = {**vars(case), "dtype": torch.float64}
    return OnDevice(**vars(case), rewired=low, device=device), Rounded(**exact, rewired=high, of=case.dtype)


def case_of(recipe: models.Recipe, dtype: torch.dtype, fill: str, axes: str = "edge") -> Case:
    return Case(recipe, 2, 4, fill, axes, binary=True, seed=21, dtype=dtype)


@each_recipe
@each_dtype
@each_device
@pytest.mark.parametrize("fill", ["zero", "mean", "mean_position", "resample"])
def test_a_cut_run_is_that_of_float64(recipe: models.Recipe, dtype: torch.dtype, device: str, fill: str) -> None:
    """Few edges kept, half of them, most; what is left must not be the rounding of what was taken away."""
    low, high = pair(case_of(recipe, dtype, fill), device)
    draw = torch.rand(len(low.wiring.edges), generator=torch.Generator().manual_seed(3))
    keeps = {share: (draw < share).to(dtype) for share in (0.1, 0.5, 0.9)}
    size = float(laws.plain(high).abs().max())
    for share, keep in keeps.items():
        expected = high.run(keep.double())
        for reference in (False, True):
            found = low.run(keep, reference=reference).double().cpu()
            laws.assert_close(found, expected, TOLERANCE[dtype], f"{share} kept", size)


@each_recipe
@each_dtype
@each_device
def test_laws_1_and_2(recipe: models.Recipe, dtype: torch.dtype, device: str) -> None:
    low, _ = pair(case_of(recipe, dtype, "resample"), device)
    count = len(low.wiring.edges)
    laws.assert_close(low.run(torch.ones(count)), laws.plain(low), TOLERANCE[dtype], "law 1")
    laws.assert_close(low.run(torch.zeros(count)), laws.plain(low, low.corrupted), TOLERANCE[dtype], "law 2")


@each_recipe
@each_dtype
@each_device
@pytest.mark.parametrize("axes", ["edge", "circuit edge", "example edge"])
def test_gradients_are_those_of_float64(
    recipe: models.Recipe, dtype: torch.dtype, device: str, axes: str
) -> None:  # fmt: skip
    """To a keep in float32, which is what is trained. A backward pass doubles the roundings."""
    low, high = pair(case_of(recipe, dtype, "resample", axes), device)
    found = []
    for case, kept in ((low, torch.float32), (high, torch.float64)):
        keep = low.keep().to(kept).requires_grad_()
        output = case.run(keep)
        found.append(torch.autograd.grad(laws.metric_of(output), keep)[0])
    assert found[0].dtype == torch.float32
    laws.assert_close(found[0].double(), found[1], 2 * TOLERANCE[dtype])


@each_device
def test_the_keep_may_lie_on_the_processor(device: str) -> None:
    """And so may a fill: both are brought to where the model is, and gradients brought back."""
    low, _ = pair(case_of(RECIPES[1], torch.float32, "tensor"), device)
    values = voltmeter.fill.tensor({w.name: torch.full((8,), 0.5) for w in low.wiring.writers})
    keep = low.keep().requires_grad_()
    output = low.run(keep, fill=values)
    assert output.device.type == device
    assert torch.autograd.grad(output.sum(), keep)[0].device.type == "cpu"


def test_sums_of_bfloat16_are_in_float32() -> None:
    """What is read has the model's own precision again."""
    low, _ = pair(case_of(RECIPES[2], torch.bfloat16, "mean"), "cpu")
    assert Tape((3,)).buffer(0, torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    reads = laws.reads_of(low, low.keep())
    assert {read.dtype for read in reads.values()} == {torch.bfloat16}
    assert low.run().dtype == torch.bfloat16


def test_sums_over_deltas_keep_their_precision_under_autocast() -> None:
    """Products of the model's own are made in 16 bits there; what cut edges carry is added up as elsewhere."""
    state = models.wired(RECIPES[1], torch.float32).plan.states[-1]
    fill, like = seeded(0, len(state.members), 2, 3, 4), seeded(1, 2, 3, 4)
    cut, grad = seeded(2, 5, len(state.members)), seeded(3, 5, 2, 3, 4)
    made = []
    for low in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            made.append((nothing_kept(state, fill, {}, None, like, like), against(grad, fill, cut)))
    for plain, under in zip(*made, strict=True):
        assert torch.equal(plain, under)


def test_a_forward_under_autocast_can_be_differentiated_outside_it() -> None:
    low = models.wired(RECIPES[1], torch.float32)
    inputs = cast(RECIPES[1].inputs(2, 5, seed=1), torch.float32)
    values = voltmeter.fill.zero().values_for(low, inputs)
    totals = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            point, value = plain_point(low, inputs, values, lambda outputs: outputs.float().square().sum())
        value.backward()
        totals.append(point.total)
    # bfloat16: eight bits, over the products of three layers
    laws.assert_close(totals[1], totals[0], 0.05)
