"""Findings on the screen: a line for each as it comes, and a bar meanwhile; then how many of each, and what to do next.

✓ holds        faithful: the circuit keeps 93% of the logit difference (90% to 96%), ...
✗ fails        redundant: a1.h2 does the same: ...
? cannot tell  stable: not looked at: the budget of 60 s was used up
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from voltmeter.check.files import FINDINGS, FINDINGS_PAGE
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, VERDICTS, Finding, Findings
from voltmeter.cli.screen import INDENT, Screen, duration

_MARKS = {HOLDS: "✓", FAILS: "✗", CANNOT_TELL: "?"}
_PLAIN = {HOLDS: "+", FAILS: "x", CANNOT_TELL: "?"}  # where the locale has no others
_STYLES = {HOLDS: "green", FAILS: "bold red", CANNOT_TELL: "yellow"}  # beside the words, never in their place
_WIDTH = 4 + max(len(verdict) for verdict in VERDICTS)


@contextlib.contextmanager
def shown_as_made(screen: Screen, names: Sequence[str], budget: float | None) -> Iterator[Callable[[Finding], None]]:
    """Call what it gives with each finding; in between, a terminal says which of ``names`` is being looked at."""
    if not screen.err.is_terminal:
        yield lambda finding: show_finding(screen, finding)
        return
    columns = (TextColumn(f"{{task.description:<{INDENT - 1}}}"), BarColumn(bar_width=24), MofNCompleteColumn())
    waiting = Progress(
        *columns, _Left(budget), console=screen.err, transient=True, redirect_stdout=False, redirect_stderr=False
    )
    task = waiting.add_task(names[0], total=len(names))
    done = 0

    def told(finding: Finding) -> None:
        nonlocal done
        done += 1
        waiting.stop()  # the line is taken away before another is printed
        show_finding(screen, finding)
        waiting.update(task, completed=done, description=names[min(done, len(names) - 1)])
        if done < len(names):
            waiting.start()

    with waiting:
        yield told


class _Left(ProgressColumn):
    """How much of the budget is left, or without one how long it has taken."""

    max_refresh = 0.5

    def __init__(self, budget: float | None) -> None:
        super().__init__()
        self._budget, self._start = budget, time.monotonic()

    def render(self, task: Task) -> Text:
        taken = time.monotonic() - self._start
        if self._budget is None:
            return Text(f"{duration(taken)} so far")
        left = self._budget - taken
        return Text(f"at most {duration(left)} left" if left > 0 else "finishing this one")


def show_finding(screen: Screen, finding: Finding) -> None:
    """Its verdict, its name, and what it says."""
    marks = _MARKS if _can_be_printed("".join(_MARKS.values())) else _PLAIN
    head = f"{marks[finding.verdict]} {finding.verdict}"
    name = f"{finding.check}: "
    for i, part in enumerate(screen.folded(name + finding.says, _WIDTH)):
        line = Text(f"{head if i == 0 else '':<{_WIDTH}}", style=_STYLES[finding.verdict])
        line.append(part, style="not bold default")
        if i == 0:
            line.stylize("bold", _WIDTH, _WIDTH + len(name) - 2)
        screen.out.print(line, soft_wrap=True, highlight=False)


def _can_be_printed(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def show_end(screen: Screen, findings: Findings, out: Path | None) -> None:
    """How many of each, what the budget left out, and where to read on."""
    screen.gap()
    screen.line("", findings.counts)
    left = [finding.check for finding in findings if finding.counted.get("left_out")]
    if left:
        screen.line("left out", f"some or all of {', '.join(left)}; {_why_left(findings.conditions.get('budget'))}")
    if out is None:
        screen.line("next", "add --out DIR for a page with the edges and pairs behind each finding")
        return
    screen.line("written", f"{out}/  {FINDINGS_PAGE} {FINDINGS}")
    screen.line("next", f"open {shlex.quote(str(out / FINDINGS_PAGE))}, with the edges and pairs behind each finding")


def _why_left(budget: float | None) -> str:
    return "see what they say" if budget is None else f"{budget:g} s were given, --budget 0 is no limit"
