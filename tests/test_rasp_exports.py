"""Compiled programs as directories: tracr's own and ours."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import asset
from known_models import EXPORTS, export, veto
from safetensors.torch import load_file, save_file

from voltmeter.errors import FormatError, LoadError, OutputError
from voltmeter.rasp.exports import PROGRAM, WEIGHTS, load_export, save_export
from voltmeter.rasp.model import Value
from voltmeter.rasp.variants import rotated


@pytest.mark.parametrize("name", EXPORTS)
def test_every_recorded_output_is_reproduced(name: str) -> None:
    compiled = export(name)
    recorded = json.loads((asset("tracr") / name / PROGRAM).read_text())
    assert [list(row) for row in compiled.inputs] == recorded["inputs"]
    computed = compiled.model.compute(compiled.inputs)
    assert len(computed) == len(recorded["outputs"]) > 0
    for got, wanted in zip(computed, recorded["outputs"], strict=True):
        # Numbers were recorded in float32 by a model that was run in float32.
        assert got == (wanted if recorded["output_encoding"] else pytest.approx(wanted, abs=1e-6))
    assert compiled.provenance is None
    assert compiled.model.token_embedding.weight.dtype == torch.float64


def test_scores_are_divided_as_tracr_divides_them() -> None:
    weights = load_file(asset("tracr") / "reverse" / WEIGHTS)
    query = export("reverse").model.layers[3].attention.query.weight
    assert torch.equal(query, weights["transformer/layer_3/attn/query/w"].T.double() * (1 / 12**0.5))


@pytest.mark.parametrize("name", ["reverse", "frac_prevs_x", "shuffle_dyck"])
def test_what_is_saved_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    compiled = dataclasses.replace(export(name), provenance=("input.tok -> m0",))
    save_export(compiled, tmp_path / "saved")
    back = load_export(tmp_path / "saved")
    assert (back.name, back.inputs, back.outputs, back.provenance) == (
        compiled.name,
        compiled.inputs,
        compiled.outputs,
        compiled.provenance,
    )
    assert back.model.interface == compiled.model.interface
    assert back.model.shape == compiled.model.shape
    ours, theirs = compiled.model.state_dict(), back.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with pytest.raises(OutputError, match="is not empty"):
        save_export(compiled, tmp_path / "saved")


@pytest.mark.parametrize("bos", [0, 0.5, False, "<s>"])
def test_any_token_may_be_bos(bos: Value, tmp_path: Path) -> None:
    compiled = veto()
    face = compiled.model.interface
    rows = {**{token: face.rows[token] for token in face.vocabulary}, bos: face.rows[face.bos]}
    compiled.model.interface = dataclasses.replace(face, bos=bos, rows=rows)
    save_export(compiled, tmp_path / "saved")
    back = load_export(tmp_path / "saved").model.interface
    assert back == compiled.model.interface
    assert type(back.bos) is type(bos)


def test_a_model_whose_dimensions_hold_no_answer_comes_back_too(tmp_path: Path) -> None:
    turned = rotated(export("reverse"), seed=0).compiled
    save_export(turned, tmp_path / "saved")
    back = load_export(tmp_path / "saved").model
    assert back.interface == dataclasses.replace(turned.model.interface, name="reverse rotated")
    assert torch.equal(back.unembedding.weight, turned.model.unembedding.weight)
    reweighed(tmp_path / "saved", lambda w: w.pop("unembed/w"))
    with pytest.raises(FormatError, match="missing: unembed/w"):
        load_export(tmp_path / "saved")


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    compiled = veto()
    with pytest.raises(FormatError) as caught:
        save_export(dataclasses.replace(compiled, inputs=(*compiled.inputs[:-1], (1, 1))), tmp_path / "saved")
    assert str(caught.value) == (
        "planted cannot be kept in a file: its fields do not fit together\n  inputs has [1, 1] 2 times"
    )
    assert not (tmp_path / "saved").exists()


def test_another_unembedding_comes_back_too(tmp_path: Path) -> None:
    compiled = veto()
    with torch.no_grad():
        compiled.model.unembedding.weight.mul_(2.5)
    save_export(compiled, tmp_path / "saved")
    assert torch.equal(
        load_export(tmp_path / "saved", check=False).model.unembedding.weight, compiled.model.unembedding.weight
    )


def test_values_of_one_spelling_are_refused(tmp_path: Path) -> None:
    compiled = veto()
    face = compiled.model.interface
    compiled.model.interface = dataclasses.replace(face, rows={**face.rows, "1": 0})
    with pytest.raises(FormatError, match="tokens that a file cannot tell apart") as caught:
        save_export(compiled, tmp_path / "saved")
    assert "1 and '1'" in str(caught.value)
    assert not (tmp_path / "saved").exists()


# Damage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def reverse(tmp_path: Path) -> Path:
    shutil.copytree(asset("tracr") / "reverse", tmp_path / "reverse")
    return tmp_path / "reverse"


def edited(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((directory / PROGRAM).read_text())
    edit(document)
    (directory / PROGRAM).write_text(json.dumps(document))


def reweighed(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / WEIGHTS)
    edit(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / WEIGHTS)


def test_files_that_are_missing_or_cut_short(reverse: Path) -> None:
    data = (reverse / WEIGHTS).read_bytes()
    (reverse / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(LoadError, match=r"weights\.safetensors is damaged"):
        load_export(reverse)
    (reverse / WEIGHTS).unlink()
    with pytest.raises(LoadError, match=r"there is no file .*weights\.safetensors"):
        load_export(reverse)
    text = (reverse / PROGRAM).read_text()
    (reverse / PROGRAM).write_text(text[: len(text) // 2])
    with pytest.raises(FormatError, match=r"program\.json is damaged: it is not JSON"):
        load_export(reverse)
    with pytest.raises(LoadError, match="there is no file"):
        load_export(reverse / "elsewhere")


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda d: d.pop("vocab"), "it has no vocab"),
        (lambda d: d.update(num_layers="4"), 'num_layers is "4"'),
        (lambda d: d.update(num_heads=True), "num_heads is true"),
        (lambda d: d.update(layer_norm=True), "layer_norm True, activation 'relu'"),
        (lambda d: d.update(activation="gelu"), "layer_norm False, activation 'gelu'"),
        (lambda d: d.update(num_layers=3), "unknown: transformer/layer_3/attn/key/b"),
        (lambda d: d.update(num_layers=5), "missing: transformer/layer_4/attn/query/w"),
        (lambda d: d.update(key_size=6), r"transformer/layer_0/attn/query/w is \[41, 12\], \[41, 6\] was expected"),
        (lambda d: d["residual_labels"].pop(), r"\[30, 41\], \[30, 40\] was expected"),
        (lambda d: d["outputs"].pop(), "243 inputs, 242 outputs"),
        (lambda d: d["vocab"].append(4), "gives 1 tokens no row"),
        (lambda d: d["encoding"].update({"1": 17}), "the row 17 of the token '1' is none of 5"),
        (lambda d: d.update(max_seq_len=6), "max_seq_len: 6 positions do not hold BOS and 6 tokens"),
        (lambda d: d.update(num_layers=10**18), "num_layers: 50 weights do not make 1000000000000000000 layers"),
        (
            lambda d: d.update(num_heads=10**9),
            r"\[41, 12\] was|, \[41, 12000000000\] was expected .*num_heads 1000000000",
        ),
    ],
)
def test_files_that_do_not_fit_together(reverse: Path, edit: Callable[[dict[str, Any]], object], text: str) -> None:
    edited(reverse, edit)
    with pytest.raises(FormatError, match=text):
        load_export(reverse)


def test_weights_that_are_not_finite_or_not_the_programs(reverse: Path) -> None:
    reweighed(reverse, lambda w: w["transformer/layer_3/attn/value/w"].mul_(-1))
    with pytest.raises(LoadError, match=r"does not compute its recorded outputs: \d+ of 243 differ") as caught:
        load_export(reverse)
    assert "of [1, 1, 1, 1, 2]: " in str(caught.value)
    assert " was computed, [2, 1, 1, 1, 1] is recorded" in str(caught.value)
    assert load_export(reverse, check=False).name == "reverse"
    reweighed(reverse, lambda w: w["pos_embed/embeddings"].fill_(float("nan")))
    with pytest.raises(FormatError, match="pos_embed/embeddings is not finite"):
        load_export(reverse, check=False)
    reweighed(reverse, lambda w: w.update({"pos_embed/embeddings": w["pos_embed/embeddings"].nan_to_num(0).int()}))
    with pytest.raises(FormatError, match="pos_embed/embeddings is int32, floats were expected"):
        load_export(reverse, check=False)


def test_an_output_that_cannot_be_told_is_an_error_listing_what_there_is(reverse: Path) -> None:
    edited(reverse, lambda d: d.update(name="backwards"))
    with pytest.raises(LoadError, match="0 are called as 'backwards' is and take the values 1, 2, 3") as caught:
        load_export(reverse)
    assert "tokens: 1, 2, 3, BOS, compiler_pad" in str(caught.value)
    # A second variable of the same name and values: dimensions 36 to 38 held the tokens 1 to 3.
    edited(reverse, lambda d: d.update(name="reverse"))
    edited(reverse, lambda d: d.update(residual_labels=[_renamed(label) for label in d["residual_labels"]]))
    with pytest.raises(LoadError, match="2 are called as 'reverse' is") as caught:
        load_export(reverse)
    assert "reverse_1: 1, 2, 3" in str(caught.value)
    assert "reverse_9: 1, 2, 3" in str(caught.value)


def _renamed(label: str) -> str:
    return label.replace("tokens:", "reverse_9:") if label in ("tokens:1", "tokens:2", "tokens:3") else label


def test_our_own_files_say_their_output_and_are_held_to_it(tmp_path: Path) -> None:
    save_export(export("reverse"), tmp_path / "saved")
    edited(tmp_path / "saved", lambda d: d["output_dimensions"].reverse())
    with pytest.raises(FormatError, match="its output dimensions, labels and values disagree"):
        load_export(tmp_path / "saved")
