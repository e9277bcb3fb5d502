"""What a model puts out, as labels: the answer it chooses, the class, the point of a board, the range of a number."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from voltmeter.check.case import Case
from voltmeter.discover.question import Batch, cut_answers, has_logits, make_batch, on_device
from voltmeter.errors import MetricError
from voltmeter.task.metric import logits_at_answer, logits_of
from voltmeter.task.pairs import Pairs
from voltmeter.task.tree import attention_mask, call, named_tensors, row_digests

RANGES = 8  # into which numbers are sorted: as many of the full model's fall into each

Kind = Literal["answers", "classes", "places", "numbers"]


@final
@dataclass(frozen=True, eq=False)
class Readout:
    """How outputs become labels.

        answers    the highest logit, where the answer is read, among ``options``: all answers and wrong answers
        classes    the highest of one row of outputs
        places     the highest at each position
        numbers    the output itself

    ``board``: rows and columns, where classes are points of a board (and one more may be the pass).
    """

    kind: Kind
    options: tuple[int, ...]
    board: tuple[int, int] | None = None

    def __call__(self, outputs: Any, pairs: Pairs) -> Float64[Tensor, "pair place 3"]:
        """Of each place: the label (or the number), the highest logit, and by how much the best answer of the pair is
        above its best wrong one (NaN where the pair has none of one or the other)."""
        if self.kind in ("answers", "classes"):
            logits = logits_at_answer(outputs, pairs)[:, :1].double()
            margin = _margin(logits[:, 0], pairs)
        else:
            logits = _by_place(logits_of(outputs)).double()
            margin = torch.full((len(logits),), torch.nan, dtype=torch.float64, device=logits.device)
        best, choice = logits.max(-1)
        if self.kind == "answers":
            choice = logits[..., list(self.options)].argmax(-1)
        label = best if self.kind == "numbers" else choice.double()
        return torch.stack([label, best, margin[:, None].expand_as(best)], -1).cpu()


@final
@dataclass(frozen=True, eq=False)
class PutOut:
    """What some runs put out over inputs; axis ``unit`` is every place of every input that is no padding.

    ``label`` [run, unit] numbers what was chosen; ``names`` what they mean. ``value`` is the highest logit, ``margin``
    that of the pair's answers over its wrong ones. ``pairs`` are the inputs, ``pair`` and ``place`` say of which unit.
    """

    readout: Readout
    pairs: tuple[Pairs, ...]
    label: Int64[Tensor, "run unit"]
    value: Float64[Tensor, "run unit"]
    margin: Float64[Tensor, "run unit"]
    pair: Int64[Tensor, "unit"]
    place: Int64[Tensor, "unit"]
    ranges: tuple[float, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Of each unit, for intervals."""
        names = [name for part in self.pairs for name in part.groups]
        return tuple(names[pair] for pair in self.pair.tolist())

    @property
    def n_inputs(self) -> int:
        return sum(map(len, self.pairs))

    @property
    def asked(self) -> Int64[Tensor, "unit answer"] | None:
        """The labels that count as right, padded with -1; None where nothing says."""
        if self.readout.kind not in ("answers", "classes") or any(part.is_sequence for part in self.pairs):
            return None
        answers = [part.answers for part in self.pairs]
        width = max(part.shape[1] for part in answers)
        if not width:
            return None
        padded = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=-1) for part in answers]
        return self._labels(torch.cat(padded))[self.pair]

    def _labels(self, tokens: Tensor) -> Tensor:
        """Output numbers as labels: where answers are chosen among, by their place in the list."""
        if self.readout.kind != "answers":
            return tokens
        options = torch.tensor(self.readout.options)
        return torch.where(tokens >= 0, torch.searchsorted(options, tokens.clamp(min=0)), tokens)

    def output(self, label: int) -> int:
        """The number of the output behind a label."""
        return self.readout.options[label] if self.readout.kind == "answers" else label

    def right(self, label: Int64[Tensor, "unit"]) -> Float[Tensor, "unit"] | None:
        """1 where a label is an answer, 0 where it is not, NaN where the pair has none."""
        asked = self.asked
        if asked is None:
            return None
        is_right = (asked == label[:, None]).any(1).double()
        return torch.where((asked >= 0).any(1), is_right, torch.nan)


def readout_of(case: Case) -> Readout | str:
    """How this model's outputs become labels for this task; else why they do not."""
    pairs = case.task.held_out.batch([0])
    with torch.no_grad():
        outputs = call(case.wiring.model, on_device(case.wiring, pairs.clean))
    try:
        logits = logits_of(outputs)
    except MetricError:
        return "the model returns no tensor of logits, classes or numbers that could be looked at"
    if logits.ndim not in (1, 2, 3) or len(logits) != 1:
        return f"outputs of shape {list(logits.shape)} for one input are no choice among classes"
    if _by_place(logits).shape[-1] == 1:
        return Readout("numbers", ())
    if logits.ndim == 2:
        return Readout("classes", (), _board(case, logits.shape[1]))
    if not has_logits(outputs, pairs):
        return Readout("places", ())
    options = _options(case)
    return Readout("answers", options) if len(options) > 1 else Readout("classes", ())


def put_out(case: Case, readout: Readout, keeps: Sequence[Float[Tensor, "edge"]]) -> PutOut:
    """What the model puts out under each keep, on the clean inputs and, where these are not the same ones, on the
    corrupted inputs too (with cut edges filled from the clean ones). Costs a masked forward each."""
    held = case.held_out
    sides: list[tuple[Pairs, Iterable[Batch]]] = [(held.pairs, held.judge.batches)]
    other = _other_way_round(held.pairs)
    if other is not None:
        parts = other.batches(held.judge.batches[0].pairs.__len__())
        sides.append((other, (make_batch(case.wiring, part, case.question.fill, n) for n, part in enumerate(parts))))
    told = torch.cat([_read(case, readout, keeps, batches) for _, batches in sides], 1)
    pairs = tuple(side for side, _ in sides)
    pair, place = _real(told, pairs)
    seen = told[:, pair, place]
    label, ranges = (seen[..., 0], ()) if readout.kind != "numbers" else _in_ranges(seen[..., 0])
    return PutOut(readout, pairs, label.long(), seen[..., 1], seen[..., 2], pair, place, ranges)


@torch.no_grad()
def _read(
    case: Case, readout: Readout, keeps: Sequence[Tensor], batches: Iterable[Batch]
) -> Float64[Tensor, "run pair place 3"]:
    found = [
        torch.stack([readout(cut_answers(case.wiring, batch, keep, case.task.metric), batch.pairs) for keep in keeps])
        for batch in batches
    ]
    most = max(part.shape[2] for part in found)  # batches are trimmed to their longest row
    return torch.cat(
        [torch.nn.functional.pad(part, (0, 0, 0, most - part.shape[2]), value=torch.nan) for part in found], 1
    )


def _real(told: Tensor, sides: Sequence[Pairs]) -> tuple[Tensor, Tensor]:
    """Pair and place of every output that is not of padding."""
    real = ~told[0, :, :, 0].isnan()
    masks = [attention_mask(side.clean) for side in sides]
    if real.shape[1] > 1 and all(mask is not None for mask in masks):
        widths = [min(real.shape[1], mask.shape[1]) for mask in masks if mask is not None]
        rows = [mask[:, :width].ne(0).cpu() for mask, width in zip(masks, widths, strict=True) if mask is not None]
        real &= torch.cat([torch.nn.functional.pad(row, (0, real.shape[1] - row.shape[1])) for row in rows])
    pair, place = real.nonzero(as_tuple=True)
    return pair, place


def _in_ranges(value: Float64[Tensor, "run unit"]) -> tuple[Tensor, tuple[float, ...]]:
    """Numbers as ranges between quantiles of what the second run, the full model, puts out."""
    inner = torch.linspace(0, 1, RANGES + 1, dtype=value.dtype)[1:-1]
    ends = value[1].quantile(inner).unique()
    return torch.bucketize(value.contiguous(), ends), tuple(ends.tolist())


def _by_place(logits: Tensor) -> Tensor:
    """[pair, place, option] of any outputs."""
    match logits.ndim:
        case 1:
            return logits[:, None, None]
        case 2:
            return logits[:, None]
        case _:
            return logits


def _margin(logits: Float64[Tensor, "pair option"], pairs: Pairs) -> Float64[Tensor, "pair"]:
    if pairs.is_sequence or not (pairs.answers.shape[1] and pairs.wrong.shape[1]):
        return logits.new_full((len(pairs),), torch.nan)
    best = []
    for tokens in (pairs.answers, pairs.wrong):
        index = tokens.to(logits.device)
        there = logits.gather(1, index.clamp(min=0)).masked_fill(index < 0, -torch.inf).amax(1)
        best.append(torch.where(there.isfinite(), there, torch.nan))
    return best[0] - best[1]


def _options(case: Case) -> tuple[int, ...]:
    """Every answer and wrong answer of the held-out pairs; of sequences, their first tokens."""
    held = case.task.held_out
    answers = held.answers[..., 0] if held.is_sequence else held.answers
    tokens = torch.cat([answers.flatten(), held.wrong.flatten()]).unique()
    return tuple(tokens[tokens >= 0].tolist())


def _other_way_round(pairs: Pairs) -> Pairs | None:
    """The corrupted inputs as clean ones, what was wrong now right; None where all of them are clean inputs already."""
    if set(row_digests(pairs.corrupted)) <= set(row_digests(pairs.clean)):
        return None
    answers, wrong = (pairs.wrong, pairs.answers) if not pairs.is_sequence else (pairs.wrong, pairs.wrong)
    nothing = torch.empty(len(pairs), 0, dtype=torch.long)
    return Pairs(
        pairs.corrupted,
        pairs.clean,
        answers if answers.shape[1] else nothing,
        wrong if answers.shape[1] else nothing,
        pairs.position,
        pairs.groups,
        pairs.spans,
        tuple((other, one) for one, other in pairs.texts),
        pairs.rows,
    )


def _board(case: Case, n_outputs: int) -> tuple[int, int] | None:
    """The sides of a board that has as many points as there are outputs, or one less: as ``task.how["board"]`` says,
    else as some input has."""
    given = case.task.how.get("board")
    shapes = (
        [tuple(given)] if given else [t.shape[-2:] for _, t in named_tensors(case.task.held_out.clean) if t.ndim > 2]
    )
    for rows, columns in shapes:
        if rows * columns in (n_outputs, n_outputs - 1):
            return int(rows), int(columns)
    return None
