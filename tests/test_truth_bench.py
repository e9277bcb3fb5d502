"""``bench/random_truths.py`` goes on where a file ends, if the file is of the same question."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench/random_truths.py")


def row(seed: int) -> dict[str, Any]:
    told = {"grade": "unique", "edges": 13, "necessary": 2, "circuits": 1, "gap": 9.0, "restoring": 0, "seconds": 0.1}
    truths = {"zero": told, "mean": told}
    return {"seed": seed, "size": 2, "limit": 500, "layers": 1, "disagreeing": 0, "truths": truths, "seconds": 0.2}


def ask(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["random_truths.py", "--sizes", "2", "--limit", "500", *arguments])
    code: int = bench.main()
    return code


def test_a_line_that_a_kill_cut_short_is_taken_off(bench: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    whole = "".join(json.dumps(row(seed)) + "\n" for seed in range(2))
    out.write_text(whole + json.dumps(row(2))[:40])
    assert [each["seed"] for each in bench._before(out)] == [0, 1]
    assert out.read_text() == whole  # the next line is appended to a whole one
    assert bench._before(tmp_path / "none") == []


@pytest.mark.parametrize("other", [("--fills", "zero"), ("--fills", "zero,mean", "--sizes", "4"), ("--limit", "9")])
def test_a_file_of_another_question_is_refused(
    bench: ModuleType,
    other: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text(json.dumps(row(0)) + "\n")
    with pytest.raises(SystemExit, match="2"):
        ask(bench, monkeypatch, "--count", "1", "--out", str(out), *other)
    assert "seed 0 has size 2, limit 500 and fills zero,mean; ask the same again" in capsys.readouterr().err


def test_a_file_of_all_that_is_asked_is_shown_as_it_stands(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("".join(json.dumps(row(seed)) + "\n" for seed in range(3)))
    assert ask(bench, monkeypatch, "--count", "2", "--fills", "zero,mean", "--out", str(out)) == 0
    assert "2 programs, 2 agree with their oracle on all inputs" in capsys.readouterr().out
