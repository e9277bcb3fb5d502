"""Padding: where the real tokens are, and what to do about padding on the left."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from voltmeter.errors import KeepError, counted
from voltmeter.wiring.inputs import call

_ROUNDING = {torch.bfloat16: 1e-2, torch.float16: 1e-2}  # of one sum in another order, by the largest; else 1e-5


def mask_for(inputs: Any, shape: torch.Size, stream: str = "main") -> Tensor | None:
    """Bool, broadcastable to a stream of ``shape`` [batch, position, ...]; None when nothing is padded."""
    if not isinstance(inputs, Mapping):
        return None
    for name in _mask_names(inputs, stream):
        mask = inputs.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.bool().all()):
            if tuple(mask.shape) == tuple(shape[:2]) and len(shape) > 2:
                return mask.bool().reshape(*mask.shape, *([1] * (len(shape) - 2)))
            if mask.numel() == shape[0] and len(shape) == 2:  # a stream kept as [batch * position, width]
                return mask.bool().reshape(-1, 1)
    return None


def _mask_names(inputs: Mapping[str, Any], stream: str) -> tuple[str, ...]:
    """Which masks may be a stream's: source and target of an encoder-decoder can be of one length by chance."""
    if not any(str(name).startswith("decoder_") for name in inputs):
        return ("attention_mask",)
    if stream == "main" or "decoder" in stream:
        return ("decoder_attention_mask",)
    return ("attention_mask",) if "encoder" in stream else ("attention_mask", "decoder_attention_mask")


def with_positions(model: nn.Module, inputs: Any) -> Any:
    """Inputs padded on the left get ``position_ids`` from their mask. Raises KeepError where that cannot be right.

    It cannot where the model takes no positions, and where it reads in both directions: such models begin with a token
    of their own (pooling looks for it at the first place) or count positions in their own way. Whether it does is seen
    by running the longest of these rows twice, alone, which is all that left padding costs.
    """
    if not isinstance(inputs, Mapping):
        return inputs
    _refuse_rows(_left_padded(inputs.get("decoder_attention_mask")), "this model's decoder takes no position_ids")
    rows = _left_padded(inputs.get("attention_mask"))
    if not rows or "position_ids" in inputs:
        return inputs
    if "position_ids" not in inspect.signature(model.forward).parameters:
        _refuse_rows(rows, "this model takes no position_ids")
    if _reads_ahead(model, inputs, rows):
        _refuse_rows(rows, "this model reads in both directions")
    mask = inputs["attention_mask"]
    return {**inputs, "position_ids": (mask.long().cumsum(1) - 1).clamp_min(0)}


def _left_padded(mask: Any) -> list[int]:
    """The rows whose first place is padding."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not mask.numel():
        return []
    return torch.nonzero(~mask[:, 0].bool()).flatten().tolist()


def _refuse_rows(rows: list[int], why: str) -> None:
    if rows:
        what = counted(len(rows), "row is", "rows are")
        shown = f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:8]))}{' ...' if len(rows) > 8 else ''}"
        raise KeepError(f"{what} padded on the left, and {why}", [shown], "pad on the right")


# Does a place see those after it?


def _reads_ahead(model: nn.Module, inputs: Mapping[str, Any], rows: list[int]) -> bool:
    """Whether another last token changes what any module makes of the tokens before it, in the longest of ``rows``."""
    mask = inputs["attention_mask"].bool()
    row = max(rows, key=lambda r: int(mask[r].sum()))
    alone = {name: _alone(value, mask, row) for name, value in inputs.items()}
    tokens = next((name for name in ("input_ids", "inputs_embeds", *inputs) if _are_tokens(inputs, name, mask)), None)
    length = int(mask[row].sum())
    if tokens is None or length < 2:
        return False
    other = {**alone, tokens: _with_another_last(alone[tokens])}
    made = [_made_of(model, each, length) for each in (alone, other)]
    return any(_differ(one, other) for one, other in zip(*made, strict=False) if one.shape == other.shape)


def _with_another_last(tokens: Tensor) -> Tensor:
    """Ids or vectors [1, position, ...]; a vector is not moved along (1, 1, ...), which a norm would not notice."""
    changed, last = tokens.clone(), tokens[:, -1]
    if last.is_floating_point():
        changed[:, -1] = last + torch.linspace(-1, 1, last.shape[-1], dtype=last.dtype, device=last.device)
    else:
        changed[:, -1] = torch.where(last > 0, last - 1, last + 1)
    return changed


def _are_tokens(inputs: Mapping[str, Any], name: str, mask: Tensor) -> bool:
    return "mask" not in name and _is_per_token(inputs.get(name), mask)


def _is_per_token(value: Any, mask: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and value.shape[:2] == mask.shape


def _alone(value: Any, mask: Tensor, row: int) -> Any:
    """One row of an input, without its padding."""
    if _is_per_token(value, mask):
        return value[row : row + 1, mask[row]]
    per_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(mask)
    return value[row : row + 1] if per_row else value


def _made_of(model: nn.Module, inputs: Mapping[str, Any], length: int) -> list[Tensor]:
    """What every module returns of the tokens but the last: [1, position, ...], one for each call."""
    made: list[Tensor] = []
    own = {id(module) for module in model.modules()}  # the hook, which spares the model one, hears all others too

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) not in own:
            return
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.dim() == 3 and first.shape[:2] == (1, length):
            made.append(first[:, :-1].detach().clone())

    handle = register_module_forward_hook(keep)
    try:
        with torch.no_grad():
            call(model, inputs)
    finally:
        handle.remove()
    return made


def _differ(one: Tensor, other: Tensor) -> bool:
    gap = (one.double() - other.double()).abs().max()
    return bool(gap > _ROUNDING.get(one.dtype, 1e-5) * one.double().abs().max())
