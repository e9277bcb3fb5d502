"""Does the battery catch what is wrong, and leave alone what is right? Planted faults and sound circuits.

    python bench/sabotage.py [--only a,b,...] [--checks a,b,...] [--all] [--seed S] [--out FILE.jsonl] [--json]

Plants come from three places:

    tests     tests/planted.py, which the checks' own tests stand on
    known     planted_known.py: certified circuits of compiled programs, and the demo model's, damaged or not
    blind     planted_blind.py: by someone who knew what the checks ask, and had not seen how they answer

Every fault names the checks that ought to fail. It is *caught* where one of these says "fails"; *by another* where only
checks do that were not named; *refused* where the question itself was an error (the metric never changes, say); else
*missed*. Of a sound circuit, "fails" is a false alarm of that check; unless the check is ``excused``, because it says
something that is true of that sound circuit: counted apart.

The checks that take long (``DEAR``) are made where they are named; ``--all`` makes every check of every plant.
``--only`` takes names of plants or of places. ``--out`` keeps a line for each plant and check; what it holds is not
done again.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import planted_blind
import planted_known
import torch
from planted_blind import Plant

from voltmeter.check import check, checks
from voltmeter.check.check import circuit_digest
from voltmeter.check.finding import FAILS, Finding
from voltmeter.errors import VoltmeterError

Line = dict[str, Any]
Placed = tuple[str, bool, Plant]  # from where, whether it is sound, and the plant

TESTS = Path(__file__).resolve().parents[1] / "tests"
PLACES = ("tests", "known", "blind")
DEAR = ("hypotheses", "not-over-optimised", "better-than-chance", "stable")
REFUSED = "refused"

TRUE_OF_SOUND = {
    "complete": "circuit and model part when more is cut: what they then do was measured, and is what it is",
    "hypotheses": "what is left without the circuit does still depend on what the model does",
    "positions": "a needed edge comes to nothing when positions are merged: it speaks of methods, not of the circuit",
    "same-under-other-fills": "a certificate is of one fill",
    "not-trivial": "one token fixes the output",
    "identifiable": "a kept edge carries the same in both runs of these pairs",
}
"""Why a check that fails a sound circuit may be right: of those that a plant excuses."""


# Plants -----------------------------------------------------------------------------------------------------------


def of_tests() -> ModuleType:
    """tests/planted.py."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module("planted")


def plants(only: Sequence[str] = ()) -> Iterator[Placed]:
    """Faults, then sound ones, place by place; built one after the other. ``only``: places, or names of plants."""
    places = [place for place in PLACES if place in only]
    for place in places if places and len(places) == len(only) else PLACES:
        for is_sound, plant in _of_place(place):
            if not only or place in only or plant.name in only:
                yield place, is_sound, plant


def _of_place(place: str) -> Iterator[tuple[bool, Plant]]:
    if place == "tests":
        every = [_converted(build()) for build in of_tests().PLANTED.values()]
        yield from sorted(((not plant.wrong, plant) for plant in every), key=lambda each: each[0])
        return
    module = planted_known if place == "known" else planted_blind
    yield from ((False, build()) for build in module.FAULTS)
    yield from ((True, build()) for build in module.SOUND)


def _converted(planted: Any) -> Plant:
    """A plant of the tests: all checks that it says must fail, any of which is a catch here."""
    wrong = tuple(each.name for each in checks() if each.name in planted.faults)
    return Plant(planted.name, planted.why, planted.wiring, planted.task, planted.circuit, planted.fill, wrong)


# What the battery says of them ------------------------------------------------------------------------------------


def wanted(plant: Plant, asked: argparse.Namespace) -> list[str]:
    """The checks to make."""
    names = [each.name for each in checks()]
    if asked.checks:
        return [name for name in names if name in asked.checks]
    return [name for name in names if asked.all or name not in DEAR or name in plant.wrong]


def said(plant: Plant, names: Sequence[str], seed: int) -> Iterator[Line]:
    """A line for each of the checks. A question that cannot be asked is refused by all of them."""
    if not names:
        return
    try:
        found = check(plant.circuit, plant.task, wiring=plant.wiring, fill=plant.fill, only=names, seed=seed)
    except VoltmeterError as error:
        yield from ({"check": name, "verdict": REFUSED, "says": str(error).splitlines()[0]} for name in names)
        return
    for each in found:
        yield {"check": each.check, "verdict": each.verdict, "figure": each.figure, "says": each.says, **_true(each)}


def _true(found: Finding) -> Line:
    """Of ``positions``: whether an edge of the circuit is among those it says merging hides."""
    if found.check != "positions":
        return {}
    return {"hides_kept": any(row["hidden"] and row["kept"] for row in found.details)}


def run(asked: argparse.Namespace, old: Sequence[Line] = (), keep: Callable[[Line], None] = lambda line: None) -> Any:
    """(what each plant is, its lines): from ``old``, or made now and given to ``keep`` at once."""
    for place, is_sound, plant in plants(asked.only):
        about = {"plant": plant.name, "place": place, "sound": is_sound, "circuit": circuit_digest(plant.circuit)}
        key = {**about, "seed": asked.seed}
        names = wanted(plant, asked)
        lines = {line["check"]: line for line in old if line["check"] in names and line.items() >= key.items()}
        started = time.process_time()
        for line in said(plant, [name for name in names if name not in lines], asked.seed):
            lines[line["check"]] = {**key, **line}
            keep(lines[line["check"]])
        took = time.process_time() - started
        print(f"{place} {plant.name}: {took:.1f} s", file=sys.stderr, flush=True)
        yield {**about, "says": plant.says, "wrong": plant.wrong, "excused": plant.excused}, list(lines.values())


# Counting ---------------------------------------------------------------------------------------------------------


def outcome(about: Line, lines: Sequence[Line]) -> Line:
    """Of a fault: which checks caught it, named or not."""
    failing = [line["check"] for line in lines if line["verdict"] == FAILS]
    named = [name for name in failing if name in about["wrong"]]
    others = [name for name in failing if name not in about["wrong"]]
    refused = any(line["verdict"] == REFUSED for line in lines)
    came = "caught" if named else "by another" if others else "refused" if refused else "missed"
    return {**about, "outcome": came, "caught_by": named, "also": others, "says_of": _sentences(about["wrong"], lines)}


def _sentences(names: Iterable[str], lines: Sequence[Line]) -> Line:
    """What the named checks said: verdict and sentence."""
    return {line["check"]: f"{line['verdict']}: {line['says']}" for line in lines if line["check"] in names}


def alarms(about: Line, lines: Sequence[Line]) -> Line:
    """Of a sound circuit: which checks fail it wrongly, and which rightly."""
    failing = [line for line in lines if line["verdict"] in (FAILS, REFUSED)]
    true = [line["check"] for line in failing if is_true(about, line)]
    false = [line["check"] for line in failing if not is_true(about, line)]
    names = [line["check"] for line in failing]
    return {**about, "false": false, "true": true, "says_of": _sentences(names, lines)}


def is_true(about: Line, line: Line) -> bool:
    """Whether a check that fails a sound circuit says something that is true of it."""
    name = line["check"]
    if line["verdict"] == REFUSED:
        return False
    if name == "positions":
        return bool(line["hides_kept"])
    return name in about["excused"] or name == "complete"


def counted(found: Sequence[tuple[Line, Sequence[Line]]]) -> Line:
    """What ``--json`` prints."""
    faults = [outcome(about, lines) for about, lines in found if not about["sound"]]
    sound = [alarms(about, lines) for about, lines in found if about["sound"]]
    made = [line["check"] for about, lines in found if about["sound"] for line in lines]
    return {
        "faults": faults,
        "totals": [_total(place, faults) for place in (*PLACES, "all")],
        "sound": sound,
        "checks": [_of_check(each.name, faults, sound, made) for each in checks()],
    }


def _total(place: str, faults: Sequence[Line]) -> Line:
    mine = [fault["outcome"] for fault in faults if place in (fault["place"], "all")]
    kinds = {kind: mine.count(kind) for kind in ("caught", "by another", "refused", "missed")}
    return {"place": place, "faults": len(mine), **kinds}


def _of_check(name: str, faults: Sequence[Line], sound: Sequence[Line], made: Sequence[str]) -> Line:
    """Of one check: how often it was named, and caught; on how many sound circuits it was made, and failed."""
    return {
        "check": name,
        "named": sum(name in fault["wrong"] for fault in faults),
        "caught": sum(name in fault["caught_by"] for fault in faults),
        "also": sum(name in fault["also"] for fault in faults),
        "sound": made.count(name),
        "false_alarms": sum(name in each["false"] for each in sound),
        "true_of_sound": sum(name in each["true"] for each in sound),
    }


# For people -------------------------------------------------------------------------------------------------------


def page(document: Line) -> str:
    faults, sound = document["faults"], document["sound"]
    parts = [f"{'fault':44} {'from':6} {'outcome':11} caught by (also failing)"]
    for each in faults:
        also = f" ({', '.join(each['also'])})" if each["also"] else ""
        by = ", ".join(each["caught_by"]) or f"- of {', '.join(each['wrong'])}"
        parts.append(f"{each['plant']:44} {each['place']:6} {each['outcome']:11} {by}{also}")
    kinds = ("faults", "caught", "by another", "refused", "missed")
    parts += ["", f"{'from':8}" + "".join(f"{kind:>12}" for kind in kinds)]
    for each in document["totals"]:
        parts.append(f"{each['place']:8}" + "".join(f"{each[kind]:>12}" for kind in kinds))
    heads = f"{'named':>8}{'caught':>8}{'also':>8}{'sound':>8}{'false alarms':>14}{'true of sound':>15}"
    parts += ["", f"{len(sound)} sound circuits", f"{'check':24}{heads}"]
    for each in document["checks"]:
        figures = f"{each['named']:>8}{each['caught']:>8}{each['also']:>8}{each['sound']:>8}"
        parts.append(f"{each['check']:24}{figures}{each['false_alarms']:>14}{each['true_of_sound']:>15}")
    parts += ["", *_told("not caught by a check that was named", _uncaught(faults))]
    parts += _told("false alarms", [(each, name) for each in sound for name in each["false"]])
    parts += _told("fails, and true of a sound circuit", [(each, name) for each in sound for name in each["true"]])
    return "\n".join(parts)


def _uncaught(faults: Sequence[Line]) -> list[tuple[Line, str]]:
    return [(each, name) for each in faults if each["outcome"] != "caught" for name in each["says_of"]]


def _told(head: str, rows: Sequence[tuple[Line, str]]) -> list[str]:
    return [f"{head}:", *(f"  {each['plant']}: {name} {each['says_of'][name]}" for each, name in rows), ""]


# The file, and the run --------------------------------------------------------------------------------------------


def _before(path: Path | None) -> list[Line]:
    """The lines of a file; what a kill left behind its last whole line is taken off it."""
    if path is None or not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _append(path: Path | None, line: Line) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"names of plants, or of {', '.join(PLACES)}")
    parser.add_argument("--checks", default="", help="these checks, and no others")
    parser.add_argument("--all", action="store_true", help="every check of every plant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(given)
    for name in ("only", "checks"):
        setattr(asked, name, tuple(word for word in getattr(asked, name).split(",") if word))
    if unknown := [name for name in asked.checks if name not in [each.name for each in checks()]]:
        parser.error(f"no checks called {', '.join(unknown)}; there are {', '.join(each.name for each in checks())}")
    return asked


def main(given: Sequence[str] | None = None) -> int:
    asked = arguments(given)
    torch.set_num_threads(1)
    found = list(run(asked, _before(asked.out), lambda line: _append(asked.out, line)))
    document = counted(found)
    missing = [name for name in asked.only if name not in PLACES and name not in [about["plant"] for about, _ in found]]
    if missing:
        print(f"no plants called {', '.join(missing)}", file=sys.stderr)
        return 2
    print(json.dumps(document) if asked.json else page(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
