"""A model and a task small enough to run the command on, and the command itself, in this process or another."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT
from typer.testing import CliRunner

from voltmeter.cli.app import app
from voltmeter.discover import METHODS
from voltmeter.discover.masks import EdgeSp
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_files import save_hooked
from voltmeter.wiring.hooked_settings import HookedSettings

LENGTH, VOCABULARY, N_PAIRS = 6, 12, 24
N_EDGES = 9  # input -> 2 heads <q>, <k>, <v>; input, 2 heads -> logits
SETTINGS = HookedSettings(
    n_layers=1,
    n_heads=2,
    d_model=8,
    d_head=4,
    attention="causal",
    d_vocab=VOCABULARY,
    d_vocab_out=VOCABULARY,
    n_ctx=LENGTH,
)


def voltmeter(*args: object) -> Any:
    """``voltmeter ARGS``, in this process: ``exit_code``, ``stdout``, ``stderr``."""
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="voltmeter")


def discover(*args: object) -> Any:
    """``voltmeter discover`` on the tiny model and its pairs, in the working directory; five steps if it has any."""
    method = METHODS.get(str(args[args.index("--method") + 1]) if "--method" in args else "edge-sp", EdgeSp)
    takes_steps = any(field.name == "n_steps" for field in fields(method))
    steps = ("--steps", 5) if takes_steps and "--steps" not in args else ()
    return voltmeter("discover", "hooked:tiny", "--task", "pairs.jsonl", *steps, *args)


def process(*args: object, patch: str = "", keep: int | None = None) -> subprocess.Popen[str]:
    """``voltmeter ARGS`` in a process of its own; ``patch`` is Python that runs first, ``keep`` a file it inherits."""
    code = f"{patch}\nfrom voltmeter.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        pass_fds=[] if keep is None else [keep],
    )


def make_tiny(place: Path) -> None:
    """``tiny``, a model of one layer, and ``pairs.jsonl``, pairs that it gets right by construction."""
    model = HookedModel(SETTINGS).initialise(0, gain=3.0)
    save_hooked(model, place / "tiny")
    write_rows(place / "pairs.jsonl", rows_for(model))


@torch.no_grad()
def rows_for(model: HookedModel) -> list[dict[str, Any]]:
    """Pairs that differ in one token; what counts as right is what the model says."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    while len(rows) < N_PAIRS:
        clean = [rng.randrange(VOCABULARY) for _ in range(LENGTH)]
        corrupted = [*clean[:2], rng.randrange(VOCABULARY), *clean[3:]]
        answer, wrong = model(torch.tensor([clean, corrupted]))[:, -1].argmax(-1).tolist()
        if answer != wrong:
            rows.append({"clean": clean, "corrupted": corrupted, "answers": [answer], "wrong": [wrong]})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One pair to a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def files(place: Path) -> set[str]:
    """Everything under a directory."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}
