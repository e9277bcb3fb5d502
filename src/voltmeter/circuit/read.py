"""Anyone's circuit: a file in one of four formats, told apart by what is in it.

our own circuit.json            {"kind": "circuit", ...}
EAP-IG, MIB                     {"cfg": ..., "nodes": ..., "edges": ...}
a list of edges                 ACDC's JSON, [["hook of the reader", "hook of the writer"], ...], or our own names,
                                ["a0.h3 -> a1.h6<k>", ...], as text one to a line
a list of heads from a paper    ["9.9", "L10H0"], [[9, 9], [10, 0]], {"name movers": [...]}, or text (``heads.py``)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.formats import circuit_from
from voltmeter.circuit.heads import circuit_of_heads, nodes_in
from voltmeter.circuit.names import find_edges, grouped
from voltmeter.circuit.peers import read_eap, read_edge_list
from voltmeter.circuit.scores import checked_edges
from voltmeter.errors import CircuitError, FormatError
from voltmeter.files import parse_json, read_bytes

_FORMATS = (
    "our own circuit.json",
    'JSON of EAP-IG or MIB: {"cfg": ..., "nodes": ..., "edges": ...}',
    'a list of edges: [["blocks.1.hook_q_input[3]", "blocks.0.attn.hook_z[1]"], ...], or a0.h1 -> a1.h3<q> a line',
    'a list of heads: ["9.9", "10.0"], {"name movers": [[9, 9], [10, 0]]}, or 9.9, a9.h9, L9H9, m0 a line',
)


def read_circuit(
    path: Path | str, edges: Iterable[str | tuple[str, str]], feeds: Mapping[str, Sequence[str]]
) -> Circuit:
    """The circuit in a file, as a circuit of a wiring; ``how["format"]`` says what the file was taken for.

    Args:
        path: the file.
        edges: ``wiring.edges``.
        feeds: ``wiring.feeds``.

    Raises LoadError where there is none, FormatError where it is damaged or in no known format, CircuitError or
    AddressError where it is of another model, listing what that one has and this one has not.
    """
    where, names = str(path), checked_edges(edges)
    data = read_bytes(path)
    text = _text(data, where)
    if not text.lstrip().startswith(("{", "[")):
        return _listed([line for line in map(_without_comment, text.splitlines()) if line], names, feeds, where)
    document = parse_json(data, where)
    match document:
        case {"kind": _}:
            return _own(circuit_from(data, where), names, where)
        case {"cfg": _, "nodes": _, "edges": _}:
            return read_eap(path, names, feeds)
        case dict() if document and all(isinstance(group, list) for group in document.values()):
            return circuit_of_heads(nodes_in([x for g in document.values() for x in g], where), names, feeds, where)
        case [[str(), str()], *_]:
            return read_edge_list(path, names, feeds)
        case list():
            return _listed(document, names, feeds, where)
    raise _unknown(where, f"it holds {_shown(document)}")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unknown(where, "it is not UTF-8 text") from error


def _without_comment(line: str) -> str:
    return line.partition("#")[0].strip().rstrip(",")


def _listed(items: Sequence[Any], names: tuple[str, ...], feeds: Mapping[str, Sequence[str]], where: str) -> Circuit:
    """A list of edges if one of its items has an arrow, else of heads."""
    if not any(isinstance(item, str) and ("->" in item or "→" in item) for item in items):
        try:
            return circuit_of_heads(nodes_in(items, where), names, feeds, where)
        except FormatError as error:
            raise _unknown(where, *error.details, *([] if error.details else [error.problem])) from error
    bad = [f"item {number} is {item!r}, and others are edges" for number, item in enumerate(items, start=1)
           if not isinstance(item, str)]  # fmt: skip
    if bad:
        raise FormatError(f"{where} is no list of edges", bad, "write every edge as 'a0.h1 -> a1.h3<q>'")
    kept = torch.zeros(len(names), dtype=torch.bool)
    kept[find_edges(items, names, grouped(feeds))] = True
    return Circuit(names, kept, None, {"rule": "read", "format": "edge list"})


def _own(circuit: Circuit, names: tuple[str, ...], where: str) -> Circuit:
    if circuit.edges == names:
        return circuit
    theirs, ours = set(circuit.edges), set(names)
    only = [f"only the file has {edge}" for edge in circuit.edges if edge not in ours]
    only += [f"only the model has {edge}" for edge in names if edge not in theirs]
    raise CircuitError(
        f"{where} is a circuit of another wiring",
        [f"it has {len(theirs):,} edges to choose from, the model {len(ours):,}", *(only or ["in another order"])],
        "give the model it was found in, split and merged as it was then (--split, --merge)",
    )


def _unknown(where: str, *why: str) -> FormatError:
    return FormatError(f"{where} is a circuit in no format known here", [*why[:6], "known:", *_FORMATS])


def _shown(document: Any) -> str:
    text = json.dumps(document)
    return text if len(text) <= 60 else f"{text[:60]}…"
