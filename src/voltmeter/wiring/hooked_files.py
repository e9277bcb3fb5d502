"""Reads and writes ``HookedModel`` on disk: one file of tensors and a small JSON of settings.

Every tensor of a checkpoint is accounted for: it is a weight of the model its settings describe, a buffer on the
list below, or an error. So is every weight that the model needs and the checkpoint lacks; only biases may be absent.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from voltmeter.errors import LoadError
from voltmeter.files import read_bytes, write_directory
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_settings import own_word, read_settings

WEIGHTS = "weights.safetensors"
SETTINGS_FILES = ("voltmeter.json", "settings.json", "config.json", "about.json")
"""Where settings are looked for, in this order; in a file with an object "settings" or "architecture", that object."""

BUFFERS = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)")
"""What checkpoints carry beside weights. A ``mask`` must be the plain causal one; the others are made anew."""

_BIAS = re.compile(r".*\.(_?b_\w+|b)")
_ANY_BLOCK = re.compile(r"blocks\.(\d+)\.")
_MEND = (
    "keys are those of HookedTransformer: embed.W_E [vocab, d_model], blocks.0.attn.W_Q [heads, d_model, d_head], ..."
)


def load_hooked(
    directory: Path | str, *, settings: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> HookedModel:
    """The model in ``directory``, in eval mode.

    Weights are in ``weights.safetensors``, or in the only .safetensors, .pt or .pth file there.

    Args:
        settings: these go before what the JSON in the directory says; with them there need be none.
            ``{"prefix": "transformer."}`` takes only the tensors whose names begin so, and leaves the others, which
            belong to a model around this one.

    Raises:
        LoadError: nothing to load, a damaged file, or settings and tensors that do not fit, each one listed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise LoadError(
            f"there is no directory {directory}", mend="hooked: takes a directory with weights and settings"
        )
    tensors = read_tensors(weights_file(directory))
    first = dict(settings or {})
    found, source = _settings_in(directory, needed=not first)
    replaced = {own_word(word) for word in first}
    given = {word: value for word, value in found.items() if own_word(word) not in replaced} | first
    return _assemble(tensors, given, source, dtype)


def load_hooked_file(weights: Path, settings_file: Path, dtype: torch.dtype = torch.float32) -> HookedModel:
    """As ``load_hooked``, from a file of tensors and a JSON file with an object "settings"."""
    return _assemble(read_tensors(weights), _settings_from(settings_file) or {}, str(settings_file), dtype)


def save_hooked(model: HookedModel, directory: Path | str) -> None:
    """Write ``model`` as ``weights.safetensors`` and ``settings.json``, both or neither. Raises OutputError."""
    settings = json.dumps({"settings": asdict(model.settings)}, indent=1) + "\n"
    write_directory(directory, {WEIGHTS: safetensors_bytes(_weights(model)), "settings.json": settings.encode()})


def _weights(model: HookedModel) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


# --- files ----------------------------------------------------------------------------------------------------


def weights_file(directory: Path) -> Path:
    """``weights.safetensors``, or the only .safetensors, .pt or .pth file. Raises LoadError for none, or several."""
    if (directory / WEIGHTS).is_file():
        return directory / WEIGHTS
    found = sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".pt", ".pth"))
    if len(found) == 1:
        return found[0]
    problem = "more than one file of weights" if found else "no file of weights"
    raise LoadError(
        f"{directory} holds {problem}",
        [path.name for path in found],
        f"name it {WEIGHTS}, or leave only one .safetensors, .pt or .pth file there",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors from a .safetensors file, or from a .pt/.pth file that holds nothing but tensors.

    Raises:
        LoadError: the file is missing, damaged, or would run code to be loaded.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # read or refused all the same
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LoadError(f"there is no file {path}") from None
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"{path} holds more than tensors, and loading it could run code",
            [str(error).splitlines()[0]],
            "save its state dict alone, best as .safetensors",
        ) from error
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise LoadError(
            f"{path} is damaged, or is no file of tensors",
            [str(error).splitlines()[0] if str(error) else type(error).__name__],
            "copy it again from where it came from",
        ) from error
    return _state_dict(loaded, path)


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    """The names and tensors in what ``torch.load`` gave: the mapping itself, or the one such mapping inside it."""
    if not isinstance(loaded, Mapping):
        raise LoadError(f"{path} holds a {type(loaded).__name__}; names and their tensors were expected")
    candidates = [loaded, *(value for value in loaded.values() if isinstance(value, Mapping))]
    good = [c for c in candidates if c and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in c.items())]
    if len(good) != 1:
        raise LoadError(f"{path} holds {len(good)} sets of named tensors; one was expected", mend="save one state dict")
    return dict(good[0])


def _settings_in(directory: Path, needed: bool) -> tuple[dict[str, Any], str]:
    for name in SETTINGS_FILES:
        path = directory / name
        if path.is_file() and (settings := _settings_from(path)) is not None:
            return settings, str(path)
    if not needed:
        return {}, "the settings given"
    raise LoadError(
        f"{directory} has no settings",
        [f'looked for {", ".join(SETTINGS_FILES)}; about.json needs an object "architecture"'],
        'write settings.json, for example {"attention": "causal", "norm": null, "activation": "relu"}',
    )


def _settings_from(path: Path) -> dict[str, Any] | None:
    """The settings in a JSON file; None where it is an about.json without any."""
    try:
        document = json.loads(read_bytes(path))
    except ValueError as error:
        raise LoadError(f"{path} is not JSON", [str(error)]) from error
    if not isinstance(document, dict):
        raise LoadError(f"{path} holds a {type(document).__name__}; an object of settings was expected")
    for key in ("settings", "architecture"):
        if isinstance(document.get(key), dict):
            return dict(document[key])
    return None if path.name == "about.json" else document


# --- tensors --------------------------------------------------------------------------------------------------


def _assemble(tensors: dict[str, Tensor], settings: Mapping[str, Any], source: str, dtype: torch.dtype) -> HookedModel:
    given = dict(settings)
    prefix = str(given.pop("prefix", ""))
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    buffers = {name: own.pop(name) for name in list(own) if BUFFERS.fullmatch(name)}
    shown, unreadable = _shown_by(own)
    misses = [*unreadable, *_odd_masks(buffers)]
    if misses:
        raise LoadError("these tensors are not those of a HookedTransformer-style model", misses, _MEND)
    model = HookedModel(read_settings(given, shown, source)).to(dtype)  # first, so that float64 stays exact
    _fill(model, own)
    return model.eval()


def _shown_by(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[str]]:
    """The settings that names and shapes give away, and the tensors that should have shown one and cannot."""
    first = next((n[: -len("attn.W_Q")] for n in tensors if n.endswith("attn.W_Q")), "blocks.0.")
    misses: list[str] = []

    def size(name: str, axes: int, axis: int, needed: bool = False) -> int | None:
        tensor = tensors.get(name)
        if tensor is None:
            misses.extend([f"there is no {name}"] * needed)
            return None
        if tensor.ndim != axes:
            misses.append(f"{name} has shape {list(tensor.shape)}; {axes} axes were expected")
            return None
        return tensor.shape[axis]

    shown: dict[str, Any] = {
        "n_layers": len({m[1] for n in tensors if (m := _ANY_BLOCK.match(n))}),
        "n_heads": size(f"{first}attn.W_Q", 3, 0, needed=True),
        "d_model": size(f"{first}attn.W_Q", 3, 1),
        "d_head": size(f"{first}attn.W_Q", 3, 2),
        "n_key_value_heads": size(f"{first}attn._W_K", 3, 0),
        "d_vocab": size("embed.W_E", 2, 0),
        "d_vocab_out": size("unembed.W_U", 2, 1),
        "d_mlp": size(f"{first}mlp.W_in", 2, 1),
        "gated": f"{first}mlp.W_gate" in tensors,
    }
    if (n_ctx := size("pos_embed.W_pos", 2, 0)) is not None:
        shown |= {"positions": "learned", "n_ctx": n_ctx}
    if "ln_final.b" in tensors or f"{first}ln1.b" in tensors:
        shown["norm"] = "LN"  # weights without biases can be either kind
    return shown, list(dict.fromkeys(misses))


def _odd_masks(buffers: Mapping[str, Tensor]) -> Iterator[str]:
    """A checkpoint's own mask is the causal one, whatever it attends to; another one means local attention."""
    for name, mask in buffers.items():
        if name.endswith("mask") and not torch.equal(mask.bool(), torch.ones_like(mask, dtype=torch.bool).tril()):
            yield f"{name} is not the causal mask; local attention cannot be loaded"


def _fill(model: HookedModel, tensors: Mapping[str, Tensor]) -> None:
    """Give ``model`` its weights; biases that ``tensors`` lack are taken out of it."""
    wanted = dict(model.named_parameters())
    absent = wanted.keys() - tensors.keys()
    misses = [
        *(f"missing: {name} {list(wanted[name].shape)}" for name in sorted(absent) if not _BIAS.fullmatch(name)),
        *(f"unexpected: {name} {list(tensors[name].shape)}" for name in sorted(tensors.keys() - wanted.keys())),
        *_misshapen(wanted, tensors),
    ]
    if misses:
        raise LoadError("the tensors do not fit the model that the settings describe", misses, _MEND)
    for name in absent:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, None)
    model.load_state_dict(dict(tensors))


def _misshapen(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Iterable[str]:
    for name in sorted(wanted.keys() & tensors.keys()):
        if wanted[name].shape != tensors[name].shape:
            yield f"{name} has shape {list(tensors[name].shape)}; {list(wanted[name].shape)} was expected"
        elif not tensors[name].is_floating_point():
            yield f"{name} is {tensors[name].dtype}; floating point was expected"
        elif not tensors[name].isfinite().all():
            yield f"{name} holds values that are not finite"
