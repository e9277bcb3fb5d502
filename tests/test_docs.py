"""The Python in the docs runs as it stands, and prints what it says it prints."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from conftest import ROOT

PAGES = ("truth.md",)


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_prints_what_its_comments_say(page: str) -> None:
    found = blocks(page)
    assert found
    for block in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), {})
        said = re.findall(r"^print\(.*\)  # (.*?)(?:: .*)?$", block, re.MULTILINE)
        assert said, "a block that prints nothing shows nothing"
        for text in said:
            assert text in printed.getvalue().splitlines()
