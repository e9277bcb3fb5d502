"""A run's directory: whole, its own, and what was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from circuit_graphs import CONDITIONS, transformer

from voltmeter.circuit import RunRecord, check_run_directory, read_run, write_run
from voltmeter.errors import FormatError, LoadError, OutputError
from voltmeter.run.fill import Fixed

GRAPH = transformer(2, 4, groups=2)
SCORES = GRAPH.scores()
CIRCUIT = SCORES.top(5)
RECORD = RunRecord(
    command=("voltmeter", "discover", "demo", "--seed", "0"),
    method="eap",
    conditions=CONDITIONS,
    seconds=1.5,
    peak_mib=310.0,
    started="2026-11-20T09:00:00+00:00",
    parents=("abc",),
    results={"faithfulness": {"normalised": 0.93, "interval": (0.9, 0.96), "median": None}},
)
OTHER = dataclasses.replace(RECORD, conditions=dataclasses.replace(CONDITIONS, seed=1))


def write(directory: Path, record: RunRecord = RECORD, page: str = "<p>page</p>") -> None:
    write_run(directory, record, SCORES, CIRCUIT, page, GRAPH.feeds, 64)


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "circuit.json",
        "page.html",
        "run.json",
        "scores.safetensors",
    ]
    run = read_run(tmp_path / "run")
    assert (run.record, run.scores, run.circuit, run.directory) == (RECORD, SCORES, CIRCUIT, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "circuit.json").read_bytes())["eap_ig"]["readable"]


def test_a_run_may_have_come_to_nothing_yet(tmp_path: Path) -> None:
    write_run(tmp_path / "run", RECORD, None, None, None)
    run = read_run(tmp_path / "run")
    assert (run.record, run.scores, run.circuit) == (RECORD, None, None)


def test_a_learned_fill_comes_back_as_it_was(tmp_path: Path) -> None:
    values = {"input": torch.randn(1, 3), "a0.h0": torch.randn(2, 3, dtype=torch.float64)[:, :2]}
    fill = Fixed("optimal", values, "trained for 3 steps", by_position=True)
    write_run(tmp_path / "run", RECORD, SCORES, CIRCUIT, None, fill=fill)
    found = read_run(tmp_path / "run").fill
    assert found is not None
    assert (found.name, found.over, found.by_position) == ("optimal", "trained for 3 steps", True)
    assert found.tensors.keys() == values.keys()
    assert all(torch.equal(found.tensors[name], values[name]) for name in values)
    with pytest.raises(OutputError, match="eap on toy, letters, fill resample, seed 0"):
        check_run_directory(tmp_path / "run", OTHER)
    write(tmp_path / "run")
    assert not (tmp_path / "run" / "fill.safetensors").exists()
    assert read_run(tmp_path / "run").fill is None


def test_a_changed_fill_is_seen(tmp_path: Path) -> None:
    write_run(
        tmp_path / "run", RECORD, None, None, None, fill=Fixed("optimal", {"input": torch.ones(3)}, "three steps")
    )
    path = tmp_path / "run" / "fill.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match=r"fill.safetensors is not as it was written"):
        read_run(tmp_path / "run")
    path.unlink()
    with pytest.raises(FormatError, match=r"there is no file .*fill.safetensors"):
        read_run(tmp_path / "run")


def test_identity_is_what_was_run_and_not_when() -> None:
    later = dataclasses.replace(RECORD, seconds=9.0, peak_mib=1.0, started="later", results={}, command=("again",))
    assert later.identity == RECORD.identity
    assert len({RECORD.identity, OTHER.identity, dataclasses.replace(RECORD, method="acdc").identity}) == 3


def test_another_run_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path / "run")
    for refuse in (
        lambda: write(tmp_path / "run", OTHER),
        lambda: check_run_directory(tmp_path / "run", OTHER),
        lambda: check_run_directory(tmp_path / "run"),
    ):
        with pytest.raises(OutputError) as caught:
            refuse()
        assert str(caught.value) == (
            f"{tmp_path / 'run'} already holds another run\n"
            "  eap on toy, letters, fill resample, seed 0\n"
            "  give another directory with --out"
        )
    assert read_run(tmp_path / "run").record == RECORD


def test_the_same_run_may_be_written_again(tmp_path: Path) -> None:
    write(tmp_path / "run")
    check_run_directory(tmp_path / "run", RECORD)
    write(tmp_path / "run", dataclasses.replace(RECORD, seconds=2.5), "<p>new</p>")
    assert read_run(tmp_path / "run").record.seconds == 2.5
    assert (tmp_path / "run" / "page.html").read_text() == "<p>new</p>"


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(OutputError, match=r"is not empty\n  it holds thesis.tex\n  give another directory"):
        write(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "all my work"


def test_a_damaged_run_is_somebodys_run_all_the_same(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(b"{}")
    with pytest.raises(OutputError, match=r"already holds another run\n  its run\.json cannot be read"):
        write(tmp_path / "run")


def test_every_damaged_file_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (tmp_path / "run" / "page.html").unlink()
    circuit = tmp_path / "run" / "circuit.json"
    circuit.write_bytes(circuit.read_bytes().replace(b"true", b"false", 1))
    with pytest.raises(FormatError) as caught:
        read_run(tmp_path / "run")
    assert str(caught.value) == (
        f"the run in {tmp_path / 'run'} is damaged\n"
        "  circuit.json is not as it was written\n"
        f"  there is no file {tmp_path / 'run' / 'page.html'}\n"
        "  copy it again, or repeat it: run.json says how"
    )


@pytest.mark.parametrize("name", ["run.json", "scores.safetensors", "circuit.json", "page.html"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damage_anywhere_is_found(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path / "run")
    path = tmp_path / "run" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(FormatError, match="is damaged"):
        read_run(tmp_path / "run")


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"there is no file .*run\.json"):
        read_run(tmp_path)
    check_run_directory(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_results_that_are_no_numbers_are_refused_before_they_are_lost() -> None:
    with pytest.raises(FormatError, match=r"results.faithfulness.normalised is nan"):
        dataclasses.replace(RECORD, results={"faithfulness": {"normalised": float("nan")}})


def test_what_somebody_put_beside_a_run_is_not_replaced_with_it(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("what I saw")
    for refuse in (lambda: write(tmp_path / "run"), lambda: check_run_directory(tmp_path / "run", RECORD)):
        with pytest.raises(OutputError) as caught:
            refuse()
        assert str(caught.value) == (
            f"{tmp_path / 'run'} holds this run, and files that are no part of it\n"
            "  notes.txt\n"
            "  move them elsewhere, or give another directory with --out"
        )
    assert (tmp_path / "run" / "notes.txt").read_text() == "what I saw"


def test_a_name_too_long_for_a_directory(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(File name too long\)"):
        check_run_directory(tmp_path / ("a" * 300), RECORD)
