"""Circuits run from where they differ give what they give when run whole, on every kind of model."""

from __future__ import annotations

import pytest
import torch
import zoo
import zoo_plain
from laws import assert_close
from specimen import Specimen
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import voltmeter as vm
from voltmeter.errors import KeepError
from voltmeter.run.late import Late, late_products, only_at
from voltmeter.run.prefix import Prefix
from voltmeter.wiring.inputs import altered, call, output_tensors

CHOSEN = (
    "gpt2-sdpa", "gemma2", "llama-eager-padded", "bloom", "opt", "falcon-sequential", "t5", "bert",
    "add-in-place", "added-twice", "flat-view", "gated-mlp", "attention-head-results", "torch-encoder-post-norm",
    "decision-transformer", "two-outputs", "resnet-preact", "plain-cnn",
)  # fmt: skip
SPECIMENS = [s for s in (*zoo.ZOO, *zoo_plain.ZOO) if s.name in CHOSEN]
# float64; norms and rotary embeddings of these cast to float32, where other paths to the same sum round otherwise
EXACT, CAST = 1e-10, 2e-6


def test_every_chosen_specimen_is_there() -> None:
    assert {s.name for s in SPECIMENS} == set(CHOSEN)


def built(specimen: Specimen) -> tuple[vm.wiring.Wiring, object, object]:
    torch.manual_seed(0)
    model = specimen.build().eval().double()
    example = tree_map(
        lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, specimen.example(2, 6)
    )
    return vm.wire(model, example), example, altered(example)


@pytest.mark.parametrize("specimen", SPECIMENS, ids=str)
def test_circuits_run_from_where_they_differ_are_those_run_whole(specimen: Specimen) -> None:
    wiring, inputs, corrupted = built(specimen)
    assert specimen.expect is not None
    tolerance = CAST if specimen.expect.casts else EXACT
    generator, n = torch.Generator().manual_seed(1), len(wiring.edges)
    for fill in (vm.fill.resample(), vm.fill.mean(wiring, [corrupted])):
        values = fill.values_for(wiring, inputs, corrupted)
        for share in (1.0, 0.7, 0.1):  # whole, mostly whole (mixed from what stands), mostly cut (from the fills)
            shared = (torch.rand(n, generator=generator) < share).float()
            prefix = Prefix(wiring, inputs, values, circuits=3, keep=shared)
            for reader in (0, len(wiring.readers) // 2, len(wiring.readers) - 1):
                start, end = wiring.edges.starts[reader : reader + 2]
                keep = shared.repeat(3, 1)
                keep[0, start], keep[1, end - 1], keep[2, start:end] = 0, 0.3, 1 - keep[2, start:end]
                keep[:, end:] *= (torch.rand(n - end, generator=generator) < 0.5).float()
                found = output_tensors(prefix.run(keep))
                whole = output_tensors(vm.run(wiring, inputs, keep, values, axes="circuit edge"))
                for one, other in zip(found, whole, strict=True):
                    assert_close(one, other, tolerance, f"{fill.name}, from {wiring.readers[reader].name}")


def on_demo(n_pairs: int) -> tuple[vm.wiring.Wiring, Prefix]:
    """Some pairs of the demo task, ready for two circuits at a time."""
    model, task = vm.load("demo")
    assert task is not None
    wiring, pairs = vm.wire(model, task.example), task.train.batch(range(n_pairs))
    values = vm.fill.resample().values_for(wiring, pairs.clean, pairs.corrupted)
    return wiring, Prefix(wiring, pairs.clean, values, circuits=2)


def test_nothing_before_the_start_is_computed() -> None:
    """Counted in products of the model's own weights: those of the layers before are not made."""
    wiring, prefix = on_demo(n_pairs=4)
    made: list[str] = []

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made.append(func.__name__)
            return func(*args, **(kwargs or {}))

    counts = []
    for name in (wiring.readers[0].name, wiring.readers[-1].name):
        reader = [r.name for r in wiring.readers].index(name)
        keep = torch.ones(2, len(wiring.edges))
        keep[1, wiring.edges.starts[reader]] = 0
        made.clear()
        with Counting():
            prefix.run(keep)
        counts.append(sum(name in ("softmax", "scaled_dot_product_attention", "matmul", "einsum") for name in made))
    assert counts[1] < counts[0]
    assert counts[1] <= 1  # the unembedding


def test_more_circuits_than_rehearsed_for_are_refused() -> None:
    wiring, prefix = on_demo(n_pairs=2)
    with pytest.raises(KeepError, match=r"1 to 2 circuits of 257 edges were rehearsed for"):
        prefix.run(torch.ones(3, len(wiring.edges)))


def test_a_result_changed_in_place_later_is_not_taken_for_what_it_was() -> None:
    """``x += f(x)``: what stood at the start is gone when the rehearsal ends, so the run begins earlier."""
    (specimen,) = (s for s in SPECIMENS if s.name == "add-in-place")
    wiring, inputs, corrupted = built(specimen)
    values = vm.fill.resample().values_for(wiring, inputs, corrupted)
    prefix = Prefix(wiring, inputs, values, circuits=1)
    keep = torch.ones(len(wiring.edges))
    keep[wiring.edges.starts[len(wiring.readers) // 2]] = 0
    assert prefix._start(prefix._first_call(keep != 1)) is None
    (other,) = (s for s in SPECIMENS if s.name == "flat-view")
    wiring, inputs, corrupted = built(other)
    prefix = Prefix(wiring, inputs, vm.fill.resample().values_for(wiring, inputs, corrupted), circuits=1)
    keep = torch.ones(len(wiring.edges))
    keep[wiring.edges.starts[len(wiring.readers) // 2]] = 0
    assert prefix._start(prefix._first_call(keep != 1)) is not None


class Mixing(nn.Module):
    """Three products, with a sum over positions between the second and the third."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.second(self.first(x).relu()).cumsum(1)
        found: Tensor = self.third(mixed)
        return found


def test_late_products_are_those_after_the_last_mixing_of_positions() -> None:
    torch.manual_seed(0)
    model, x = Mixing().eval(), torch.randn(3, 5, 4)
    at = torch.tensor([4, 2, 3])

    def answer(outputs: Tensor) -> Tensor:
        return outputs[torch.arange(3), at]

    late = late_products(model, x, at, answer)
    assert late.lengths == {id(model.third.weight): 5}
    with torch.no_grad():
        whole = model(x)
        with only_at(late):
            found = call(model, x)
        with only_at(Late(at, {id(model.second.weight): 5})):
            one_too_many = call(model, x)
    # float32: a product over fewer rows rounds otherwise
    assert_close(answer(found), answer(whole), 1e-6)
    assert not torch.allclose(found, whole)  # elsewhere it is not made
    assert not torch.allclose(answer(one_too_many), answer(whole))
