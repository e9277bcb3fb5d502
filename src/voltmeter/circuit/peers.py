"""Circuits in the files of other tools: EAP-IG and MIB (JSON), and ACDC-style lists of edges.

EAP-IG's ``Graph`` holds one kind of model: ``input``, ``a0.h0``, ``m0``, ``logits``, one stream, and a query, key and
value reader for every query head. Its file:

    {"cfg":   {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": false, "d_model": 64},
     "nodes": {"input": {"in_graph": true}, "a0.h0": ...},
     "edges": {"input->a0.h0<q>": {"score": 0.5, "in_graph": true}, ...}}

Under grouped-query attention an edge into a key/value head is copied to every query head that shares it on the
way out, and the copies are required to agree on the way in: these tools cut them one by one, a wiring cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.names import Name, edge_name, find_edges, grouped, parse_edge, parse_name
from voltmeter.circuit.scores import Conditions, Scores, checked_edges
from voltmeter.errors import FormatError, counted
from voltmeter.files import parse_json, parse_object, read_bytes

_AGREE_RTOL = 1e-6  # copies of one float32 number that went through another tool's arithmetic of its own
_MOST_OBSTACLES = 12


class FileEdge(NamedTuple):
    """What a file says of one edge. ``score`` is None in files written before scoring."""

    kept: bool
    score: float | None


@dataclass(frozen=True)
class Layout:
    """A circuit laid out as EAP-IG's JSON, and the ``obstacles`` that keep EAP-IG from reading it, if any."""

    document: dict[str, Any]
    copies: dict[str, list[str]]
    """For each key/value head's reader that was copied, the query heads' readers in its place."""
    obstacles: tuple[str, ...]


# Writing


def layout(circuit: Circuit, feeds: Mapping[str, Sequence[str]], width: int | None) -> Layout:
    """``circuit`` as EAP-IG's JSON; where EAP-IG could not hold it, the same layout under our own names.

    Edges without scores are given 1 where kept and 0 elsewhere, so that tools that select by score select them.
    """
    copies: dict[str, list[str]] = {}
    for copy, reader in grouped(feeds).items():
        copies.setdefault(reader, []).append(copy)
    pairs = [parse_edge(edge) for edge in circuit.edges]
    obstacles = _obstacles(pairs, copies, width)
    if obstacles:  # then under our own names, where nothing needs to be copied
        copies = {}
    document = {
        "cfg": {} if obstacles else _config(pairs, width),
        "nodes": _nodes(circuit, feeds, pairs),
        "edges": _edges(circuit, pairs, copies),
    }
    return Layout(document, copies, obstacles)


def _edges(circuit: Circuit, pairs: list[tuple[str, str]], copies: Mapping[str, list[str]]) -> dict[str, Any]:
    kept = circuit.kept.tolist()
    scores = circuit.mask().tolist() if circuit.scores is None else circuit.scores.values.tolist()
    return {
        f"{writer}->{copy}": {"score": scores[i], "in_graph": kept[i]}
        for i, (writer, reader) in enumerate(pairs)
        for copy in copies.get(reader, [reader])
    }


def _nodes(circuit: Circuit, feeds: Mapping[str, Sequence[str]], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """A writer is in the graph if it is read, and reads or has nothing to read."""
    read = {writer for writer, _ in circuit}
    reading = {writer for _, reader in circuit for writer in feeds.get(reader, ())}
    fed = {writer for writers in feeds.values() for writer in writers}
    writers = dict.fromkeys(writer for writer, _ in pairs)
    nodes = {writer: {"in_graph": writer in read and (writer in reading or writer not in fed)} for writer in writers}
    return {**nodes, "logits": {"in_graph": True}} if any(reader == "logits" for _, reader in pairs) else nodes


def _config(pairs: list[tuple[str, str]], width: int | None) -> dict[str, Any]:
    writers = {parse_name(writer) for writer, _ in pairs}
    layers = [name.layer for name in writers if name.layer is not None]
    heads = [name.head for name in writers if name.head is not None]
    return {
        "n_layers": max(layers, default=-1) + 1,
        "n_heads": max(heads, default=-1) + 1,
        "parallel_attn_mlp": _is_parallel(pairs),
        "d_model": width,
    }


def _is_parallel(pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether no MLP reads the attention of its own block, though there are both."""
    ends = [(parse_name(writer), parse_name(reader)) for writer, reader in pairs]
    into_mlp = [(writer, reader) for writer, reader in ends if reader.kind == "mlp" and writer.kind == "attention"]
    both = any(reader.kind == "mlp" for _, reader in ends) and any(writer.kind == "attention" for writer, _ in ends)
    return both and not any(writer.layer == reader.layer for writer, reader in into_mlp)


def _obstacles(pairs: list[tuple[str, str]], copies: Mapping[str, list[str]], width: int | None) -> tuple[str, ...]:
    writers = dict.fromkeys(writer for writer, _ in pairs)
    readers = dict.fromkeys(reader for _, reader in pairs)
    found = [f"it has no writer {writer}" for writer in writers if not _is_their_writer(parse_name(writer))]
    found += [f"it has no reader {reader}" for reader in readers if not _is_their_reader(parse_name(reader), copies)]
    if not found:
        parallel = _is_parallel(pairs)
        found += [f"it has no edge {edge_name(*pair)}" for pair in pairs if not _is_their_edge(*pair, parallel)]
    if width is None:
        found.append("the width of the stream (d_model) was not given")
    return tuple(found[:_MOST_OBSTACLES])


def _is_their_writer(name: Name) -> bool:
    whole = name.part is None and name.slot is None
    return whole and (name.kind in ("input", "mlp") or (name.kind == "attention" and name.head is not None))


def _is_their_reader(name: Name, copies: Mapping[str, list[str]]) -> bool:
    match name.kind:
        case "attention":
            return name.head is not None and name.slot is not None
        case "key-value":
            return str(name) in copies and all(parse_name(copy).kind == "attention" for copy in copies[str(name)])
        case _:
            return name.kind in ("mlp", "logits")


def _is_their_edge(writer: str, reader: str, parallel: bool) -> bool:
    """Their graph is full: each reader reads every writer before it."""
    source, target = parse_name(writer), parse_name(reader)
    if source.layer is None or target.layer is None:
        return True  # from input, or to logits
    beside = source.kind == "attention" and target.kind == "mlp" and not parallel
    return source.layer < target.layer or (source.layer == target.layer and beside)


# Reading


def agreed(found: Mapping[str, Any], aliases: Mapping[str, str], where: str) -> dict[str, FileEdge]:
    """Edges of a file under a wiring's names, copies drawn together, in the order they stand in.

    Args:
        found: the file's ``edges``.
        aliases: for each copied reader, the reader it is a copy of.
        where: the file, for messages.

    Raises FormatError listing every edge whose copies do not agree on being kept, or in their scores.
    """
    edges: dict[str, FileEdge] = {}
    quarrels: list[str] = []
    for text, entry in found.items():
        writer, reader = parse_edge(text)
        name = edge_name(writer, aliases.get(reader, reader))
        edge = _file_edge(text, entry, where)
        if not _agree(edges.setdefault(name, edge), edge):
            quarrels.append(f"{name}: {text} says {_said(edge)}, another query head {_said(edges[name])}")
    if quarrels:
        raise FormatError(
            f"{where} treats the query heads of one key/value head differently, "
            f"in {counted(len(quarrels), 'edge', 'edges')}",
            quarrels,
            "a wiring reads keys and values once for each key/value head: make the copies agree",
        )
    return edges


def _file_edge(text: str, entry: Any, where: str) -> FileEdge:
    match entry:
        case {"in_graph": bool(kept), "score": None}:
            return FileEdge(kept, None)
        case {"in_graph": bool(kept), "score": float() | int() as score}:
            return FileEdge(kept, float(score))
    raise FormatError(
        f'{where}: the edge {text} is {entry!r}, {{"score": number, "in_graph": true or false}} was expected'
    )


def _agree(one: FileEdge, other: FileEdge) -> bool:
    if one.score is None or other.score is None:
        return one == other
    return one.kept == other.kept and math.isclose(one.score, other.score, rel_tol=_AGREE_RTOL, abs_tol=0.0)


def _said(edge: FileEdge) -> str:
    return f"{'kept' if edge.kept else 'cut'} with score {edge.score}"


def read_eap(
    path: Path | str,
    edges: Iterable[str | tuple[str, str]],
    feeds: Mapping[str, Sequence[str]],
    conditions: Conditions | None = None,
) -> Circuit:
    """The circuit in a JSON file of EAP-IG or MIB, as a circuit of a wiring.

    Args:
        path: the file, of either layout EAP-IG has had.
        edges: ``wiring.edges``.
        feeds: ``wiring.feeds``: which query heads share a key/value head.
        conditions: what the file does not tell; "unknown" by default.

    An edge of the file that the wiring lacks is passed over only if it is cut and scores 0 (an MLP their graph has
    and the model has not); ``how["passed_over"]`` counts them. Raises LoadError, FormatError, or AddressError
    listing every other such edge, and FormatError listing the edges of the wiring that the file lacks.
    """
    where = str(path)
    document = parse_object(read_bytes(path), where)
    missing = [key for key in ("cfg", "nodes", "edges") if not isinstance(document.get(key), dict)]
    if missing:
        raise FormatError(f"{where} is no circuit of EAP-IG or MIB", [f"it has no {key}" for key in missing])
    names = checked_edges(edges)
    found = agreed(document["edges"], grouped(feeds), where)
    blank = [name for name in found.keys() - set(names) if not found[name].kept and not found[name].score]
    find_edges([name for name in found if name not in blank], names)
    absent = [name for name in names if name not in found]
    if absent:
        raise FormatError(
            f"{where} lacks {counted(len(absent), 'edge', 'edges')} of this wiring",
            absent,
            "was it made for this model?",
        )
    kept = torch.tensor([found[name].kept for name in names], dtype=torch.bool)
    how = {"rule": "read", "format": "eap-ig", "passed_over": len(blank)}
    return Circuit(names, kept, _imported_scores(names, found, conditions, where), how)


def _imported_scores(
    names: tuple[str, ...], found: Mapping[str, FileEdge], conditions: Conditions | None, where: str
) -> Scores | None:
    values = [found[name].score for name in names]
    unscored = [name for name, value in zip(names, values, strict=True) if value is None]
    if len(unscored) == len(names):
        return None
    if unscored:
        raise FormatError(f"{where} scores some edges and not others", [f"{name} has no score" for name in unscored])
    return Scores(names, torch.tensor(values), "imported", conditions or Conditions.unknown(dtype="float32"))


def read_edge_list(
    path: Path | str, edges: Iterable[str | tuple[str, str]], feeds: Mapping[str, Sequence[str]]
) -> Circuit:
    """The circuit in an ACDC-style JSON list of [child, parent] pairs of TransformerLens hook names.

    Pairs stand the way ACDC has them, the reader first; heads follow in brackets, ``blocks.1.hook_q_input[:, :, 3]``.
    Our own names serve too. ACDC also lists steps inside a component (``attn.hook_q`` to ``attn.hook_result``),
    which are no edges: ``how["inside_components"]`` counts them. Raises LoadError, FormatError, or AddressError
    listing every pair that is no edge.
    """
    where = str(path)
    pairs = _pairs(read_bytes(path), where)
    names = checked_edges(edges)
    between = [(parent.replace(" ", ""), child.replace(" ", "")) for child, parent in pairs if not _is_inside(parent)]
    how = {"rule": "read", "format": "edge list", "inside_components": len(pairs) - len(between)}
    kept = torch.zeros(len(names), dtype=torch.bool)
    kept[find_edges(between, names, grouped(feeds))] = True
    return Circuit(names, kept, None, how)


def _pairs(data: bytes, where: str) -> list[tuple[str, str]]:
    document = parse_json(data, where)
    mend = 'expected [["hook of the reader", "hook of the writer"], ...]'
    if not isinstance(document, list):
        raise FormatError(f"{where} is no list of edges: it holds a {type(document).__name__}", mend=mend)
    bad = [f"item {i} is {item!r}" for i, item in enumerate(document) if not _is_pair(item)]
    if bad:
        raise FormatError(f"{where} is no list of edges", bad, mend)
    return [(child, parent) for child, parent in document]


def _is_pair(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(end, str) for end in item)


_INSIDE = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")


def _is_inside(parent: str) -> bool:
    """Whether a pair is one of ACDC's steps inside a component: its parent is then no writer's hook."""
    return parent.split("[")[0].endswith(_INSIDE)
