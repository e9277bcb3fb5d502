"""Where a run is tapped: which calls write to a stream, which define a state of it, which read it.

A plan is made once from a survey and from the wish how components are divided. It holds addresses only, no
tensors, and is the same for every batch size and length.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from voltmeter.wiring.expr import Expr, Place, Source
from voltmeter.wiring.follow import CallKey

AT_HAND = -1  # the Source of expressions over one tensor that is not a state


@dataclass(frozen=True)
class State:
    """A version of a stream that something reads."""

    number: int
    stream: int
    place: Place
    members: tuple[int, ...]  # writers (numbers within the plan) added up to here, in order
    scales: tuple[float, ...]  # the coefficient of each in this state
    copied: bool  # the model overwrites it in place later
    commits: tuple[int, ...] = ()  # writes whose contributions are due when this state stands
    constants: tuple[tuple[int, float], ...] = ()  # numbers of the writes that brought biases, and coefficients


@dataclass(frozen=True)
class Divided:
    """A writer in parts: columns of what its projection reads."""

    call: CallKey
    argument: int  # tensor leaf of the call's arguments
    lead: int
    columns: tuple[tuple[int, ...], ...]
    scale: float  # from the projection's output to the tensor that is written, when only views lie between
    after: Expr | None  # else: how the one is made from the other, linear once the norm's scale is held


@dataclass(frozen=True)
class Write:
    """Where writers' contributions are taken."""

    number: int
    writers: tuple[int, ...]
    stream: int
    place: Place
    scale: float  # of the tensor at ``place`` in what is written
    unit: float = 1.0  # the coefficient in the first sum, by which states' coefficients are divided
    divided: Divided | None = None
    axis_parts: int | None = None  # parts are entries along this axis of the stream (channels, positions)
    remainder: bool = False  # the call adds a product to its first argument; the product is what is written
    state: int | None = None  # contribute when this state stands (the merged input), not at the call


@dataclass(frozen=True)
class Reading:
    """A reader's share of a call: all of it, or the columns given."""

    reader: int
    columns: tuple[int, ...] | None


@dataclass(frozen=True)
class Site:
    """A call some of whose arguments come from streams, and the readers that share its output."""

    number: int
    call: CallKey | None  # None: the model returns the stream; see output
    inputs: tuple[tuple[int, Expr | Source], ...]
    states: tuple[int, ...]
    readings: tuple[Reading, ...]  # one for each state, or several of one state by columns
    leaf: int = 0
    lead: int = 0
    overwritten: tuple[int, ...] = ()  # arguments into which the call writes
    output: int | None = None
    value: Expr | Source | None = None  # the returned stream (or its norm) as an expression


@dataclass
class Taps:
    """What happens at one call."""

    before: list[Write] = field(default_factory=list)
    after: list[Write] = field(default_factory=list)
    arrive: list[State] = field(default_factory=list)
    define: list[State] = field(default_factory=list)
    site: Site | None = None
    kept: bool = False


@dataclass(frozen=True)
class Plan:
    """All taps. ``opaque``: modules that were declared to be one component."""

    states: tuple[State, ...]
    writes: tuple[Write, ...]
    sites: tuple[Site, ...]
    constants: tuple[Write, ...]
    kept: frozenset[CallKey]  # calls that expressions repeat
    stream_writers: tuple[tuple[int, ...], ...]
    opaque: frozenset[str] = frozenset()

    @cached_property
    def by_call(self) -> Mapping[CallKey, Taps]:
        """What happens at each call."""
        taps: dict[CallKey, Taps] = {}

        def at(key: CallKey) -> Taps:
            return taps.setdefault(key, Taps())

        for write in (*self.writes, *self.constants):
            if write.state is None:
                here = at(write.place.call)
                (here.before if write.place.side == "in" else here.after).append(write)
        for state in self.states:
            here = at(state.place.call)
            (here.arrive if state.place.side == "in" else here.define).append(state)
        for site in self.sites:
            if site.call is not None:
                at(site.call).site = site
        for key in self.kept:
            at(key).kept = True
        return taps

    @cached_property
    def modules(self) -> frozenset[str]:
        """The modules whose own calls are tapped."""
        return frozenset(key.module for key in self.by_call)
