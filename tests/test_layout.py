"""The house is as drawn: rooms import only downwards, the front door is short and light, the README is true."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "voltmeter"
README = ROOT / "README.md"

# A room imports only from itself and from rooms before it.
ROOMS = (
    "errors",
    "files",
    "versions",
    "wiring",
    "run",
    "circuit",
    "task",
    "rasp",
    "discover",
    "check",
    "instruments",
    "sweep",
    "report",
    "cli",
)
DOORS = {"__init__", "__main__"}  # they open onto every room, and no room may import them

# The names that stay. `check` and `intervene` join when they exist.
PUBLIC = [
    "Circuit",
    "Scores",
    "Task",
    "__version__",
    "check",
    "discover",
    "errors",
    "fill",
    "load",
    "rasp",
    "record",
    "run",
    "wire",
]
# What `import voltmeter` may not pull in: each is slow, or an extra.
HEAVY = ("anywidget", "fastapi", "plotly", "ray", "rich", "transformers")


def python(code: str, cwd: Path, *args: str) -> str:
    """What ``code`` prints in a fresh process; the test fails with its traceback if it does."""
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- rooms import only downwards ------------------------------------------------------------------


def room_of(module: str) -> str:
    """``voltmeter.wiring.trace`` is in ``wiring``; the package itself is the door ``__init__``."""
    return [*module.split("."), "__init__"][1]


def imported_modules(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import in a file of ``package``, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module == "voltmeter":  # from voltmeter import errors: the name is the room
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def upward_imports(package: Path) -> list[str]:
    """Every import that breaks the order of the rooms, and every file that is in no room."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        room = inside.parts[0].removesuffix(".py")
        if room in DOORS:
            continue
        if room not in ROOMS:
            wrong.append(f"{inside} is in no room")
            continue
        above = ROOMS[: ROOMS.index(room) + 1]
        for line, module in imported_modules(ast.parse(path.read_text()), ["voltmeter", *inside.parts[:-1]]):
            if module.split(".")[0] == "voltmeter" and room_of(module) not in above:
                wrong.append(f"{inside}:{line} imports {module}")
    return wrong


def test_rooms_import_only_from_rooms_above() -> None:
    assert upward_imports(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("wiring/trace.py", "from voltmeter.run.engine import run", "imports voltmeter.run.engine"),
        ("wiring/trace.py", "from ..run import engine", "imports voltmeter.run"),
        ("wiring/deep/trace.py", "from ...run.engine import run", "imports voltmeter.run.engine"),
        ("wiring/trace.py", "from voltmeter import discover", "imports voltmeter.discover"),
        ("wiring/trace.py", "from .. import cli", "imports voltmeter.cli"),
        ("wiring/trace.py", "import torch, voltmeter.task.metric as m", "imports voltmeter.task.metric"),
        ("wiring/trace.py", "def late():\n    import voltmeter.report", ":2 imports voltmeter.report"),
        ("wiring/trace.py", "importlib.import_module('voltmeter.cli')", "imports voltmeter.cli"),
        ("wiring/trace.py", "import voltmeter", "imports voltmeter"),
        ("wiring/trace.py", "from voltmeter import __version__", "imports voltmeter.__version__"),
        ("errors.py", "from voltmeter.files import write", "imports voltmeter.files"),
        ("attic/old.py", "x = 1", "attic/old.py is in no room"),
        ("utils.py", "x = 1", "utils.py is in no room"),
    ],
)
def test_an_upward_import_is_caught(tmp_path: Path, file: str, code: str, complaint: str) -> None:
    sabotaged = tmp_path / file
    sabotaged.parent.mkdir(parents=True, exist_ok=True)
    sabotaged.write_text(code)
    [wrong] = upward_imports(tmp_path)
    assert wrong.endswith(complaint)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("run/engine.py", "import torch\nfrom voltmeter.wiring.wiring import Wiring"),
        ("run/engine.py", "from .fill import Fill\nfrom ..errors import KeepError\nfrom . import fill"),
        ("run/engine.py", "from voltmeter import errors, wiring"),
        ("files.py", "from voltmeter.errors import OutputError"),
        ("__init__.py", "from voltmeter.cli import main"),
    ],
)
def test_a_downward_import_is_let_through(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    assert upward_imports(tmp_path) == []


# --- the front door -------------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    import voltmeter

    assert sorted(voltmeter.__all__) == PUBLIC
    assert [name for name in PUBLIC if getattr(voltmeter, name, None) is None] == []


HIDDEN = f"""
import importlib, pkgutil, sys, voltmeter
def import_all():
    for module in pkgutil.walk_packages(voltmeter.__path__, "voltmeter."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
if sys.argv[1] == "rooms first":
    import_all()
before = {{name: getattr(voltmeter, name) for name in {PUBLIC}}}
import_all()
print(*[name for name, value in before.items() if getattr(voltmeter, name) is not value])
print(*[name for name in ("check", "discover", "load", "record", "run", "wire") if not callable(before[name])])
"""


@pytest.mark.parametrize("order", ["rooms first", "names first"])
def test_a_room_does_not_hide_the_function_of_the_same_name(tmp_path: Path, order: str) -> None:
    """Importing the room ``voltmeter.run`` sets the attribute ``voltmeter.run``: the function must outlive that."""
    assert python(HIDDEN, tmp_path, order).split() == []


def test_importing_voltmeter_is_light(tmp_path: Path) -> None:
    code = f"import sys, voltmeter; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert python(code, tmp_path).split() == []


# --- the README -----------------------------------------------------------------------------------


def readme_block(pattern: str, what: str) -> str:
    """The first fenced block of the README that ``pattern`` introduces."""
    found = re.search(pattern + r"(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no {what}"
    return found[1]


def test_the_map_of_rooms_is_the_tree() -> None:
    block = readme_block(r"^## Rooms$(?:(?!^#+ ).)*?^```\w*\n", "fenced block under '## Rooms'")
    shown = [line.split()[0] for line in block.splitlines() if line.strip()]
    rooms = [room for room in ROOMS if any((PACKAGE / room).glob("*.py"))]
    assert [entry.rstrip("/") for entry in shown if entry.rstrip("/") in ROOMS] == rooms, "the rooms, in their order"
    assert [entry for entry in shown if not (PACKAGE / entry).exists()] == [], "these are not in the tree"


def printed_comments(code: str) -> list[str]:
    """What the README says each print prints, up to the dots: ``print(x)  # 9 edges: input -> ...``."""
    comments = re.findall(r"^print\(.*?\)\s+# (.*)$", code, flags=re.MULTILINE)
    return [comment.split("...")[0].strip() for comment in comments]


def test_the_ten_lines_run_and_print_their_answer(tmp_path: Path) -> None:
    code = readme_block(r"^```python\n", "python block")
    statements = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(statements) <= 10
    printed = python(code, tmp_path)
    assert printed.strip()
    assert [comment for comment in printed_comments(code) if comment not in printed] == [], printed
