"""Pairs: clean and corrupted inputs of one shape, and what counts as an answer to the clean ones."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from voltmeter.errors import TaskError, counted
from voltmeter.task.tree import (
    Inputs,
    attention_mask,
    count_rows,
    differing_rows,
    digest,
    named_tensors,
    row_digests,
    take_rows,
    token_ids,
    trim,
)

_PER_PAIR = ("answers", "wrong", "position", "groups", "spans", "texts", "rows")

Span = tuple[int, int]  # the first and the last position that differ, both included


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs. Axes: pair = N, answer = the most answers of a pair, wrong likewise, token = the longest answer.

    Build them with ``Pairs.of`` (any inputs) or ``Pairs.from_tokens`` (rows of token ids, padded on the right).
    Invariants, checked here with a TaskError: both inputs have the same tensors in the same shapes, no pair is
    the same on both sides, both sides have the same padding, and every position is one that holds a real token.
    """

    clean: Inputs  # any pytree of tensors, N rows each
    corrupted: Inputs
    answers: Int64[Tensor, "pair answer"] | Int64[Tensor, "pair 1 token"]  # -1 is no answer; 3 axes: see Metric
    wrong: Int64[Tensor, "pair wrong"]  # -1 is no answer
    position: Int64[Tensor, " pair"]  # whose logits answer; of a sequence, its first token's; -1: nobody said
    groups: tuple[str, ...]  # pairs of one group share names and template: they are drawn and held out together
    spans: tuple[Span | None, ...]  # where clean and corrupted differ; None where positions have no meaning
    texts: tuple[tuple[str, str], ...]  # clean and corrupted as people read them; may be empty strings
    rows: tuple[int, ...]  # the row of the file or set that each pair came from, counted from 1

    def __post_init__(self) -> None:
        size = count_rows(self.clean, "clean")
        _require_same_shapes(self.clean, self.corrupted)
        _require_sizes(size, {name: getattr(self, name) for name in _PER_PAIR})
        if size:
            _require_same_padding(self)
            _require_difference(self)
            _require_positions(self)

    @classmethod
    def of(
        cls,
        clean: Inputs,
        corrupted: Inputs,
        answers: Tensor | Sequence[int] | None = None,
        wrong: Tensor | Sequence[int] | None = None,
        position: Tensor | Sequence[int] | None = None,
        groups: Sequence[str] | None = None,
        texts: Sequence[tuple[str, str]] | None = None,
    ) -> "Pairs":
        """Pairs of any inputs. What is left out: no answers; the last real token; every pair its own group.

        ``answers`` and ``wrong`` hold one index a pair, or [pair, answer] padded with -1.
        """
        size = count_rows(clean, "clean")
        _require_same_shapes(clean, corrupted)
        fields: dict[str, Any] = {
            "answers": _as_answers(answers, size),
            "wrong": _as_answers(wrong, size),
            "position": _last_positions(clean, size) if position is None else torch.as_tensor(position).long(),
            "groups": tuple(f"pair {i + 1}" for i in range(size)) if groups is None else tuple(groups),
            "spans": _spans(clean, corrupted, size),
            "texts": (("", ""),) * size if texts is None else tuple(texts),
            "rows": tuple(range(1, size + 1)),
        }
        _require_sizes(size, fields)
        return cls(clean=clean, corrupted=corrupted, **fields)

    @classmethod
    def from_tokens(
        cls,
        clean: Sequence[Sequence[int]],
        corrupted: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]] = (),
        wrong: Sequence[Sequence[int]] = (),
        position: Sequence[int] | None = None,
        groups: Sequence[str] | None = None,
        texts: Sequence[tuple[str, str]] | None = None,
        rows: Sequence[int] | None = None,
        pad: int = 0,
        as_dict: bool = True,
    ) -> "Pairs":
        """Pairs of token ids, row i of ``clean`` against row i of ``corrupted``, which are equally long.

        Rows are padded on the right with ``pad``; the inputs are ``{"input_ids", "attention_mask"}``, or with
        ``as_dict=False`` the tensor of ids alone, for models without a mask (then all rows are equally long).
        Raises TaskError if lengths differ; ``voltmeter.task.align`` says more about why.
        """
        _require_equal_lengths(clean, corrupted, as_dict)
        pairs = cls.of(
            _padded_inputs(clean, pad, as_dict),
            _padded_inputs(corrupted, pad, as_dict),
            answers=pad_answers(answers, len(clean)),
            wrong=pad_answers(wrong, len(clean)),
            position=position,
            groups=groups,
            texts=texts,
        )
        return pairs if rows is None else dataclasses.replace(pairs, rows=tuple(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        groups = counted(len(set(self.groups)), "group", "groups")
        return f"Pairs({counted(len(self), 'pair', 'pairs')} in {groups})"

    @property
    def is_sequence(self) -> bool:
        """Whether an answer is several tokens, fed in and scored as a sequence (``answers`` has three axes)."""
        return self.answers.ndim == 3

    @property
    def n_positions(self) -> int | None:
        """Tokens of a row with its padding, where the inputs are tokens."""
        ids = token_ids(self.clean)
        return None if ids is None else ids.shape[1]

    def batch(self, indices: Tensor | Sequence[int]) -> "Pairs":
        """The pairs at ``indices``, in that order, without the columns that are padding in all of them."""
        index = torch.as_tensor(indices, dtype=torch.long)
        if index.ndim != 1 or (index.numel() and not -len(self) <= int(index.min()) <= int(index.max()) < len(self)):
            raise TaskError(f"these are no indices of {counted(len(self), 'pair', 'pairs')}: {index.tolist()}")
        chosen = index.tolist()
        return Pairs(
            clean=trim(take_rows(self.clean, index)),
            corrupted=trim(take_rows(self.corrupted, index)),
            answers=self.answers[index],
            wrong=self.wrong[index],
            position=self.position[index],
            groups=tuple(self.groups[i] for i in chosen),
            spans=tuple(self.spans[i] for i in chosen),
            texts=tuple(self.texts[i] for i in chosen),
            rows=tuple(self.rows[i] for i in chosen),
        )

    def batches(self, size: int) -> Iterator["Pairs"]:
        """All pairs in order, ``size`` at a time; the last batch holds what is left."""
        if size < 1:
            raise TaskError(f"a batch of {size} pairs was asked for, at least 1 is needed")
        for start in range(0, len(self), size):
            yield self.batch(torch.arange(start, min(start + size, len(self))))

    def pair_digests(self) -> tuple[frozenset[str], ...]:
        """What each pair is made of, whichever way round it stands and however far it is padded."""
        return tuple(map(frozenset, zip(row_digests(self.clean), row_digests(self.corrupted), strict=True)))

    @property
    def digest(self) -> str:
        """SHA-256 of everything a result can depend on: inputs, answers, positions, groups."""
        sha = hashlib.sha256()
        for tree in (self.clean, self.corrupted, self.answers, self.wrong, self.position):
            sha.update(digest(tree).encode())
        sha.update("\n".join(self.groups).encode())
        return sha.hexdigest()


def pad_answers(answers: Sequence[Sequence[int]], size: int) -> Int64[Tensor, "pair answer"]:
    """Rows of answers of any length as one tensor, padded with -1. No rows at all means no answers."""
    rows = [list(row) for row in answers] if len(answers) else [[] for _ in range(size)]
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), width)


def _as_answers(answers: Tensor | Sequence[int] | None, size: int) -> Tensor:
    if answers is None:
        return torch.empty(size, 0, dtype=torch.long)
    tensor = torch.as_tensor(answers).long()
    return tensor[:, None] if tensor.ndim == 1 else tensor


def _padded_inputs(rows: Sequence[Sequence[int]], pad: int, as_dict: bool) -> Inputs:
    longest = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.long)
    if not as_dict:
        return ids.reshape(len(rows), longest)
    return {"input_ids": ids.reshape(len(rows), longest), "attention_mask": mask.reshape(len(rows), longest)}


def _last_positions(inputs: Inputs, size: int) -> Tensor:
    mask, ids = attention_mask(inputs), token_ids(inputs)
    if mask is not None and mask.shape[1]:
        columns = torch.arange(mask.shape[1], device=mask.device)
        return (mask.ne(0) * (columns + 1)).amax(dim=1).cpu() - 1
    return torch.full((size,), -1 if ids is None else ids.shape[1] - 1, dtype=torch.long)


def _spans(clean: Inputs, corrupted: Inputs, size: int) -> tuple[Span | None, ...]:
    ids, other = token_ids(clean), token_ids(corrupted)
    if ids is None or other is None:
        return (None,) * size
    changed = [row.nonzero().flatten().tolist() for row in ids != other]
    return tuple((places[0], places[-1]) if places else None for places in changed)


def _require_same_shapes(clean: Inputs, corrupted: Inputs) -> None:
    one = {name: tuple(tensor.shape) for name, tensor in named_tensors(clean)}
    other = {name: tuple(tensor.shape) for name, tensor in named_tensors(corrupted)}
    if one != other:
        names = [name for name in one | other if one.get(name) != other.get(name)]
        raise TaskError(
            "clean and corrupted inputs are not of one shape",
            [f"{name or 'the tensor'}: clean {_shape(one, name)}, corrupted {_shape(other, name)}" for name in names],
            "give the same tensors in the same shapes on both sides",
        )


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "has none"


def _require_sizes(size: int, fields: Mapping[str, Any]) -> None:
    misses = [f"{name}: {len(value)}" for name, value in fields.items() if len(value) != size]
    if misses:
        raise TaskError(f"the inputs hold {counted(size, 'pair', 'pairs')}, but these hold another number", misses)


def _require_same_padding(pairs: Pairs) -> None:
    clean, corrupted = attention_mask(pairs.clean), attention_mask(pairs.corrupted)
    if clean is None or corrupted is None:
        return
    counts = [mask.ne(0).sum(dim=1).tolist() for mask in (clean, corrupted)]
    apart = (clean != corrupted).any(dim=1)
    if bool(apart.any()):
        raise TaskError(
            "clean and corrupted are padded differently "
            f"in {int(apart.sum())} of {counted(len(pairs), 'pair', 'pairs')}",
            [
                f"row {pairs.rows[i]}: {counts[0][i]} tokens clean, {counts[1][i]} corrupted"
                for i in apart.nonzero().flatten().tolist()
            ],
            "give pairs of equal length",
        )


def _require_difference(pairs: Pairs) -> None:
    same = ~differing_rows(pairs.clean, pairs.corrupted)
    if bool(same.any()):
        raise TaskError(
            f"clean and corrupted are the same in {int(same.sum())} of {counted(len(pairs), 'pair', 'pairs')}",
            [f"row {pairs.rows[i]}" for i in same.nonzero().flatten().tolist()],
            "give corrupted inputs that differ from the clean ones",
        )


def _require_positions(pairs: Pairs) -> None:
    """Where the inputs are tokens, every position whose logits are read holds a real token."""
    ids, mask = token_ids(pairs.clean), attention_mask(pairs.clean)
    if ids is None:
        return
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.ne(0)
    last = pairs.position
    if pairs.is_sequence:
        last = last + (pairs.answers[:, 0] >= 0).sum(dim=1).clamp(min=1) - 1
    inside = (pairs.position >= 0) & (last < ids.shape[1])
    held = inside & real.cpu().gather(1, last.clamp(0, ids.shape[1] - 1)[:, None])[:, 0]
    if not bool(held.all()):
        raise TaskError(
            "the position of the answer is no real token "
            f"in {int((~held).sum())} of {counted(len(pairs), 'pair', 'pairs')}",
            [
                f"row {pairs.rows[i]}: position {int(pairs.position[i])}, the row has {int(real[i].sum())} tokens"
                for i in (~held).nonzero().flatten().tolist()
            ],
            "positions count from 0, padding included",
        )


def _require_equal_lengths(clean: Sequence[Sequence[int]], corrupted: Sequence[Sequence[int]], as_dict: bool) -> None:
    if len(clean) != len(corrupted):
        raise TaskError(
            f"{counted(len(clean), 'clean row was', 'clean rows were')} given, but {len(corrupted)} corrupted"
        )
    lengths = [(len(one), len(other)) for one, other in zip(clean, corrupted, strict=True)]
    apart = [f"row {i + 1}: {one} tokens, {other}" for i, (one, other) in enumerate(lengths) if one != other]
    if apart:
        raise TaskError(
            f"{len(apart)} of {counted(len(lengths), 'pair', 'pairs')} "
            f"{'is' if len(apart) == 1 else 'are'} not equally long",
            apart,
            "give pairs of equal length",
        )
    if not as_dict and len(set(lengths)) > 1:
        raise TaskError(
            f"the rows are {min(lengths)[0]} to {max(lengths)[0]} tokens long, and without a mask there is no padding",
            mend="give rows of one length, or leave as_dict=True for a model that takes attention_mask",
        )
