"""``voltmeter discover`` and ``show``: what is printed, what is written, and that both say the same."""

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_graphs import transformer
from cli_bench import LENGTH, N_EDGES, N_PAIRS, discover, files, make_tiny, voltmeter, write_rows

import voltmeter as vm
from voltmeter.circuit import read_run
from voltmeter.cli import discover as discovering
from voltmeter.cli.choose import connected, curve_sizes, of_size
from voltmeter.cli.screen import duration, memory, tiny, words_for
from voltmeter.discover import Judge, prepare_fill

KEYS = ["model", "task", "method", "fill", "metric", "seed", "n_edges", "n_edges_total", "edges", "faithfulness"]
KEYS += ["seconds", "peak_mib", "run"]
FIGURES = {
    "metric",
    "full",
    "nothing_kept",
    "circuit",
    "normalised",
    "median",
    "worst_decile",
    "kl_share",
    "n_held_out",
}
RUN_FILES = {"run.json", "scores.safetensors", "circuit.json", "page.html"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# what is printed and written -------------------------------------------------------------------------------------


def test_it_prints_what_it_is_doing_and_where_the_run_went(here: Path) -> None:
    done = discover("--edges", 4)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(
        r"wiring    HookedModel · 3 writers · 7 readers · 9 edges · sums to \de-\d+, laws hold", lines[0]
    )
    assert re.fullmatch(
        r"task      pairs · 12 train, 12 held-out pairs · the model does it: 100% right, logit difference \d+\.\d",
        lines[1],
    )
    assert re.fullmatch(r"plan      edge-sp · 5 steps · about \d+ s, \d+(\.\d)? [MG]iB", lines[2])
    assert lines[3] == ""
    assert re.fullmatch(
        r" {10}\d of 9 edges keeps? -?\d+% of the logit difference on 12 held-out pairs \(.*%\), KL share \d+%\.",
        lines[4],
    )
    assert re.match(r" {10}(input|a0\.h\d) → ", lines[5])
    run = "runs/pairs-edge-sp-0"
    assert lines[6:] == [
        f"written   {run}/  page.html circuit.json scores.safetensors run.json",
        f"next      open {run}/page.html, or see every edge: voltmeter show {run} --all",
        f"          is it true? voltmeter check {run}",
    ]
    assert re.fullmatch(r"edge-sp   5 of 5 in 1 s\n", done.stderr)
    assert {path.name for path in (here / run).iterdir()} == RUN_FILES
    assert {path.name for path in (here / "runs").iterdir()} == {"pairs-edge-sp-0"}


@pytest.mark.parametrize("method", ["eap", "edge-sp"])
@pytest.mark.parametrize("fill", ["zero", "mean", "mean-position", "resample"])
def test_json_is_one_document_that_says_what_the_run_holds(here: Path, method: str, fill: str) -> None:
    done = discover("--json", "--method", method, "--fill", fill, "--edges", 5, "--seed", 3, "--out", "it")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document)[: len(KEYS)] == KEYS
    assert set(document["faithfulness"]) >= FIGURES
    told = [document[key] for key in ("model", "task", "method", "fill", "metric", "seed", "n_edges_total", "run")]
    assert told == ["hooked:tiny", "pairs", method, fill, "logit-difference", 3, N_EDGES, "it"]
    assert document["faithfulness"]["n_held_out"] == N_PAIRS / 2
    assert "wiring    HookedModel" in done.stderr
    run = read_run(here / "it")
    assert run.circuit is not None
    assert run.scores is not None
    assert [edge["name"] for edge in document["edges"]] == [f"{w} -> {r}" for w, r, _ in run.circuit.table()]
    assert {e["name"]: e["score"] for e in document["edges"]} == {name: run.scores[name] for name in run.circuit.names}
    assert document["n_edges"] == len(run.circuit) == len(document["edges"]) <= 5
    assert run.record.results == document
    assert document["seconds"] > 0
    assert document["peak_mib"] > 50


def test_what_cut_edges_were_taught_to_carry_is_written_and_judged_by(here: Path) -> None:
    asked = ("--method", "ugs", "--fill", "mean", "--set", "learn_fill=true", "--faithful", 0.5, "--out", "it")
    done = discover(*asked, "--json")
    assert done.exit_code == 0, done.stderr
    document, run = json.loads(done.stdout), read_run(here / "it")
    assert {path.name for path in (here / "it").iterdir()} == {*RUN_FILES, "fill.safetensors"}
    assert (document["fill"], run.record.conditions.fill) == ("optimal", "optimal")
    assert run.record.conditions.settings["fill_begun_at"] == "mean"
    assert run.scores is not None
    assert run.circuit is not None
    assert run.fill is not None

    model, task = vm.load("hooked:tiny", "pairs.jsonl")
    assert task is not None
    wiring = vm.wire(model, task.example)
    again = vm.discover(wiring, task, "ugs", "mean", n_steps=5, learn_fill=True)
    assert again == run.scores  # under the same conditions, the learned values' digest among them
    under = {fill: Judge(wiring, task, task.held_out, fill) for fill in (run.fill, prepare_fill("mean", wiring, task))}
    learned, means = (judge.measure(run.circuit).as_dict() for judge in under.values())
    assert learned == document["faithfulness"]
    assert abs(learned["nothing_kept"] - means["nothing_kept"]) > 1e-3

    written = discover(*asked)  # the same run: it takes the old one's place
    assert "page.html circuit.json scores.safetensors fill.safetensors run.json" in written.stdout
    shown = voltmeter("show", "it").stdout.splitlines()
    assert " · fill optimal · " in shown[0]
    assert "fill      optimal, trained with ugs for 5 steps on the train pairs of pairs (seed 0)" in shown


def test_run_json_holds_what_is_needed_to_repeat_it(here: Path) -> None:
    assert discover("--edges", 4, "--out", "first", "--set", "price=2", "--seed", 1, "--signed").exit_code == 0
    first = read_run(here / "first").record
    assert first.command == (
        *("voltmeter", "discover", "hooked:tiny", "--task", "pairs.jsonl", "--edges", "4", "--signed"),
        *("--seed", "1", "--out", "first", "--steps", "5", "--set", "price=2"),
    )
    conditions = first.conditions
    assert set(conditions.digests) == {"model", "wiring", "task"}
    assert {"python", "torch", "transformers", "voltmeter"} <= set(conditions.versions)
    assert (conditions.settings["n_steps"], conditions.settings["price"], conditions.settings["target"]) == (5, 2.0, 4)
    assert conditions.settings["chosen"] == {"edges": 4, "faithful": None, "signed": True}
    assert (conditions.seed, conditions.dtype, first.device) == (1, "float32", "cpu")
    assert first.results["gate"]["does_it"] is True
    assert first.results["data"]["sha256"]
    again = [word if word != "first" else "again" for word in first.command[1:]]
    assert voltmeter(*again).exit_code == 0
    for name in ("scores.safetensors", "circuit.json"):
        assert (here / "first" / name).read_bytes() == (here / "again" / name).read_bytes()


def test_seconds_are_those_of_the_steps(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What setting up the judge takes is not among them."""
    set_up = Judge.__init__

    def slowly(self: Judge, *given: Any) -> None:
        time.sleep(1.5)
        set_up(self, *given)

    monkeypatch.setattr(Judge, "__init__", slowly)
    assert json.loads(discover("--edges", 4, "--json").stdout)["seconds"] < 1.5


def test_the_same_run_is_replaced_and_another_is_not(here: Path) -> None:
    assert discover("--edges", 4, "--out", "it").exit_code == 0
    started = read_run(here / "it").record
    assert discover("--edges", 4, "--out", "it").exit_code == 0
    assert read_run(here / "it").record.identity == started.identity
    other = discover("--edges", 3, "--out", "it")
    assert other.exit_code == 2
    assert read_run(here / "it").record.identity == started.identity


def test_the_page_says_what_the_terminal_says(here: Path) -> None:
    done = discover("--edges", 4, "--out", "it")
    page = (here / "it" / "page.html").read_text()
    headline = done.stdout.splitlines()[4].strip()
    assert headline in page
    assert "Intervals: 95%, bootstrapped" in page
    assert "Faithfulness against the number of edges kept" in page


def test_show_tells_of_a_run_again(here: Path) -> None:
    done = discover("--edges", 9, "--fill", "zero", "--out", "it")
    shown = voltmeter("show", "it", "--all")
    assert shown.exit_code == 0, shown.stderr
    assert done.stdout.splitlines()[4] in shown.stdout
    assert shown.stdout.count("→") == 9
    assert "edge-sp · HookedModel · pairs · fill zero · seed 0" in shown.stdout
    missing = voltmeter("show", "nowhere")
    assert (missing.exit_code, missing.stderr) == (2, "voltmeter: there is no file nowhere/run.json\n")


def test_a_model_that_cannot_do_the_task_is_warned_of(here: Path) -> None:
    swapped = [{**row, "answers": row["wrong"], "wrong": row["answers"]} for row in rows_of(here / "pairs.jsonl")]
    write_rows(here / "pairs.jsonl", swapped)
    done = discover("--edges", 4, "--out", "it")
    assert done.exit_code == 0, done.stderr
    assert "the model does not do it: 0% right (75% are wanted)" in done.stdout
    assert "warning   a circuit for what the model does not do explains nothing" in done.stdout
    assert read_run(here / "it").record.results["gate"]["does_it"] is False


def test_rows_that_do_not_line_up_can_be_dropped(here: Path) -> None:
    rows = rows_of(here / "pairs.jsonl")
    rows[3]["corrupted"] = rows[3]["corrupted"][:-1]
    write_rows(here / "pairs.jsonl", rows)
    assert discover("--edges", 4).exit_code == 2
    done = discover("--edges", 4, "--drop-misaligned", "--out", "it")
    assert done.exit_code == 0, done.stderr
    assert "1 row left out that does not line up" in done.stdout
    assert read_run(here / "it").record.results["data"]["dropped_rows"] == [4]


def test_a_factory_of_ones_own_in_another_precision(here: Path) -> None:
    (here / "cli_own.py").write_text(
        "from voltmeter.wiring.hooked_files import load_hooked\n\ndef make():\n    return load_hooked('tiny')\n"
    )
    args = ["discover", "py:cli_own:make", "--task", "pairs.jsonl", "--method", "eap", "--edges", 9, "--fill", "zero"]
    done = voltmeter(*args, "--dtype", "float64", "--json", "--metric", "log-probability")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["metric"], document["run"]) == ("log-probability", "runs/pairs-eap-0")
    assert read_run(here / document["run"]).record.conditions.dtype == "float64"
    assert document["faithfulness"]["normalised"] == pytest.approx(1, abs=1e-9)


def test_a_declared_module_is_one_component(here: Path) -> None:
    done = discover("--json", "--edges", 2, "--declare", "blocks.0.attn", "--fill", "zero")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["n_edges_total"] == 3


# how large the circuit is ----------------------------------------------------------------------------------------


def test_by_default_the_smallest_faithful_circuit(here: Path) -> None:
    document = json.loads(discover("--json", "--method", "eap").stdout)
    assert document["threshold"] == 0.9
    assert document["how"]["faithful"] == 0.9
    assert document["faithful"] == (
        0.9 <= document["faithfulness"]["normalised"] <= 1.1 and document["faithfulness"]["kl_share"] <= 0.1
    )


def test_a_circuit_that_falls_short_on_held_out_pairs_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovering, "as_small_as_faithful", lambda scores, *_: scores.top(1))
    done = discover("--faithful", 0.95)
    assert re.search(
        r"warning   faithful at 0\.95 on the train pairs, not on the held-out ones: "
        r"faithfulness -?\d\.\d{3} for 0\.95 to 1\.05, KL share \d\.\d{3} for at most 0\.05\n",
        done.stdout,
    )


@pytest.mark.parametrize("seed", range(8))
def test_at_most_so_many_edges_on_paths(seed: int) -> None:
    """Against trying every size."""
    graph = transformer(2, 2)
    scores = graph.scores(torch.randn(len(graph.edges), generator=torch.Generator().manual_seed(seed)))
    sizes = [len(connected(scores.top(n), graph)) for n in range(len(scores) + 1)]
    for edges in (1, 4, 7, 12, 20, len(graph.edges)):
        found = of_size(scores, graph, edges, False, "resample")
        assert len(found) == max(size for size in sizes if size <= edges)
        assert found.disconnected(graph.feeds, graph.inputs, graph.outputs) == ()
        assert found.how["asked"] == edges
        assert len(of_size(scores, graph, edges, False, "zero")) == edges


def test_under_other_fills_edges_on_no_path_stay_and_are_listed(here: Path) -> None:
    document = json.loads(discover("--json", "--edges", 1, "--fill", "mean", "--method", "eap").stdout)
    assert document["n_edges"] == 1
    name = document["edges"][0]["name"]
    if name == "input -> logits":  # then the next one
        pytest.fail("the strongest edge of this model is expected to be on no path by itself")
    assert document["disconnected"] == [name]
    done = discover("--edges", 1, "--fill", "mean", "--method", "eap", "--out", "it")
    assert (
        f"note      1 kept edge is on no path from input to output, which matters under a mean fill: {name}"
        in done.stdout
    )


def test_sizes_of_a_curve() -> None:
    assert curve_sizes(1701) == [1, 3, 6, 16, 41, 105, 265, 671, 1701]
    assert curve_sizes(3) == [1, 2, 3]
    assert curve_sizes(1) == [1]


# words -----------------------------------------------------------------------------------------------------------


def test_durations_and_sizes_in_words() -> None:
    said = [duration(s) for s in (0.2, 1.4, 98.0, 110.0, 3600.0, 7500.0, 1e6)]
    assert said == ["1 s", "1 s", "98 s", "2 min", "60 min", "2 h 5 min", "277 h 47 min"]
    assert [memory(m) for m in (310.4, 999.0, 2500.0)] == ["310 MiB", "999 MiB", "2.4 GiB"]
    assert [tiny(e) for e in (0.0, 2.34e-7, 1e-10, 0.2)] == ["0", "2e-7", "1e-10", "2e-1"]
    assert [words_for(r) for r in ("a1.h3<k>", "a0.kv2<v>", "logits", "m3", "layers.0.mixer")] == [
        "the keys of head 3 in layer 1",
        "the values of key/value head 2 in layer 0",
        "the output",
        "",
        "",
    ]


def test_nothing_but_the_run_is_written(here: Path) -> None:
    before = files(here)
    discover("--edges", 4, "--out", "deep/er/it")
    assert files(here) - before == {"deep", "deep/er", "deep/er/it", *(f"deep/er/it/{name}" for name in RUN_FILES)}
    assert LENGTH == 6


def test_figures_that_are_not_finite_do_not_cost_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are None in JSON, and left out of the page."""
    measure = Judge.measure

    def odd(self: Judge, circuit: Any) -> Any:
        found = measure(self, circuit)
        return replace(found, normalised=math.nan, normalised_interval=(math.nan, 1.0), median=math.inf, kl_share=None)

    monkeypatch.setattr(Judge, "measure", odd)
    done = discover("--edges", 4, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    figures = document["faithfulness"]
    assert [figures[key] for key in ("normalised", "normalised_interval", "median", "kl_share")] == [None] * 4
    assert document["curve"] == []
    assert "how faithful the circuit is was not measured" in (here / document["run"] / "page.html").read_text()
