"""Which methods recover circuits that are known: compiled models, learned scores, and exact pruning after them.

    python bench/recovery.py [--programs compiled|random:N] [--split all|development|report] [--seed S]
                             [--fills zero,resample] [--methods a,b,...] [--settings JSON] [--limit-seconds T]
                             [--scramble] [--jobs J] [--truths FILE.jsonl] [--out FILE.jsonl] [--json]

The protocol is docs/methods.md. A program's truth under a fill is one of

    unique      one minimal circuit: every sufficient circuit holds it. Scores are judged against it
    redundant   several minimal circuits: which of them comes out is counted, scores are not judged
    empty       nothing kept suffices: counted apart
    undecided   the search for circuits stopped, or there is no certificate: counted apart

Random program i has seed i; sizes 2, 4, 8, 12 in turn by i // 2, so that even programs (``development``) and odd ones
(``report``) are alike. ``--seed`` is that of the pairing of inputs and of the methods. ``--settings`` is a JSON object,
method -> settings, over those in ``SETTINGS``. ``--scramble`` shuffles every method's scores: a control that must fail.
Seconds are processor seconds of one thread, scoring and pruning together; a method that is over ``--limit-seconds``, or
raises, has failed on that program: it counts as no match and as 0.

``--truths`` keeps truths, ``--out`` results, a line each; what a file holds is not computed again.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from recovery_rows import Line, page, row

from voltmeter.discover import METHODS, method_named
from voltmeter.discover.discretise import given, top_k
from voltmeter.discover.known import Sufficient, known_question
from voltmeter.discover.measures import auroc, average_precision, match
from voltmeter.discover.method import Method, State, run_method
from voltmeter.errors import VoltmeterError
from voltmeter.rasp.generate import generate
from voltmeter.rasp.programs import compiled, program, programs
from voltmeter.rasp.setting import Question, setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.wired import wiring_of
from voltmeter.wiring.load import digest_of

SIZES = (2, 4, 8, 12)
SETTINGS: dict[str, dict[str, Any]] = {
    "acdc": {"objective": "metric", "n_pairs": 0, "thresholds": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]},
    "edge-sp": {"objective": "metric", "warm_start": "exact", "n_steps": 60},
    "edge-sp-cold": {"objective": "metric"},
    "node-sp": {"objective": "metric"},
    "edge-pruning": {"objective": "metric"},
    "ugs": {"objective": "metric"},
}
"""What differs from a method's own defaults; chosen on development programs."""

UNDER_OTHER_NAMES = {"edge-sp-cold": "edge-sp"}  # the same method with other settings
NAMES = (*METHODS, *UNDER_OTHER_NAMES)
LEARNED = ("edge-sp", "edge-sp-cold", "node-sp", "edge-pruning", "ugs")
GRADIENT = ("eap", "eap-ig-inputs", "eap-ig-activations", "atp*", "relp", "hisp")  # they look at the projection
BATCH = {"edge-sp": 16, **dict.fromkeys(LEARNED[1:], 32)}  # inputs in a step
WHOLE_BATCH = 128  # of the other methods, which look at all inputs


class _OutOfTimeError(Exception):
    """A method took longer than it may."""


# one program ----------------------------------------------------------------------------------------------------


class Known:
    """A program compiled, with what every method and fill needs of it. Made when first asked for."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed

    @cached_property
    def compiled(self) -> Any:
        if not self.name.startswith("random:"):
            return compiled(program(self.name))
        _, seed, size = self.name.split(":")
        return compiled(generate(int(seed), int(size)))

    @cached_property
    def wiring(self) -> Any:
        return wiring_of(self.compiled).wiring

    def truth(self, fill: str) -> Line:
        """The truth as a line of its file."""
        it = truth(self.compiled, fill, seed=self.seed)
        circuits = sorted(map(list, it.minimal), key=lambda circuit: (len(circuit), circuit))
        kind = "undecided"
        if it.certified and it.minimal_is_complete:
            kind = "redundant" if len(circuits) > 1 else "unique" if circuits[0] else "empty"
        return {
            "program": self.name, "fill": fill, "seed": self.seed, "kind": kind, "edges": len(it.effects),
            "minimal": circuits, "model": it.model, "seconds": round(it.seconds, 3),
        }  # fmt: skip


def try_program(name: str, seed: int, wanted: list[tuple[str, str]], truths: list[Line], asked: Line) -> list[Line]:
    """The truths that are lacking and the results that are ``wanted``, (fill, method) each, on one program."""
    torch.set_num_threads(1)
    known, made = Known(name, seed), []
    at_hand = {line["fill"]: line for line in truths}
    model = digest_of(known.compiled.model)
    if any(line["model"] != model for line in truths):
        raise ValueError(f"the file of truths is of another {name} than what is compiled now: give a new --truths")
    for fill in dict.fromkeys(fill for fill, _ in wanted):
        if fill not in at_hand:
            at_hand[fill] = known.truth(fill)
            made.append(at_hand[fill])
        if at_hand[fill]["kind"] in ("unique", "redundant"):
            setting = setting_of(known.compiled, Question(fill, seed=seed))
            suffices = Sufficient(setting)
            methods = [method for its, method in wanted if its == fill]
            made += [_recover(known, setting, suffices, at_hand[fill], method, asked) for method in methods]
    return made


def _recover(known: Known, setting: Any, suffices: Sufficient, told: Line, name: str, asked: Line) -> Line:
    """One method on one program under one fill."""
    line = {"program": known.name, "fill": told["fill"], "method": name, "seed": known.seed, **asked_of(name, asked)}
    started = time.process_time()
    try:
        values = _values(known, setting, name, asked)
    except (VoltmeterError, _OutOfTimeError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return {**line, "error": reason, "seconds": round(time.process_time() - started, 3)}
    if asked["scramble"]:
        values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(known.seed))]
    scored = time.process_time() - started
    scores = given(known.wiring.edges, values)
    circuit = suffices.prune(scores)
    seconds = time.process_time() - started
    kept = circuit.kept.nonzero().flatten().tolist()
    line |= {
        "sufficient": suffices.alone(kept), "one_minimal": suffices.one_minimal(kept), "size": len(kept),
        "prefix": circuit.how["prefix"], "judged": circuit.how["judged"],
        "scoring": round(scored, 3), "seconds": round(seconds, 3),
    }  # fmt: skip
    if told["kind"] == "redundant":
        members = [set(circuit.names) == set(each) for each in told["minimal"]]
        return {**line, "member": members.index(True) if any(members) else None}
    unique = told["minimal"][0]
    # Sufficient circuits hold the unique one: it is the smallest sufficient prefix just where as many edges are it.
    prefix = top_k(scores, len(unique))
    return {
        **line,
        "before": match(prefix, unique).exact and prefix.how["ties_at_border"] == 0,
        "after": match(circuit, unique).exact,
        "auroc": auroc(scores, unique),
        "average_precision": average_precision(scores, unique),
    }


def _values(known: Known, setting: Any, name: str, asked: Line) -> torch.Tensor:
    objective = "projection" if name in GRADIENT else "distance"
    question = known_question(
        known.compiled, known.wiring, setting, objective, known.seed, BATCH.get(name, WHOLE_BATCH)
    )
    started, limit = time.process_time(), asked["limit_seconds"]

    def watch(step: int, steps: int, state: State) -> None:
        if limit is not None and time.process_time() - started > limit:
            raise _OutOfTimeError(f"over {limit:g} s after {step} of {steps} steps")

    return run_method(method_of(name, asked), question, watch)


def method_of(name: str, asked: Line) -> Method:
    """A method of the table with its settings."""
    made = {**SETTINGS.get(name, {}), **asked["settings"].get(name, {})}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in made.items()}
    return method_named(UNDER_OTHER_NAMES.get(name, name), values)


def asked_of(name: str, asked: Line) -> Line:
    """What else a result depends on. ``settings`` spell out the defaults, which may change."""
    limits = {key: asked[key] for key in ("scramble", "limit_seconds")}
    batch = BATCH.get(name, WHOLE_BATCH)
    return json.loads(json.dumps({"settings": method_of(name, asked).settings(), "batch": batch, **limits}))


# the files, and the run -----------------------------------------------------------------------------------------


def main() -> int:
    asked = _arguments()
    names, fills, methods = _programs(asked.programs, asked.split), asked.fills.split(","), asked.methods.split(",")
    question = {name: getattr(asked, name) for name in ("settings", "scramble", "limit_seconds")}
    truths = _told(asked.truths, names, fills, asked.seed)
    lines = _done(asked.out, names, fills, methods, asked.seed, question)
    _run(names, fills, methods, truths, lines, question, asked)
    told = [truths[name, fill] for name in names for fill in fills]
    found = list(lines.values())
    rows = [
        row(
            method,
            fill,
            [truth for truth in told if truth["fill"] == fill],
            [line for line in found if (line["method"], line["fill"]) == (method, fill)],
        )
        for fill in fills
        for method in methods
    ]
    print(json.dumps({"rows": rows}) if asked.json else page(rows, told, found, methods))
    return 0


def _run(
    names: Sequence[str], fills: Sequence[str], methods: Sequence[str],
    truths: dict[Any, Line], lines: dict[Any, Line], question: Line, asked: argparse.Namespace,
) -> None:  # fmt: skip
    """Do what is lacking, program by program; whatever comes is written at once."""
    unjudged = {key for key, truth in truths.items() if truth["kind"] in ("empty", "undecided")}
    waiting = {}
    for name in names:
        pairs = [(fill, method) for fill in fills for method in methods if (name, fill) not in unjudged]
        wanted = [(fill, method) for fill, method in pairs if (name, fill, method) not in lines]
        if wanted:
            waiting[name] = wanted
    started = time.perf_counter()
    with ProcessPoolExecutor(asked.jobs) as pool:
        tasks = (
            (name, asked.seed, wanted, [truths[name, fill] for fill in fills if (name, fill) in truths], question)
            for name, wanted in waiting.items()
        )
        for count, made in enumerate(pool.map(try_program, *zip(*tasks, strict=True)) if waiting else (), 1):
            for line in made:
                is_truth = "kind" in line
                key = (line["program"], line["fill"]) if is_truth else (line["program"], line["fill"], line["method"])
                (truths if is_truth else lines)[key] = line
                _append(asked.truths if is_truth else asked.out, line)
            left = (time.perf_counter() - started) / count * (len(waiting) - count)
            print(f"{count} of {len(waiting)} programs, about {left:.0f} s left", file=sys.stderr, flush=True)


def _told(path: Path | None, names: Iterable[str], fills: Sequence[str], seed: int) -> dict[Any, Line]:
    """The truths that a file holds."""
    wanted = set(names)
    return {
        (line["program"], line["fill"]): line
        for line in _before(path)
        if line["program"] in wanted and line["fill"] in fills and line["seed"] == seed
    }


def _done(
    path: Path | None, names: Iterable[str], fills: Sequence[str], methods: Sequence[str], seed: int, question: Line
) -> dict[Any, Line]:
    """The results that a file holds, of what is asked now."""
    expected = {method: asked_of(method, question) for method in methods}
    wanted, found = set(names), {}
    for line in _before(path):
        name, fill, method = line["program"], line["fill"], line["method"]
        is_asked = name in wanted and fill in fills and method in expected and line["seed"] == seed
        if is_asked and all(line[key] == value for key, value in expected[method].items()):
            found[name, fill, method] = line
    return found


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


def _programs(text: str, split: str) -> list[str]:
    if text == "compiled":
        return [each.name for each in programs()]
    if not text.startswith("random:") or not text[7:].isdigit():
        return text.split(",")
    parity = {"all": (0, 1), "development": (0,), "report": (1,)}[split]
    return [f"random:{seed}:{SIZES[seed // 2 % 4]}" for seed in range(int(text[7:])) if seed % 2 in parity]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", default="compiled", help="compiled, random:N, or names with commas between")
    parser.add_argument("--split", default="all", choices=("all", "development", "report"), help="of random programs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fills", default="zero,resample")
    parser.add_argument("--methods", default=",".join(NAMES))
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--limit-seconds", type=float)
    parser.add_argument("--scramble", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--truths", type=Path, help="a line of JSON per truth; what it holds is not computed again")
    parser.add_argument("--out", type=Path, help="a line of JSON per result; what it holds is not computed again")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    unknown = [name for name in asked.methods.split(",") if name not in NAMES]
    if unknown:
        parser.error(f"no methods called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
