"""Example inputs: what a model is wired with where no task says what it is fed.

text             {"input_ids"}: two rows of twelve different tokens; encoder-decoders get decoder_input_ids too
images           {"pixel_values"}: two images of noise, of the size in the model's config
demo, hooked:    token ids alone, as many as the model has positions for
py:              what the factory gave beside the module
a file           a .safetensors file of the model's arguments: by name, or numbered 0, 1, ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from voltmeter.cli.screen import count
from voltmeter.errors import FormatError, LoadError, TaskError, VoltmeterError
from voltmeter.run.padding import with_positions
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.task.tree import attention_mask, map_tensors, named_tensors, token_ids
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.inputs import call
from voltmeter.wiring.load import LoadedModel

ROWS, LENGTH = 2, 12
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_GIVE = "give inputs of your own: --input FILE.safetensors, the model's arguments by name"


@dataclass(frozen=True)
class Limits:
    """What token ids a model takes, and how many; None where it does not say."""

    vocabulary: int | None
    positions: int | None

    @classmethod
    def of(cls, model: nn.Module) -> Limits:
        """Those of a ``HookedModel`` or a Hugging Face model; nothing is known of others."""
        if isinstance(model, HookedModel):
            return cls(model.settings.d_vocab, model.settings.n_ctx)
        config = _text_config(model)
        return cls(getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None))


def example_for(loaded: LoadedModel, file: Path | None = None) -> Any:
    """Inputs to wire a model with, from ``file`` or made up; padded on the left they get their positions.

    Raises LoadError where none can be made or the model does not run on them, FormatError for a file that holds no
    inputs, KeepError for rows padded on the left that a model cannot be told of.
    """
    inputs = _made(loaded) if file is None else read_inputs(file)
    run_once(loaded.model, inputs, f"{loaded.spec} does not run on the example inputs", LoadError)
    return with_positions(loaded.model, inputs)


def read_inputs(file: Path) -> Any:
    """The tensors of a .safetensors file: a dict by name, or where the names are 0, 1, ... a tuple."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"no inputs can be read from {file}",
            [str(error)],
            "give a .safetensors file that holds the model's arguments by name",
        ) from error
    if not tensors:
        raise FormatError(f"{file} holds no tensors", mend=_GIVE)
    if all(name.isdecimal() for name in tensors):
        return tuple(tensors[name] for name in sorted(tensors, key=int))
    return tensors


def run_once(model: nn.Module, inputs: Any, problem: str, kind: type[VoltmeterError]) -> None:
    """Runs the model; whatever it raises becomes an error of ``kind`` that says what it was given."""
    try:
        with torch.no_grad():
            call(model, inputs)
    except VoltmeterError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        given = [f"{name or 'inputs'}: {str(t.dtype)[6:]} {list(t.shape)}" for name, t in named_tensors(inputs)]
        mend = _GIVE if kind is LoadError else ""
        raise kind(problem, [f"{type(error).__name__}: {first}", *given], mend) from error


# --- made up --------------------------------------------------------------------------------------------------


def _made(loaded: LoadedModel) -> Any:
    if loaded.kind == "python":
        if loaded.example is None:
            raise LoadError(
                f"{loaded.spec} gives no example inputs to wire the model with",
                mend="let the factory return (module, example inputs), or give --input FILE.safetensors",
            )
        return loaded.example
    model, limits = loaded.model, Limits.of(loaded.model)
    if isinstance(model, HookedModel):
        return _hooked(model, limits)
    main = str(getattr(model, "main_input_name", "input_ids"))
    maker = _MAKERS.get(main)
    if maker is None or (main == "input_ids" and limits.vocabulary is None):
        raise LoadError(f"no example inputs are known for {type(model).__name__}, which takes {main}", mend=_GIVE)
    return maker(model, limits)


def _hooked(model: HookedModel, limits: Limits) -> Tensor:
    if limits.vocabulary is None:
        length = min(LENGTH, limits.positions or LENGTH)
        return torch.randn(ROWS, length, model.settings.d_model, generator=_generator())
    return _tokens(limits, frozenset())


def _text(model: nn.Module, limits: Limits) -> dict[str, Tensor]:
    config = _text_config(model)
    special = frozenset(i for i in (getattr(config, name, None) for name in _SPECIAL) if isinstance(i, int))
    tokens = _tokens(limits, special)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
    return {"input_ids": tokens}


def _images(model: nn.Module, limits: Limits) -> dict[str, Tensor]:
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    shape = (ROWS, getattr(config, "num_channels", 3), height, width)
    return {"pixel_values": torch.randn(shape, generator=_generator())}


_MAKERS: dict[str, Callable[[nn.Module, Limits], dict[str, Tensor]]] = {"input_ids": _text, "pixel_values": _images}


def _tokens(limits: Limits, special: frozenset[int]) -> Tensor:
    """Int [row, position]: all different while the vocabulary lasts, none of them special."""
    length = min(LENGTH, limits.positions or LENGTH)
    ids = torch.tensor([i for i in range(limits.vocabulary or 0) if i not in special] or [0])
    order = torch.randperm(len(ids), generator=_generator())
    return ids[order[torch.arange(ROWS * length) % len(ids)]].reshape(ROWS, length)


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    return config if text is None else text()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- a task's inputs, against what the model takes ------------------------------------------------------------


def require_fitting_lengths(task: Task, model: nn.Module, spec: str, device: torch.device) -> None:
    """Raises TaskError naming the longest row of a split if the model does not run on it. Costs two runs of a row."""
    for split, pairs in (("train", task.train), ("held-out", task.held_out)):
        mask = attention_mask(pairs.clean)
        if mask is None:  # then every row is as long as the example's
            continue
        longest = int(mask.ne(0).sum(dim=1).argmax())
        inputs = map_tensors(pairs.batch([longest]).clean, lambda tensor: tensor.to(device))
        problem = f"{spec} does not run on {split} row {pairs.rows[longest]} of {task.name}, the longest"
        run_once(model, inputs, problem, TaskError)


def require_known_tokens(task: Task, model: nn.Module) -> None:
    """Raises TaskError listing the rows whose tokens or answers are outside the model's vocabulary."""
    size = Limits.of(model).vocabulary
    answers = model.settings.d_vocab_out if isinstance(model, HookedModel) else size
    rows = [(split, pairs) for split, pairs in (("train", task.train), ("held-out", task.held_out))]
    if task.train is task.held_out:
        rows = rows[:1]
    if size is not None:
        _refuse(size, "tokens", [miss for split, pairs in rows for miss in _unknown_tokens(split, pairs, size)])
    if answers is not None:
        _refuse(answers, "answers", [miss for split, pairs in rows for miss in _unknown_answers(split, pairs, answers)])


def _refuse(size: int, what: str, misses: list[tuple[str, str]]) -> None:
    """``misses``: a row, and what of it. A row may miss on both sides."""
    if misses:
        n_rows = len({row for row, _ in misses})
        raise TaskError(
            f"{count(n_rows, 'pair has', 'pairs have')} {what} missing from the vocabulary of {size:,} tokens",
            [row + miss for row, miss in misses],
            "give the token ids of this model's tokenizer",
        )


def _unknown_tokens(split: str, pairs: Pairs, size: int) -> list[tuple[str, str]]:
    misses = []
    for side, inputs in (("clean", pairs.clean), ("corrupted", pairs.corrupted)):
        ids, mask = token_ids(inputs), attention_mask(inputs)
        if ids is None:
            continue
        outside = (ids < 0) | (ids >= size)
        if mask is not None:
            outside &= mask.ne(0)
        for i in outside.any(dim=1).nonzero().flatten().tolist():
            misses.append((f"{split} row {pairs.rows[i]}", f", {side}: {ids[i][outside[i]].tolist()}"))
    return misses


def _unknown_answers(split: str, pairs: Pairs, size: int) -> list[tuple[str, str]]:
    misses = []
    for i, row in enumerate(pairs.rows):
        given = [*pairs.answers[i].flatten().tolist(), *pairs.wrong[i].flatten().tolist()]
        unknown = [token for token in given if token >= size]
        if unknown:
            misses.append((f"{split} row {row}", f": {unknown}"))
    return misses
