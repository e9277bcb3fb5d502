"""How a command ends: its exit code, and the one message it ends with.

    0    all is well
    1    something that should not happen did: a short message, and how to see where; of ``check``, without a message:
         the checks were made, and some fail
    2    what was asked for cannot be done: the error says what was given, what was expected, and the mend
    130  Ctrl-C;  143  SIGTERM

A reader that closes the pipe (``| head``) ends a command too, and nothing is said about it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import typer

from voltmeter.errors import VoltmeterError

# torch says it in words of each device's own; other errors speak of memory too ("a single memory location")
_NO_MEMORY = re.compile(r"out ?of ?memory|not enough memory|(can't|cannot) allocate memory", re.IGNORECASE)

ERROR, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
SOME_FAIL = 1


class Stopped(Exception):
    """A person stopped the work, and this is what to tell them."""

    def __init__(self, message: str, code: int = INTERRUPTED) -> None:
        self.message, self.code = message, code
        super().__init__(message)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is answered as Ctrl-C is."""


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within it SIGTERM raises ``Terminated``, so that what was done can be saved."""
    if threading.current_thread() is not threading.main_thread():  # to which signals come
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command that ends as this module says. Its argument ``debug``, if it has one, asks for tracebacks."""

    @functools.wraps(function)
    def ended(*args: Any, **kwargs: Any) -> None:
        code = _code_of(lambda: function(*args, **kwargs), bool(kwargs.get("debug")))
        if code:
            raise typer.Exit(code)

    return ended


def _code_of(work: Callable[[], None], debug: bool) -> int:
    try:
        work()
    except BrokenPipeError:
        _close_stdout()
        return ERROR
    except Stopped as stop:
        return _told(stop.message, stop.code, debug)
    except Terminated:
        return _told("stopped", TERMINATED, debug)
    except KeyboardInterrupt:
        return _told("stopped; nothing was written", INTERRUPTED, debug)
    except VoltmeterError as error:
        return _told(str(error), BAD_INPUT, debug)
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, a person reads of it
        return _told(_unexpected(error), ERROR, debug)
    return 0


def _told(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    typer.echo(f"voltmeter: {message}", err=True)
    return code


def _unexpected(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, MemoryError) or _NO_MEMORY.search(what):
        return f"the machine's memory is not enough\n  {what}\n  give a smaller --batch-size"
    return f"something went wrong that should not\n  {what}\n  say --debug to see where; please report it"


def _close_stdout() -> None:
    """Nobody reads what is left: Python, too, shall not try to write it as it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
