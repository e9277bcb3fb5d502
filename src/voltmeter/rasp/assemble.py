"""Heads and hidden units written into the matrices of a CompiledTransformer, and the edges that they make."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voltmeter.errors import ProgramError
from voltmeter.rasp.model import CompiledTransformer, Interface, Shape, layers_of
from voltmeter.rasp.weights import Head, Sum, Unit


@dataclass(frozen=True)
class Parts:
    """All that a model computes: its heads by (layer, head), its units by layer, its embeddings by row.

    A row of an embedding is the dimensions in which it is 1.
    """

    heads: Mapping[tuple[int, int], Head]
    units: Mapping[int, Sequence[Unit]]
    token_rows: Sequence[Sequence[int]]
    position_rows: Sequence[Sequence[int]]


def assemble(parts: Parts, interface: Interface, causal: bool) -> CompiledTransformer:
    """The smallest model that holds the parts; every layer has attention and an MLP, whether used or not."""
    layers = max([0, *(layer for layer, _ in parts.heads), *parts.units]) + 1
    shape = Shape(
        rows=len(parts.token_rows),
        positions=len(parts.position_rows),
        d_model=len(interface.labels),
        layers=layers,
        heads=max([0, *(head for _, head in parts.heads)]) + 1,
        d_head=max([1, *(head.width for head in parts.heads.values())]),
        d_mlp=max([1, *(len(units) for units in parts.units.values())]),
        causal=causal,
    )
    model = CompiledTransformer(shape, interface)
    fill_embeddings(model, parts)
    for (layer, head), weights in parts.heads.items():
        write_head(model, layer, head, weights)
    for layer, units in parts.units.items():
        write_units(model, layer, units)
    return model


def fill_embeddings(model: CompiledTransformer, parts: Parts) -> None:
    """Write the rows of both embeddings, in place."""
    _write_rows(model.token_embedding.weight, [dict.fromkeys(row, 1.0) for row in parts.token_rows])
    _write_rows(model.position_embedding.weight, [dict.fromkeys(row, 1.0) for row in parts.position_rows])


def write_head(model: CompiledTransformer, layer: int, head: int, weights: Head) -> None:
    """Write a head, in place. The head must be free and as wide as the weights need."""
    attention, d_head = layers_of(model)[layer].attention, model.shape.d_head
    if weights.width > d_head:
        raise ProgramError(
            f"a{layer}.h{head} needs d_head {weights.width}, and the model has {d_head}",
            mend="place it in a model with wider heads, or select over fewer values",
        )
    start = head * d_head
    used = attention.value.weight[start : start + d_head].any() or attention.query.weight[start : start + d_head].any()
    if used:
        raise ProgramError(f"a{layer}.h{head} is already in use", mend="choose another head")
    for sums, matrix in (
        (weights.queries, attention.query.weight),
        (weights.keys, attention.key.weight),
        (weights.values, attention.value.weight),
        (weights.outputs, attention.output.weight.T),
    ):
        _write_rows(matrix[start : start + d_head], sums)


def write_units(model: CompiledTransformer, layer: int, units: Sequence[Unit]) -> None:
    """Write units into the free ones of an MLP, in place."""
    mlp = layers_of(model)[layer].mlp
    used = mlp.first.weight.any(1) | mlp.second.weight.any(0) | (mlp.first.bias != 0)
    free = (~used).nonzero().flatten().tolist()
    if len(free) < len(units):
        raise ProgramError(
            f"m{layer} has {len(free)} free hidden units, and {len(units)} are needed",
            mend="place it in another layer, or in a model with a larger d_mlp",
        )
    chosen = free[: len(units)]
    for row, unit in zip(chosen, units, strict=True):
        _write_rows(mlp.first.weight[row : row + 1], [unit.reads])
        _write_rows(mlp.second.weight.T[row : row + 1], [unit.writes])


def _write_rows(matrix: Tensor, sums: Sequence[Sum]) -> None:
    """Row i of ``matrix``, a view of a parameter, becomes ``sums[i]``."""
    with torch.no_grad():
        for row, weights in enumerate(sums):
            matrix[row, list(weights)] = torch.tensor(list(weights.values()), dtype=matrix.dtype)


def carried(parts: Parts, interface: Interface) -> dict[str, tuple[str, ...]]:
    """The edges that the parts make, "a0.h0 -> m0", each with the labels of the dimensions that it carries.

    Nothing is run or cut: an edge is a dimension that one component writes and a later one reads.
    """
    writers = _writers(parts)
    edges: dict[str, tuple[str, ...]] = {}
    for reader, dimensions in _readers(parts, interface).items():
        for writer, written in writers.items():
            shared = sorted(dimensions & written)
            if shared:
                edges[f"{writer} -> {reader}"] = tuple(interface.labels[at] for at in shared)
    return edges


def _writers(parts: Parts) -> dict[str, set[int]]:
    """The dimensions that each component writes."""
    writers = {
        "input.tok": {at for row in parts.token_rows for at in row},
        "input.pos": {at for row in parts.position_rows for at in row},
    }
    for (layer, head), weights in sorted(parts.heads.items(), key=_place):
        writers[f"a{layer}.h{head}"] = _dimensions(weights.outputs)
    for layer, units in sorted(parts.units.items(), key=lambda item: item[0]):
        writers[f"m{layer}"] = _dimensions(unit.writes for unit in units)
    return writers


def _readers(parts: Parts, interface: Interface) -> dict[str, set[int]]:
    """The dimensions that each reader reads, in the order of the layers."""
    readers: dict[str, set[int]] = {}
    for layer in sorted({*(layer for layer, _ in parts.heads), *parts.units}):
        for head, weights in ((h, w) for (at, h), w in sorted(parts.heads.items(), key=_place) if at == layer):
            sums = {"q": weights.queries, "k": weights.keys, "v": weights.values}
            readers |= {f"a{layer}.h{head}<{port}>": _dimensions(read) for port, read in sums.items()}
        readers[f"m{layer}"] = _dimensions(unit.reads for unit in parts.units.get(layer, ()))
    readers["logits"] = set(interface.output)
    return readers


def _dimensions(sums: Iterable[Sum]) -> set[int]:
    return {at for weights in sums for at in weights}


def _place(item: tuple[tuple[int, int], Head]) -> tuple[int, int]:
    return item[0]
