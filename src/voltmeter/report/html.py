"""What all pages have in common: one file each, with its own style and script inside and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def number(value: float | int) -> str:
    """Three significant figures, with a minus sign and not a hyphen."""
    return f"{value:#,.3g}".rstrip(".").replace("-", "−")


def flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value as text, under the names that lead to it: ``versions.torch``."""
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)


def policy(css: str, script: str | None = None) -> str:
    """A Content-Security-Policy that lets a page use its own style and script, and nothing else."""
    scripts = "" if script is None else f"; script-src {_hash(script)}"
    return f"default-src 'none'; style-src {_hash(css)}{scripts}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def static(name: str) -> str:
    """A style or script that ships with voltmeter."""
    return files("voltmeter.report").joinpath("static", name).read_text(encoding="utf-8")


@cache
def template(name: str) -> Any:
    """A template that escapes what is put into it, and fails on what is missing."""
    loader = PackageLoader("voltmeter.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment.get_template(name)
