"""Stopping: whatever stops a run, what was done is kept, and going on gives the bits of a run that never stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_bench import discover, files, make_tiny, process, rows_for, voltmeter, write_rows

from voltmeter.cli import checkpoint as checkpoints
from voltmeter.cli import discover as discovering
from voltmeter.cli.checkpoint import STATE
from voltmeter.discover import METHODS, Judge
from voltmeter.discover.masks import EdgeSp

STEPS = 12
SAME = ("scores.safetensors", "circuit.json")
COMMAND = ("--edges", 4, "--steps", STEPS, "--seed", 7, "--batch-size", 4)
QUICK: dict[str, tuple[object, ...]] = {
    "acdc": ("--set", "thresholds=0.01,0.1,0.3"),
    "edge-pruning": ("--steps", 3),
    "edge-sp": ("--steps", 3),
    "ensemble": ("--batch-size", 6, "--set", "members=eap,hisp"),
    "node-sp": ("--steps", 3),
    "ugs": ("--steps", 3),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stopping(method: type, monkeypatch: pytest.MonkeyPatch, at: int, stop: Callable[[], None]) -> None:
    """The method's step numbered ``at`` stops instead, once."""
    step = method.step
    waiting = [True]

    def stopped(self: Any, question: Any, state: Any, number: int) -> Any:
        if number == at and waiting:
            waiting.clear()
            stop()
        return step(self, question, state, number)

    monkeypatch.setattr(method, "step", stopped)


def interrupt() -> None:
    raise KeyboardInterrupt


def assert_same(one: Path, other: Path) -> None:
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_place_to_stop_resumes_to_the_same_bits(here: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    args = ("--method", method, "--edges", 4, *QUICK.get(method, ("--batch-size", 4)))
    whole = discover(*args, "--out", "whole")
    assert whole.exit_code == 0, whole.stderr
    steps = int(re.findall(r"^plan .* · (\d+) steps? ", whole.stdout, re.MULTILINE)[0])
    for at in sorted({0, steps // 2, steps - 1}):
        with monkeypatch.context() as patch:
            stopping(METHODS[method], patch, at, interrupt)
            stopped = discover(*args, "--out", f"at-{at}")
        assert stopped.exit_code == 130
        assert f"stopped after {at} of {steps} steps" in stopped.stderr
        assert not (here / f"at-{at}").exists()
        resumed = discover(*args, "--out", f"at-{at}", "--resume")
        assert resumed.exit_code == 0, resumed.stderr
        assert_same(here / "whole", here / f"at-{at}")
        assert not (here / f"at-{at}.partial").exists()


def test_what_is_said_and_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping(EdgeSp, monkeypatch, 5, interrupt)
    stopped = discover(*COMMAND, "--out", "it")
    assert stopped.exit_code == 130
    told = stopped.stderr[stopped.stderr.index("voltmeter: ") :].splitlines()
    assert told == [
        "voltmeter: stopped after 5 of 12 steps",
        "  what was done is kept in it.partial",
        "  go on with: voltmeter discover hooked:tiny --task pairs.jsonl --edges 4 --seed 7 --out it --steps 12 "
        "--batch-size 4 --resume",
    ]
    assert {path.name for path in (here / "it.partial").iterdir()} == {"run.json", STATE}
    assert json.loads((here / "it.partial" / "run.json").read_text())["kind"] == "unfinished run"
    go_on = told[2].partition("go on with: voltmeter ")[2].split()
    done = voltmeter(*go_on)
    assert done.exit_code == 0, done.stderr
    assert "plan      edge-sp · 12 steps, going on after 5 · about" in done.stdout


def test_stopped_before_the_first_step_nothing_is_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(here)
    monkeypatch.setattr(EdgeSp, "start", lambda self, question: interrupt())
    stopped = discover("--out", "deep/er/it")
    assert (stopped.exit_code, files(here)) == (130, before)
    assert stopped.stderr == "voltmeter: stopped before the first step; nothing was written\n"
    monkeypatch.setattr(discovering, "load_subject", lambda *_: interrupt())
    stopped = discover()
    assert (stopped.exit_code, stopped.stderr, files(here)) == (
        130,
        "voltmeter: stopped; nothing was written\n",
        before,
    )


def test_stopped_while_choosing_the_steps_are_not_taken_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert discover("--out", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(discovering, "as_small_as_faithful", lambda *_: interrupt())
        stopped = discover("--out", "it")
    assert "stopped after 5 of 5 steps" in stopped.stderr
    monkeypatch.setattr(EdgeSp, "step", None)
    assert discover("--out", "it", "--resume").exit_code == 0
    assert_same(here / "whole", here / "it")


def test_another_size_of_circuit_goes_on_from_the_same_state(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopping(EdgeSp, patch, 4, interrupt)
        assert discover("--out", "it").exit_code == 130
    done = discover("--out", "it", "--faithful", 0.5, "--resume")
    assert done.exit_code == 0, done.stderr


# by signals ------------------------------------------------------------------------------------------------------

SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
from voltmeter.cli import checkpoint
from voltmeter.discover.masks import EdgeSp
checkpoint.SAVE_EVERY_SECONDS = {every}
step = EdgeSp.step
def slowly(self, question, state, number):
    open("step-%d" % number, "w").close()
    if number >= 6:
        time.sleep(60)
    return step(self, question, state, number)
EdgeSp.step = slowly
"""


@pytest.mark.parametrize(
    ("number", "code", "every"), [(signal.SIGINT, 130, 10), (signal.SIGTERM, 143, 10), (signal.SIGKILL, -9, 0)]
)
def test_by_a_signal(here: Path, number: int, code: int, every: int) -> None:
    whole = discover(*COMMAND, "--out", "whole")
    assert whole.exit_code == 0, whole.stderr
    args = ("discover", "hooked:tiny", "--task", "pairs.jsonl", *COMMAND, "--out", "it")
    running = process(*args, patch=SLOW.format(every=every))
    wait_for(here / "step-6", running)
    running.send_signal(number)
    _, told = running.communicate(timeout=300)
    assert running.returncode == code, told
    assert ("stopped after 6 of 12 steps" in told) == (code > 0)
    assert "Traceback" not in told
    assert not (here / "it").exists()
    resumed = discover(*COMMAND, "--out", "it", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "going on after 6" in resumed.stdout
    assert_same(here / "whole", here / "it")


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_reader_that_goes_away_is_no_error(here: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    running = process("wire", "hooked:tiny", patch=f"import os; os.dup2({write}, 1)", keep=write)
    os.close(write)
    _, told = running.communicate(timeout=300)
    assert (running.returncode, told) == (1, "")


# what is there already -------------------------------------------------------------------------------------------


def partial(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    with monkeypatch.context() as patch:
        stopping(EdgeSp, patch, 4, interrupt)
        assert discover("--out", "it", *args).exit_code == 130


def test_an_unfinished_run_is_not_begun_anew_unasked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial(monkeypatch)
    before = (here / "it.partial" / STATE).read_bytes()
    again = discover("--out", "it")
    assert again.exit_code == 2
    assert again.stderr == (
        "voltmeter: it.partial holds 4 of 5 steps of this run\n"
        "  go on with --resume, or remove it.partial to begin anew\n"
    )
    assert (here / "it.partial" / STATE).read_bytes() == before


def test_an_unfinished_run_of_other_settings_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial(monkeypatch)
    refused = discover("--out", "it", "--resume", "--seed", 2, "--set", "price=3")
    assert refused.exit_code == 2
    lines = refused.stderr.splitlines()
    assert lines[0] == "voltmeter: it.partial holds an unfinished run of other settings (4 of 5 steps)"
    assert "  seed: 0 there, 2 here" in lines
    assert "  settings.price: 0.4 there, 3.0 here" in lines
    assert lines[-1] == ("  resume it with its own settings, give another directory with --out, or remove it.partial")


def test_other_weights_are_other_settings(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from voltmeter.wiring.hooked_files import load_hooked, save_hooked

    partial(monkeypatch)
    model = load_hooked(here / "tiny")
    model.initialise(1, gain=3.0)
    shutil.rmtree(here / "tiny")
    save_hooked(model, here / "tiny")
    refused = discover("--out", "it", "--resume")
    assert refused.exit_code == 2
    assert "  digests.model: " in refused.stderr
    write_rows(here / "pairs.jsonl", rows_for(model))
    assert "  digests.task: " in discover("--out", "it", "--resume").stderr


@pytest.mark.parametrize("damage", [b"", b"not tensors", None])
def test_a_damaged_state_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None) -> None:
    partial(monkeypatch)
    path = here / "it.partial" / STATE
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data) if damage is None else damage)
    refused = discover("--out", "it", "--resume")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("voltmeter: it.partial/state.safetensors is damaged\n")
    assert refused.stderr.endswith("  remove its directory, and run again\n")


def test_resume_with_nothing_to_resume_begins(here: Path) -> None:
    assert discover("--edges", 3, "--resume").exit_code == 0


def test_long_work_is_kept_when_something_breaks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Judge, "measure", broken)
    quick = discover("--out", "it")
    assert quick.exit_code == 1
    assert quick.stderr.splitlines()[-3:] == [
        "voltmeter: something went wrong that should not",
        "  RuntimeError: a bug",
        "  say --debug to see where; please report it",
    ]
    assert not (here / "it.partial").exists()
    monkeypatch.setattr(discovering, "SAVE_EVERY_SECONDS", 0.0)
    assert discover("--out", "it").exit_code == 1
    assert (here / "it.partial" / STATE).exists()


def test_states_are_saved_as_time_goes_by(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never between: saving costs a write to the disk."""
    saved = []
    save = checkpoints.Checkpoint.save
    monkeypatch.setattr(
        checkpoints.Checkpoint, "save", lambda self, state: (saved.append(state.step), save(self, state))
    )
    clock = iter(range(0, 10**6, 4))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: float(next(clock)))
    assert discover("--steps", 9).exit_code == 0
    assert 1 < len(saved) < 9
    assert saved == sorted(set(saved))
    assert torch.is_inference_mode_enabled() is False


def test_what_somebody_keeps_under_the_name_of_an_unfinished_run_stays(here: Path) -> None:
    (here / "it.partial").mkdir()
    (here / "it.partial" / "thesis.tex").write_text("all my work")
    assert discover("--edges", 3, "--out", "it").exit_code == 0
    assert files(here / "it.partial") == {"thesis.tex"}


def test_a_file_in_the_place_of_an_unfinished_run_is_refused_before_the_work(here: Path) -> None:
    (here / "it.partial").write_text("")
    refused = discover("--edges", 3, "--out", "it")
    assert (refused.exit_code, (here / "it").exists()) == (2, False)
    assert refused.stderr == (
        "voltmeter: it.partial is a file, and a run that is stopped is kept in a directory of that name\n"
        "  give another directory with --out, or move the file\n"
    )


def test_an_unfinished_run_says_what_it_is_though_another_began_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between its two files leaves the first; the next run to be stopped there writes its own."""
    partial(monkeypatch, "--seed", 3)
    (here / "it.partial" / STATE).unlink()
    partial(monkeypatch, "--seed", 4)
    told = discover("--out", "it", "--resume", "--seed", 5).stderr
    assert "  seed: 4 there, 5 here\n" in told
