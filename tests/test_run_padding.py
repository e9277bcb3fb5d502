"""Padding: a padded row is the row alone, whatever is cut; on the left only where the model can be told positions."""

from __future__ import annotations

import copy
import functools
from typing import Any

import laws
import models
import pytest
import torch
from specimen import enliven
from torch import Tensor, nn

import voltmeter
from voltmeter import fill, run
from voltmeter.errors import KeepError, VoltmeterError
from voltmeter.run.padding import mask_for, with_positions
from voltmeter.run.run import attribute

VOCABULARY = 23
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "llama": {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16,
    },
    "bloom": {"hidden_size": 8, "n_layer": 1, "n_head": 2},
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "roberta": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "t5": {"d_model": 8, "d_ff": 12, "d_kv": 4, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2},
}
BOTH_WAYS = ("bert", "roberta")
# Rotary embeddings and attention of some families are computed in float32 also in a float64 model.
CAST_DOWN = 1e-5


@functools.cache
def tiny(family: str) -> nn.Module:
    import transformers

    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0}
    settings = {"vocab_size": VOCABULARY, "use_cache": False, **special, **TINY[family]}
    config = transformers.AutoConfig.for_model(family, **settings)
    kinds = {"t5": transformers.AutoModelForSeq2SeqLM, **dict.fromkeys(BOTH_WAYS, transformers.AutoModelForMaskedLM)}
    kind = kinds.get(family, transformers.AutoModelForCausalLM)
    return enliven(kind.from_config(config)).double()


@functools.cache
def wired(family: str) -> models.Wiring:
    example = {"input_ids": ids(2, 5, seed=90)}
    if family == "t5":
        example["decoder_input_ids"] = ids(2, 4, seed=91)
    return voltmeter.wire(tiny(family), example)


def ids(batch: int, length: int, seed: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


LENGTHS = (4, 6, 1)
LONGEST = max(LENGTHS)


def padded(seed: int, side: str) -> dict[str, Tensor]:
    """Rows of different lengths; under the padding lie tokens like any others."""
    mask = torch.stack([torch.arange(LONGEST) < length for length in LENGTHS]).long()
    tokens = ids(len(LENGTHS), LONGEST, seed)
    if side == "left":  # the same tokens, moved to the end
        tokens = torch.stack([row.roll(LONGEST - length) for row, length in zip(tokens, LENGTHS, strict=True)])
        mask = mask.flip(1)
    return {"input_ids": tokens, "attention_mask": mask}


def alone(seed: int, row: int) -> dict[str, Tensor]:
    return {"input_ids": ids(len(LENGTHS), LONGEST, seed)[row : row + 1, : LENGTHS[row]]}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["zero", "mean", "resample"])
def test_a_padded_row_is_the_row_alone(family: str, side: str, name: str) -> None:
    """Positions of rows padded on the left are counted from their first real token, in the paired run too."""
    wiring = wired(family)
    keep = models.seeded(5, len(wiring.edges)).double()
    clean, corrupted = padded(1, side), padded(2, side)
    values = fill.mean(wiring, [corrupted]) if name == "mean" else getattr(fill, name)()
    together = run(wiring, clean, keep, values, corrupted).logits
    for row, length in enumerate(LENGTHS):
        real = clean["attention_mask"][row].bool()
        expected = run(wiring, alone(1, row), keep, values, alone(2, row)).logits
        assert expected.shape[1] == length
        laws.assert_close(together[row : row + 1, real], expected, CAST_DOWN)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_means_do_not_depend_on_the_side(family: str) -> None:
    right, left = (fill.mean(wired(family), [padded(1, side)]).tensors for side in ("right", "left"))
    for name, mean in right.items():
        laws.assert_close(mean, left[name], CAST_DOWN, name)


@pytest.mark.parametrize("side", ["right", "left"])
def test_circuits_of_padded_rows(side: str) -> None:
    wiring, clean, corrupted = wired("gpt2"), padded(1, side), padded(2, side)
    keep = models.seeded(5, 2, len(wiring.edges)).double()
    together = run(wiring, clean, keep, fill.resample(), corrupted, axes="circuit edge").logits
    for number, one in enumerate(keep):
        expected = run(wiring, clean, one, fill.resample(), corrupted).logits
        laws.assert_close(together[number], expected, laws.EXACT)


@pytest.mark.parametrize("where", ["last", "everywhere"])
def test_gradients_of_padded_rows(where: str) -> None:
    """Of a metric at the last real token, or (by mistake) at padding too."""
    wiring, clean = wired("gpt2"), padded(1, "right")
    last = clean["attention_mask"].sum(1) - 1

    def metric(output: Any) -> Tensor:
        return laws.metric_of(output.logits[torch.arange(3), last] if where == "last" else output.logits)

    found = []
    for reference in (False, True):
        keep = models.seeded(5, len(wiring.edges)).double().requires_grad_()
        output = run(wiring, clean, keep, fill.zero(), reference=reference)
        found.append(torch.autograd.grad(metric(output), keep)[0])
    laws.assert_close(*found, laws.EXACT_GRADIENT)
    keep = torch.ones(len(wiring.edges), dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(metric(run(wiring, clean, keep, fill.zero())), keep)[0]
    scores, _ = attribute(wiring, clean, fill.zero(), None, metric)
    laws.assert_close(scores, expected, laws.EXACT_GRADIENT)


# What cannot be padded on the left

LEFT = (
    "2 rows are padded on the left, and this model takes no position_ids\n"
    "  rows 0, 2\n"
    "  pad on the right"
)  # fmt: skip


def test_left_padding_without_positions_is_refused() -> None:
    """Whether something is cut, recorded for a mean, or run as it is: never half right."""
    wiring, left = wired("bloom"), padded(1, "left")
    keep = torch.zeros(len(wiring.edges))
    right = padded(1, "right")
    for ask in (
        lambda: run(wiring, left),
        lambda: run(wiring, left, keep, fill.zero()),
        lambda: run(wiring, right, keep, fill.resample(), left),
        lambda: fill.mean(wiring, [left]),
    ):
        with laws.law_5(wiring.model), pytest.raises(KeepError) as caught:
            ask()
        assert str(caught.value) == LEFT
    assert run(wiring, right).logits.shape == (3, LONGEST, VOCABULARY)


@pytest.mark.parametrize("family", BOTH_WAYS)
def test_left_padding_of_a_model_that_reads_in_both_directions_is_refused(family: str) -> None:
    """They take position_ids. But RoBERTa counts its own from 2, and what is pooled at the first place is padding."""
    left = padded(1, "left")
    with laws.law_5(tiny(family)), pytest.raises(KeepError) as caught:
        with_positions(tiny(family), left)
    assert str(caught.value) == (
        "2 rows are padded on the left, and this model reads in both directions\n  rows 0, 2\n  pad on the right"
    )
    right = padded(1, "right")
    assert with_positions(tiny(family), right) is right


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_causal_model_is_known_as_one_in_any_precision(family: str, half: torch.dtype) -> None:
    with laws.law_5(tiny(family)):
        with_positions(tiny(family), padded(1, "left"))
    with_positions(copy.deepcopy(tiny(family)).to(half), padded(1, "left"))


def test_another_model_that_runs_meanwhile_is_not_asked() -> None:
    """A hook of a causal model runs one that is not."""
    model, both_ways, left = copy.deepcopy(tiny("gpt2")), tiny("bert"), padded(1, "left")
    model.register_forward_hook(lambda *given: both_ways(given[2]["input_ids"]) and None, with_kwargs=True)
    assert "position_ids" in with_positions(model, left)


def test_vectors_in_place_of_tokens_are_padded_likewise() -> None:
    left = {"inputs_embeds": torch.randn(3, LONGEST, 8).double(), "attention_mask": padded(1, "left")["attention_mask"]}
    assert "position_ids" in with_positions(tiny("gpt2"), left)
    with pytest.raises(KeepError, match="reads in both directions"):
        with_positions(tiny("bert"), left)


def test_a_decoder_padded_on_the_left_is_refused() -> None:
    inputs = {**both(1, 3), "decoder_attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1]])}
    with pytest.raises(KeepError) as caught:
        run(wired("t5"), inputs)
    assert str(caught.value) == (
        "1 row is padded on the left, and this model's decoder takes no position_ids\n  row 0\n  pad on the right"
    )


def test_all_rows_are_counted_and_the_first_are_named() -> None:
    mask = torch.ones(20, 3, dtype=torch.long)
    mask[::2, 0] = 0
    with pytest.raises(KeepError) as caught:
        with_positions(nn.Identity(), {"attention_mask": mask})
    assert str(caught.value).split("\n")[:2] == [
        "10 rows are padded on the left, and this model takes no position_ids",
        "  rows 0, 2, 4, 6, 8, 10, 12, 14 ...",
    ]


def test_positions_are_counted_from_the_first_real_token() -> None:
    made = with_positions(tiny("gpt2"), padded(1, "left"))
    assert made["position_ids"].tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]]


def test_positions_that_are_given_stay() -> None:
    mine = {**padded(1, "left"), "position_ids": torch.zeros(3, LONGEST, dtype=torch.long)}
    assert with_positions(tiny("gpt2"), mine) is mine
    for inputs in (padded(1, "right"), {"input_ids": ids(1, 3, 1)}, ids(1, 3, 1)):
        assert with_positions(tiny("gpt2"), inputs) is inputs


# Two streams of their own lengths and masks


def both(seed: int, target: int) -> dict[str, Tensor]:
    return {**padded(seed, "right"), "decoder_input_ids": ids(3, target, seed + 50)}


@pytest.mark.parametrize("target", [5, LONGEST])
def test_source_and_target_are_padded_apart(target: int) -> None:
    """Also where they are of one length, so that one mask would fit the other stream."""
    wiring = wired("t5")
    keep = models.seeded(5, len(wiring.edges)).double()
    inputs = both(1, target)
    together = run(wiring, inputs, keep, fill.zero()).logits
    for row in range(3):
        single = {**alone(1, row), "decoder_input_ids": inputs["decoder_input_ids"][row : row + 1]}
        laws.assert_close(together[row : row + 1], run(wiring, single, keep, fill.zero()).logits, CAST_DOWN)


def test_which_mask_is_a_streams() -> None:
    mask, other = torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]])
    inputs = {"attention_mask": mask, "decoder_attention_mask": other, "decoder_input_ids": other}
    shape = torch.Size([1, 3, 8])

    def chosen(stream: str, given: dict[str, Tensor] = inputs) -> list[int] | None:
        found = mask_for(given, shape, stream)
        return None if found is None else found.flatten().int().tolist()

    assert chosen("encoder.block") == [1, 1, 0]
    assert chosen("main") == chosen("decoder.layers.0") == [1, 0, 0]
    assert chosen("main", {"attention_mask": mask}) == [1, 1, 0]
    assert chosen("main", {"attention_mask": mask, "decoder_input_ids": other}) is None


def test_no_mask_is_needed_where_nothing_is_padded() -> None:
    shape = torch.Size([2, 3, 8])
    assert mask_for({"attention_mask": torch.ones(2, 3)}, shape) is None
    assert mask_for({"attention_mask": torch.zeros(2, 4)}, shape) is None, "of other positions than the stream's"
    assert mask_for(torch.zeros(2, 3), shape) is None
    assert mask_for({"attention_mask": torch.tensor([[1, 0]])}, torch.Size([2, 8])).tolist() == [[True], [False]]


def test_positions_of_two_lengths_cannot_share_a_keep() -> None:
    wiring, inputs = wired("t5"), both(1, 5)
    keep = torch.ones(3, LONGEST, len(wiring.edges))
    with pytest.raises(VoltmeterError, match="the keep is for 6 positions, which the stream 'main' does not have"):
        run(wiring, inputs, keep, fill.zero(), axes="example position edge")
