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
from voltmeter.errors import CheckError, CircuitError
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
    where the circuit is of another wiring, or does not know its own and none was given.
    """
    if not 0 < threshold < 1:
        raise CheckError(f"faithful at {threshold:g} was asked for, a number between 0 and 1 was expected")
    if budget is not None and not budget > 0:
        raise CheckError(f"a budget of {budget:g} s was given, a number above 0 was expected")
    wanted = chosen(only)
    question = _question(circuit, task, wiring, fill, seed)
    case = Case(circuit, question, threshold, method or method_of(circuit), seed)
    clock, found = Clock(budget), []
    for at, each in enumerate(wanted):
        found.append(_made(each, case, clock, len(wanted) - at))
        if told is not None:
            told(found[-1])
    return Findings(tuple(found), _conditions(case, budget))


def _made(check: Check, case: Case, clock: Clock, waiting: int) -> Finding:
    """One finding, within its share of the time: twice what an even one would be, as many need little."""
    if clock.over:
        return left_out(check.name, f"not looked at: the budget of {clock.seconds:g} s was used up")
    case = with_clock(case, clock.share(max(1, math.ceil(waiting / 2))))
    started = time.perf_counter()
    return replace(check.run(case), seconds=time.perf_counter() - started)


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
    return ask(wiring, task, fill, seed=seed)


def _fill_of(circuit: Circuit) -> str:
    """The fill that its scores name; paired inputs where they name none."""
    name = "resample" if circuit.scores is None else circuit.scores.conditions.fill
    return name if name in FILLS else "resample"


def _conditions(case: Case, budget: float | None) -> dict[str, Any]:
    task, wiring = case.task, case.wiring
    return {
        "model": type(wiring.model).__name__,
        "task": task.name,
        "fill": case.question.fill.name,
        "metric": task.metric.name,
        "n_edges": len(case.circuit),
        "n_edges_total": len(case.circuit.edges),
        "method": None if case.method is None else case.method.name,
        "threshold": case.threshold,
        "seed": case.seed,
        "budget": budget,
        "n_train": len(task.train),
        "n_held_out": len(task.held_out),
        "digests": {"model": digest_of(wiring.model), "wiring": wiring.digest, "task": task.digest},
    }
