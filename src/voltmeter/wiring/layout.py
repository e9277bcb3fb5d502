"""From a survey to writers and readers: which components there are, what they are called, how they divide."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from voltmeter.errors import AddressError, nearest
from voltmeter.wiring import plain
from voltmeter.wiring.heads import ROLES, find_heads
from voltmeter.wiring.naming import (
    component_names,
    component_path,
    leaf_path,
    main_stream,
    passes_on,
    stream_names,
    which_reading,
)
from voltmeter.wiring.parts import Division, ReadSplit, find_units
from voltmeter.wiring.planner import ReaderWish, Split, WriterWish
from voltmeter.wiring.streams import Component, Survey
from voltmeter.wiring.sums import is_bias

WHOLE = "whole"


@dataclass(frozen=True)
class WriterRow:
    """A writer (or its parts) before numbering: names, and what the Wiring says of them."""

    wish: WriterWish
    component: str
    stream: int
    module: str
    kind: str
    linearised: bool = False


@dataclass(frozen=True)
class ReaderRow:
    """The readers of one component before numbering; ``kinds`` and ``feeds`` one per name."""

    wish: ReaderWish
    component: str
    module: str
    kinds: tuple[str, ...]
    feeds: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Layout:
    """All rows, in the order in which the model computes them."""

    survey: Survey
    writers: tuple[WriterRow, ...]
    readers: tuple[ReaderRow, ...]
    streams: tuple[str, ...]


def lay_out(survey: Survey, divisions: Mapping[str, str]) -> Layout:
    """Name and divide. ``divisions`` maps names of components to "whole", "parts", "heads", "units", ...

    Components that are not named are divided as ``Wiring`` says. Raises AddressError for a name that is no
    component's, and for a division it cannot have.
    """
    return _Desk(survey, divisions).layout()


class _Desk:
    """Where one layout is put together."""

    def __init__(self, survey: Survey, divisions: Mapping[str, str]) -> None:
        self.survey, self.divisions = survey, divisions
        self.heads = {n: h for n, c in enumerate(survey.components) if (h := find_heads(survey, c)) is not None}
        self.names = component_names(survey, set(self.heads))
        self.main = main_stream(survey)
        self.streams = stream_names(survey, self.main)
        self.which = which_reading(survey, self.names, self.streams)
        self.small = plain.small_streams(survey) if survey.plain else [False] * len(survey.streams)
        self.begins = list(_outside(survey))
        self.inputs = self._input_names()
        self.writers: list[WriterRow] = []
        self.readers: list[ReaderRow] = []
        self.written: dict[int, tuple[str, ...]] = {}  # leaf -> the names of its writers

    def layout(self) -> Layout:
        self._refuse_unknown()
        for stream, (begins, later) in enumerate(self.begins):
            self._add_input(stream, begins)
            self._add_later(stream, later)
        for number, component in enumerate(self.survey.components):
            self._add_component(number, component)
        order = sorted(self.writers, key=self._written_at)
        return Layout(self.survey, tuple(order), tuple(self.readers), tuple(self.streams))

    def _refuse_unknown(self) -> None:
        known = list(dict.fromkeys([*self.inputs.values(), *self.names]))
        unknown = [name for name in self.divisions if name not in known]
        if unknown:
            raise AddressError(
                f"no component is called {', '.join(repr(name) for name in unknown)}",
                [f"'{name}': {nearest(name, known)}" for name in unknown],
                "list them with wiring.components",
            )

    def _written_at(self, row: WriterRow) -> int:
        ops = [self.survey.recording.values[leaf].op for leaf in row.wish.leaves]
        return max(-1 if op is None else op for op in ops)

    def _write(self, row: WriterRow) -> None:
        self.writers.append(row)
        self.written.update(dict.fromkeys(row.wish.leaves, row.wish.names))

    # what begins a stream ---------------------------------------------------------------------------------

    def _input_names(self) -> dict[int, str]:
        """Stream -> the name of what begins it; ``input`` alone when only one stream begins so."""
        streams = [number for number, (begins, _) in enumerate(self.begins) if begins]
        alone = len(streams) == 1
        return {s: "input" if alone or s == self.main else f"{self.streams[s]}.input" for s in streams}

    def _add_input(self, stream: int, begins: Sequence[int]) -> None:
        if not begins:
            return
        survey, name = self.survey, self.inputs[stream]
        natural = plain.kind_of(survey, begins[0]) if survey.plain else "channels"
        wanted = self.divisions.get(name, natural if self.small[stream] else WHOLE)
        if wanted == "parts" and len(begins) > 1:
            for leaf, part in zip(begins, _input_parts(survey, begins), strict=True):
                wish = WriterWish((leaf,), (f"{name}.{part}",))
                self._write(WriterRow(wish, name, stream, leaf_path(survey, leaf), "input"))
            return
        ways = ("parts",) if len(begins) > 1 else ()
        wish = self._along(tuple(begins), name, name, wanted, (*ways, natural, "positions"))
        self._write(WriterRow(wish, name, stream, leaf_path(survey, begins[0]), "input"))

    def _add_later(self, stream: int, later: Sequence[int]) -> None:
        """What no component computes, added after something was read: a second embedding, an outer tensor."""
        for leaf in later:
            path = leaf_path(self.survey, leaf) or f"{self.streams[stream]}.added"
            self._write(WriterRow(WriterWish((leaf,), (path,)), path, stream, path, "input"))

    def _along(
        self, leaves: tuple[int, ...], component: str, name: str, wanted: str, ways: Sequence[str]
    ) -> WriterWish:
        """A writer that is one, or divided along an axis of its own output."""
        if wanted == WHOLE:
            return WriterWish(leaves, (name,))
        stream = self.survey.stream_of[leaves[0]]
        found = plain.divided_axis(self.survey, stream, wanted)
        if found is None or wanted not in ways:
            raise AddressError(
                f"'{component}' cannot be divided into {wanted}",
                [f"it can be: {', '.join(ways)}, {WHOLE}"],
                f'for example wiring.split("{component}", "{ways[0]}"), or --split {component}={ways[0]}',
            )
        axis, count = found
        return WriterWish(leaves, plain.numbered(name, wanted, count), axis=axis)

    # components -------------------------------------------------------------------------------------------

    def _add_component(self, number: int, component: Component) -> None:
        name, which, heads = self.names[number], self.which[number], self.heads.get(number)
        wanted = self.divisions.get(name)
        if self.survey.plain and wanted in (None, "parts", "units", "channels"):
            self._add_layer(name, which, component, asked=wanted is not None)
        elif heads is not None and wanted in (None, "parts", "heads"):
            self._add_heads(name, component, heads)
        elif heads is None and wanted in ("parts", "units") and component.feeds:
            self._add_units(name, which, component)
        else:
            ways = ("heads",) if heads is not None else ("units",)
            self._add_block(name, which, component, wanted or WHOLE, ways)

    def _add_block(self, name: str, which: str, component: Component, wanted: str, ways: tuple[str, ...]) -> None:
        """One reader; one writer for each addend, whole or divided along an axis."""
        survey = self.survey
        ways = (*ways, "channels", "positions") if component.feeds else ()
        if wanted != WHOLE and not component.feeds:
            raise AddressError(
                f"'{name}' cannot be divided", ["it writes to no stream"], "divide a component that writes to one"
            )
        kind = "output" if not component.feeds else "norm" if passes_on(survey, component) else "block"
        made: list[str] = []
        for at, leaf in enumerate(component.feeds):
            if leaf not in self.written:
                own = name if len(component.feeds) == 1 else f"{name}.{at}"
                wish = self._along((leaf,), name, own, wanted, ways)
                self._write(WriterRow(wish, name, survey.stream_of[leaf], leaf_path(survey, leaf), kind))
            made += self.written[leaf]
        path = component_path(survey, component)
        reader = ReaderWish(component, (name + which,))
        self.readers.append(ReaderRow(reader, name, path, (kind,), (tuple(made),)))

    def _add_layer(self, name: str, which: str, component: Component, asked: bool) -> None:
        """A layer of a plain network, in its units, on each side where the stream is small (or it was asked for)."""
        survey, path = self.survey, component_path(self.survey, component)
        output = plain.layer_output(survey, component)
        if output is None:
            return self._add_block(name, which, component, WHOLE, ())
        kind = plain.kind_of(survey, output)
        for at, leaf in enumerate(component.feeds):
            stream = survey.stream_of[leaf]
            if leaf in self.written:
                continue
            own = name if len(component.feeds) == 1 else f"{name}.{at}"
            parts = plain.features(survey, leaf)
            letter = kind if parts == plain.features(survey, output) else plain.kind_of(survey, leaf)
            wish = WriterWish((leaf,), (own,))
            if asked or self.small[stream]:
                axis = plain.feature_axis(survey, leaf) % survey.handed_as(leaf).dim()
                wish = WriterWish((leaf,), plain.numbered(own, letter, parts), axis=axis)
            self._write(WriterRow(wish, name, stream, path, "unit" if wish.axis is not None else "block"))
        if not (asked or self.small[component.stream]):
            made = tuple(writer for leaf in component.feeds for writer in self.written[leaf])
            wish_whole = ReaderWish(component, (name + which,))
            block = "block" if made else "output"
            self.readers.append(ReaderRow(wish_whole, name, path, (block,), (made,)))
            return None
        names = tuple(part + which for part in plain.numbered(name, kind, plain.features(survey, output)))
        reader = ReaderWish(component, names, (plain.output_split(survey, output),))
        self.readers.append(ReaderRow(reader, name, path, ("unit",) * len(names), self._fed_by(component, output)))
        return None

    def _fed_by(self, component: Component, output: int) -> tuple[tuple[str, ...], ...]:
        """For each unit of a layer, the writers computed from it."""
        fed: list[list[str]] = [[] for _ in range(plain.features(self.survey, output))]
        for leaf in component.feeds:
            writers = self.written[leaf]
            of_unit = plain.made_of(self.survey, output, leaf)
            for mine, parts in zip(fed, of_unit, strict=True):
                mine += writers if len(writers) == 1 else [writers[part] for part in parts]
        return tuple(map(tuple, fed))

    def _add_heads(self, name: str, component: Component, heads: Division) -> None:
        survey, leaf = self.survey, component.feeds[0]
        writers = tuple(f"{name}.h{h}" for h in range(len(heads.parts.columns)))
        if leaf not in self.written:  # cross-attention reads two streams and writes once
            wish = WriterWish((leaf,), writers, parts=heads.parts)
            linearised = heads.parts.projection.linearised
            row = WriterRow(wish, name, survey.stream_of[leaf], leaf_path(survey, leaf), "head", linearised)
            self._write(row)
        readers = _head_readers(survey, name, writers, heads)
        splits = tuple(Split(r.site, r.value, r.lead, tuple(readers.columns[r.site])) for r in heads.reads)
        reader = ReaderWish(component, tuple(readers.names), splits)
        path = component_path(survey, component)
        self.readers.append(ReaderRow(reader, name, path, tuple(readers.kinds), tuple(readers.feeds)))

    def _add_units(self, name: str, which: str, component: Component) -> None:
        """One writer and one reader per hidden unit (MLP neurons)."""
        survey, path = self.survey, component_path(self.survey, component)
        units = find_units(survey, component)
        if units is None:
            raise AddressError(
                f"'{name}' cannot be divided into units",
                [f"{path or 'it'} does not end in one product with weights that each unit enters alone"],
                f'divide what it writes: wiring.split("{name}", "channels"), or --split {name}=channels',
            )
        leaf, parts = component.feeds[0], units.parts
        writers = tuple(f"{name}.n{n}" for n in range(len(parts.columns)))
        wish = WriterWish((leaf,), writers, parts=parts)
        linearised = parts.projection.linearised
        if leaf not in self.written:
            row = WriterRow(wish, name, survey.stream_of[leaf], leaf_path(survey, leaf), "unit", linearised)
            self._write(row)
        names = tuple(writer + which for writer in writers)
        reader = ReaderWish(component, names, tuple(_unit_split(read) for read in units.reads))
        kinds = ("unit",) * len(writers)
        self.readers.append(ReaderRow(reader, name, path, kinds, tuple((writer,) for writer in writers)))


def _outside(survey: Survey) -> Iterator[tuple[list[int], list[int]]]:
    """Per stream: the leaves of its first state that no component feeds, and the later ones that are no bias."""
    for number, stream in enumerate(survey.streams):
        loose = [leaf for leaf in stream.leaves if leaf not in survey.fed]
        first = {a.value for a in survey.addends(number, stream.states[0])} if stream.states else set()
        begins = [leaf for leaf in loose if leaf in first]
        yield begins, [leaf for leaf in loose if leaf not in first and not is_bias(survey.recording, leaf)]


def _input_parts(survey: Survey, leaves: Sequence[int]) -> list[str]:
    """``tok`` and ``pos`` when there is one of each, else the modules' own names."""
    static = [leaf for leaf in leaves if not survey.recording.values[leaf].dynamic]
    if len(leaves) == 2 and len(static) == 1:
        return ["pos" if leaf in static else "tok" for leaf in leaves]
    names = [leaf_path(survey, leaf).rsplit(".", 1)[-1] or "x" for leaf in leaves]
    return [n if names.count(n) == 1 else f"{n}{at}" for at, n in enumerate(names)]


@dataclass(frozen=True)
class _HeadReaders:
    """Lists that grow together: one entry per reader; and per site, (reader, columns)."""

    names: list[str]
    kinds: list[str]
    feeds: list[tuple[str, ...]]
    columns: dict[int, list[tuple[int, tuple[int, ...]]]]

    def add(self, site: int, columns: tuple[int, ...], name: str, kind: str, feeds: tuple[str, ...]) -> None:
        self.columns.setdefault(site, []).append((len(self.names), columns))
        self.names.append(name)
        self.kinds.append(kind)
        self.feeds.append(feeds)


def _head_readers(survey: Survey, name: str, writers: tuple[str, ...], heads: Division) -> _HeadReaders:
    """Queries by head; keys and values by head, or by key/value head where heads share them."""
    readers = _HeadReaders([], [], [], {})
    for role in ROLES:
        mine = [(r, users, cols) for r in heads.reads for kind, users, cols in r.columns if kind == role]
        grouped = role != "q" and len(mine) < len(writers)
        for group, (read, users, cols) in enumerate(mine):
            unit = f"kv{group}" if grouped else f"h{users[0]}" if len(users) == 1 else f"h{group}"
            fed = tuple(writers[u] for u in users)
            readers.add(read.site, cols, f"{name}.{unit}<{role}>", role, fed)
    for read in heads.reads:
        rest = _uncovered(survey, read)
        if rest:
            readers.add(read.site, rest, f"{name}<rest>", "rest", writers)
    return readers


def _uncovered(survey: Survey, read: ReadSplit) -> tuple[int, ...]:
    tensor = survey.recording.values[read.value].tensor
    covered = {c for _, _, columns in read.columns for c in columns}
    return tuple(c for c in range(tensor[(0,) * read.lead].numel()) if c not in covered)


def _unit_split(read: ReadSplit) -> Split:
    columns = tuple((users[0], columns) for _, users, columns in read.columns)
    return Split(read.site, read.value, read.lead, columns)
