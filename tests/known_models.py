"""Compiled transformers written by hand, whose minimal circuits can be read off, and small random ones.

A planted model has no working attention: MLPs read and write named dimensions of the stream. So of its edges only those
into MLPs and into the output matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from conftest import asset

from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.exports import load_export
from voltmeter.rasp.model import CompiledTransformer, Interface, Shape

EXPORTS = ("frac_prevs_x", "hist", "length", "reverse", "shuffle_dyck", "sort_freq", "sort_unique")
VALUES = (1, 2, 3)

Terms = Mapping[str, float]  # dimension -> coefficient; "1" is the bias
Unit = tuple[Terms, Terms]  # what a hidden unit takes the ReLU of, and what it adds to the stream


def export(name: str) -> Compiled:
    return load_export(asset("tracr") / name)


def interface(labels: Sequence[str], output: Sequence[str]) -> Interface:
    rows = {**{value: at for at, value in enumerate(VALUES)}, "BOS": len(VALUES), "pad": len(VALUES) + 1}
    at = tuple(labels.index(label) for label in output)
    decoded = None if len(output) == 1 else tuple(output)
    return Interface("planted", VALUES, rows, "BOS", "pad", 2, tuple(labels), at, decoded)


def planted(mlps: Sequence[Sequence[Unit]], dimensions: Sequence[str] = ()) -> Compiled:
    """A model of one MLP per layer. A token v is written as v in dimension "x"; the output is dimension "out".

    ``dimensions``: further ones that units write and read.
    """
    labels = ["x", "out", *dimensions]
    shape = Shape(len(VALUES) + 2, 3, len(labels), len(mlps), 1, 1, max(map(len, mlps)))
    model = CompiledTransformer(shape, interface(labels, ["out"]))
    with torch.no_grad():
        model.token_embedding.weight[: len(VALUES), 0] = torch.tensor(VALUES, dtype=torch.float64)
        for layer, units in zip(model.layers, mlps, strict=True):
            for row, (taken, added) in enumerate(units):
                for label, coefficient in taken.items():
                    if label == "1":
                        layer.mlp.first.bias[row] = coefficient
                    else:
                        layer.mlp.first.weight[row, labels.index(label)] = coefficient
                for label, coefficient in added.items():
                    layer.mlp.second.weight[labels.index(label), row] = coefficient
    return with_all_inputs(model, "planted")


def with_all_inputs(model: CompiledTransformer, name: str, length: int = 2) -> Compiled:
    """With every input of that length, and what the model itself says of them."""
    inputs = tuple(itertools.product(model.interface.vocabulary, repeat=length))
    outputs = tuple(tuple(row) for row in model.compute(inputs))
    return Compiled(name, model, inputs, outputs)


COPY: Unit = ({"x": 1}, {"out": 1})  # the output is the token


def veto() -> Compiled:
    """out = x + relu(u - 10 a): m0 writes x to the output, and a = x; m1 reads u = 2 x and a."""
    return planted([[({"x": 1}, {"out": 1, "a": 1})], [({"x": 2, "a": -10}, {"out": 1})]], ["a"])


def cancellation() -> Compiled:
    """out = x + p - p: m0 writes x, m1 writes p = 2 x, m2 writes -p."""
    return planted([[COPY], [({"x": 1}, {"out": 2})], [({"x": 1}, {"out": -2})]])


def three_cancel() -> Compiled:
    """out = x + p + q - (p + q), p = 3 x and q = 5 x: no pair of cuts shows that all three can go."""
    return planted([[COPY], [({"x": 1}, {"out": 3})], [({"x": 1}, {"out": 5})], [({"x": 1}, {"out": -8})]])


def two_paths() -> Compiled:
    """out = [x > 2]: m0 and m1 each write 1 where x is 3; m2 writes min(1, their sum)."""
    step: list[Unit] = [({"x": 1, "1": -2}, {"p": 1})]
    return planted([step, step, [({"p": 1}, {"out": 1}), ({"p": 1, "1": -1}, {"out": -1})]], ["p"])


def random_model(seed: int, layers: int = 1, heads: int = 1, whole: bool = True) -> Compiled:
    """Small and random. ``whole``: weights are -1, 0 or 1, so that circuits often agree by chance; else any."""
    generator = torch.Generator().manual_seed(seed)
    labels = ["x", "p", "out", "q"]
    shape = Shape(len(VALUES) + 2, 3, len(labels), layers, heads, 2, 2, causal=seed % 2 == 1)
    model = CompiledTransformer(shape, interface(labels, ["out", "q"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "unembedding.weight":
                continue
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn.round().clamp(-1, 1) if whole else drawn)
    return with_all_inputs(model, f"random {seed}")
