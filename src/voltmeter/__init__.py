"""Voltmeter measures the circuits inside neural networks."""

from importlib.metadata import PackageNotFoundError, version

from voltmeter import errors, rasp
from voltmeter.check import check
from voltmeter.circuit import Circuit, Scores
from voltmeter.discover import discover
from voltmeter.run import fill, record, run
from voltmeter.task import Task
from voltmeter.task.load import load
from voltmeter.wiring import wire

try:
    __version__ = version("voltmeter")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

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
