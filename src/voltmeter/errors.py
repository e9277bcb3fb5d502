"""Every error voltmeter raises on purpose.

    VoltmeterError
    ├── LoadError         a model, tokenizer or file that cannot be loaded
    ├── WiringError       a model whose streams cannot be read, or whose wiring fails verification
    ├── AddressError      a node, edge, module or position that matches nothing
    ├── KeepError         a keep of the wrong shape, or naming other edges than the wiring has
    ├── FillError         a fill that is not finite, or that lacks the data it needs
    ├── TaskError         pairs that do not align, empty tasks, answers outside the vocabulary
    ├── MetricError       a metric that is NaN, constant, or of the wrong shape
    ├── CircuitError      more edges than exist, circuits of another wiring
    ├── ProgramError      a program that is ill-typed or ambiguous, or an input it was not compiled for
    ├── TruthError        a truth that cannot be certified, or a certificate that does not check
    ├── CheckError        a check that does not exist, or that cannot be made of what was given
    ├── TapeError         a tape used twice, or differentiated twice
    ├── FormatError       a file that is damaged, or of another format or version
    └── OutputError       an output directory that cannot be written, or already holds another run

A message has up to three parts: what was given and what is wrong with it, the details (everything that
missed, not only the first), and the mend. The CLI prints them as they are and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_MOST_LINES = 12


class VoltmeterError(Exception):
    """Base of the tree. ``problem`` is one sentence, ``details`` the lines under it, ``mend`` what to do."""

    def __init__(self, problem: str, details: Iterable[str] = (), mend: str = "") -> None:
        self.problem = problem
        self.details: tuple[str, ...] = tuple(details)
        self.mend = mend
        super().__init__(self._text())

    def _text(self) -> str:
        shown = list(self.details[:_MOST_LINES])
        if len(self.details) > _MOST_LINES:
            shown.append(f"... and {len(self.details) - _MOST_LINES} more")
        lines = [self.problem, *shown]
        if self.mend:
            lines.append(self.mend)
        return "\n  ".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.problem, self.details, self.mend))


class LoadError(VoltmeterError):
    """A model, tokenizer or file cannot be loaded."""


class WiringError(VoltmeterError):
    """The streams of a model cannot be read, or its wiring fails verification."""


class AddressError(VoltmeterError):
    """A node, edge, module or position matches nothing."""


class KeepError(VoltmeterError):
    """A keep has the wrong shape, or belongs to other edges than the wiring has."""


class FillError(VoltmeterError):
    """A fill is not finite, or lacks the data it needs."""


class TaskError(VoltmeterError):
    """A task is empty, its pairs do not align, or its answers are missing from the vocabulary."""


class MetricError(VoltmeterError):
    """A metric is NaN, constant, or of the wrong shape."""


class CircuitError(VoltmeterError):
    """A circuit asks for more edges than exist, or belongs to another wiring."""


class ProgramError(VoltmeterError):
    """A program is ill-typed or ambiguous, or its compiled model is given an input it was not compiled for."""


class TruthError(VoltmeterError):
    """A truth cannot be certified, or a certificate does not check."""


class CheckError(VoltmeterError):
    """A check does not exist, or cannot be made of what was given."""


class TapeError(VoltmeterError):
    """A tape was used for two backward passes, or differentiated twice."""


class FormatError(VoltmeterError):
    """A file is damaged, or is of another format or version."""


class OutputError(VoltmeterError):
    """An output directory cannot be written, or already holds another run."""


def counted(number: int, one: str, many: str) -> str:
    """ "1 row is" or "3 rows are": a number and the words that agree with it."""
    return f"{number:,} {one if number == 1 else many}"


def nearest(name: str, known: Sequence[str], count: int = 3) -> str:
    """The ``count`` names in ``known`` most like ``name``, for the second line of a message."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.0)
    return "nearest: " + ", ".join(close) if close else "there are none"
