"""Do a clean and a corrupted text line up, token by token? Equal length is not enough.

Cutting an edge at position 9 compares what the two texts have at position 9. If one of them has a word put in
before it and another taken out after it, both are equally long, and every position between compares different
things: the result is a number, and it means nothing. Three checks, each with its reason in words:

    length   clean and corrupted have equally many tokens
    span     they differ somewhere, and only where the file says so, if it does
    words    where texts are known: each word stands at the tokens of the word it replaces, and no run of
             unchanged words has moved
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from voltmeter.errors import TaskError, counted
from voltmeter.task.pairs import Span
from voltmeter.task.tokens import Encoder

_MOVED_WORDS = 2  # two swapped words look like one that moved; from two on, in a row, it is a shift
MEND = "give aligned pairs, or drop these rows with --drop-misaligned (drop_misaligned=True)"


@dataclass(frozen=True)
class TokenRow:
    """One pair as tokens. ``answers`` and ``wrong`` are sequences of tokens, mostly of one; ``span`` as declared."""

    number: int  # counted from 1
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...] = ()
    wrong: tuple[tuple[int, ...], ...] = ()
    texts: tuple[str, str] | None = None
    group: str = ""
    position: int | None = None
    span: Span | None = None


def changed_span(clean: Sequence[int], corrupted: Sequence[int]) -> Span | None:
    """The first and the last position at which two rows of equal length differ; None if they are the same."""
    differ = [i for i, (one, other) in enumerate(zip(clean, corrupted, strict=True)) if one != other]
    return (differ[0], differ[-1]) if differ else None


def misfit(row: TokenRow, encoder: Encoder | None = None, check_words: bool = True) -> str | None:
    """Why a pair does not line up, or None if it does. Words are checked where there are texts and an encoder."""
    if len(row.clean) != len(row.corrupted):
        return _different_lengths(row, encoder)
    span = changed_span(row.clean, row.corrupted)
    if span is None:
        return "clean and corrupted are the same"
    if row.span is not None and not row.span[0] <= span[0] <= span[1] <= row.span[1]:
        return f"it changes at positions {_range(span)}, but positions {_range(row.span)} are declared"
    if check_words and encoder is not None and row.texts is not None:
        return _different_words(row, row.texts, encoder)
    return None


def aligned(
    rows: Sequence[TokenRow], encoder: Encoder | None = None, drop_misaligned: bool = False, check_words: bool = True
) -> tuple[tuple[TokenRow, ...], tuple[int, ...]]:
    """The rows that line up, each with its changed span, and the numbers of those dropped.

    Raises TaskError listing every row that does not, unless ``drop_misaligned``; and if none is left.
    """
    reasons = {row.number: misfit(row, encoder, check_words) for row in rows}
    misfits = {number: reason for number, reason in reasons.items() if reason is not None}
    if misfits and (not drop_misaligned or len(misfits) == len(rows)):
        raise TaskError(
            f"{len(misfits)} of {counted(len(rows), 'pair', 'pairs')} "
            f"{'does' if len(misfits) == 1 else 'do'} not line up",
            [f"row {number}: {reason}" for number, reason in misfits.items()],
            MEND if len(misfits) < len(rows) else "give aligned pairs: with these dropped, none would be left",
        )
    kept = tuple(replace(row, span=changed_span(row.clean, row.corrupted)) for row in rows if row.number not in misfits)
    return kept, tuple(misfits)


# Rows of different length


def _different_lengths(row: TokenRow, encoder: Encoder | None) -> str:
    if row.texts is None or encoder is None:
        first = _common_start(row.clean, row.corrupted)
        return f"{len(row.clean)} tokens clean, {len(row.corrupted)} corrupted (they part at position {first})"
    words = [text.split() for text in row.texts]
    ranges = _changed_words(words[0], words[1])
    first = max(ranges[0][0] - 1, 0)  # with the unchanged word before, which says where one is
    start = len(encoder.ids(_before(row.texts[0], first)))
    counts = [len(encoder.ids(_before(text, end))) - start for text, (_, end) in zip(row.texts, ranges, strict=True)]
    quotes = [" ".join(each[first:end]) for each, (_, end) in zip(words, ranges, strict=True)]
    places = f"positions {start}-{start + max(counts) - 1}"
    if counts[0] == counts[1] or quotes[0] == quotes[1]:  # joined with what stands beside, or only spaces differ
        return f"{len(row.clean)} tokens clean, {len(row.corrupted)} corrupted, around '{quotes[0]}' ({places})"
    return f"'{quotes[0]}' is {_tokens(counts[0])}, '{quotes[1]}' is {counts[1]} ({places})"


def _changed_words(one: list[str], other: list[str]) -> tuple[Span, Span]:
    """The word ranges [first, end) outside which both are the same."""
    start = _common_start(one, other)
    back = min(_common_start(one[::-1], other[::-1]), len(one) - start, len(other) - start)
    return (start, len(one) - back), (start, len(other) - back)


def _common_start(one: Sequence[object], other: Sequence[object]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _before(text: str, word: int) -> str:
    """The text up to the end of the word before the one numbered ``word``: the space belongs to what follows."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text if word >= len(ends) else text[: ends[word - 1]] if word > 0 else ""


# Words that moved


@dataclass(frozen=True)
class _Word:
    text: str
    token: int  # where it starts


def _different_words(row: TokenRow, texts: tuple[str, str], encoder: Encoder) -> str | None:
    """Looks at the words from the first changed one to the last: outside them, equal length leaves no doubt."""
    ranges = _changed_words(texts[0].split(), texts[1].split())
    if min(end - first for first, end in ranges) < _MOVED_WORDS:
        return None
    clean = _words(texts[0], ranges[0], encoder, row.clean)
    corrupted = _words(texts[1], ranges[1], encoder, row.corrupted)
    if clean is None or corrupted is None:
        return None
    return _displaced(clean, corrupted) or _shifted(clean, corrupted)


def _words(text: str, span: tuple[int, int], encoder: Encoder, ids: tuple[int, ...]) -> list[_Word] | None:
    """Words [first, end) with their first tokens; None where a token reaches over the gap between two words."""
    words = []
    for i, word in list(enumerate(text.split()))[slice(*span)]:
        before = encoder.ids(_before(text, i))
        if ids[: len(before)] != before:
            return None
        words.append(_Word(word, len(before)))
    return words


def _displaced(clean: list[_Word], corrupted: list[_Word]) -> str | None:
    """Equally many words, but the n-th of one does not start at the token of the n-th of the other."""
    if len(clean) != len(corrupted):
        return None
    for one, other in zip(clean, corrupted, strict=True):
        if one.token != other.token:
            return (
                f"both are equally long, but '{one.text}' starts at position {one.token}"
                f" and '{other.text}' at {other.token}"
            )
    return None


def _shifted(clean: list[_Word], corrupted: list[_Word]) -> str | None:
    """A run of unchanged words stands elsewhere: one word was put in and another taken out."""
    matcher = SequenceMatcher(None, [word.text for word in clean], [word.text for word in corrupted], autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    moved = [block for block in blocks if clean[block.a].token != corrupted[block.b].token]
    in_place = len({(word.text, word.token) for word in clean} & {(word.text, word.token) for word in corrupted})
    if sum(block.size for block in blocks) - in_place < _MOVED_WORDS or not moved:
        return None
    block = max(moved, key=lambda each: each.size)
    run = " ".join(word.text for word in clean[block.a : block.a + block.size])
    return (
        f"both are equally long, but '{run}' moved from position {clean[block.a].token} to {corrupted[block.b].token}"
    )


def _range(span: Span) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
