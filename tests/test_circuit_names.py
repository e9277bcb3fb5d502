"""Names: what is printed is what is read, and an address that matches nothing is an error."""

from __future__ import annotations

import pytest
from circuit_graphs import transformer
from hypothesis import given
from hypothesis import strategies as st

from voltmeter.circuit.names import Name, edge_name, find_edges, from_hook, grouped, is_hook, parse_edge, parse_name
from voltmeter.errors import AddressError

OURS = {
    "input": Name("input"),
    "input.tok": Name("input", part="tok"),
    "a3.h0": Name("attention", 3, 0),
    "a3": Name("attention", 3),
    "a1.h0<q>": Name("attention", 1, 0, "q"),
    "a1.kv0<k>": Name("key-value", 1, 0, "k"),
    "m2": Name("mlp", 2),
    "logits": Name("logits"),
    "layers.0.mixer": Name("path", part="layers.0.mixer"),
    "m02": Name("path", part="m02"),
    "inputs": Name("path", part="inputs"),
    "model.input": Name("path", part="model.input"),
}

whole = st.integers(0, 200)
names = st.one_of(
    st.builds(lambda part: "input" + part, st.sampled_from(["", ".tok", ".pos"])),
    st.builds(lambda layer, head: f"a{layer}.h{head}", whole, whole),
    st.builds(lambda layer, head, slot: f"a{layer}.h{head}<{slot}>", whole, whole, st.sampled_from("qkv")),
    st.builds(lambda layer, head, slot: f"a{layer}.kv{head}<{slot}>", whole, whole, st.sampled_from("kv")),
    st.builds(lambda layer: f"m{layer}", whole),
    st.just("logits"),
    st.from_regex(r"[A-Za-z_][\w.<>\[\]-]{0,20}", fullmatch=True).filter(lambda text: "->" not in text),
)


@pytest.mark.parametrize("text", OURS)
def test_names_are_taken_apart(text: str) -> None:
    assert parse_name(text) == OURS[text]


@given(names)
def test_a_name_prints_as_it_was_read(text: str) -> None:
    assert str(parse_name(text)) == text


@given(names, names, st.sampled_from([" -> ", "->", " → ", "→", "  ->"]))
def test_an_edge_is_read_with_either_arrow(writer: str, reader: str, arrow: str) -> None:
    if writer.endswith("-"):  # "x-->y" reads as well one way as the other
        return
    assert parse_edge(f"{writer}{arrow}{reader}") == (writer, reader)
    assert edge_name(writer, reader) == f"{writer} -> {reader}"


@pytest.mark.parametrize("text", ["", "a b", "a\nb", "x->y"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match=r"is not a name of a node"):
        parse_name(text)


@pytest.mark.parametrize("text", ["a0.h1", "a -> b -> c", "-> m1", "m1 ->", ""])
def test_what_is_no_edge_is_refused_with_the_shape_expected(text: str) -> None:
    with pytest.raises(AddressError, match=r"is not the name of an edge\n  write 'writer -> reader'"):
        parse_edge(text)


def test_depth_sorts_from_the_input_to_the_logits() -> None:
    order = [
        "input",
        "input.tok",
        "a0.h0<q>",
        "a0.h2",
        "a0.h10",
        "m0",
        "a1.kv0<k>",
        "m1",
        "layers.2.mixer",
        "m10",
        "logits",
    ]
    assert sorted(set(order), key=lambda name: parse_name(name).depth) == order


HOOKS = {
    "hook_embed": "input",
    "hook_pos_embed": "input.pos",
    "blocks.0.hook_resid_pre": "input",
    "blocks.3.attn.hook_z[1]": "a3.h1",
    "blocks.3.attn.hook_result[:, :, 12]": "a3.h12",
    "blocks.1.hook_q_input[0]": "a1.h0<q>",
    "blocks.1.hook_k_input[None, None, 4]": "a1.h4<k>",
    "blocks.1.hook_v_input[0]": "a1.h0<v>",
    "blocks.2.hook_mlp_out": "m2",
    "blocks.2.hook_mlp_in[:]": "m2",
    "blocks.2.hook_resid_mid": "m2",
    "blocks.2.hook_attn_out": "a2",
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_transformer_lens_have_our_names(hook: str) -> None:
    assert is_hook(hook)
    assert from_hook(hook) == HOOKS[hook]


def test_a_head_may_be_given_beside_the_hook() -> None:
    assert from_hook("blocks.3.attn.hook_z", head=2) == "a3.h2"


def test_a_hook_of_all_heads_asks_which() -> None:
    with pytest.raises(
        AddressError, match=r"holds every head of its block\n  say which one: blocks.3.attn.hook_z\[0\]"
    ):
        from_hook("blocks.3.attn.hook_z")


@pytest.mark.parametrize("hook", ["blocks.3.attn.hook_pattern", "blocks.1.hook_resid_pre", "ln_final.hook_scale"])
def test_a_hook_that_is_no_node_is_refused(hook: str) -> None:
    with pytest.raises(AddressError, match="neither a writer nor a reader"):
        from_hook(hook)


def test_a_name_that_is_no_hook_is_refused_as_one() -> None:
    with pytest.raises(AddressError, match=r"'a3.h0' is not a TransformerLens hook name"):
        from_hook("a3.h0")


def test_edges_are_found_by_any_of_their_names() -> None:
    edges = transformer(2, 2).edges
    ways = ["a0.h1->a1.h0<q>", ("a0.h1", "a1.h0<q>"), "blocks.0.attn.hook_result[1] → blocks.1.hook_q_input[:, :, 0]"]
    assert find_edges(ways, edges) == [edges.index("a0.h1 -> a1.h0<q>")] * 3
    last = "blocks.1.hook_mlp_out -> blocks.1.hook_resid_post"
    assert find_edges([last], edges) == [edges.index("m1 -> logits")]


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ("blocks.0.hook_resid_mid -> logits", "'blocks.0.hook_resid_mid' is where m0 reads, and is no writer"),
        ("input -> blocks.0.hook_mlp_out", "'blocks.0.hook_mlp_out' is where m0 writes, and is no reader"),
    ],
)
def test_a_hook_on_the_wrong_side_of_an_edge_is_no_name_of_it(edge: str, message: str) -> None:
    with pytest.raises(AddressError, match=message):
        find_edges([edge], transformer(1, 1).edges)


def test_the_token_embedding_is_the_whole_input_unless_that_was_split() -> None:
    assert find_edges(["hook_embed -> m0"], ("input -> m0",)) == [0]
    assert find_edges(["hook_embed -> m0"], ("input.tok -> m0", "input.pos -> m0")) == [0]


def test_query_heads_stand_for_the_key_value_head_they_share() -> None:
    graph = transformer(2, 4, groups=2)
    assert grouped(graph.feeds)["a1.h3<v>"] == "a1.kv1<v>"
    assert "a1.h3<q>" not in grouped(graph.feeds)
    (found,) = find_edges(["input -> blocks.1.hook_k_input[3]"], graph.edges, grouped(graph.feeds))
    assert graph.edges[found] == "input -> a1.kv1<k>"


def test_a_models_own_module_may_be_called_like_a_hook() -> None:
    assert find_edges(["input -> hook_up"], ("input -> hook_up",)) == [0]


def test_every_name_that_matches_nothing_is_listed_with_the_nearest() -> None:
    edges = transformer(2, 2).edges
    wrong = ["a7.h1 -> logits", "input -> a1.h9<k>", "a1.h0 -> a0.h0<q>", "nonsense", "input -> m0"]
    with pytest.raises(AddressError) as caught:
        find_edges(wrong, edges)
    problem, *details, mend = str(caught.value).split("\n  ")
    assert problem == "4 names are no edge of this wiring"
    assert details[0].startswith("a7.h1 -> logits: no writer is called a7.h1, nearest: a")
    assert details[1].startswith("input -> a1.h9<k>: no reader is called a1.h9<k>, nearest: a1.h")
    assert details[2] == "a1.h0 -> a0.h0<q>: a0.h0<q> does not read a1.h0"
    assert details[3] == "'nonsense' is not the name of an edge"
    assert mend.startswith("write 'writer -> reader'")


def test_hundreds_of_unknown_names_do_not_take_long() -> None:
    with pytest.raises(AddressError, match=r"2,000 names are(.|\n)*and 1988 more"):
        find_edges([f"x{i} -> logits" for i in range(2000)], transformer(6, 8).edges)
