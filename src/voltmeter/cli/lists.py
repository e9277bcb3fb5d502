"""What there is to choose from: tasks, methods and checks, each in a line of its own."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from inspect import getdoc

from voltmeter.check import checks as known_checks
from voltmeter.cli.screen import Screen
from voltmeter.discover import METHODS
from voltmeter.task import sets
from voltmeter.task.sets import task_names


def tasks() -> None:
    """Every built-in task."""
    _table([(name, told_of_task(name)) for name in task_names()])


def methods() -> None:
    """Every method, and under it the settings that ``--set`` takes."""
    rows = []
    for name, cls in sorted(METHODS.items()):
        rows.append((name, first_sentence(getdoc(cls) or "")))
        settings = [f"{f.name}={'' if f.default is MISSING else f.default}" for f in fields(cls)]
        if settings:
            rows.append(("", f"--set {' '.join(settings)}"))
    _table(rows)


def checks() -> None:
    """Every check, in the order in which they are made."""
    _table([(each.name, each.asks) for each in known_checks()])


def _table(rows: list[tuple[str, str]]) -> None:
    screen = Screen.open()
    width = max(len(name) for name, _ in rows) + 3
    for name, text in rows:
        screen.line(name, text, width=width)


def told_of_task(name: str) -> str:
    """The line about a task: after its name in the docstring of its module, or the first sentence of it."""
    for doc, known in _modules():
        named = re.search(rf"^ +{re.escape(name)} {{2,}}(.+)$", doc, re.MULTILINE)
        if named:
            return named[1].strip()
        if known == name:
            return first_sentence(doc)
    return ""


def _modules() -> Iterator[tuple[str, str]]:
    """The docstring and ``NAME`` of every module of task sets."""
    for found in pkgutil.iter_modules(sets.__path__):
        module = importlib.import_module(f"{sets.__name__}.{found.name}")
        yield module.__doc__ or "", str(vars(module).get("NAME", ""))


def first_sentence(doc: str) -> str:
    """Up to the first full stop that ends a line or a sentence of the first paragraph."""
    paragraph = " ".join(doc.strip().split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0]
