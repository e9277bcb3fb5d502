"""One record of a file of pairs, in any of the formats, as a row.

Our own and AutoCircuit's name the corrupted prompt ``corrupted`` or ``corrupt``, and wrong answers ``wrong`` or
``wrong_answers``. EAP-IG's (``correct_idx``, ``incorrect_idx``) give token ids.

MIB rows (prompt, choices, answerKey, metadata, *_counterfactual): the corrupted prompt is that of one
counterfactual, and answers are as in MIB's own code: of IOI the indirect object against the subject, of
multiple choice (MCQA, ARC) the label against the counterfactual's, of arithmetic likewise.
"""

from __future__ import annotations

import json
from typing import Any

from voltmeter.task.pairs import Span
from voltmeter.task.rows import Answer, Prompt, Row

_SUFFIX = "_counterfactual"
_MOST = 2**63  # what a tensor of whole numbers holds is smaller


class BadRow(Exception):
    """What is wrong with one record, said without its number: the reader of the file collects and tells them."""


def row_of(number: int, record: Any, counterfactual: str | None = None) -> Row:
    """One record of a file as a row. ``counterfactual`` is as in ``read_rows``. Raises BadRow."""
    if not isinstance(record, dict):
        raise BadRow(f"it is a {type(record).__name__}, an object was expected")
    if _has_half_a_character(record):
        raise BadRow("it holds half of a surrogate pair, which is no character")
    if "correct_idx" in record:
        return _eap_ig_row(number, record, counterfactual)
    if "prompt" in record and any(key.endswith(_SUFFIX) for key in record):
        return _mib_row(number, record, counterfactual)
    return _plain_row(number, record, counterfactual)


def _plain_row(number: int, record: dict[str, Any], counterfactual: str | None) -> Row:
    """Our own format, and AutoCircuit's, which says corrupt and wrong_answers."""
    corrupted = counterfactual or ("corrupted" if "corrupted" in record else "corrupt")
    if corrupted not in record:
        raise BadRow(f"it has no '{'corrupted' if counterfactual is None else counterfactual}'{_has(record)}")
    wrong = "wrong" if "wrong" in record else "wrong_answers"
    return Row(
        number=number,
        clean=_prompt(record, "clean"),
        corrupted=_prompt(record, corrupted),
        answers=_answers(record, "answers"),
        wrong=_answers(record, wrong),
        group=_optional(record, "group", str),
        split=_optional(record, "split", str),
        position=_optional(record, "position", int),
        span=_span(record),
    )


def _eap_ig_row(number: int, record: dict[str, Any], counterfactual: str | None) -> Row:
    corrupted = counterfactual or "corrupted"
    if None in record:
        raise BadRow("it has more cells than there are columns")
    return Row(
        number=number,
        clean=_prompt(record, "clean"),
        corrupted=_prompt(record, corrupted),
        answers=_indices(record, "correct_idx"),
        wrong=_indices(record, "incorrect_idx"),
    )


def _mib_row(number: int, record: dict[str, Any], counterfactual: str | None) -> Row:
    match record:
        case {"metadata": {"indirect_object": str(answer), "subject": str(wrong)}}:
            other = _counterfactual(record, counterfactual or "s2_io_flip")
            return _mib_pair(number, record, other, f" {answer}", f" {wrong}")
        case {"choices": {"label": list()}}:
            other = _counterfactual(record, counterfactual or "symbol")
            return _mib_pair(number, record, other, _label(record), _label(other))
        case {"operator": str(), "label": answer} if answer is not None:
            other = _counterfactual(record, counterfactual or "random")
            if other.get("label") is None:
                raise BadRow("its counterfactual has no 'label'")
            return _mib_pair(number, record, other, str(answer), str(other["label"]))
        case _:
            raise BadRow(
                f"it looks like a row of MIB, but of none of its tasks IOI, MCQA, ARC, arithmetic{_has(record)}"
            )


def _mib_pair(number: int, record: dict[str, Any], other: dict[str, Any], answer: str, wrong: str) -> Row:
    if answer == wrong:
        raise BadRow(f"the answer {answer!r} is also the answer to its counterfactual; name another counterfactual")
    return Row(number, _prompt(record, "prompt"), _prompt(other, "prompt"), (answer,), (wrong,))


def _counterfactual(record: dict[str, Any], name: str) -> dict[str, Any]:
    field = name if name.endswith(_SUFFIX) else name + _SUFFIX
    found = record.get(field)
    if not isinstance(found, dict):
        known = [key for key in record if key.endswith(_SUFFIX) and isinstance(record[key], dict)]
        raise BadRow(f"it has no '{field}' (it has {', '.join(known) or 'none'})")
    return found


def _label(record: dict[str, Any]) -> str:
    """The label of the right choice. answerKey is its index; older rows give the label itself."""
    match record:
        case {"choices": {"label": list(labels)}, "answerKey": int(key)} if 0 <= key < len(labels):
            return str(labels[key])
        case {"choices": {"label": list(labels)}, "answerKey": str(key)} if key in labels:
            return key
        case _:
            raise BadRow(f"its answerKey {record.get('answerKey')!r} is none of its choices")


# Fields


def _prompt(record: dict[str, Any], name: str) -> Prompt:
    match record.get(name):
        case str(text) if text:
            return text
        case list(ids) if ids and all(_is_id(token) for token in ids):
            return tuple(ids)
        case None:
            raise BadRow(f"it has no '{name}'{_has(record)}")
        case other:
            raise BadRow(f"'{name}' is {_short(other)}, a text or a list of token ids was expected")


def _answers(record: dict[str, Any], name: str) -> tuple[Answer, ...]:
    """A text or id, or a list of texts, ids, or lists of ids (an answer of several tokens)."""
    given = record.get(name)
    answers = given if isinstance(given, list) else [] if given is None else [given]
    for answer in answers:
        is_sequence = isinstance(answer, list) and answer and all(_is_id(token) for token in answer)
        if not (isinstance(answer, str) or _is_id(answer) or is_sequence):
            raise BadRow(f"'{name}' holds {_short(answer)}, a text or token ids were expected")
    return tuple(tuple(answer) if isinstance(answer, list) else answer for answer in answers)


def _indices(record: dict[str, Any], name: str) -> tuple[Answer, ...]:
    try:
        given = json.loads(record.get(name) or "")
    except ValueError:
        given = None
    indices = given if isinstance(given, list) else [given]
    if not indices or not all(_is_id(index) for index in indices):
        raise BadRow(f"'{name}' is {_short(record.get(name))}, a token id or a list of them was expected")
    return tuple(indices)


def _span(record: dict[str, Any]) -> Span | None:
    match record.get("span"):
        case None:
            return None
        case [int(first), int(last)] if 0 <= first <= last:
            return first, last
        case other:
            raise BadRow(f"'span' is {_short(other)}, [first position, last position] was expected")


def _optional(record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    too_large = isinstance(value, int) and not -_MOST <= value < _MOST
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or too_large):
        raise BadRow(f"'{name}' is {_short(value)}, {'a text' if kind is str else 'a whole number'} was expected")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _has_half_a_character(record: dict[str, Any]) -> bool:
    """JSON can write what no text holds, and no tokenizer takes: "\\ud800"."""
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return True
    return False


def _has(record: dict[str, Any]) -> str:
    return f" (it has {', '.join(map(str, record)) or 'nothing'})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
