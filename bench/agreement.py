"""Does good on compiled mean good on trained? Every method on programs, from compiled to trained, and on real tasks.

    python bench/agreement.py [--programs N|a,b,...] [--tasks a,b,...] [--kinds a,b,...] [--methods a,b,...]
                              [--seed S] [--fill resample] [--assets DIR] [--cache DIR] [--limit-seconds T]
                              [--out FILE.jsonl] [--json]

Kinds of model, and what methods are asked about them (agreement_models.py):

    compiled          the program's transformer as compiled
    noised            with as much noise on every weight as leaves 99% of its answers what they are
    rotated           in random bases
    compressed        in a stream too narrow for its features, if 99% of the answers bear it; else the narrowest that
                      loses nothing
    aligned           trained to imitate it, outputs and interchanges: the program's circuit by training
    imitated          trained to imitate its outputs alone: whatever circuit training finds
    trained-output    ordinary trained models; asked, with the same settings, for their output, as all of the above
    trained-task      the same models and pairs as they are usually asked: the task's metric, each method's defaults
    stories-task      stories260K on three tasks, likewise (stories-output: asked for its output)

Printed: each method's figures on each kind (agreement_rows.py); Spearman's rho and Kendall's tau-b of methods between
every two kinds, with 95% intervals over programs and tasks, and on the diagonal between random halves of one kind's
models (agreement_ranks.py); and how well the truth-free figures agree with AUROC where the truth is known.

``--out`` keeps a line for each kind, model and method; what it holds is not computed again. ``--cache`` keeps trained
imitations. A method that raises or is over ``--limit-seconds`` of processor time has its worst figures there.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from agreement_models import KINDS, PROGRAMS, STORIES, TRAINED, Subject, Workshop, chosen_method, trained
from agreement_rows import against_truth, complete, correlations, figures, page, rows
from recovery import NAMES

from voltmeter.circuit.scores import Scores
from voltmeter.discover.discretise import given
from voltmeter.discover.measures import auroc
from voltmeter.discover.method import Method, State, run_method
from voltmeter.errors import VoltmeterError

Line = dict[str, Any]

METHODS = (
    "exact", "eap", "eap-ig-inputs", "hisp", "relp", "atp*", "edge-sp", "edge-sp-cold", "edge-pruning", "ugs",
    "magnitude", "random",
)  # fmt: skip
ASIDE = Path(__file__).resolve().parents[2] / "shared" / "assets"
DEFAULT_KINDS = tuple(kind for kind in KINDS if kind != "stories-output")


class _OutOfTimeError(Exception):
    """A method took longer than it may."""


# One model --------------------------------------------------------------------------------------------------------


def measured(subject: Subject, name: str, method: Method, limit: float, seed: int) -> Line:
    """One method on one model: its figures and the processor seconds it took to score, or why it has none."""
    started = time.process_time()

    def watch(step: int, steps: int, state: State) -> None:
        if time.process_time() - started > limit:
            raise _OutOfTimeError(f"over {limit:g} s after {step} of {steps} steps")

    try:
        values = run_method(method, subject.questions(name), watch)
    except (VoltmeterError, _OutOfTimeError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return {"error": reason, "seconds": time.process_time() - started}
    line = {"seconds": time.process_time() - started}
    line |= figures(values, lambda keep: subject.judge.measure(keep).normalised, seed)
    if subject.truth is not None:
        scores = given(subject.wiring.edges, values)
        line |= {"auroc": auroc(scores, subject.truth), "auroc_even": evenly(scores, subject.truth)}
    return line


def evenly(scores: Scores, truth: Sequence[str]) -> float:
    """AUROC with ties counted half, as where they are drawn."""
    others = [edge for edge in scores.edges if edge not in truth]
    return (auroc(scores, truth) + 1 - auroc(scores, others)) / 2


def built(kind: str, unit: str, asked: argparse.Namespace) -> Subject:
    """The model. Imitations that ``--cache`` holds are read from there."""
    if KINDS[kind].family == "programs":
        return Workshop(unit, asked.fill, asked.seed, asked.cache).subject(kind)
    return trained(unit, KINDS[kind].question, asked.fill, asked.seed, asked.assets)


# All of them ------------------------------------------------------------------------------------------------------


def wanted(asked: argparse.Namespace) -> Iterator[tuple[str, str, list[str]]]:
    """Kind, unit and methods, unit by unit: what is there when it is stopped is whole for the first units."""
    units = {"programs": asked.programs, "tasks": asked.tasks, "stories": STORIES}
    for family, its in units.items():
        for unit in its:
            for kind in asked.kinds:
                if KINDS[kind].family == family:
                    question = KINDS[kind].question
                    yield kind, unit, [name for name in asked.methods if chosen_method(name, question) is not None]


def key(kind: str, unit: str, name: str | None, asked: argparse.Namespace) -> Line:
    """What a line is of; equal keys mean equal results. No name: the line about the model itself."""
    line = {"kind": kind, "unit": unit, "seed": asked.seed, "fill": asked.fill}
    if name is None:
        return {**line, "about": True}
    method = chosen_method(name, KINDS[kind].question)
    assert method is not None
    settings = json.loads(json.dumps(method.settings()))
    return {**line, "method": name, "settings": settings, "limit_seconds": asked.limit_seconds}


def run(asked: argparse.Namespace) -> list[Line]:
    """Every line that is asked for: from the file, or measured and written there at once."""
    lines, todo = [], list(wanted(asked))
    old = _before(asked.out)
    for count, (kind, unit, methods) in enumerate(todo, 1):
        keys = [key(kind, unit, None, asked), *(key(kind, unit, name, asked) for name in methods)]
        found = [next((line for line in old if line.items() >= each.items()), None) for each in keys]
        lines += [line for line in found if line is not None]
        if None not in found:
            continue
        started = time.process_time()
        subject = built(kind, unit, asked)
        subject.about["seconds"] = time.process_time() - started
        for each, line in zip(keys, found, strict=True):
            if line is None:
                lines.append(_line(each, subject, asked))
                _append(asked.out, lines[-1])
        took = time.process_time() - started
        print(f"{count} of {len(todo)}: {kind} {unit}, {took:.0f} s", file=sys.stderr, flush=True)
    return lines


def _line(each: Line, subject: Subject, asked: argparse.Namespace) -> Line:
    if "about" in each:
        return {**each, **subject.about}
    method = chosen_method(each["method"], KINDS[each["kind"]].question)
    assert method is not None
    started = time.process_time()
    line = {**each, **measured(subject, each["method"], method, asked.limit_seconds, asked.seed)}
    return {**line, "seconds_in_all": time.process_time() - started}


def document_of(lines: Sequence[Line], kinds: Sequence[str], methods: Sequence[str]) -> Line:
    """What ``--json`` prints."""
    families = {kind: KINDS[kind].family for kind in kinds}
    whole, left_out = complete(lines, methods)
    return {
        "kinds": [_kind(kind, whole) for kind in kinds if any(line["kind"] == kind for line in whole)],
        "rows": rows(whole, families, methods),
        "correlations": correlations(whole, families, methods),
        "truth": against_truth(whole, families, methods),
        "failures": [f"{_['method']} on {_['kind']} {_['unit']}: {_['error']}" for _ in whole if "error" in _],
        "left_out": left_out,
    }


def _kind(kind: str, lines: Sequence[Line]) -> Line:
    """What the models of a kind are like."""
    mine = [line for line in lines if line["kind"] == kind]
    about = [line for line in mine if "about" in line]
    edges = [line["edges"] for line in about]

    def average(name: str) -> float | None:
        return mean(line[name] for line in about) if about and name in about[0] else None

    seconds = sum(line["seconds"] for line in about) + sum(line.get("seconds_in_all", 0) for line in mine)
    return {
        "kind": kind, "models": len(about), "units": [line["unit"] for line in about],
        "edges": [min(edges), max(edges)], "agreement": average("agreement"), "truth_f": average("truth_f"),
        "seconds": seconds,
    }  # fmt: skip


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


def arguments(given_: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", default="6", help=f"how many of {', '.join(PROGRAMS)}; or names of programs")
    parser.add_argument("--tasks", default=",".join(TRAINED), help="trained models of bench/one_roof.py")
    parser.add_argument("--kinds", default=",".join(DEFAULT_KINDS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fill", default="resample")
    parser.add_argument("--assets", type=Path, default=ASIDE)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--limit-seconds", type=float, default=180.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(given_)
    asked.programs = PROGRAMS[: int(asked.programs)] if asked.programs.isdigit() else tuple(asked.programs.split(","))
    for name, known in (("kinds", tuple(KINDS)), ("methods", NAMES)):
        words = getattr(asked, name).split(",")
        setattr(asked, name, tuple(words))
        if unknown := [word for word in words if word not in known]:
            parser.error(f"no {name} called {', '.join(unknown)}; there are {', '.join(known)}")
    asked.tasks = tuple(asked.tasks.split(","))
    return asked


def main(given_: Sequence[str] | None = None) -> int:
    asked = arguments(given_)
    torch.set_num_threads(1)
    document = document_of(run(asked), asked.kinds, asked.methods)
    print(json.dumps(document) if asked.json else page(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
