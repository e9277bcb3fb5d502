"""Inputs of a model, as a pytree: a tensor, a tuple (positional) or a mapping (by keyword). Axis 0 is the batch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from voltmeter.errors import WiringError
from voltmeter.wiring.trace import BYPRODUCTS


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """``model(x)``, ``model(*x)`` or ``model(**x)``, as the inputs are."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def output_tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of what a model returned, without the cache for the next token."""
    if isinstance(output, Mapping):
        output = {k: v for k, v in output.items() if k not in BYPRODUCTS}
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


def batch_size(inputs: Any) -> int:
    """Rows along axis 0. Raises WiringError when the tensors disagree."""
    sizes = {t.shape[0] for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim() > 0}
    if len(sizes) != 1:
        raise WiringError(
            "the inputs' tensors have no batch axis in common",
            [f"sizes of axis 0: {sorted(sizes) or 'no tensors at all'}"],
            "give tensors whose axis 0 is the batch",
        )
    return sizes.pop()


def refuse_empty(inputs: Any) -> None:
    """Raises WiringError for a batch without rows."""
    if any(t.dim() > 0 and t.shape[0] == 0 for t in tree_leaves(inputs) if isinstance(t, Tensor)):
        raise WiringError("the inputs hold no rows", mend="give at least one")


def rows(inputs: Any, which: slice) -> Any:
    """Some rows of every tensor."""
    return tree_map(lambda t: t[which] if isinstance(t, Tensor) and t.dim() > 0 else t, inputs)


def expand_rows(inputs: Any, times: int) -> Any:
    """The whole batch, ``times`` times over (circuits are run as one batch)."""
    return tree_map(
        lambda t: t.repeat(times, *([1] * (t.dim() - 1))) if isinstance(t, Tensor) and t.dim() > 0 else t, inputs
    )


def shorter(inputs: Any) -> Any | None:
    """One position less along axis 1 of every sequence (of tokens, of vectors, of mask bits); else None.

    None where some tensor is no sequence, or where one is too short to lose a position.
    """
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    sequences = all((t.dim() == 2 and not t.is_floating_point()) or t.dim() == 3 for t in tensors)
    if not tensors or not sequences or min(t.shape[1] for t in tensors) < 3:
        return None
    return tree_map(lambda t: t[:, :-1] if isinstance(t, Tensor) else t, inputs)


def altered(inputs: Any) -> Any:
    """Another input of the same shapes: every entry from elsewhere in the batch, and noise on real numbers.

    Masks and positions stay. So do integers that are the same everywhere (token types, say), unless nothing would
    change then.
    """
    changed = torch.utils._pytree.tree_map_with_path(lambda path, t: _moved(path, t, shift=False), inputs)
    if _same(changed, inputs):
        changed = torch.utils._pytree.tree_map_with_path(lambda path, t: _moved(path, t, shift=True), inputs)
    return changed


def _moved(path: Any, tensor: Any, shift: bool) -> Any:
    if not isinstance(tensor, Tensor) or tensor.dim() == 0 or _is_mask(path, tensor):
        return tensor
    other = tensor.flip(0)
    if not tensor.is_floating_point():
        other = other.roll(1, -1)
        return torch.where(tensor > 0, tensor - 1, tensor + 1) if shift and torch.equal(other, tensor) else other
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
    spread = tensor.std() if tensor.numel() > 1 else tensor.new_ones(())
    return other + noise * torch.where(spread > 0, spread, torch.ones_like(spread))


def _same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs if isinstance(x, Tensor))


def _is_mask(path: Any, tensor: Tensor) -> bool:
    name = str(getattr(path[-1], "key", "")) if path else ""
    return tensor.dtype == torch.bool or "mask" in name or "position" in name


def paired(example: Any) -> Any:
    """At least two different rows: a row that is alone, or the same as those beside it, gets an altered twin."""
    first, few = rows(example, slice(0, 1)), rows(example, slice(0, 3))
    if batch_size(example) > 1 and not _same(few, expand_rows(first, batch_size(few))):
        return few
    other = altered(first)
    return tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) and a.dim() > 0 else a, first, other)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
