"""Scores and circuits: invariants, set algebra, ties, and what is connected to what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from circuit_graphs import CONDITIONS, Graph, transformer
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from voltmeter.circuit import Circuit, Conditions, Row, Scores
from voltmeter.errors import AddressError, CircuitError, FormatError

GRAPH = transformer(2, 2)
N = len(GRAPH.edges)
flags = st.lists(st.booleans(), min_size=N, max_size=N)
numbers = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=N, max_size=N)


# Scores


def test_the_highest_scores_are_kept_and_ties_go_by_wiring_order() -> None:
    scores = transformer(1, 1, mlp=False).scores([0.5, -2.0, 1.0, 1.0, -1.0])
    circuit = scores.top(2)
    assert circuit.names == (scores.edges[1], scores.edges[2])
    assert circuit.how == {"rule": "top", "n": 2, "signed": False, "border": 1.0, "ties_at_border": 2}
    assert circuit.scores is scores
    signed = scores.top(3, signed=True)
    assert signed.names == (scores.edges[0], scores.edges[2], scores.edges[3])
    assert signed.how["ties_at_border"] == 0


@given(numbers, st.integers(0, N), st.booleans())
def test_top_keeps_exactly_as_many_as_asked_and_none_lower(values: list[float], n: int, signed: bool) -> None:
    circuit = GRAPH.scores(values).top(n, signed)
    keys = [value if signed else abs(value) for value in values]
    kept = [key for key, flag in zip(keys, circuit.kept.tolist(), strict=True) if flag]
    cut = [key for key, flag in zip(keys, circuit.kept.tolist(), strict=True) if not flag]
    assert len(circuit) == n
    assert min(kept, default=9) >= max(cut, default=-9)
    assert circuit.how["ties_at_border"] == (cut.count(min(kept)) if kept else 0)


@pytest.mark.parametrize("n", [N + 1, -1])
def test_more_edges_than_there_are_is_an_error(n: int) -> None:
    with pytest.raises(CircuitError, match=f"a circuit of {n} edges was asked for, the wiring has {N}"):
        GRAPH.scores().top(n)


def test_scores_that_are_not_finite_are_listed() -> None:
    values = torch.zeros(N)
    values[[1, 4]] = torch.tensor([torch.nan, -torch.inf])
    with pytest.raises(CircuitError) as caught:
        GRAPH.scores(values)
    assert str(caught.value).startswith(
        f"2 of {N} scores are not finite\n  {GRAPH.edges[1]} is nan\n  {GRAPH.edges[4]} is -inf"
    )


def test_scores_are_a_private_contiguous_copy() -> None:
    given_values = torch.randn(N, 2)[:, 0]
    scores = GRAPH.scores(given_values)
    before = scores.values.clone()
    given_values.zero_()
    assert torch.equal(scores.values, before)
    assert scores.values.is_contiguous()
    half = Scores(GRAPH.edges, torch.ones(N, dtype=torch.bfloat16, requires_grad=True), "eap", CONDITIONS)
    assert half.values.dtype == torch.float32
    assert not half.values.requires_grad


def test_scores_are_found_by_name() -> None:
    scores = GRAPH.scores(list(range(N)))
    assert scores["input -> m0"] == GRAPH.edges.index("input -> m0")
    with pytest.raises(AddressError, match="nearest"):
        scores["input -> m7"]
    assert scores.table(1) == (Row(*GRAPH.edges[-1].split(" -> "), float(N - 1)),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(N + 1), rf"scores of shape \({N + 1},\) were given for {N} edges"),
        (torch.zeros(N, dtype=torch.int64), "scores must be floating point|Type-check"),  # the hook may come first
    ],
)
def test_scores_of_the_wrong_kind_are_refused(values: torch.Tensor, message: str) -> None:
    with pytest.raises((CircuitError, TypeCheckError), match=message):
        Scores(GRAPH.edges, values, "eap", CONDITIONS)


def test_conditions_keep_private_plain_data() -> None:
    settings: dict[str, Any] = {"steps": (1, 2)}
    conditions = dataclasses.replace(CONDITIONS, settings=settings)
    settings["steps"] = 7
    assert conditions.settings == {"steps": [1, 2]}
    assert Conditions(**conditions.as_dict()) == conditions
    with pytest.raises(FormatError) as caught:
        dataclasses.replace(CONDITIONS, settings={"a": {"b": [0, torch.zeros(1)]}, "c": float("nan"), "d": {1: 2}})
    assert str(caught.value).split("\n  ")[1:4] == [
        "settings.a.b[1] is a Tensor",
        "settings.c is nan",
        "settings.d has the key 1",
    ]


def test_unknown_conditions_say_so() -> None:
    conditions = Conditions.unknown(model="gpt2")
    assert (conditions.model, conditions.task, conditions.seed, conditions.settings) == ("gpt2", "unknown", None, {})


# Circuits as sets


def flagged(kept: list[bool]) -> Circuit:
    return Circuit(GRAPH.edges, torch.tensor(kept))


@given(flags, flags)
def test_set_algebra_is_that_of_sets(flags_of_one: list[bool], flags_of_other: list[bool]) -> None:
    one, other = flagged(flags_of_one), flagged(flags_of_other)
    a, b = set(one), set(other)
    assert set(one & other) == a & b
    assert set(one | other) == a | b
    assert set(one - other) == a - b
    assert set(~one) == set(Circuit(GRAPH.edges, torch.ones(N, dtype=torch.bool))) - a
    assert one.jaccard(other) == (len(a & b) / len(a | b) if a | b else 1.0)
    assert ~~one == dataclasses.replace(one, how=(~~one).how)


@given(flags)
def test_the_mask_is_one_where_an_edge_is_kept(kept: list[bool]) -> None:
    circuit = flagged(kept)
    keep = circuit.mask(torch.float64)
    assert keep.dtype == torch.float64
    assert len(circuit) == int(keep.sum()) == len(circuit.names)
    assert [f"{writer} -> {reader}" for writer, reader in circuit] == list(circuit.names)


@given(flags, flags)
def test_equal_circuits_have_equal_hashes(flags_of_one: list[bool], flags_of_other: list[bool]) -> None:
    one, other = flagged(flags_of_one), flagged(flags_of_other)
    twin = Circuit(one.edges, one.kept.clone(), None, dict(one.how))
    assert twin == one
    assert hash(twin) == hash(one)
    assert (one == other) == (set(one) == set(other))


def test_edits_return_copies() -> None:
    circuit = GRAPH.circuit("input -> m0")
    more = circuit.with_edges(["m0 -> logits", ("input", "m0")])
    assert (len(circuit), len(more)) == (1, 2)
    assert set(more.without_edges(["input -> m0", "input -> m1"])) == {("m0", "logits")}
    assert more.how == {"rule": "with", "edges": ["m0 -> logits", "input -> m0"], "of": [{"rule": "named"}]}
    with pytest.raises(dataclasses.FrozenInstanceError):
        circuit.how = {}  # type: ignore[misc]


def test_a_circuit_does_not_share_memory_with_what_it_was_made_of() -> None:
    kept, how = torch.zeros(N, dtype=torch.bool), {"rule": "named"}
    circuit = Circuit(GRAPH.edges, kept, None, how)
    kept[0], how["rule"] = True, "other"
    circuit.mask(torch.float32).fill_(1)
    assert len(circuit) == 0
    assert circuit.how == {"rule": "named"}


def test_scores_survive_the_algebra_only_where_they_are_the_same() -> None:
    scores = GRAPH.scores()
    assert (scores.top(5) | scores.top(3)).scores == scores
    assert (scores.top(5) | GRAPH.scores().top(3)).scores is None


def test_membership_of_an_edge_that_is_none_is_an_error() -> None:
    circuit = GRAPH.circuit("input -> m0")
    assert "input -> m0" in circuit
    assert ("m0", "logits") not in circuit
    with pytest.raises(AddressError, match="no writer is called m7"):
        assert "m7 -> logits" in circuit


def test_circuits_of_two_wirings_do_not_mix() -> None:
    other = transformer(2, 2, parallel=True)
    for operation in (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a - b, lambda a, b: a.jaccard(b)):
        with pytest.raises(CircuitError, match="two circuits of different wirings") as caught:
            operation(GRAPH.circuit(), other.circuit())
        assert f"the first has {N} edges, the second {N - 4}" in caught.value.details
        assert "only the first has a0.h0 -> m0" in caught.value.details
    shuffled = Graph(GRAPH.edges[::-1], GRAPH.feeds, GRAPH.inputs, GRAPH.outputs)
    with pytest.raises(CircuitError, match="the edges are the same, their order is not"):
        GRAPH.circuit() & shuffled.circuit()
    with pytest.raises(CircuitError, match="belong to different wirings"):
        Circuit(GRAPH.edges, torch.zeros(N, dtype=torch.bool), other.scores())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Circuit(GRAPH.edges, torch.zeros(N - 1, dtype=torch.bool)), rf"\({N - 1},\) flags were given for {N}"),
        (lambda: Circuit(GRAPH.edges, torch.zeros(N)), "kept must be boolean|Type-check"),
        (lambda: Circuit(("input -> m0", "input->m0"), torch.zeros(2, dtype=torch.bool)), "twice\n  input -> m0"),
        (lambda: Circuit(("input",), torch.zeros(1, dtype=torch.bool)), "not the name of an edge"),
        (lambda: Circuit(GRAPH.edges, torch.zeros(N, dtype=torch.bool), None, {"x": {1, 2}}), "how.x is a set"),
    ],
)
def test_a_circuit_that_makes_no_sense_is_not_made(make: Callable[[], Circuit], message: str) -> None:
    with pytest.raises((CircuitError, AddressError, FormatError, TypeCheckError), match=message):
        make()


def test_circuits_are_named_from_anything_that_lists_edges() -> None:
    names = ["input → m0", "blocks.0.hook_mlp_out -> logits"]
    circuit = Circuit.from_edges(GRAPH, names)  # anything with .edges, such as a wiring
    assert circuit == GRAPH.circuit("input -> m0", "m0 -> logits")
    assert circuit == Circuit.from_edges([tuple(edge.split(" -> ")) for edge in GRAPH.edges], names)


def test_printing_is_short() -> None:
    assert str(GRAPH.circuit()) == "0 edges"
    assert str(GRAPH.circuit("input -> m0")) == "1 edge: input -> m0"
    assert str(GRAPH.circuit("input -> m0", "m0 -> logits")) == "2 edges: input -> m0, m0 -> logits"
    everything = ~GRAPH.circuit()
    assert str(everything).startswith(f"{N} edges: input -> a0.h0<q>, ")
    assert str(everything).endswith(", ...")
    assert len(str(everything)) < 110
    assert repr(everything) == f"Circuit({N} of {N} edges)"


def test_a_table_goes_by_size_of_score() -> None:
    scores = transformer(1, 1, mlp=False).scores([0.5, -2.0, 1.0, 1.0, -1.0])
    rows = scores.top(3).table()
    assert [row.score for row in rows] == [-2.0, 1.0, 1.0]
    assert rows[0] == Row("input", "a0.h0<k>", -2.0)
    assert GRAPH.circuit("input -> m0").table() == (Row("input", "m0", None),)


# Circuits as graphs


def prune(circuit: Circuit, graph: Graph = GRAPH) -> Circuit:
    return circuit.prune_disconnected(graph.feeds, graph.inputs, graph.outputs)


def test_edges_on_no_path_are_pruned() -> None:
    path = ("input -> m0", "m0 -> logits")
    loose = ("a0.h0 -> m1", "input -> a1.h1<k>", "input -> a0.h1<q>", "a0.h1 -> a1.h1<v>")
    circuit = GRAPH.circuit(*path, *loose)
    assert set(circuit.disconnected(GRAPH.feeds, GRAPH.inputs, GRAPH.outputs)) == set(loose)
    pruned = prune(circuit)
    assert pruned.names == path
    assert pruned.how == {"rule": "named", "pruned": 4}
    assert len(prune(GRAPH.circuit("input -> m0", "m1 -> logits"))) == 0


def test_a_key_value_head_leads_to_every_query_head_that_shares_it() -> None:
    graph = transformer(1, 4, groups=2)
    circuit = Circuit.from_edges(graph.edges, ["input -> a0.kv1<v>", "a0.h3 -> logits", "a0.h1 -> logits"])
    assert prune(circuit, graph).names == ("input -> a0.kv1<v>", "a0.h3 -> logits")


def test_a_reader_and_a_writer_of_one_name_are_two_things() -> None:
    """``mix`` reads into ``up``, while the writer ``mix`` is fed by ``down``: a name connects nothing by itself."""
    edges = ("input -> mix", "up -> logits", "mix -> logits", "input -> down")
    circuit = ~Circuit.from_edges(edges, [])
    feeds = {"mix": ("up",), "down": ("mix",)}
    cut = circuit.without_edges(["input -> down"])
    assert cut.prune_disconnected(feeds, ("input",), ("logits",)).names == ("input -> mix", "up -> logits")
    # sabotage: feeds that trust the names keep the wrong edge
    assert "mix -> logits" in cut.prune_disconnected({"mix": ("mix",), "down": ("up",)}, ("input",), ("logits",)).names


@given(flags)
def test_pruning_agrees_with_a_search_for_paths(kept: list[bool]) -> None:
    circuit = flagged(kept)
    graph = nx.DiGraph()
    graph.add_nodes_from([("w", "input"), ("r", "logits")])
    graph.add_edges_from((("w", writer), ("r", reader)) for writer, reader in circuit)
    graph.add_edges_from((("r", reader), ("w", writer)) for reader, fed in GRAPH.feeds.items() for writer in fed)
    after = nx.descendants(graph, ("w", "input")) | {("w", "input")}
    before = nx.ancestors(graph, ("r", "logits")) | {("r", "logits")}
    expected = {(w, r) for w, r in circuit if ("w", w) in after and ("r", r) in before}
    assert set(prune(circuit)) == expected
    assert prune(prune(circuit)).kept.equal(prune(circuit).kept)


def test_ends_that_no_one_placed_are_listed() -> None:
    feeds = {reader: fed for reader, fed in GRAPH.feeds.items() if reader != "m0"}
    with pytest.raises(AddressError) as caught:
        GRAPH.circuit("input -> m0", "m0 -> logits").prune_disconnected(feeds, (), ())
    assert caught.value.details == (
        "the writer input is no input, and no reader feeds it",
        "the writer m0 is no input, and no reader feeds it",
        "the reader m0 is no output, and feeds no writer",
        "the reader logits is no output, and feeds no writer",
    )


class Counted(dict[str, tuple[str, ...]]):
    """What feeds what, counting how often it is looked up."""

    looked_up = 0

    def get(self, *args: Any) -> Any:
        self.looked_up += 1
        return super().get(*args)


def test_thirty_thousand_edges_are_looked_at_once() -> None:
    graph = transformer(12, 12)
    assert len(graph.edges) == 32_491  # GPT-2 small
    scores = graph.scores()
    circuit = prune(scores.top(2000) | scores.top(500, signed=True), graph)
    assert len(circuit.table()) == len(circuit)
    # nothing is read at the end: all go. Once for every edge would be a billion
    headless = scores.top(32_491).without_edges(e for e in graph.edges if e.endswith("logits"))
    feeds = Counted(graph.feeds)
    assert len(headless.prune_disconnected(feeds, graph.inputs, graph.outputs)) == 0
    assert 0 < feeds.looked_up <= len(graph.edges)
