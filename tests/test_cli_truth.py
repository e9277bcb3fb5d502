"""``voltmeter truth`` and ``voltmeter programs``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_bench import voltmeter
from conftest import asset

from voltmeter.rasp.certificate import Certificate
from voltmeter.rasp.programs import programs

KEYS = {"n_edges", "necessary", "minimal", "grades", "gap", "explained", "seconds"}
REVERSE = ["input.tok -> a3.h0<v>", "a3.h0 -> logits"]


def test_reverse_on_one_screen() -> None:
    done = voltmeter("truth", "rasp:reverse", "--fill", "resample")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "program   reverse · 243 inputs · 94 edges"
    assert lines[1].startswith("question  fill resample · raw output (reverse_")
    assert lines[3].strip() == ("2 of the 94 edges are necessary: cutting any one of them alone changes the output.")
    text = done.stdout
    assert "The necessary edges are the only minimal circuit" in text
    assert "The program uses 13 edges that are not necessary:" in text
    assert "input.tok   →   a3.h0<v>     1.00   the values of head 0 in layer 3" in text
    assert "m2 -> a3.h0<q>: m2 writes the same for every input, which is what the cut edge carries" in text
    assert "input.pos -> a3.h0<k>: input.pos writes the same for every input" in text


def test_reverse_as_a_document() -> None:
    done = voltmeter("truth", f"rasp:{asset('tracr') / 'reverse'}", "--fill", "resample", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= KEYS
    assert (found["n_edges"], found["necessary"], found["minimal"]) == (94, REVERSE, [REVERSE])
    grades = found["grades"]
    assert set(grades) == {"sufficient", "one_minimal", "no_restoring_pair", "unique", "searched"}
    assert (grades["sufficient"], grades["unique"]) == (True, "yes")
    assert {each["edge"] for each in found["explained"]} >= {"m2 -> a3.h0<q>", "input.pos -> a3.h0<k>"}
    assert (found["program"], found["n_inputs"]) == ("reverse", 243)
    assert found["question"] == {
        "fill": "resample", "positions": "paired", "output": "raw", "tolerance": 1e-6, "seed": 0,
    }  # fmt: skip


def test_the_question_reaches_the_truth() -> None:
    """Each option changes the certificate as it says."""
    base = ("truth", "rasp:frac_prevs_x", "--json", "--fill")
    shown = {
        "resample": json.loads(voltmeter(*base, "resample").stdout),
        "random": json.loads(voltmeter(*base, "resample", "--positions", "random").stdout),
        "loose": json.loads(voltmeter(*base, "resample", "--tolerance", "10").stdout),
        "zero": json.loads(voltmeter(*base, "zero").stdout),
        "short": json.loads(voltmeter(*base, "zero", "--limit", "1").stdout),
    }
    assert {name: len(it["necessary"]) for name, it in shown.items()} == {
        "resample": 3, "random": 5, "loose": 0, "zero": 5, "short": 5,
    }  # fmt: skip
    assert (shown["zero"]["grades"]["unique"], shown["short"]["grades"]["unique"]) == ("yes", "presumed")
    decoded = json.loads(voltmeter("truth", "rasp:hist", "--json", "--fill", "zero", "--output", "decoded").stdout)
    raw = json.loads(voltmeter("truth", "rasp:hist", "--json", "--fill", "zero").stdout)
    assert (decoded["gap"], decoded["answers"]) == (None, 243 * 5), "answers are counted"
    assert (raw["gap"] > 1e6, raw["answers"]) == (True, None), "a number is measured"


def test_a_certificate_is_saved_and_verified(tmp_path: Path) -> None:
    file = tmp_path / "reverse.json"
    done = voltmeter("truth", "rasp:frac_prevs_x", "--fill", "resample", "--save", str(file), "--verify")
    assert done.exit_code == 0, done.stderr
    assert Certificate.load(file).name == "frac_prevs_x"
    assert "verified  from scratch with the slow engine" in done.stdout
    assert f"saved     {file}" in done.stdout


def test_what_the_weights_connect_is_not_called_the_programs_and_a_long_list_is_cut() -> None:
    done = voltmeter("truth", f"rasp:{asset('tracr') / 'shuffle_dyck'}", "--fill", "resample")
    assert done.exit_code == 0, done.stderr
    _, _, listed = done.stdout.partition("The weights connect 24 edges that are not necessary:\n")
    assert [" -> " in line for line in listed.splitlines()[:21]] == [True] * 20 + [False]
    assert listed.splitlines()[20].strip() == "… 4 more, all of them in --json"


def test_a_refused_certificate_is_shown_before_it_is_refused(tmp_path: Path) -> None:
    asked = ("truth", "rasp:hist", "--fill", "zero", "--tolerance", "1e6", "--save", str(tmp_path / "hist.json"))
    done = voltmeter(*asked)
    assert done.exit_code == 2
    assert "None of the 13 edges is necessary" in done.stdout
    assert "No certificate: the tolerance 1e+06 hides a change of 1 in outputs of up to 1." in done.stdout
    assert "there is no certificate of hist" in done.stderr
    as_json = voltmeter(*asked, "--verify", "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout)["certified"] is False
    assert "there is no certificate to verify" in as_json.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_one_of_save(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = voltmeter("truth", "rasp:hist", "--fill", "zero", "--save", str(tmp_path / "file" / "hist.json"))
    assert done.exit_code == 2
    assert "of the 13 edges are necessary" in done.stdout
    assert "--save" in done.stderr
    assert "--out" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--fill", "zero"), "demo is not a compiled model, and nobody knows the truth about it"),
        (("hist", "--fill", "zero"), "hist is the name of a program\n  give rasp:hist"),
        (("nowhere", "--fill", "zero"), "there is no model 'nowhere'"),
        (("rasp:nothing", "--fill", "zero"), "rasp:nothing names no program and no directory"),
        (("rasp:hist", "--fill", "nought"), "the fill 'nought' is unknown"),
        (("rasp:hist", "--fill", "zero", "--positions", "random"), "positions are randomised in the corrupted run"),
        (("rasp:hist", "--fill", "resample", "--positions", "odd"), "the positions 'odd' is unknown"),
        (("rasp:hist", "--fill", "zero", "--output", "odd"), "the output 'odd' is unknown"),
        (("rasp:hist", "--fill", "zero", "--tolerance", "0"), "the tolerance 0.0 is no positive number"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    done = voltmeter("truth", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_the_programs() -> None:
    done = voltmeter("programs")
    assert done.exit_code == 0, done.stderr
    names = [each.name for each in programs()]
    assert [line.split()[0] for line in done.stdout.splitlines()[: len(names)]] == names
    document = json.loads(voltmeter("programs", "--json").stdout)
    assert [each["name"] for each in document["programs"]] == names
    first = document["programs"][0]
    assert set(first) == {"name", "computes", "vocabulary", "max_length", "causal", "tags"}
    assert (first["name"], first["vocabulary"], first["max_length"]) == ("reverse", [1, 2, 3], 5)


def test_a_compiled_model_is_wired_with_its_input_split() -> None:
    done = voltmeter("wire", "rasp:reverse", "--json")
    assert done.exit_code == 0, done.stderr
    (stream,) = json.loads(done.stdout)["streams"]
    assert stream["writers"][:3] == ["input.tok", "input.pos", "a0.h0"]
