"""Hugging Face models, from a local directory or by their id on the hub.

The class is the one that config.json names. transformers draws the weights that a checkpoint lacks at random and
logs a warning; here that is an error, as are damaged files. No code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from voltmeter.errors import LoadError, nearest
from voltmeter.files import read_bytes

KINDS = (
    "a model is a Hugging Face id, a local directory, demo, hooked:DIR, rasp:NAME, katago:FILE, modular:DIR, "
    "decision:DIR or py:package.module:factory"
)

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def hugging_face_directory(spec: str) -> Path:
    """The local directory ``spec`` names, or the snapshot of the hub model it names, fetched if need be."""
    path = _path(spec)
    if not spec.strip():
        raise _unknown(spec, "it has no name")
    if os.path.isdir(path):  # which, unlike Path.is_dir, takes a name of any length
        return path
    if os.path.exists(path):
        raise LoadError(
            f"{spec} is a file, not a model", mend="give the directory that holds config.json and the weights"
        )
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise _unknown(spec, "there is no such directory")
    return _snapshot(spec)


def _snapshot(model_id: str) -> Path:
    from huggingface_hub import snapshot_download  # heavy, and only needed here

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    aside = ["*/*", "consolidated*"]  # other formats of the same weights
    try:
        directory = Path(snapshot_download(model_id, allow_patterns=wanted, ignore_patterns=aside))
        if not any(directory.glob("*.safetensors")):
            snapshot_download(model_id, allow_patterns=["*.bin", "*.bin.index.json"], ignore_patterns=aside)
    except (OSError, ValueError) as error:  # every error of the hub is one of these
        raise _unknown(model_id, f"on the Hugging Face hub: {type(error).__name__}: {_first_line(error)}") from error
    return directory


def _unknown(spec: str, why: str) -> LoadError:
    return LoadError(f"there is no model {spec!r}", [why, _nearest_directories(spec)], KINDS)


def _nearest_directories(spec: str) -> str:
    """Directories with a model in them, beside where ``spec`` points and in the working directory."""
    places = dict.fromkeys([_path(spec).parent, Path()])
    found = [str(path) for place in places for path in _entries(place) if _looks_like_model(path)]
    return f"local directories with a model, {nearest(spec, list(dict.fromkeys(found)))}"


def _path(spec: str) -> Path:
    return Path(os.path.expanduser(spec))  # which, unlike Path.expanduser, leaves ~nobody as it is


def _entries(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:  # not there, or not ours to read: this is only for a hint
        return []


def _looks_like_model(path: Path) -> bool:
    return any(os.path.isfile(path / name) for name in ("config.json", "weights.safetensors"))


def load_hugging_face(directory: Path, dtype: torch.dtype) -> nn.Module:
    """The model in a local directory, of the class its config.json names.

    Raises:
        LoadError: no config.json, a class that transformers does not have, weights that are damaged or missing.
    """
    architecture = _architecture(directory)
    _refuse_damaged(directory)
    import transformers  # seconds, and only needed here

    known = getattr(transformers, architecture, None)
    if known is None:
        names = [name for name in dir(transformers) if name.startswith(architecture[:2])]
        raise LoadError(
            f"transformers {transformers.__version__} has no {architecture}, which {directory} asks for",
            [nearest(architecture, names)],
            "install a transformers that has it, or load the model in your own code and give py:module:factory",
        )
    try:
        with _quiet():
            model, report = known.from_pretrained(
                directory, dtype=dtype, output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # transformers raises whatever its models do
        raise LoadError(
            f"transformers could not load {directory} as {architecture}",
            [f"{type(error).__name__}: {_first_line(error)}"],
        ) from error
    _refuse_incomplete(report, directory, architecture)
    return model  # type: ignore[no-any-return]


def _architecture(directory: Path) -> str:
    config = directory / "config.json"
    if not config.is_file():
        raise LoadError(
            f"{directory} is not a Hugging Face model: it has no config.json",
            [_nearest_directories(str(directory))],
            f"if its tensors have HookedTransformer's names, say hooked:{directory}",
        )
    try:
        document = json.loads(read_bytes(config))
    except ValueError as error:
        raise LoadError(f"{config} is not JSON", [str(error)]) from error
    architectures = document.get("architectures") if isinstance(document, dict) else None
    match architectures:
        case [str() as architecture]:
            return architecture
    raise LoadError(
        f'{config} names no single class in "architectures": {architectures!r}',
        mend='add the class of the model, for example "architectures": ["LlamaForCausalLM"]',
    )


def _refuse_damaged(directory: Path) -> None:
    """Open every file of weights here: transformers' own messages do not say which is damaged."""
    misses = []
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            misses.append(f"{path.name}: {_first_line(error)}")
    if misses:
        raise LoadError(f"the weights in {directory} are damaged", misses, "copy them again from where they came from")


def _refuse_incomplete(report: Mapping[str, Any], directory: Path, architecture: str) -> None:
    """transformers draws weights that a checkpoint lacks at random, and only logs it: results would mean nothing."""
    misses = [f"missing: {name}" for name in sorted(report["missing_keys"])]
    misses += [
        f"of another shape: {item[0] if isinstance(item, tuple) else item}" for item in report["mismatched_keys"]
    ]
    if misses:
        raise LoadError(f"{directory} does not hold all the weights of {architecture}", misses)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no reports from transformers; its settings are put back."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def tokenizer_dir_of(directory: Path) -> Path | None:
    """``directory`` if it holds a tokenizer."""
    return directory if any((directory / name).is_file() for name in _TOKENIZER_FILES) else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
