"""Files are whole or not there, whenever the writer dies; what was damaged is not read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltmeter import files
from voltmeter.errors import FormatError, LoadError, OutputError
from voltmeter.files import (
    check_writable,
    digest_bytes,
    digest_file,
    json_bytes,
    parse_json,
    parse_object,
    plain,
    read_bytes,
    seal,
    unseal,
    write_directory,
    write_file,
)

SRC = Path(files.__file__).resolve().parents[1]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(st.text().filter(lambda key: key not in ("kind", "schema", "digest")), values, max_size=5)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Sealed documents


@given(documents)
def test_a_sealed_document_comes_back_as_it_was(document: dict[str, Any]) -> None:
    data = json_bytes(seal(document, "circuit", 1))
    assert unseal(parse_object(data, "file"), "circuit", 1, "file") == document
    assert data == json_bytes(seal(document, "circuit", 1))


@given(documents, st.data())
def test_a_changed_byte_is_found(document: dict[str, Any], data: st.DataObject) -> None:
    whole = json_bytes(seal(document, "circuit", 1))
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        read = unseal(parse_object(bytes(damaged), "file"), "circuit", 1, "file")
    except FormatError:
        return
    assert read == document  # only the space between values may change unseen


def test_without_its_digest_the_same_damage_would_pass() -> None:
    """Sabotage: what the digest is for."""
    whole = json_bytes(seal({"score": 0.25}, "circuit", 1)).replace(b"0.25", b"0.75")
    assert json.loads(whole)["score"] == 0.75
    with pytest.raises(FormatError, match="its digest is not that of its content"):
        unseal(parse_object(whole, "c.json"), "circuit", 1, "c.json")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "c.json is no circuit file of voltmeter: it does not say its kind"),
        (seal({}, "scores", 1), "c.json holds a scores, a circuit was expected"),
        (
            seal({}, "circuit", 7),
            "c.json is in version 7 of the circuit format, version 1 was expected\n  read it with",
        ),
        ({**seal({}, "circuit", 1), "more": 1}, "c.json is damaged: its digest is not that of its content\n  copy it"),
        ({"kind": "circuit", "schema": 1, "x": 1e999}, "c.json is damaged: its digest"),
    ],
)
def test_what_else_a_document_may_be_is_said(document: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError) as caught:
        unseal(document, "circuit", 1, "c.json")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000])
def test_what_is_no_json_is_damage(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"c\.json is damaged: it is not JSON"):
        parse_json(data, "c.json")


def test_a_list_is_no_object() -> None:
    with pytest.raises(FormatError, match=r"c\.json holds a list, a JSON object was expected"):
        parse_object(b"[]", "c.json")


def test_one_entry_stands_on_one_line() -> None:
    text = json_bytes({"edges": {"a->b": {"score": 1.0}, "a->c": {"score": 2.0}}, "n": 2, "none": {}}).decode()
    assert text.splitlines() == [
        "{",
        '"edges": {',
        '  "a->b": {"score": 1.0},',
        '  "a->c": {"score": 2.0}',
        "},",
        '"n": 2,',
        '"none": {}',
        "}",
    ]


def test_plain_data_is_copied_and_everything_else_listed() -> None:
    nested: dict[str, Any] = {"a": (1, [2.5, None]), "b": True}
    copy = plain(nested, "settings")
    assert copy == {"a": [1, [2.5, None]], "b": True}
    copy["a"].append(3)
    assert nested["a"] == (1, [2.5, None])
    with pytest.raises(FormatError) as caught:
        plain({"a": [float("inf"), {1}], 2: "x"}, "settings")
    assert caught.value.details == ("settings has the key 2", "settings.a[0] is inf", "settings.a[1] is a set")


# Reading


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"there is no file .*nothing\.json"):
        read_bytes(tmp_path / "nothing.json")
    with pytest.raises(LoadError, match="cannot be read"):
        read_bytes(tmp_path)
    with pytest.raises(LoadError, match="there is no file"):
        digest_file(tmp_path / "nothing.json")


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"volt" * 100_000)
    assert digest_file(tmp_path / "f") == digest_bytes(b"volt" * 100_000)


# Writing


def test_a_file_replaces_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "f.json"
    write_file(target, b"old")
    write_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["f.json"]


def test_a_directory_appears_with_all_its_files(tmp_path: Path) -> None:
    write_directory(tmp_path / "run", {"a": b"1", "b": b"2"})
    assert names(tmp_path) == ["run"]
    assert {name: (tmp_path / "run" / name).read_bytes() for name in "ab"} == {"a": b"1", "b": b"2"}
    (tmp_path / "empty").mkdir()
    write_directory(tmp_path / "empty", {"a": b"1"})
    assert names(tmp_path / "empty") == ["a"]


def test_what_stands_in_the_way_is_left_as_it_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_directory(run, {"a": b"1"})
    for refuse in (lambda: check_writable(run), lambda: write_directory(run, {"b": b"2"})):
        with pytest.raises(OutputError, match="run is not empty\n  it holds a\n  give another directory with --out"):
            refuse()
    assert names(run) == ["a"]
    write_directory(run, {"b": b"2"}, replace=True)
    assert names(run) == ["b"]
    assert names(tmp_path) == ["run"]


def test_an_output_that_cannot_be_is_refused_before_and_after_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    cases = {
        "file": "file is a file, a directory was expected",
        "file/run": r"run cannot be written \(",
        ".": "is the directory you are in\n  give a directory inside it",
        "..": "holds the directory you are in\n  give another directory",
    }
    for target, message in cases.items():
        for refuse in (lambda t=target: check_writable(t, replace=True), lambda t=target: write_directory(t, {}, True)):
            with pytest.raises(OutputError, match=message):
                refuse()
    with pytest.raises(OutputError, match="cannot be written"):
        write_file("file/f.json", b"")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_directory_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "run")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    write_directory(tmp_path / "old", {"a": b"1"})
    write_file(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    expected: type[BaseException] = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_directory(tmp_path / "run", {"a": b"1"})
    with pytest.raises(expected):
        write_directory(tmp_path / "old", {"b": b"2"}, replace=True)
    with pytest.raises(expected):
        write_file(tmp_path / "f", b"new")
    assert names(tmp_path) == ["f", "old"]
    assert names(tmp_path / "old") == ["a"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_replacement_that_cannot_move_in_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def fail_second(source: Path, target: Path) -> None:
        if Path(source).suffix == ".partial":
            raise OSError(5, "Input/output error")
        rename(source, target)

    write_directory(tmp_path / "run", {"a": b"1"})
    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(OutputError, match="Input/output error"):
        write_directory(tmp_path / "run", {"b": b"2"}, replace=True)
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["a"]


# Over and over, a child writes three files and dies, as by a kill, at the n-th time it asks the system for anything.
KILLED = """
import os, sys
from pathlib import Path
from voltmeter.files import write_directory

def dying(call):
    def wrapped(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*args, **kwargs)
    return wrapped

for n in range(11):
    for older in ("nothing", "older"):
        target = Path(sys.argv[1]) / f"{older}-{n}" / "run"
        target.parent.mkdir()
        if older == "older":
            write_directory(target, {"old": b"old"})
        if os.fork() == 0:
            left = n
            for name in ("fsync", "rename", "mkdir", "close"):
                setattr(os, name, dying(getattr(os, name)))
            write_directory(target, {name: name.encode() * 100_000 for name in "abc"}, replace=True)
            os._exit(0)
        print(target.parent.name, os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_killed_at_any_moment_the_run_is_whole_or_not_there(tmp_path: Path) -> None:
    """Over an empty place and over an older run; leftovers bear names of their own."""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert set(codes.values()) == {"0", "9"}  # some died and some did not: the test is worth something
    for case, code in codes.items():
        whole = whole_or_absent(tmp_path / case, older=case.startswith("older"))
        assert whole or code == "9"


def whole_or_absent(parent: Path, older: bool) -> bool:
    """Whether the new run is there; fails if half of it is, or the older one is lost."""
    assert all(name == "run" or name.startswith(".run.") for name in names(parent))
    target = parent / "run"
    if not target.exists():
        if older:  # between the two renames: moved aside
            (aside,) = parent.glob(".run.*.replaced")
            assert names(aside) == ["old"]
        return False
    if older and names(target) == ["old"]:
        return False
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {n: n.encode() * 100_000 for n in "abc"}
    return True
