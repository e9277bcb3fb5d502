"""What a person sees: labelled lines, tables, and bars with the time left.

    wiring    LlamaForCausalLM · 46 writers · 86 readers · 1,701 edges · sums to 2e-7, laws hold
    edge-sp   ━━━━━━━━━━━━━━━━━━━━━━━━ 400/400 0:00:37

Lines go to stdout, or to stderr where stdout carries a document. Bars go to stderr. Into a terminal, lines are wrapped
under their text; into a file or pipe they are not, and a bar becomes a line twice a minute.
"""

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from voltmeter.circuit.names import parse_name
from voltmeter.circuit.scores import Row
from voltmeter.files import json_bytes
from voltmeter.report.page import number

INDENT = 10
_WIDE = 400  # of tables that go to files: nothing is cut off
_NEWS_SECONDS = 30.0

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Screen:
    """Where lines and bars go."""

    out: Console
    err: Console

    @classmethod
    def open(cls, stdout_is_a_document: bool = False) -> Screen:
        """A screen on this process's stdout and stderr."""
        err = _console(stderr=True)
        return cls(err if stdout_is_a_document else _console(stderr=False), err)

    def line(self, label: str, text: str, style: str = "", width: int = INDENT) -> None:
        """``label``, then ``text``; its lines stand under each other, ``width`` from the edge."""
        for i, part in enumerate(self.folded(text, width)):
            head = f"{label if i == 0 else '':<{width}}"
            self.out.print(Text.assemble((head, style or "dim"), (part, style)), soft_wrap=True, highlight=False)

    def warn(self, text: str) -> None:
        """A line that should not be overlooked."""
        self.line("warning", text, "yellow")

    def gap(self) -> None:
        """An empty line."""
        self.out.print()

    def folded(self, text: str, width: int = INDENT) -> list[str]:
        """``text`` in lines that fit beside a label; as it is where it does not go to a terminal."""
        if not self.out.is_terminal:
            return [text]
        room = max(self.out.width - width, 24)
        return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]

    @property
    def room(self) -> int:
        """Characters beside a label, at most what is pleasant to read."""
        return min(max(self.out.width - INDENT, 24), 110)

    def document(self, content: Mapping[str, Any]) -> None:
        """The one document of ``--json``, on stdout."""
        typer.echo(json_bytes(content).decode(), nl=False)

    def edges(self, rows: Sequence[Row], n_more: int = 0, in_words: bool = False, figure: str = "score") -> None:
        """A table of edges with a ``figure`` each, indented; ``in_words`` says what each reader is."""
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
        for name in ("writer", "", "reader"):
            table.add_column(name, no_wrap=True)
        table.add_column(figure, justify="right", no_wrap=True)
        if in_words:
            table.add_column("which is", no_wrap=True)
        for writer, reader, score in rows:
            cells = [writer, "→", reader, "" if score is None else number(score), words_for(reader)]
            table.add_row(*(Text(cell) for cell in cells[: len(table.columns)]))
        for line in self._lines_of(table):
            self.out.print(Text(" " * INDENT) + line, soft_wrap=True, highlight=False)
        if n_more:
            self.line("", f"… {n_more:,} more")

    def _lines_of(self, table: Table) -> Iterator[Text]:
        with self.out.capture() as captured:
            self.out.print(table, highlight=False)
        return (Text.from_ansi(line.rstrip()) for line in captured.get().splitlines())

    @contextlib.contextmanager
    def bar(self, label: str, total: int | None, done: int = 0, stays: bool = False) -> Iterator[Advance]:
        """A bar on stderr while the body runs; call what it gives with the number done so far.

        Args:
            label: what goes on.
            total: steps in all, None where nobody can know.
            done: steps that were done before.
            stays: whether the finished bar is left on the screen.
        """
        if not self.err.is_terminal:
            with _news(self.err, label, total, stays) as tell:
                yield tell
            return
        counting: tuple[ProgressColumn, ...] = (
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        if total is None:
            counting = (TextColumn("{task.completed} tried"),)
        start = (TextColumn(f"{{task.description:<{INDENT - 1}}}"), BarColumn(bar_width=24))
        with Progress(*start, *counting, console=self.err, transient=not stays) as progress:
            task = progress.add_task(label, total=total, completed=done)
            yield lambda count: progress.update(task, completed=count)


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _WIDE)


@contextlib.contextmanager
def _news(console: Console, label: str, total: int | None, stays: bool) -> Iterator[Advance]:
    """What a log file gets in place of a bar."""
    start = last = time.monotonic()
    newest = 0

    def tell(text: str) -> None:
        console.print(Text(f"{label:<{INDENT}}{text}"), soft_wrap=True, highlight=False)

    def advance(done: int) -> None:
        nonlocal last, newest
        newest = done
        if time.monotonic() - last >= _NEWS_SECONDS:
            last = time.monotonic()
            tell(f"{done:,}{f' of {total:,}' if total else ''} after {duration(last - start)}")

    yield advance
    if stays:
        tell(f"{newest:,}{f' of {total:,}' if total else ''} in {duration(time.monotonic() - start)}")


_SLOTS = {"q": "the queries", "k": "the keys", "v": "the values"}


def words_for(reader: str) -> str:
    """ "the keys of head 3 in layer 1", where a name tells."""
    name = parse_name(reader)
    if name.slot is None or name.head is None:
        return "the output" if name.kind == "logits" else ""
    head = "key/value head" if name.kind == "key-value" else "head"
    return f"{_SLOTS[name.slot]} of {head} {name.head} in layer {name.layer}"


def count(n: int, one: str, more: str) -> str:
    """ "1 row is" or "1,200 rows are"."""
    return f"{n:,} {one if n == 1 else more}"


def duration(seconds: float) -> str:
    """As people say it: "40 s", "3 min", "2 h 5 min"."""
    if seconds < 99.5:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def tiny(error: float) -> str:
    """The size of an error: "2e-7", or "0"."""
    digits, _, exponent = f"{error:.0e}".partition("e")
    return f"{digits}e{int(exponent)}" if error else "0"


def memory(mib: float) -> str:
    """ "310 MiB" or "2.4 GiB"."""
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"
