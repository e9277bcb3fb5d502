"""``voltmeter check``: of a run and of anyone's circuit; what is printed, written, returned, and refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_graphs import transformer
from cli_bench import SETTINGS, discover, files, make_tiny, rows_for, voltmeter, write_rows
from hypothesis import given, settings
from hypothesis import strategies as some

import voltmeter as vm
from voltmeter.check import registry
from voltmeter.check.case import Case
from voltmeter.check.files import load_findings
from voltmeter.check.finding import Finding, Picture
from voltmeter.check.registry import register
from voltmeter.circuit import read_run
from voltmeter.circuit.read import read_circuit
from voltmeter.cli.asked import Asked
from voltmeter.errors import AddressError, FormatError, VoltmeterError
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_files import save_hooked

FILE = ("--model", "hooked:tiny", "--task", "pairs.jsonl", "--only", "sound")
HEADS_OUT = ["input -> a0.h0<q>", "input -> a0.h0<k>", "input -> a0.h0<v>", "input -> logits", "a0.h0 -> logits"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, its pairs, and a run on them that keeps every edge: it is faithful."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        make_tiny(place)
        assert discover("--method", "eap", "--edges", 9, "--fill", "zero", "--out", "it").exit_code == 0
        assert discover("--method", "eap", "--edges", 1, "--out", "poor").exit_code == 0
    return place


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that cost nothing: one holds, one fails, one cannot tell, and one goes wrong."""
    monkeypatch.setattr(registry, "_KNOWN", {"faithful": registry._KNOWN["faithful"]})
    picture = Picture("bars", "Letters", "count", "letter", {"names": ["a"], "values": [1.0]})
    for name, verdict in (("sound", "holds"), ("broken", "fails"), ("shy", "cannot tell")):

        def run(case: Case, name: str = name, verdict: Any = verdict) -> Finding:
            left = {"left_out": "half"} if name == "shy" else {}
            says = f"{name} looked at {len(case.edges)} edges"
            return Finding(name, verdict, 0.5, 0.4, 0.6, "nothing", says, counted=left, picture=picture)

        register(name, f"is it {name}?")(run)

    @register("mad", "does it go wrong?")
    def mad(case: Case) -> Finding:
        raise KeyError("x")


# a run -------------------------------------------------------------------------------------------------------------


def test_it_prints_a_line_a_finding_and_what_to_do_next(here: Path) -> None:
    done = voltmeter("check", "it", "--only", "faithful,sound")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("wiring    HookedModel · 3 writers · 7 readers · 9 edges")
    assert lines[1].startswith("task      pairs · 12 train, 12 held-out pairs · the model does it")
    assert lines[2] == "circuit   9 of 9 edges · eap · found under fill zero"
    assert lines[3] == ""
    assert re.match(r"✓ holds +faithful: the circuit keeps 100% of the logit-difference \(100% to 100%\)", lines[4])
    assert re.fullmatch(r"✓ holds +sound: sound looked at 9 edges", lines[5])
    assert lines[6:] == [
        "",
        "          2 findings: 2 hold",
        "written   it-findings/  findings.html findings.json",
        "next      open it-findings/findings.html, with the edges and pairs behind each finding",
    ]
    assert files(here / "it-findings") == {"findings.json", "findings.html"}


def test_what_fails_and_what_nobody_can_tell_is_marked_in_words(here: Path) -> None:
    done = voltmeter("check", "it", "--only", "sound, broken,shy")
    assert done.exit_code == 1
    assert done.stderr == "", "the exit code is that of a check that fails: there is no error to tell"
    assert [" ".join(line.split()) for line in done.stdout.splitlines()[4:7]] == [
        "✓ holds sound: sound looked at 9 edges",
        "✗ fails broken: broken looked at 9 edges",
        "? cannot tell shy: shy looked at 9 edges",
    ]
    assert "3 findings: 1 holds, 1 fails (broken), 1 cannot tell (shy)" in done.stdout
    assert "left out  some or all of shy; 60 s were given, --budget 0 is no limit" in done.stdout


def test_json_is_one_document(here: Path) -> None:
    done = voltmeter("check", "it", "--json", "--only", "faithful,shy", "--budget", "0", "--seed", "3")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document) == ["findings", "verdicts", "conditions", "run", "model", "task", "seconds", "written"]
    assert [(each["check"], each["verdict"]) for each in document["findings"]] == [
        ("faithful", "holds"),
        ("shy", "cannot tell"),
    ]
    assert set(document["findings"][0]) >= {"check", "verdict", "figure", "low", "high", "against", "says"}
    assert document["verdicts"] == {"holds": 1, "fails": 0, "cannot tell": 1}
    assert [document[key] for key in ("run", "model", "task", "written")] == [
        "it",
        "hooked:tiny",
        "pairs",
        "it-findings",
    ]
    conditions = document["conditions"]
    assert [conditions[key] for key in ("fill", "method", "budget", "seed")] == ["zero", "eap", None, 3]
    assert conditions["digests"].items() >= read_run(here / "it").record.conditions.digests.items()
    assert load_findings(here / "it-findings" / "findings.json").as_dict()["findings"] == document["findings"]
    assert "? cannot tell  shy:" in done.stderr


def test_a_poor_circuit_fails(here: Path) -> None:
    done = voltmeter("check", "poor", "--only", "faithful", "--threshold", "0.99")
    assert done.exit_code == 1, done.stderr
    assert "✗ fails        faithful: the circuit keeps " in done.stdout


def test_findings_of_the_same_circuit_are_replaced_and_nothing_else(here: Path) -> None:
    assert voltmeter("check", "it", "--only", "sound").exit_code == 0
    assert voltmeter("check", "it", "--only", "shy", "--seed", 1).exit_code == 0
    assert [each.check for each in load_findings(here / "it-findings" / "findings.json")] == ["shy"]
    assert refused(here, "check poor --only sound --out it-findings") == (
        "voltmeter: it-findings already holds findings of another circuit\n  give another directory with --out\n"
    )
    (here / "it-findings" / "notes.txt").write_text("mine")
    assert "it-findings holds findings, and files that are no part of them\n  notes.txt\n" in refused(
        here, "check it --only sound"
    )


def test_a_run_is_found_from_anywhere_with_what_it_was_made_from(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    said = refused(here, "check ../it --only sound")
    assert said.startswith("voltmeter: what the run in ../it was made from cannot be loaded\n  there is no ")
    assert said.endswith("  stand where the run was made, or say where they are now with --model and --task\n")
    done = voltmeter("check", "../it", "--model", "hooked:../tiny", "--task", "../pairs.jsonl", "--only", "sound")
    assert done.exit_code == 0, done.stderr
    assert files(here / "it-findings") == {"findings.json", "findings.html"}
    monkeypatch.chdir(here / "it")
    assert (
        voltmeter("check", ".", "--model", "hooked:../tiny", "--task", "../pairs.jsonl", "--only", "shy").exit_code == 0
    )
    assert [each.check for each in load_findings(here / "it-findings" / "findings.json")] == ["shy"]


def test_a_run_says_all_that_it_was_asked(here: Path) -> None:
    """Another precision, metric, seed and declared module: the digests would tell if one were forgotten."""
    args = ["--method", "eap", "--edges", 2, "--fill", "mean", "--out", "other"]
    args += ["--dtype", "float64", "--metric", "log-probability", "--seed", 5, "--declare", "blocks.0.attn"]
    assert discover(*args).exit_code == 0
    done = voltmeter("check", "other", "--only", "sound", "--json")
    assert done.exit_code == 0, done.stderr
    conditions = json.loads(done.stdout)["conditions"]
    assert (conditions["fill"], conditions["metric"]) == ("mean", "log-probability")


# what a run was made from has changed ------------------------------------------------------------------------------


def test_another_model_in_its_place_is_refused(here: Path) -> None:
    shutil.rmtree(here / "tiny")
    save_hooked(HookedModel(SETTINGS).initialise(1, gain=3.0), here / "tiny")
    said = refused(here, "check it --only sound").splitlines()
    assert said[0] == "voltmeter: what the run in it was made from has changed since"
    assert re.fullmatch(r"  model \(hooked:tiny\): [0-9a-f]{12} when the run was made, [0-9a-f]{12} now", said[1])
    assert said[2].startswith("  bring back what it was, or find the circuit again: voltmeter discover hooked:tiny")
    assert len(said) == 3, "wiring and task are as they were"


def test_other_pairs_in_their_place_are_refused(here: Path) -> None:
    rows = [json.loads(line) for line in (here / "pairs.jsonl").read_text().splitlines()]
    write_rows(here / "pairs.jsonl", rows[:-1])
    said = refused(here, "check it --only sound").splitlines()
    assert [line.split(":")[0] for line in said[1:-1]] == ["  task (pairs.jsonl)"]


def test_everything_that_changed_is_named(here: Path) -> None:
    settings = replace(SETTINGS, n_layers=2)
    model = HookedModel(settings).initialise(0, gain=3.0)
    shutil.rmtree(here / "tiny")
    save_hooked(model, here / "tiny")
    write_rows(here / "pairs.jsonl", rows_for(model))
    said = refused(here, "check it --only sound").splitlines()
    assert [line.split(" (")[0].strip() for line in said[1:-1]] == ["model", "wiring", "task"]


def test_a_model_that_is_gone_is_said_to_be(here: Path) -> None:
    (here / "tiny").rename(here / "moved")
    said = refused(here, "check it --only sound")
    assert said.startswith("voltmeter: what the run in it was made from cannot be loaded\n")
    assert "tiny" in said.splitlines()[1]
    assert voltmeter("check", "it", "--model", "hooked:moved", "--only", "sound").exit_code == 0


def test_a_damaged_run_is_refused(here: Path) -> None:
    (here / "it" / "circuit.json").write_text("{}")
    assert refused(here, "check it --only sound") == (
        "voltmeter: the run in it is damaged\n"
        "  circuit.json is not as it was written\n"
        "  copy it again, or repeat it: run.json says how\n"
    )


# anyone's circuit --------------------------------------------------------------------------------------------------


def eap_json(run: Path) -> str:
    """A run's circuit as EAP-IG writes it: without what only we say."""
    document = json.loads((run / "circuit.json").read_bytes())
    assert document["eap_ig"]["readable"]
    return json.dumps({key: document[key] for key in ("cfg", "nodes", "edges")})


CIRCUITS: dict[str, tuple[str, str]] = {
    "heads, one to a line": ("list of heads", "# name movers\n0.0   # the only one\n\n"),
    "heads of another spelling": ("list of heads", "L0H0\n"),
    "heads in a list": ("list of heads", '["a0.h0"]'),
    "heads as numbers": ("list of heads", "[[0, 0]]"),
    "heads by what they do": ("list of heads", '{"name movers": [[0, 0]], "backups": []}'),
    "edges of ACDC": (
        "edge list",
        json.dumps(
            [
                *([f"blocks.0.hook_{slot}_input[:, :, 0]", "input"] for slot in "qkv"),
                ["blocks.0.attn.hook_q[0]", "blocks.0.hook_q_input[:, :, 0]"],
                ["blocks.0.hook_resid_post", "blocks.0.attn.hook_result[:, :, 0]"],
                ["blocks.0.hook_resid_post", "input"],
            ]
        ),
    ),
    "our own edges": ("edge list", json.dumps(HEADS_OUT)),
    "our own edges, one to a line": ("edge list", "\n".join(HEADS_OUT).replace("->", "→")),
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_the_same_circuit_in_anyones_words(here: Path, name: str) -> None:
    form, text = CIRCUITS[name]
    (here / "circuit").write_text(text)
    done = voltmeter("check", "--circuit", "circuit", *FILE, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    told = document["conditions"]
    assert told["circuit"]["format"] == form
    assert (told["n_edges"], told["fill"], document["circuit"], document["written"]) == (5, "resample", "circuit", None)
    wiring = wired(here)
    assert set(read_circuit("circuit", wiring.edges, wiring.feeds).names) == set(HEADS_OUT)


@pytest.mark.parametrize("form", ["ours", "EAP-IG"])
def test_circuits_with_scores_from_a_file(here: Path, form: str) -> None:
    (here / "c.json").write_text(
        (here / "it" / "circuit.json").read_text() if form == "ours" else eap_json(here / "it")
    )
    done = voltmeter("check", "--circuit", "c.json", *FILE, "--json", "--out", "found")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)["conditions"]
    assert (told["n_edges"], told["n_edges_total"]) == (9, 9)
    assert told["fill"] == ("zero" if form == "ours" else "resample"), "EAP-IG's files do not say"
    assert told["method"] == ("eap" if form == "ours" else None)
    assert files(here / "found") == {"findings.json", "findings.html"}


def test_the_question_of_a_file_is_what_is_given(here: Path) -> None:
    (here / "c").write_text("0.1")
    given = (
        "--fill",
        "mean",
        "--metric",
        "log-probability",
        "--dtype",
        "float64",
        "--threshold",
        "0.5",
        "--budget",
        "7",
    )
    done = voltmeter("check", "--circuit", "c", *FILE, *given, "--split", "input", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)["conditions"]
    assert [told[key] for key in ("fill", "metric", "threshold", "budget")] == ["mean", "log-probability", 0.5, 7.0]
    assert told["n_edges_total"] == 16, "7 readers of input.tok and input.pos, and the heads' two edges"


def test_heads_are_said_to_be_what_they_mean(here: Path) -> None:
    (here / "c").write_text("0.1")
    done = voltmeter("check", "--circuit", "c", *FILE)
    assert "circuit   5 of 9 edges · all edges among a0.h1 · MLPs: the model has none" in done.stdout
    assert "next      add --out DIR for a page with the edges and pairs behind each finding" in done.stdout
    assert not (here / "c-findings").exists()


def wired(place: Path, dtype: torch.dtype = torch.float32) -> Any:
    model, task = vm.load(f"hooked:{place / 'tiny'}", str(place / "pairs.jsonl"), dtype=dtype)
    assert task is not None
    return vm.wire(model, task.example)


# what a list of heads means ----------------------------------------------------------------------------------------


def heads(tmp_path: Path, text: str, **graph: Any) -> set[str]:
    made = transformer(2, 4, **graph)
    (tmp_path / "heads").write_text(text)
    return set(read_circuit(tmp_path / "heads", made.edges, made.feeds).names)


def test_mlps_stay_unless_the_list_names_some(tmp_path: Path) -> None:
    every = heads(tmp_path, "0.1\n1.2")
    assert {"input -> m0", "m0 -> m1", "a0.h1 -> m1", "m1 -> logits", "a0.h1 -> a1.h2<k>", "m0 -> a1.h2<q>"} <= every
    assert not {edge for edge in every if re.search(r"a0\.h[023]|a1\.h[013]", edge)}
    some_of = heads(tmp_path, "0.1\n1.2\nm1")
    assert some_of == {edge for edge in every if "m0" not in edge}
    assert heads(tmp_path, '["MLP 0", "mlp1", "0.1", "(1, 2)"]') == every


def test_a_key_value_head_is_kept_if_one_of_its_heads_is(tmp_path: Path) -> None:
    kept = heads(tmp_path, "1.3", groups=2)
    assert {edge for edge in kept if edge.startswith("input -> a1")} == {
        "input -> a1.h3<q>",
        "input -> a1.kv1<k>",
        "input -> a1.kv1<v>",
    }


def test_attention_that_is_not_divided_into_heads_is_no_place_for_a_list(tmp_path: Path) -> None:
    """What the list does not name is knocked out: of a block that is one component nothing can be."""
    (tmp_path / "heads").write_text("1.0")
    edges = ["input -> a0", "input -> a1.h0<q>", "a0 -> a1.h0<q>", "a0 -> logits", "a1.h0 -> logits"]
    with pytest.raises(AddressError) as error:
        read_circuit(tmp_path / "heads", edges, {})
    assert str(error.value).splitlines()[1:] == ["  a0 is one component", "  --split a0=heads, for each of them"]


def test_a_list_of_heads_knocks_out_the_others_and_nothing_else(here: Path) -> None:
    """Exactly what papers do: only what the other head writes is replaced, for everyone who reads it."""
    (here / "c").write_text("0.0")
    wiring = wired(here, torch.float64)
    circuit = read_circuit("c", wiring.edges, wiring.feeds)
    knocked_out = torch.tensor([float(edge.writer != "a0.h1") for edge in wiring.edges])
    for fill in (vm.fill.zero(), vm.fill.mean(wiring, [wiring.example])):
        ours, theirs = (vm.run(wiring, wiring.example, keep, fill) for keep in (circuit, knocked_out))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)  # float64; edges into the head do nothing


def test_every_unknown_head_is_listed(here: Path) -> None:
    (here / "c").write_text("0.0\n9.9\nL0H7\nm0\n")
    assert refused(here, f"check --circuit c {' '.join(FILE)}").splitlines() == [
        "voltmeter: c is of another model: 3 nodes of it are not in this one",
        "  a9.h9: nearest: a0.h1, a0.h0",
        "  a0.h7: nearest: a0.h1, a0.h0",
        "  m0: nearest: a0.h1, a0.h0",
        "  was it made for this model?",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hello\nworld", "item 1 is 'hello'"),
        ("[9.1, 0.0]", "item 1 is 9.1 (9.1 may be head 1 or head 10: write it as text)"),
        ("[[true, 0]]", "item 1 is [True, 0]"),
        ("[]", "c lists no heads"),
        ("", "c lists no heads"),
        ("# nothing", "c lists no heads"),
        ('{"a": 1}', 'it holds {"a": 1}'),
        ("[null]", "item 1 is None"),
    ],
)
def test_what_is_no_circuit_is_said_to_be_none(here: Path, text: str, line: str) -> None:
    (here / "c").write_text(text)
    said = refused(here, f"check --circuit c {' '.join(FILE)}").splitlines()
    assert said[0] == "voltmeter: c is a circuit in no format known here"
    assert f"  {line}" in said
    assert said[-5:-3] == ["  known:", "  our own circuit.json"]


# refusals ----------------------------------------------------------------------------------------------------------


def refused(place: Path, args: str) -> str:
    """What is on stderr from ``voltmeter:`` on, after checking all else that a refusal promises."""
    before = files(place)
    result = voltmeter(*shlex.split(args))
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert "Traceback" not in result.stdout + result.stderr
    assert files(place) == before
    return str(result.stderr[result.stderr.index("voltmeter: ") :])


WRONG = {
    "nothing to check": (
        "check",
        "there is no circuit to check\n  "
        "voltmeter check RUN, or voltmeter check --circuit FILE --model MODEL --task TASK",
    ),
    "both a run and a file": (
        "check it --circuit c",
        "both RUN and --circuit were given\n  "
        "voltmeter check RUN, or voltmeter check --circuit FILE --model MODEL --task TASK",
    ),
    "a file without its model": (
        "check --circuit it/circuit.json --task pairs.jsonl",
        "it/circuit.json does not say of which model it is, or on which task\n  --model was not given\n"
        "  voltmeter check --circuit FILE --model MODEL --task TASK",
    ),
    "a file with neither": (
        "check --circuit it/circuit.json",
        "it/circuit.json does not say of which model it is, or on which task\n  --model was not given\n"
        "  --task was not given\n  voltmeter check --circuit FILE --model MODEL --task TASK",
    ),
    "no such file": (f"check --circuit c {' '.join(FILE)}", "there is no file c"),
    "a directory for a file": (
        f"check --circuit it {' '.join(FILE)}",
        "it is a directory, a file was expected\n  voltmeter check RUN for a run",
    ),
    "a file for a run": (
        "check it/circuit.json",
        "it/circuit.json is a file, the directory of a run was expected\n"
        "  voltmeter check --circuit it/circuit.json --model MODEL --task TASK",
    ),
    "no such run": ("check nowhere", "there is no file nowhere/run.json"),
    "what a run says itself": (
        "check it --fill mean --drop-misaligned --split input",
        "--fill, --split, --drop-misaligned are not for a run, which says so itself\n"
        "  leave it out, or ask of its circuit alone: --circuit it/circuit.json",
    ),
    "a check that is none": (
        "check it --only sound,faithfull",
        "there are no such checks\n  'faithfull': nearest: faithful, shy, mad\n"
        "  checks: faithful, sound, broken, shy, mad",
    ),
    "no check": ("check it --only ,", None),
    "a threshold that is none": (
        "check it --threshold 1",
        "faithful at 1 was asked for, a number between 0 and 1 was expected",
    ),
    "a budget below nothing": (
        "check it --budget -1",
        "--budget -1 was given, seconds were expected, or 0 for no limit",
    ),
    "a fill that is none": (f"check --circuit it/circuit.json {' '.join(FILE)} --fill noise", None),
    "a place that is a file": (
        "check it --only sound --out pairs.jsonl",
        None,
    ),
    "a circuit of another model": (
        "check --circuit it/circuit.json --model demo --task induction-demo --only sound",
        None,
    ),
    "the wiring otherwise divided": (f"check --circuit it/circuit.json {' '.join(FILE)} --split input", None),
}  # fmt: skip

BEGINS = {
    "no check": "nothing to check\n  no check was named\n",
    "a fill that is none": "there is no fill called 'noise'\n  nearest: ",
    "a place that is a file": "{place}/pairs.jsonl is a file, a directory was expected\n",
    "a circuit of another model": (
        "it/circuit.json is a circuit of another wiring\n  it has 9 edges to choose from, the model 257\n"
        "  only the model has "
    ),
    "the wiring otherwise divided": (
        "it/circuit.json is a circuit of another wiring\n  it has 9 edges to choose from, the model 16\n"
        "  only the file has input -> a0.h0<q>\n"
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_in_words(here: Path, name: str) -> None:
    args, says = WRONG[name]
    said = refused(here, args).removeprefix("voltmeter: ")
    if says is None:
        assert said.startswith(BEGINS[name].format(place=here)), said
    else:
        assert said == f"{says}\n"


def test_something_that_goes_wrong_is_told_from_a_circuit_that_fails(here: Path) -> None:
    done = voltmeter("check", "it", "--only", "sound,mad")
    assert done.exit_code == 1
    assert "voltmeter: something went wrong that should not\n  KeyError: 'x'" in done.stderr
    assert not (here / "it-findings").exists()


def test_checks_are_listed_with_what_they_ask() -> None:
    done = voltmeter("checks")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "faithful   does it do what the full model does, on held-out pairs?",
        "sound      is it sound?",
        "broken     is it broken?",
        "shy        is it shy?",
        "mad        does it go wrong?",
    ]


# what a run was asked ------------------------------------------------------------------------------------------------

WORDS = some.text(min_size=1, max_size=8)
ASKED = some.fixed_dictionaries(
    {
        "model": WORDS,
        "task": WORDS,
        "method": WORDS,
        "edges": some.none() | some.integers(1, 10**6),
        "faithful": some.none() | some.floats(0.01, 1),
        "signed": some.booleans(),
        "metric": some.none() | WORDS,
        "seed": some.integers(0, 2**32 - 1),
        "out": some.none() | some.sampled_from([Path("runs/it"), Path("/a b")]),
        "set": some.lists(WORDS, max_size=3).map(tuple),
        "declare": some.lists(WORDS, max_size=2).map(tuple),
        "dtype": some.none() | WORDS,
        "drop_misaligned": some.booleans(),
    }
)


@settings(max_examples=60)
@given(words=ASKED)
def test_a_command_is_read_back(words: dict[str, Any]) -> None:
    asked = Asked(**words)
    assert Asked.of_command(asked.command, "it") == asked


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("voltmeter", "demo"), "it does not say how it came about\n  its command: voltmeter demo"),
        ((), "it does not say how it came about\n  its command: "),
        (
            ("voltmeter", "discover", "demo", "--task", "x", "--colour", "red"),
            "it was made by a command of another version\n  voltmeter discover demo --task x --colour red\n"
            "  this voltmeter cannot read it: KeyError('colour')",
        ),
        (
            ("voltmeter", "discover", "demo", "--task", "x", "--edges"),
            "it was made by a command of another version\n  voltmeter discover demo --task x --edges\n"
            "  this voltmeter cannot read it: StopIteration()",
        ),
    ],
)
def test_a_command_that_is_none_is_refused(command: tuple[str, ...], says: str) -> None:
    with pytest.raises(FormatError) as error:
        Asked.of_command(command, "it")
    assert isinstance(error.value, VoltmeterError)
    assert str(error.value) == says
