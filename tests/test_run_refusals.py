"""What ``run`` refuses, in so many words: every keep that can mean several things or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import laws
import models
import pytest
import torch
from conftest import ROOT
from models import Convolutional, Residual, wired
from run_subject import EDGES, INPUTS, MODEL, WIRING, A, B, Kept, keep_like
from torch import Tensor

import voltmeter
from voltmeter import fill, record, run
from voltmeter.errors import FillError, KeepError, VoltmeterError, WiringError
from voltmeter.run.run import attribute

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def refused(kind: type[Exception], *given: Any, **named: Any) -> str:
    with laws.law_5(WIRING.model), pytest.raises(kind) as caught:
        run(WIRING, INPUTS, *given, **named)
    return str(caught.value)


def test_a_keep_that_can_mean_several_things() -> None:
    assert refused(KeepError, keep_like(2), fill.zero()) == (
        f"a keep of shape [2, {EDGES}] can mean several things\n"
        "  axes must be one of: 'edge', 'circuit edge', 'example edge', 'example position edge'\n"
        '  say which, for example run(..., keep=keep, axes="circuit edge")'
    )


def test_unknown_axes() -> None:
    assert refused(KeepError, keep_like(2), fill.zero(), axes="edge circuit") == (
        "unknown axes 'edge circuit'\n  they are: 'edge', 'circuit edge', 'example edge', 'example position edge'"
    )


def test_axes_that_do_not_fit_the_shape() -> None:
    assert refused(KeepError, keep_like(), fill.zero(), axes="circuit edge") == (
        f"a keep of shape [{EDGES}] has not the axes 'circuit edge'"
    )


def test_axes_for_a_circuit() -> None:
    for given in (A, [A, B]):
        assert "leave axes to keeps that are tensors" in refused(KeepError, given, fill.zero(), axes="example edge")


def test_a_keep_with_too_few_edges() -> None:
    assert refused(KeepError, torch.ones(EDGES - 1), fill.zero()) == (
        f"the keep has {EDGES - 1} entries along its edge axis\n"
        f"  the wiring has {EDGES} edges\n"
        "  give one number for every edge, in the order of wiring.edges"
    )


def test_a_keep_of_whole_numbers() -> None:
    assert refused(KeepError, torch.ones(EDGES, dtype=torch.long), fill.zero()) == (
        "a keep is a real number per edge, not torch.int64\n  give keep.float()"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_keep_that_is_not_finite(bad: float) -> None:
    assert refused(KeepError, torch.full((EDGES,), bad), fill.zero()) == "the keep is not finite"


def test_a_keep_for_other_examples() -> None:
    assert refused(KeepError, keep_like(3), fill.zero(), axes="example edge") == (
        "the keep is for 3 examples, the inputs hold 2"
    )


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("reference", [False, True])
def test_a_keep_for_other_positions(length: int, reference: bool) -> None:
    """2 divides 4 and 8 holds it, so that the numbers could be laid out all the same."""
    text = refused(
        KeepError, keep_like(2, length), fill.zero(), axes="example position edge", reference=reference
    )  # fmt: skip
    assert text == (
        f"the keep is for {length} positions, which the stream 'main' does not have\n"
        f"  it has shape [2, 4, 8] in this run; with positions it would be [2, {length}, width]\n"
        '  give one number for all positions: axes="example edge"'
    )


@pytest.mark.parametrize("recipe", [Convolutional(blocks=1), Residual(blocks=1, positions=False)])
@pytest.mark.parametrize("length", [2, 6, 8])
def test_positions_where_there_are_none(recipe: models.Recipe, length: int) -> None:
    """An image has 6 channels, not 6 positions; a row has 8 features."""
    wiring, inputs = wired(recipe), recipe.inputs(2, 0, seed=1).double()
    with pytest.raises(KeepError, match=f"{length} positions, which the stream 'main' does not have"):
        run(wiring, inputs, torch.zeros(2, length, len(wiring.edges)), fill.zero(), axes="example position edge")


def test_a_circuit_of_another_wiring() -> None:
    other = Kept(WIRING.edges.names[:-1], (0,))
    expected = (
        "the circuit belongs to another wiring\n"
        f"  it has {EDGES - 1} edges, this wiring {EDGES}; or their names differ\n"
        "  wire the model with the same divisions as when the circuit was found"
    )
    assert refused(KeepError, other, fill.zero()) == expected
    assert refused(KeepError, [A, other], fill.zero()) == expected
    assert "another wiring" in refused(KeepError, Kept(WIRING.edges.names[::-1], (0,)), fill.zero())


def test_an_empty_list_of_circuits() -> None:
    mend = (
        "  give a tensor of a number for every edge, a circuit (of names: Circuit.from_edges(wiring, names)), a list "
        'of circuits, or a tensor of several: run(..., keep=torch.stack(keeps), axes="circuit edge")'
    )
    assert refused(KeepError, [], fill.zero()) == f"a list of circuits is empty\n{mend}"


def test_edges_are_cut_and_nothing_says_what_they_carry() -> None:
    assert refused(FillError, torch.ones(EDGES)) == (
        "edges are cut, and nothing says what they carry\n  give fill=voltmeter.fill.zero(), ..."
    )


def test_circuits_of_a_model_that_sums_over_its_batch() -> None:
    """A loss over the whole batch would mix the circuits."""

    class WithLoss(models.Decoder):
        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            logits = super().forward(ids)
            return {"logits": logits, "loss": logits.square().mean()}

    model = models.enliven(WithLoss(MODEL)).double()
    wiring = voltmeter.wire(model, INPUTS)
    assert run(wiring, INPUTS, A.mask(), fill.zero())["loss"].dim() == 0
    with pytest.raises(KeepError) as caught:
        run(wiring, INPUTS, [A, B], fill.zero())
    assert str(caught.value) == (
        "the model returns a tensor of shape [], which mixes the 2 circuits of the batch\n"
        "  circuits are run as one batch, along axis 0 of every tensor\n"
        "  run them one by one, or leave out what makes the model sum over its batch (labels, for one)"
    )


def test_inputs_without_a_batch() -> None:
    with pytest.raises(voltmeter.errors.WiringError, match="no batch axis in common"):
        run(WIRING, {"ids": INPUTS, "more": torch.zeros(3)}, keep_like(2), fill.zero(), axes="circuit edge")


@pytest.mark.parametrize("reference", [False, True])
def test_params_of_another_shape(reference: bool) -> None:
    """Every one is named; one that torch would broadcast is no better."""
    given = {"unembed.bias": torch.zeros(1), "tok.weight": torch.zeros(3), "blocks.0.mlp.up.bias": 0.5}
    assert refused(VoltmeterError, A, fill.zero(), params=given, reference=reference) == (
        "3 of the given params have another shape than the model's\n"
        f"  unembed.bias: [1] given, {list(WIRING.model.unembed.bias.shape)} in the model\n"
        f"  tok.weight: [3] given, {list(WIRING.model.tok.weight.shape)} in the model\n"
        f"  blocks.0.mlp.up.bias: float given, {list(WIRING.model.blocks[0].mlp.up.bias.shape)} in the model\n"
        "  give tensors of these shapes"
    )
    assert refused(VoltmeterError, params={"tok.weight": torch.zeros(3)}).startswith(
        "1 of the given params has another"
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda: run(WIRING, INPUTS),
        lambda: run(WIRING, INPUTS, A, fill.zero(), reference=True),
        lambda: attribute(WIRING, INPUTS, fill.zero(), None, lambda outputs: outputs.sum()),
        lambda: fill.mean(WIRING, [INPUTS]),
        lambda: record(WIRING).__enter__(),
        lambda: voltmeter.wire(WIRING.model, INPUTS),
        lambda: WIRING.coarsen(),
        lambda: WIRING.weights("a0.h0"),
    ],
)
def test_a_model_that_is_being_recorded(ask: Callable[[], Any]) -> None:
    with laws.law_5(WIRING.model), pytest.raises(WiringError) as caught, record(WIRING):
        ask()
    assert str(caught.value) == (
        "the model is being recorded, and can meanwhile neither be wired, cut nor recorded once more\n"
        "  inside record call wiring.model(...), and leave the with before run, fills, wire or another record"
    )


def test_another_model_may_be_run_while_one_is_recorded() -> None:
    other = Residual()
    inputs = other.inputs(2, 4, seed=1).double()
    with record(WIRING) as seen:
        run(wired(other), inputs)
        WIRING.model(INPUTS)
    assert len(seen.runs) == 1


STRANGERS = """
import torch, voltmeter as vm
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 2)
    def forward(self, x):
        return self.g(x + self.f(x))

model, x = Model().eval(), torch.rand(2, 4)
wiring, zero = vm.wire(model, x), vm.fill.zero()
ones = torch.ones(3)
for ask in (
    lambda: vm.wire("demo", x), lambda: vm.wire(lambda x: x, x), lambda: vm.wire(model, x[:0]),
    lambda: vm.run(model, x, ones, zero), lambda: vm.run(wiring, x[:0], ones, zero),
    lambda: vm.run(wiring, x, ones, "zero"), lambda: vm.run(wiring, x, ones, vm.fill.zero),
    lambda: vm.run(wiring, x, "input -> logits", zero), lambda: vm.run(wiring, x, {"input -> logits": 0.0}, zero),
    lambda: vm.run(wiring, x, 0.5, zero), lambda: vm.run(wiring, x, ["input -> logits"], zero),
    lambda: vm.run(wiring, x, torch.ones(0, 3), zero, axes="circuit edge"),
    lambda: vm.fill.tensor(ones),
):
    try:
        print("silent:", ask())
    except vm.errors.VoltmeterError as error:
        print(type(error).__name__, error.problem)
"""


def test_what_is_of_another_kind_is_named() -> None:
    """In a process of its own: here, annotations are checked before the code is reached."""
    done = subprocess.run(
        [sys.executable, "-c", STRANGERS], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "WiringError a torch.nn.Module is wired, and a str was given",
        "WiringError a torch.nn.Module is wired, and a function was given",
        "WiringError the inputs hold no rows",
        "VoltmeterError a wiring is run, and a Model was given",
        "WiringError the inputs hold no rows",
        "FillError a str was given for what cut edges carry",
        "FillError a function was given for what cut edges carry",
        "KeepError a str was given for what is kept",
        "KeepError a dict was given for what is kept",
        "KeepError a float was given for what is kept",
        "KeepError a list of keeps holds something else than circuits",
        "KeepError the keep is empty: it has shape [0, 3], circuit edge",
        "FillError a tensor fill was given a Tensor",
    ]
