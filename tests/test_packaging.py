"""What the package promises before a line of it runs: equal installs, no needless ones, and nothing undeclared."""

import ast
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_on_transformers457
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = ROOT / "src" / "voltmeter"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL_FILES = ("Makefile", "pyproject.toml", "constraints.txt", "constraints-transformers457.txt")
STAMPS = (".venv/.installed", ".venv-transformers457/.installed")


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def pins(path: Path) -> dict[str, str]:
    """Package to exact version; a line that pins nothing exactly fails."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line)]
    assert loose == [], f"{path.name} does not pin these"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


# --- installs are equal ---------------------------------------------------------------------------


def all_installed(requirement: str) -> Iterator[str]:
    """``requirement`` and everything it stands on in this environment, by name."""
    seen: set[str] = set()
    waiting = [Requirement(requirement)]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in seen:
            continue
        seen.add(name)
        yield name
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)


def test_everything_that_is_installed_is_pinned() -> None:
    pinned = pins(ROOT / "constraints.txt")
    wanted = [*all_installed("voltmeter[dev]"), *all_installed("hatchling")]
    assert len(wanted) > 40
    assert sorted(set(wanted) - set(pinned) - {"voltmeter"}) == []
    assert pinned["torch"] == "2.13.0"


def test_every_extra_is_pinned() -> None:
    pinned = pins(ROOT / "constraints.txt")
    declared = names([line for extra in PROJECT["optional-dependencies"].values() for line in extra])
    assert declared - set(pinned) == set()


@pytest.mark.parametrize("name", INSTALL_FILES)
def test_no_file_names_a_registry(name: str) -> None:
    assert re.findall(r"https?://|--(?:extra-)?index-url|--find-links", (ROOT / name).read_text()) == []


def test_transformers_457_runs_over_the_same_environment() -> None:
    pinned = pins(ROOT / "constraints-transformers457.txt")
    done = run_on_transformers457(["-c", "import transformers; print(transformers.__version__)"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == pinned["transformers"]
    assert pinned["transformers"].startswith("4.57.")


# --- the Makefile installs once -------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the files that say what to install, with the stamps of an install that came after them."""
    for name in INSTALL_FILES:
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1000, 1000))
    for seconds, stamp in enumerate(STAMPS, start=2000):
        (tmp_path / stamp).parent.mkdir()
        (tmp_path / stamp).touch()
        os.utime(tmp_path / stamp, (seconds, seconds))
    return tmp_path


def make(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *args], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def planned(folder: Path, target: str) -> str:
    done = make(folder, "--dry-run", target)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types"])
def test_nothing_is_installed_twice(installed: Path, target: str) -> None:
    plan = planned(installed, target)
    assert " install " not in plan
    assert " venv " not in plan


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_is_installed_into_the_same_venv(installed: Path, changed: str) -> None:
    os.utime(installed / changed, (3000, 3000))
    plan = planned(installed, "demo")
    assert "pip --disable-pip-version-check install -c constraints.txt --no-build-isolation -e '.[dev]'" in plan
    assert "test -f .venv/.installed ||" in plan


def test_a_changed_overlay_leaves_the_venv_alone(installed: Path) -> None:
    os.utime(installed / "constraints-transformers457.txt", (3000, 3000))
    plan = planned(installed, "test")
    assert "--target .venv-transformers457 -r constraints-transformers457.txt" in plan
    assert "-c constraints.txt" not in plan


def stand_in_python(folder: Path) -> Path:
    """A Python whose ``-m venv`` makes a venv that logs each pip, which fails while the file ``broken`` is there."""
    inner = 'echo "$@" >> pip.log; test ! -f broken'
    script = folder / "stand-in-python"
    script.write_text(
        "#!/bin/sh\n"
        'test "$1" = -m || exit 0\n'
        'test "$3" = --clear && rm -rf .venv\n'
        "mkdir -p .venv/bin\n"
        f"printf '#!/bin/sh\\n%s\\n' '{inner}' > .venv/bin/python\n"
        "chmod +x .venv/bin/python\n"
    )
    script.chmod(0o755)
    return script


def test_a_half_made_venv_is_made_anew(installed: Path) -> None:
    shutil.rmtree(installed / ".venv")
    python = f"PYTHON={stand_in_python(installed)}"
    (installed / "broken").touch()
    assert make(installed, "install", python).returncode != 0
    assert not (installed / STAMPS[0]).exists()

    left_over = installed / ".venv" / "left-over"
    left_over.touch()
    (installed / "broken").unlink()
    assert make(installed, "install", python).returncode == 0
    assert (installed / STAMPS[0]).exists()
    assert not left_over.exists()


def test_an_update_that_fails_takes_the_stamp_away(installed: Path) -> None:
    python = f"PYTHON={stand_in_python(installed)}"
    shutil.rmtree(installed / ".venv")
    assert make(installed, "install", python).returncode == 0
    (installed / "constraints.txt").touch()
    os.utime(installed / STAMPS[0], (2000, 2000))
    (installed / "broken").touch()
    assert make(installed, "install", python).returncode != 0
    assert not (installed / STAMPS[0]).exists()


def test_an_old_python_is_refused_in_words(installed: Path) -> None:
    shutil.rmtree(installed / ".venv")
    old = installed / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(installed, "install", f"PYTHON={old}")
    assert done.returncode != 0
    assert "voltmeter needs Python 3.11 or newer" in done.stdout
    assert not (installed / ".venv").exists()


# --- the package holds what it needs and declares what it uses -------------------------------------


def third_party_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level name, whether it is imported as the module loads) of each import that is not ours or Python's."""
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        for module in modules:
            name = module.split(".")[0]
            if name not in sys.stdlib_module_names and name != "voltmeter":
                yield name, id(node) not in late


def undeclared_imports(package: Path) -> list[str]:
    """Imports of what pyproject.toml does not ask for; an extra may be imported only inside a function."""
    core = names(PROJECT["dependencies"])
    extras = names(
        [line for extra, lines in PROJECT["optional-dependencies"].items() if extra != "dev" for line in lines]
    )
    return [
        f"{path.relative_to(package)} imports {name}"
        for path in sorted(package.rglob("*.py"))
        for name, as_it_loads in third_party_imports(path)
        if canonicalize_name(name) not in core and (as_it_loads or canonicalize_name(name) not in extras)
    ]


def test_every_import_is_declared() -> None:
    assert undeclared_imports(PACKAGE) == []


def test_an_undeclared_import_is_caught(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import torch.nn\nimport scipy.stats")
    (tmp_path / "b.py").write_text("import fastapi")
    (tmp_path / "c.py").write_text("def serve():\n    import fastapi, pytest")
    wrong = ["a.py imports scipy", "b.py imports fastapi", "c.py imports pytest"]
    assert undeclared_imports(tmp_path) == wrong


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    [wheel] = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("voltmeter/")}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert inside == {f"voltmeter/{path.relative_to(PACKAGE).as_posix()}" for path in files}
    assert "voltmeter/py.typed" in inside


def test_the_version_stands_in_one_place() -> None:
    import voltmeter

    assert voltmeter.__version__ == importlib.metadata.version("voltmeter") == PROJECT["version"]


def test_the_command_leads_to_the_front_door() -> None:
    [command] = importlib.metadata.entry_points(group="console_scripts", name="voltmeter")
    assert callable(command.load())


# --- the harness can fail -------------------------------------------------------------------------


@pytest.mark.parametrize("reach", ["connect", "connect_ex"])
def test_another_machine_is_out_of_reach(reach: str) -> None:
    with socket.socket() as sock, pytest.raises(pytest.fail.Exception, match="reached for the network"):
        getattr(sock, reach)(("192.0.2.1", 80))


def test_a_name_is_not_looked_up() -> None:
    with pytest.raises(pytest.fail.Exception, match="reached for the network"):
        socket.create_connection(("example.invalid", 80))


def test_this_machine_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def test_annotations_are_checked_as_tests_run() -> None:
    from voltmeter.errors import nearest
    from voltmeter.rasp.model import attend

    with pytest.raises(TypeCheckError):
        nearest(3, ["a3.h0"])  # its module names no axes
    short, long = torch.zeros(1, 2, 3), torch.zeros(1, 4, 3)
    with pytest.raises(TypeCheckError):
        attend(short, short, long, False)  # as many positions in all three
