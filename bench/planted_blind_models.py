"""Small models written by hand, whose circuits can be read off, and the pairs they are asked about.

The stream is divided into named blocks of ``size`` dimensions. The input writes one-hot tokens (or raw features) to
"tok", the logits read "out" and, where a part writes it, "rest", the second half of the vocabulary. Between is a
``Part`` each: what it reads of each block, from which positions, through a ReLU or none, and what it writes. Float64.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import voltmeter as vm
from voltmeter.task.metric import LOGIT_DIFFERENCE, Metric
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.wiring import Wiring

SIZE = 6  # tokens, and dimensions of a block
LENGTH = 4
GAIN = 4.0  # of what the right answer gets, in logits

Row = tuple[int, ...]
Rule = Callable[[Row], int]


@dataclass(frozen=True, eq=False)
class Part:
    """hidden = bias + Σ reads[block] x[block], gathered ``at`` positions; written: Σ writes[block] ReLU(hidden)."""

    reads: Mapping[str, Tensor]  # block -> [hidden, size]
    writes: Mapping[str, Tensor]  # block -> [size, hidden]
    at: str = "here"
    bias: float | Tensor = 0.0
    relu: bool = False


@dataclass(frozen=True)
class Spec:
    """Parts in order. ``positions``: one-hot, in "where"; ``features``: inputs are floats; ``norm``: RMS, last."""

    parts: Mapping[str, Part] = field(hash=False)
    size: int = SIZE
    positions: bool = False
    features: bool = False
    norm: bool = False

    def blocks(self) -> list[str]:
        used = [block for part in self.parts.values() for block in (*part.reads, *part.writes)]
        return list(dict.fromkeys(["tok", "where", "out", *used]))


class Component(nn.Module):
    """A part as a module."""

    def __init__(self, part: Part, blocks: Sequence[str], size: int) -> None:
        super().__init__()
        self.at, self.relu = part.at, part.relu
        hidden = next(iter(part.writes.values())).shape[1]
        self.read = nn.Linear(size * len(blocks), hidden, dtype=torch.float64)
        self.write = nn.Linear(hidden, size * len(blocks), bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.read.weight.zero_()
            self.read.bias.copy_(torch.as_tensor(part.bias, dtype=torch.float64))
            self.write.weight.zero_()
            for block, matrix in part.reads.items():
                self.read.weight[:, _columns(blocks, block, size)] = matrix
            for block, matrix in part.writes.items():
                self.write.weight[_columns(blocks, block, size)] = matrix

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.read(x)
        if self.at != "here":
            hidden = _pattern(self.at, x.shape[1]) @ hidden
        return self.write(torch.relu(hidden) if self.relu else hidden)


class Model(nn.Module):
    """The stream, its parts added in order, and the logits."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        blocks, size = spec.blocks(), spec.size
        width = size * len(blocks)
        self.names = tuple(spec.parts)
        self.embed: nn.Module = (
            nn.Linear(size, width, bias=False, dtype=torch.float64)
            if spec.features
            else nn.Embedding(size, width, dtype=torch.float64)
        )
        self.where = nn.Embedding(size, width, dtype=torch.float64) if spec.positions else None
        for name, part in spec.parts.items():
            self.add_module(name, Component(part, blocks, size))
        out = ["out", "rest"] if "rest" in blocks else ["out"]
        self.unembed = nn.Linear(width, size * len(out), bias=False, dtype=torch.float64)
        one = torch.eye(size, dtype=torch.float64)
        with torch.no_grad():
            for parameter in (*self.embed.parameters(), *self.unembed.parameters()):
                parameter.zero_()
            weight = self.embed.weight.T if isinstance(self.embed, nn.Embedding) else self.embed.weight
            weight[_columns(blocks, "tok", size)] = one
            if self.where is not None:
                self.where.weight.zero_()
                self.where.weight[:, _columns(blocks, "where", size)] = one
            for at, block in enumerate(out):
                self.unembed.weight[at * size : (at + 1) * size, _columns(blocks, block, size)] = one
        self.norm = nn.RMSNorm(width, eps=1e-9, dtype=torch.float64) if spec.norm else nn.Identity()
        self.requires_grad_(False)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs)
        if self.where is not None:
            x = x + self.where(torch.arange(inputs.shape[1]))
        for name in self.names:
            x = x + self.get_submodule(name)(x)
        logits: Tensor = self.unembed(self.norm(x))
        return logits


def _columns(blocks: Sequence[str], block: str, size: int) -> slice:
    at = blocks.index(block)
    return slice(at * size, (at + 1) * size)


def _pattern(at: str, length: int) -> Tensor:
    """[to, from]: which positions each position gathers from."""
    made = torch.zeros(length, length, dtype=torch.float64)
    match at:
        case "first":
            made[:, 0] = 1
        case "second":
            made[:, 1] = 1
        case "third":
            made[:, min(2, length - 1)] = 1
        case "sum":
            made[:] = 1
    return made


# Parts


def eye(gain: float = 1.0, size: int = SIZE) -> Tensor:
    return gain * torch.eye(size, dtype=torch.float64)


def turned(by: int, gain: float = 1.0) -> Tensor:
    """Token i becomes token i + by."""
    return eye(gain).roll(by, 0)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def move(to: str, at: str = "first", gain: float = 1.0) -> Part:
    """Copies the token at a position into a block, everywhere."""
    return Part({"tok": eye()}, {to: eye(gain)}, at)


def table(of: Callable[[int, int], int], gain: float) -> Tensor:
    """[size, size * size]: pair (i, j) votes for token of(i, j)."""
    made = torch.zeros(SIZE, SIZE * SIZE, dtype=torch.float64)
    for i in range(SIZE):
        for j in range(SIZE):
            made[of(i, j) % SIZE, i * SIZE + j] = gain
    return made


def pairwise(
    a: str,
    b: str,
    to: str = "out",
    of: Callable[[int, int], int] = lambda i, j: i + j,
    gain: float = GAIN,
    gate: Mapping[str, Tensor] | None = None,
    bias: float | None = None,
) -> Part:
    """Looks a pair of tokens up. ``gate``: block -> [1, size]: also has to be 1 for the pair to count."""
    first = eye().repeat_interleave(SIZE, 0)
    second = eye().repeat(SIZE, 1)
    gates = {block: row.expand(SIZE * SIZE, SIZE) for block, row in (gate or {}).items()}
    least = -1.0 - len(gates) if bias is None else bias
    reads = {a: first, b: second} if a != b else {a: first + second}
    return Part({**reads, **gates}, {to: table(of, gain)}, bias=least, relu=True)


def junk(seed: int, to: str = "junk", scale: float = 1.0, at: str = "sum") -> Part:
    """Some function of the tokens."""
    return Part({"tok": drawn(seed, 8, SIZE)}, {to: scale * drawn(seed + 100, SIZE, 8)}, at, relu=True)


def constant(to: str, gain: float, dimension: int = 0) -> Part:
    """Writes the same whatever it reads."""
    column = torch.zeros(SIZE, 1, dtype=torch.float64)
    column[dimension] = gain
    return Part({"tok": torch.zeros(1, SIZE, dtype=torch.float64)}, {to: column}, bias=1.0)


def adder(**more: Part) -> Spec:
    """First + last token, mod 6: ``move`` brings the first, ``add`` looks the pair up; two other parts write junk."""
    return Spec({"move": move("a"), "junk1": junk(1), "add": pairwise("a", "tok"), **more, "junk2": junk(2)})


CORE = ("input -> move", "move -> add", "input -> add", "add -> logits")


# Pairs


def first_plus_last(row: Row) -> int:
    return (row[0] + row[-1]) % SIZE


def differ_in_both(one: Row, other: Row) -> bool:
    """So that neither operand can come from the corrupted run."""
    return one[0] != other[0] and one[-1] != other[-1]


def pairs(
    split: str,
    rule: Rule = first_plus_last,
    seed: int = 0,
    count: int = 20,
    accept: Callable[[Row, Row], bool] = differ_in_both,
    make: Callable[[random.Random], Row] | None = None,
    both: bool = True,
    offset: int = 0,
) -> Pairs:
    """``count`` twins of rows with different answers, eight groups; ``both``: in both directions.

    Every row is in one split only, told by the sum of its middle tokens and ``seed``.
    """
    rng = random.Random(f"{split} {seed}")
    made = make or (lambda rng: tuple(rng.randrange(SIZE) for _ in range(LENGTH)))
    seen: set[Row] = set()
    twins: list[tuple[Row, Row]] = []
    while len(twins) < count:
        one, other = made(rng), made(rng)
        side = {"train": 0, "held_out": 1}[split]
        apart = all((row[0] + 2 * row[1] + 3 * row[2] + row[-1] // 2) % 2 == side for row in (one, other))
        if apart and rule(one) != rule(other) and accept(one, other) and not {one, other} & seen:
            seen |= {one, other}
            twins.append((one, other))
    directed = [pair for one, other in twins for pair in ([(one, other), (other, one)] if both else [(one, other)])]
    each = 2 if both else 1
    groups = [f"{split} {n // each % 8}" for n in range(len(directed))]
    return pairs_of(directed, rule, groups, offset)


def pairs_of(directed: Sequence[tuple[Row, Row]], rule: Rule, groups: Sequence[str], offset: int = 0) -> Pairs:
    clean, corrupted = (torch.tensor([pair[side] for pair in directed]) for side in (0, 1))
    answers = [rule(one) + offset for one, _ in directed]
    wrong = [rule(other) + offset for _, other in directed]
    texts = [(" ".join(map(str, one)), " ".join(map(str, other))) for one, other in directed]
    return Pairs.of(clean, corrupted, answers, wrong, groups=groups, texts=texts)


def task(name: str, metric: Metric = LOGIT_DIFFERENCE, **settings: object) -> Task:
    made = [pairs(split, **settings) for split in ("train", "held_out")]  # type: ignore[arg-type]
    return Task(name, made[0], made[1], metric)


def wired(spec: Spec, asked: Task) -> Wiring:
    return vm.wire(Model(spec), asked.example)


@functools.cache
def plain_adder() -> tuple[Wiring, Task]:
    """The adder with nothing wrong, wired once."""
    asked = task("first + last")
    return wired(adder(), asked), asked
