"""Where things stand in the picture of a finding: bars, points, lines or a heat map, as shapes of an SVG.

Nothing is told by colour alone: bars and points are labelled, lines are dashed each in its own way and named at their
ends, cells of a heat map hold their number where there is room, and every shape says its values when pointed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voltmeter.check.finding import Picture
from voltmeter.report.axes import Axis, axis, logarithmic_or_not
from voltmeter.report.canvas import BOTTOM, CHARACTER, HEIGHT, LONGEST, RIGHT, TOP, WIDTH, Canvas, Drawn, numbers, short
from voltmeter.report.heat import heat
from voltmeter.report.html import number

MOST_BARS, MOST_POINTS, MOST_LINES = 40, 2000, 6
_BAR = 19.0  # from one bar to the next


def drawn(picture: Picture) -> Drawn | None:
    """The picture laid out; None where its data holds nothing to show."""
    return _KINDS[picture.kind](picture)


# Bars: one under the other, with their names before them


def _bars(picture: Picture) -> Drawn | None:
    data = picture.data
    rows = [row for row in _rows(data, "names", "values", "low", "high") if row[1] is not None]
    shown = rows[:MOST_BARS]
    if not shown:
        return None
    canvas = Canvas()
    left = 36 + CHARACTER * min(LONGEST, max(len(str(row[0])) for row in shown))
    bottom = TOP + _BAR * len(shown) + 4
    ends = [end for row in shown for end in row[1:] if end is not None]
    line = [] if picture.line is None else [picture.line]
    along = axis([*ends, *line], left, WIDTH - 64, whole=[0.0])
    canvas.level_axis(along, TOP, bottom, picture.x)
    canvas.label(13.0, (TOP + bottom) / 2, picture.y, "label mid", upright=True)
    for at, (name, value, low, high) in enumerate(shown):
        y = TOP + _BAR * at + 3
        span = "" if low is None or high is None else f" ({number(low)} to {number(high)})"
        ends_at = sorted((along(0.0), along(value)))
        canvas.add("rect", "bar-of", f"{name}: {number(value)}{span}",
                   x=ends_at[0], y=y, width=max(ends_at[1] - ends_at[0], 0.8), height=_BAR - 6)  # fmt: skip
        canvas.label(left - 6, y + 10.5, short(str(name)), "name end")
        furthest = max(along(0.0), along(value), *([] if high is None else [along(high)]))
        canvas.label(furthest + 5, y + 10.5, number(value), "tick")
        if low is not None and high is not None:
            canvas.line("whisker", along(low), y + 6.5, along(high), y + 6.5)
    canvas.line("axis", along(0.0), TOP, along(0.0), bottom)
    if picture.line is not None:
        canvas.line("bound", along(picture.line), TOP - 4, along(picture.line), bottom, number(picture.line))
        canvas.label(along(picture.line) + 4, TOP + 4, number(picture.line), "tick")
    more = f"{len(rows) - len(shown):,} more bars are not drawn." if len(rows) > len(shown) else ""
    return canvas.done(picture, WIDTH, bottom + BOTTOM, more)


# Points and lines: two axes


def _points(picture: Picture) -> Drawn | None:
    rows = [row for row in _rows(picture.data, "x", "y", "names") if row[0] is not None and row[1] is not None]
    shown = rows[:MOST_POINTS]
    if not shown:
        return None
    canvas, (left, right, top, bottom) = Canvas(), _frame()
    xs, ys = [row[0] for row in shown], [row[1] for row in shown]
    line = [] if picture.line is None else [picture.line]
    level, upright = axis(xs, left, right), axis([*ys, *line], bottom, top)
    canvas.upright_axis(upright, left, right, picture.y)
    canvas.level_axis(level, top, bottom, picture.x)
    if picture.diagonal:
        low, high = max(level.low, upright.low), min(level.high, upright.high)
        if low < high:
            canvas.line("equal", level(low), upright(low), level(high), upright(high), "where both are the same")
            canvas.label(level(high) - 34, upright(high) + 3, "the same", "tick end")
    for x, y, name in shown:
        called = "" if name is None else f"{name}: "
        canvas.add("circle", "point", f"{called}{number(x)}, {number(y)}", cx=level(x), cy=upright(y), r=3.2)
    _bound(canvas, picture, upright, left, right)
    more = f"{len(rows) - len(shown):,} more points are not drawn." if len(rows) > len(shown) else ""
    return canvas.done(picture, WIDTH, HEIGHT, more)


def _lines(picture: Picture) -> Drawn | None:
    data = picture.data
    every = {name: numbers(values) for name, values in data.get("lines", {}).items()}
    shown = dict(list(every.items())[:MOST_LINES])
    xs, names = _level_values(data.get("x", []))
    low, high = ({k: numbers(v) for k, v in (data.get(end) or {}).items()} for end in ("low", "high"))
    values = [v for part in (shown, low, high) for name in shown for v in part.get(name, ()) if v is not None]
    if not values or not xs:
        return None
    canvas, (left, right, top, bottom) = Canvas(), _frame()
    right -= CHARACTER * min(LONGEST, max(len(name) for name in shown))
    line = [] if picture.line is None else [picture.line]
    level = logarithmic_or_not(xs, left, right) if names is None else axis(xs, left, right)
    upright = axis([*values, *line], bottom, top)
    canvas.upright_axis(upright, left, right, picture.y)
    if names is None:
        canvas.level_axis(level, top, bottom, picture.x)
    else:
        _named_level(canvas, level, names, bottom, picture.x)
    _bound(canvas, picture, upright, left, right)
    ends: list[tuple[float, str, int]] = []
    for n, (name, line_values) in enumerate(shown.items()):
        _band(canvas, f"band-{n}", xs, low.get(name, ()), high.get(name, ()), level, upright)
        there = [(x, y) for x, y in zip(xs, line_values, strict=False) if y is not None]
        if not there:
            continue
        canvas.add("path", f"line-{n}", name, d=_path([(level(x), upright(y)) for x, y in there]))
        for x, y in there:
            canvas.add("circle", f"dot-{n}", f"{name} at {_at(x, names)}: {number(y)}",
                       cx=level(x), cy=upright(y), r=2.8)  # fmt: skip
        ends.append((upright(there[-1][1]), name, n))
    for y, name, n in _apart(ends, top, bottom):
        canvas.label(right + 7, y + 4, short(name), f"name name-{n}")
    more = f"{len(every) - len(shown)} more lines are not drawn." if len(every) > len(shown) else ""
    return canvas.done(picture, WIDTH, HEIGHT, more)


def _band(
    canvas: Canvas, look: str, xs: Sequence[float], low: Sequence[Any], high: Sequence[Any], level: Axis, upright: Axis
) -> None:
    there = [(x, a, b) for x, a, b in zip(xs, low, high, strict=False) if a is not None and b is not None]
    if len(there) > 1:
        around = [(level(x), upright(b)) for x, _, b in there] + [(level(x), upright(a)) for x, a, _ in there[::-1]]
        canvas.add("path", f"band-of {look}", d=_path(around) + "Z")


def _apart(ends: list[tuple[float, str, int]], top: float, bottom: float) -> list[tuple[float, str, int]]:
    """Names of lines, moved so that none stands on another."""
    placed: list[tuple[float, str, int]] = []
    for y, name, n in sorted(ends):
        at = max(y, placed[-1][0] + 13) if placed else max(y, top)
        placed.append((at, name, n))
    over = max(0.0, placed[-1][0] - bottom) if placed else 0.0
    return [(y - over, name, n) for y, name, n in placed]


# What they share


def _frame() -> tuple[float, float, float, float]:
    return 66.0, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


def _bound(canvas: Canvas, picture: Picture, upright: Axis, left: float, right: float) -> None:
    if picture.line is not None:
        y = upright(picture.line)
        canvas.line("bound", left, y, right, y, number(picture.line))
        canvas.label(left + 5, y - 4, number(picture.line), "tick")


def _named_level(canvas: Canvas, level: Axis, names: Sequence[str], bottom: float, title: str) -> None:
    step = max(1, -(-len(names) * 60 // int(level.end - level.start)))
    for at in range(0, len(names), step):
        canvas.label(level(float(at)), bottom + 16, names[at][:10], "tick mid")
    canvas.label((level.start + level.end) / 2, bottom + 36, title, "label mid")


def _level_values(given: Sequence[Any]) -> tuple[list[float], list[str] | None]:
    """Numbers as they are; anything else in its order, under its names."""
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in given):
        return [float(x) for x in given], None
    return [float(at) for at in range(len(given))], [str(x) for x in given]


def _at(x: float, names: Sequence[str] | None) -> str:
    return number(x) if names is None else names[int(x)]


def _rows(data: Mapping[str, Any], *keys: str) -> list[tuple[Any, ...]]:
    """The columns called ``keys`` as rows; None where one is missing or shorter than the first."""
    columns = [list(data.get(key) or []) if key == "names" else numbers(data.get(key) or []) for key in keys]
    length = len(columns[0])
    return list(zip(*([*column, *[None] * length][:length] for column in columns), strict=True))


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


_KINDS = {"bars": _bars, "points": _points, "lines": _lines, "heat": heat}
