"""A paired run must be paired: the same shapes and the same padding, row by row."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from voltmeter.errors import FillError, counted


def check_paired(inputs: Any, corrupted: Any) -> None:
    """Raise FillError, naming every tensor and row, where corrupted inputs do not pair with the clean ones."""
    clean, other = _leaves(inputs), _leaves(corrupted)
    names = [name for name in dict.fromkeys((*clean, *other)) if not _may_be_missing(name)]
    wrong = [
        f"{name or 'the inputs'}: {_shape(clean.get(name))} clean, {_shape(other.get(name))} corrupted"
        for name in names
        if _shape(clean.get(name)) != _shape(other.get(name))
    ]
    if wrong:
        raise FillError("the corrupted inputs have other shapes than the clean ones", wrong, "pair them row by row")
    padded = [f"{name}, row {row}" for name, row in _padded_otherwise(clean, other)]
    if padded:
        raise FillError(
            f"the corrupted inputs are padded otherwise than the clean ones in {counted(len(padded), 'row', 'rows')}",
            padded,
            "pair rows of equal length, padded on the same side",
        )


def _leaves(inputs: Any) -> dict[str, Tensor]:
    return {keystr(path): leaf for path, leaf in tree_flatten_with_path(inputs)[0] if isinstance(leaf, Tensor)}


def _may_be_missing(name: str) -> bool:
    """A mask of nothing but ones may be left out, and positions follow from the mask."""
    return "mask" in name or "position_ids" in name


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))


def _padded_otherwise(clean: dict[str, Tensor], other: dict[str, Tensor]) -> Iterator[tuple[str, int]]:
    for name in dict.fromkeys((*clean, *other)):
        if "mask" not in name:
            continue
        given = [mask.bool() for mask in (clean.get(name), other.get(name)) if mask is not None]
        one, two = given if len(given) == 2 else (given[0], torch.ones_like(given[0]))
        if one.shape != two.shape:
            yield name, 0
        else:
            differ = (one != two).reshape(len(one), -1).any(1)
            yield from ((name, row) for row in torch.nonzero(differ).flatten().tolist())
