"""Questions whose answer is known, and ``bench/recovery.py``, which puts them to every method."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT, script
from torch import Tensor

from voltmeter.discover.discretise import given, prune
from voltmeter.discover.known import OBJECTIVES, Sufficient, changes_kept, known_question
from voltmeter.discover.method import method_named, run_method
from voltmeter.discover.question import cut_answers, plain_answers
from voltmeter.errors import MetricError, VoltmeterError
from voltmeter.rasp.effects import further_cuts, run_cut, run_kept
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.setting import Question, Setting, setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.wired import wiring_of
from voltmeter.run.run import run

KEYS = [
    "method", "fill", "programs", "unique", "redundant", "exact_match_before_pruning", "exact_match_after_pruning",
    "auroc_mean", "auroc_min", "average_precision_mean", "sufficient_rate", "one_minimal_rate", "seconds_median",
    "seconds_max", "failures",
]  # fmt: skip


def made(name: str, fill: str) -> tuple[Any, Any, Setting]:
    model = compiled(program(name))
    return model, wiring_of(model).wiring, setting_of(model, Question(fill))


@pytest.fixture(scope="module", params=["zero", "resample"])
def hist(request: pytest.FixtureRequest) -> tuple[Any, Any, Setting]:
    return made("hist", request.param)


def drawn(setting: Setting, count: int, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, len(setting.machine.edges), generator=generator) < share).float()


# known questions -------------------------------------------------------------------------------------------


def test_many_circuits_in_one_pass_are_each_as_alone(hist: Any) -> None:
    _, _, setting = hist
    keep = torch.cat([drawn(setting, 12, 0.8), torch.ones(1, keep_size(setting)), torch.zeros(1, keep_size(setting))])
    alone = [setting.effect(run_kept(setting, row.nonzero().flatten().tolist()).answer) for row in keep]
    # float64: sums in another order, through ramps that are 100 steep
    assert torch.allclose(changes_kept(setting, keep), torch.stack(alone), atol=1e-10)


def keep_size(setting: Setting) -> int:
    return len(setting.machine.edges)


def test_the_criterion_is_the_truths(hist: Any) -> None:
    model, wiring, setting = hist
    suffices, certificate = Sufficient(setting), truth(model, setting.question.fill)
    needed = torch.tensor([float(name in certificate.necessary) for name in wiring.edges.names])
    keep = torch.maximum(drawn(setting, 20, 0.5), needed)
    keep[10:] *= drawn(setting, 10, 0.9)
    assert suffices(keep).tolist() == [bool((row >= needed).all()) for row in keep]
    numbers = needed.nonzero().flatten().tolist()
    assert suffices.one_minimal(numbers)
    assert not suffices.one_minimal(numbers[1:]), "it does not suffice"
    assert not suffices.one_minimal(list(range(len(needed)))), "edges can be cut"
    assert "within 1e-06" in str(suffices)
    flat = given(wiring.edges, torch.zeros(len(needed)))
    assert prune(flat, suffices).names == certificate.necessary
    assert suffices.prune(flat).names == certificate.necessary


def test_pruning_on_a_few_inputs_ends_sufficient_on_all() -> None:
    """From the one input alone that the fewest edges matter to."""
    model, wiring, setting = made("count", "resample")
    suffices = Sufficient(setting)
    changes = further_cuts(setting, run_cut(setting, ()), range(len(wiring.edges)))
    suffices._rows = [int((changes > suffices.tolerance).sum(0).argmin())]
    flat = given(wiring.edges, torch.zeros(len(wiring.edges)))
    circuit = suffices.prune(flat)
    assert len(suffices._rows) > 1
    assert suffices.one_minimal(circuit.kept.nonzero().flatten().tolist())
    assert circuit.names == truth(model, "resample").necessary
    assert circuit.how["criterion"] == "output within 1e-06 of the full model's on every input"


def test_the_question_is_the_truths(hist: Any) -> None:
    """The engine and the truth's machine give one output, kept and cut; the metrics say what they are said to."""
    model, wiring, setting = hist
    n = len(wiring.edges)
    question = known_question(model, wiring, setting, "distance", batch_size=64)
    batch = question.batch(2)
    rows = [row - 1 for row in batch.pairs.rows]
    for keep in (torch.zeros(n), *drawn(setting, 3, 0.7)):
        outputs = run(wiring, batch.clean, keep, batch.fill)[:, 1:]
        expected = run_kept(setting, keep.nonzero().flatten().tolist()).answer[rows]
        assert torch.allclose(outputs, expected, atol=1e-10)  # as above
    for objective in OBJECTIVES:
        asked = known_question(model, wiring, setting, objective, batch_size=512)
        whole, metric = asked.batch(0), asked.task.metric
        full = metric(plain_answers(wiring, whole, metric), whole.pairs)
        none = metric(cut_answers(wiring, whole, torch.zeros(n), metric), whole.pairs)
        assert float((full - none).mean()) == pytest.approx(1)
        assert metric.name == objective
    assert not bool(run_method(method_named("eap"), question).any()), "the gradient of a distance at its least"
    assert bool(run_method(method_named("eap"), asked).any())


def test_questions_that_have_no_answer() -> None:
    model, wiring, setting = made("length", "resample")
    with pytest.raises(MetricError, match="the output of length is the same with nothing kept"):
        known_question(model, wiring, setting, "distance")
    with pytest.raises(VoltmeterError, match="no objective 'kl'"):
        known_question(*made("hist", "zero"), "kl")
    with pytest.raises(VoltmeterError, match=r"not that of hist with its input split[^§]*has 32 edges"):
        known_question(compiled(program("hist")), made("swap_pairs", "zero")[1], made("hist", "zero")[2], "distance")


# the bench -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")  # where the script finds what it is made of
        yield script("bench/recovery.py")


@pytest.fixture
def rows(bench: ModuleType) -> ModuleType:
    return script("bench/recovery_rows.py")


class InThisProcess:
    """Stands for the pool: the tests' hooks need not be set up again in another process."""

    def __init__(self, jobs: int) -> None:
        self.map = map

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def ask(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.setattr(bench, "ProcessPoolExecutor", InThisProcess)

    def ask(*arguments: str) -> str:
        files = ("--truths", str(tmp_path / "truths.jsonl"), "--out", str(tmp_path / "out.jsonl"))
        monkeypatch.setattr(sys, "argv", ["recovery.py", *files, *arguments])
        assert bench.main() == 0
        return capsys.readouterr().out

    return ask


def test_the_table(ask: Any, tmp_path: Path) -> None:
    common = (
        "--programs",
        "previous_token,length,cancellation",
        "--fills",
        "resample",
        "--methods",
        "exact,random,prune-only",
    )
    document = json.loads(ask(*common, "--json"))
    assert list(document) == ["rows"]
    assert [list(row) for row in document["rows"]] == [KEYS] * 3
    best, random, none = document["rows"]
    assert (best["programs"], best["unique"], best["redundant"], best["failures"]) == (3, 2, 0, [])
    assert best["exact_match_after_pruning"] == none["exact_match_after_pruning"] == 1.0
    assert (best["auroc_mean"] > 0.99, random["auroc_mean"] < 0.9, none["auroc_mean"]) == (True, True, 0.0)
    assert (best["exact_match_before_pruning"], none["exact_match_before_pruning"]) == (1.0, 0.0)
    assert [row["one_minimal_rate"] for row in document["rows"]] == [1.0] * 3
    lines = (tmp_path / "out.jsonl").read_text()
    text = ask(*common)
    assert (tmp_path / "out.jsonl").read_text() == lines, "nothing is computed twice"
    assert "resample unique 2" in text
    assert "resample empty 1" in text
    scrambled = json.loads(ask(*common, "--scramble", "--json"))["rows"][0]
    assert scrambled["auroc_mean"] < 0.9
    assert scrambled["exact_match_before_pruning"] == 0.0
    assert scrambled["exact_match_after_pruning"] == 1.0, "pruning needs no scores"


def test_which_of_several_circuits_is_found_is_told(rows: ModuleType) -> None:
    truths = [{"program": "p", "fill": "zero", "kind": "redundant", "minimal": [["a -> b"], ["c -> b", "d -> b"]]}]
    found = {"one": 1, "other": 0, "neither": None, "same": 1}
    common = {"program": "p", "fill": "zero", "sufficient": True, "one_minimal": True, "seconds": 1.0}
    lines = [{**common, "method": method, "member": member} for method, member in found.items()]
    lines.append({**common, "method": "broken", "error": "MetricError: no"})
    told = "p zero, circuits of 1, 2 edges. -: neither; 1: other; 2: one, same; failed: broken"
    assert rows.families(truths, lines) == told
    row = rows.row("one", "zero", truths, lines[:1])
    assert (row["unique"], row["redundant"], row["auroc_mean"], row["failures"]) == (0, 1, None, [])


def test_a_method_that_fails_counts_as_no_match(ask: Any, bench: ModuleType) -> None:
    told = ("--programs", "hist", "--fills", "zero", "--methods", "edge-sp-cold,eap", "--limit-seconds", "0")
    text = ask(*told)
    assert "failed: edge-sp-cold on hist, zero: _OutOfTimeError: over 0 s after 1 of 400 steps" in text
    row = json.loads(ask(*told, "--json"))["rows"][0]
    assert (row["failures"], row["auroc_mean"], row["exact_match_after_pruning"]) == (["hist"], 0.0, 0.0)
    assert (row["sufficient_rate"], row["one_minimal_rate"]) == (0.0, 0.0)


def test_a_line_that_a_kill_cut_short_is_made_again(bench: ModuleType, ask: Any, tmp_path: Path) -> None:
    common = ("--programs", "caesar_shift", "--fills", "zero", "--methods", "eap,random", "--json")
    whole = ask(*common)
    out = tmp_path / "out.jsonl"
    lines = out.read_text()
    out.write_text(lines[:-30])
    again = json.loads(ask(*common))["rows"]
    untimed = [{key: value for key, value in row.items() if "seconds" not in key} for row in again]
    first = [{key: value for key, value in row.items() if "seconds" not in key} for row in json.loads(whole)["rows"]]
    assert untimed == first
    assert len(out.read_text().splitlines()) == 2


def test_programs_of_either_half_are_alike(bench: ModuleType) -> None:
    development, report = (bench._programs("random:40", half) for half in ("development", "report"))
    assert [name.split(":")[2] for name in development] == [name.split(":")[2] for name in report]
    assert sorted(development + report) == sorted(bench._programs("random:40", "all"))
    assert len(bench._programs("compiled", "all")) > 40


def test_intervals_are_paired_over_programs(rows: ModuleType) -> None:
    lines = [
        {"method": method, "program": f"p{at}", "fill": fill, "auroc": (at % 2) + gain}
        for at in range(20)
        for fill in ("zero", "resample")
        for method, gain in (("a", 0.5), ("b", 0.2))
    ]
    assert rows.paired(lines, "a", "b", 1) == pytest.approx((0.3, 0.3, 0.3))
    lines[0]["auroc"] = 8.5
    gap, low, high = rows.paired(lines, "a", "b", 1)
    assert low < gap < high
    assert rows.paired(lines, "a", "b", 100)[2] > high, "corrected for many comparisons"
