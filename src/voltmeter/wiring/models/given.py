"""What a directory gives: settings in JSON, and tensors for a module, every one of them accounted for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from voltmeter.errors import LoadError
from voltmeter.files import parse_object, read_bytes

FILES = ("config.json", "about.json")


def path_of(path: Path | str) -> Path:
    """``path`` with its ``~``, where there is such a user. Raises LoadError where nothing is named."""
    if not str(path).strip() or path == Path():
        raise LoadError("no file or directory is named", mend="write it behind the colon: katago:FILE, modular:DIR")
    return Path(os.path.expanduser(path))  # which, unlike Path.expanduser, leaves ~nobody as it is


def settings_in(directory: Path, *inside: str) -> dict[str, Any]:
    """The settings in a directory: the object in ``config.json``, or that at the keys ``inside`` of ``about.json``.

    Published checkpoints keep some objects as JSON within a string; they are read. Raises LoadError where there is no
    directory or no settings, FormatError where a file is not JSON.
    """
    if not directory.is_dir():
        raise LoadError(f"there is no directory {directory}")
    for name in FILES:
        path = directory / name
        if not path.is_file():
            continue
        found: Any = parse_object(read_bytes(path), str(path))
        for key in inside if name == FILES[-1] else ():
            found = _object(found.get(key)) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return found
    at = "".join(f"[{key!r}]" for key in inside)
    raise LoadError(f"{directory} has no settings", mend=f"write them to {FILES[0]}, or to {FILES[1]} at {at}")


def _object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return None


def fill_module(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Gives ``module`` the ``tensors``. Raises LoadError listing each that is missing, unknown or does not fit."""
    wanted = module.state_dict()
    misses = [
        *(f"missing: {name} {list(wanted[name].shape)}" for name in sorted(wanted.keys() - tensors.keys())),
        *(f"unexpected: {name} {list(tensors[name].shape)}" for name in sorted(tensors.keys() - wanted.keys())),
        *(
            f"{name} has shape {list(tensors[name].shape)}; {list(wanted[name].shape)} was expected"
            for name in sorted(wanted.keys() & tensors.keys())
            if wanted[name].shape != tensors[name].shape
        ),
        *(
            f"{name} is {tensors[name].dtype}; floating point was expected"
            for name in sorted(wanted.keys() & tensors.keys())
            if not tensors[name].is_floating_point()
        ),
        *(f"{name} holds values that are not finite" for name in sorted(tensors) if not tensors[name].isfinite().all()),
    ]
    if misses:
        raise LoadError(f"the tensors in {source} do not fit the model that its settings describe", misses)
    module.load_state_dict(dict(tensors))
