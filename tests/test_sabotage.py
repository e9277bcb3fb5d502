"""``bench/sabotage.py``: three plants from end to end, its counting on rows made up here, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, script


@pytest.fixture(scope="module")
def sabotage() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield script("bench/sabotage.py")


def about(sound: bool = False, wrong: tuple[str, ...] = (), excused: tuple[str, ...] = (), **other: Any) -> Any:
    return {"plant": "one", "place": "known", "sound": sound, "wrong": wrong, "excused": excused, **other}


def line(check: str, verdict: str, **other: Any) -> dict[str, Any]:
    return {"check": check, "verdict": verdict, "says": f"of {check}", **other}


@pytest.mark.parametrize(
    ("verdicts", "outcome", "caught_by", "also"),
    [
        ({"minimal": "fails", "faithful": "fails"}, "caught", ["minimal"], ["faithful"]),
        ({"minimal": "holds", "faithful": "fails"}, "by another", [], ["faithful"]),
        ({"minimal": "cannot tell", "faithful": "holds"}, "missed", [], []),
        ({"minimal": "refused", "faithful": "refused"}, "refused", [], []),
    ],
)
def test_what_becomes_of_a_fault(
    sabotage: ModuleType, verdicts: dict[str, str], outcome: str, caught_by: list[str], also: list[str]
) -> None:
    fault = sabotage.outcome(about(wrong=("minimal",)), [line(*each) for each in verdicts.items()])
    assert (fault["outcome"], fault["caught_by"], fault["also"]) == (outcome, caught_by, also)
    assert fault["says_of"] == {"minimal": f"{verdicts['minimal']}: of minimal"}


def test_an_alarm_is_false_unless_it_was_excused_or_shows_a_needed_edge(sabotage: ModuleType) -> None:
    lines = [
        line("faithful", "fails"),
        line("minimal", "holds"),
        line("not-trivial", "fails"),
        line("positions", "fails", hides_kept=True),
        line("necessary", "refused"),
    ]
    found = sabotage.alarms(about(sound=True, excused=("not-trivial",)), lines)
    assert found["false"] == ["faithful", "necessary"]
    assert found["true"] == ["not-trivial", "positions"]
    lines[3]["hides_kept"] = False  # what is hidden is not needed
    assert sabotage.alarms(about(sound=True), lines)["false"] == ["faithful", "not-trivial", "positions", "necessary"]


def test_totals_and_the_figures_of_a_check(sabotage: ModuleType) -> None:
    document = sabotage.counted(
        [
            (about(wrong=("minimal", "faithful")), [line("minimal", "fails"), line("faithful", "holds")]),
            (about(wrong=("minimal",), place="blind"), [line("minimal", "holds"), line("faithful", "fails")]),
            (about(sound=True), [line("minimal", "fails"), line("faithful", "holds")]),
        ]
    )
    totals = {each["place"]: each for each in document["totals"]}
    assert {name: totals["known"][name] for name in ("faults", "caught", "missed")} == {
        "faults": 1,
        "caught": 1,
        "missed": 0,
    }
    assert (totals["blind"]["caught"], totals["blind"]["by another"], totals["all"]["faults"]) == (0, 1, 2)
    of = {each["check"]: each for each in document["checks"]}
    counts = ("named", "caught", "also", "sound", "false_alarms", "true_of_sound")
    assert [of["minimal"][name] for name in counts] == [2, 1, 0, 1, 1, 0]
    assert [of["faithful"][name] for name in counts] == [1, 0, 1, 1, 0, 0]
    assert "by another" in sabotage.page(document)


@pytest.fixture
def three(sabotage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Two faults and a sound circuit, of three places."""
    known, blind = sabotage.planted_known, sabotage.planted_blind
    faults: list[Callable[[], Any]] = [lambda: known.spare_edge("pattern", "zero")]
    monkeypatch.setattr(known, "FAULTS", faults)
    monkeypatch.setattr(known, "SOUND", [lambda: known.certified("hist", "zero")])
    monkeypatch.setattr(blind, "FAULTS", [blind.one_operand_missing])
    monkeypatch.setattr(blind, "SOUND", [])
    return sabotage


def test_three_plants_from_end_to_end(three: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    asked = ["--only", "known,blind", "--checks", "faithful,minimal", "--out", str(out), "--json"]
    assert three.main(asked) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(each["plant"], each["outcome"]) for each in document["faults"]] == [
        ("spare_edge:pattern:zero", "caught"),
        ("one_operand_missing", "caught"),
    ]
    assert document["sound"][0]["false"] == []
    assert document["sound"][0]["plant"] == "certified:hist:zero"
    lines = out.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6  # two checks of three plants
    changed = json.loads(lines[0]) | {"verdict": "fails"}
    out.write_bytes((json.dumps(changed) + "\n").encode() + b"".join(lines[1:-1]) + b'{"cut off')
    assert three.main(asked) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["faults"][0]["also"] == ["faithful"]  # from the file: nothing but the last line was made again
    assert out.read_bytes().splitlines()[1:] == [line.strip() for line in lines[1:]]


def test_names_that_there_are_not(three: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        three.main(["--checks", "fathful"])
    assert "no checks called fathful" in capsys.readouterr().err
    assert three.main(["--only", "nobody", "--checks", "faithful"]) == 2
    assert "no plants called nobody" in capsys.readouterr().err


def test_plants_of_the_tests_are_taken_as_they_are(sabotage: ModuleType) -> None:
    planted = sabotage.of_tests().PLANTED
    found = {plant.name: (is_sound, plant) for _, is_sound, plant in sabotage.plants(["tests"])}
    assert set(found) == set(planted)
    for name, (is_sound, plant) in found.items():
        assert set(plant.wrong) == planted[name]().faults
        assert is_sound == (not plant.wrong)


def test_there_are_as_many_as_the_bench_promises(sabotage: ModuleType) -> None:
    known, blind, own = sabotage.planted_known, sabotage.planted_blind, sabotage.of_tests().PLANTED
    faults = sum(bool(build().faults) for build in own.values())
    assert len(known.FAULTS) >= 25
    assert faults + len(known.FAULTS) + len(blind.FAULTS) >= 60
    assert 3 * len(blind.FAULTS) >= faults + len(known.FAULTS)  # a third by fresh eyes
    assert len(known.SOUND) + len(blind.SOUND) >= 60


def test_what_is_told_by_one_token_is_found_by_hand(sabotage: ModuleType) -> None:
    told = sabotage.planted_known.is_told_by_one_token
    model = sabotage.planted_known.model_of
    assert told(model("reverse")[0])
    assert not told(model("hist")[0])
