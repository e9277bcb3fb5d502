"""Files of EAP-IG, MIB and ACDC: what we write they can read, what they write we can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_graphs import CONDITIONS, Graph, transformer

from voltmeter.circuit import Circuit, load_circuit, read_eap, read_edge_list, save_circuit
from voltmeter.circuit.formats import circuit_bytes
from voltmeter.errors import AddressError, FormatError


def their_edges(cfg: dict[str, Any]) -> set[str]:
    """Every edge of the graph EAP-IG builds for a configuration (its loader fails on any other edge)."""
    edges: set[str] = set()
    written = ["input"]
    for layer in range(cfg["n_layers"]):
        heads = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])]
        edges |= {f"{writer}->{head}<{slot}>" for writer in written for head in heads for slot in "qkv"}
        before_mlp = written if cfg["parallel_attn_mlp"] else written + heads
        edges |= {f"{writer}->m{layer}" for writer in before_mlp}
        written = [*written, *heads, f"m{layer}"]
    return edges | {f"{writer}->logits" for writer in written}


def exported(graph: Graph, circuit: Circuit, width: int | None = 64) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(circuit_bytes(circuit, graph.feeds, width))
    return document


READABLE = {
    "heads": transformer(3, 4),
    "grouped": transformer(3, 4, groups=2),
    "one key-value head": transformer(2, 4, groups=1),
    "parallel": transformer(3, 4, parallel=True),
}


@pytest.mark.parametrize("kind", READABLE)
def test_eap_ig_finds_every_edge_it_expects_and_no_other(kind: str) -> None:
    graph = READABLE[kind]
    circuit = graph.scores().top(9)
    document = exported(graph, circuit)
    assert document["eap_ig"] == {"readable": True, "why_not": []}
    assert document["cfg"]["d_model"] == 64
    assert document["cfg"]["parallel_attn_mlp"] is (kind == "parallel")
    assert set(document["edges"]) == their_edges(document["cfg"])
    writers = {edge.split("->")[0] for edge in document["edges"]}
    assert set(document["nodes"]) == writers | {"logits"}
    for entry in document["edges"].values():
        assert isinstance(entry["score"], float)
        assert isinstance(entry["in_graph"], bool)


def test_stories260k_has_1701_edges_of_its_own_and_2461_copied_out() -> None:
    graph = transformer(5, 8, groups=4)
    assert (len(graph.edges), len(exported(graph, graph.circuit())["edges"])) == (1701, 2461)


def test_an_attention_only_model_is_a_part_of_their_graph() -> None:
    graph = transformer(2, 2, mlp=False)
    document = exported(graph, graph.scores().top(3))
    assert document["eap_ig"]["readable"]
    assert document["cfg"]["parallel_attn_mlp"] is False
    assert set(document["edges"]) < their_edges(document["cfg"])


def test_edges_of_a_key_value_head_are_copied_to_each_query_head() -> None:
    graph = transformer(1, 4, groups=2)
    circuit = Circuit.from_edges(graph.edges, ["input -> a0.kv1<v>", "a0.h3 -> logits"])
    document = exported(graph, circuit)
    kept = [edge for edge, entry in document["edges"].items() if entry["in_graph"]]
    assert kept == ["input->a0.h2<v>", "input->a0.h3<v>", "a0.h3->logits"]
    assert document["copies"]["a0.kv1<v>"] == ["a0.h2<v>", "a0.h3<v>"]
    in_graph = {name for name, node in document["nodes"].items() if node["in_graph"]}
    assert in_graph == {"input", "a0.h3", "logits"}  # h2 is read by nothing


def test_unscored_edges_carry_their_flag_for_tools_that_select_by_score() -> None:
    graph = transformer(1, 1)
    edges = exported(graph, graph.circuit("input -> m0"))["edges"]
    assert edges["input->m0"] == {"score": 1.0, "in_graph": True}
    assert edges["input->logits"] == {"score": 0.0, "in_graph": False}


@pytest.mark.parametrize(
    ("graph", "width", "why"),
    [
        (transformer(1, 1), None, "the width of the stream (d_model) was not given"),
        (Graph(("input.tok -> m0", "m0 -> logits"), {"m0": ("m0",)}, (), ()), 8, "it has no writer input.tok"),
        (Graph(("input -> net.0", "net.0 -> logits"), {"net.0": ("net.0",)}, (), ()), 8, "it has no writer net.0"),
        (Graph(("a0 -> logits", "input -> a0"), {"a0": ("a0",)}, (), ()), 8, "it has no writer a0"),
        (Graph(("input -> a0.kv0<k>", "a0.h0 -> logits"), {}, (), ()), 8, "it has no reader a0.kv0<k>"),
        (Graph(("m1 -> m0", "m0 -> logits"), {}, (), ()), 8, "it has no edge m1 -> m0"),
    ],
)
def test_a_model_they_cannot_hold_is_written_all_the_same(
    graph: Graph, width: int | None, why: str, tmp_path: Path
) -> None:
    circuit = graph.scores().top(1)
    document = exported(graph, circuit, width)
    assert not document["eap_ig"]["readable"]
    assert why in document["eap_ig"]["why_not"]
    assert document["cfg"] == {}  # so that their loader stops, and does not build some other graph
    save_circuit(tmp_path / "circuit.json", circuit, graph.feeds, width)
    assert load_circuit(tmp_path / "circuit.json") == circuit


# What they write


def their_file(path: Path, cfg: dict[str, Any], kept: set[str], old: bool = False) -> Path:
    """A file as EAP-IG writes it; ``old`` in the layout it had first."""
    names = sorted(their_edges(cfg))
    writers = {name.split("->")[0] for name in names}
    edges = {name: {"score": None if old else float(i), "in_graph": name in kept} for i, name in enumerate(names)}
    nodes = {name: True if old else {"in_graph": True} for name in [*writers, "logits"]}
    path.write_text(json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges}))
    return path


CFG = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}


@pytest.mark.parametrize("old", [False, True])
def test_their_file_is_read(tmp_path: Path, old: bool) -> None:
    graph = transformer(2, 2)
    path = their_file(tmp_path / "g.json", CFG, {"input->a0.h1<k>", "a0.h1->logits"}, old)
    circuit = read_eap(path, graph.edges, graph.feeds, CONDITIONS)
    assert circuit.names == ("input -> a0.h1<k>", "a0.h1 -> logits")
    assert circuit.how == {"rule": "read", "format": "eap-ig", "passed_over": 0}
    if old:
        assert circuit.scores is None
    else:
        assert circuit.scores is not None
        assert circuit.scores.method == "imported"
        assert circuit.scores.conditions == CONDITIONS
        assert circuit.scores["a0.h0 -> m0"] == sorted(their_edges(CFG)).index("a0.h0->m0")


@pytest.mark.parametrize("kind", READABLE)
def test_what_we_export_we_import(kind: str, tmp_path: Path) -> None:
    graph = READABLE[kind]
    circuit = graph.scores().top(7)
    save_circuit(tmp_path / "circuit.json", circuit, graph.feeds, 64)
    read = read_eap(tmp_path / "circuit.json", graph.edges, graph.feeds, CONDITIONS)
    assert set(read) == set(circuit)
    assert read.scores is not None
    assert circuit.scores is not None
    assert torch.equal(read.scores.values, circuit.scores.values)


def test_query_heads_that_disagree_are_listed(tmp_path: Path) -> None:
    graph = transformer(2, 2, groups=1)
    path = their_file(tmp_path / "g.json", CFG, {"input->a0.h1<k>"}, old=True)
    with pytest.raises(FormatError) as caught:
        read_eap(path, graph.edges, graph.feeds)
    assert "g.json treats the query heads of one key/value head differently, in 1 edge" in caught.value.problem
    said = "input->a0.h1<k> says kept with score None, another query head cut with score None"
    assert caught.value.details == (f"input -> a0.kv0<k>: {said}",)
    both = their_file(tmp_path / "g.json", CFG, {"input->a0.h0<k>", "input->a0.h1<k>"}, old=True)
    assert read_eap(both, graph.edges, graph.feeds).names == ("input -> a0.kv0<k>",)
    scored = their_file(tmp_path / "g.json", CFG, set())
    with pytest.raises(FormatError, match="in 10 edges"):  # input and the rest into k and v of two layers
        read_eap(scored, graph.edges, graph.feeds)


def test_edges_of_parts_the_model_lacks_are_passed_over_only_if_they_say_nothing(tmp_path: Path) -> None:
    graph = transformer(2, 2, mlp=False)
    path = their_file(tmp_path / "g.json", CFG, {"input->a0.h0<q>"}, old=True)
    circuit = read_eap(path, graph.edges, graph.feeds)
    assert circuit.names == ("input -> a0.h0<q>",)
    assert circuit.how["passed_over"] == len(their_edges(CFG)) - len(graph.edges)
    kept = their_file(tmp_path / "g.json", CFG, {"input->m0"}, old=True)
    with pytest.raises(AddressError, match="input -> m0: no reader is called m0"):
        read_eap(kept, graph.edges, graph.feeds)


def test_a_file_of_a_smaller_model_is_refused(tmp_path: Path) -> None:
    graph = transformer(2, 2)
    path = their_file(tmp_path / "g.json", {**CFG, "n_layers": 1}, set(), old=True)
    with pytest.raises(FormatError, match=r"g\.json lacks 33 edges of this wiring\n  input -> a1.h0<q>"):
        read_eap(path, graph.edges, graph.feeds)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "holds a list, a JSON object was expected"),
        ({"nodes": {}, "edges": []}, "is no circuit of EAP-IG or MIB\n  it has no cfg\n  it has no edges"),
        ({"cfg": {}, "nodes": {}, "edges": {"input->m0": 3}}, "the edge input->m0 is 3, "),
        ({"cfg": {}, "nodes": {}, "edges": {"input->m0": {"score": "1", "in_graph": True}}}, "was expected"),
    ],
)
def test_files_that_are_not_theirs_are_refused(document: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps(document))
    with pytest.raises(FormatError) as caught:
        read_eap(tmp_path / "g.json", ("input -> m0",), {})
    assert message in str(caught.value)


def test_a_file_that_scores_only_some_edges_is_refused(tmp_path: Path) -> None:
    edges = {"input->m0": {"score": 1, "in_graph": True}, "m0->logits": {"score": None, "in_graph": True}}
    (tmp_path / "g.json").write_text(json.dumps({"cfg": {}, "nodes": {}, "edges": edges}))
    with pytest.raises(FormatError, match="scores some edges and not others\n  m0 -> logits has no score"):
        read_eap(tmp_path / "g.json", ("input -> m0", "m0 -> logits"), {})


# Lists of edges


def test_an_acdc_list_is_read(tmp_path: Path) -> None:
    graph = transformer(2, 4, groups=2)
    pairs = [
        ["blocks.1.hook_resid_post", "blocks.1.attn.hook_result[:, :, 3]"],
        ["blocks.1.attn.hook_result[:, :, 3]", "blocks.1.attn.hook_q[:, :, 3]"],
        ["blocks.1.attn.hook_q[:, :, 3]", "blocks.1.hook_q_input[:, :, 3]"],
        ["blocks.1.hook_v_input[:, :, 3]", "blocks.0.hook_mlp_out[:]"],
        ["blocks.0.hook_mlp_out[:]", "blocks.0.hook_mlp_in[:]"],
        ["m0", "blocks.0.hook_resid_pre[:]"],
    ]
    (tmp_path / "edges.json").write_text(json.dumps(pairs))
    circuit = read_edge_list(tmp_path / "edges.json", graph.edges, graph.feeds)
    assert set(circuit) == {("a1.h3", "logits"), ("m0", "a1.kv1<v>"), ("input", "m0")}
    assert circuit.how == {"rule": "read", "format": "edge list", "inside_components": 3}


def test_an_edge_list_with_unknown_names_lists_them(tmp_path: Path) -> None:
    (tmp_path / "edges.json").write_text('[["m9", "input"], ["logits", "a7.h0"]]')
    with pytest.raises(
        AddressError, match=r"2 names are no edge of this wiring\n  input -> m9: (.|\n)*a7.h0 -> logits: no writer"
    ):
        read_edge_list(tmp_path / "edges.json", transformer(1, 1).edges, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "it holds a dict"), ('[["a", "b"], ["a"], [1, 2]]', r"item 1 is \['a'\]\n  item 2 is \[1, 2\]")],
)
def test_what_is_no_edge_list_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "edges.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_edge_list(tmp_path / "edges.json", (), {})
