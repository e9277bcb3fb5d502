"""What pictures are drawn on: shapes and texts of an SVG, in units of about a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from voltmeter.check.finding import Picture
from voltmeter.report.axes import Axis

WIDTH, HEIGHT = 620.0, 320.0
TOP, RIGHT, BOTTOM = 14.0, 24.0, 46.0
CHARACTER, LONGEST = 6.7, 34  # of a label: the width of a character, and how many are shown


@dataclass(frozen=True)
class Shape:
    """An SVG element without its style: ``look`` is its class, ``says`` what it tells when pointed at."""

    tag: str
    look: str
    places: dict[str, str]
    says: str = ""


@dataclass(frozen=True)
class Label:
    """A text. ``look``: mid or end for where it is anchored, and its class."""

    x: float
    y: float
    text: str
    look: str = ""
    upright: bool = False
    """Whether it runs upward."""


@dataclass(frozen=True)
class Drawn:
    """A picture laid out, in units of about a pixel. ``note`` says what was left out of it."""

    title: str
    width: float
    height: float
    shapes: tuple[Shape, ...]
    labels: tuple[Label, ...]
    note: str = ""


@dataclass
class Canvas:
    """Takes shapes and texts, and gives them out as a ``Drawn``."""

    shapes: list[Shape] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    def add(self, tag: str, look: str, says: str = "", **places: float | str) -> None:
        made = {key.replace("_", "-"): p if isinstance(p, str) else f"{p:.1f}" for key, p in places.items()}
        self.shapes.append(Shape(tag, look, made, says))

    def line(self, look: str, x1: float, y1: float, x2: float, y2: float, says: str = "") -> None:
        self.add("line", look, says, x1=x1, y1=y1, x2=x2, y2=y2)

    def label(self, x: float, y: float, text: str, look: str = "", upright: bool = False) -> None:
        self.labels.append(Label(x, y, text, look, upright))

    def level_axis(self, axis: Axis, top: float, bottom: float, title: str) -> None:
        for place, text in axis.ticks():
            self.line("grid", place, top, place, bottom)
            self.label(place, bottom + 16, text, "tick mid")
        self.label((axis.start + axis.end) / 2, bottom + 36, title + (" (logarithmic)" * axis.logarithmic), "label mid")

    def upright_axis(self, axis: Axis, left: float, right: float, title: str) -> None:
        for place, text in axis.ticks():
            self.line("grid", left, place, right, place)
            self.label(left - 7, place + 4, text, "tick end")
        self.label(13.0, (axis.start + axis.end) / 2, title, "label mid", upright=True)

    def done(self, picture: Picture, width: float, height: float, note: str = "") -> Drawn:
        return Drawn(picture.title, width, height, tuple(self.shapes), tuple(self.labels), note)


def short(text: str) -> str:
    """As much of a label as is shown."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def numbers(values: Sequence[Any]) -> list[float | None]:
    """Values of a picture; None where there is none."""
    return [None if value is None else float(value) for value in values]
