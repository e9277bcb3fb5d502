"""The Python in the docs runs as it stands, and prints what it says it prints."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from conftest import ROOT

from voltmeter.check import registry

PAGES = ("truth.md", "check.md")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_prints_what_its_comments_say(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KNOWN", dict(registry._KNOWN))  # a page may add a check of its own
    found = blocks(page)
    assert found
    names: dict[str, object] = {"__name__": page}  # a block goes on where the last one ended
    for block in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
        said = re.findall(r"^print\(.*\)  # (.*?)(?:: .*)?$", block, re.MULTILINE)
        assert said, "a block that prints nothing shows nothing"
        for text in said:
            assert text in printed.getvalue().splitlines()
