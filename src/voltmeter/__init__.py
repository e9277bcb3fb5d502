"""Voltmeter measures the circuits inside neural networks."""

from voltmeter import errors, rasp
from voltmeter.check import check
from voltmeter.circuit import Circuit, Scores
from voltmeter.discover import discover
from voltmeter.run import fill, record, run
from voltmeter.task import Task
from voltmeter.task.load import load
from voltmeter.versions import version_of
from voltmeter.wiring import wire

__version__ = version_of("voltmeter")

__all__ = [
    "Circuit",
    "Scores",
    "Task",
    "__version__",
    "check",
    "discover",
    "errors",
    "fill",
    "load",
    "rasp",
    "record",
    "run",
    "wire",
]
