"""From what a person writes on the command line to a model ready to be measured.

    demo                        the small model that ships with voltmeter
    ./stories260K, org/name     a Hugging Face model: a local directory, or an id on the hub
    hooked:DIR                  weights in HookedTransformer's format; hooked:DIR?attention=causal sets a setting
    py:package.module:factory   whatever factory() returns: a module, or (module, example inputs)
    katago:FILE, modular:DIR, decision:DIR
                                published models in formats of their own (``voltmeter.wiring.models``)
    rasp:...                    a compiled program (``voltmeter.rasp`` brings this one, with ``register_kind``)

Models come in eval mode and, but for ``py:``, in float32 unless another dtype is asked for. The network is touched
for hub ids alone. No code that comes with a model is run; ``py:`` runs code that the person names.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from voltmeter.errors import LoadError, nearest
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_files import load_hooked, load_hooked_file
from voltmeter.wiring.hugging_face import hugging_face_directory, load_hugging_face, tokenizer_dir_of

DATA = Path(__file__).parents[1] / "data"

Kind: TypeAlias = Literal["demo", "hugging-face", "hooked", "python", "compiled"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model and where it came from.

    ``tokenizer_dir`` is None where no tokenizer lies beside the weights; ``example`` is what a ``py:`` factory gave as
    inputs, or None; ``digest`` is that of the weights (``digest_of``); ``origin`` is what else its loader knows of it.
    """

    model: nn.Module
    tokenizer_dir: Path | None
    spec: str
    kind: Kind
    digest: str
    example: object | None = None
    origin: object | None = None


Loader: TypeAlias = Callable[[str, torch.dtype | None], LoadedModel]
_loaders: dict[str, Loader] = {}


def register_kind(prefix: str, loader: Loader) -> None:
    """Have ``load_model`` give every spec that begins with ``prefix:`` to ``loader``. For rooms after this one."""
    if prefix in _loaders:
        raise LoadError(f"models called {prefix}:... have a loader already")
    _loaders[prefix] = loader


def load_model(spec: str, *, dtype: torch.dtype | None = None) -> LoadedModel:
    """The model that ``spec`` names (see above), in eval mode.

    Raises:
        LoadError: nothing of that name, something that is no model, damaged weights, weights that are missing, or a
            factory that does not give a module.
    """
    kind, _, rest = spec.partition(":")
    if spec == "demo":
        return _loaded(spec, "demo", load_demo(dtype))
    if kind == "hooked":
        directory, model = _hooked(rest, dtype)
        return _loaded(spec, "hooked", model, tokenizer_dir_of(directory))
    if kind == "py":
        model, example = _from_factory(spec)
        return _loaded(spec, "python", model if dtype is None else model.to(dtype), example=example)
    if kind in _loaders:
        return _loaders[kind](spec, dtype)
    directory = hugging_face_directory(spec)
    model = load_hugging_face(directory, dtype or torch.float32)
    return _loaded(spec, "hugging-face", model, tokenizer_dir_of(directory))


def _loaded(
    spec: str, kind: Kind, model: nn.Module, tokenizer_dir: Path | None = None, example: object | None = None
) -> LoadedModel:
    return LoadedModel(model.eval(), tokenizer_dir, spec, kind, digest_of(model), example)


def load_demo(dtype: torch.dtype | None = None) -> HookedModel:
    """The two-layer attention-only model that ships with voltmeter (``tools/train_demo.py`` makes it)."""
    return load_hooked_file(DATA / "demo.safetensors", DATA / "demo.json", dtype or torch.float32)


def digest_of(module: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all weights and saved buffers, in order of their names.

    Costs one pass over the weights on the CPU, a tensor at a time.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- hooked:DIR?setting=value ---------------------------------------------------------------------------------


def _hooked(rest: str, dtype: torch.dtype | None) -> tuple[Path, nn.Module]:
    name, _, query = rest.partition("?")
    directory = Path(name).expanduser()
    settings = {name: _value(text) for name, text in parse_qsl(query, keep_blank_values=True)}
    return directory, load_hooked(directory, settings=settings, dtype=dtype or torch.float32)


def _value(text: str) -> Any:
    """JSON where it is JSON (null, true, 0.5), else the text itself: attention=causal needs no quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- py:package.module:factory --------------------------------------------------------------------------------


def _from_factory(spec: str) -> tuple[nn.Module, object | None]:
    with _working_directory_importable():
        made = _call(_factory(spec), spec)
    match made:
        case nn.Module():
            return made, None
        case (nn.Module() as model, example):
            return model, example
    raise LoadError(
        f"{spec} returned {_kind_of(made)}; a torch.nn.Module, or (module, example inputs), was expected",
        mend="return the module itself",
    )


def _factory(spec: str) -> Callable[[], object]:
    _, _, rest = spec.partition(":")
    module_name, _, name = rest.partition(":")
    if not module_name or not name:
        raise LoadError(f"{spec!r} does not name a factory", mend="write py:package.module:factory")
    module = _import(module_name, spec)
    factory = vars(module).get(name)
    if callable(factory):
        return factory  # type: ignore[no-any-return]
    if factory is not None:
        raise LoadError(f"{name} in {module_name} is {_kind_of(factory)}; a factory to call was expected")
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise LoadError(f"{module_name} has nothing called {name!r}", [nearest(name, known)])


def _import(module_name: str, spec: str) -> Any:
    """The module, looked for in the working directory too. Whatever its code raises becomes a LoadError."""
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # the module is the person's own code
        raise LoadError(
            f"{module_name!r} in {spec!r} could not be imported",
            [f"{type(error).__name__}: {error}"],
            "modules are looked for in the working directory and among the installed packages",
        ) from error


def _call(factory: Callable[[], object], spec: str) -> object:
    try:
        return factory()
    except Exception as error:  # the factory is the person's own code
        raise LoadError(
            f"{spec} failed", [f"{type(error).__name__}: {error}"], "it is called with no arguments"
        ) from error


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _kind_of(value: object) -> str:
    name = type(value).__name__
    return "nothing" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
