"""``voltmeter wire``: what a model is made of, on one screen."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from voltmeter.circuit.names import parse_name
from voltmeter.cli.examples import example_for
from voltmeter.cli.options import dtype_named
from voltmeter.cli.screen import Screen, count, tiny
from voltmeter.cli.subject import show_wiring
from voltmeter.errors import AddressError, nearest
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.wired import wiring_of
from voltmeter.wiring.load import LoadedModel, load_model
from voltmeter.wiring.wire import wire as wire_model
from voltmeter.wiring.wiring import Wiring

_STREAMS, _LINES = 4, 4  # on one screen: streams, and lines of names in each list


@dataclass(frozen=True)
class View:
    """Which wiring of a model, and what of it to show."""

    node: str | None = None
    split: tuple[str, ...] = ()
    merge: tuple[str, ...] = ()
    declare: tuple[str, ...] = ()
    inputs: Path | None = None
    every: bool = False


def wire(spec: str, view: View, dtype: str | None, as_json: bool) -> None:
    """Loads, wires, divides, and prints. Raises LoadError, WiringError, AddressError."""
    splits = [_assignment(text) for text in view.split]
    loaded = load_model(spec, dtype=dtype_named(dtype))
    wiring = _wired(loaded, view)
    for name, into in splits:
        wiring = wiring.split(name, into)
    for name in view.merge:
        wiring = wiring.merge(name)
    screen = Screen.open(stdout_is_a_document=as_json)
    if view.node is not None:
        _show_node(screen, wiring, view, spec)
    elif not as_json:
        _show(screen, wiring, view.every, spec)
    if as_json:
        screen.document(document(wiring))


def document(wiring: Wiring) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "streams": [
            {"name": each.name, "writers": list(each.writers), "readers": list(each.readers)} for each in wiring.streams
        ],
        "n_writers": len(wiring.writers),
        "n_readers": len(wiring.readers),
        "n_edges": len(wiring.edges),
        "verified": asdict(wiring.verified),
    }


def _wired(loaded: LoadedModel, view: View) -> Wiring:
    if isinstance(loaded.origin, Compiled) and view.inputs is None:
        return wiring_of(loaded.origin).wiring  # with the input split, as in its truth
    return wire_model(loaded.model, example_for(loaded, view.inputs), declare=view.declare)


def _assignment(text: str) -> tuple[str, str]:
    name, _, into = text.partition("=")
    return name.strip(), into.strip() or "parts"


# On one screen


def _show(screen: Screen, wiring: Wiring, every: bool, spec: str) -> None:
    verified = wiring.verified
    show_wiring(screen, wiring)
    screen.line(
        "verified",
        f"writers add up to their stream to {tiny(verified.sum_error)} · everything kept is the plain model to "
        f"{tiny(verified.law1_error)} (law 1) · nothing kept is the other run to {tiny(verified.law2_error)} (law 2)",
    )
    if wiring.rows.mixed:
        screen.line("rows", f"not each for itself, so circuits are run one at a time: {wiring.rows.mixed}")
    n_edges = _edges_by_stream(wiring)
    streams = wiring.streams if every else wiring.streams[:_STREAMS]
    hidden = len(wiring.streams) - len(streams) > 0
    for number, stream in enumerate(streams):
        screen.gap()
        counts = f"{len(stream.writers):,} writers, {len(stream.readers):,} readers, {n_edges[number]:,} edges"
        screen.line("stream", f"{stream.name} · {counts}")
        for label, names in (("writers", stream.writers), ("readers", stream.readers)):
            hidden |= _show_names(screen, label, names, every)
    if len(streams) < len(wiring.streams):
        screen.gap()
        screen.line("", f"… {count(len(wiring.streams) - len(streams), 'more stream', 'more streams')}")
    if hidden or not every:
        screen.gap()
        screen.line("next", f"every name: voltmeter wire {shlex.quote(spec)} --all; one of them: --node NAME")


def _show_names(screen: Screen, label: str, names: Sequence[str], every: bool) -> bool:
    """Prints names, in short unless all were asked for; whether some were left out."""
    text = ", ".join(names if every else shortened(names))
    lines = screen.folded(text)
    if every or len(lines) <= _LINES:
        screen.line(label, text)
        return False
    kept = lines[: _LINES - 1]
    shown = sum(_count(name) for line in kept for name in line.split(", "))
    screen.line(label, " ".join(kept))
    screen.line("", f"… {len(names) - shown:,} more")
    return True


def _edges_by_stream(wiring: Wiring) -> list[int]:
    stream_of = {reader.number: reader.stream for reader in wiring.readers}
    counts = [0] * len(wiring.streams)
    for reader in wiring.edges.reader_numbers.tolist():
        counts[stream_of[reader]] += 1
    return counts


_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")


def shortened(names: Iterable[str]) -> list[str]:
    """Names whose last numbers follow each other as one: a0.h0, a0.h1, a0.h2 is a0.h0-2."""
    return [_run(list(group)) for _, group in groupby(_keyed(names), key=lambda each: each[0])]


def _keyed(names: Iterable[str]) -> Iterator[tuple[tuple[str, str, int] | str, str]]:
    """Each name with what it has in common with the next of a run: its text, and its number less its place."""
    for place, name in enumerate(names):
        match = _NUMBERED.fullmatch(name)
        yield ((match[1], match[3], int(match[2]) - place) if match else name), name


def _run(group: list[tuple[Any, str]]) -> str:
    first, last = group[0][1], group[-1][1]
    match = _NUMBERED.fullmatch(last)
    if first == last or match is None:
        return first
    return f"{first[: len(first) - len(match[3])]}-{match[2]}{match[3]}"


def _count(short: str) -> int:
    """How many names a shortened one stands for."""
    run = re.search(r"(\d+)-(\d+)\D*$", short)
    return int(run[2]) - int(run[1]) + 1 if run else bool(short)


# One node or edge


def _show_node(screen: Screen, wiring: Wiring, view: View, spec: str) -> None:
    name = view.node or ""
    if "->" in name or "→" in name:
        writer, reader = wiring.edges[wiring.edges.find(name)]
        screen.line("edge", f"{writer} -> {reader} · number {wiring.edges.find(name):,} of {len(wiring.edges):,}")
        return
    writers = {node.name: node for node in wiring.writers}
    readers = {node.name: node for node in wiring.readers}
    if name not in writers and name not in readers:
        raise _unknown(name, [*writers, *readers], spec)
    if name in writers:
        stream = wiring.streams[writers[name].stream]
        screen.line("writer", f"{name} · {writers[name].kind} · {writers[name].module or 'the model'} · {stream.name}")
        into = [edge.reader for edge in wiring.edges if edge.writer == name]
        screen.line("read by", ", ".join(into if view.every else shortened(into)) or "nothing")
    if name in readers:
        stream = wiring.streams[readers[name].stream]
        screen.line("reader", f"{name} · {readers[name].kind} · {readers[name].module or 'the model'} · {stream.name}")
        out_of = [edge.writer for edge in wiring.edges if edge.reader == name]
        screen.line("reads", ", ".join(out_of if view.every else shortened(out_of)))
        screen.line("feeds", ", ".join(readers[name].feeds) or "the output")


def _unknown(name: str, known: Sequence[str], spec: str) -> AddressError:
    return AddressError(
        f"no reader or writer is called '{name}'",
        [f"{_extent(known)}{nearest(name, list(dict.fromkeys(known)))}"],
        f"list them all with: voltmeter wire {shlex.quote(spec)} --all",
    )


def _extent(names: Sequence[str]) -> str:
    """ "this model has layers 0-4 and heads 0-7; ", where its names tell."""
    parsed = [parse_name(name) for name in names]
    layers = {name.layer for name in parsed if name.layer is not None}
    heads = {name.head for name in parsed if name.kind == "attention" and name.head is not None}
    if not layers or not heads:
        return ""
    return f"this model has layers 0-{max(layers)} and heads 0-{max(heads)}; "
