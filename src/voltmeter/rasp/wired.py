"""The wiring of a compiled model, also of one whose output never changes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.model import CompiledTransformer
from voltmeter.wiring.wire import wire
from voltmeter.wiring.wiring import Wiring

Source: TypeAlias = Literal["inputs", "vocabulary", "twin"]

_DRAWN = 256  # inputs over the whole vocabulary
_LEAST_CHANGE = 2e-6  # of the larger output; wire needs its two examples to differ by 1e-6, to check its laws on


@final
@dataclass(frozen=True, eq=False)
class Wired:
    """A wiring with the input split, and what it was verified on.

    "inputs": two of the program's own. "vocabulary": two that the program may be given and that change its output,
    where its own never do. "twin": another model of the same shape with random weights, where no input was found that
    changes the output; the laws were verified on the twin, and the two models run the same code.
    """

    wiring: Wiring
    verified_on: Source


def wiring_of(compiled: Compiled) -> Wired:
    """Wire a compiled model. Costs about thirty forward passes on two inputs, and one on 256.

    Raises WiringError for a model that cannot be wired, such as one in training mode or with NaN among its weights.
    """
    for source, tokens in _examples(compiled):
        if not _is_same(compiled.model, tokens):
            return Wired(wire(compiled.model, tokens).split("input"), source)
    twin = random_twin(compiled.model)
    tokens = compiled.model.encode(_drawn(compiled)[:2])
    return Wired(replace(wire(twin, tokens).split("input"), model=compiled.model), "twin")


def random_twin(model: CompiledTransformer, seed: int = 0) -> CompiledTransformer:
    """A model of the same shape, every weight drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    twin = CompiledTransformer(model.shape, model.interface)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5)
    return twin


def _examples(compiled: Compiled) -> Iterator[tuple[Source, Tensor]]:
    """Pairs of inputs to wire on, those that the output tells apart best."""
    model = compiled.model
    yield "inputs", _far_apart(model, model.encode(compiled.inputs))
    yield "vocabulary", _far_apart(model, model.encode(_drawn(compiled)))


@torch.no_grad()
def _far_apart(model: CompiledTransformer, tokens: Tensor) -> Tensor:
    """The input of the largest output, and the one whose output differs most from that."""
    outputs = model(tokens).flatten(1)
    first = int(outputs.abs().amax(1).argmax())
    second = int((outputs - outputs[first]).abs().amax(1).argmax())
    return tokens[[first, second if second != first else (first + 1) % len(tokens)]]


@torch.no_grad()
def _is_same(model: CompiledTransformer, tokens: Tensor) -> bool:
    """Whether the output is the same for two inputs, or too nearly. NaN is not: wiring then says where it is."""
    first, second = model(tokens)
    return bool(
        (first - second).abs().max() <= _LEAST_CHANGE * max(float(first.abs().max()), float(second.abs().max()))
    )


def _drawn(compiled: Compiled) -> Sequence[Sequence[int | float | str | bool]]:
    """Inputs of the program's length over its whole vocabulary."""
    vocabulary, length = compiled.model.interface.vocabulary, len(compiled.inputs[0])
    picks = torch.randint(len(vocabulary), (_DRAWN, length), generator=torch.Generator().manual_seed(0))
    return [[vocabulary[at] for at in row] for row in picks.tolist()]
