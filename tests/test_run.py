"""``run``: every shape of a keep, batches of circuits, other parameters, one backward pass, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import laws
import models
import pytest
import torch
from cases import FILLS, Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Convolutional
from run_subject import CASE, CORRUPTED, EDGES, INPUTS, WIRING, A, B
from torch import Tensor

from voltmeter import fill, run
from voltmeter.errors import AddressError, TapeError
from voltmeter.run.run import attribute

FEW = settings(max_examples=12)


# Keeps of every shape


@FEW
@given(cases(of=models.FEW, axes=("circuit edge",)))
def test_circuits_in_a_batch_are_the_circuits_one_by_one(case: Case) -> None:
    keep = case.keep().requires_grad_()
    together = case.run(keep)
    alone = torch.stack([case.run(one, axes="edge") for one in keep])
    laws.assert_close(together, alone, laws.EXACT)
    gradients = [torch.autograd.grad(laws.metric_of(out[-1]), keep)[0] for out in (together, alone)]
    laws.assert_close(*gradients, laws.EXACT_GRADIENT, "gradient")


@FEW
@given(cases(of=models.FEW, axes=("example edge",), fills=("zero", "resample")))
def test_each_example_has_its_own_keep(case: Case) -> None:
    together, keep = case.run(), case.keep()
    for row in range(case.batch):
        inputs, corrupted = case.inputs[row : row + 1], case.corrupted[row : row + 1]
        alone = run(case.wiring, inputs, keep[row], case.values(), corrupted)
        laws.assert_close(together[row : row + 1], alone, laws.EXACT)


@FEW
@given(cases(of=models.FEW[:2], axes=("example position edge",)), st.integers(0, 1))
def test_each_position_has_its_own_keep(case: Case, position: int) -> None:
    """The position of a keep is that of the reader: what a later one does, an earlier one cannot see."""
    keep = case.keep()
    other = keep.clone()
    other[:, position + 1 :] = 1 - other[:, position + 1 :]
    assert torch.equal(case.run(keep)[:, : position + 1], case.run(other)[:, : position + 1])
    assert not torch.equal(case.run(keep)[:, position + 1 :], case.run(other)[:, position + 1 :])


@FEW
@given(cases(axes=("edge",)))
def test_shapes_agree_where_they_say_the_same(case: Case) -> None:
    keep, count = case.keep(), len(case.wiring.edges)
    expected = case.run(keep)
    by_row = case.run(keep.expand(case.batch, count), axes="example edge")
    laws.assert_close(by_row, expected, laws.EXACT)
    if case.recipe.has_positions:
        everywhere = keep.expand(case.batch, case.length, count)
        laws.assert_close(case.run(everywhere, axes="example position edge"), expected, laws.EXACT)


def test_a_circuit_and_a_list_of_circuits() -> None:
    one, other = (run(WIRING, INPUTS, k.mask(torch.float64), fill.zero()) for k in (A, B))
    assert torch.equal(run(WIRING, INPUTS, A, fill.zero()), one)
    laws.assert_close(run(WIRING, INPUTS, [A, B], fill.zero()), torch.stack([one, other]), laws.EXACT)
    laws.assert_close(run(WIRING, INPUTS, (B,), fill.zero()), other[None], laws.EXACT)


def test_no_keep_keeps_all() -> None:
    laws.assert_close(run(WIRING, INPUTS), WIRING.model(INPUTS), laws.EXACT)


def test_fill_values_may_be_made_beforehand() -> None:
    values = CASE.values().values_for(WIRING, INPUTS, CORRUPTED)
    assert torch.equal(CASE.run(fill=values, corrupted=None), CASE.run())


def test_a_keep_of_another_precision_is_taken() -> None:
    keep = CASE.keep().round()
    assert torch.equal(CASE.run(keep.float()), CASE.run(keep))
    assert torch.equal(CASE.run(keep.bfloat16()), CASE.run(keep))


# Gradients, and the tape that gives them once


@pytest.mark.parametrize("name", FILLS)
def test_attribution_is_the_gradient_at_all_kept(name: str) -> None:
    """Without a masked forward, the same numbers."""
    for recipe in models.FEW:
        case = Case(recipe, 2, 4, name, "edge", binary=False, seed=4)
        keep = torch.ones_like(case.keep(), requires_grad=True)
        value = laws.metric_of(case.run(keep))
        scores, found = attribute(case.wiring, case.inputs, case.values(), case.corrupted, laws.metric_of)
        laws.assert_close(found, value.detach(), laws.EXACT)
        laws.assert_close(scores, torch.autograd.grad(value, keep)[0], laws.EXACT_GRADIENT)


def test_nothing_asked_for_costs_no_graph() -> None:
    """No keep, fill or parameter wants a gradient, so the output has none, although the weights would take one."""
    assert all(weight.requires_grad for weight in WIRING.model.parameters())
    assert not CASE.run().requires_grad
    assert not run(WIRING, INPUTS).requires_grad
    assert CASE.run(CASE.keep().requires_grad_()).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Callable[[], Any]) -> None:
    expected = CASE.run()
    with mode():
        assert torch.equal(CASE.run(), expected)
        assert torch.equal(CASE.run(CASE.keep().requires_grad_()), expected)


SPENT = (
    "this run's tape was already used by a backward pass\n"
    "  its buffers hold one gradient, and are not kept (retain_graph does not keep them)\n"
    "  call run(...) again for another backward pass"
)
TWICE = (
    "a run cannot be differentiated twice\n"
    "  its backward pass was asked for a graph of its own (create_graph=True)\n"
    "  take first derivatives only: backward() without create_graph"
)


def test_a_second_backward_pass_is_refused() -> None:
    keep = CASE.keep().requires_grad_()
    output = CASE.run(keep)
    output.sum().backward(retain_graph=True)
    first = keep.grad
    assert first is not None
    first = first.clone()
    for again in (output.sum(), output[0].sum()):
        with pytest.raises(TapeError) as caught:
            again.backward(retain_graph=True)
        assert str(caught.value) == SPENT
    assert torch.equal(first, keep.grad), "a refused pass adds nothing"


def test_a_backward_pass_of_another_run_is_none_of_this_one() -> None:
    keep = CASE.keep().requires_grad_()
    one, other = CASE.run(keep), CASE.run(keep)
    single = torch.autograd.grad(CASE.run(keep).sum(), keep)[0]
    (one.sum() + 2 * other.sum()).backward()
    assert keep.grad is not None
    laws.assert_close(keep.grad, 3 * single, laws.EXACT_GRADIENT)


def test_two_backward_passes_interleaved_are_two_runs() -> None:
    keep = CASE.keep().requires_grad_()
    one, other = CASE.run(keep), CASE.run(keep)
    grads = [torch.autograd.grad(out.sum(), keep)[0] for out in (other, one)]
    assert torch.equal(*grads)


def test_a_second_derivative_is_refused() -> None:
    keep = CASE.keep().requires_grad_()
    with pytest.raises(TapeError) as caught:
        torch.autograd.grad(CASE.run(keep).sum(), keep, create_graph=True)
    assert str(caught.value) == TWICE


def test_a_backward_pass_that_failed_leaves_no_half_gradient() -> None:
    """Trying again must not add to what the first pass left in the buffers."""
    keep = CASE.keep().requires_grad_()
    share = keep * 1
    calls: list[int] = []

    def fail_once(gradient: Tensor) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("out of luck")

    share.register_hook(fail_once)
    output = CASE.run(share)
    with pytest.raises(ValueError, match="luck"):
        output.sum().backward(retain_graph=True)
    with pytest.raises(TapeError):
        output.sum().backward()


def test_gradients_of_a_part_of_the_output() -> None:
    """Autograd then visits only some of the reads and writes."""
    keep = CASE.keep().requires_grad_()
    for pick in (lambda out: out[0, 1, 2], lambda out: out[:, 0].sum()):
        ours = torch.autograd.grad(pick(CASE.run(keep)), keep)[0]
        oracle = torch.autograd.grad(pick(CASE.run(keep, reference=True)), keep)[0]
        laws.assert_close(ours, oracle, laws.EXACT_GRADIENT)


# Other parameters


def changed(seed: int) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """A model of the same kind with other weights, and these weights."""
    model = models.enliven(copy.deepcopy(WIRING.model).float(), seed=seed).double()
    return model, {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", ["zero", "resample", "tensor"])
def test_params_are_a_model_with_other_weights(name: str) -> None:
    """The paired run too: a resample fill is what the changed model writes."""
    model, params = changed(seed=11)
    bound = WIRING.bind(model)
    case = replace(CASE, fill=name)
    for reference in (False, True):
        expected = run(bound, INPUTS, CASE.keep(), case.values(), CORRUPTED, reference=reference)
        assert torch.equal(case.run(params=params, reference=reference), expected)
    laws.assert_close(run(WIRING, INPUTS, params=params), model(INPUTS), laws.EXACT)
    nothing = run(WIRING, INPUTS, torch.zeros(EDGES), fill.resample(), CORRUPTED, params=params)
    laws.assert_close(nothing, model(CORRUPTED), laws.EXACT, "law 2")


def test_some_params_leave_the_others() -> None:
    model, params = changed(seed=12)
    some = {name: value for name, value in params.items() if "mlp" in name}
    model.load_state_dict({**WIRING.model.state_dict(), **some})
    laws.assert_close(run(WIRING, INPUTS, params=some), model(INPUTS), laws.EXACT)
    assert torch.equal(CASE.run(params={}), CASE.run())


@pytest.mark.parametrize("axes", ["edge", "circuit edge"])
def test_gradients_flow_to_params(axes: str) -> None:
    case = replace(CASE, axes=axes, fill="zero")
    _, params = changed(seed=13)
    names = ["tok.weight", "blocks.0.attention.out.weight", "blocks.1.mlp.up.bias", "unembed.weight"]
    given = {name: params[name].requires_grad_() for name in names}

    def gradients(reference: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(laws.metric_of(case.run(params=given, reference=reference)), list(given.values()))

    for name, ours, oracle in zip(names, gradients(False), gradients(True), strict=True):
        laws.assert_close(ours, oracle, laws.EXACT_GRADIENT, name)
    step = torch.zeros_like(given["tok.weight"])
    step[int(INPUTS[0, 0]), 2] = 1e-5
    up, down = (
        laws.metric_of(case.run(params={**given, "tok.weight": given["tok.weight"].detach() + sign * step}))
        for sign in (1, -1)
    )
    assert torch.allclose((up - down) / 2e-5, gradients(False)[0][step != 0].sum(), rtol=1e-6)


def test_a_buffer_may_be_given() -> None:
    recipe = Convolutional(blocks=1)
    case = Case(recipe, 2, 0, "zero", "edge", binary=True, seed=1)
    other = copy.deepcopy(case.wiring.model)
    shift = other.get_buffer("blocks.0.norm.running_mean").add_(1)
    found = run(case.wiring, case.inputs, params={"blocks.0.norm.running_mean": shift})
    laws.assert_close(found, other(case.inputs), laws.EXACT)


def test_unknown_params_are_refused() -> None:
    with pytest.raises(AddressError) as caught:
        run(WIRING, INPUTS, params={"tok.wieght": torch.zeros(1), "unembed.bias": torch.zeros(11)})
    assert str(caught.value).startswith("1 of the given params is not in the model\n  tok.wieght (nearest: tok.weight,")
