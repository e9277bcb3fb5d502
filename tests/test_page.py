"""The page: one file, nothing from outside, nothing unescaped, and a drawing that says what the circuit is."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from circuit_graphs import CONDITIONS, Graph, transformer

from voltmeter.circuit import Circuit, RunRecord, Scores
from voltmeter.errors import CircuitError
from voltmeter.report import page
from voltmeter.report.curve import chart
from voltmeter.report.drawing import MOST_DRAWN, Drawing, draw
from voltmeter.report.page import headline, number

RECORD = RunRecord(("voltmeter", "discover", "demo"), "edge-sp", CONDITIONS, 37.2, 310.0)
FAITHFULNESS: dict[str, Any] = {
    "metric": "logit difference",
    "full": 4.91,
    "nothing_kept": -4.66,
    "circuit": 4.2,
    "normalised": 0.93,
    "normalised_interval": [0.9, 0.96],
    "median": 0.95,
    "worst_decile": 0.71,
    "kl_share": 0.06,
    "n_held_out": 220,
    "threshold": 0.9,
    "curve": [{"n_edges": n, "normalised": f, "normalised_interval": [f - 0.1, f]} for n, f in ((5, 0.3), (50, 1.0))],
}
TASK = {"n_train": 240, "n_held_out": 220, "example": {"clean": "a girl", "corrupted": "a boy", "answers": "she"}}
VOID = {"meta", "link", "br", "img", "input", "rect", "line", "path", "circle"}


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
        # a path or circle may hold a title, and is then closed; as <path/> it is a startendtag
        if tag not in VOID or tag in ("path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def having(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(key) == value for key, value in attributes.items())]


def wiring(graph: Graph) -> dict[str, Any]:
    return {
        "feeds": graph.feeds,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "class": "LlamaForCausalLM",
        "n_writers": 46,
        "n_readers": 86,
        "verified": {"sum_error": 2e-7},
    }


def made(graph: Graph, n: int, faithfulness: dict[str, Any] | None = None) -> str:
    circuit = graph.scores().top(n)
    return page(
        RECORD, circuit, circuit.scores, FAITHFULNESS if faithfulness is None else faithfulness, TASK, wiring(graph)
    )


def test_a_page_says_what_was_found_and_how() -> None:
    text = made(transformer(2, 4, groups=2), 12)
    words = " ".join(Reader(text).words)
    assert "12 of 82 edges keep 93% of the logit difference on 220 held-out pairs (90-96%), KL share 6%." in words
    for shown in (
        "letters in toy",
        "toy (LlamaForCausalLM)",
        "edge-sp",
        "resample",
        "37.2 s, 310 MiB",
        "240 train, 220 held out",
    ):
        assert shown in words
    for shown in (
        "4.91",
        "−4.66",
        "93.0%",
        "90.0% to 96.0%",
        "71.0%",
        "6.0%",
        "sum_error",
        "2e-07",
        "voltmeter discover demo",
    ):
        assert shown in words
    for shown in (
        "a girl",
        "positive: keeping the edge raises the metric",
        "faithful at 0.9",
        "edges kept (logarithmic)",
    ):
        assert shown in words


def test_every_kept_edge_is_in_the_table_strongest_first() -> None:
    graph = transformer(2, 4)
    circuit = graph.scores().top(20)
    cells = re.findall(r"<td>(\S+)</td><td>(\S+)</td><td class=\"num\">(\S+)</td>", made_of(circuit, graph))
    rows = [(row.writer, row.reader.replace("<", "&lt;").replace(">", "&gt;")) for row in circuit.table()]
    assert [(writer, reader) for writer, reader, _ in cells] == rows
    assert [score for *_, score in cells] == [number(row.score or 0.0) for row in circuit.table()]


def made_of(circuit: Circuit, graph: Graph, scores: Scores | None = None) -> str:
    return page(RECORD, circuit, scores, FAITHFULNESS, TASK, wiring(graph))


def test_a_page_needs_nothing_from_outside() -> None:
    text = made(transformer(2, 4), 12)
    reader = Reader(text)
    assert not reader.having("link")
    assert not reader.having("img")
    assert not re.search(r"https?://|url\(|@import|\ssrc=|\shref=", text)
    policy = reader.having("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):  # its own style and script run, by their hashes, and nothing else does
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_page_is_the_same_every_time() -> None:
    graph = transformer(2, 4)
    circuit = graph.scores().top(12)
    assert made_of(circuit, graph) == made_of(circuit, graph)


EVIL = '<img src=x onerror="alert(1)">'
EVIL_NAME = "</script><img/onerror='alert(1)'>\"&"


def test_every_name_is_escaped() -> None:
    edges = (f"input -> {EVIL_NAME}", f"{EVIL_NAME} -> logits")
    graph = Graph(edges, {EVIL_NAME: (EVIL_NAME,)}, ("input",), ("logits",))
    evil: dict[str, Any] = {EVIL: EVIL}
    conditions = dataclasses.replace(
        CONDITIONS, model=EVIL, task=EVIL, fill=EVIL, metric=EVIL, sign=EVIL, settings=evil, versions=evil, digests=evil
    )
    record = RunRecord((EVIL,), EVIL, conditions, 1.0, 1.0, EVIL, EVIL)
    faithfulness = {**FAITHFULNESS, "metric": EVIL, "interval_note": EVIL, "threshold": 0.9}
    task = {"example": evil, **evil}
    circuit = Circuit(edges, torch.ones(2, dtype=torch.bool), Scores(edges, torch.ones(2), EVIL, conditions))
    text = page(record, circuit, None, faithfulness, task, {**wiring(graph), "class": EVIL, "verified": evil})
    assert "<img" not in text
    reader = Reader(text)
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert len(reader.having("script")) == 1
    words = "".join(reader.words)
    assert words.count(EVIL) > 15  # it is all there, as text
    assert EVIL_NAME in words
    assert reader.having("g", **{"class": "box used", "data-name": EVIL_NAME})


def test_without_escaping_the_same_page_would_be_caught() -> None:
    """Sabotage: the checks above see an element that a name has smuggled in."""
    text = made(transformer(1, 1), 2).replace("letters", EVIL)
    assert Reader(text).having("img", onerror="alert(1)")


def test_two_thousand_edges_are_listed_and_the_strongest_drawn() -> None:
    text = made(transformer(12, 12), 2000)
    reader = Reader(text)
    words = " ".join(" ".join(reader.words).split())
    assert "Of 2,000 edges the 300 strongest are drawn; the table lists them all." in words
    assert len(reader.having("tr")) > 2000
    assert len([a for a in reader.having("path") if "data-row" in a]) == MOST_DRAWN
    assert len(text) < 700_000


def test_a_small_page_is_small() -> None:
    assert len(made(transformer(5, 8, groups=4), 83)) < 80_000


def test_edges_on_no_path_and_ties_are_pointed_out() -> None:
    graph = transformer(2, 2)
    values = torch.zeros(len(graph.edges))
    values[[graph.edges.index("input -> m0"), graph.edges.index("m0 -> logits"), graph.edges.index("a0.h1 -> m1")]] = (
        1.0
    )
    text = made_of(graph.scores(values).top(3), graph)
    assert text.count("on no path") == 1
    assert "score the same" not in text
    assert "1 more edge scores the same as the last one kept" in made_of(graph.scores(values).top(2), graph)


@pytest.mark.parametrize("nothing", [{}, {"normalised": None}, {"normalised": float("nan"), "kl_share": float("inf")}])
def test_what_was_not_measured_is_not_made_up(nothing: dict[str, Any]) -> None:
    text = made(transformer(1, 2), 3, nothing)
    assert "3 of 13 edges were kept; how faithful the circuit is was not measured." in text
    assert "Is it faithful?" not in text
    assert "nan" not in Reader(text).words
    graph = transformer(1, 2)
    bare = page(RECORD, graph.circuit("input -> m0"), None, nothing, {}, {"feeds": graph.feeds})
    assert "1 of 13 edges was kept" in bare


def test_scores_may_come_beside_the_circuit_or_not_at_all() -> None:
    graph = transformer(1, 2)
    circuit = graph.circuit("input -> m0", "m0 -> logits")
    assert "Thicker edges" in made_of(circuit, graph, graph.scores())
    assert "Thicker edges" not in made_of(circuit, graph)
    assert Reader(made_of(graph.circuit(), graph)).having("svg")


def test_the_headline_counts() -> None:
    circuit = transformer(1, 2).circuit("input -> m0")
    assert headline(circuit, {"normalised": 0.5, "metric": "KL"}) == "1 of 13 edges keeps 50% of the KL."


@pytest.mark.parametrize(
    ("value", "text"), [(13.04, "13.0"), (4.2, "4.20"), (123.0, "123"), (-0.00012345, "−0.000123"), (0.0, "0.00")]
)
def test_numbers_have_three_figures(value: float, text: str) -> None:
    assert number(value) == text


# The drawing


def drawn(graph: Graph, n: int) -> Drawing:
    circuit = graph.scores().top(n)
    return draw(circuit, circuit.table(), graph.feeds)


KINDS = {
    "heads": transformer(3, 4),
    "grouped": transformer(3, 4, groups=2),
    "parallel": transformer(3, 4, parallel=True),
    "attention only": transformer(2, 8, mlp=False),
    "wide": transformer(2, 32, groups=8),
    "paths": Graph(("input -> net.0", "net.0 -> head", "input -> head"), {"net.0": ("net.0",)}, ("input",), ("head",)),
}


def points(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", path)]


@pytest.mark.parametrize("kind", KINDS)
def test_curves_go_up_from_their_writer_to_their_reader(kind: str) -> None:
    graph = KINDS[kind]
    drawing = drawn(graph, min(len(graph.edges), 400))
    boxes = {box.name: box for box in drawing.boxes}
    assert len(boxes) == len(drawing.boxes)
    assert len(drawing.curves) == min(len(graph.edges), MOST_DRAWN)
    for curve in drawing.curves:
        x1, y1, *_, x2, y2 = points(curve.path)
        assert y2 < y1
        for x, y, name in ((x1, y1, curve.writer), (x2, y2, curve.target)):
            box = boxes[name]
            assert box.used
            assert abs(x - box.x) <= box.width / 2 + 0.1
            assert abs(y - box.y) <= box.height / 2 + 0.1
        fed = graph.feeds.get(curve.reader, (curve.reader,))
        assert curve.target == fed[0] if len(fed) == 1 else boxes[curve.target].shared
        assert all(0 <= value <= drawing.width for value in points(curve.path)[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_lie_inside_and_do_not_overlap(kind: str) -> None:
    drawing = drawn(KINDS[kind], min(len(KINDS[kind].edges), 10))
    for box in drawing.boxes:
        assert box.width / 2 <= box.x <= drawing.width - box.width / 2
        assert box.height / 2 <= box.y <= drawing.height - box.height / 2
    for i, one in enumerate(drawing.boxes):
        for other in drawing.boxes[:i]:
            apart_x = abs(one.x - other.x) >= (one.width + other.width) / 2
            apart_y = abs(one.y - other.y) >= (one.height + other.height) / 2
            assert apart_x or apart_y


def test_thickness_and_dashes_tell_size_and_sign() -> None:
    graph = transformer(1, 1, mlp=False)
    circuit = graph.scores([4.0, -2.0, 1.0, 0.0, 0.5]).top(5)
    curves = {curve.row: curve for curve in draw(circuit, circuit.table(), graph.feeds).curves}
    assert [curves[i].sign for i in range(5)] == [1, -1, 1, 1, 0]
    widths = [curves[i].width for i in range(5)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[2]


def test_levels_are_told_by_the_wiring_and_not_by_names() -> None:
    """``m0`` here comes after ``z``: a drawing that trusted names would put it below."""
    edges = ("input -> z", "z -> m0", "input -> m0", "m0 -> out", "z -> out", "input -> out")
    graph = Graph(edges, {"z": ("z",), "m0": ("m0",)}, ("input",), ("out",))
    heights = {box.name: box.y for box in drawn(graph, 6).boxes}
    assert heights["input"] > heights["z"] > heights["m0"] > heights["out"]


def test_an_output_called_like_a_writer_is_drawn_apart() -> None:
    graph = Graph(("input -> head", "head -> last"), {}, ("input", "head"), ("head", "last"))
    names = {box.name for box in drawn(graph, 2).boxes}
    assert names == {"input", "head", "head (output)", "last"}


def test_a_large_model_shows_only_what_takes_part() -> None:
    drawing = drawn(transformer(2, 32), 5)
    assert not drawing.whole
    assert len(drawing.boxes) <= 10
    assert all(box.used for box in drawing.boxes)
    assert drawn(transformer(2, 2), 5).whole


def test_feeds_that_lead_in_a_circle_are_refused() -> None:
    graph = Graph(("a -> x", "b -> y"), {"x": ("b",), "y": ("a",)}, (), ())
    with pytest.raises(CircuitError, match="what the readers feed leads in a circle"):
        drawn(graph, 2)


def test_nothing_kept_is_drawn_as_such() -> None:
    assert drawn(transformer(1, 2), 0).curves == ()
    assert drawn(Graph((), {}, (), ()), 0).boxes == ()


# The chart


def test_the_chart_places_what_was_measured() -> None:
    measured = [
        {"n_edges": 100, "normalised": 0.9},
        {"n_edges": 1, "normalised": 0.0},
        {"n_edges": 10, "normalised": 0.5},
    ]
    skipped = [{"n_edges": 0, "normalised": 0.0}, {"n_edges": 7, "normalised": None}]
    drawn_chart = chart([*measured, *skipped], 10, 0.9)
    assert drawn_chart is not None
    assert [mark.n_edges for mark in drawn_chart.marks] == [1, 10, 100]
    assert [mark.here for mark in drawn_chart.marks] == [False, True, False]
    x = [mark.x for mark in drawn_chart.marks]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])  # logarithmic
    assert drawn_chart.marks[0].y == drawn_chart.zero == drawn_chart.bottom
    assert [tick.text for tick in drawn_chart.x_ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert drawn_chart.band is not None
    assert drawn_chart.band[0] < drawn_chart.one < drawn_chart.band[1]


@pytest.mark.parametrize("points", [[], [{"n_edges": 3, "normalised": 1.0}]])
def test_fewer_than_two_points_are_no_chart(points: list[dict[str, Any]]) -> None:
    assert chart(points, 3, None) is None


def test_a_chart_stretches_to_what_is_far_off() -> None:
    far = chart([{"n_edges": 3, "normalised": -40.0}, {"n_edges": 3, "normalised": 250.0}], 3, None)
    assert far is not None
    assert far.band is None
    assert all(far.top <= mark.y <= far.bottom for mark in far.marks)
    assert [tick.text for tick in far.y_ticks] == ["-4000%", "25000%"]


def test_an_interval_below_nothing_is_read_as_one() -> None:
    """A minus sign and a dash between two numbers are told apart."""
    circuit = transformer(1, 1).scores().top(2)
    found = {"normalised": -0.01, "metric": "m", "normalised_interval": [-0.05, -0.02]}
    assert headline(circuit, found).endswith("keep -1% of the m (-5% to -2%).")
    assert headline(circuit, {**found, "normalised_interval": [0.02, 0.05]}).endswith("keep -1% of the m (2-5%).")
