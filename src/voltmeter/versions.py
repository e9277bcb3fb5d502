"""Which versions of packages results come from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """The version that is installed. "not installed" is voltmeter's own where it is run from a source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
