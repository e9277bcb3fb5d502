"""The directory of a run.

    run.json              what is needed to repeat the run, and the digests of the files beside it
    scores.safetensors    a number per edge
    circuit.json          the circuit that was chosen
    fill.safetensors      what cut edges carry, where the method learned it: a tensor per writer
    page.html             all of it to look at

It appears whole or not at all, and what is read back is what was written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.formats import SCHEMA, circuit_bytes, circuit_from, scores_bytes, scores_from
from voltmeter.circuit.scores import Conditions, Scores
from voltmeter.errors import FormatError, OutputError, VoltmeterError
from voltmeter.files import (
    check_writable,
    digest_bytes,
    digest_json,
    json_bytes,
    parse_object,
    plain,
    read_bytes,
    seal,
    unseal,
    write_directory,
)
from voltmeter.run.fill import Fixed

RUN, SCORES, CIRCUIT, PAGE = "run.json", "scores.safetensors", "circuit.json", "page.html"
FILL = "fill.safetensors"


@dataclass(frozen=True)
class RunRecord:
    """What is needed to repeat a run, and what it came to. Plain data, kept as private copies."""

    command: tuple[str, ...]
    method: str
    conditions: Conditions
    seconds: float
    peak_mib: float
    started: str = ""
    """When, in ISO 8601."""
    device: str = "cpu"
    parents: tuple[str, ...] = ()
    """Identities of the runs this one was made from."""
    results: dict[str, Any] = field(default_factory=dict)
    """What ``--json`` prints: finite numbers, None where there is none to give."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", tuple(plain(self.command, "command")))
        object.__setattr__(self, "parents", tuple(plain(self.parents, "parents")))
        object.__setattr__(self, "results", plain(self.results, "results"))

    def __hash__(self) -> int:
        return hash((self.identity, self.command, self.started))

    @property
    def identity(self) -> str:
        """Digest of method, conditions and parents: equal for two runs of the same thing, whenever they were run."""
        conditions = self.conditions.as_dict()
        return digest_json({"method": self.method, "conditions": conditions, "parents": list(self.parents)})

    def as_dict(self) -> dict[str, Any]:
        """Plain data, of which ``from_dict`` makes an equal record."""
        return {
            "identity": self.identity,
            "command": list(self.command),
            "method": self.method,
            "conditions": self.conditions.as_dict(),
            "started": self.started,
            "device": self.device,
            "seconds": self.seconds,
            "peak_mib": self.peak_mib,
            "parents": list(self.parents),
            "results": self.results,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunRecord:
        """The record of ``as_dict``. Raises KeyError or TypeError if that is not what it is."""
        given = {key: value for key, value in content.items() if key != "identity"}
        tuples = {key: tuple(given[key]) for key in ("command", "parents")}
        return cls(**{**given, **tuples, "conditions": Conditions(**given["conditions"])})


@dataclass(frozen=True)
class Run:
    """A run read back from its directory. ``scores`` and ``circuit`` are None where the run gave none.

    ``fill``: what cut edges carry, where that was learned along with the scores, which hold under it alone; None where
    the name in the conditions says it all.
    """

    directory: Path
    record: RunRecord
    scores: Scores | None
    circuit: Circuit | None
    fill: Fixed | None = None


def check_run_directory(directory: Path | str, record: RunRecord | None = None) -> None:
    """Raises the OutputError that ``write_run`` would raise, before hours of work and not after them.

    Without ``record`` (its time and results may be anything: they are no part of its identity) every run already
    there counts as another one.
    """
    check_writable(directory, replace=_holds_same_run(Path(directory), record))


def write_run(
    directory: Path | str,
    record: RunRecord,
    scores: Scores | None,
    circuit: Circuit | None,
    page_html: str | None,
    feeds: Mapping[str, Sequence[str]] | None = None,
    width: int | None = None,
    fill: Fixed | None = None,
) -> None:
    """Writes the directory of a run: whole, or not at all.

    An older run of the same identity is replaced, unless somebody put files of their own beside it. ``feeds`` and
    ``width`` let other tools read ``circuit.json`` (see ``circuit_bytes``). ``fill``: what the method learned that cut
    edges carry. Raises OutputError if the directory cannot be written, or holds another run or anything else.
    """
    contents: dict[str, bytes] = {}
    if scores is not None:
        contents[SCORES] = scores_bytes(scores)
    if circuit is not None:
        contents[CIRCUIT] = circuit_bytes(circuit, feeds, width)
    if page_html is not None:
        contents[PAGE] = page_html.encode()
    told: dict[str, Any] = {}
    if fill is not None:
        contents[FILL] = save({name: values.detach().cpu().contiguous() for name, values in fill.tensors.items()})
        told["fill"] = {"name": fill.name, "over": fill.over, "by_position": fill.by_position}
    told["files"] = {name: digest_bytes(data) for name, data in contents.items()}
    contents[RUN] = json_bytes(seal({**record.as_dict(), **told}, "run", SCHEMA))
    write_directory(directory, contents, replace=_holds_same_run(Path(directory), record))


def _holds_same_run(directory: Path, record: RunRecord | None) -> bool:
    """Whether a run stands there that is ``record``'s. Raises OutputError if it is another, or not alone."""
    if not os.path.isfile(directory / RUN):  # False, too, for a path that cannot be: writing there says why
        return False
    there = _readable_document(directory / RUN)
    if record is None or there is None or there.get("identity") != record.identity:
        raise OutputError(
            f"{directory} already holds another run", [_described(directory / RUN)], "give another directory with --out"
        )
    _refuse_strangers(directory, there)
    return True


def _readable_document(path: Path) -> dict[str, Any] | None:
    try:
        return _run_document(path)
    except VoltmeterError:  # a damaged run is somebody's run all the same
        return None


def _refuse_strangers(directory: Path, document: Mapping[str, Any]) -> None:
    """Replacing a run must not take with it what somebody else put beside it."""
    own = {RUN, *(document.get("files") or ())}
    strangers = sorted(path.name for path in directory.iterdir() if path.name not in own)
    if strangers:
        raise OutputError(
            f"{directory} holds this run, and files that are no part of it",
            strangers,
            "move them elsewhere, or give another directory with --out",
        )


def _described(path: Path) -> str:
    try:
        record = RunRecord.from_dict({k: v for k, v in _run_document(path).items() if k not in _BESIDE})
    except (VoltmeterError, LookupError, TypeError):
        return f"its {RUN} cannot be read"
    conditions = record.conditions
    return f"{record.method} on {conditions.model}, {conditions.task}, fill {conditions.fill}, seed {conditions.seed}"


_BESIDE = ("files", "fill")  # what run.json holds that is no part of the record


def _run_document(path: Path) -> dict[str, Any]:
    return unseal(parse_object(read_bytes(path), str(path)), "run", SCHEMA, str(path))


def read_run(directory: Path | str) -> Run:
    """Reads a run back, every file checked against its digest.

    Raises LoadError if there is none, FormatError listing every file that is missing or was changed.
    """
    directory = Path(directory)
    document = _run_document(directory / RUN)
    try:
        files, about = document.pop("files"), document.pop("fill", None)
        record = RunRecord.from_dict(document)
    except (LookupError, TypeError) as error:
        raise FormatError(f"{directory / RUN} is damaged: {error!r}") from error
    contents = _checked_contents(directory, files)
    scores = scores_from(contents[SCORES], str(directory / SCORES)) if SCORES in contents else None
    circuit = circuit_from(contents[CIRCUIT], str(directory / CIRCUIT)) if CIRCUIT in contents else None
    fill = None if about is None else _fill_from(contents.get(FILL, b""), about, str(directory / FILL))
    return Run(directory, record, scores, circuit, fill)


def _fill_from(data: bytes, about: Any, where: str) -> Fixed:
    try:
        return Fixed(about["name"], load(data), about["over"], about["by_position"])
    except (SafetensorError, LookupError, TypeError) as error:
        raise FormatError(f"{where} is damaged: {error}", mend="copy it again, or repeat the run") from error


def _checked_contents(directory: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    misses: list[str] = []
    for name, digest in digests.items():
        try:
            contents[name] = read_bytes(directory / name)
        except VoltmeterError as error:
            misses.append(error.problem)
            continue
        if digest_bytes(contents[name]) != digest:
            misses.append(f"{name} is not as it was written")
    if misses:
        raise FormatError(f"the run in {directory} is damaged", misses, f"copy it again, or repeat it: {RUN} says how")
    return contents
