"""The method that found a circuit, done again: on other seeds, other pairs, another task."""

from dataclasses import fields

import torch

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.scores import Scores
from voltmeter.discover.discover import conditions_of
from voltmeter.discover.method import METHODS, Method, Progress, run_method
from voltmeter.discover.question import Question


def method_of(circuit: Circuit) -> Method | None:
    """The method by which a circuit's scores came about, with its settings; None where it is not one of ours."""
    scores = circuit.scores
    if scores is None or scores.method not in METHODS:
        return None
    cls = METHODS[scores.method]
    names = {field.name for field in fields(cls)}
    given = {name: value for name, value in scores.conditions.settings.items() if name in names}
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def found_again(method: Method, question: Question, like: Circuit, progress: Progress | None = None) -> Circuit:
    """What the method finds on another question: as many edges as ``like`` has, chosen by the same rule.

    ``progress`` is called after every step of the method.
    """
    values = run_method(method, question, progress)
    scores = Scores(question.wiring.edges.names, torch.as_tensor(values), method.name, conditions_of(question, method))
    return scores.top(len(like), signed=bool(like.how.get("signed", False)))
