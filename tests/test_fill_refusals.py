"""Fills that are refused, in so many words: without data, not finite, not paired, of another shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import laws
import models
import pytest
import torch
from cases import Case
from models import Residual, Transformer, wired
from padded import IDS, MASK, PADDED, Padded
from specimen import call
from torch import Tensor, nn

import voltmeter
from voltmeter import fill, run
from voltmeter.errors import FillError
from voltmeter.run.fill import Fill, FillValues
from voltmeter.run.paired import check_paired

MODEL = Transformer(layers=2, heads=2, kv=1, norm="layer", mlp="gated", seed=7)
CASE = Case(MODEL, batch=2, length=4, fill="zero", axes="edge", binary=True, seed=3)
WIRING = wired(MODEL)
NAMES = [writer.name for writer in WIRING.writers]
INPUTS, CORRUPTED = CASE.inputs, CASE.corrupted


def outs(wiring: Any, inputs: Any) -> dict[str, Tensor]:
    with voltmeter.record(wiring) as seen, torch.no_grad():
        call(wiring.model, inputs)
    return dict(seen)


def nothing_kept(values: Fill | FillValues, inputs: Tensor = INPUTS, **named: Any) -> Tensor:
    return run(WIRING, inputs, torch.zeros(len(WIRING.edges)), values, **named)


@pytest.fixture(scope="module")
def padded() -> Any:
    return voltmeter.wire(models.enliven(Padded()).double(), PADDED)


def refused(ask: Callable[[], object]) -> str:
    with laws.law_5(WIRING.model), pytest.raises(FillError) as caught:
        ask()
    return str(caught.value)


def test_a_mean_without_data() -> None:
    expected = "a mean fill needs data, and none was given\n  give at least one batch of inputs"
    assert refused(lambda: fill.mean(WIRING, [])) == expected
    assert refused(lambda: fill.mean_position(WIRING, iter(()))) == expected


@pytest.mark.parametrize("batch", [INPUTS, {"ids": INPUTS}])
def test_one_batch_is_no_list_of_batches(batch: Any) -> None:
    """Its rows would be taken for batches."""
    assert refused(lambda: fill.mean(WIRING, batch)) == (
        f"a mean fill takes batches of inputs, and was given one {type(batch).__name__}\n"
        "  give a list of batches: fill.mean(wiring, [inputs])"
    )


def test_a_mean_by_position_of_two_lengths() -> None:
    assert refused(lambda: fill.mean_position(WIRING, [models.tokens(2, 4, 0), models.tokens(2, 5, 0)])) == (
        "a mean-position fill needs batches of one length\n"
        "  shapes [1, 4, 8] and [1, 5, 8]\n"
        "  pad them to one length, with an attention_mask"
    )


def test_a_mean_by_position_in_a_longer_run() -> None:
    means = fill.mean_position(WIRING, [models.tokens(2, 3, 0)])
    assert refused(lambda: nothing_kept(means)) == (
        "the mean-position fill has shape [1, 3, 8]\n"
        "  its stream has shape [2, 4, 8] [batch, ...] in this run\n"
        "  an axis is the stream's, or 1; a mean-position fill needs inputs no longer than it was taken over"
    )


def test_a_mean_by_position_in_a_shorter_run_takes_the_first_positions() -> None:
    longer = models.tokens(2, 5, 0)
    whole, first = fill.mean_position(WIRING, [longer]), fill.mean_position(WIRING, [longer[:, :4]])
    assert torch.equal(nothing_kept(whole), nothing_kept(first))  # the model is causal


def test_a_mean_by_position_made_longer_repeats_its_last_position() -> None:
    short = models.tokens(2, 3, 0)
    made = fill.mean_position(WIRING, [short], length=4)
    plain = fill.mean_position(WIRING, [short])
    for name, values in made.tensors.items():  # type: ignore[attr-defined]
        given = plain.tensors[name]  # type: ignore[attr-defined]
        assert torch.equal(values, torch.cat([given, given[:, -1:]], 1))
    nothing_kept(made)


def test_a_mean_by_position_where_there_is_no_axis_of_positions() -> None:
    class Flat(models.ResidualMlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    flat = voltmeter.wire(models.enliven(Flat(Residual(norm="none"))).double(), models.seeded(0, 2, 4, 8).double())
    inputs = models.seeded(1, 3, 5, 8).double()
    assert refused(lambda: fill.mean_position(flat, [inputs])) == (
        "this model keeps its stream as [batch * position, width], without an axis of positions\n"
        "  shape [15, 8] for a batch of 3\n"
        "  take the mean over all positions: fill.mean"
    )
    mean = fill.mean(flat, [inputs])
    laws.assert_close(mean.tensors["input"][0], outs(flat, inputs)["input"].mean(0), laws.EXACT)


@pytest.mark.parametrize("sizes", [(7,), (3, 8), (3, 4, 8), (1, 1, 1, 8), (1, 2, 4, 8)], ids=str)
@pytest.mark.parametrize("reference", [False, True])
def test_tensors_that_do_not_fit_the_stream(sizes: tuple[int, ...], reference: bool) -> None:
    values = fill.tensor({name: torch.zeros(sizes) for name in NAMES}, name="optimal")
    text = refused(lambda: nothing_kept(values, reference=reference))
    assert text.startswith("the optimal fill has shape [")
    assert "its stream has shape [2, 4, 8] [batch, ...] in this run" in text


def test_a_batch_of_one_is_not_blown_up() -> None:
    values = fill.tensor({name: torch.zeros(3, 1, 8) for name in NAMES})
    assert "its stream has shape [1, 4, 8]" in refused(lambda: nothing_kept(values, INPUTS[:1]))


def test_tensors_that_do_not_fit_together() -> None:
    given = {name: torch.zeros(8) for name in NAMES} | {"m0": torch.zeros(7)}
    assert refused(lambda: nothing_kept(fill.tensor(given))) == (
        "the tensor fills of one stream have shapes that do not fit together\n"
        + "".join(f"  {name}: [{7 if name == 'm0' else 8}]\n" for name in NAMES)
        + "  give each the shape of the stream [batch, ...], or 1 where it does not vary"
    )


def test_tensors_for_other_writers() -> None:
    given = {name: torch.zeros(1) for name in NAMES if name not in ("a0.h0", "m1")}
    text = refused(lambda: nothing_kept(fill.tensor({**given, "m7": torch.zeros(1), "a0.h9": torch.zeros(1)})))
    lines = text.split("\n")
    assert lines[0] == "the fill names 2 writers that do not exist and leaves out 2"
    assert [line.split(" (")[0] for line in lines[1:3]] == ["  unknown: m7", "  unknown: a0.h9"]
    assert all("nearest: " in line for line in lines[1:3])
    assert lines[3:] == [
        "  missing: a0.h0", "  missing: m1", "  give one tensor for every writer in wiring.writers",
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_tensors_that_are_not_finite(bad: float) -> None:
    given = {name: torch.zeros(4, 8) for name in NAMES}
    for name in ("a0.h1", "m1"):
        given[name][1, 2] = bad
    assert refused(lambda: nothing_kept(fill.tensor(given))) == (
        "the tensor fill is not finite for 2 writers\n  a0.h1\n  m1"
    )


def test_a_paired_run_that_is_not_finite() -> None:
    class Exponential(nn.Linear):
        """Overflows soon."""

        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x.exp())

    model = models.enliven(nn.Sequential(nn.Linear(8, 8), Exponential(8, 8), nn.Linear(8, 3))).double()
    inputs = models.seeded(1, 2, 8).double()
    wiring = voltmeter.wire(model, inputs)
    with pytest.raises(FillError) as caught:
        run(wiring, inputs, torch.zeros(len(wiring.edges)), fill.resample(), 1e4 * inputs)
    assert str(caught.value) == "the resample fill is not finite for 1 writer\n  1"


def test_a_resample_without_a_pair() -> None:
    assert refused(lambda: nothing_kept(fill.resample())) == (
        "a resample fill needs the corrupted inputs\n  give them: run(..., fill=fill.resample(), corrupted=...)"
    )
    assert [f.needs_corrupted for f in (fill.zero(), fill.resample(), fill.tensor({}))] == [False, True, False]


@pytest.mark.parametrize("sizes", [(2, 5), (1, 4), (3, 4)])
def test_a_resample_of_another_shape(sizes: tuple[int, int]) -> None:
    assert refused(lambda: nothing_kept(fill.resample(), corrupted=models.tokens(*sizes, 1))) == (
        "the corrupted inputs have other shapes than the clean ones\n"
        f"  the inputs: [2, 4] clean, [{sizes[0]}, {sizes[1]}] corrupted\n"
        "  pair them row by row"
    )


def test_a_resample_of_other_inputs(padded: Any) -> None:
    other = {"ids": IDS[:, :4], "more": IDS, "attention_mask": MASK}
    with pytest.raises(FillError) as caught:
        fill.resample().values_for(padded, PADDED, other)
    assert list(caught.value.details) == [
        "['ids']: [3, 5] clean, [3, 4] corrupted",
        "['more']: missing clean, [3, 5] corrupted",
    ]


def test_a_resample_padded_otherwise(padded: Any) -> None:
    other = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    with pytest.raises(FillError) as caught:
        run(padded, PADDED, torch.zeros(len(padded.edges)), fill.resample(), {**PADDED, "attention_mask": other})
    assert str(caught.value) == (
        "the corrupted inputs are padded otherwise than the clean ones in 2 rows\n"
        "  ['attention_mask'], row 0\n"
        "  ['attention_mask'], row 2\n"
        "  pair rows of equal length, padded on the same side"
    )


def test_a_mask_of_ones_may_be_left_out() -> None:
    whole = {"ids": IDS, "attention_mask": torch.ones_like(MASK)}
    check_paired(whole, {"ids": IDS})
    check_paired({"ids": IDS}, {**whole, "position_ids": MASK})
    with pytest.raises(FillError, match="in 3 rows"):
        check_paired(PADDED, {"ids": IDS})
