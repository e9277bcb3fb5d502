"""From what was typed to values, with an error for what cannot be meant. Nothing is loaded yet."""

from __future__ import annotations

import collections.abc
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any

import torch

from voltmeter.discover import METHODS, Method, method_named
from voltmeter.discover.question import require_fill_name
from voltmeter.errors import VoltmeterError, nearest
from voltmeter.task.metric import metric_named

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
DEFAULT_FAITHFUL = 0.9

_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", NoneType: "none"}
_TRUTH = {"true": True, "false": False}


def dtype_named(name: str | None) -> torch.dtype | None:
    """The precision called ``name``; None leaves it to the model's loader."""
    if name is not None and name not in DTYPES:
        raise VoltmeterError(
            f"there is no precision '{name}' here", [nearest(name, list(DTYPES))], f"give {', '.join(DTYPES)}"
        )
    return None if name is None else DTYPES[name]


def device_named(name: str | None) -> torch.device:
    """The device called ``name``; by default the first GPU, or the CPU where there is none."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has an error for each way of lacking
        why = str(error).strip().partition("\n")[0]
        raise VoltmeterError(f"the device '{name}' cannot be used", [why], "give --device cpu") from error
    return device


@dataclass(frozen=True)
class Size:
    """How large the circuit shall be: a number of edges, or as small as is faithful. One of the two is None."""

    edges: int | None
    faithful: float | None

    @classmethod
    def asked(cls, edges: int | None, faithful: float | None) -> Size:
        """What ``--edges`` and ``--faithful`` say; faithful at 0.9 where neither was given."""
        if edges is not None and faithful is not None:
            raise VoltmeterError(
                "both --edges and --faithful were given", mend="give the one that says how large the circuit shall be"
            )
        if faithful is not None and not 0 < faithful <= 1:
            raise VoltmeterError(f"--faithful {faithful:g} was given, a number above 0 and up to 1 was expected")
        return cls(edges, DEFAULT_FAITHFUL if edges is None and faithful is None else faithful)


def require_names(fill: str, metric: str | None) -> None:
    """Raises FillError or MetricError, naming the nearest, where there is no such fill or metric."""
    require_fill_name(fill)
    if metric is not None:
        metric_named(metric)


def method_asked(name: str, steps: int | None, settings: Iterable[str], edges: int | None) -> Method:
    """The method called ``name`` with ``--steps``, ``--set key=value`` and, where it takes one, a target size."""
    method_named(name)  # that there is one
    known = {field.name for field in fields(METHODS[name])}
    assignments = [_assignment(text) for text in settings]
    if steps is not None:
        if "n_steps" not in known:
            raise VoltmeterError(f"{name} takes no --steps", mend="voltmeter methods lists the settings it has")
        assignments.append(("n_steps", str(steps)))
    given = _each_once(assignments)
    if edges is not None and "target" in known:
        given.setdefault("target", str(edges))
    hints = typing.get_type_hints(METHODS[name])
    return method_named(name, {key: _typed(name, key, text, hints) for key, text in given.items()})


def _each_once(assignments: list[tuple[str, str]]) -> dict[str, Any]:
    given: dict[str, list[str]] = {}
    for key, value in assignments:
        given.setdefault(key, []).append(value)
    twice = [f"{key}: {' and '.join(values)}" for key, values in given.items() if len(values) > 1]
    if twice:
        raise VoltmeterError("a setting was given more than once", twice, "give each once; --steps is n_steps")
    return dict(assignments)


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise VoltmeterError(f"--set {text} sets nothing", mend="write --set name=value; voltmeter methods lists them")
    return key.strip(), value.strip()


def _typed(method: str, key: str, text: str, hints: Mapping[str, Any]) -> Any:
    """``text`` as what the setting is made of. Unknown settings pass: ``method_named`` names those there are.

    Several values stand with commas between, settings of members as JSON.
    """
    hint = hints.get(key, str)
    match typing.get_origin(hint):
        case collections.abc.Mapping:
            return _object(method, key, text)
        case origin if origin in (tuple, collections.abc.Sequence):
            kind = typing.get_args(hint)[:1]
            return tuple(_value(method, key, each.strip(), kind) for each in text.split(",") if each.strip())
        case _:
            return _value(method, key, text, typing.get_args(hint) or (hint,))


def _object(method: str, key: str, text: str) -> Any:
    try:
        made = json.loads(text)
    except ValueError:
        made = None
    if not isinstance(made, dict):
        raise VoltmeterError(f"{method}'s setting {key} is a JSON object, '{text}' was given")
    return made


def _value(method: str, key: str, text: str, kinds: tuple[Any, ...]) -> Any:
    if NoneType in kinds and text.lower() in ("none", "null"):
        return None
    if bool in kinds and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    for kind in (kind for kind in (int, float, str) if kind in kinds):
        try:
            return kind(text)
        except ValueError:
            continue
    expected = " or ".join(_WORDS[kind] for kind in kinds)
    raise VoltmeterError(f"{method}'s setting {key} is {expected}, '{text}' was given")
