"""Other divisions of the same model: parts add up to wholes, in what they write and in their scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import laws
import models
import pytest
import torch
from cases import Case, Rewired, fill_of
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Convolutional, Residual, Transformer, Wiring, wired
from specimen import enliven
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import voltmeter
from voltmeter import run
from voltmeter.errors import AddressError

MODEL = Transformer(layers=2, heads=2, kv=1, norm="layer", mlp="gated", seed=7)
FUSED = Transformer(layers=1, heads=3, kv=3, head_size=2, norm="rms", mlp="plain", parallel=True, seed=5)
BARE = Transformer(layers=2, heads=2, kv=2, norm="none", mlp="plain", biases=False, seed=6)
LINES, ROWS, IMAGES = Residual(), Residual(positions=False), Convolutional()
UNITS = 10  # hidden units of the models' MLPs

Divide = Callable[[Wiring], Wiring]


def split(*steps: tuple[str, str]) -> Divide:
    def divide(wiring: Wiring) -> Wiring:
        for name, into in steps:
            wiring = wiring.split(name, into)
        return wiring

    return divide


DIVISIONS: dict[str, tuple[models.Recipe, Divide]] = {
    "tokens and positions": (MODEL, split(("input", "parts"))),
    "channels of the input": (MODEL, split(("input", "channels"))),
    "units": (MODEL, split(("m0", "units"))),
    "units of every MLP": (FUSED, split(("m0", "units"))),
    "units and input": (BARE, split(("m1", "units"), ("input", "parts"))),
    "heads of one layer": (MODEL, lambda wiring: wiring.coarsen().split("a1", "heads")),
    "heads of all": (BARE, lambda wiring: wiring.coarsen().split("a0").split("a1")),
    "units over positions": (LINES, split(("blocks.0", "units"))),
    "units over rows": (ROWS, split(("blocks.1", "units"))),
    "channels of a row": (ROWS, split(("blocks.0", "channels"))),
    "channels of images": (IMAGES, split(("blocks.0", "channels"), ("input", "channels"))),
}
each = pytest.mark.parametrize("name", DIVISIONS)


@functools.cache
def divided(name: str) -> tuple[Wiring, Wiring]:
    """The coarsest wiring of a model, and the division of it."""
    recipe, divide = DIVISIONS[name]
    return wired(recipe).coarsen(), divide(wired(recipe))


def case_of(name: str, fill: str, seed: int) -> Case:
    return Case(DIVISIONS[name][0], 2, 4, fill, "edge", binary=False, seed=seed)


def groups(coarse: Wiring, fine: Wiring) -> list[int]:
    """For each edge of the fine wiring, the edge of the coarse one that it is a part of."""
    writers = {w.name: w.component for w in fine.writers}
    readers = {r.name: r.component for r in fine.readers}
    return [coarse.edges.find(f"{writers[edge.writer]} -> {readers[edge.reader]}") for edge in fine.edges]


def scores(wiring: Wiring, case: Case) -> Tensor:
    keep = torch.ones(len(wiring.edges), dtype=torch.float64, requires_grad=True)
    values = fill_of(case.fill, wiring, case.corrupted)
    output = run(wiring, case.inputs, keep, values, case.corrupted)
    return torch.autograd.grad(laws.metric_of(output), keep)[0]


def bias_behind(wiring: Wiring, component: str) -> Tensor:
    """The bias of the projection that the heads or units of a component share."""
    path = component + ".down"
    if component[0] in "am" and component[1:].isdigit():
        path = f"blocks.{component[1:]}" + (".attention.out" if component[0] == "a" else ".mlp.down")
    bias = wiring.model.get_submodule(path).bias
    return torch.zeros(models.WIDTH) if bias is None else bias


@each
def test_parts_write_what_the_whole_writes(name: str) -> None:
    """But for the bias of the projection behind heads or units, which is no part of any of them."""
    coarse, fine = divided(name)
    case = case_of(name, "zero", seed=1)
    whole, parts = (laws.recorded(replace_wiring(case, wiring)) for wiring in (coarse, fine))
    for component in coarse.writers:
        pieces = [parts[f"{w.name}:out"] for w in fine.writers if w.component == component.name]
        rest = whole[f"{component.name}:out"] - sum(pieces)
        if {w.kind for w in fine.writers if w.component == component.name} <= {"head", "unit"}:
            rest = rest - bias_behind(fine, component.name)
        size = float(whole[f"{component.name}:out"].abs().max())
        laws.assert_close(rest, torch.zeros_like(rest), laws.EXACT, component.name, size)


def replace_wiring(case: Case, wiring: Wiring) -> Case:
    return Rewired(**vars(case), rewired=wiring)


@settings(max_examples=16)
@given(st.sampled_from(list(DIVISIONS)), st.sampled_from(["mean", "mean_position", "resample"]), st.integers(0, 99))
def test_scores_of_parts_add_up_to_the_score_of_the_whole(name: str, fill: str, seed: int) -> None:
    """Of what writes and of what reads alike. Biases are in the fill and in what is written, so they cancel."""
    coarse, fine = divided(name)
    case = case_of(name, fill, seed)
    summed = torch.zeros(len(coarse.edges), dtype=torch.float64)
    summed.index_add_(0, torch.tensor(groups(coarse, fine)), scores(fine, case))
    laws.assert_close(summed, scores(coarse, case), laws.EXACT_GRADIENT)


@pytest.mark.parametrize("name", ["units and input", "heads of all", "channels of images", "units over rows"])
def test_scores_of_parts_add_up_under_zero_where_there_are_no_constants(name: str) -> None:
    """Elsewhere they need not: a whole that is cut loses its bias too."""
    coarse, fine = divided(name)
    if name == "units over rows":  # the bias of the last layer: a unit has none, the whole has
        fine.model.blocks[1].down.bias.data.zero_()
    case = case_of(name, "zero", seed=3)
    summed = torch.zeros(len(coarse.edges), dtype=torch.float64)
    summed.index_add_(0, torch.tensor(groups(coarse, fine)), scores(fine, case))
    laws.assert_close(summed, scores(coarse, case), laws.EXACT_GRADIENT)


@each
@pytest.mark.parametrize("fill", ["resample", "mean"])
def test_keeping_whole_components_is_keeping_all_their_parts(name: str, fill: str) -> None:
    coarse, fine = divided(name)
    case = case_of(name, fill, seed=2)
    keep = models.seeded(7, len(coarse.edges)).double()
    outputs = []
    for wiring, kept in ((coarse, keep), (fine, keep[groups(coarse, fine)])):
        values = fill_of(fill, wiring, case.corrupted)
        outputs.append(run(wiring, case.inputs, kept, values, case.corrupted))
    laws.assert_close(*outputs, laws.EXACT)


@each
def test_laws_of_a_divided_wiring(name: str) -> None:
    _, fine = divided(name)
    laws.law_2(replace_wiring(case_of(name, "resample", seed=5), fine))
    laws.law_3(replace_wiring(case_of(name, "zero", seed=5), fine))


@each
def test_a_division_is_verified(name: str) -> None:
    _, fine = divided(name)
    errors = fine.verified
    assert 0 <= max(errors.sum_error, errors.law1_error, errors.law2_error) < laws.EXACT
    assert errors != voltmeter.wiring.Verified(0.0, 0.0, 0.0) or name.startswith("channels")


# Names


def names(nodes: Sequence[voltmeter.wiring.Writer | voltmeter.wiring.Reader]) -> list[str]:
    return [node.name for node in nodes]


def test_the_input_is_tokens_and_positions() -> None:
    parts = wired(MODEL).split("input")
    assert names(parts.writers)[:3] == ["input.tok", "input.pos", "a0.h0"]
    assert names(parts.readers) == names(wired(MODEL).readers)
    with voltmeter.record(parts, ["input.tok", "input.pos"]) as seen, torch.no_grad():
        parts.model(ids := models.tokens(2, 4, seed=1))
    assert torch.equal(seen["input.tok"], parts.model.tok(ids))
    assert torch.equal(seen["input.pos"], parts.model.pos(torch.arange(4)).expand(2, 4, -1))


def test_cutting_the_positions_is_a_model_without_them() -> None:
    parts, ids = wired(MODEL).split("input"), models.tokens(2, 4, seed=1)
    keep = torch.tensor([float(edge.writer != "input.pos") for edge in parts.edges])
    blind = models.built(MODEL)
    assert blind.pos is not None
    blind.pos.weight.data.zero_()
    # What comes later was computed from what it read, in which there were no positions either.
    laws.assert_close(run(parts, ids, keep, voltmeter.fill.zero()), blind(ids), laws.EXACT)


def test_units_are_neurons() -> None:
    """Cutting all edges of a neuron is setting it to zero."""
    units, ids = wired(MODEL).split("m0", into="units"), models.tokens(2, 4, seed=1)
    neurons = [f"m0.n{n}" for n in range(UNITS)]
    assert [w for w in names(units.writers) if w.startswith("m0")] == neurons
    assert [r for r in names(units.readers) if r.startswith("m0")] == neurons
    keep = torch.tensor([float(edge.writer != "m0.n3") for edge in units.edges])
    down = units.model.get_submodule("blocks.0.mlp.down")
    handle = down.register_forward_pre_hook(lambda _, given: (given[0] * (torch.arange(UNITS) != 3),))
    expected = units.model(ids)
    handle.remove()
    laws.assert_close(run(units, ids, keep, voltmeter.fill.zero()), expected, laws.EXACT)


class Ops(TorchDispatchMode):
    """Counts what torch does."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_wide_mlp_takes_no_more_calls_than_a_narrow_one() -> None:
    """Its units are divided and verified together: 3,072 calls, one for each, once took ten seconds."""

    class Wide(nn.Module):
        def __init__(self, units: int) -> None:
            super().__init__()
            self.embed, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, units), nn.Linear(units, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            x = x + self.down(torch.relu(self.up(x)))
            return x.sum(-1)

    def ops(units: int) -> int:
        wiring = voltmeter.wire(enliven(Wide(units)), models.seeded(0, 2, 4))
        (name,) = (each.component for each in wiring.readers if each.kind != "output")
        with Ops() as counted:
            assert len(wiring.split(name, "units").readers) == units + 1
        return counted.count

    assert ops(40) == ops(60)  # two numbers of as many bits


def test_channels_are_channels() -> None:
    channels, images = wired(IMAGES).split("blocks.0", "channels"), IMAGES.inputs(2, 0, seed=1).double()
    assert [w for w in names(channels.writers) if "c" in w.rsplit(".", 1)[-1]] == [f"blocks.0.c{n}" for n in range(6)]
    with voltmeter.record(channels, ["blocks.0.c2"]) as seen, torch.no_grad():
        channels.model(images)
    written = seen["blocks.0.c2"].abs().amax((0, 2, 3))
    assert torch.nonzero(written).flatten().tolist() == [2]


def test_channels_of_a_sequence_are_not_its_positions() -> None:
    """Also where there are as many of the one as of the other."""
    recipe = Residual(norm="layer")
    square = voltmeter.wire(models.built(recipe), models.seeded(0, 2, models.WIDTH, models.WIDTH).double())
    channels = square.split("blocks.0", "channels")
    with voltmeter.record(channels, ["blocks.0.c2"]) as seen, torch.no_grad():
        channels.model(models.seeded(1, 2, models.WIDTH, models.WIDTH).double())
    assert torch.nonzero(seen["blocks.0.c2"].abs().amax((0, 1))).flatten().tolist() == [2]


@pytest.mark.parametrize(("name", "into"), [("m0", "channels"), ("a0", "channels"), ("m1", "positions")])
def test_what_a_component_writes_can_be_divided(name: str, into: str) -> None:
    parts = wired(MODEL).split(name, into)
    letter, count = {"channels": ("c", models.WIDTH), "positions": ("p", 4)}[into]
    made = [f"{name}.{letter}{n}" for n in range(count)]
    assert [w.name for w in parts.writers if w.component == name] == made
    with voltmeter.record(parts, made) as seen, torch.no_grad():
        parts.model(models.tokens(2, 4, seed=1))
    axes = (0, 1) if into == "channels" else (0, 2)
    for number, part in enumerate(made):
        assert torch.nonzero(seen[part].abs().amax(axes)).flatten().tolist() == [number]


def test_positions_are_those_of_the_length_they_were_wired_at() -> None:
    parts = wired(MODEL).split("input", "positions")
    assert names(parts.writers)[:5] == ["input.p0", "input.p1", "input.p2", "input.p3", "a0.h0"]
    keep = torch.tensor([float(edge.writer != "input.p1") for edge in parts.edges])
    laws.law_1(replace_wiring(Case(MODEL, 2, 4, "zero", "edge", binary=True, seed=1), parts))
    ids = models.tokens(2, 4, seed=1)
    assert not torch.allclose(run(parts, ids, keep, voltmeter.fill.zero()), parts.model(ids))


@pytest.mark.parametrize("length", [3, 5])
def test_positions_at_another_length_are_refused(length: int) -> None:
    """Not passed over: the edges could not be cut."""
    parts = wired(MODEL).split("input", "positions")
    with pytest.raises(voltmeter.errors.VoltmeterError, match="4"):
        run(parts, models.tokens(2, length, seed=1), torch.zeros(len(parts.edges)), voltmeter.fill.zero())


def test_merged_heads_are_one_writer_and_one_reader() -> None:
    merged = wired(MODEL).merge("a0")
    assert names(merged.writers)[:3] == ["input", "a0", "m0"]
    assert names(merged.readers)[:2] == ["a0", "m0"]
    assert wired(MODEL).merge("a0.h1").digest == merged.digest, "a part names its component"


def test_coarsened_is_one_of_each() -> None:
    coarse = wired(MODEL).coarsen()
    assert names(coarse.writers) == ["input", "a0", "m0", "a1", "m1"]
    assert names(coarse.readers) == ["a0", "m0", "a1", "m1", "logits"]
    assert len(coarse.edges) == 1 + 2 + 3 + 4 + 5
    assert coarse.coarsen().digest == coarse.digest


def test_there_and_back_is_the_same_wiring() -> None:
    wiring = wired(MODEL)
    for back in (
        wiring.split("input").merge("input"),
        wiring.merge("a1").split("a1", into="heads"),
        wiring.split("m1", "units").merge("m1.n4"),
        wiring.coarsen().split("a0").split("a1"),
    ):
        assert back.digest == wiring.digest
        assert back.edges.names == wiring.edges.names
        assert back.model is wiring.model


def test_dividing_leaves_the_wiring_as_it_was() -> None:
    wiring = wired(MODEL)
    before = (wiring.digest, wiring.edges.names, dict(wiring.divisions))
    assert wiring.split("m0").digest != wiring.digest
    assert (wiring.digest, wiring.edges.names, dict(wiring.divisions)) == before


# What is refused


@pytest.mark.parametrize("name", ["m7", "a2.h0", "embedding", ""])
@pytest.mark.parametrize("ask", ["split", "merge"])
def test_an_unknown_component(ask: str, name: str) -> None:
    with pytest.raises(AddressError) as caught:
        getattr(wired(MODEL), ask)(name)
    assert caught.value.problem.startswith("no component is called '")
    assert "nearest: " in caught.value.details[0]
    assert caught.value.mend == "list them with wiring.components"


@pytest.mark.parametrize(
    ("recipe", "name", "into"),
    [
        (MODEL, "m0", "heads"),
        (MODEL, "m0", "nonsense"),
        (MODEL, "a0", "units"),
        (replace(MODEL, rotary=True), "input", "parts"),
        (ROWS, "blocks.0", "positions"),
        (IMAGES, "blocks.0", "units"),
        (IMAGES, "blocks.0", "heads"),
        (MODEL, "logits", "channels"),
    ],
)
def test_a_component_that_cannot_be_divided_so(recipe: models.Recipe, name: str, into: str) -> None:
    with pytest.raises(AddressError) as caught:
        wired(recipe).split(name, into)
    assert caught.value.problem.startswith(f"'{name}' cannot be divided")
    assert caught.value.details
    assert caught.value.mend


# Another model in its place


def test_a_bound_wiring_is_divided_alike() -> None:
    fine = wired(MODEL).split("input").split("m0", "units")
    other = models.built(replace(MODEL, seed=9))
    bound = fine.bind(other)
    assert bound.model is other
    assert bound.digest == fine.digest
    assert bound.verified != fine.verified
    laws.law_2(replace_wiring(Case(MODEL, 2, 4, "resample", "edge", binary=True, seed=1), bound))


def test_binding_a_model_of_another_structure() -> None:
    with pytest.raises(AddressError, match="the other model has other edges"):
        wired(MODEL).bind(models.built(replace(MODEL, layers=1)))
