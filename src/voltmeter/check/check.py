"""``check``: the battery that every circuit goes through."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from voltmeter.check.again import method_of
from voltmeter.check.case import Case
from voltmeter.check.clock import Clock
from voltmeter.check.finding import CANNOT_TELL, Finding, Findings
from voltmeter.check.registry import Check, chosen
from voltmeter.circuit.circuit import Circuit
from voltmeter.discover.discover import ask, question_of
from voltmeter.discover.method import Method
from voltmeter.discover.question import FILLS, Question
from voltmeter.errors import CheckError, CircuitError, FillError
from voltmeter.files import digest_json
from voltmeter.run.fill import Fill
from voltmeter.task.task import Task
from voltmeter.wiring.load import digest_of
from voltmeter.wiring.wiring import Wiring

Told = Callable[[Finding], None]


def check(
    circuit: Circuit,
    task: Task | None = None,
    *,
    wiring: Wiring | None = None,
    fill: str | Fill | None = None,
    method: Method | None = None,
    threshold: float = 0.9,
    only: Iterable[str] | None = None,
    budget: float | None = None,
    seed: int = 0,
    told: Told | None = None,
) -> Findings:
    """Whether a circuit is what it is taken for: a finding from each check (``checks()``), on held-out pairs.

    Args:
        circuit: any set of edges, found by voltmeter or read from elsewhere.
        task, wiring, fill: the question it is to answer. What is left out is that of the circuit's own scores.
        method: what found it, to be done again on other seeds and data; by default what its scores say.
        threshold: the t of "faithful at t".
        only: names of the checks to make; all of them by default.
        budget: seconds. What did not fit is said in the findings; without a budget the same is always done.
        seed: of everything that is drawn.
        told: called with each finding as it is made.

    The model is not changed. Raises CheckError for names of no check and an unusable threshold or budget, CircuitError
    where the circuit is of another wiring, or does not know its own and none was given, FillError where it was found
    under values of one's own that are not at hand.
    """
    require_usable(threshold, budget)
    wanted = chosen(only)
    question = _question(circuit, task, wiring, fill, seed)
    case = Case(circuit, question, threshold, method or method_of(circuit), seed)
    clock, found = Clock(budget), []
    for at, each in enumerate(wanted):
        # its share of the time: twice what an even one would be, as many need little
        case = with_clock(case, clock.share(max(1, math.ceil((len(wanted) - at) / 2))))
        found.append(_made(each, case, clock))
        if told is not None:
            told(found[-1])
    return Findings(tuple(found), _conditions(case, budget))


def require_usable(threshold: float, budget: float | None) -> None:
    """Raises CheckError for a threshold or a budget that nothing can be held against."""
    if not 0 < threshold < 1:
        raise CheckError(f"faithful at {threshold:g} was asked for, a number between 0 and 1 was expected")
    if budget is not None and not budget > 0:
        raise CheckError(f"a budget of {budget:g} s was given, a number above 0 was expected")


def _made(check: Check, case: Case, clock: Clock) -> Finding:
    """One finding. Raises CheckError where a check answers with something else, or under another name."""
    if clock.over:
        return left_out(
            check.name, f"not looked at: the budget of {clock.seconds:g} s was used up", left_out="all of it"
        )
    started = time.perf_counter()
    finding = check.run(case)
    if not isinstance(finding, Finding) or finding.check != check.name:
        given = f"a finding of '{finding.check}'" if isinstance(finding, Finding) else f"a {type(finding).__name__}"
        raise CheckError(f"the check {check.name} answered with {given}, its own Finding was expected")
    return replace(finding, seconds=time.perf_counter() - started)


def with_clock(case: Case, clock: Clock) -> Case:
    """The same case, runs already made included, with another clock."""
    made = replace(case, clock=clock)
    shared = {name: value for name, value in vars(case).items() if name not in case.__dataclass_fields__}
    vars(made).update(shared)
    return made


def left_out(check: str, why: str, against: str = "", **counted: Any) -> Finding:
    """A finding of a check that could not be made."""
    return Finding(check, CANNOT_TELL, None, None, None, against, why, counted=counted)


def _question(
    circuit: Circuit, task: Task | None, wiring: Wiring | None, fill: str | Fill | None, seed: int
) -> Question:
    own = None if circuit.scores is None else question_of(circuit.scores)
    if wiring is None and own is not None:
        wiring = own.wiring
    if task is None and own is not None:
        task = own.task
    lacking = [name for name, value in (("wiring", wiring), ("task", task)) if value is None]
    if wiring is None or task is None:
        raise CircuitError(
            f"the circuit does not know its {' and '.join(lacking)}",
            ["it was read from a file, or put together by hand"],
            "check(circuit, task, wiring=wiring)",
        )
    if wiring.edges.names != circuit.edges:
        raise CircuitError(
            "the circuit is of another wiring",
            [f"it has {len(circuit.edges):,} edges to choose from, the wiring {len(wiring.edges):,}"],
            "wire the model, and split it, as it was when the circuit was found",
        )
    if fill is None:
        fill = own.fill if own is not None else _fill_of(circuit)
    return ask(wiring, task, fill, seed=seed, batch_size=_batch_size_of(circuit))


def _fill_of(circuit: Circuit) -> str:
    """The fill that its scores name; paired inputs where they name none. Raises FillError for values of one's own."""
    name = "unknown" if circuit.scores is None else circuit.scores.conditions.fill
    if name in FILLS:
        return name
    if name != "unknown":
        raise FillError(
            f"the circuit was found under a fill of its own, '{name}'", mend="give it: check(..., fill=...)"
        )
    return "resample"


def _batch_size_of(circuit: Circuit) -> int:
    """Of its method's steps, so that the method done again is the same."""
    given = None if circuit.scores is None else circuit.scores.conditions.settings.get("batch_size")
    return given if isinstance(given, int) else 32


def _conditions(case: Case, budget: float | None) -> dict[str, Any]:
    task, wiring = case.task, case.wiring
    return {
        "model": type(wiring.model).__name__,
        "task": task.name,
        "fill": case.question.fill.name,
        "metric": task.metric.name,
        "n_edges": len(case.circuit),
        "n_edges_total": len(case.circuit.edges),
        "circuit": case.circuit.how,
        "method": None if case.method is None else case.method.name,
        "threshold": case.threshold,
        "seed": case.seed,
        "budget": budget,
        "n_train": len(task.train),
        "n_held_out": len(task.held_out),
        "digests": {
            "model": digest_of(wiring.model),
            "wiring": wiring.digest,
            "task": task.digest,
            "circuit": circuit_digest(case.circuit),
        },
    }


def circuit_digest(circuit: Circuit) -> str:
    """Of the wiring's edges and which of them are kept: equal for two circuits of the same edges, however found."""
    return digest_json({"edges": circuit.edges_digest, "kept": list(circuit.names)})
