"""How nodes and edges are called.

    writers   input  input.tok  a3.h0  m2                    readers   a1.h0<q>  a1.kv0<k>  m2  logits
    edges     a0.h3 -> a1.h6<k>                              others    module paths: layers.0.mixer

``a3.h0`` is head 0 of block 3, ``kv0`` a key/value head under grouped-query attention, ``m2`` the MLP of block
2. TransformerLens hook names (``blocks.3.attn.hook_result[0]``) are understood wherever a name is asked for.
Names say what a thing is called, never what it is connected to: that is the wiring's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from voltmeter.errors import AddressError, counted, nearest

ARROW = " -> "

Kind = Literal["input", "attention", "key-value", "mlp", "logits", "path"]
Slot = Literal["q", "k", "v"]

_COMPACT = re.compile(
    r"""(?P<input>input)(\.(?P<part>\w+))?
      | a(?P<attention>\d+)(\.(h(?P<head>\d+)|kv(?P<group>\d+)))?(<(?P<slot>[qkv])>)?
      | m(?P<mlp>\d+)
      | (?P<logits>logits)""",
    re.VERBOSE,
)
_SHAPE = "'writer -> reader', such as 'a0.h3 -> a1.h6<k>'"


@dataclass(frozen=True)
class Name:
    """A node's name taken apart. What a name does not have is None; ``str`` puts it together again."""

    kind: Kind
    layer: int | None = None
    head: int | None = None
    """The head's index, or the key/value head's where ``kind`` is "key-value"."""
    slot: Slot | None = None
    part: str | None = None
    """What ``input`` was split into (``tok``, ``pos``), or the module path where ``kind`` is "path"."""

    def __str__(self) -> str:
        match self.kind:
            case "input":
                return "input" if self.part is None else f"input.{self.part}"
            case "attention" | "key-value":
                letter = "h" if self.kind == "attention" else "kv"
                head = "" if self.head is None else f".{letter}{self.head}"
                slot = "" if self.slot is None else f"<{self.slot}>"
                return f"a{self.layer}{head}{slot}"
            case "mlp":
                return f"m{self.layer}"
            case "logits":
                return "logits"
            case "path":
                return self.part or ""

    @property
    def depth(self) -> tuple[float, int, float, str]:
        """A key that sorts by depth: input, then block by block (attention before MLP), then logits.

        A module path is put in the block its first whole number names, in alphabetical order.
        """
        rank = {"input": 0, "attention": 1, "key-value": 1, "mlp": 2, "path": 3, "logits": 4}[self.kind]
        layer = {"input": -1.0, "logits": float("inf")}.get(self.kind, self._block())
        head = -1.0 if self.head is None else float(self.head)
        return layer, rank, head, str(self)

    def _block(self) -> float:
        if self.layer is not None:
            return float(self.layer)
        number = re.search(r"\d+", self.part or "")
        return float(number.group()) if number else -0.5


@lru_cache(maxsize=65536)
def parse_name(text: str) -> Name:
    """The name in ``text``; whatever is none of ours is a module path. Raises AddressError if it can be neither."""
    if not text or "->" in text or "→" in text or re.search(r"\s", text):
        raise AddressError(
            f"{text!r} is not a name of a node", mend="give one without spaces or arrows: a3.h0, m2, logits"
        )
    match = _COMPACT.fullmatch(text)
    name = _from_match(match) if match else None
    # a name that would print otherwise (m02) is somebody's module path
    return name if name is not None and str(name) == text else Name("path", part=text)


def _from_match(match: re.Match[str]) -> Name:
    found = match.groupdict()
    if found["input"]:
        return Name("input", part=found["part"])
    if found["mlp"]:
        return Name("mlp", layer=int(found["mlp"]))
    if found["logits"]:
        return Name("logits")
    kind: Kind = "attention" if found["group"] is None else "key-value"
    head = found["head"] if found["group"] is None else found["group"]
    slots: dict[str | None, Slot | None] = {"q": "q", "k": "k", "v": "v", None: None}
    return Name(kind, int(found["attention"]), None if head is None else int(head), slots[found["slot"]])


def parse_edge(text: str) -> tuple[str, str]:
    """(writer, reader) of ``writer -> reader``; ``->`` and ``→`` both serve. Raises AddressError."""
    sides = re.split(r"\s*(?:->|→)\s*", text.strip())
    if len(sides) != 2 or not all(sides):
        raise AddressError(f"{text!r} is not the name of an edge", mend=f"write {_SHAPE}")
    writer, reader = sides
    return str(parse_name(writer)), str(parse_name(reader))


def edge_name(writer: str, reader: str) -> str:
    """The one way an edge is printed."""
    return f"{writer}{ARROW}{reader}"


def edge_names(edges: Iterable[str | tuple[str, str]]) -> tuple[str, ...]:
    """Edges given as text or as (writer, reader) pairs, printed the one way. Raises AddressError."""
    return tuple(edge_name(*(parse_edge(edge) if isinstance(edge, str) else edge)) for edge in edges)


# TransformerLens hook names


_HOOK = re.compile(r"(?P<hook>[\w.]*hook_\w+)(?P<index>\[.*\])?")
_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def is_hook(text: str) -> bool:
    """Whether ``text`` looks like a TransformerLens hook name, with or without ``[head]`` behind it."""
    return _HOOK.fullmatch(text) is not None


def from_hook(text: str, head: int | None = None) -> str:
    """Our name for a TransformerLens hook: ``blocks.3.attn.hook_z[1]`` is ``a3.h1``.

    The head stands in brackets, alone or as the last of an index (``[:, :, 1]``), or in ``head``. Raises
    AddressError for a hook that is no writer or reader, and for a hook of heads without a head.
    """
    match = _HOOK.fullmatch(text)
    if match is None:
        raise AddressError(f"{text!r} is not a TransformerLens hook name")
    hook, head = match["hook"], _head_of(match["index"]) if head is None else head
    block = _IN_BLOCK.fullmatch(hook)
    name = _outside_blocks(hook) if block is None else _in_block(int(block[1]), block[2], head)
    if name is None:
        raise AddressError(
            f"the hook {text!r} is neither a writer nor a reader",
            mend="writers: hook_embed, attn.hook_z[head], hook_mlp_out; readers: hook_q_input[head], hook_mlp_in",
        )
    if name.kind == "attention" and name.head is None and not hook.endswith("hook_attn_out"):
        raise AddressError(f"the hook {text!r} holds every head of its block", mend=f"say which one: {hook}[0]")
    return str(name)


def _head_of(index: str | None) -> int | None:
    number = re.search(r"(\d+)\s*\]$", index or "")
    return int(number[1]) if number else None


def _outside_blocks(hook: str) -> Name | None:
    return {"hook_embed": Name("input"), "hook_pos_embed": Name("input", part="pos")}.get(hook)


def _in_block(layer: int, hook: str, head: int | None) -> Name | None:
    if hook == "hook_resid_pre" and layer == 0:
        return Name("input")
    if hook in ("hook_mlp_in", "hook_mlp_out", "hook_resid_mid"):
        return Name("mlp", layer)
    if hook in ("attn.hook_z", "attn.hook_result", "hook_attn_out"):
        return Name("attention", layer, head)
    slots: dict[str, Slot] = {"hook_q_input": "q", "hook_k_input": "k", "hook_v_input": "v"}
    return Name("attention", layer, head, slots[hook]) if hook in slots else None


_READING = ("hook_mlp_in", "hook_resid_mid", "hook_q_input", "hook_k_input", "hook_v_input")


# Finding edges by name


def grouped(feeds: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For every query head's reader that a key/value head's reader stands for, that reader.

    ``{"a1.kv0<k>": ("a1.h0", "a1.h1")}`` gives ``{"a1.h0<k>": "a1.kv0<k>", "a1.h1<k>": "a1.kv0<k>"}``.
    """
    return {
        f"{head}<{parse_name(reader).slot}>": reader
        for reader, heads in feeds.items()
        if parse_name(reader).kind == "key-value"
        for head in heads
    }


def find_edges(
    names: Iterable[str | tuple[str, str]],
    edges: tuple[str, ...],
    aliases: Mapping[str, str] | None = None,
) -> list[int]:
    """Where each of ``names`` stands in ``edges``. Cost: one pass over ``edges`` the first time, then over ``names``.

    Args:
        names: edges as text or pairs; either end may be a TransformerLens hook name.
        edges: printed edges, in wiring order.
        aliases: other names of nodes (see ``grouped``).

    Raises AddressError listing every name that is no edge, with what is nearest to it.
    """
    place = _places(edges)
    others = {**_hooks_of_ends(edges), **(aliases or {})}
    found: list[int] = []
    misses: list[str] = []
    for name in names:
        try:
            writer, reader = _ends(name)
            edge = edge_name(writer, reader)
            if edge not in place:
                writer, reader = _translate(writer, others, "writer"), _translate(reader, others, "reader")
                edge = edge_name(writer, reader)
        except AddressError as error:
            misses.append(error.problem)
            continue
        if edge in place:
            found.append(place[edge])
        else:
            misses.append(_why_missing(writer, reader, edges) if len(misses) < _MOST_EXPLAINED else edge)
    if misses:
        what = counted(len(misses), "name is", "names are")
        raise AddressError(f"{what} no edge of this wiring", misses, f"write {_SHAPE}; wiring.edges lists them all")
    return found


_MOST_EXPLAINED = 12  # looking for the nearest name is slow, and no message shows more lines


def _ends(name: str | tuple[str, str]) -> tuple[str, str]:
    if not isinstance(name, str):
        return name[0], name[1]
    return parse_edge(re.sub(r"\[[^\]]*\]", lambda index: index[0].replace(" ", ""), name))


def _translate(end: str, others: Mapping[str, str], side: Literal["writer", "reader"]) -> str:
    if end not in others and is_hook(end):
        name, reads = from_hook(end), end.split("[")[0].endswith(_READING)
        if reads != (side == "reader"):  # m2 is a writer and a reader, but hook_mlp_out is only where it writes
            raise AddressError(f"the hook {end!r} is where {name} {'reads' if reads else 'writes'}, and is no {side}")
        end = name
    return others.get(end, end)


@lru_cache(maxsize=8)
def _hooks_of_ends(edges: tuple[str, ...]) -> Mapping[str, str]:
    """The two hooks whose meaning depends on the wiring: the token embedding, and the stream's last state."""
    writers, readers = _sides(edges)
    layers = [layer for layer in (parse_name(writer).layer for writer in writers) if layer is not None]
    others = {f"blocks.{max(layers)}.hook_resid_post": "logits"} if layers and "logits" in readers else {}
    return {**others, "hook_embed": "input.tok"} if "input.tok" in writers else others


@lru_cache(maxsize=8)
def _places(edges: tuple[str, ...]) -> Mapping[str, int]:
    return {edge: i for i, edge in enumerate(edges)}


@lru_cache(maxsize=8)
def _sides(edges: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    writers, readers = (tuple(dict.fromkeys(edge.split(ARROW)[side] for edge in edges)) for side in (0, 1))
    return writers, readers


def _why_missing(writer: str, reader: str, edges: tuple[str, ...]) -> str:
    writers, readers = _sides(edges)
    reasons = []
    if writer not in writers:
        reasons.append(f"no writer is called {writer}, {nearest(writer, writers)}")
    if reader not in readers:
        reasons.append(f"no reader is called {reader}, {nearest(reader, readers)}")
    return f"{edge_name(writer, reader)}: " + ("; ".join(reasons) or f"{reader} does not read {writer}")
