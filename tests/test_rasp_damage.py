"""A damaged ``program.json`` is an error that names the file and the field, whatever stands where."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from known_models import veto

from voltmeter.errors import FormatError, VoltmeterError
from voltmeter.rasp.exports import PROGRAM, load_export, save_export

Document = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small program: three tokens, inputs of two, an output that is a number."""
    directory = tmp_path_factory.mktemp("damage") / "saved"
    save_export(veto(), directory)
    return directory


@pytest.fixture
def damaged(saved: Path) -> Iterator[Callable[[Document], Path]]:
    """Writes another document in place of the program's; the program's own stands again after the test."""
    whole = (saved / PROGRAM).read_bytes()

    def write(document: Document) -> Path:
        (saved / PROGRAM).write_text(json.dumps(document).replace("Infinity", "1e999"))
        return saved

    yield write
    (saved / PROGRAM).write_bytes(whole)


def whole(saved: Path) -> Document:
    document: Document = json.loads((saved / PROGRAM).read_text())
    return document


SIZE = "a whole number above zero was expected"
TOKEN = "text, a finite number, true or false was expected"
DAMAGE: list[tuple[str, Any, str]] = [
    ("num_layers", -1, f"num_layers is -1, {SIZE}"),
    ("num_layers", 10**12, "num_layers: 27 weights do not make 1000000000000 layers"),
    ("num_heads", 0, f"num_heads is 0, {SIZE}"),
    ("key_size", -(10**30), f"key_size is -{10**30}, {SIZE}"),
    ("key_size", 10**30, f"[3, {10**30}] was expected (3 residual_labels, num_heads 1, key_size {10**30}, "),
    ("mlp_hidden_size", 1.5, f"mlp_hidden_size is 1.5, {SIZE}"),
    ("max_seq_len", 10**12, "max_seq_len: 3 positions do not hold BOS and 1000000000000 tokens"),
    ("max_seq_len", 1, "inputs have lengths 2: one from 1 to max_seq_len, 1, was expected"),
    ("name", ["veto"], 'name is ["veto"], text was expected'),
    ("causal", 1, "causal is 1, true or false was expected"),
    ("scores_divided", "no", 'scores_divided is "no", true or false was expected'),
    ("bos", None, f"bos is null, {TOKEN}"),
    ("bos", "EOS", "encoding gives 1 tokens no row of the embedding: 'EOS'"),
    ("pad", {}, f"pad is {{}}, {TOKEN}"),
    ("vocab", [], "vocab is empty"),
    ("vocab", [1, [2], 3], f"vocab[1] is [2], {TOKEN}"),
    ("vocab", [1, 2, 10**400], f"vocab[2] is 1{'0' * 59}, {TOKEN}"),
    ("vocab", [1, 2, 3, True], "vocab[3], True, cannot be told from vocab[0], 1"),
    ("vocab", [1, 2, 3, "1"], "vocab[3], '1', cannot be told from vocab[0], 1"),
    ("vocab", [1, 2, 3, "BOS"], "vocab[3], 'BOS', cannot be told from bos, 'BOS'"),
    ("encoding", {"1": "0"}, "encoding['1'] is \"0\", a whole number was expected"),
    ("encoding", {"1": 0, "2": 1, "3": 99, "BOS": 3}, "encoding: the row 99 of the token '3' is none of 5"),
    ("residual_labels", ["x", None, "a"], "residual_labels[1] is null, text was expected"),
    ("residual_labels", [], "residual_labels is empty"),
    ("output_encoding", {"1": [0]}, "output_encoding['1'] is [0], a whole number was expected"),
    ("output_encoding", {}, "output_encoding is empty: null says that the output is a number"),
    ("output_dimensions", 1, "output_dimensions is 1, a list was expected"),
    ("output_dimensions", ["out"], 'output_dimensions[0] is "out", a whole number was expected'),
    ("output_dimensions", [7], "output_dimensions [7], output_labels ['out'], output_values None"),
    ("output_labels", [["out"]], 'output_labels[0] is ["out"], text was expected'),
    ("output_values", [1, 1], "output_values has 1 2 times"),
    ("output_tolerance", "1e-6", 'output_tolerance is "1e-6", a finite number of 0 or more was expected'),
    ("output_tolerance", math.inf, "output_tolerance is Infinity, a finite number of 0 or more was expected"),
    ("output_tolerance", -1, "output_tolerance is -1, a finite number of 0 or more was expected"),
    ("provenance", "m0", 'provenance is "m0", a list was expected'),
    ("provenance", [["m0"]], 'provenance[0] is ["m0"], text was expected'),
    ("inputs", {"1": [1, 1]}, 'inputs is {"1": [1, 1]}, a list was expected'),
    ("inputs", [[1, [1]]], f"inputs[0][1] is [1], {TOKEN}"),
    ("inputs", [[1, 9]] * 9, "inputs[0] has tokens that vocab has not: 9"),
    ("inputs", [[1, 1.0]] * 9, "inputs[0] has tokens that vocab has not: 1.0"),
    ("inputs", [[1, 2]] * 9, "inputs has [1, 2] 9 times"),
    ("inputs", [[1], [1, 2]], "inputs have lengths 1, 2: one from 1 to max_seq_len, 2, was expected"),
    ("inputs", [[]], "inputs have lengths 0: one from 1 to max_seq_len, 2, was expected"),
    ("outputs", [[1.0, [2.0]]], f"outputs[0][1] is [2.0], {TOKEN}"),
    ("outputs", [[1.0]] * 9, "outputs[0] has 1 values, and its input has 2"),
    ("outputs", [[1.0, 2.0]], "inputs and outputs are not as many: 9 inputs, 1 outputs"),
]


@pytest.mark.parametrize(("field", "value", "line"), DAMAGE)
def test_a_damaged_field_is_named(
    field: str, value: object, line: str, saved: Path, damaged: Callable[[Document], Path]
) -> None:
    directory = damaged({**whole(saved), field: value})
    with pytest.raises(FormatError) as caught:
        load_export(directory)
    assert PROGRAM in caught.value.problem
    assert any(line in each for each in caught.value.details), str(caught.value)


JUNK = (None, True, -1, 10**400, math.inf, 0.5, "x", [], [[]], [None, "x"], [[1, 1], [1, 1]], {}, {"x": {}}, {"x": -1})


def test_whatever_stands_in_a_field_no_other_error_is_raised(saved: Path, damaged: Callable[[Document], Path]) -> None:
    """Every field, and every first and last entry of a list or table, replaced by each kind of value; or left out."""
    document = whole(saved)
    paths = [*places(document), *[(field,) for field in document]]
    said = [refusal(damaged(replaced(document, path, junk))) for path in paths for junk in JUNK]
    said += [refusal(damaged({name: document[name] for name in document if name != field})) for field in document]
    refused = [each for each in said if each is not None]
    assert len(said) > 400
    assert len(refused) > 0.8 * len(said)
    assert all(str(saved) in each and (PROGRAM in each or "recorded outputs" in each) for each in refused)


def refusal(directory: Path) -> str | None:
    """What is said of a damaged directory; None where the damage does no harm, such as another name."""
    try:
        load_export(directory)
    except VoltmeterError as error:
        return error.problem
    return None


def places(document: Document) -> Iterator[tuple[str, int | str]]:
    for field, held in document.items():
        if isinstance(held, dict | list) and held:
            keys: list[int | str] = list(held) if isinstance(held, dict) else [0, len(held) - 1]
            yield from ((field, key) for key in dict.fromkeys((keys[0], keys[-1])))


def replaced(document: Document, path: tuple[int | str, ...], value: object) -> Document:
    field, *inside = path
    held = value
    if inside:
        held = document[str(field)].copy()
        held[inside[0]] = value
    return {**document, str(field): held}
