"""Every format is read as its owners mean it, and every row that cannot be read is listed."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from task_words import Pieces

from voltmeter.errors import FormatError, LoadError, TaskError
from voltmeter.task.formats import read_rows, write_jsonl
from voltmeter.task.pairs import Pairs
from voltmeter.task.rows import Row
from voltmeter.task.task import from_file

OWN = {
    "clean": "Tim ran",
    "corrupted": "Amy ran",
    "answers": [" off"],
    "wrong": " out",
    "group": "Tim/Amy",
    "split": "train",
    "position": 2,
    "span": [1, 1],
}
AUTOCIRCUIT = {"clean": "Tim ran", "corrupt": "Amy ran", "answers": [" off"], "wrong_answers": [" out", " in"]}
IOI = {
    "prompt": "Tim and Amy ran. Tim saw",
    "choices": ["Amy", "Tim"],
    "answerKey": 0,
    "metadata": {"indirect_object": "Amy", "subject": "Tim", "random_c": "Sam"},
    "s2_io_flip_counterfactual": {"prompt": "Tim and Amy ran. Amy saw", "choices": ["Amy", "Tim"], "answerKey": 1},
    "abc_counterfactual": {"prompt": "Sam and Jo ran. Al saw", "choices": ["Amy", "Tim"], "answerKey": 0},
}
MCQA = {
    "prompt": "A box is red. A. red B. tan Answer:",
    "choices": {"label": [" A", " B"], "text": ["red", "tan"]},
    "answerKey": 0,
    "symbol_counterfactual": {
        "prompt": "A box is red. C. red D. tan Answer:",
        "choices": {"label": [" C", " D"], "text": ["red", "tan"]},
        "answerKey": 0,
    },
}
SUM = {
    "prompt": "1 + 2 =",
    "label": 3,
    "operator": "+",
    "random_counterfactual": {"prompt": "4 + 5 =", "label": 9},
}


def write(path: Path, records: list[Any]) -> Path:
    """The records in the form that the ending of ``path`` asks for."""
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
        case ".json":
            path.write_text(json.dumps(records))
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def test_our_own_format(tmp_path: Path) -> None:
    ids = {"clean": [1, 2], "corrupted": [1, 3], "answers": [4, [5, 6]], "wrong": 7}
    rows = read_rows(write(tmp_path / "own.jsonl", [OWN, ids, {"clean": "a", "corrupted": "b"}]))
    assert rows == [
        Row(1, "Tim ran", "Amy ran", (" off",), (" out",), "Tim/Amy", "train", 2, (1, 1)),
        Row(2, (1, 2), (1, 3), (4, (5, 6)), (7,)),
        Row(3, "a", "b"),
    ]


def test_lines_are_counted_with_the_empty_ones_and_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    record = json.dumps({"clean": "a\u2028b", "corrupted": "c\u2028b"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{record}\r\n\n{record}\n".encode())
    assert [(row.number, row.clean) for row in read_rows(path)] == [(1, "a\u2028b"), (3, "a\u2028b")]


def test_autocircuit(tmp_path: Path) -> None:
    path = tmp_path / "ioi.json"
    tokens = {"clean": [1, 2], "corrupt": [1, 3], "answers": [4], "wrong_answers": [5]}
    path.write_text(json.dumps({"word_idxs": {}, "prompts": [AUTOCIRCUIT, tokens]}))
    assert read_rows(path) == [
        Row(1, "Tim ran", "Amy ran", (" off",), (" out", " in")),
        Row(2, (1, 2), (1, 3), (4,), (5,)),
    ]


def test_eap_ig(tmp_path: Path) -> None:
    path = tmp_path / "ioi.csv"
    path.write_text(
        ',clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n0,"Tim, ran",Amy ran,Sam ran,12,"[13, 14]"\n'
    )
    assert read_rows(path) == [Row(1, "Tim, ran", "Amy ran", (12,), (13, 14))]
    assert read_rows(path, counterfactual="corrupted_hard")[0].corrupted == "Sam ran"


@pytest.mark.parametrize("name", ["mib.parquet", "mib.json", "mib.jsonl"])
@pytest.mark.parametrize(
    ("record", "counterfactual", "row"),
    [
        (IOI, None, Row(1, IOI["prompt"], "Tim and Amy ran. Amy saw", (" Amy",), (" Tim",))),
        (IOI, "abc", Row(1, IOI["prompt"], "Sam and Jo ran. Al saw", (" Amy",), (" Tim",))),
        (IOI, "abc_counterfactual", Row(1, IOI["prompt"], "Sam and Jo ran. Al saw", (" Amy",), (" Tim",))),
        (MCQA, None, Row(1, MCQA["prompt"], "A box is red. C. red D. tan Answer:", (" A",), (" C",))),
        (MCQA | {"answerKey": " A"}, "symbol",
         Row(1, MCQA["prompt"], "A box is red. C. red D. tan Answer:", (" A",), (" C",))),
        (SUM, None, Row(1, "1 + 2 =", "4 + 5 =", ("3",), ("9",))),
    ],
)  # fmt: skip
def test_mib(tmp_path: Path, name: str, record: dict[str, Any], counterfactual: str | None, row: Row) -> None:
    assert read_rows(write(tmp_path / name, [record]), counterfactual) == [row]


def test_rows_as_the_dataset_server_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [{"row_idx": 0, "row": IOI}]}))
    assert read_rows(path)[0].answers == (" Amy",)


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", [OWN | {"split": split, "group": split} for split in ("train", "held_out")])
    path.write_text(path.read_text().replace("Tim ran", "Sam ran", 1))
    task = from_file(path, Pieces())
    write_jsonl({"train": task.train, "held_out": task.held_out}, tmp_path / "again.jsonl")
    again = from_file(tmp_path / "again.jsonl", name=task.name)
    assert again.digest == task.digest
    assert again.how["split"] == "as the file says"


def test_what_is_no_pairs_of_tokens_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="only pairs of tokens with answers of one token can be written"):
        write_jsonl({"train": Pairs.of(torch.zeros(1, 2), torch.ones(1, 2))}, tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


# --- what cannot be read ----------------------------------------------------------------------------


def test_every_unreadable_row_is_listed(tmp_path: Path) -> None:
    bad = [
        (["a"], "it is a list, an object was expected"),
        ({"clean": "a"}, "it has no 'corrupted' (it has clean)"),
        ({"corrupt": "a", "answers": []}, "it has no 'clean' (it has corrupt, answers)"),
        (OWN | {"clean": ""}, "'clean' is '', a text or a list of token ids was expected"),
        (OWN | {"clean": [1, -2]}, "'clean' is [1, -2], a text or a list of token ids was expected"),
        (OWN | {"corrupted": 3.5}, "'corrupted' is 3.5, a text or a list of token ids was expected"),
        (OWN | {"answers": [True]}, "'answers' holds True, a text or token ids were expected"),
        (OWN | {"wrong": [[]]}, "'wrong' holds [], a text or token ids were expected"),
        (OWN | {"group": 3}, "'group' is 3, a text was expected"),
        (OWN | {"position": "3"}, "'position' is '3', a whole number was expected"),
        (OWN | {"span": [4, 2]}, "'span' is [4, 2], [first position, last position] was expected"),
        (OWN | {"clean": [2**63]}, "'clean' is [9223372036854775808], a text or a list of token ids was expected"),
        (OWN | {"answers": [2**70]}, "'answers' holds 1180591620717411303424, a text or token ids were expected"),
        (OWN | {"position": 2**63}, "'position' is 9223372036854775808, a whole number was expected"),
        (OWN | {"group": "\ud800"}, "it holds half of a surrogate pair, which is no character"),
    ]
    with pytest.raises(FormatError) as error:
        read_rows(write(tmp_path / "own.jsonl", [OWN, *(record for record, _ in bad)]))
    assert error.value.problem == f"15 of 16 rows of {tmp_path / 'own.jsonl'} cannot be read"
    assert list(error.value.details) == [f"row {i}: {said}" for i, (_, said) in enumerate(bad, start=2)]


@pytest.mark.parametrize(
    ("record", "counterfactual", "said"),
    [
        (IOI, "s1", "it has no 's1_counterfactual' (it has s2_io_flip_counterfactual, abc_counterfactual)"),
        (MCQA | {"answerKey": 7}, None, "its answerKey 7 is none of its choices"),
        (MCQA | {"symbol_counterfactual": MCQA}, None,
         "the answer ' A' is also the answer to its counterfactual; name another counterfactual"),
        (SUM | {"random_counterfactual": {"prompt": "x"}}, None, "its counterfactual has no 'label'"),
        ({"prompt": "a", "x_counterfactual": {}}, None,
         "it looks like a row of MIB, but of none of its tasks IOI, MCQA, ARC, arithmetic"
         " (it has prompt, x_counterfactual)"),
    ],
)  # fmt: skip
def test_rows_of_mib_that_cannot_be_read(
    tmp_path: Path, record: dict[str, Any], counterfactual: str | None, said: str
) -> None:
    with pytest.raises(FormatError) as error:
        read_rows(write(tmp_path / "mib.json", [record]), counterfactual)
    assert error.value.details == (f"row 1: {said}",)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("a,b,x,2", "'correct_idx' is 'x', a token id or a list of them was expected"),
        ("a,b,1,[]", "'incorrect_idx' is '[]', a token id or a list of them was expected"),
        ("a,b,1,2.5", "'incorrect_idx' is '2.5', a token id or a list of them was expected"),
        ("a,b,1", "'incorrect_idx' is None, a token id or a list of them was expected"),
        (",b,1,2", "'clean' is '', a text or a list of token ids was expected"),
        ("a,b,1,2,3", "it has more cells than there are columns"),
    ],
)
def test_rows_of_csv_that_cannot_be_read(tmp_path: Path, cells: str, said: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"clean,corrupted,correct_idx,incorrect_idx\n{cells}\n")
    with pytest.raises(FormatError) as error:
        read_rows(path)
    assert error.value.details == (f"row 1: {said}",)


def test_a_csv_of_years_is_no_csv_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "greater-than.csv"
    path.write_text("clean,corrupted,correct_idx\nThe war lasted from 1741 to 17,The war lasted from 1701 to 17,41\n")
    with pytest.raises(FormatError) as error:
        read_rows(path)
    assert error.value.problem == f"{path} has no column incorrect_idx"
    assert error.value.details == ("its columns are clean, corrupted, correct_idx",)
    assert "greater-than file has a year" in error.value.mend


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"clean": "a"\n{}\n[', "is damaged: 2 lines are no JSON\n  line 1: .*\n  line 3: "),
        ("a.json", b'{"prompts": [', "is damaged: it is not JSON"),
        ("a.json", b'{"pairs": []}', "holds no list of pairs"),
        ("a.json", b"[" * 100_000, "is damaged: it is not JSON"),
        ("a.jsonl", b"[" * 100_000, "is damaged: 1 line is no JSON"),
        ("a.csv", b"clean,clean,corrupted\na,b,c\n", "has several columns called clean\n  leave one of each"),
        ("a.json", b"\xff\xfe", "is damaged: it is not UTF-8 text"),
        ("a.csv", b'clean,corrupted,correct_idx,incorrect_idx\n"a', "is damaged: it is not CSV"),
        ("a.parquet", b"PAR1junkPAR1", "is damaged: it is not Parquet"),
        ("a.txt", b"", "is none of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=said):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", "\n"), ("a.json", "[]"), ("a.json", '{"prompts": []}'), ("a.csv", "clean,corrupted,correct_idx\n")],
)
def test_empty_tasks(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=f"the task is empty: .*{name} holds no pairs"):
        read_rows(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no file"):
        read_rows(tmp_path / "a.jsonl")
