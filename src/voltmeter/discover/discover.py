"""``discover``: score every edge of a wiring by how much a task needs it."""

import platform
from functools import cache
from typing import Any

import torch

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.scores import Conditions, Scores
from voltmeter.discover.faithful import Judge, smallest_faithful
from voltmeter.discover.method import Method, Progress, State, final_state, method_named, scores_of
from voltmeter.discover.question import Question, prepare_fill
from voltmeter.run.fill import Fill, Fixed
from voltmeter.task.task import Task
from voltmeter.task.tree import digest
from voltmeter.versions import version_of
from voltmeter.wiring.load import digest_of
from voltmeter.wiring.wiring import Wiring

_PACKAGES = ("voltmeter", "torch", "transformers", "numpy")


def discover(
    wiring: Wiring,
    task: Task,
    method: str | Method = "edge-sp",
    fill: str | Fill = "resample",
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
    resume: tuple[int, State] | None = None,
    **settings: Any,
) -> Scores:
    """Score every edge by ``method`` (a name of ``METHODS``, or a ``Method``), and say under what conditions.

    ``settings`` are the method's own (see its class). ``progress(step, steps, state)`` is called after every step;
    ``resume=(step, state)`` continues from there to the same result. The model is not changed.

    A method that learns what cut edges carry (``ugs`` with ``learn_fill``) gives scores that hold under that fill:
    ``scores.circuit(faithful=...)`` judges by it, and ``final_state`` with ``learned_fill`` hands it out.

    ``scores.circuit(edges=...)`` takes the best edges, ``scores.circuit(faithful=...)`` the fewest that are faithful.
    Costs what the method's class says. Raises VoltmeterError for unknown methods and settings, FillError, TaskError.
    """
    chosen = method_named(method, settings) if isinstance(method, str) else method
    question = ask(wiring, task, fill, seed=seed, batch_size=batch_size)
    state = final_state(chosen, question, progress, resume)
    values = scores_of(chosen, question, state)
    learned = chosen.learned_fill(question, state)
    conditions = conditions_of(question, chosen, own_fill=isinstance(fill, Fill), learned=learned)
    if learned is not None:
        question = Question(wiring, task, learned, seed, batch_size)
    return Scores(wiring.edges.names, values, chosen.name, conditions, _Smallest(question))


def ask(wiring: Wiring, task: Task, fill: str | Fill = "resample", *, seed: int = 0, batch_size: int = 32) -> Question:
    """The question that ``discover`` puts to a method; a fill by name is measured on the task."""
    return Question(wiring, task, prepare_fill(fill, wiring, task), seed, batch_size)


class _Smallest:
    """Finds the smallest faithful circuit on the train pairs; its runs of the full model are made once."""

    def __init__(self, question: Question) -> None:
        self.question, self._judge = question, cache(self._make)

    def _make(self) -> Judge:
        question = self.question
        return Judge(question.wiring, question.task, question.task.train, question.fill)

    def __call__(self, scores: Scores, threshold: float, signed: bool) -> Circuit:
        return smallest_faithful(self._judge(), scores, threshold, signed)


def question_of(scores: Scores) -> Question | None:
    """The question that scores answer, while it is at hand; None for scores read from a file."""
    return scores.faithful.question if isinstance(scores.faithful, _Smallest) else None


def conditions_of(
    question: Question, method: Method, own_fill: bool = False, learned: Fixed | None = None
) -> Conditions:
    """Everything that the scores depend on. A fill by name follows from model and task; values of one's own do not.

    Of a method that learns what cut edges carry the fill is "optimal" (``learned``, when it is known), and the settings
    say which one training began at.
    """
    wiring, task, fill = question.wiring, question.task, question.fill
    digests = {"model": digest_of(wiring.model), "wiring": wiring.digest, "task": task.digest}
    settings = {**method.settings(), "batch_size": question.batch_size, "folded": "raw weights"}
    if method.learns_fill:
        settings["fill_begun_at"] = fill.name
    if own_fill and isinstance(fill, Fixed):
        digests["fill_begun_at" if method.learns_fill else "fill"] = digest(dict(fill.tensors))
    if learned is not None:
        digests["fill"] = digest(dict(learned.tensors))
    dtype = next((p.dtype for p in wiring.model.parameters()), torch.get_default_dtype())
    return Conditions(
        model=type(wiring.model).__name__,
        task=task.name,
        fill="optimal" if method.learns_fill else fill.name,
        metric=task.metric.name,
        sign=method.sign,
        seed=question.seed,
        dtype=str(dtype).removeprefix("torch."),
        settings=settings,
        versions={"python": platform.python_version()} | {name: version_of(name) for name in _PACKAGES},
        digests=digests,
    )
