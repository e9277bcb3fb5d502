"""The checks there are, in the order in which they are made: cheap ones first."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from voltmeter.check.case import Case
from voltmeter.check.finding import Finding
from voltmeter.errors import CheckError, nearest

ORDER = (
    "faithful", "identifiable", "not-trivial", "necessary", "complete", "minimal", "positions",
    "same-under-other-fills", "hypotheses", "redundant", "not-over-optimised", "better-than-chance", "stable",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A check: its name, what it asks, and the function that finds out."""

    name: str
    asks: str
    run: Callable[[Case], Finding]


_KNOWN: dict[str, Check] = {}


def register(name: str, asks: str) -> Callable[[Callable[[Case], Finding]], Callable[[Case], Finding]]:
    """Makes a function of a case known as the check called ``name``. The same function may come again, changed (in a
    notebook); another one under a taken name is a CheckError."""

    def known(function: Callable[[Case], Finding]) -> Callable[[Case], Finding]:
        taken = _KNOWN.get(name)
        if taken is not None and _place(taken.run) != _place(function):
            raise CheckError(
                f"there is a check called '{name}' already", [f"it asks: {taken.asks}"], "give another name"
            )
        _KNOWN[name] = Check(name, asks, function)
        return function

    return known


def _place(function: Callable[[Case], Finding]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def checks() -> tuple[Check, ...]:
    """All of them: those of ``ORDER``, then any that others registered."""
    ours = [_KNOWN[name] for name in ORDER if name in _KNOWN]
    return (*ours, *(check for name, check in _KNOWN.items() if name not in ORDER))


def chosen(only: Iterable[str] | None) -> tuple[Check, ...]:
    """The checks called ``only`` (one name, or several), in the order of all.

    Raises CheckError listing every name there is no check of.
    """
    every = checks()
    if only is None:
        return every
    wanted = [only] if isinstance(only, str) else list(only)
    names = [check.name for check in every]
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        details = [f"'{name}': {nearest(name, names)}" for name in unknown] or ["no check was named"]
        raise CheckError(
            "there are no such checks" if unknown else "nothing to check", details, f"checks: {', '.join(names)}"
        )
    return tuple(check for check in every if check.name in wanted)
