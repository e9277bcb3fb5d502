"""Compiled models obey the laws of every other model: exports of the original compiler, ours, and a variant."""

from __future__ import annotations

from collections.abc import Callable

import laws
import pytest
import torch
from known_models import EXPORTS, export
from torch import Tensor

from voltmeter import fill, run
from voltmeter.errors import WiringError
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.setting import derangement
from voltmeter.rasp.truth import truth
from voltmeter.rasp.variants import rotated
from voltmeter.rasp.wired import wiring_of

OURS = ("reverse", "two_paths", "veto", "shuffle_dyck2", "induction")
# Scores of 100 and ramps of 100 stand behind each other in these models: rounding of 1e-16 grows by some 1e4.
ROUNDING = 1e-11


def model_of(name: str) -> Compiled:
    kind, _, rest = name.partition(":")
    if kind == "export":
        return export(rest)
    made = compiled(program(rest), limit=64)
    return made if kind == "ours" else rotated(made, seed=0).compiled


MODELS = [*(f"export:{n}" for n in EXPORTS), *(f"ours:{n}" for n in OURS), "rotated:hist"]


@pytest.mark.parametrize("name", MODELS)
def test_the_laws(name: str) -> None:
    it = model_of(name)
    wiring = wiring_of(it).wiring
    tokens = it.model.encode(it.inputs)[:24]
    other = tokens[derangement(len(tokens), 0)]
    plain, corrupted = it.model(tokens), it.model(other)
    n = len(wiring.edges)
    generator = torch.Generator().manual_seed(0)
    keep = (torch.rand(n, generator=generator) < 0.7).double()
    fills = (fill.zero(), fill.mean(wiring, [tokens]), fill.resample())

    with laws.law_5(it.model):
        for each in fills:
            assert _far(run(wiring, tokens, torch.ones(n).double(), each, other), plain) <= ROUNDING, "law 1"
        assert _far(run(wiring, tokens, torch.zeros(n).double(), fills[-1], other), corrupted) <= ROUNDING, "law 2"
        for each in fills:
            engine, reference = (_with_gradient(wiring, tokens, keep, each, other, slow) for slow in (False, True))
            assert _far(engine[0], reference[0]) <= ROUNDING, "law 3"
            scale = max(1.0, float(reference[1].abs().max()))
            assert _far(engine[1], reference[1]) <= ROUNDING * scale, "law 3, gradient"


@pytest.mark.parametrize("name", ["export:reverse", "ours:induction"])
def test_a_necessary_edge_is_live_and_an_inert_one_is_dead(name: str) -> None:
    """Law 7 with the certificate's figures: the engine finds the effects of necessary edges and of every ninth."""
    it = model_of(name)
    certificate, wiring = truth(it, "zero"), wiring_of(it).wiring
    tokens = it.model.encode(it.inputs)
    plain = it.model(tokens)[:, 1:]
    some = [*{*certificate.necessary, *list(certificate.effects)[::9]}]
    keep = torch.ones(len(some), len(wiring.edges)).double()
    keep[range(len(some)), [wiring.edges.find(edge) for edge in some]] = 0.0
    cut = run(wiring, tokens, keep, fill.zero(), axes="circuit edge")[:, :, 1:]
    effects = torch.tensor([certificate.effects[edge] for edge in some], dtype=torch.float64)
    assert _far((cut - plain).abs().amax((1, 2, 3)), effects) <= ROUNDING


def _with_gradient(wiring, tokens, keep, each, other, slow) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    mine = keep.clone().requires_grad_()
    output = run(wiring, tokens, mine, each, other, reference=slow)
    (gradient,) = torch.autograd.grad(output[:, 1:].square().sum(), mine)
    return output.detach(), gradient


def _far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _in_training(it: Compiled) -> None:
    it.model.train()


def _with_nan(it: Compiled) -> None:
    it.model.layers[0].mlp.first.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]


@pytest.mark.parametrize(("harm", "why"), [(_in_training, "in training mode"), (_with_nan, "tensors holds? NaN")])
def test_a_model_that_cannot_be_wired_is_refused_and_has_no_twin(harm: Callable[[Compiled], None], why: str) -> None:
    """A twin stands in for a model only where the output never changes."""
    it = compiled(program("hist"), limit=9)
    harm(it)
    with pytest.raises(WiringError, match=why):
        wiring_of(it)
