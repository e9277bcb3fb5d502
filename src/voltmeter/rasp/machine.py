"""A compiled transformer taken apart: each component runs by itself, on whatever its readers are given.

The engine (``voltmeter.run``) runs a whole model with edges cut. To ask of a compiled model which of *all* its circuits
suffice, one wants less: what one component writes when it reads this or that. A ``Machine`` is the same arithmetic as
the model's, under the same names of writers, readers and edges as its wiring; tests hold the two together.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voltmeter.rasp.model import Attention, CompiledTransformer, attend, layers_of
from voltmeter.wiring.wiring import Edge

Reads = Float[Tensor, "*rows pos d_model"]
Outs = Float[Tensor, "*rows out_pos d_out"]  # of the answer, every position but BOS's; else all


@final
@dataclass(frozen=True, eq=False)
class Reader:
    """What a component makes of the stream first: ``x @ weight.T + bias``."""

    name: str
    weight: Float[Tensor, "k d_model"]
    bias: Float[Tensor, "k"]

    def __call__(self, x: Reads) -> Float[Tensor, "*rows pos k"]:
        return x @ self.weight.T + self.bias

    @cached_property
    def reads(self) -> Bool[Tensor, "d_model"]:
        """The residual dimensions on which its weights are not exactly zero."""
        return (self.weight != 0).any(0)


class Part(ABC):
    """A component: its readers, and what it writes from what they read. ``n_before`` writers stand before it."""

    name: str
    readers: tuple[Reader, ...]
    n_before: int

    @abstractmethod
    def combine(self, *projected: Float[Tensor, "*rows pos k"]) -> Outs:
        """What is written, from what each reader made of its reading."""

    @abstractmethod
    def directions(self, bias: bool = True) -> Float[Tensor, "n d_model"]:
        """Rows whose span holds everything the component can write; without ``bias``, all differences of that."""

    def __call__(self, *reads: Reads) -> Outs:
        return self.combine(*(reader(x) for reader, x in zip(self.readers, reads, strict=True)))


@final
class Head(Part):
    """An attention head, without the layer's output bias, which is no head's."""

    def __init__(self, name: str, n_before: int, attention: Attention, number: int) -> None:
        own = slice(number * attention.d_head, (number + 1) * attention.d_head)
        projections = {"q": attention.query, "k": attention.key, "v": attention.value}
        self.name, self.n_before, self.causal = name, n_before, attention.causal
        self.readers = tuple(Reader(f"{name}<{k}>", p.weight[own], p.bias[own]) for k, p in projections.items())
        self.output = attention.output.weight[:, own]

    def combine(self, *projected: Float[Tensor, "*rows pos k"]) -> Outs:
        q, k, v = projected
        return attend(q, k, v, self.causal) @ self.output.T

    def directions(self, bias: bool = True) -> Float[Tensor, "n d_model"]:
        return self.output.T


@final
class Mlp(Part):
    """A ReLU MLP, second bias included."""

    def __init__(self, name: str, n_before: int, first: torch.nn.Linear, second: torch.nn.Linear) -> None:
        self.name, self.n_before = name, n_before
        self.readers = (Reader(name, first.weight, first.bias),)
        self.weight, self.bias = second.weight, second.bias

    def combine(self, *projected: Float[Tensor, "*rows pos k"]) -> Outs:
        (hidden,) = projected
        return hidden.relu() @ self.weight.T + self.bias

    def directions(self, bias: bool = True) -> Float[Tensor, "n d_model"]:
        return torch.cat([self.weight.T, self.bias[None]]) if bias else self.weight.T


@final
class Answer(Part):
    """The output: what the unembedding reads, at every position but BOS's."""

    def __init__(self, name: str, n_before: int, weight: Tensor) -> None:
        self.name, self.n_before = name, n_before
        self.readers = (Reader(name, weight, weight.new_zeros(len(weight))),)

    def combine(self, *projected: Float[Tensor, "*rows pos k"]) -> Outs:
        return projected[0][..., 1:, :]

    def directions(self, bias: bool = True) -> Float[Tensor, "n d_model"]:
        return self.readers[0].weight[:0]


@final
@dataclass(frozen=True, eq=False)
class Machine:
    """The parts of a compiled transformer in order of computation; the last is its answer.

    ``writers`` are ``input.tok``, ``input.pos`` and every part but the last. ``constants[part]`` are the biases that
    stand in the stream before a part and belong to no writer (those of attention's outputs; never cut).
    Edges are numbered as in the model's wiring: by reader, then by writer.
    """

    writers: tuple[str, ...]
    parts: tuple[Part, ...]
    constants: tuple[Float[Tensor, "d_model"], ...]

    @cached_property
    def readers(self) -> tuple[tuple[int, int], ...]:
        """(part, number of the reader in it), in the wiring's order: a layer's queries, keys, values; its MLP."""
        order = [(at, number) for at, part in enumerate(self.parts) for number in range(len(part.readers))]
        return tuple(sorted(order, key=lambda place: (self.parts[place[0]].n_before, place[1], place[0])))

    @cached_property
    def ends(self) -> tuple[tuple[int, int, int], ...]:
        """For every edge: its writer, its part, and which of the part's readers it ends at."""
        return tuple((w, part, at) for part, at in self.readers for w in range(self.parts[part].n_before))

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """The name of every edge."""
        return tuple(str(Edge(self.writers[w], self.parts[part].readers[at].name)) for w, part, at in self.ends)

    @cached_property
    def number(self) -> dict[tuple[int, int, int], int]:
        """The number of every edge, by its ends."""
        return {ends: at for at, ends in enumerate(self.ends)}

    def incoming(self, part: int, reader: int) -> Iterator[tuple[int, int]]:
        """(edge, writer) for every edge into a reader."""
        return ((self.number[w, part, reader], w) for w in range(self.parts[part].n_before))


def machine_of(model: CompiledTransformer) -> Machine:
    """Take a model apart. Its weights are shared, not copied."""
    writers, parts, constants = ["input.tok", "input.pos"], list[Part](), list[Tensor]()
    constant = model.token_embedding.weight.new_zeros(model.shape.d_model)

    def add(*made: Part) -> None:
        parts.extend(made)
        constants.extend([constant] * len(made))
        writers.extend(part.name for part in made)

    for number, layer in enumerate(layers_of(model)):
        attention, mlp, n = layer.attention, layer.mlp, len(writers)
        add(*(Head(f"a{number}.h{h}", n, attention, h) for h in range(attention.heads)))
        constant = constant + attention.output.bias
        add(Mlp(f"m{number}", len(writers), mlp.first, mlp.second))
    n_writers = len(writers)
    add(Answer("logits", n_writers, model.unembedding.weight))
    return Machine(tuple(writers[:n_writers]), tuple(parts), tuple(constants))


def written(machine: Machine, tok: Tensor, pos: Tensor) -> Float[Tensor, "writer batch pos d_model"]:
    """What every writer writes in a run with nothing cut, from what the two embeddings write."""
    outs = [tok, pos.expand_as(tok)]
    for part, constant in zip(machine.parts[:-1], machine.constants, strict=False):
        x = constant + sum_of(outs[: part.n_before])
        outs.append(part(*([x] * len(part.readers))))
    return torch.stack(outs)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Their sum; there is at least one."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
