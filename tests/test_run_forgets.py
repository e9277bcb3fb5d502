"""What a run held is let go of when it is over: its deltas are as large as all that the model computes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from models import Convolutional, Recipe, Transformer, wired

import voltmeter as vm
from voltmeter.errors import TapeError
from voltmeter.run.attributing import Attribute
from voltmeter.run.points import moved_point, plain_point
from voltmeter.run.run import attribute

RECIPES = pytest.mark.parametrize("recipe", [Transformer(), Convolutional()], ids=lambda recipe: type(recipe).__name__)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Attribute]]]:
    """Every listener that is made. At once, without the collector, which sees no cycle through a graph of torch's."""
    made: list[weakref.ref[Attribute]] = []
    begin = Attribute.__init__

    def watched(self: Attribute, *given: object) -> None:
        begin(self, *given)  # type: ignore[arg-type]
        made.append(weakref.ref(self))

    monkeypatch.setattr(Attribute, "__init__", watched)
    gc.disable()
    yield made
    gc.enable()


def inputs_of(recipe: Recipe, seed: int = 0) -> torch.Tensor:
    inputs = recipe.inputs(2, 4, seed)
    return inputs.double() if inputs.is_floating_point() else inputs


def squares(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.square().sum()


@RECIPES
def test_nothing_is_left_of_an_attribution(recipe: Recipe, left: list[weakref.ref[Attribute]]) -> None:
    for seed in range(2):
        total, _ = attribute(wired(recipe), inputs_of(recipe, seed), vm.fill.zero(), None, squares)
        assert bool(total.any())
    assert [listener() for listener in left] == [None, None]


@RECIPES
def test_nothing_is_left_of_a_point_and_its_backward_passes(recipe: Recipe, left: list[weakref.ref[Attribute]]) -> None:
    wiring, inputs = wired(recipe), inputs_of(recipe)
    plain, value = plain_point(wiring, inputs, vm.fill.zero().values_for(wiring, inputs, None), squares)
    value.backward(retain_graph=True)
    first = plain.total
    plain.forget()
    value.backward()
    assert torch.equal(first, plain.total)
    moved, value = moved_point(plain, frozenset({0}), 0.5, squares)
    value.backward()
    assert bool(moved.total.any())
    del plain, moved, value
    assert [listener() for listener in left] == [None, None]


def test_a_backward_pass_after_the_listener_is_gone_is_refused() -> None:
    recipe = Transformer()
    wiring, inputs = wired(recipe), inputs_of(recipe)
    _, value = plain_point(wiring, inputs, vm.fill.zero().values_for(wiring, inputs, None), squares)
    del _
    with pytest.raises(TapeError, match="let go of before its backward pass"):
        value.backward()
