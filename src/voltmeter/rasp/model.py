"""The transformer that programs are compiled to: no norm, ReLU MLPs, softmax attention, every dimension labelled.

    x = token_embedding[tokens] + position_embedding[positions]
    x = x + attention(x);  x = x + mlp(x)         in each layer
    output = x[..., output dimensions]

It is ordinary torch and is wired by tracing like any other model; nothing here knows about edges.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from voltmeter.errors import ProgramError

Value: TypeAlias = int | float | str | bool
Stream: TypeAlias = Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True)
class Interface:
    """How values become tokens and output dimensions become values again.

    ``vocabulary`` maps each token a program may be given to its row of the token embedding, ``bos`` and ``pad``
    name the two rows besides. ``labels`` names the dimensions of the residual stream ("tokens:a", "length_5:3",
    "one"). ``output`` lists the dimensions that hold the answer; ``decoded`` the value each stands for, or None where
    the one output dimension holds a number. ``max_length`` counts the positions after BOS.

    Where the stream has another basis no dimension holds an answer, and the unembedding mixes all of them: ``output``
    is then empty, and ``answers`` names what each output is ("reverse_5:a").
    """

    name: str
    vocabulary: tuple[Value, ...]
    rows: Mapping[Value, int]
    bos: Value
    pad: Value
    max_length: int
    labels: tuple[str, ...]
    output: tuple[int, ...]
    decoded: tuple[Value, ...] | None
    answers: tuple[str, ...] | None = None

    @property
    def output_labels(self) -> tuple[str, ...]:
        """What each output is: the label of its dimension, or its name where it has none of its own."""
        return tuple(self.labels[at] for at in self.output) if self.answers is None else self.answers


@dataclass(frozen=True)
class Shape:
    """The sizes of a compiled transformer. ``heads`` is the number per layer, the same in all of them."""

    rows: int
    positions: int
    d_model: int
    layers: int
    heads: int
    d_head: int
    d_mlp: int
    causal: bool = False


class CompiledTransformer(nn.Module):
    """A transformer with its ``interface``. Weights are zero until the compiler (or you) write them.

    Call it with rows of the token embedding, [batch, pos], BOS first; it returns the output dimensions at every
    position, BOS's included, [batch, pos, output]. ``encode`` and ``decode`` stand on either side.
    """

    def __init__(self, shape: Shape, interface: Interface, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.shape, self.interface = shape, interface
        self.token_embedding = _embedding(shape.rows, shape.d_model, dtype)
        self.position_embedding = _embedding(shape.positions, shape.d_model, dtype)
        self.layers = nn.ModuleList(Layer(shape, dtype) for _ in range(shape.layers))
        self.unembedding = _linear(shape.d_model, len(interface.output_labels), dtype, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for at, dimension in enumerate(interface.output):
                self.unembedding.weight[at, dimension] = 1.0
        self.requires_grad_(False)
        self.eval()  # it has no other mode

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos output"]:
        x = self.token_embedding(tokens) + self.position_embedding(self._positions(tokens))
        for layer in self.layers:
            x = layer(x)
        output: Tensor = self.unembedding(x)
        return output

    def _positions(self, tokens: Tensor) -> Tensor:
        count, most = tokens.shape[1], self.shape.positions
        if count > most:
            raise ProgramError(
                f"{self.interface.name} was compiled for {most - 1} tokens after {self.interface.bos}; "
                f"{count - 1} were given",
                mend="give shorter inputs, or compile for longer ones (max_length=)",
            )
        return torch.arange(count, device=tokens.device)[None]

    def encode(self, inputs: Sequence[Sequence[Value]]) -> Int[Tensor, "batch pos"]:
        """Rows of the token embedding for inputs of one length, BOS put in front.

        Raises:
            ProgramError: no input, an unknown token, inputs of several lengths, or longer than compiled for.
        """
        face = self.interface
        _check(face, inputs)
        made = [[face.rows[face.bos], *(face.rows[token] for token in row)] for row in inputs]
        return torch.tensor(made, device=self.token_embedding.weight.device)

    def decode(self, outputs: Float[Tensor, "batch pos output"]) -> list[list[Value]]:
        """The values that outputs stand for, BOS's position left out: the largest dimension, or the number itself."""
        decoded = self.interface.decoded
        rows = outputs[:, 1:]
        if decoded is None:
            return [[float(v) for v in row] for row in rows.squeeze(-1).tolist()]
        return [[decoded[at] for at in row] for row in rows.argmax(-1).tolist()]

    def compute(self, inputs: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """From values to values: encode, run, decode."""
        with torch.no_grad():
            return self.decode(self(self.encode(inputs)))


def layers_of(model: CompiledTransformer) -> "tuple[Layer, ...]":
    """The layers, as what they are: a ModuleList only knows that they are modules."""
    return tuple(layer for layer in model.layers if isinstance(layer, Layer))


class Layer(nn.Module):
    """Attention, then an MLP, each added to the stream."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = Attention(shape, dtype)
        self.mlp = MLP(shape, dtype)

    def forward(self, x: Stream) -> Stream:
        x = x + self.attention(x)
        after: Tensor = x + self.mlp(x)
        return after


class Attention(nn.Module):
    """Softmax attention; head ``h`` owns columns ``h * d_head : (h + 1) * d_head`` of each projection.

    Scores are not divided by √d_head: a compiler states them outright.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.d_head, self.causal = shape.heads, shape.d_head, shape.causal
        inner = shape.heads * shape.d_head
        self.query, self.key, self.value = (_linear(shape.d_model, inner, dtype) for _ in range(3))
        self.output = _linear(inner, shape.d_model, dtype)

    def forward(self, x: Stream) -> Stream:
        out: Tensor = self.output(self.mixed(x).transpose(1, 2).flatten(2))
        return out

    def mixed(self, x: Stream) -> Float[Tensor, "batch heads pos d_head"]:
        """What each head has mixed of its values, before the output projection."""
        q, k, v = (self._split(project(x)) for project in (self.query, self.key, self.value))
        return attend(q, k, v, self.causal)

    def _split(self, projected: Tensor) -> Tensor:
        """[batch, pos, heads * d_head] to [batch, heads, pos, d_head]."""
        split: Tensor = projected.unflatten(-1, (self.heads, self.d_head))
        return split.transpose(1, 2)


def attend(
    q: Float[Tensor, "*rows pos d_head"],
    k: Float[Tensor, "*rows pos d_head"],
    v: Float[Tensor, "*rows pos d_head"],
    causal: bool,
) -> Float[Tensor, "*rows pos d_head"]:
    """The values that each position looks at, weighted by the softmax of its scores."""
    scores = q @ k.transpose(-1, -2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ v


class MLP(nn.Module):
    """``relu(x W_in + b_in) W_out + b_out``."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = _linear(shape.d_model, shape.d_mlp, dtype)
        self.second = _linear(shape.d_mlp, shape.d_model, dtype)

    def forward(self, x: Stream) -> Stream:
        out: Tensor = self.second(functional.relu(self.first(x)))
        return out


def _linear(given: int, made: int, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    """Without the random weights that torch starts with: drawing them would move the caller's generator."""
    module: nn.Linear = skip_init(nn.Linear, given, made, bias=bias, dtype=dtype)
    return module


def _embedding(rows: int, size: int, dtype: torch.dtype) -> nn.Embedding:
    module: nn.Embedding = skip_init(nn.Embedding, rows, size, dtype=dtype)
    return module


def _check(face: Interface, inputs: Sequence[Sequence[Value]]) -> None:
    """Raise ProgramError unless the inputs are some, of one length, short enough, and made of known tokens."""
    bare = [each for each in inputs if isinstance(each, int | float)]
    if bare:
        raise ProgramError(
            f"{face.name} was given {bare[0]!r} for an input, which is a row of tokens",
            mend="give a list of inputs, also of one: [[...]]",
        )
    if not inputs or not inputs[0]:
        raise ProgramError(f"{face.name} was given no input", mend="give at least one token")
    lengths = sorted({len(row) for row in inputs})
    if len(lengths) > 1:
        raise ProgramError(
            f"inputs of {len(lengths)} lengths were given to {face.name} at once",
            [f"lengths {', '.join(map(str, lengths))}"],
            "compiled models have no padding: give one length at a time",
        )
    if lengths[0] > face.max_length:
        raise ProgramError(
            f"{face.name} was compiled for {face.max_length} tokens after {face.bos}; {lengths[0]} were given",
            [f"input {inputs[0]}"],
            "give shorter inputs, or compile for longer ones (max_length=)",
        )
    for row in inputs:
        unknown = [token for token in row if token not in face.vocabulary]
        if unknown:
            raise ProgramError(
                f"{face.name} has no token {unknown[0]!r}",
                [f"input {row}", f"its tokens are {', '.join(map(repr, face.vocabulary))}"],
                "use its own tokens, or compile it with yours (vocabulary=)",
            )


def is_value(given: object) -> TypeGuard[Value]:
    """Whether it is a number (NaN is none: it is not equal to itself), a string, True or False."""
    return isinstance(given, int | str) or (isinstance(given, float) and not math.isnan(given))


def value_of(text: str) -> Value:
    """The value that a label or a file spells: True or False, a number, else the text itself."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
