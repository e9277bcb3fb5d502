"""Findings in a file: ``findings.json``, sealed as every file is, and read back as they were."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voltmeter.check.finding import Finding, Findings, Picture
from voltmeter.errors import CheckError, FormatError
from voltmeter.files import json_bytes, parse_object, read_bytes, seal, unseal, write_file

SCHEMA = 1
FINDINGS, FINDINGS_PAGE = "findings.json", "findings.html"


def findings_bytes(findings: Findings) -> bytes:
    """The content of a ``findings.json``: what ``as_dict`` says, pictures too. The conditions hold the digests."""
    document = findings.as_dict()
    pictures = {each.check: vars(each.picture) for each in findings if each.picture is not None}
    return json_bytes(seal({**document, "pictures": pictures}, "findings", SCHEMA))


def findings_from(data: bytes, where: str) -> Findings:
    """The findings in the content of a file. Raises FormatError naming ``where`` if it is damaged or something else."""
    document = unseal(parse_object(data, where), "findings", SCHEMA, where)
    try:
        pictures = {check: Picture(**picture) for check, picture in document["pictures"].items()}
        found = [_finding(each, pictures.get(each["check"])) for each in document["findings"]]
        return Findings(tuple(found), document["conditions"])
    except (LookupError, TypeError, AttributeError, CheckError) as error:
        raise FormatError(f"{where} is damaged: {error!r}", mend="copy it again, or check again") from error


def _finding(content: Mapping[str, Any], picture: Picture | None) -> Finding:
    return Finding(**{**content, "details": tuple(content["details"]), "picture": picture})


def save_findings(path: Path | str, findings: Findings) -> None:
    """Writes ``findings.json`` whole or not at all. Raises OutputError."""
    write_file(path, findings_bytes(findings))


def load_findings(path: Path | str) -> Findings:
    """Reads findings back, equal to those saved (seconds to the millisecond). Raises LoadError, or FormatError."""
    return findings_from(read_bytes(path), str(path))
