"""Circuits as papers print them: a list of attention heads.

    9.9   a9.h9   L9H9   9.h9   [9, 9]     head 9 of block 9
    m0    mlp 0                            the MLP of block 0
    10.0  # a name mover                   in a text, one to a line; what follows # is passed over

As JSON a list of these, or an object of such lists by what the heads do ({"name movers": [[9, 9], [10, 0]]}).

A list of heads says which nodes are kept, and a circuit which edges. What papers do is meant: every head that is not
listed is knocked out, and nothing else. So an edge is kept if neither of its ends is a head (or key/value head) that is
not listed: embeddings, output, and whatever else writes or reads, stay whole. MLPs stay too where the list names none;
where it names some, those it names and no others do. All edges out of a head that is left out are cut, so that readers
see its fill and no more of it, as in a knock-out of the node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.names import Name, parse_edge, parse_name
from voltmeter.circuit.scores import checked_edges
from voltmeter.errors import AddressError, FormatError, nearest

_HEAD = re.compile(r"[aL]?(\d+)\s*[.,]\s*h?(\d+)|[aL](\d+)\s*h(\d+)", re.IGNORECASE)
_MLP = re.compile(r"(?:m|mlp)\s*(\d+)", re.IGNORECASE)
_IS_MLP = re.compile(r"m(\d+)(?:\..+)?")  # or a part of one
_EXPECTED = "write a head as 9.9, a9.h9 or L9H9, an MLP as m0"


def node_named(text: str) -> str | None:
    """``a9.h9`` or ``m0``, whichever way it is written; None for what is neither."""
    head = _HEAD.fullmatch(text.strip().strip("()").strip())
    if head is not None:
        layer, number = (int(digits) for digits in head.groups() if digits is not None)
        return f"a{layer}.h{number}"
    mlp = _MLP.fullmatch(text.strip())
    return None if mlp is None else f"m{int(mlp[1])}"


def nodes_in(items: Iterable[Any], where: str) -> list[str]:
    """The nodes that the items of a list name. Raises FormatError listing every item that names none."""
    nodes, bad = [], []
    for number, item in enumerate(items, start=1):
        match item:
            case str():
                node = node_named(item)
            case [int(layer), int(head)] if layer >= 0 and head >= 0 and not isinstance(layer, bool):
                node = f"a{layer}.h{head}"
            case _:
                node = None
        if node is None:
            number_written = " (9.1 may be head 1 or head 10: write it as text)" if isinstance(item, float) else ""
            bad.append(f"item {number} is {item!r}{number_written}")
        else:
            nodes.append(node)
    if bad:
        raise FormatError(f"{where} is no list of heads", bad, _EXPECTED)
    return nodes


def circuit_of_heads(
    nodes: Sequence[str], edges: Iterable[str | tuple[str, str]], feeds: Mapping[str, Sequence[str]], where: str
) -> Circuit:
    """The circuit that a list of heads, and perhaps MLPs, means (see the module).

    Args:
        nodes: as ``nodes_in`` gives them.
        edges: ``wiring.edges``.
        feeds: ``wiring.feeds``: which query heads share a key/value head, which is kept if one of them is.
        where: the file, for messages.

    ``how`` says which nodes were listed and what became of the MLPs. Raises FormatError for a list without nodes,
    AddressError listing every node that the wiring lacks, or every block whose attention is not divided into heads.
    """
    if not nodes:
        raise FormatError(f"{where} lists no heads", mend=_EXPECTED)
    names = checked_edges(edges)
    pairs = [parse_edge(edge) for edge in names]
    _require_heads(pairs, where)
    known = {node for pair in pairs for end in pair for node in _nodes_of(parse_name(end), feeds)}
    unknown = [node for node in dict.fromkeys(nodes) if node not in known]
    if unknown:
        what = "1 node of it is" if len(unknown) == 1 else f"{len(unknown)} nodes of it are"
        misses = [f"{node}: {nearest(node, sorted(known))}" for node in unknown]
        raise AddressError(
            f"{where} is of another model: {what} not in this one", misses, "was it made for this model?"
        )
    listed = frozenset(nodes)
    all_mlps = not any(_MLP.fullmatch(node) for node in listed)

    def stays(end: str) -> bool:
        own = _nodes_of(parse_name(end), feeds)
        if not own or (all_mlps and _IS_MLP.fullmatch(own[0])):
            return True
        return any(node in listed for node in own)

    ends = {end: stays(end) for pair in pairs for end in pair}
    kept = torch.tensor([ends[writer] and ends[reader] for writer, reader in pairs], dtype=torch.bool)
    mlps = "all kept, as the list names none" if all_mlps else "those listed are kept"
    if not any(_MLP.fullmatch(node) for node in known):
        mlps = "the model has none"
    how = {"rule": "read", "format": "list of heads", "nodes": sorted(listed, key=_depth), "mlps": mlps}
    return Circuit(names, kept, None, {**how, "others": "embeddings, output and all that is neither head nor MLP kept"})


def _require_heads(pairs: Iterable[tuple[str, str]], where: str) -> None:
    """Where a block's attention is one component, no head of it can be left out."""
    ends = dict.fromkeys(parse_name(end) for pair in pairs for end in pair)
    whole = dict.fromkeys(f"a{name.layer}" for name in ends if name.kind == "attention" and name.head is None)
    if whole:
        raise AddressError(
            f"{where} lists heads, and not all attention of this model is divided into heads",
            [f"{block} is one component" for block in whole],
            f"--split {next(iter(whole))}=heads, for each of them",
        )


def _nodes_of(name: Name, feeds: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The heads, or the MLP, that a name belongs to; none where it is of something else."""
    if name.kind == "attention" and name.head is not None:
        return (f"a{name.layer}.h{name.head}",)
    if name.kind == "key-value":
        return tuple(feeds.get(str(name), ()))
    mlp = _IS_MLP.fullmatch(str(name))
    return () if mlp is None else (f"m{mlp[1]}",)


def _depth(node: str) -> tuple[float, int, float, str]:
    return parse_name(node).depth
