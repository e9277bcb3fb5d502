"""``rasp:...`` as a model: programs by name, by seed and by directory; and loaders that rooms bring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import asset

from voltmeter.errors import LoadError
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.exports import load_export, save_export
from voltmeter.rasp.load import load_compiled
from voltmeter.rasp.programs import compiled, program
from voltmeter.wiring.load import load_model, register_kind


def same(a: Compiled, b: Compiled) -> bool:
    weights = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return (a.name, a.inputs, a.outputs) == (b.name, b.inputs, b.outputs) and all(torch.equal(x, y) for x, y in weights)


def test_a_program_by_name() -> None:
    loaded = load_model("rasp:hist")
    assert (loaded.kind, loaded.spec, loaded.tokenizer_dir) == ("compiled", "rasp:hist", None)
    assert isinstance(loaded.origin, Compiled)
    assert same(loaded.origin, compiled(program("hist")))
    assert next(loaded.model.parameters()).dtype == torch.float64


def test_in_another_precision() -> None:
    assert next(load_model("rasp:hist", dtype=torch.float32).model.parameters()).dtype == torch.float32


def test_a_random_program_by_seed_and_size() -> None:
    assert same(load_compiled("rasp:random:3"), load_compiled("rasp:random:3:8"))
    assert not same(load_compiled("rasp:random:3"), load_compiled("rasp:random:4"))
    assert load_compiled("rasp:random:3:4").name == "random_3_4"


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_export(load_compiled("rasp:reverse"), tmp_path / "hist")
    assert same(load_compiled(f"rasp:{tmp_path / 'hist'}"), load_compiled("reverse"))
    monkeypatch.chdir(tmp_path)
    assert load_compiled("rasp:./hist").name == "reverse"
    assert load_compiled("rasp:hist").name == "hist", "a known program goes before a directory"


def test_an_export_of_the_original_compiler() -> None:
    directory = asset("tracr") / "reverse"
    assert same(load_compiled(f"rasp:{directory}"), load_export(directory))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "rasp:revers",
            "rasp:revers names no program and no directory\\n"
            "  nearest: reverse, .*\\n"
            "  list the programs with `voltmeter programs`; a directory holds program.json and its weights",
        ),
        (
            "rasp:random:x",
            "rasp:random:x does not say which random program\\n"
            "  write rasp:random:SEED or rasp:random:SEED:SIZE, in whole numbers",
        ),
        ("rasp:random", "rasp:random does not say which random program\\n"),
        ("rasp:", "rasp: names no program and no directory\\n"),
        ("rasp:random:1:2:3", "rasp:random:1:2:3 does not say which random program\\n"),
        ("rasp:random:-1", "rasp:random:-1 does not say which random program\\n"),
    ],
)
def test_what_cannot_be_meant(spec: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        load_model(spec)


def test_a_directory_without_a_program(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"program\.json"):
        load_model(f"rasp:{tmp_path}")


def test_a_kind_has_one_loader() -> None:
    with pytest.raises(LoadError, match=r"models called rasp:\.\.\. have a loader already"):
        register_kind("rasp", lambda spec, dtype: load_model("demo"))
