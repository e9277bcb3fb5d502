"""``voltmeter discover``: load, wire, gate, plan, score, choose, judge, write. One page of passes."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.directory import CIRCUIT, FILL, PAGE, RUN, SCORES, RunRecord, check_run_directory, write_run
from voltmeter.circuit.scores import Conditions, Scores
from voltmeter.cli.asked import Asked
from voltmeter.cli.checkpoint import SAVE_EVERY_SECONDS, Checkpoint, Keeper
from voltmeter.cli.choose import as_small_as_faithful, curve_sizes, of_size, require_enough_edges
from voltmeter.cli.endings import INTERRUPTED, TERMINATED, Stopped, Terminated, sigterm_interrupts
from voltmeter.cli.options import Size, device_named, dtype_named, method_asked, require_names
from voltmeter.cli.plan import Judging, first_steps, peak_mib, show_plan
from voltmeter.cli.results import Outcome
from voltmeter.cli.screen import Screen
from voltmeter.cli.subject import Ability, Subject, ability, load_subject, show_task, show_wiring, width_of
from voltmeter.discover import Judge, Method, Question, prepare_fill
from voltmeter.discover.discover import conditions_of
from voltmeter.discover.method import State, final_state, scores_of
from voltmeter.report import page
from voltmeter.run.fill import Fill, Fixed

RUNS = Path("runs")


@dataclass(frozen=True, eq=False)
class Job:
    """Everything a run depends on, and where it goes."""

    asked: Asked
    size: Size
    method: Method
    subject: Subject
    able: Ability
    fill: Fill
    conditions: Conditions
    started: str
    out: Path

    @property
    def record(self) -> RunRecord:
        """The run as it will be written, but for its time, memory and results."""
        chosen = {"edges": self.size.edges, "faithful": self.size.faithful, "signed": self.asked.signed}
        return self._record({"chosen": chosen})

    @property
    def unfinished(self) -> RunRecord:
        """The run as far as its scores go, to the bit: another size of circuit can go on from the same state."""
        return self._record({"device": str(self.subject.device)})

    def _record(self, more: dict[str, object]) -> RunRecord:
        conditions = replace(self.conditions, settings={**self.conditions.settings, **more})
        device = str(self.subject.device)
        return RunRecord(self.asked.command, self.method.name, conditions, 0.0, 0.0, self.started, device)

    def question(self) -> Question:
        """What the method is asked. It remembers its batches: let go of it when the scores are there."""
        subject = self.subject
        return Question(subject.wiring, subject.task, self.fill, self.asked.seed, self.asked.batch_size)


def discover_and_show(asked: Asked, as_json: bool) -> None:
    """Finds a circuit and shows it: as lines, or as one document."""
    screen = Screen.open(stdout_is_a_document=as_json)
    outcome = discover(asked, screen)
    if as_json:
        screen.document(outcome.document())
    else:
        outcome.show(screen)
        show_written(screen, outcome.run)


Place = Callable[[RunRecord], Path]


def discover(asked: Asked, screen: Screen, place: Place | None = None) -> Outcome:
    """All of it. Nothing is written before everything that can be refused was looked at.

    ``place`` says where the run goes if ``asked`` does not: by default ``runs/<task>-<method>-<seed>``.
    """
    job = _prepared(asked, screen)
    if place is not None and asked.out is None:
        out = place(job.record)
        job = replace(job, asked=replace(asked, out=out), out=out)
    with _no_empty_parents_left(job.out):
        check_run_directory(job.out, job.record)
        checkpoint = Checkpoint(job.out, job.unfinished)
        question = job.question()
        before = checkpoint.load(asked.resume)
        judging = Judging.on(question, job.able.forward_seconds)
        keeper = Keeper(checkpoint, job.method.steps(question), before)  # whose clock is that of the steps
        with sigterm_interrupts(), _kept_when_stopped(keeper, job):
            scores, learned = _scored(job, question, keeper, judging, screen)
            del question
            circuit = _chosen(job, scores, learned or job.fill, screen)
            judge = judging.judge if learned is None else _judge_under(learned, job)
            outcome = _judged(job, scores, circuit, judge, keeper, screen)
            _written(job, outcome, learned)
        checkpoint.remove()
    return outcome


# Passes


def _prepared(asked: Asked, screen: Screen) -> Job:
    """Loads and wires, and says what the model does. What can be refused before loading is."""
    size = Size.asked(asked.edges, asked.faithful)
    method = method_asked(asked.method, asked.steps, asked.set, size.edges)
    require_names(asked.fill, asked.metric)
    dtype, device = dtype_named(asked.dtype), device_named(asked.device)
    if asked.out is not None:
        _check_before_loading(asked.out)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    subject = load_subject(asked, dtype, device)
    show_wiring(screen, subject.wiring)
    require_enough_edges(subject.wiring, size.edges)
    able = ability(subject)
    show_task(screen, subject.task, able.gate)
    fill = prepare_fill(asked.fill, subject.wiring, subject.task)
    question = Question(subject.wiring, subject.task, fill, asked.seed, asked.batch_size)
    out = asked.out or RUNS / f"{subject.task.name}-{method.name}-{asked.seed}"
    return Job(asked, size, method, subject, able, fill, conditions_of(question, method), started, out)


def _scored(
    job: Job, question: Question, keeper: Keeper, judging: Judging, screen: Screen
) -> tuple[Scores, Fixed | None]:
    """The method's steps, the first of them measured to say how long the rest will take.

    Beside the scores: what cut edges carry, where that was learned with them.
    """
    left_seconds = first_steps(job.method, question, keeper)
    show_plan(screen, job.method, question, keeper, left_seconds, judging.seconds_for(job.size))
    newest = keeper.newest
    assert newest is not None
    with screen.bar(job.method.name, keeper.steps, newest.step, stays=True) as advance:

        def progress(step: int, steps: int, state: State) -> None:
            keeper.done(step, state)
            advance(step)

        advance(newest.step)
        state = final_state(job.method, question, progress, (newest.step, newest.state))
    learned = job.method.learned_fill(question, state)
    conditions = job.conditions if learned is None else conditions_of(question, job.method, learned=learned)
    values = scores_of(job.method, question, state)
    return Scores(job.subject.wiring.edges.names, values, job.method.name, conditions), learned


def _chosen(job: Job, scores: Scores, fill: Fill, screen: Screen) -> Circuit:
    """The circuit that was asked for. The train pairs decide how large a faithful one is."""
    subject, signed = job.subject, job.asked.signed
    if job.size.edges is not None:
        return of_size(scores, subject.wiring, job.size.edges, signed, fill.name)
    assert job.size.faithful is not None
    with screen.bar("choosing", None) as tried:
        judge = Judge(subject.wiring, subject.task, subject.task.train, fill)
        return as_small_as_faithful(scores, subject.wiring, judge, job.size.faithful, signed, fill.name, tried)


def _judge_under(fill: Fill, job: Job) -> Judge:
    """A judge on the held-out pairs under another fill than the one that was asked for."""
    subject = job.subject
    return Judge(subject.wiring, subject.task, subject.task.held_out, fill)


def _judged(job: Job, scores: Scores, circuit: Circuit, judge: Judge, keeper: Keeper, screen: Screen) -> Outcome:
    """What the circuit, and circuits of other sizes, do on the held-out pairs."""
    sizes = curve_sizes(len(scores))
    curve = []
    with screen.bar("measuring", len(sizes)) as advance:
        figures = judge.measure(circuit)
        for done, size in enumerate(sizes, start=1):
            curve.append((size, judge.measure(scores.top(size, job.asked.signed))))
            advance(done)
    seconds = 0.0 if keeper.newest is None else keeper.newest.seconds
    peak = peak_mib(job.subject.device)
    return Outcome(
        job.subject, job.able.gate, scores, circuit, figures, tuple(curve), job.size.faithful, seconds, peak, job.out
    )


def _written(job: Job, outcome: Outcome, learned: Fixed | None) -> None:
    record = replace(job.record, seconds=outcome.seconds, peak_mib=outcome.peak_mib, results=outcome.document())
    text = page(record, outcome.circuit, outcome.scores, **outcome.page_parts())
    wiring = job.subject.wiring
    write_run(job.out, record, outcome.scores, outcome.circuit, text, wiring.feeds, width_of(wiring), learned)


def show_written(screen: Screen, out: Path) -> None:
    """Where the run is, and what can be done with it."""
    files = " ".join(name for name in (PAGE, CIRCUIT, SCORES, FILL, RUN) if (out / name).exists())
    screen.line("written", f"{out}/  {files}")
    run = shlex.quote(str(out))
    screen.line("next", f"open {out / PAGE}, or see every edge: voltmeter show {run} --all")
    screen.line("", f"is it true? voltmeter check {run}")


# Stopping, and leaving nothing behind


@contextlib.contextmanager
def _kept_when_stopped(keeper: Keeper, job: Job) -> Iterator[None]:
    """Ctrl-C and SIGTERM leave what was done, and say how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
        if not keeper.save() or keeper.newest is None:
            raise Stopped("stopped before the first step; nothing was written", code) from stop
        again = shlex.join((*job.asked.command, "--resume"))
        lines = [
            f"stopped after {keeper.newest.step:,} of {keeper.steps:,} steps",
            f"what was done is kept in {keeper.checkpoint.directory}",
            f"go on with: {again}",
        ]
        raise Stopped("\n  ".join(lines), code) from stop
    except Exception:
        if keeper.seconds_here > SAVE_EVERY_SECONDS:  # whatever went wrong, long work is not thrown away
            keeper.save()
        raise


def _check_before_loading(out: Path) -> None:
    """What can be told of a directory before it is known which run goes there; makes no directories."""
    first_missing = out.absolute()
    while not os.path.exists(first_missing.parent):
        first_missing = first_missing.parent
    if not os.path.isfile(out / RUN):
        check_run_directory(first_missing)


@contextlib.contextmanager
def _no_empty_parents_left(out: Path) -> Iterator[None]:
    """If the body fails, directories that were made for it and hold nothing are removed."""
    missing = [path for path in out.absolute().parents if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                path.rmdir()
        raise
