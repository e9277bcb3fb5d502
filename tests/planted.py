"""Tiny models whose circuits are known, each with a fault planted in it (or none) that checks must tell.

All are sums over one residual stream with named dimensions: ``first``, ``second``, ... are components that read some
dimensions and write others, so that every edge's meaning can be read off the builder. Everything is float64. A sign is
asked for: answer 0 where the signal ``s`` is positive, 1 where it is negative; the logits are (y, -y).

Beside what matters, every model has three decoys that carry numbers of their own and touch no answer: without them
nearly any circuit of the right size would be the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

import voltmeter as vm
from voltmeter.check.case import Case
from voltmeter.check.clock import Clock
from voltmeter.circuit import Circuit
from voltmeter.discover import Method, ask
from voltmeter.task import Pairs, Task

N_PAIRS = 40  # of each split
N_GROUPS = 10  # of each split, four pairs in each
DIMENSIONS = ("s", "t", "n", "y", "p", "q", "d", "e")
"""Signal, second signal, noise; answer; two intermediate values; what decoys write."""

Terms = Mapping[str, float]  # dimension -> coefficient; "1" is the bias
Unit = tuple[Terms, Terms]  # what a hidden unit takes, and what it adds to the stream


# What the models are made of


class Part(nn.Module):
    """A component: hidden units that each take a weighted sum, bend it (or not) and add it to some dimensions."""

    def __init__(self, units: Sequence[Unit], bends: bool) -> None:
        super().__init__()
        self.up = nn.Linear(len(DIMENSIONS), len(units))
        self.down = nn.Linear(len(units), len(DIMENSIONS), bias=False)
        self.bends = bends
        with torch.no_grad():
            for weight in self.parameters():
                weight.zero_()
            for row, (taken, added) in enumerate(units):
                for name, coefficient in taken.items():
                    if name == "1":
                        self.up.bias[row] = coefficient
                    else:
                        self.up.weight[row, DIMENSIONS.index(name)] = coefficient
                for name, coefficient in added.items():
                    self.down.weight[DIMENSIONS.index(name), row] = coefficient

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.down(hidden.relu() if self.bends else hidden)


class Mixing(Part):
    """The same after each position took a weighted sum over all of them: ``weights`` [position, position]."""

    def __init__(self, units: Sequence[Unit], weights: Sequence[Sequence[float]]) -> None:
        super().__init__(units, bends=False)
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.einsum("pq,bqh->bph", self.weights, self.up(x)))


class Sum(nn.Module):
    """Inputs [..., feature] become the first dimensions of a stream; each part adds to it; logits are read off it."""

    def __init__(self, parts: Mapping[str, nn.Module], offset: float) -> None:
        super().__init__()
        self.embed = nn.Linear(3, len(DIMENSIONS), bias=False)
        for name, part in parts.items():
            self.add_module(name, part)
        self.names = tuple(parts)
        self.head = nn.Linear(len(DIMENSIONS), 2)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(len(DIMENSIONS), 3))
            self.head.weight.zero_()
            self.head.weight[:, DIMENSIONS.index("y")] = torch.tensor([1.0, -1.0])
            self.head.bias.copy_(torch.tensor([offset, -offset]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for name in self.names:
            x = x + self.get_submodule(name)(x)
        return self.head(x)


def straight(taken: Terms, added: Terms) -> Part:
    """A component of one unit that does not bend."""
    return Part([(taken, added)], bends=False)


def bent(*units: Unit) -> Part:
    """A component of units that each pass what is above zero."""
    return Part(units, bends=True)


def clipped(taken: Terms, into: str) -> Part:
    """The sum of what is taken, held between -1 and 1."""
    lower, upper = ({**taken, "1": shift} for shift in (1.0, -1.0))
    return bent((lower, {into: 1}), (upper, {into: -1}), ({"1": 1.0}, {into: -1}))


def decoys() -> dict[str, nn.Module]:
    """Components that carry noise about, and touch no answer."""
    return {
        "decoy0": straight({"n": 1}, {"d": 1}),
        "decoy1": bent(({"n": 1, "d": 1}, {"e": 1})),
        "decoy2": straight({"e": 1, "d": -1}, {"d": 2}),
    }


def model(parts: Mapping[str, nn.Module], offset: float = 0.0) -> Sum:
    """The parts in their order, after two of the decoys and before the third."""
    first, second, third = decoys().items()
    own = {name: deepcopy(part) for name, part in parts.items()}  # no two models share a component
    return Sum(dict([first, second, *own.items(), third]), offset).double().eval()


# What is asked of them


def signs(count: int, generator: torch.Generator) -> Tensor:
    """As many -1 as 1, in some order."""
    return torch.ones(count, dtype=torch.float64).index_fill(0, torch.randperm(count, generator=generator)[::2], -1)


def drawn(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)


def sign_pairs(split: str, absent: bool, second: bool | None) -> Pairs:
    """[pair, (signal, second signal, noise)]. Signals are between 1.2 and 2 in size.

    ``absent``: the corrupted signal is next to nothing; else it has the other sign. ``second``: whether the second
    signal goes with the first (None: nothing ever comes of it, it is next to nothing in both).
    """
    generator = torch.Generator().manual_seed(1 if split == "train" else 2)
    sign = signs(N_PAIRS, generator)
    clean, corrupted = (
        torch.stack([sign * drawn(1.2, 2, N_PAIRS, generator), *faint(2, generator)], 1) for _ in range(2)
    )
    corrupted[:, 0] *= 0.02 if absent else -1
    if second:
        clean[:, 1], corrupted[:, 1] = clean[:, 0], corrupted[:, 0]
    clean[:, 2], corrupted[:, 2] = (drawn(-1, 1, N_PAIRS, generator) for _ in range(2))
    return pairs_of(clean, corrupted, sign, split)


def faint(count: int, generator: torch.Generator) -> list[Tensor]:
    return [drawn(-0.05, 0.05, N_PAIRS, generator) for _ in range(count)]


def pairs_of(clean: Tensor, corrupted: Tensor, sign: Tensor, split: str, position: int | None = None) -> Pairs:
    """Answer 0 where the sign is positive, else 1."""
    answers = (sign < 0).long()
    groups = [f"{split} {i % N_GROUPS}" for i in range(len(sign))]
    places = None if position is None else torch.full((len(sign),), position)
    return Pairs.of(clean, corrupted, answers, 1 - answers, position=places, groups=groups)


def sign_task(name: str, absent: bool = False, second: tuple[bool, bool] = (False, False)) -> Task:
    """``second``: whether the second signal goes with the first in train pairs, and in held-out ones."""
    train, held_out = (
        sign_pairs(split, absent, goes) for split, goes in zip(("train", "held out"), second, strict=True)
    )
    return Task(name, train, held_out)


# What is planted


@dataclass(frozen=True)
class Planted:
    """A circuit, what is asked of it, and what must come of that. The model is wired when that is first asked for.

    ``faults``: checks that must say "fails"; ``unsure``: those that must say "cannot tell"; ``sound``: those that must
    say "holds". Of checks in none of the three nothing is claimed. ``why``: where the fault is.
    """

    name: str
    model: Sum
    task: Task
    kept: tuple[str, ...]
    why: str
    faults: frozenset[str]
    unsure: frozenset[str]
    sound: frozenset[str]
    fill: str

    @cached_property
    def wiring(self) -> vm.wiring.Wiring:
        return vm.wire(self.model, self.task.example)

    @cached_property
    def circuit(self) -> Circuit:
        return Circuit.from_edges(self.wiring, self.kept)

    def case(self, method: Method | None = None, clock: Clock | None = None, seed: int = 0, **other: Any) -> Case:
        """What a check is called with. ``other``: fields of the Case, such as ``threshold``."""
        question = ask(self.wiring, self.task, self.fill)
        return Case(self.circuit, question, method=method, clock=clock or Clock(), seed=seed, **other)

    def but(self, *kept: str) -> Planted:
        """The same model and task with another circuit, of which nothing is claimed."""
        other = replace(self, kept=kept, faults=frozenset(), unsure=frozenset(), sound=frozenset())
        vars(other)["wiring"] = self.wiring
        return other

    def __str__(self) -> str:
        return self.name


def plant(
    name: str,
    parts: Mapping[str, nn.Module],
    kept: Sequence[str],
    why: str,
    *,
    task: Task | None = None,
    offset: float = 0.0,
    faults: Sequence[str] = (),
    unsure: Sequence[str] = ("positions",),
    sound: Sequence[str] = (),
    fill: str = "resample",
) -> Planted:
    """A model of ``parts`` and decoys, and the circuit of the edges ``kept``."""
    expected = (frozenset(names) for names in (faults, unsure, sound))
    return Planted(name, model(parts, offset), task or sign_task(name), tuple(kept), why, *expected, fill)


COPY = straight({"s": 1}, {"y": 1})
THROUGH = ("input -> first", "first -> logits")  # the signal, by way of the first component
NOT_THERE = ("faithful", "necessary", "complete", "minimal")  # what a circuit that does nothing fails


@cache
def sound() -> Planted:
    """y = s, by way of one component; the circuit is that way."""
    return plant(
        "sound",
        {"first": COPY},
        THROUGH,
        "no fault",
        sound=("faithful", "necessary", "complete", "minimal", "identifiable"),
    )


@cache
def two_steps() -> Planted:
    """y = clip(p - q), p = s and q = -s by two components, both needed: the circuit is all of it."""
    parts = {"first": straight({"s": 1}, {"p": 1}), "second": straight({"s": -1}, {"q": 1})}
    kept = ("input -> first", "input -> second", "first -> third", "second -> third", "third -> logits")
    third = straight({"p": 1, "q": -1}, {"y": 1})
    return plant(
        "two_steps",
        {**parts, "third": third},
        kept,
        "no fault",
        sound=("faithful", "necessary", "complete", "minimal", "identifiable"),
    )


@cache
def wrong_circuit() -> Planted:
    """As many edges as the right circuit, of decoys."""
    kept = ("input -> decoy0", "decoy0 -> logits")
    return plant("wrong_circuit", {"first": COPY}, kept, "the circuit carries noise only", faults=NOT_THERE)


@cache
def or_pair() -> Planted:
    """y = clip(p + q), p = q = s: either component suffices."""
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        "second": straight({"s": 1}, {"q": 1}),
        "third": clipped({"p": 1, "q": 1}, "y"),
    }
    return plant(
        "or_pair",
        parts,
        ("input -> first", "first -> third", "third -> logits"),
        "'second' does the same as 'first', which is in the circuit",
        task=sign_task("or_pair", absent=True),
        faults=("complete", "redundant"),
        sound=("faithful", "necessary", "minimal", "identifiable"),  # 'third', which both go through, is cut too
    )


@cache
def backup() -> Planted:
    """y = p + q with p = s and q = s - p: the second component writes only where the first is cut."""
    parts = {
        "first": straight({"s": 1}, {"p": 1, "y": 1}),
        "second": Part([({"s": 1, "p": -1}, {"y": 1}), ({"n": 1}, {"e": 1})], bends=False),
    }
    return plant(
        "backup",
        parts,
        THROUGH,
        "'second' makes up for 'first' when 'first' is cut",
        faults=("necessary", "complete", "redundant"),
        sound=("faithful", "minimal", "identifiable"),
    )


@cache
def veto() -> Planted:
    """y = s + relu(2 s - 10 |s|), and the same below zero, under zero fills: with the veto cut alone, f is 3.

    So 'first -> second' looks necessary, but the whole of 'second' can go.
    """
    parts = {
        "first": bent(({"s": 1}, {"y": 1, "p": 1}), ({"s": -1}, {"y": -1, "p": 1})),
        "second": bent(({"s": 2, "p": -10}, {"y": 1}), ({"s": -2, "p": -10}, {"y": -1})),
    }
    return plant(
        "veto",
        parts,
        (*THROUGH, "input -> second", "first -> second", "second -> logits"),
        "all that 'second' reads and writes can be cut, though its veto alone cannot",
        faults=("minimal", "identifiable"),  # 'second' writes zero, and is kept
        sound=("faithful", "complete"),
        fill="zero",
    )


@cache
def cancellation() -> Planted:
    """y = s + 3 s - 3 s: no edge of the two that cancel can be cut alone, both can."""
    parts = {
        "first": COPY,
        "second": straight({"s": 3}, {"y": 1}),
        "third": straight({"s": -3}, {"y": 1}),
    }
    kept = (*THROUGH, "input -> second", "second -> logits", "input -> third", "third -> logits")
    return plant(
        "cancellation",
        parts,
        kept,
        "'second' and 'third' cancel: cutting either destroys the answer, cutting both changes nothing",
        faults=("minimal",),
        sound=("faithful", "identifiable"),
    )


@cache
def constant_writer() -> Planted:
    """'still' writes the same whatever it reads, and is in the circuit."""
    parts = {"first": COPY, "still": straight({"1": 1.0}, {"y": 0.5, "e": 1})}
    return plant(
        "constant_writer",
        parts,
        (*THROUGH, "still -> logits"),
        "'still -> logits' is kept, and carries the same in both runs",
        faults=("minimal", "identifiable"),
        sound=("faithful", "necessary"),
    )


@cache
def constant_outside() -> Planted:
    """'still' writes the same whatever it reads; the circuit is the right one, without it."""
    parts = {"first": COPY, "still": straight({"1": 1.0}, {"y": 0.5, "e": 1})}
    return plant(
        "constant_outside",
        parts,
        THROUGH,
        "no paired inputs could have shown what 'still' does",
        unsure=("positions", "identifiable"),
        sound=("faithful", "necessary", "minimal"),
    )


@cache
def trivial() -> Planted:
    """The first logit is always above the second, whatever the sign: the answer never changes."""
    return plant(
        "trivial",
        {"first": COPY},
        THROUGH,
        "the output is answer 0 for every input",
        offset=3.0,
        faults=("not-trivial",),
        sound=("faithful", "necessary", "minimal"),
    )


@cache
def spare_edge() -> Planted:
    """The right circuit, and an edge of a decoy with it."""
    return plant(
        "spare_edge",
        {"first": COPY},
        (*THROUGH, "decoy0 -> first"),
        "'decoy0 -> first' is kept and does nothing",
        faults=("minimal",),
        sound=("faithful", "necessary", "complete", "identifiable"),
    )


@cache
def overfitted() -> Planted:
    """y = clip(p + q), p = s and q = t; t goes with s in the train pairs, and with nothing in the held-out ones."""
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        "second": straight({"t": 1}, {"q": 1}),
        "third": clipped({"p": 1, "q": 1}, "y"),
    }
    return plant(
        "overfitted",
        parts,
        ("input -> second", "second -> third", "third -> logits"),
        "the circuit follows a signal that is there in the train pairs only",
        task=sign_task("overfitted", absent=True, second=(True, False)),
        faults=("faithful", "complete", "not-over-optimised"),
    )


@cache
def position_cancellation() -> Planted:
    """Three positions, and s the same at the first two; at the last, y = 3 s[0] - 3 s[1] + s[1].

    'first' copies s at every position, and 'mix' takes what it wrote at position 0 less what it wrote at position 1;
    the last term comes by 'second' and 'gather'. What 'first -> mix' does at one position it undoes at the other: over
    positions its effects cancel, position by position they are the largest there are.
    """
    weights = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, -3.0, 0.0]]
    also = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        "second": straight({"s": 1}, {"q": 1}),
        "mix": Mixing([({"p": 1}, {"y": 1})], weights),
        "gather": Mixing([({"q": 1}, {"y": 1})], also),
    }
    task = Task("position_cancellation", *(position_pairs(split) for split in ("train", "held out")))
    kept = ("input -> second", "second -> gather", "gather -> logits")
    return plant(
        "position_cancellation",
        parts,
        kept,
        "'first -> mix' does much at positions 0 and 1, and the two cancel",
        task=task,
        unsure=(),
        faults=("positions",),
        sound=("faithful", "necessary", "complete", "minimal", "identifiable"),
    )


@cache
def positions_apart() -> Planted:
    """The same, but 'mix' reads position 0 alone: nothing cancels, and the circuit keeps both ways."""
    weights = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]
    also = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    parts = {
        "first": straight({"s": 1}, {"p": 1}),
        "second": straight({"s": 1}, {"q": 1}),
        "mix": Mixing([({"p": 1}, {"y": 1})], weights),
        "gather": Mixing([({"q": 1}, {"y": 1})], also),
    }
    task = Task("positions_apart", *(position_pairs(split) for split in ("train", "held out")))
    kept = ("input -> first", "first -> mix", "mix -> logits", "input -> second", "second -> gather")
    return plant(
        "positions_apart",
        parts,
        (*kept, "gather -> logits"),
        "no fault",
        task=task,
        unsure=(),
        sound=("faithful", "necessary", "minimal", "positions"),
    )


def position_pairs(split: str) -> Pairs:
    """[pair, position, feature]: the signal at positions 0 and 1, with the same sign; noise at all."""
    generator = torch.Generator().manual_seed(3 if split == "train" else 4)
    sign = signs(N_PAIRS, generator)
    clean, corrupted = (torch.zeros(N_PAIRS, 3, 3, dtype=torch.float64) for _ in range(2))
    for side, inputs in ((1, clean), (-1, corrupted)):
        inputs[:, :2, 0] = (side * sign * drawn(1.2, 2, N_PAIRS, generator))[:, None]
        inputs[:, :, 2] = drawn(-1, 1, 3 * N_PAIRS, generator).view(N_PAIRS, 3)
    return pairs_of(clean, corrupted, sign, split, position=2)


PLANTED: dict[str, Callable[[], Planted]] = {
    each.__name__: each
    for each in (
        sound, two_steps, wrong_circuit, or_pair, backup, veto, cancellation, constant_writer, constant_outside,
        trivial, spare_edge, overfitted, position_cancellation, positions_apart,
    )
}  # fmt: skip


def claims(check: str) -> list[tuple[str, str]]:
    """(planted, verdict) for every planted circuit of which something is claimed about ``check``. Wires nothing."""
    found = []
    for name, build in PLANTED.items():
        planted = build()
        for verdict, names in (("fails", planted.faults), ("cannot tell", planted.unsure), ("holds", planted.sound)):
            if check in names:
                found.append((name, verdict))
    return found
