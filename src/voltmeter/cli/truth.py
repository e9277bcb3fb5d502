"""``voltmeter truth``: which edges a compiled model needs, certified; and ``voltmeter programs``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from voltmeter.circuit.scores import Row
from voltmeter.cli.screen import Screen, count, duration
from voltmeter.errors import LoadError, OutputError, TruthError
from voltmeter.rasp.certificate import Certificate
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.load import load_compiled
from voltmeter.rasp.programs import programs as known_programs
from voltmeter.rasp.truth import truth
from voltmeter.rasp.verify import verify
from voltmeter.wiring.load import load_model

_EDGES, _CIRCUITS, _EXPLAINED = 40, 3, 20  # on one screen


@dataclass(frozen=True)
class Asked:
    """What ``truth`` was asked: the question, and what to do with the answer."""

    model: str
    fill: str
    positions: str = "paired"
    tolerance: float = 1e-6
    output: str = "raw"
    seed: int = 0
    limit: int = 100_000
    save: Path | None = None
    check: bool = False


def show_truth(asked: Asked, as_json: bool) -> None:
    """Finds the truth and prints it, and only then checks and saves it: what was found is shown whatever becomes of it.

    Raises LoadError, TruthError, OutputError.
    """
    compiled = compiled_named(asked.model)
    certificate = truth(compiled, asked.fill, asked.positions, asked.tolerance, asked.output, asked.seed, asked.limit)
    screen = Screen.open(stdout_is_a_document=as_json)
    if not as_json:
        _show(screen, certificate)
    done: dict[str, str] = {}
    try:
        if asked.check:
            done["verified"] = _checked(certificate, compiled)
        if asked.save is not None:  # only what was checked
            done["saved"] = _saved(certificate, asked.save)
    finally:
        if as_json:
            screen.document(certificate.document() | done)
        else:
            for label, text in done.items():
                screen.line(label, text)


def compiled_named(spec: str) -> Compiled:
    """The compiled model of that name. Raises LoadError, also for models that were never compiled."""
    if spec.startswith("rasp:"):
        return load_compiled(spec)
    if spec in {each.name for each in known_programs()}:
        raise LoadError(f"{spec} is the name of a program", mend=f"give rasp:{spec}")
    load_model(spec)  # that there is one
    raise LoadError(
        f"{spec} is not a compiled model, and nobody knows the truth about it",
        mend="give rasp:NAME, rasp:random:SEED or rasp:DIRECTORY; list the programs with `voltmeter programs`",
    )


def _checked(certificate: Certificate, compiled: Compiled) -> str:
    if not certificate.certified:
        raise TruthError("there is no certificate to verify", mend="leave --verify out, or move --tolerance")
    done = verify(certificate, compiled)
    return (
        f"from scratch with the slow engine in {duration(done.seconds)}: {done.circuits:,} circuits, "
        f"{done.pairs:,} of {count(done.all_pairs, 'pair', 'pairs')}, {done.samples:,} random circuits"
    )


def _saved(certificate: Certificate, file: Path) -> str:
    try:
        certificate.save(file)
    except OutputError as error:
        raise OutputError(error.problem, error.details, "give a file that can be written with --save") from error
    return str(file)


# On one screen


def _show(screen: Screen, it: Certificate) -> None:
    question = it.question
    where = ", positions at random" if question.positions == "random" else ""
    screen.line("program", f"{it.name} · {it.n_inputs:,} inputs · {len(it.effects):,} edges")
    screen.line(
        "question",
        f"fill {question.fill}{where} · {question.output} output ({_output(it)}) · "
        f"tolerance {question.tolerance:g} · seed {question.seed}",
    )
    screen.gap()
    for sentence in it.says:
        screen.line("", sentence)
    if it.necessary:
        screen.gap()
        rows = [Row.of(edge, it.effects[edge]) for edge in it.necessary]
        screen.edges(rows[:_EDGES], max(0, len(rows) - _EDGES), in_words=True, figure=_effect(it))
    others = [circuit for circuit in it.minimal if set(circuit) != set(it.necessary)]
    for number, circuit in enumerate(others[:_CIRCUITS]):
        screen.line("minimal" if number == 0 else "", ", ".join(circuit) or "no edge at all")
    if len(others) > _CIRCUITS:
        screen.line("", f"… {count(len(others) - _CIRCUITS, 'more minimal circuit', 'more minimal circuits')}")
    if it.explained:
        screen.gap()
        who = "The program uses" if it.provenance_from == "program" else "The weights connect"
        n = len(it.explained)
        screen.line("", f"{who} {count(n, 'edge that is', 'edges that are')} not necessary:")
        for each in it.explained[:_EXPLAINED]:
            screen.line("", f"{each.edge}: {each.why}")
        if n > _EXPLAINED:
            screen.line("", f"… {n - _EXPLAINED:,} more, all of them in --json")
    screen.gap()
    screen.line("took", duration(it.seconds))


def _effect(it: Certificate) -> str:
    return "effect" if it.answers is None else "share of the answers"


def _output(it: Certificate) -> str:
    return it.outputs[0] if len(it.outputs) == 1 else f"{it.outputs[0]} … {it.outputs[-1]}"


# The programs


def show_programs(as_json: bool) -> None:
    """Every program: its name, what it computes, what it is compiled for."""
    screen = Screen.open(stdout_is_a_document=as_json)
    found = known_programs()
    if as_json:
        screen.document(
            {
                "programs": [
                    {
                        "name": each.name,
                        "computes": each.docs,
                        "vocabulary": list(each.vocabulary),
                        "max_length": each.max_length,
                        "causal": each.causal,
                        "tags": sorted(each.tags),
                    }
                    for each in found
                ]
            }
        )
        return
    width = max(len(each.name) for each in found) + 3
    for each in found:
        screen.line(each.name, " ".join(each.docs.split()), width=width)
    screen.gap()
    screen.line("", "the truth about one: voltmeter truth rasp:NAME --fill resample")
