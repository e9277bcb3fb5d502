"""Files of pairs, read into rows.

    .jsonl    our own, a pair a line: {"clean", "corrupted", "answers", "wrong", "group", "split", "position", "span"},
              texts or lists of token ids; only the first two are required. Or MIB rows, a row a line.
    .json     AutoCircuit: {"prompts": [{"clean", "corrupt", "answers", "wrong_answers"}]}; or a list of any rows
              above; or {"rows": [{"row": ...}]} as the Hugging Face dataset server gives them.
    .csv      EAP-IG: clean,corrupted,correct_idx,incorrect_idx; an idx is a token id or a list of them.
    .parquet  MIB rows as Hugging Face stores them.

``voltmeter.task.records`` says what is read from each kind of row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from voltmeter.errors import FormatError, TaskError, counted
from voltmeter.files import read_bytes, write_file
from voltmeter.task.pairs import Pairs
from voltmeter.task.records import BadRow, row_of
from voltmeter.task.rows import Row
from voltmeter.task.tree import attention_mask, token_ids


def read_rows(path: Path | str, counterfactual: str | None = None) -> list[Row]:
    """The pairs in a file, in order, told apart by its ending and keys.

    ``counterfactual`` names the field that holds the corrupted prompt where there are several: a MIB
    counterfactual (with or without its ending ``_counterfactual``), or another column than ``corrupted``.
    Raises LoadError if the file cannot be read, FormatError listing every row that cannot, TaskError if it is empty.
    """
    where = Path(path)
    reader = _READERS.get(where.suffix.lower())
    if reader is None:
        raise FormatError(f"{where} is none of {', '.join(_READERS)}", mend="see voltmeter.task.formats")
    rows: list[Row] = []
    misses: list[str] = []
    for number, record in reader(where):
        try:
            rows.append(row_of(number, record, counterfactual))
        except BadRow as error:
            misses.append(f"row {number}: {error}")
    if misses:
        raise FormatError(
            f"{len(misses)} of {counted(len(rows) + len(misses), 'row', 'rows')} of {where} cannot be read",
            misses,
            "expected clean and corrupted (texts or lists of token ids), answers and wrong, or rows of MIB",
        )
    if not rows:
        raise TaskError(f"the task is empty: {where} holds no pairs")
    return rows


def write_jsonl(pairs: Mapping[str, Pairs], path: Path | str) -> None:
    """Writes pairs of tokens in our own format, as token ids; ``pairs`` maps split names to pairs.

    ``{"train": task.train, "held_out": task.held_out}`` is what ``from_file`` reads back the same. Raises
    TaskError if the inputs are no tokens or answers are sequences, OutputError if the file cannot be written.
    """
    lines = [json.dumps(record) for split, part in pairs.items() for record in _records(part, split)]
    write_file(path, ("\n".join(lines) + "\n").encode())


def _records(pairs: Pairs, split: str) -> Iterator[dict[str, Any]]:
    clean, corrupted, mask = token_ids(pairs.clean), token_ids(pairs.corrupted), attention_mask(pairs.clean)
    if clean is None or corrupted is None or pairs.is_sequence:
        raise TaskError("only pairs of tokens with answers of one token can be written to a file")
    lengths = [clean.shape[1]] * len(pairs) if mask is None else mask.sum(dim=1).tolist()
    for i, length in enumerate(lengths):
        yield {
            "clean": clean[i, :length].tolist(),
            "corrupted": corrupted[i, :length].tolist(),
            "answers": [token for token in pairs.answers[i].tolist() if token >= 0],
            "wrong": [token for token in pairs.wrong[i].tolist() if token >= 0],
            "group": pairs.groups[i],
            "split": split,
            "position": int(pairs.position[i]),
        }


# Files into records


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    misses, records = [], []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # not splitlines: JSON may hold U+2028
        if not line.strip():
            continue
        try:
            records.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            misses.append(f"line {number}: {error}")
    if misses:
        raise FormatError(
            f"{path} is damaged: {counted(len(misses), 'line is', 'lines are')} no JSON",
            misses,
            "give one JSON object a line",
        )
    return iter(records)


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        document = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: it is not JSON ({error})") from error
    match document:
        case {"prompts": list(records)}:
            pass
        case {"rows": list(served)}:
            records = [each["row"] if isinstance(each, dict) and "row" in each else each for each in served]
        case list(records):
            pass
        case _:
            raise FormatError(
                f"{path} holds no list of pairs",
                mend='expected {"prompts": [...]} as AutoCircuit writes it, {"rows": [...]}, or a list of rows',
            )
    return iter(enumerate(records, start=1))


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
        records, columns = list(reader), list(reader.fieldnames or ())
    except csv.Error as error:
        raise FormatError(f"{path} is damaged: it is not CSV ({error})") from error
    twice = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if twice:
        raise FormatError(f"{path} has several columns called {' and '.join(twice)}", mend="leave one of each")
    lacking = [name for name in ("clean", "correct_idx", "incorrect_idx") if records and name not in records[0]]
    if lacking:
        raise FormatError(
            f"{path} has no column {' and no column '.join(lacking)}",
            [f"its columns are {', '.join(map(str, records[0]))}"],
            "expected clean,corrupted,correct_idx,incorrect_idx with token ids; EAP-IG's greater-than file has a year "
            "in place of them: write it as .jsonl with answers and wrong",
        )
    return iter(enumerate(records, start=1))


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(pyarrow.BufferReader(read_bytes(path))).to_pylist()
    except pyarrow.ArrowException as error:
        raise FormatError(f"{path} is damaged: it is not Parquet ({error})") from error
    return iter(enumerate(records, start=1))


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is damaged: it is not UTF-8 text ({error})") from error
