"""A heat map: a shade of blue for values above zero, of orange for those below, and the number where there is room."""

from __future__ import annotations

import math

from voltmeter.check.finding import Picture
from voltmeter.report.axes import told
from voltmeter.report.canvas import CHARACTER, LONGEST, TOP, WIDTH, Canvas, Drawn, numbers, short
from voltmeter.report.html import number

MOST_CELLS = 64
_CROWDED = 100  # cells: in a larger map zeros are left blank, so that what stands out does
_LINE = 12.6  # from one line of a label to the next


def heat(picture: Picture) -> Drawn | None:
    """The map laid out; None where it holds no number."""
    data = picture.data
    columns = [str(x) for x in data.get("x", [])][:MOST_CELLS]
    names = [str(y) for y in data.get("y", [])][:MOST_CELLS]
    cells = [numbers(row or [])[: len(columns)] for row in data.get("values", [])][: len(names)]
    values = [value for row in cells for value in row if value is not None]
    if not values:
        return None
    canvas, most = Canvas(), max(abs(value) for value in values) or 1.0
    left = 40 + CHARACTER * min(LONGEST, max(map(len, names)))
    size = min(46.0, max(9.0, (WIDTH - left - 90) / len(columns)))
    height = min(size, 30.0) if len(columns) < 12 else size
    for i, (name, row) in enumerate(zip(names, cells, strict=False)):
        y = TOP + i * height
        if i % _every(len(names), height) == 0:
            canvas.label(left - 6, y + height / 2 + 3.5, short(name), "name end")
        for j, (column, value) in enumerate(zip(columns, row, strict=False)):
            numbered = value != 0 or len(names) * len(columns) <= _CROWDED
            _cell(canvas, value, most, f"{name}, {column}", left + j * size, y, size, height, numbered)
    bottom = TOP + len(cells) * height
    upright = max(map(len, columns)) * CHARACTER > size - 2
    for j in range(0, len(columns), _every(len(columns), size)):
        x = left + (j + 0.5) * size
        canvas.label(x + 4 if upright else x, bottom + (6 if upright else 15), short(columns[j]),
                     "name end" if upright else "name mid", upright)  # fmt: skip
    under = CHARACTER * min(LONGEST, max(map(len, columns))) + 8 if upright else 18
    canvas.label(left + len(columns) * size / 2, bottom + under + 16, picture.x, "label mid")
    canvas.label(13.0, (TOP + bottom) / 2, picture.y, "label mid", upright=True)
    _key(canvas, min(values), max(values), most, left + len(columns) * size + 26, bottom)
    whole = len(data.get("x", [])) == len(columns) and len(data.get("y", [])) == len(names)
    note = "" if whole else f"Only the first {MOST_CELLS} rows and columns are drawn."
    return canvas.done(picture, max(WIDTH, left + len(columns) * size + 100), max(bottom + under + 28, 150.0), note)


def _cell(
    canvas: Canvas,
    value: float | None,
    most: float,
    where: str,
    x: float,
    y: float,
    width: float,
    height: float,
    numbered: bool,
) -> None:
    if value is None:
        canvas.add("rect", "void", f"{where}: none", x=x, y=y, width=width - 1, height=height - 1)
        return
    share = abs(value) / most
    look, shade = _shade(value, most)
    says = f"{where}: {number(value)}"
    canvas.add("rect", look, says, x=x, y=y, width=width - 1, height=height - 1, fill_opacity=shade)
    text = told(float(f"{value:.3g}"))
    if numbered and len(text) * 5.6 < width and height >= 15:
        canvas.label(x + width / 2 - 0.5, y + height / 2 + 3.5, text, f"cell mid{' on' if share > 0.7 else ''}")


def _shade(value: float, most: float) -> tuple[str, str]:
    """A cell's class, and how much of its colour it has."""
    return "minus-cell" if value < 0 else "plus-cell", f"{0.05 + 0.95 * abs(value) / most:.3f}"


def _key(canvas: Canvas, low: float, high: float, most: float, x: float, bottom: float) -> None:
    """What a shade stands for, beside the map."""
    shades, height = 12, max(min(bottom - TOP, 150.0), 90.0)
    start, end = min(low, 0.0), max(high, 0.0)
    for n in range(shades):
        value = start + (end - start) * (n + 0.5) / shades
        y = TOP + height * (1 - (n + 1) / shades)
        look, shade = _shade(value, most)
        canvas.add("rect", look, x=x, y=y, width=12.0, height=height / shades + 0.3, fill_opacity=shade)
    for share, value in ((0.0, start), (1.0, end)):
        canvas.label(x + 17, TOP + height * (1 - share) + (0 if share == 0 else 8), told(float(f"{value:.3g}")),
                     "tick")  # fmt: skip


def _every(count: int, room: float) -> int:
    """Every which name has room."""
    return 1 if count == 1 else max(1, math.ceil(_LINE / room))
