"""What is asked of a compiled model: what counts as a change of its output, and what its cut edges carry."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from voltmeter.errors import TruthError
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.machine import Machine, machine_of, written
from voltmeter.rasp.model import CompiledTransformer

FILLS = ("zero", "mean", "mean-position", "resample")
POSITIONS = ("paired", "random")
OUTPUTS = ("raw", "decoded")

_TIED = 1e-9


@final
@dataclass(frozen=True)
class Question:
    """What "necessary" and "sufficient" mean.

    ``fill``: what cut edges carry. ``positions`` (of a resample fill): "paired", the corrupted run is that of another
    input; "random", its positions are shuffled too. ``output``: "raw", the numbers the unembedding gives; "decoded",
    the values they stand for. ``tolerance`` τ: the output changed where a number moved by more (raw), or more than
    this share of the answers is another (decoded; it must be under one answer). ``seed``: of the pairing and of the
    shuffles. Raises TruthError for anything else.
    """

    fill: str
    positions: str = "paired"
    output: str = "raw"
    tolerance: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("fill", self.fill, FILLS),
            ("positions", self.positions, POSITIONS),
            ("output", self.output, OUTPUTS),
        ):
            if value not in known:
                raise TruthError(f"the {name} {value!r} is unknown", mend=f"give one of {', '.join(known)}")
        if self.positions == "random" and self.fill != "resample":
            raise TruthError(
                f"positions are randomised in the corrupted run, and the {self.fill} fill has none",
                mend="give fill='resample', or leave positions out",
            )
        if not 0 < self.tolerance < float("inf"):
            raise TruthError(f"the tolerance {self.tolerance} is no positive number", mend="1e-6 is usual")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as certificates hold it."""
        return asdict(self)


@final
@dataclass(frozen=True, eq=False)
class Setting:
    """A machine, what its embeddings write on some inputs, and what cut edges carry there.

    ``fills`` are broadcast along axes of size 1. ``full`` is the answer of the uncut model. ``answers``: how many there
    are over all inputs where changes are counted in answers (``answers_counted``), None where they are measured.
    """

    machine: Machine
    question: Question
    tok: Float[Tensor, "batch pos d_model"]
    pos: Float[Tensor, "#batch pos d_model"]
    fills: Float[Tensor, "writer #batch #pos d_model"]
    outs: Float[Tensor, "writer batch pos d_model"]
    full: Float[Tensor, "batch real output"]
    answers: int | None

    def on(self, rows: Sequence[int]) -> "Setting":
        """The same over some of the inputs. Fills stay what they are."""
        at = torch.tensor(rows)
        fills = self.fills if self.fills.shape[1] == 1 else self.fills[:, at]
        return replace(self, tok=self.tok[at], fills=fills, outs=self.outs[:, at], full=self.full[at])

    def changes(self, answers: Float[Tensor, "*rows batch real output"]) -> Float[Tensor, "*rows batch"]:
        """How much answers differ from the uncut model's, at each input: the figure that τ is set against.

        NaN or infinite where the answers are not finite.
        """
        if self.answers is not None:
            shares = (largest(answers) != largest(self.full)).double().mean(-1)
            return shares.where(answers.isfinite().all(-1).all(-1), torch.nan)
        return (answers - self.full).abs().amax((-1, -2))

    def effect(self, answers: Float[Tensor, "*rows batch real output"]) -> Float[Tensor, "*rows"]:
        """The same over all inputs: the largest move (raw), or the share of answers that are others (decoded)."""
        return self.over_inputs(self.changes(answers))

    def over_inputs(self, changes: Float[Tensor, "*rows batch"]) -> Float[Tensor, "*rows"]:
        """One figure from the changes at each input, as ``effect``."""
        return changes.mean(-1) if self.answers is not None else changes.amax(-1)


def answers_counted(question: Question, model: CompiledTransformer, inputs: int, length: int) -> int | None:
    """How many answers there are where a change is counted in answers: decoded output that is no number itself.

    None where a change is measured. Raises TruthError for a tolerance of an answer or more: it would let some be
    others, and which ones would depend on the inputs they are counted over.
    """
    if question.output == "raw" or model.interface.decoded is None:
        return None
    answers = inputs * length
    if question.tolerance * answers >= 1 - 1e-9:  # a share of exactly one answer comes with rounding
        raise TruthError(
            f"the tolerance {question.tolerance:g} is a share of the {answers:,} decoded answers, "
            f"and lets {math.floor(question.tolerance * answers + 1e-9):,} of them be another",
            mend=f"give less than one answer's share, {1 / answers:.3g}",
        )
    return answers


def change_in_words(effect: float, answers: int | None) -> str:
    """What changes, as the object of a sentence: "the output by 0.5", or "3 of 54 answers"."""
    if answers is None:
        return f"the output by {effect:.3g}"
    return f"{round(effect * answers):,} of {answers:,} answers"


def largest(answers: Float[Tensor, "*rows output"]) -> Int[Tensor, "*rows"]:
    """Which output is the largest; the first of those that rounding alone (1e-9) keeps from it.

    Models with edges cut often say the same of several values. Which of them rounding favours is no answer.
    """
    return (answers >= answers.amax(-1, keepdim=True) - _TIED).int().argmax(-1)


@torch.no_grad()
def setting_of(compiled: Compiled, question: Question) -> Setting:
    """The setting over all of ``compiled.inputs``. Costs two forward passes.

    Raises TruthError where the fill could not differ from what it stands for: a resample or mean-position fill of one
    input, shuffled positions of one token; for inputs that are given twice; and for a decoded tolerance of an answer.
    """
    model, machine = compiled.model, machine_of(compiled.model)
    tokens = model.encode(compiled.inputs)
    _refuse_vacuous(question, tokens)
    _refuse_repeated(compiled)
    answers = answers_counted(question, model, len(tokens), tokens.shape[1] - 1)
    tok = model.token_embedding.weight[tokens]
    pos = model.position_embedding.weight[: tokens.shape[1]][None]
    outs = written(machine, tok, pos)
    fills = _fills(machine, question, tok, pos, outs)
    answer = machine.parts[-1]
    full = answer(machine.constants[-1] + outs.sum(0))
    return Setting(machine, question, tok, pos, fills, outs, full, answers)


def _refuse_vacuous(question: Question, tokens: Tensor) -> None:
    if question.fill == "mean-position" and len(tokens) < 2:
        raise TruthError(
            "the mean over 1 input at each position is that input: cut edges would carry what they carried",
            mend="compile the program with more inputs, or use another fill",
        )
    if question.positions == "random" and tokens.shape[1] <= 2:
        raise TruthError(
            "inputs of 1 token have nothing to shuffle: BOS keeps its position",
            mend="give longer inputs, or leave positions out",
        )


def _refuse_repeated(compiled: Compiled) -> None:
    """A resample fill could pair an input with itself, and the others would count it twice."""
    repeated = {each: count for each, count in Counter(compiled.inputs).items() if count > 1}
    if repeated:
        raise TruthError(
            f"{len(repeated)} of the inputs of {compiled.name} are given more than once",
            [f"{' '.join(map(str, each))}: {count} times" for each, count in repeated.items()],
            "give each once: dataclasses.replace(compiled, inputs=..., outputs=...)",
        )


def _fills(machine: Machine, question: Question, tok: Tensor, pos: Tensor, outs: Tensor) -> Tensor:
    match question.fill:
        case "zero":
            return torch.zeros_like(outs[:, :1, :1])
        case "mean":
            return outs.mean((1, 2), keepdim=True)
        case "mean-position":
            return outs.mean(1, keepdim=True)
        case "resample":
            other = derangement(len(tok), question.seed)
            if question.positions == "random":
                pos = pos[0][shuffles(len(tok), tok.shape[1], question.seed)]
            return written(machine, tok[other], pos)
        case _:  # a Question has no other
            raise AssertionError(question.fill)


def derangement(count: int, seed: int) -> Int[Tensor, "count"]:
    """Pairs every input with another one: one random cycle through all of them (Sattolo 1986), the same by seed."""
    if count < 2:
        raise TruthError(
            f"{count} input cannot be paired with another one",
            mend="compile the program with more inputs, or use another fill",
        )
    draw = random.Random(f"pairs {seed}").random  # of all of random, only this is promised to stay the same
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(draw() * last)
        order[last], order[other] = order[other], order[last]
    return torch.tensor(order)


def shuffles(count: int, length: int, seed: int) -> Int[Tensor, "count length"]:
    """For each input an order of its positions; BOS keeps its own."""
    draw = random.Random(f"positions {seed}").random
    rows = []
    for _ in range(count):
        order = list(range(length))
        for last in range(length - 1, 1, -1):
            other = 1 + int(draw() * last)
            order[last], order[other] = order[other], order[last]
        rows.append(order)
    return torch.tensor(rows)
