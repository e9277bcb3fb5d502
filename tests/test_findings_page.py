"""The page of findings: whole in one file, escaped, and with pictures that stand where their figures are."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from voltmeter.check.finding import Finding, Findings, Picture
from voltmeter.report.axes import Axis, axis, logarithmic_or_not, told
from voltmeter.report.canvas import Drawn
from voltmeter.report.findings import MOST_ROWS, figure, findings_page
from voltmeter.report.heat import MOST_CELLS
from voltmeter.report.pictures import MOST_BARS, MOST_LINES, MOST_POINTS, drawn


class Reader(HTMLParser):
    """Collects what is on a page, and fails on a tag that closes nothing or is never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.tags if each == tag]


EVIL = "<script>alert('&\"')</script>"
CONDITIONS: dict[str, Any] = {
    "model": "HookedModel",
    "task": "letters",
    "fill": "resample",
    "metric": "logit-difference",
    "n_edges": 60,
    "n_edges_total": 1257,
    "circuit": {"rule": "top", "n": 60},
    "method": "eap",
    "threshold": 0.9,
    "seed": 0,
    "budget": 60.0,
    "n_train": 240,
    "n_held_out": 220,
    "digests": {"model": "abc", "circuit": "def"},
    "source": {"run": "runs/it", "model": "demo", "task": "letters"},
}
BARS = Picture("bars", "How often", "share", "letter", {"names": ["a", "b"], "values": [0.75, 0.25]}, line=0.5)
POINTS = Picture("points", "Pairs", "full", "circuit", {"x": [0, 1], "y": [1, 3], "names": ["r1", "r2"]}, 2.0, True)
LINES = Picture(
    "lines",
    "Best of n",
    "n",
    "f",
    {
        "x": [1, 2, 4, 64],
        "lines": {"train": [0.1, 0.2, 0.3, 0.4], "held out": [0.1, 0.1, None, 0.2]},
        "low": {"train": [0.0, 0.1, 0.2, 0.3]},
        "high": {"train": [0.2, 0.3, 0.4, 0.5]},
    },
)
HEAT = Picture("heat", "Moves", "column", "row", {"x": ["A", "B"], "y": [1, 2], "values": [[1, -0.5], [0, None]]})
PICTURES = (BARS, POINTS, LINES, HEAT)


def finding(check: str, verdict: Any, picture: Picture | None = None, **more: Any) -> Finding:
    says = f"{check} was looked into"
    return Finding(check, verdict, **{"figure": 0.93, "low": 0.9, "high": 0.96, "against": "x", "says": says, **more},
                   picture=picture)  # fmt: skip


FINDINGS = Findings(
    (
        finding("faithful", "holds", POINTS, details=({"row": 3, "f": 0.5, "clean": "a girl"},)),
        finding("minimal", "fails", BARS, counted={"circuits": 60, "left_out": "12 edges"}),
        finding("stable", "cannot tell", LINES, figure=None, low=None, high=None),
        finding("not-trivial", "holds", HEAT, low=None, high=None),
    ),
    CONDITIONS,
)


def test_a_page_says_what_was_found_and_under_what_conditions() -> None:
    words = " ".join(" ".join(Reader(findings_page(FINDINGS, {"minimal": "can edges go?"})).words).split())
    for shown in (
        "letters in demo: is the circuit what it is taken for?",
        "4 findings: 2 hold, 1 fails (minimal), 1 cannot tell (stable).",
        "Of minimal some or all was left out: it did not fit into the 60 s that were given.",
        "demo (HookedModel)",
        "60 of 1,257",
        "240 train, 220 held out",
        "at most 60 s",
        "runs/it",
        "✗ fails",
        "✓ holds",
        "? cannot tell",
        "can edges go?",
        "0.930 (0.900 to 0.960), against x",
        "circuits 60 · left out 12 edges",
        "1 row behind it",
        "a girl",
        "How often",
    ):
        assert shown in words, shown
    assert figure(FINDINGS["stable"]) == ""
    assert figure(FINDINGS["not-trivial"]) == "0.930"


def test_a_page_needs_nothing_from_outside_and_runs_nothing() -> None:
    text = findings_page(FINDINGS)
    page = Reader(text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object")]
    assert not [a for _, a in page.tags if any(key.startswith("on") or key == "style" for key in a)]
    [policy] = [a["content"] for a in page.having("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    style = text[text.index("<style>") + 7 : text.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'"
    assert "prefers-color-scheme: dark" in style
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {str(a["href"]) for a in page.having("a")}
    assert targets == {f"#check-{n}" for n in (1, 2, 3, 4)}


def test_everything_is_escaped() -> None:
    evil = Picture("bars", EVIL, EVIL, EVIL, {"names": [EVIL], "values": [1.0]})
    lines = Picture("lines", EVIL, EVIL, EVIL, {"x": [EVIL, "b"], "lines": {EVIL: [1.0, 2.0]}})
    given = {"says": EVIL, "against": EVIL, "details": ({EVIL: EVIL},), "counted": {EVIL: EVIL}}
    conditions = {**CONDITIONS, "task": EVIL, "circuit": {EVIL: EVIL}, "source": {"run": EVIL, "model": EVIL}}
    found = Findings((finding(EVIL, "fails", evil, **given), finding("b", "fails", lines)), conditions)
    text = findings_page(found, {EVIL: EVIL})
    assert "<script" not in text
    assert not Reader(text).having("script")
    assert text.count("&lt;script&gt;") > 15


def test_long_tables_are_cut_and_say_so() -> None:
    rows = tuple({"row": n, "f": -n / 7, "kept": n % 2 == 0, "ends": ["a", "b"]} for n in range(MOST_ROWS + 5))
    text = findings_page(Findings((finding("a", "holds", details=rows),), CONDITIONS))
    body = text[text.index('<table class="rows">') :]
    assert body[: body.index("</table>")].count("<tr>") == MOST_ROWS + 1
    assert f"The first {MOST_ROWS}; findings.json has them all." in text
    assert '<td class="num">1</td><td class="num">−0.143</td><td class="num">no</td><td>a, b</td>' in text


def test_findings_without_anything_to_tell_of_are_a_page() -> None:
    bare = Finding("a", "cannot tell", None, None, None, "", "there was nothing to look at")
    assert "there was nothing to look at" in findings_page(Findings((bare,)))
    assert "0 findings: 0 hold." in findings_page(Findings(()))


# pictures --------------------------------------------------------------------------------------------------------


def shapes(picture: Drawn, look: str) -> list[dict[str, float]]:
    return [
        {key: float(place) for key, place in shape.places.items() if key != "d"}
        for shape in picture.shapes
        if shape.look == look
    ]


def laid_out(picture: Picture) -> Drawn:
    made = drawn(picture)
    assert made is not None
    return made


@pytest.mark.parametrize("picture", PICTURES, ids=[picture.kind for picture in PICTURES])
def test_pictures_have_axes_with_names_and_stay_within_their_frame(picture: Picture) -> None:
    made = laid_out(picture)
    texts = [label.text for label in made.labels]
    assert made.title == picture.title
    assert picture.y in texts
    assert any(text.startswith(picture.x) for text in texts)
    for shape in made.shapes:
        level = [float(shape.places[key]) for key in ("x", "x1", "x2", "cx") if key in shape.places]
        upright = [float(shape.places[key]) for key in ("y", "y1", "y2", "cy") if key in shape.places]
        assert all(0 <= place <= made.width for place in level), shape
        assert all(0 <= place <= made.height for place in upright), shape
    for label in made.labels:
        assert 0 <= label.x <= made.width
        assert 0 <= label.y <= made.height


def test_bars_are_as_long_as_their_values() -> None:
    made = laid_out(BARS)
    first, second = shapes(made, "bar-of")
    assert first["width"] == pytest.approx(3 * second["width"], rel=0.01)  # places are written to a tenth
    [bound] = shapes(made, "bound")
    assert bound["x1"] == pytest.approx(first["x"] + first["width"] * 0.5 / 0.75, abs=0.2)
    assert [shape.says for shape in made.shapes if shape.look == "bar-of"] == ["a: 0.750", "b: 0.250"]
    data = {"names": ["up", "down"], "values": [1.0, -1.0], "low": [0.5, -1.5], "high": [1.5, -0.5]}
    both = laid_out(Picture("bars", "t", "x", "y", data))
    up, down = shapes(both, "bar-of")
    assert down["x"] + down["width"] == pytest.approx(up["x"], abs=0.2)
    [whisker, _] = shapes(both, "whisker")
    assert whisker["x2"] - whisker["x1"] == pytest.approx(up["width"], abs=0.2)


def test_points_stand_where_they_are() -> None:
    made = laid_out(POINTS)
    first, second = shapes(made, "point")
    assert second["cx"] > first["cx"]
    assert second["cy"] < first["cy"], "upwards is more"
    [bound], [equal] = shapes(made, "bound"), shapes(made, "equal")
    assert bound["y1"] == pytest.approx((first["cy"] + second["cy"]) / 2, abs=0.2), "2 is between 1 and 3"
    assert equal["x2"] > equal["x1"]
    assert equal["y2"] < equal["y1"]


def test_lines_pass_over_what_is_missing_and_are_told_apart() -> None:
    made = laid_out(LINES)
    looks = [shape.look for shape in made.shapes]
    assert looks.count("dot-0") == 4
    assert looks.count("dot-1") == 3
    assert looks.count("band-of band-0") == 1
    assert {"line-0", "line-1"} <= set(looks)
    assert {"train", "held out"} <= {label.text for label in made.labels}
    assert "n (logarithmic)" in {label.text for label in made.labels}
    first, second, third, _ = (dot["cx"] for dot in shapes(made, "dot-0"))
    assert second - first == pytest.approx(third - second, abs=0.3), "doubling is one step"


def test_a_heat_map_is_told_by_more_than_colour() -> None:
    made = laid_out(HEAT)
    [deep, faint] = [shape for shape in made.shapes if shape.look == "plus-cell" and shape.says]
    [minus] = [shape for shape in made.shapes if shape.look == "minus-cell" and shape.says]
    assert [shape.says for shape in made.shapes if shape.look == "void"] == ["2, B: none"]
    assert (deep.places["fill-opacity"], faint.places["fill-opacity"]) == ("1.000", "0.050")
    assert 0.05 < float(minus.places["fill-opacity"]) < 1
    assert {"1", "−0.5", "0"} <= {label.text for label in made.labels if label.look.startswith("cell")}
    assert [label.text for label in made.labels if label.look == "tick"] == ["−0.5", "1"], "the key to the shades"


@pytest.mark.parametrize(
    ("picture", "look", "most"),
    [
        (Picture("bars", "t", "x", "y", {"names": list(range(99)), "values": [1.0] * 99}), "bar-of", MOST_BARS),
        (Picture("points", "t", "x", "y", {"x": [1.0] * 2500, "y": [2.0] * 2500}), "point", MOST_POINTS),
        (Picture("lines", "t", "x", "y", {"x": [1], "lines": {str(n): [1.0] for n in range(9)}}), "dot-", MOST_LINES),
        (
            Picture("heat", "t", "x", "y", {"x": list(range(70)), "y": [1], "values": [[1.0] * 70]}),
            "plus-cell",
            MOST_CELLS + 12,  # and the key
        ),
    ],
)
def test_what_is_too_much_is_left_out_and_said_to_be(picture: Picture, look: str, most: int) -> None:
    made = laid_out(picture)
    assert sum(shape.look.startswith(look) for shape in made.shapes) == most
    assert made.note


@pytest.mark.parametrize(
    "data",
    [{}, {"names": [], "values": []}, {"x": [], "y": []}, {"x": [], "lines": {}}, {"names": ["a"], "values": [None]}],
)
@pytest.mark.parametrize("kind", ["bars", "points", "lines", "heat"])
def test_a_picture_of_nothing_is_none(kind: Any, data: dict[str, Any]) -> None:
    assert drawn(Picture(kind, "t", "x", "y", data)) is None


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-3.0, -3.0], [1e-9, 2e-9], [1e12, 3e12], [-1e-3, 1e6]])
def test_axes_have_room_and_a_few_round_ticks(values: list[float]) -> None:
    made = axis(values, 0.0, 100.0)
    assert all(0 <= made(value) <= 100 for value in values)
    ticks = made.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(-1e-6 <= place <= 100 + 1e-6 for place, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks), "no two ticks read the same"


def test_values_far_apart_are_on_a_logarithmic_axis() -> None:
    made = logarithmic_or_not([1.0, 2.0, 64.0], 0.0, 60.0)
    assert made == Axis(1.0, 64.0, 0.0, 60.0, logarithmic=True)
    assert [text for _, text in made.ticks()] == ["1", "2", "4", "8", "16", "32", "64"]
    assert made(8.0) == pytest.approx(30)
    assert not logarithmic_or_not([0.0, 64.0], 0.0, 60.0).logarithmic
    assert not logarithmic_or_not([3.0, 4.0], 0.0, 60.0).logarithmic
    powers = [text for _, text in logarithmic_or_not([1.0, 1e6], 0.0, 60.0).ticks()]
    assert powers == ["1", "10", "100", "1,000", "10,000", "100,000", "1e6"]
    assert (told(-0.25), told(1e-7), told(12345.0)) == ("−0.25", "1e−7", "12,345")
