"""Each law notices when it is broken: the engine, the plan and the model are sabotaged, one at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import laws
import models
import pytest
import torch
import torch.nn.modules.module as module_hooks
from cases import Case, Rewired
from models import Residual, Transformer
from torch import Tensor

import voltmeter
from voltmeter.errors import KeepError, VoltmeterError
from voltmeter.run import engine
from voltmeter.wiring.follow import Follower
from voltmeter.wiring.wiring import Wiring

MODEL = Transformer(layers=2, heads=2, kv=1, norm="layer", mlp="gated", seed=5)
CASE = Case(MODEL, batch=2, length=4, fill="resample", axes="edge", binary=False, seed=3)
LINEAR = Case(
    Residual(blocks=2, norm="none", act="none", seed=2), 2, 3, "resample", "edge", binary=False, seed=3
)  # fmt: skip

Sabotage = Callable[[pytest.MonkeyPatch], None]


# The engine


def _change_keep(patch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """The engine reads another keep than it was given."""
    share = engine.of_site
    patch.setattr(engine, "of_site", lambda wiring, site, state, keep: share(wiring, site, state, change(keep)))


def _wrong_sign(patch: pytest.MonkeyPatch) -> None:
    """What a cut edge carries is taken away instead of put in."""
    _change_keep(patch, lambda keep: 2 - keep)


def _leak(patch: pytest.MonkeyPatch) -> None:
    """A little of every fill arrives even where the edge is kept."""
    _change_keep(patch, lambda keep: keep - 1e-6)


def _one_edge_off(patch: pytest.MonkeyPatch) -> None:
    _change_keep(patch, lambda keep: keep.roll(1, -1))


def _dead_engine(patch: pytest.MonkeyPatch) -> None:
    """Nothing is ever cut."""
    _change_keep(patch, torch.ones_like)


def _cut_in_place(patch: pytest.MonkeyPatch) -> None:
    """Cutting an edge changes the stream itself, so the next reader reads what was left to the one before."""
    cut = engine.Cut._reads

    def spoil(self: engine.Cut, site: Any, state: Any, x: Tensor) -> Tensor:
        reads = cut(self, site, state, x)
        x.data.copy_(reads[0].detach())
        return reads

    patch.setattr(engine.Cut, "_reads", spoil)


def _remember(patch: pytest.MonkeyPatch) -> None:
    """The gradient buffers of one run are handed on to the next."""
    begin, kept = engine.Cut.begin, {}

    def haunted(self: engine.Cut) -> None:
        begin(self)
        self.tape.gradient = lambda stream: kept.setdefault(stream, torch.zeros_like(self.tape.delta[stream]))
        self.tape.gdelta = kept

    patch.setattr(engine.Cut, "begin", haunted)
    patch.setattr(engine, "claim", lambda tape: None)


def _half_gradient(patch: pytest.MonkeyPatch) -> None:
    against = engine.against
    patch.setattr(engine, "against", lambda grad, delta, cut: 0.5 * against(grad, delta, cut))


def _turned_gradient(patch: pytest.MonkeyPatch) -> None:
    against = engine.against
    patch.setattr(engine, "against", lambda grad, delta, cut: -against(grad, delta, cut))


def _no_gradient_to_writers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "accumulate", lambda total, rows, cut, grad: None)


@pytest.mark.parametrize(
    ("sabotage", "law"),
    [
        (_leak, laws.law_1),
        (_cut_in_place, laws.law_2),
        (_wrong_sign, laws.law_2),
        (_wrong_sign, laws.law_2_by_hand),
        (_one_edge_off, laws.law_2_by_hand),
        (_dead_engine, laws.law_2),
        (_leak, laws.law_3),
        (_wrong_sign, laws.law_3),
        (_one_edge_off, laws.law_3),
        (_half_gradient, laws.law_3),
        (_no_gradient_to_writers, laws.law_3),
        (_cut_in_place, laws.law_4),
        (_remember, laws.law_4),
        (_dead_engine, laws.law_7),
    ],
)
def test_a_broken_engine_is_noticed(
    sabotage: Sabotage, law: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    law(CASE)
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        law(CASE)


@pytest.mark.parametrize("sabotage", [_half_gradient, _turned_gradient])
def test_wrong_scores_of_a_linear_model_are_noticed(sabotage: Sabotage, monkeypatch: pytest.MonkeyPatch) -> None:
    laws.law_6(LINEAR)
    sabotage(monkeypatch)
    with pytest.raises(AssertionError, match="gradient scores"):
        laws.law_6(LINEAR)


# The plan


def _without(wiring: Wiring, change: Callable[[Any], Any], where: Callable[[Any], bool]) -> Wiring:
    """A copy of the wiring whose taps are changed at the first call where it says so."""
    taps = dict(wiring.plan.by_call)
    at = next(key for key, tap in taps.items() if where(tap))
    tap = copy.copy(taps[at])
    change(tap)
    taps[at] = tap
    plan = replace(wiring.plan)
    vars(plan)["by_call"] = taps  # worked out when first asked for, so it can be set before
    return replace(wiring, plan=plan)


def without_a_writer(wiring: Wiring) -> Wiring:
    """What one writer writes is no longer heard."""
    return _without(wiring, lambda tap: setattr(tap, "before", []), lambda tap: any(w.writers for w in tap.before))


def without_a_reader(wiring: Wiring) -> Wiring:
    """One reading call goes its own way."""
    return _without(wiring, lambda tap: setattr(tap, "site", None), lambda tap: tap.site is not None)


@pytest.mark.parametrize(
    ("lose", "law"),
    [
        (without_a_writer, laws.law_2),
        (without_a_writer, laws.law_2_by_hand),
        (without_a_reader, laws.law_2),
        (without_a_reader, laws.law_2_by_hand),
        (without_a_reader, laws.law_7),
    ],
)
def test_a_hole_in_the_plan_is_noticed(lose: Callable[[Wiring], Wiring], law: Callable[[Case], None]) -> None:
    broken = Rewired(**vars(CASE), rewired=lose(CASE.wiring))
    with pytest.raises((AssertionError, VoltmeterError, KeyError)):
        law(broken)


def test_a_case_with_a_whole_plan_passes() -> None:
    """So it is the hole that is noticed, not the copying."""
    law = laws.law_2_by_hand
    law(Rewired(**vars(CASE), rewired=replace(CASE.wiring, plan=replace(CASE.wiring.plan))))


# The model and what is around it


def _nudge_a_weight(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0].add_(1e-9)


def _write_a_weight_back(model: torch.nn.Module) -> None:
    """The same numbers, written again: a saved graph would not survive it."""
    with torch.no_grad():
        weight = next(model.parameters())
        weight.copy_(weight.clone())


def _change_a_buffer(model: torch.nn.Module) -> None:
    model.get_buffer("blocks.0.norm.running_mean").add_(1e-9)


def _leave_a_gradient(model: torch.nn.Module) -> None:
    weight = next(model.parameters())
    weight.grad = torch.zeros_like(weight)


DAMAGE: dict[str, Callable[[torch.nn.Module], object]] = {
    "a weight": _nudge_a_weight,
    "a weight, written back": _write_a_weight_back,
    "a buffer": _change_a_buffer,
    "a frozen weight": lambda model: next(model.parameters()).requires_grad_(False),
    "a gradient": _leave_a_gradient,
    "training mode": lambda model: model.get_submodule("blocks.0").train(),
    "a hook": lambda model: model.get_submodule("blocks.0").register_forward_hook(lambda *_: None),
    "an attribute": lambda model: setattr(model, "voltmeter", 1),
    "random numbers": lambda model: torch.rand(1),
    "a flag": lambda model: torch.backends.mha.set_fastpath_enabled(False),
    "grad mode": lambda model: torch.set_grad_enabled(False),
}


@pytest.fixture
def restored() -> Iterator[None]:
    """Puts back what the damage does outside the model."""
    yield
    torch.backends.mha.set_fastpath_enabled(True)
    torch.set_grad_enabled(True)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_changed_model_is_noticed(damage: Callable[[torch.nn.Module], object]) -> None:
    model = models.built(models.Convolutional())
    with laws.law_5(model):
        pass
    with pytest.raises(AssertionError, match="changed"), laws.law_5(model):
        damage(model)


def test_a_changed_input_is_noticed() -> None:
    given = torch.zeros(3)
    with pytest.raises(AssertionError, match="given tensor"), laws.law_5(torch.nn.Linear(1, 1), {"x": (given,)}):
        given += 1


def test_a_global_hook_left_behind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Any] = []

    def leave(self: Follower, *error: object) -> None:
        left.extend(self._handles)
        super(Follower, self).__exit__(*error)

    monkeypatch.setattr(Follower, "__exit__", leave)
    with pytest.raises(AssertionError, match="global hooks"), laws.law_5(CASE.wiring.model):
        CASE.run()
    for handle in left:
        handle.remove()
    assert not module_hooks._global_forward_hooks


# Also when something goes wrong in the middle of a run


class Interrupted(Exception):
    pass


def _interrupt(*_: object) -> None:
    raise Interrupted


@pytest.mark.parametrize("reference", [False, True])
def test_nothing_is_left_behind_by_a_model_that_raises(reference: bool) -> None:
    model = models.built(MODEL)
    wiring = CASE.wiring.bind(model)
    expected = CASE.run(reference=reference)
    trap = model.get_submodule("blocks.1.mlp.up").register_forward_pre_hook(_interrupt)
    with laws.law_5(model), pytest.raises(Interrupted):
        voltmeter.run(wiring, CASE.inputs, CASE.keep(), voltmeter.fill.zero(), reference=reference)
    with laws.law_5(model), pytest.raises(Interrupted), voltmeter.record(wiring):
        model(CASE.inputs)
    trap.remove()
    again = voltmeter.run(
        wiring, CASE.inputs, CASE.keep(), CASE.values(), CASE.corrupted, reference=reference
    )  # fmt: skip
    assert torch.equal(again, expected)


def test_nothing_is_left_behind_by_an_error_of_voltmeters_own() -> None:
    """Found out in the middle of the run, when the stream's shape is known."""
    model = CASE.wiring.model
    keep = torch.zeros(2, 2, len(CASE.wiring.edges))
    with laws.law_5(model, keep), pytest.raises(KeepError, match="2 positions"):
        CASE.run(keep, axes="example position edge")


def test_hooks_of_the_models_own_come_in_pairs() -> None:
    """A hook before a module may count on the one behind it, also in the runs that a fill is taken from."""
    model = models.built(MODEL)
    wiring, open_modules = CASE.wiring.bind(model), []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: open_modules.append(module))
        module.register_forward_hook(lambda module, *_: open_modules.remove(module))
    voltmeter.fill.mean(wiring, [CASE.inputs])
    voltmeter.run(wiring, CASE.inputs, CASE.keep(), voltmeter.fill.resample(), CASE.corrupted)
    assert not open_modules


def test_nothing_is_left_behind_by_a_failed_backward_pass() -> None:
    model, keep = CASE.wiring.model, CASE.keep().requires_grad_()
    share = keep * 1
    share.register_hook(_interrupt)
    output = CASE.run(share)
    with laws.law_5(model, keep), pytest.raises(Interrupted):
        output.sum().backward()


def test_wiring_and_recording_change_nothing() -> None:
    model, inputs = models.built(MODEL), CASE.inputs
    with laws.law_5(model, inputs):
        wiring = voltmeter.wire(model, inputs)
    with laws.law_5(model, inputs), voltmeter.record(wiring) as seen, torch.no_grad():
        model(inputs)
    with laws.law_5(model, inputs, dict(seen)):
        wiring.split("input").coarsen()
    with laws.law_5(model, inputs):
        voltmeter.fill.mean(wiring, [inputs])
        voltmeter.fill.mean_position(wiring, [inputs])


class Highway(torch.nn.Linear):
    """Cannot be wired: the stream is multiplied by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, super().forward(x), torch.sigmoid(x))


class Raising(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise Interrupted


@pytest.mark.parametrize(("layer", "error"), [(Highway, VoltmeterError), (Raising, Interrupted)])
def test_a_wiring_that_fails_changes_nothing(layer: type[torch.nn.Linear], error: type[Exception]) -> None:
    model = torch.nn.Sequential(layer(4, 4), layer(4, 4), torch.nn.Linear(4, 2)).eval()
    with laws.law_5(model), pytest.raises(error):
        voltmeter.wire(model, torch.arange(12.0).view(3, 4))
