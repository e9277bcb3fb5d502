"""From pairs as people write them to pairs as a model reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from voltmeter.errors import TaskError, counted
from voltmeter.task.align import TokenRow, aligned
from voltmeter.task.pairs import Pairs, Span
from voltmeter.task.tokens import Encoder

Prompt = str | tuple[int, ...]
Answer = str | int | tuple[int, ...]  # a text, a token, or the tokens of a sequence

LONG: dict[str, str] = {
    "refuse": "every answer is one token",
    "branch": "answers are compared at the token where they part; what they share before it is fed in",
    "sequence": "the whole answer is fed in, and all of its tokens are scored",
}


@dataclass(frozen=True)
class Row:
    """One pair as written in a file or by a set: texts or token ids. ``number`` counts rows from 1."""

    number: int
    clean: Prompt
    corrupted: Prompt
    answers: tuple[Answer, ...] = ()
    wrong: tuple[Answer, ...] = ()
    group: str | None = None
    split: str | None = None
    position: int | None = None
    span: Span | None = None


def build_pairs(
    rows: Sequence[Row],
    encoder: Encoder | None,
    long_answers: str = "refuse",
    drop_misaligned: bool = False,
    check_words: bool = True,
    as_dict: bool = True,
    unnamed: str = "row",
) -> tuple[Pairs, tuple[int, ...]]:
    """Rows as aligned, padded pairs of tokens, and the numbers of the rows dropped because they do not line up.

    ``long_answers`` says what becomes of answers of several tokens, see ``LONG``. Rows of token ids need no encoder.
    ``unnamed`` is as in ``group_names``.
    Raises TaskError if there are no rows, rows do not line up, or answers cannot be found in the vocabulary.
    """
    if long_answers not in LONG:
        raise TaskError(
            f"long_answers={long_answers!r} was given", [f"{name!r}: {what}" for name, what in LONG.items()]
        )
    if not rows:
        raise TaskError("the task is empty: it holds no pairs")
    kept, dropped = aligned([_tokenise(row, encoder) for row in rows], encoder, drop_misaligned, check_words)
    _require_known(kept, encoder)
    groups = group_names(rows, unnamed)
    kept = _LONG[long_answers](kept, encoder)
    pairs = Pairs.from_tokens(
        [row.clean for row in kept],
        [row.corrupted for row in kept],
        answers=[[answer[0] for answer in row.answers] for row in kept],
        wrong=[[answer[0] for answer in row.wrong] for row in kept],
        position=[len(row.clean) - 1 if row.position is None else row.position for row in kept],
        groups=[groups[row.number] for row in kept],
        texts=[row.texts or ("", "") for row in kept],
        rows=[row.number for row in kept],
        pad=0 if encoder is None else encoder.pad,
        as_dict=as_dict,
    )
    return (_as_sequences(pairs, kept) if long_answers == "sequence" else pairs), dropped


def group_names(rows: Sequence[Row], unnamed: str = "row") -> dict[int, str]:
    """The group of each row by its number: as the file names it, else the rows that share a clean prompt.

    The two directions of a pair (A against B, B against A) are one group. A group without a name is called after its
    first row: "row 3", or with another word than ``unnamed``, to tell the rows of two files apart.
    """
    pairs = {(row.clean, row.corrupted) for row in rows}
    leader: dict[Prompt, Prompt] = {}

    def find(prompt: Prompt) -> Prompt:
        while leader.setdefault(prompt, prompt) != prompt:
            prompt = leader[prompt]
        return prompt

    for row in rows:
        one = find(row.clean)
        if (row.corrupted, row.clean) in pairs:
            leader[find(row.corrupted)] = one
    first: dict[Prompt, int] = {}
    for row in rows:
        first.setdefault(find(row.clean), row.number)
    return {row.number: row.group if row.group is not None else f"{unnamed} {first[find(row.clean)]}" for row in rows}


def _tokenise(row: Row, encoder: Encoder | None) -> TokenRow:
    clean, corrupted = (_ids(prompt, encoder, row) for prompt in (row.clean, row.corrupted))
    position = row.position
    if position is None and encoder is not None and (mask := encoder.special("mask")) in clean:
        position = clean.index(mask)
    elif position is not None and position < 0:
        position += len(clean)
    return TokenRow(
        number=row.number,
        clean=clean,
        corrupted=corrupted,
        answers=tuple(_answer(answer, row, encoder) for answer in row.answers),
        wrong=tuple(_answer(answer, row, encoder) for answer in row.wrong),
        texts=(row.clean, row.corrupted) if isinstance(row.clean, str) and isinstance(row.corrupted, str) else None,
        position=position,
        span=row.span,
    )


def _ids(prompt: Prompt, encoder: Encoder | None, row: Row) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        return prompt
    if encoder is None:
        raise TaskError(f"row {row.number} is text, and no tokenizer was given", mend="give the model's tokenizer")
    return encoder.ids(prompt)


def _answer(answer: Answer, row: Row, encoder: Encoder | None) -> tuple[int, ...]:
    if isinstance(answer, int):
        return (answer,)
    if not isinstance(answer, str):
        return answer
    if encoder is None:
        raise TaskError(f"row {row.number} has answers in text, and no tokenizer was given", mend="give token ids")
    return encoder.following(row.clean, answer)


def _require_known(rows: Sequence[TokenRow], encoder: Encoder | None) -> None:
    """Every answer is in the vocabulary."""
    if encoder is None:
        return
    unknown, size = encoder.special("unk"), len(encoder.tokenizer)
    misses = []
    for row in rows:
        for answer in row.answers + row.wrong:
            if not answer:
                misses.append(f"row {row.number}: an answer has no tokens")
            elif unknown in answer or not all(0 <= token < size for token in answer):
                misses.append(f"row {row.number}: {encoder.show(answer)} (ids {list(answer)})")
    if misses:
        raise TaskError(
            f"{counted(len(misses), 'answer is', 'answers are')} missing from the vocabulary of {size:,} tokens",
            misses,
            "give answers that the tokenizer knows; mind the space that begins a word",
        )


# Answers of several tokens


def _refuse_long(rows: Sequence[TokenRow], encoder: Encoder | None) -> tuple[TokenRow, ...]:
    long = [
        f"row {row.number}: {len(answer)} tokens, {encoder.show(answer) if encoder else list(answer)}"
        for row in rows
        for answer in row.answers + row.wrong
        if len(answer) != 1
    ]
    if long:
        raise TaskError(
            f"{counted(len(long), 'answer is', 'answers are')} not one token",
            long,
            "mind the space that begins a word; compare longer answers where they part with long_answers='branch', "
            "or score the whole answer with long_answers='sequence'",
        )
    return tuple(rows)


def _branch(rows: Sequence[TokenRow], encoder: Encoder | None) -> tuple[TokenRow, ...]:
    """Feeds in what all answers of a row, right and wrong, begin with, and keeps the token after it."""
    branched, misses = [], []
    for row in rows:
        every = row.answers + row.wrong
        shared = 0
        while every and all(len(one) > shared + 1 and one[: shared + 1] == every[0][: shared + 1] for one in every):
            shared += 1
        answers = tuple(dict.fromkeys(one[shared : shared + 1] for one in row.answers))
        wrong = tuple(dict.fromkeys(one[shared : shared + 1] for one in row.wrong))
        both = [token for (token,) in answers if (token,) in wrong]
        if both:
            shown = encoder.show(both) if encoder else str(both)
            misses.append(f"row {row.number}: {shown} begins an answer and a wrong answer")
        branched.append(_fed(row, every[0][:shared] if every else (), answers, wrong))
    if misses:
        raise TaskError(
            "answers and wrong answers do not part at one token "
            f"in {len(misses)} of {counted(len(rows), 'pair', 'pairs')}",
            misses,
        )
    return tuple(branched)


def _sequence(rows: Sequence[TokenRow], encoder: Encoder | None) -> tuple[TokenRow, ...]:
    """Feeds in all of the answer but its last token. Wrong answers would need runs of their own: they are left out."""
    several = [f"row {row.number}: {len(row.answers)} answers" for row in rows if len(row.answers) != 1]
    if several:
        raise TaskError(
            "a sequence is scored by feeding it in, so that a pair has one; "
            f"{len(several)} of {len(rows)} {'does' if len(several) == 1 else 'do'} not",
            several,
        )
    return tuple(replace(_fed(row, row.answers[0][:-1], row.answers, ()), position=_place(row)) for row in rows)


_LONG: dict[str, Callable[[Sequence[TokenRow], Encoder | None], tuple[TokenRow, ...]]] = {
    "refuse": _refuse_long,
    "branch": _branch,
    "sequence": _sequence,
}


def _place(row: TokenRow) -> int:
    return len(row.clean) - 1 if row.position is None else row.position


def _fed(
    row: TokenRow, tokens: tuple[int, ...], answers: tuple[tuple[int, ...], ...], wrong: tuple[tuple[int, ...], ...]
) -> TokenRow:
    """The row with ``tokens`` after both prompts, and the position moved behind them."""
    if tokens and _place(row) != len(row.clean) - 1:
        raise TaskError(
            f"row {row.number} has answers of several tokens, and they are read at position {row.position}",
            mend="several tokens can only be fed in after the prompt: give answers of one token here",
        )
    return replace(
        row,
        clean=row.clean + tokens,
        corrupted=row.corrupted + tokens,
        answers=answers,
        wrong=wrong,
        position=_place(row) + len(tokens),
    )


def _as_sequences(pairs: Pairs, rows: Sequence[TokenRow]) -> Pairs:
    longest = max(len(row.answers[0]) for row in rows)
    padded = [[[*row.answers[0], *[-1] * (longest - len(row.answers[0]))]] for row in rows]
    return replace(pairs, answers=torch.tensor(padded, dtype=torch.long))
