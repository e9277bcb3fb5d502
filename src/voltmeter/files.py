"""Files that are either whole or not there: atomic writes, digests, checked reads.

Nothing is written in place. A file or directory is built beside its target under a temporary name, flushed
to the disk, and renamed, so that a reader, a full disk or a kill never meets half of it. Whatever is read
back carries a digest of its own content, so that damage is an error and never a number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voltmeter.errors import FormatError, LoadError, OutputError

_DAMAGED = "copy it again from where it came from, or repeat the run that wrote it"


# Digests


def digest_bytes(data: bytes) -> str:
    """SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a plain value's shortest JSON. Order of keys counts: files keep edges in wiring order."""
    return digest_bytes(json.dumps(value, separators=(",", ":"), allow_nan=False).encode())


def digest_file(path: Path | str) -> str:
    """SHA-256 of a file, read in pieces. Raises LoadError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(Path(path), error) from error


# Plain data


def plain(value: Any, what: str) -> Any:
    """A private copy of ``value`` made of what JSON holds: None, bool, int, finite float, str, list, dict.

    Tuples become lists. Raises FormatError naming every place that holds anything else (a tensor, a NaN, a
    key that is no string): such a value would be lost, or changed without a word, on its way to a file.
    """
    misses: list[str] = []
    copy = _plain(value, what, misses)
    if misses:
        raise FormatError(
            f"{what} holds values that a file cannot keep",
            misses,
            "give plain data: None, True or False, whole and finite numbers, strings, lists, dicts with string keys",
        )
    return copy


def _plain(value: Any, where: str, misses: list[str]) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case list() | tuple():
            return [_plain(item, f"{where}[{i}]", misses) for i, item in enumerate(value)]
        case Mapping():
            misses += [f"{where} has the key {key!r}" for key in value if not isinstance(key, str)]
            return {str(key): _plain(item, f"{where}.{key}", misses) for key, item in value.items()}
        case float():
            misses.append(f"{where} is {value}")
        case _:
            misses.append(f"{where} is a {type(value).__name__}")
    return None


# Sealed documents: JSON that says what it is and carries a digest of itself


def seal(document: Mapping[str, Any], kind: str, schema: int) -> dict[str, Any]:
    """``document`` with ``kind`` and ``schema`` in front and ``digest`` behind."""
    sealed = {"kind": kind, "schema": schema, **document}
    return {**sealed, "digest": digest_json(sealed)}


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """JSON with one line to each key, and to each entry of a dict or list among the values: short, and good to diff."""
    lines = [f"{_compact(key)}: {_spread(value)}" for key, value in document.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _spread(value: Any) -> str:
    match value:
        case dict() if value:
            return "{\n" + ",\n".join(f"  {_compact(key)}: {_compact(item)}" for key, item in value.items()) + "\n}"
        case list() if value:
            return "[\n" + ",\n".join(f"  {_compact(item)}" for item in value) + "\n]"
        case _:
            return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def parse_json(data: bytes, where: str) -> Any:
    """The JSON value in ``data``. Raises FormatError naming ``where`` if there is none."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is damaged: it is not JSON ({error})", mend=_DAMAGED) from error


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number in JSON")


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``data``. Raises FormatError naming ``where`` if there is none."""
    document = parse_json(data, where)
    if not isinstance(document, dict):
        raise FormatError(f"{where} holds a {type(document).__name__}, a JSON object was expected")
    return document


def unseal(document: dict[str, Any], kind: str, schema: int, where: str) -> dict[str, Any]:
    """The content of a sealed document. Raises FormatError if it is of another kind or version, or was changed."""
    given = document.get("kind")
    if not isinstance(given, str):
        raise FormatError(f"{where} is no {kind} file of voltmeter: it does not say its kind")
    if given != kind:
        raise FormatError(f"{where} holds a {given}, a {kind} was expected")
    if document.get("schema") != schema:
        raise FormatError(
            f"{where} is in version {document.get('schema')!r} of the {kind} format, version {schema} was expected",
            mend="read it with the voltmeter that wrote it, or install the newest one",
        )
    content = {key: value for key, value in document.items() if key != "digest"}
    if not _is_digest_of(document.get("digest"), content):
        raise FormatError(f"{where} is damaged: its digest is not that of its content", mend=_DAMAGED)
    return {key: value for key, value in content.items() if key not in ("kind", "schema")}


def _is_digest_of(digest: Any, content: dict[str, Any]) -> bool:
    try:
        return bool(digest == digest_json(content))
    except ValueError:  # an infinity, which voltmeter never writes
        return False


# Reading


def read_bytes(path: Path | str) -> bytes:
    """The whole file. Raises LoadError if it is missing or cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(Path(path), error) from error


def _unreadable(path: Path, error: OSError) -> LoadError:
    if isinstance(error, FileNotFoundError):
        return LoadError(f"there is no file {path}")
    return LoadError(f"{path} cannot be read ({error.strerror or error})")


# Writing


def write_file(path: Path | str, data: bytes) -> None:
    """Writes ``data`` to ``path`` whole or not at all; an older file there is replaced. Raises OutputError."""
    target = Path(path)
    partial = _beside(target, "partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_flushed(partial, data)
        os.replace(partial, target)
        _flush_directory(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or its directory never came to be
            partial.unlink()


def write_directory(directory: Path | str, files: Mapping[str, bytes], replace: bool = False) -> None:
    """Writes a whole directory at once: a reader finds all of ``files`` in it, or no directory.

    Raises OutputError if it cannot be written, or exists with anything in it and ``replace`` is false. With
    ``replace`` the old directory is first moved aside: killed between the two renames, it is still whole under
    its temporary name ``.<name>.<number>.replaced``.
    """
    target = Path(directory).absolute()
    partial, aside = _beside(target, "partial"), _beside(target, "replaced")
    try:
        _refuse_occupied(target, replace)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        for name, data in files.items():
            _write_flushed(partial / name, data)
        _flush_directory(partial)
        _move_in(partial, target, aside)
        _flush_directory(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def check_writable(directory: Path | str, replace: bool = False) -> None:
    """Raises the OutputError that ``write_directory`` would raise, before hours of work and not after them."""
    target = Path(directory).absolute()
    probe = _beside(target, "partial")
    try:
        _refuse_occupied(target, replace)
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise _unwritable(target, error) from error


def _refuse_occupied(target: Path, replace: bool) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file, a directory was expected", mend="give another directory with --out")
    if Path.cwd().is_relative_to(target.resolve()):  # a rename would pull it from under the shell that stands in it
        is_here = Path.cwd() == target.resolve()
        raise OutputError(
            f"{target} {'is' if is_here else 'holds'} the directory you are in",
            mend=f"give {'a directory inside it' if is_here else 'another directory'} with --out",
        )
    if not replace and target.is_dir() and any(target.iterdir()):
        raise OutputError(
            f"{target} is not empty",
            [f"it holds {', '.join(sorted(path.name for path in target.iterdir())[:6])}"],
            "give another directory with --out, or empty this one",
        )


def _move_in(partial: Path, target: Path, aside: Path) -> None:
    if not target.exists():
        os.rename(partial, target)
        return
    os.rename(target, aside)
    try:
        os.rename(partial, target)
    except BaseException:
        os.rename(aside, target)
        raise


def _beside(target: Path, role: str) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.{role}"


def _write_flushed(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(directory: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened, and need not be
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{target} cannot be written ({error.strerror or error})",
        mend="give a directory that can be written with --out",
    )
