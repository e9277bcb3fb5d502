"""All minimal sufficient circuits of a compiled model, exactly.

Whether a circuit suffices is a question about 2^edges sets, but a component only sees what its readers read. So the
components are walked in order, and what is kept is the set of *reachable states*: the values of those writers that
something later still reads, each with the smallest sets of edges that bring it about. Circuits that lead to one state
are one from there on, and of two sets that lead to it a set that holds the other can be no part of a minimal circuit.
At the answer the states that leave the output as it was give every minimal circuit.

Exact up to ``catalogue.SAME``: values that differ by less are one. An edge is left out where the reader's weights are
zero on everything that the writer can write: keeping it is cutting it.

The walk is over a few of the inputs only. A circuit that suffices on all of them suffices on those few, so if every
minimal circuit of the few suffices on all, they are the minimal circuits of all; if one does not, an input that it
fails is added and the walk repeated.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from typing import TypeAlias, final

import torch
from torch import Tensor

from voltmeter.rasp.antichain import NOTHING, Family, edges_of, minimal, unions
from voltmeter.rasp.budget import Budget, Search, SpentError, require_room
from voltmeter.rasp.catalogue import SAME, Catalogue
from voltmeter.rasp.dataflow import meets
from voltmeter.rasp.effects import run_kept
from voltmeter.rasp.setting import Setting

MOST_CIRCUITS = 1_000  # each is run on all inputs
_BATCH = 2**22  # numbers in the largest tensor of a batch: 32 MiB in float64

# How near to τ an effect may lie before merging could have put it on the other side. A reading of a hundred or so is
# merged within 1e-10, and one more ramp of slope 100 makes 1e-8 of that: a hundredth of the usual τ of 1e-6. Ten times
# that share, for what else stands behind; and 1e-8 where τ is less.
_NEAR, _NEAR_AT_LEAST = 0.1, 1e4 * SAME

Ids: TypeAlias = tuple[int, ...]
States: TypeAlias = dict[Ids, Family]


@final
@dataclass(frozen=True)
class Found:
    """Minimal circuits, each of which is sufficient over all inputs. ``searched``: states visited.

    ``search``: "whole", ``minimal`` are all there are; "stopped" at the limit, with none; "unsure", rounding could have
    decided (an effect lies too near τ, or an exact run says otherwise): ``minimal`` may lack some, or be empty.
    ``rows``: the inputs walked over.
    """

    minimal: tuple[frozenset[int], ...]
    search: Search
    searched: int
    rows: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether ``minimal`` are all there are."""
        return self.search == "whole"


@torch.no_grad()
def minimal_circuits(setting: Setting, rows: Sequence[int], limit: int) -> Found:
    """Every minimal circuit that is sufficient over all inputs, beginning with the inputs numbered in ``rows``.

    Stops before it has visited more than ``limit`` states, over all walks together, or held more than 1 GiB of values,
    and where the few inputs have more than 1,000 such circuits.
    Cost: an evaluation of one component over the inputs walked for every distinct reading of it, and a set operation
    for every state. Raises TruthError where some circuit computes numbers that are not finite.
    """
    budget, rows = Budget(limit), list(dict.fromkeys(rows))
    while True:
        walk = _Walk(setting.on(rows), budget)
        try:
            circuits = walk.circuits()
        except SpentError:
            return Found((), "stopped", budget.spent, tuple(rows))
        if len(circuits) > MOST_CIRCUITS:
            return Found((), "stopped", budget.spent, tuple(rows))
        failed = _failed_on(setting, circuits)
        if not failed:
            search: Search = "unsure" if walk.is_near else "whole"
            return Found(tuple(map(edges_of, circuits)), search, budget.spent, tuple(rows))
        fresh = [row for row in failed if row not in rows]
        if not fresh:  # run exactly, a circuit fails at an input where the walk let it pass
            return Found((), "unsure", budget.spent, tuple(rows))
        rows += fresh


def _failed_on(setting: Setting, circuits: Family) -> list[int]:
    """For each circuit that is not sufficient over all inputs, the input it fails worst; each once."""
    tolerance = setting.question.tolerance
    failed: dict[int, None] = {}
    for kept in circuits:
        changes = setting.changes(run_kept(setting, edges_of(kept)).answer)
        if any(bool(changes[row] > tolerance) for row in failed):
            continue
        if bool((changes > tolerance).any()):
            failed[int(changes.argmax())] = None
    return list(failed)


def can_matter(setting: Setting) -> list[bool]:
    """For every edge, whether the reader's weights are non-zero on anything the writer can write, whatever it reads."""
    machine, zero = setting.machine, setting.question.fill == "zero"
    directions = [_embedded(setting, 0), _embedded(setting, 1)]
    # A bias is written whatever is read: it is in what was written and in every fill but zero.
    directions += [part.directions(bias=zero) for part in machine.parts[:-1]]
    return [
        meets(machine.parts[part].readers[reader].weight, directions[writer]) for writer, part, reader in machine.ends
    ]


def _embedded(setting: Setting, writer: int) -> Tensor:
    return (setting.outs[writer] - setting.fills[writer]).flatten(0, -2)


@final
@dataclass(frozen=True)
class _Step:
    """One component of the walk: the writers it may read, and those that something after it still reads."""

    part: int
    parents: tuple[int, ...]
    live: tuple[int, ...]


@final
class _Walk:
    """One walk over the components, on some inputs."""

    def __init__(self, setting: Setting, budget: Budget) -> None:
        self.setting, self.machine, self.budget = setting, setting.machine, budget
        matters = can_matter(setting)
        self.incoming: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (part, reader) -> (edge, writer) that matter
        for edge, (writer, part, reader) in enumerate(self.machine.ends):
            if matters[edge]:
                self.incoming.setdefault((part, reader), []).append((edge, writer))
        self.catalogues = [Catalogue(out) for out in setting.outs]
        for writer in (0, 1):
            self.catalogues[writer].numbers(setting.outs[writer][None])
        self.reading: list[Catalogue] = []  # of each reader of the component at hand
        self.is_near = False  # whether some effect lay too near τ to tell its side

    def circuits(self) -> Family:
        """The minimal circuits that are sufficient on these inputs."""
        states: States = {(0, 0): NOTHING}
        live: tuple[int, ...] = (0, 1)
        for step in self.steps:
            at = [live.index(writer) for writer in step.parents]
            made: dict[Ids, list[int]] = {}
            known: dict[Ids, list[tuple[int, Family]]] = {}
            carried = [live.index(writer) for writer in step.live if writer != 2 + step.part]
            own = 2 + step.part in step.live
            for state, family in states.items():
                parents = tuple(state[i] for i in at)
                if parents not in known:
                    known[parents] = list(self._outcomes(step, parents))
                rest = tuple(state[i] for i in carried)
                for number, sets in known[parents]:
                    key = (*rest, number) if own else rest
                    made.setdefault(key, []).extend(self._unions(family, sets))
            states = {key: self._minimal(sets) for key, sets in made.items()}
            live = step.live
        return self._minimal([kept for family in states.values() for kept in family])

    def _unions(self, *families: Family) -> Family:
        count = math.prod(map(len, families))
        self.budget.compare(count, made=count)
        return unions(*families)

    def _minimal(self, sets: Sequence[int]) -> Family:
        self.budget.compare(len(sets))
        return minimal(sets)

    def _require_room(self, more: int = 0) -> None:
        require_room(more + sum(catalogue.held for catalogue in (*self.catalogues, *self.reading)))

    @cached_property
    def steps(self) -> tuple[_Step, ...]:
        """The components that can reach the answer, in an order that keeps few writers alive at a time."""
        readers = self._readers_of
        done: list[int] = []
        waiting = set(readers)
        while waiting:
            ready = [part for part in waiting if all(w < 2 or w - 2 in done for w in readers[part])]
            part = min(ready, key=lambda part: (len(self._alive([*done, part])), part))
            done.append(part)
            waiting.remove(part)
        return tuple(
            _Step(part, tuple(sorted(readers[part])), self._alive(done[: at + 1])) for at, part in enumerate(done)
        )

    @cached_property
    def _readers_of(self) -> dict[int, set[int]]:
        """The writers that each component may read, of those components that can reach the answer."""
        sources: dict[int, set[int]] = {part: set() for part in range(len(self.machine.parts))}
        for (part, _), pairs in self.incoming.items():
            sources[part].update(writer for _, writer in pairs)
        reached, waiting = set[int](), [len(self.machine.parts) - 1]
        while waiting:
            part = waiting.pop()
            if part not in reached:
                reached.add(part)
                waiting += [writer - 2 for writer in sources[part] if writer >= 2]
        return {part: sources[part] for part in sorted(reached)}

    def _alive(self, done: Sequence[int]) -> tuple[int, ...]:
        """The writers among those computed that some component to come may read, in the order they were computed in."""
        wanted = {w for part, writers in self._readers_of.items() if part not in done for w in writers}
        return tuple(w for w in (0, 1, *(2 + part for part in done)) if w in wanted)

    def _outcomes(self, step: _Step, parents: Ids) -> Iterator[tuple[int, Family]]:
        """What a component can come to write, given what its parents wrote: numbers of values, and the edges to keep.

        For the answer the number is 0 and only what is sufficient is given.
        """
        outs = {w: self.catalogues[w].values[number] for w, number in zip(step.parents, parents, strict=True)}
        part = self.machine.parts[step.part]
        self.reading = []
        readings = [self._readings(step.part, reader, outs) for reader in range(len(part.readers))]
        is_answer = step.part == len(self.machine.parts) - 1
        found: dict[int, list[int]] = {}
        for values, families in self._combined(step.part, readings):
            numbers = self._sufficient(values) if is_answer else self.catalogues[2 + step.part].numbers(values)
            self._require_room()
            for number, family in zip(numbers, families, strict=True):
                found.setdefault(number, []).extend(family)
        return ((number, self._minimal(sets)) for number, sets in found.items() if number >= 0)

    def _sufficient(self, answers: Tensor) -> list[int]:
        """0 for answers that are as the uncut model's, -1 for the others."""
        tolerance = self.setting.question.tolerance
        effects = self.setting.changes(answers).amax(-1)
        if self.setting.answers is None:  # else they are counts, and none is near
            largest = max(1.0, float(self.setting.full.abs().max()))
            near = max(_NEAR * tolerance, _NEAR_AT_LEAST * largest)
            self.is_near |= bool(((effects - tolerance).abs() <= near).any())
        return [0 if effect <= tolerance else -1 for effect in effects.tolist()]

    def _readings(self, part: int, reader: int, outs: dict[int, Tensor]) -> list[tuple[Tensor, Family]]:
        """Everything a reader can make of the stream, and the smallest sets of its edges that lead to it."""
        read = self.machine.parts[part].readers[reader]
        before = self.machine.parts[part].n_before
        fills = self.setting.fills[:before].sum(0) + self.machine.constants[part]
        nothing = read(fills.expand_as(self.setting.tok))
        whole = read(self.machine.constants[part] + self.setting.outs[:before].sum(0))
        catalogue = Catalogue(whole)
        self.reading.append(catalogue)
        families: dict[int, Family] = {catalogue.numbers(nothing[None])[0]: NOTHING}
        for edge, writer in self.incoming.get((part, reader), ()):
            share = (outs[writer] - self.setting.fills[writer]) @ read.weight.T
            if float(share.abs().max()) <= catalogue.within:
                continue
            self.budget.spend(sum(map(len, families.values())))
            self._require_room(2 * len(families) * whole.numel())
            more = torch.stack([catalogue.values[number] for number in families]) + share
            added = list(zip(catalogue.numbers(more), list(families.values()), strict=True))
            for number, family in added:
                kept = tuple(sets | 1 << edge for sets in family)
                families[number] = self._minimal((*families.get(number, ()), *kept))
        return [(catalogue.values[number], family) for number, family in families.items()]

    def _combined(
        self, part: int, readings: list[list[tuple[Tensor, Family]]]
    ) -> Iterator[tuple[Tensor, list[Family]]]:
        """What is written for every choice of one reading per reader, in batches."""
        self.budget.require(math.prod(sum(len(family) for _, family in reading) for reading in readings))
        batch, length, d_model = self.setting.tok.shape
        widest = max(value.shape[-1] for reading in readings for value, _ in reading)
        size = max(1, _BATCH // (batch * length * max(widest, d_model, length)))
        choices = product(*readings)
        while chosen := list(islice(choices, size)):
            projected = [torch.stack([choice[at][0] for choice in chosen]) for at in range(len(readings))]
            families = [self._unions(*(family for _, family in choice)) for choice in chosen]
            yield self.machine.parts[part].combine(*projected), families


def witnesses(changes: Tensor, tolerance: float, extra: int = 4) -> list[int]:
    """Few inputs that show every change: ``changes`` [edge, batch]. Each shows the most of those not shown before.

    ``extra`` more, evenly spaced, spare the search most of its repeats.
    """
    shown = changes > tolerance
    open_ = shown.any(1)
    rows: list[int] = []
    while bool(open_.any()):
        row = int(shown[open_].sum(0).argmax())
        rows.append(row)
        open_ = open_ & ~shown[:, row]
    count = changes.shape[1]
    rows += [at * count // extra for at in range(extra)]
    return list(dict.fromkeys(row for row in rows if row < count))
