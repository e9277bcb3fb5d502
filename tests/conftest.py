"""What every test stands on: checked annotations, no network, one thread, fixed seeds, and the real models.

Imported before any test and before voltmeter itself, because the import hook must be in place first.
"""

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; this one is set below

import importlib.util
import ipaddress
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from beartype import BeartypeConf, BeartypeDecorPlace
from beartype.claw import beartype_package
from hypothesis import settings
from jaxtyping import TypeCheckError, install_import_hook

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT.parent / "shared" / "assets"
IN_CI = os.environ.get("CI") == "true"
SEED = 0


def _is_for_jaxtyping(source: str) -> bool:
    """Whether a module names axes, or types that beartype alone cannot find: absent at run time, or a NamedTuple's."""
    future = "from __future__ import annotations" in source
    return "from jaxtyping import" in source or "if TYPE_CHECKING:" in source or (future and "(NamedTuple):" in source)


def check_annotations() -> None:
    """Annotations, shapes included, are checked as tests run: by beartype, and with jaxtyping where axes are named.

    jaxtyping opens a scope for the names of axes in every call, which takes longer than most calls do. When all modules
    paid for that, and not those alone that name axes, wiring a model took three times as long.
    """
    source = ROOT / "src"
    shaped = [path for path in source.rglob("voltmeter/**/*.py") if _is_for_jaxtyping(path.read_text())]
    conf = BeartypeConf(
        claw_decor_place_func=BeartypeDecorPlace.FIRST,  # of ``@known``, which makes a Program of one
        claw_is_pep526=False,  # variables are mypy's business
        violation_type=TypeCheckError,
    )
    beartype_package("voltmeter", conf=conf)
    install_import_hook([".".join(at.relative_to(source).with_suffix("").parts) for at in shaped], "beartype.beartype")


check_annotations()

torch.set_num_threads(1)  # pytest-xdist runs one worker per core

settings.register_profile("voltmeter", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if IN_CI else "voltmeter")


def _missing(what: str) -> None:
    """Something outside the project is not here: CI fails, so that no test is lost unseen; elsewhere, skip."""
    if IN_CI:
        pytest.fail(f"{what}; CI must have it")
    pytest.skip(what, allow_module_level=True)


def asset(name: str) -> Path:
    """The folder (or file) ``name`` of the real models and data that lie beside the project."""
    path = ASSETS / name
    if not path.exists():
        _missing(f"no {name} in {ASSETS}")
    return path


def script(path: str) -> ModuleType:
    """A script of the project, such as ``bench/recovery.py``, as a module; its ``main`` is not called."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_on_transformers457(args: Sequence[str], timeout_seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run this Python with ``args``, transformers 4.57 in place of 5.x. The caller looks at the return code.

    ``run_on_transformers457(["-m", "pytest", "-n", "0", "tests/test_families.py"])`` runs a whole file of tests.
    """
    overlay = os.environ.get("VOLTMETER_TRANSFORMERS457", "")
    if not Path(overlay, "transformers").is_dir():
        _missing("VOLTMETER_TRANSFORMERS457 names no folder with transformers 4.57 (`make test` sets it)")
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": overlay},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def _is_this_machine(host: Any) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which would have to be looked up
        return False


def _refuse_other_machines(host: Any) -> None:
    if not _is_this_machine(host):
        # pytest.fail raises a BaseException: code under test that catches Exception cannot swallow it.
        pytest.fail(f"a test reached for the network: {host!r}")


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX:
            _refuse_other_machines(address[0])
        return connect(self, address)

    return guarded


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Looking up or connecting to another machine fails the test that does it."""
    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_other_machines(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True)
def torch_seed() -> int:
    """The same random numbers for a test whichever tests ran before it."""
    torch.manual_seed(SEED)
    return SEED
