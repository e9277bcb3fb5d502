"""``rasp:...``: a compiled program by name, by seed, or from a directory.

rasp:reverse            one of the programs that voltmeter knows (`voltmeter programs`)
rasp:random:7           a random program by seed; rasp:random:7:12 of 12 operations
rasp:./reverse          an export: weights.safetensors and program.json
"""

from __future__ import annotations

from pathlib import Path

import torch

from voltmeter.errors import LoadError, nearest
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.exports import PROGRAM, load_export
from voltmeter.rasp.generate import generate
from voltmeter.rasp.programs import Program, compiled, program, programs
from voltmeter.wiring.load import LoadedModel, digest_of


def load_compiled(spec: str) -> Compiled:
    """The compiled program that ``spec`` names, with or without ``rasp:`` in front; in float64.

    A known program goes before a directory of the same name: write ``./reverse`` for the latter. Raises LoadError
    where there is neither, and where a seed or size is no whole number; what ``load_export`` and ``generate`` raise.
    """
    name = spec.removeprefix("rasp:")
    if name == "random" or name.startswith("random:"):
        return compiled(_random(spec, name.split(":")[1:]))
    known = [each.name for each in programs()]
    if name in known:
        return compiled(program(name))
    if name and Path(name).expanduser().is_dir():  # no name is no directory, though Path("") is the current one
        return load_export(Path(name).expanduser())
    raise LoadError(
        f"{spec} names no program and no directory",
        [nearest(name, known)],
        f"list the programs with `voltmeter programs`; a directory holds {PROGRAM} and its weights",
    )


def load_rasp(spec: str, dtype: torch.dtype | None = None) -> LoadedModel:
    """As ``load_compiled``, for ``load_model``: the example holds every input, the origin is the ``Compiled``."""
    found = load_compiled(spec)
    model = found.model if dtype is None else found.model.to(dtype)
    return LoadedModel(model, None, spec, "compiled", digest_of(model), model.encode(found.inputs), found)


def _random(spec: str, given: list[str]) -> Program:
    try:
        numbers = [int(text) for text in given]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or min(numbers) < 0:
        raise LoadError(
            f"{spec} does not say which random program",
            mend="write rasp:random:SEED or rasp:random:SEED:SIZE, in whole numbers",
        )
    return generate(*numbers)
