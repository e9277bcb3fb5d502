"""Recompute what was recorded from other tensors: as the model computes it, or to ask what depends on what."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.wiring.trace import Op, Recording, Ref, mutates, overwritten, results

SOFTMAX = ("_softmax", "_safe_softmax", "softmax")

Look = Callable[[int], Tensor]
Redo = Callable[[Op, Look], list[Tensor]]


def replay(recording: Recording, targets: Sequence[int], given: Mapping[int, Tensor]) -> list[Tensor]:
    """Recompute ``targets`` with some versions replaced by ``given``; gradients flow."""
    return _replay(recording, targets, given, lambda value: recording.values[value].tensor, _again)


def probe(
    recording: Recording, targets: Sequence[int], given: Mapping[int, Tensor], open_softmax: bool = False
) -> list[Tensor]:
    """As ``replay``, with no weight zero: what depends on what is then a matter of structure, not of values.

    Under ``open_softmax`` a softmax does not normalise: else the one entry of a softmax over one (a single position,
    or a mask that leaves a single one) would depend on nothing.
    """

    def look(value: int) -> Tensor:
        tensor = recording.values[value].tensor
        return _without_zeros(tensor, value) if value in recording.weights else tensor

    return _replay(recording, targets, given, look, _again_open if open_softmax else _again)


def randomised(tensor: Tensor, seed: int) -> Tensor:
    """Random values in place of ``tensor``, for asking on what something depends."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(tensor.shape, generator=generator, dtype=torch.float32) * 0.5
    return made.to(tensor.device, tensor.dtype).requires_grad_()


def _replay(
    recording: Recording, targets: Sequence[int], given: Mapping[int, Tensor], recorded: Look, again: Redo
) -> list[Tensor]:
    values = recording.values
    changed: dict[int, Tensor] = dict(given)
    last = max((values[t].op or 0 for t in targets), default=0)
    first = min((values[v].op or 0 for v in given), default=0)

    def look(value: int) -> Tensor:
        return changed[value] if value in changed else recorded(value)

    for op in recording.ops[first : last + 1]:
        if any(i in changed for i in op.ins) and not all(o in given for o in op.outs):
            for out, tensor in zip(op.outs, again(op, look), strict=True):
                changed.setdefault(out, tensor)
    return [look(t) for t in targets]


def _again(op: Op, look: Look) -> list[Tensor]:
    def tensor_of(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        tensor = look(leaf.value)
        return tensor.clone() if mutates(op.func) else tensor

    args, kwargs = tree_map(tensor_of, (op.args, op.kwargs))
    func = torch.reshape if op.name in ("view", "_unsafe_view") and len(args[1]) else op.func  # strides may differ
    return results(func(*args, **kwargs), overwritten(op.func, args, kwargs))


def _again_open(op: Op, look: Look) -> list[Tensor]:
    if op.name not in SOFTMAX:
        return _again(op, look)
    (made,) = _again(op, look)
    x, axis = look(op.args[0].value), op.args[1]
    largest = x.detach().amax(axis, keepdim=True)
    return [(x - largest.nan_to_num(neginf=0.0)).exp().to(made.dtype)]  # of a row that is masked throughout: 0


def _without_zeros(tensor: Tensor, seed: int) -> Tensor:
    if not tensor.is_floating_point() or tensor.element_size() == 1:  # 8-bit floats cannot be computed with
        return tensor
    zeros = tensor == 0
    return torch.where(zeros, randomised(tensor, seed).detach().abs(), tensor) if bool(zeros.any()) else tensor
