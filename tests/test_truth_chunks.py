"""Cuts are walked in chunks, and where a chunk begins makes no difference."""

from __future__ import annotations

import pytest
import torch
from known_models import random_model

from voltmeter.rasp import effects
from voltmeter.rasp.effects import further_cuts, run_cut
from voltmeter.rasp.setting import Question, setting_of


@pytest.mark.parametrize("part", [0, 1, 2, 4, 5])
def test_chunks_of_one_say_what_one_chunk_says(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Of layers of several heads, with all that some head reads severed: each chunk reads a stream of its own."""
    setting = setting_of(random_model(1, layers=2, heads=3, whole=False), Question("zero"))
    ends = setting.machine.ends
    base = run_cut(setting, [edge for edge, (writer, at, _) in enumerate(ends) if at == part and writer == 0])
    together = further_cuts(setting, base, range(len(ends)))
    monkeypatch.setattr(effects, "_CHUNK", 1)
    one_by_one = further_cuts(setting, base, range(len(ends)))
    # Sums of the same numbers in another order: rounding, relative to the largest.
    assert float((together - one_by_one).abs().max()) <= 1e-9 * float(together.abs().max().clamp(min=1))
    assert torch.isfinite(together).all()
