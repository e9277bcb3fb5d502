"""Parts of a component: which columns of what it computes belong to which hidden unit or head.

A writer's parts are columns of what its last product with weights reads. A reader's parts are columns of the output
of its reading call, or of a later one: gradients, on random values, say which columns reach which part. Here are
hidden units (MLP neurons); for attention heads see ``heads``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voltmeter.wiring.algebra import FLAT, MOVED, base_name, derived, mixes
from voltmeter.wiring.replay import probe, randomised
from voltmeter.wiring.streams import Component, Site, Survey
from voltmeter.wiring.trace import Op, Recording, Ref

Columns = tuple[int, ...]
_DRAWS = 6  # of random values, to find which units depend on what


@dataclass(frozen=True)
class Projection:
    """The last product with weights before a writer: ``op`` with dynamic operand ``z``."""

    op: Op
    z: int
    linearised: bool  # a norm lies between the product and the stream
    region: Mapping[int, str]


@dataclass(frozen=True)
class Parts:
    """A writer's parts: the columns of what its projection reads, ``value`` [*lead axes, column]."""

    projection: Projection
    value: int
    lead: int
    columns: tuple[Columns, ...]


@dataclass(frozen=True)
class ReadSplit:
    """One call's output ``value`` [*lead axes, column], divided among readers."""

    site: int  # number of the site in the component
    value: int
    lead: int
    columns: tuple[tuple[str, tuple[int, ...], Columns], ...]  # (role, heads or units that use it, columns)


@dataclass(frozen=True)
class Division:
    """Heads or hidden units: which columns of the projection's input are whose, and which of each reading call's."""

    parts: Parts
    reads: tuple[ReadSplit, ...]


def projection_of(recording: Recording, leaf: int) -> Projection | None:
    """The unique product with weights that a writer is a linear (or normalised) function of."""
    mixing = list(nearest_mixing(recording, leaf))
    if len(mixing) != 1:
        return None
    op = mixing[0]
    dynamic = [a.value for a in op.args if isinstance(a, Ref) and recording.values[a.value].dynamic]
    if len(dynamic) != 1 or base_name(op) not in ("mm", "addmm", "bmm", "linear", "matmul"):
        return None
    region = {op.outs[0]: "S"}
    for later in recording.ops[op.index + 1 : (recording.values[leaf].op or 0) + 1]:
        if any(i in region for i in later.ins):
            made = derived(later, region, recording)
            if made is not None:
                region.update(dict.fromkeys(later.outs, made))
    if region.get(leaf) not in ("S", "N"):
        return None
    linearised = any(kind == "T" for kind in region.values()) or _has_fused_norm(recording, region)
    return Projection(op, dynamic[0], linearised, region)


def _has_fused_norm(recording: Recording, region: Mapping[int, str]) -> bool:
    for value in region:
        number = recording.values[value].op
        if number is not None and "norm" in base_name(recording.ops[number]):
            return True
    return False


def nearest_mixing(recording: Recording, value: int) -> Iterable[Op]:
    """The dynamic products reached from ``value`` going back, not looking behind any of them."""
    seen, stack = set(), [value]
    while stack:
        number = recording.values[stack.pop()].op
        if number is None or number in seen:
            continue
        seen.add(number)
        op = recording.ops[number]
        if mixes(op) and any(recording.values[i].dynamic for i in op.ins):
            yield op
        else:
            stack += [i for i in op.ins if recording.values[i].dynamic]


def projected_argument(recording: Recording, projection: Projection) -> int | None:
    """The tensor the model's code hands to the projecting call (the op may see a view of it)."""
    number = projection.op.call
    if number is None:
        return None
    value = projection.z
    ins = recording.calls[number].ins
    while value not in ins:
        op = recording.values[value].op
        if op is None or base_name(recording.ops[op]) not in FLAT | MOVED:
            return None
        value = recording.ops[op].ins[0]
    return value


def gates(survey: Survey, start: Sequence[int], ends: set[int]) -> list[int]:
    """Call outputs that every path from ``start`` to ``ends`` passes through, in order."""
    recording = survey.recording
    first = min((recording.values[v].op or 0) for v in start)
    last = max((recording.values[v].op or 0) for v in ends)
    span = recording.ops[first : last + 1]
    after = set(start)
    for op in span:
        if any(i in after for i in op.ins):
            after.update(op.outs)
    candidates = sorted((v for v in after if v in survey.handed), key=lambda v: recording.values[v].op or 0)
    return [v for v in candidates if _all_pass(span, set(start), v, ends)]


def _all_pass(span: Sequence[Op], start: set[int], gate: int, ends: set[int]) -> bool:
    if start == {gate}:
        return True
    around = start - {gate}
    for op in span:
        if any(i in around for i in op.ins):
            around.update(out for out in op.outs if out != gate)
    return not around & ends


def find_units(survey: Survey, component: Component) -> Division | None:
    """The hidden units of a component, or None when it does not end in one product that each unit enters alone."""
    recording = survey.recording
    projection = projection_of(recording, component.feeds[0]) if len(component.feeds) == 1 else None
    z = None if projection is None else projected_argument(recording, projection)
    if projection is None or z is None:
        return None
    reads = []
    for number, site in enumerate(component.sites):
        split = None if site.output is not None else _unit_split(survey, site, number, z)
        if split is None:
            return None
        reads.append(split)
    tensor = recording.values[z].tensor
    columns = tuple((unit,) for unit in range(tensor.shape[-1]))
    return Division(Parts(projection, z, tensor.dim() - 1, columns), tuple(reads))


def _unit_split(survey: Survey, site: Site, number: int, z: int) -> ReadSplit | None:
    """The first output after a reading call of which every column reaches one unit at most, and every unit some."""
    recording = survey.recording
    count = recording.values[z].tensor.shape[-1]
    for value in gates(survey, recording.calls[site.call].outs, {z}):
        tensor = recording.values[value].tensor
        owner = _owners(recording, value, z)
        if owner is None or tensor.dim() < 2:
            continue
        flat = owner.flatten(0, -2)  # a unit may be silent at some places
        columns = flat.amax(0)
        if not bool(((flat == columns) | (flat < 0)).all()) or columns.unique().tolist() != list(range(count)):
            continue
        mine: list[list[int]] = [[] for _ in range(count)]
        for column, unit in enumerate(columns.tolist()):
            mine[unit].append(column)
        split = tuple(("u", (unit,), tuple(theirs)) for unit, theirs in enumerate(mine))
        return ReadSplit(number, value, tensor.dim() - 1, split)
    return None


def _owners(recording: Recording, value: int, z: int) -> Tensor | None:
    """Int, of the shape of ``value``: the one unit of ``z`` that each entry reaches, -1 for none.

    None when an entry reaches several. Bit by bit: each pass asks which entries reach a unit whose number has that
    bit, and which reach one whose number has not. Several draws, because a rectifier is silent at half of its inputs.
    """
    tensor = recording.values[value].tensor
    unit = torch.arange(recording.values[z].tensor.shape[-1], device=tensor.device)
    owner = torch.full(tensor.shape, -1, dtype=torch.long, device=tensor.device)
    for seed in range(_DRAWS):
        base = randomised(tensor, seed)
        with torch.enable_grad():
            reached = probe(recording, [z], {value: base})[0]
            if not reached.requires_grad:
                return None
            number, used = torch.zeros_like(owner), torch.zeros_like(owner, dtype=torch.bool)
            for bit in range(max(1, int(unit.max()).bit_length())):
                has = (unit >> bit & 1).bool()
                one, none = (
                    torch.autograd.grad(reached[..., chosen].sum(), base, retain_graph=True)[0] != 0
                    for chosen in (has, ~has)
                )
                if bool((one & none).any()):
                    return None
                number += one.long() << bit
                used |= one | none
        owner = torch.where(used, number, owner)
    return owner
