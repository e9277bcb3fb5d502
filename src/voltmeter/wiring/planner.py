"""Make a plan: from a survey, and the wish how its components are divided, to addresses of writes and readings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from voltmeter.errors import WiringError
from voltmeter.wiring.expr import Builder, Expr, Place, calls_in, leaf_of
from voltmeter.wiring.follow import CallKey
from voltmeter.wiring.parts import Parts
from voltmeter.wiring.plan import AT_HAND, Divided, Plan, Reading, Site, State, Write
from voltmeter.wiring.refusals import unreadable
from voltmeter.wiring.streams import Component, Survey
from voltmeter.wiring.sums import Addend, strip


@dataclass(frozen=True)
class Split:
    """One site of a component, its output ``value`` [*lead axes, column] divided among readers."""

    site: int  # number of the site in the component
    value: int
    lead: int
    columns: tuple[tuple[int, tuple[int, ...]], ...]  # (reader within the component, its columns)


@dataclass(frozen=True)
class WriterWish:
    """A writer (or the parts of one) that the plan shall have."""

    leaves: tuple[int, ...]  # versions; several for the merged input
    names: tuple[str, ...]
    parts: Parts | None = None
    axis: int | None = None  # parts are entries along this axis of the stream


@dataclass(frozen=True)
class ReaderWish:
    """The readers of a component: one for all its sites, or columns of each."""

    component: Component
    names: tuple[str, ...]
    splits: tuple[Split, ...] = ()


def make_plan(
    survey: Survey, writers: Sequence[WriterWish], readers: Sequence[ReaderWish], opaque: frozenset[str] = frozenset()
) -> Plan:
    """Number writers and readers in the order given, and find out where each is to be tapped."""
    return _Planner(survey, writers, readers).plan(opaque)


class _Planner:
    def __init__(self, survey: Survey, writers: Sequence[WriterWish], readers: Sequence[ReaderWish]) -> None:
        self.survey, self.recording = survey, survey.recording
        self.writers, self.readers = writers, readers
        self.numbers: list[tuple[int, ...]] = []  # of each wish's writers
        count = 0
        for wish in writers:
            self.numbers.append(tuple(range(count, count + len(wish.names))))
            count += len(wish.names)
        self.owner = {leaf: n for n, wish in enumerate(writers) for leaf in wish.leaves}
        self.biases = [(n, leaf) for n, s in enumerate(survey.streams) for leaf in s.leaves if leaf not in self.owner]
        self.entries = self._entries()
        self.states: dict[int, State] = {}  # by version

    def plan(self, opaque: frozenset[str]) -> Plan:
        writes = [self._write(number, wish) for number, wish in enumerate(self.writers)]
        constants = [self._operand(len(writes) + n, (), *bias) for n, bias in enumerate(self.biases)]
        self._find_states([*writes, *constants])
        sites = self._sites()
        streams: list[list[int]] = [[] for _ in self.survey.streams]
        for wish, numbers in zip(self.writers, self.numbers, strict=True):
            streams[self.survey.stream_of[wish.leaves[0]]] += numbers
        return Plan(
            states=tuple(self.states.values()),
            writes=tuple(self._numbered(write) for write in writes),
            sites=tuple(sites),
            constants=tuple(self._numbered(write) for write in constants),
            kept=_kept(writes, sites),
            stream_writers=tuple(map(tuple, streams)),
            opaque=opaque,
        )

    def _numbered(self, write: Write) -> Write:
        """States are known by version while planning, by number afterwards."""
        state = None if write.state is None else self.states.get(write.state)
        return replace(write, state=None if state is None else state.number)

    # places ---------------------------------------------------------------------------------------------

    def _place(self, value: int) -> Place:
        place = leaf_of(self.recording, value, self.survey.equal(value))
        if place is None:
            raise unreadable(self.recording, value)
        return place

    # states ---------------------------------------------------------------------------------------------

    def _find_states(self, writes: Sequence[Write]) -> None:
        due: dict[int, list[int]] = {}
        for write in writes:
            if write.state is not None:
                due.setdefault(write.state, []).append(write.number)
        for number, stream in enumerate(self.survey.streams):
            for version in stream.states:
                scales, constants = self._scales(number, version, writes)
                self.states[version] = State(
                    number=len(self.states),
                    stream=number,
                    place=self._place(version),
                    members=tuple(sorted(scales)),
                    scales=tuple(scales[n] for n in sorted(scales)),
                    copied=bool(self.recording.mutated & self.survey.equal(version)),
                    commits=tuple(due.get(version, ())),
                    constants=tuple(constants.items()),
                )

    def _scales(self, stream: int, version: int, writes: Sequence[Write]) -> tuple[dict[int, float], dict[int, float]]:
        """The coefficients, in a state, of each writer, and of what each write brings that is never cut."""
        scales: dict[int, float] = {}
        constants: dict[int, float] = {}
        bias = {leaf: len(self.writers) + n for n, (of, leaf) in enumerate(self.biases) if of == stream}
        for leaf, coefficient in self.survey.addends(stream, version):
            number = self.owner[leaf] if leaf in self.owner else bias[leaf]
            write = writes[number]
            if leaf in self.owner and leaf != self.writers[number].leaves[0]:
                continue  # the merged input stands as a whole
            scale = coefficient / write.unit
            constants[number] = constants.get(number, 0.0) + scale  # a leaf may be added more than once
            scales.update(dict.fromkeys(write.writers, constants[number]))
        return scales, constants

    # writes ---------------------------------------------------------------------------------------------

    def _entries(self) -> dict[tuple[int, int], tuple[int, Addend]]:
        """For every (stream, leaf): the first sum that it enters there, and as which term."""
        entries: dict[tuple[int, int], tuple[int, Addend]] = {}
        for number, stream in enumerate(self.survey.streams):
            leaves = frozenset(stream.leaves)
            for version in stream.sums:
                for term in self.survey.sums[version]:
                    base = strip(self.recording, term.value).value
                    if base in leaves:
                        entries.setdefault((number, base), (version, term))
        return entries

    def _write(self, number: int, wish: WriterWish) -> Write:
        leaf, mine = wish.leaves[0], self.numbers[number]
        stream = self.survey.stream_of[leaf]
        read_alone = leaf in self.survey.streams[stream].states  # before any sum
        if len(wish.leaves) > 1 or (read_alone and wish.parts is None):
            version = self._first_state(stream, wish.leaves)
            unit = {a.value: a.scale for a in self.survey.addends(stream, version)}[leaf]
            return Write(number, mine, stream, self._place(version), 1.0, unit, axis_parts=wish.axis, state=version)
        write = self._operand(number, mine, stream, leaf)
        if read_alone:
            write = Write(number, mine, stream, self._place(leaf), 1.0, state=leaf)
        divided = None if wish.parts is None else self._divided(wish.parts, write)
        return replace(write, divided=divided, axis_parts=wish.axis)

    def _first_state(self, stream: int, leaves: Sequence[int]) -> int:
        """The first state of a stream that holds all of ``leaves``."""
        for version in self.survey.streams[stream].states:
            if set(leaves) <= {a.value for a in self.survey.addends(stream, version)}:
                return version
        raise WiringError("no state of the stream holds all of its input", mend="report this model")

    def _operand(self, number: int, mine: tuple[int, ...], stream: int, leaf: int) -> Write:
        """The argument of the sum in which a leaf enters its stream."""
        if (stream, leaf) not in self.entries:
            return Write(number, mine, stream, self._place(leaf), 1.0, state=leaf)
        version, term = self.entries[stream, leaf]
        call = self.survey.call_of(version)
        if call is None:
            raise unreadable(self.recording, version)
        unit = term.scale * strip(self.recording, term.value).scale
        held = [at for at, v in enumerate(call.ins) if v == term.value]
        held += [at for at, v in enumerate(call.ins) if strip(self.recording, v) == Addend(leaf, 1.0)]
        if held:
            return Write(number, mine, stream, Place(call.key, "in", held[0]), term.scale, unit)
        return Write(number, mine, stream, Place(call.key, "in", 0), 1.0, unit, remainder=True)

    def _divided(self, parts: Parts, write: Write) -> Divided:
        projection = parts.projection
        call = self.survey.call_of(projection.op.outs[0])
        assert call is not None  # parts are found only of what a call of the model's code projects
        argument = call.ins.index(parts.value)
        written = self.survey.call_at[write.place.call]
        target = (written.ins if write.place.side == "in" else written.outs)[write.place.leaf]
        plain = strip(self.recording, target)
        if plain.value == projection.op.outs[0]:
            return Divided(call.key, argument, parts.lead, parts.columns, plain.scale, None)
        start = {v for v in call.outs if projection.region.get(v) == "S"}
        linear = {v: kind for v, kind in projection.region.items() if kind in ("S", "N")}
        after = Builder(self.recording, start, linear, AT_HAND).expr(target)
        assert isinstance(after, Expr)  # the target is no output of the projecting call
        return Divided(call.key, argument, parts.lead, parts.columns, 1.0, after)

    # sites ----------------------------------------------------------------------------------------------

    def _sites(self) -> list[Site]:
        sites: dict[CallKey, Site] = {}
        outputs: list[Site] = []
        first = 0  # number of the component's first reader
        for wish in self.readers:
            splits = {split.site: split for split in wish.splits}
            for number, found in enumerate(wish.component.sites):
                state = self.states[found.state]
                region = self.survey.regions[found.state]
                builder = Builder(self.recording, self.survey.equal(found.state), region, state.number)
                reading = Reading(first, None)
                if found.output is not None:
                    value = builder.expr(dict(self.recording.outputs)[found.output])
                    outputs.append(Site(-1, None, (), (state.number,), (reading,), output=found.output, value=value))
                elif number in splits:
                    _claim(sites, self._split_site(builder, found.call, first, splits[number]))
                else:
                    call, inputs = self.recording.calls[found.call], builder.inputs(found.call)
                    made = Site(-1, call.key, inputs, (state.number,), (reading,), overwritten=call.overwritten)
                    _claim(sites, made)
            first += len(wish.names)
        return [replace(site, number=n) for n, site in enumerate([*sites.values(), *outputs])]

    def _split_site(self, builder: Builder, reading_call: int, first: int, split: Split) -> Site:
        """The site lies at the call whose output is divided, which may come some views after the reading call."""
        call = self.survey.call_of(split.value)
        assert call is not None  # only what a call handed to the model's code is divided
        region = dict(builder.region)
        last = self.recording.values[split.value].op or 0
        begin = min(self.recording.values[v].op or 0 for v in builder.start)
        for op in self.recording.ops[begin : last + 1]:
            between = op.call is not None and reading_call <= op.call <= call.index
            if between and any(i in region or i in builder.start for i in op.ins):
                region.update(dict.fromkeys(op.outs, "N"))
        wide = Builder(self.recording, builder.start, region, builder.state)
        readings = tuple(Reading(first + reader, columns) for reader, columns in split.columns)
        leaf = call.outs.index(split.value)
        inputs = wide.inputs(call.index)
        return Site(-1, call.key, inputs, (builder.state,), readings, leaf, split.lead, call.overwritten)


def _claim(sites: dict[CallKey, Site], made: Site) -> None:
    """Two streams (or states) may meet in one call; each has its own arguments of it."""
    key = made.call
    assert key is not None
    other = sites.setdefault(key, made)
    if other is made:
        return
    if any(r.columns is not None for r in (*other.readings, *made.readings)):
        raise WiringError(
            "two states of a stream meet in one call that is divided into parts",
            [key.place],
            'leave that component whole: voltmeter.wire(..., divisions={"its name": "whole"})',
        )
    inputs = dict(other.inputs) | dict(made.inputs)
    sites[key] = replace(
        other,
        inputs=tuple(sorted(inputs.items())),
        states=other.states + made.states,
        readings=other.readings + made.readings,
    )


def _kept(writes: Sequence[Write], sites: Sequence[Site]) -> frozenset[CallKey]:
    """The calls that are repeated, and so must be remembered during a run."""
    kept: set[CallKey] = set()
    for site in sites:
        for expr in (*(expr for _, expr in site.inputs), *([site.value] if site.value is not None else [])):
            kept |= calls_in(expr)
    for write in writes:
        if write.divided is not None:
            kept.add(write.divided.call)
            if write.divided.after is not None:
                kept |= calls_in(write.divided.after)
    return frozenset(kept)
