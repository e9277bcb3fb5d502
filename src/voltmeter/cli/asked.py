"""What was typed after ``voltmeter discover``."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from voltmeter.errors import FormatError


@dataclass(frozen=True)
class Asked:
    """The arguments, under the names of their flags."""

    model: str
    task: str
    method: str = "edge-sp"
    fill: str = "resample"
    edges: int | None = None
    faithful: float | None = None
    signed: bool = False
    metric: str | None = None
    seed: int = 0
    out: Path | None = None
    steps: int | None = None
    set: tuple[str, ...] = ()
    declare: tuple[str, ...] = ()
    batch_size: int = 32
    dtype: str | None = None
    device: str | None = None
    drop_misaligned: bool = False
    resume: bool = False

    @property
    def command(self) -> tuple[str, ...]:
        """A command line that asks for the same; ``--resume`` is no part of what is asked."""
        words = ["voltmeter", "discover", self.model]
        for field in fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if field.name in ("model", "resume") or value == field.default:
                continue
            if isinstance(value, tuple):
                words += [word for item in value for word in (flag, item)]
            else:
                words += [flag] if value is True else [flag, str(value)]
        return tuple(words)

    @classmethod
    def of_command(cls, command: Sequence[str], where: str) -> Asked:
        """What a ``command`` of ours asked for, as a run keeps it. Raises FormatError naming ``where``."""
        words = list(command)
        if words[:2] != ["voltmeter", "discover"] or len(words) < 3:
            raise FormatError(f"{where} does not say how it came about", [f"its command: {' '.join(words)}"])
        kinds = typing.get_type_hints(cls)
        given: dict[str, Any] = {"model": words[2]}
        rest = iter(words[3:])
        try:
            for flag in rest:
                name = flag.removeprefix("--").replace("-", "_")
                if kinds[name] is bool:
                    given[name] = True
                elif kinds[name] == tuple[str, ...]:
                    given[name] = (*given.get(name, ()), next(rest))
                else:
                    given[name] = _kind(kinds[name])(next(rest))
            return cls(**given)
        except (LookupError, TypeError, ValueError, StopIteration) as error:
            why = [" ".join(words), f"this voltmeter cannot read it: {error!r}"]
            raise FormatError(f"{where} was made by a command of another version", why) from error


def _kind(hint: Any) -> Any:
    """int of ``int | None``."""
    return (typing.get_args(hint) or (hint,))[0]
