"""Find the heads of an attention component, by dependence and not by names or classes.

From the writer's output projection we walk back to the attention product and push head numbers forward through the
views between them (which columns of the projection's input belong to which head). Then, on random values, gradients
say which columns of each reading call reach which head as query, key or value. Fused projections, grouped key/value
heads, rotary embeddings and query/key norms need no special cases.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from voltmeter.errors import WiringError
from voltmeter.wiring.attention import core_of, looks_at_one_key, operands_of
from voltmeter.wiring.naming import component_path
from voltmeter.wiring.parts import (
    Division,
    Parts,
    ReadSplit,
    gates,
    projected_argument,
    projection_of,
)
from voltmeter.wiring.replay import probe, randomised, replay
from voltmeter.wiring.streams import Component, Site, Survey
from voltmeter.wiring.trace import Op, Recording

ROLES = ("q", "k", "v")

Support = Mapping[str, Sequence[tuple[Tensor, tuple[int, ...]]]]
"""For each role, which entries of its tensor belong to which heads: ``[(mask, heads), ...]``."""


def find_heads(survey: Survey, component: Component) -> Division | None:
    """The attention heads of a component, or None when it is no attention or cannot be divided.

    Raises WiringError where the example is one position long and the products of attention are then no products.
    """
    recording = survey.recording
    if len(component.feeds) != 1 or component.outputs:
        return None
    projection = projection_of(recording, component.feeds[0])
    if projection is None:
        return None
    core = core_of(recording, projection.z)
    if looks_at_one_key(recording, core, projection.z):
        raise WiringError(
            "attention looks at one position alone in this example, and so its heads cannot be told apart",
            [f"{component_path(survey, component) or 'the model itself'}: its softmax runs over one entry"],
            "give an example with at least 2 positions",
        )
    if core is None:
        return None
    operands = operands_of(recording, core)
    value = projected_argument(recording, projection)
    if operands is None or value is None:
        return None
    numbers = _numbers(recording, core)
    division = _divide(_pushed(recording, core, value, numbers))
    if division is None:
        return None
    lead, columns, slots = division
    with torch.enable_grad():
        support = _supports(recording, core, operands, numbers, slots)
        reads = _reads(survey, component, operands, support)
    if reads is None:
        return None
    return Division(Parts(projection, value, lead, columns), reads)


def _numbers(recording: Recording, core: Op) -> Tensor:
    """Head (or batch x head) numbers in the shape of the core's output."""
    made = recording.values[core.outs[0]].tensor
    axis = 1 if made.dim() == 4 else 0
    shape = [1] * made.dim()
    shape[axis] = made.shape[axis]
    return torch.arange(made.shape[axis], device=made.device).view(shape).expand(made.shape)


def _pushed(recording: Recording, core: Op, value: int, numbers: Tensor) -> Tensor:
    """Numbers at the core's output, carried through the views to ``value``. In two digits, exact in 16-bit floats."""
    like = recording.values[core.outs[0]].tensor
    high, low = (
        replay(recording, [value], {core.outs[0]: digit.to(like.dtype)})[0].double().round()
        for digit in (numbers // 256, numbers % 256)
    )
    return 256 * high + low


def _divide(pushed: Tensor) -> tuple[int, tuple[tuple[int, ...], ...], list[set[int]]] | None:
    """Columns per head from pushed numbers, and for each head every number it had; as many heads as there are."""
    best: tuple[int, tuple[tuple[int, ...], ...], list[set[int]]] | None = None
    for lead in range(pushed.dim() - 1, 0, -1):
        rows = pushed.reshape(-1, pushed[(0,) * lead].numel())
        first = [int(n) for n in rows[0].tolist()]
        order = list(dict.fromkeys(first))
        columns = tuple(tuple(c for c, n in enumerate(first) if n == head) for head in order)
        slots = []
        for cols in columns:
            block = rows[:, list(cols)]
            if not bool((block == block[:, :1]).all()):
                break
            slots.append({int(n) for n in block[:, 0].tolist()})
        else:
            apart = sum(len(s) for s in slots) == len(set().union(*slots))
            if apart and (best is None or len(columns) > len(best[1])):
                best = lead, columns, slots
    return best


def _supports(
    recording: Recording, core: Op, operands: Mapping[str, int], numbers: Tensor, slots: list[set[int]]
) -> Support:
    """For each role, which entries of the operand each group of heads uses: ``[(mask, heads), ...]``.

    On random operands, so that a saturated softmax hides nothing.
    """
    given = {v: randomised(recording.values[v].tensor, n) for n, v in enumerate(dict.fromkeys(operands.values()))}
    out = probe(recording, [core.outs[0]], given, open_softmax=True)[0]
    weights = randomised(out, 7).detach()
    groups = {role: _Groups(given[operands[role]]) for role in ROLES}
    for head, slot in enumerate(slots):
        chosen = torch.isin(numbers, torch.tensor(sorted(slot), dtype=numbers.dtype, device=numbers.device))
        grads = torch.autograd.grad(
            (out * weights)[chosen].sum(), [given[operands[r]] for r in ROLES], retain_graph=True, allow_unused=True
        )
        for role, grad in zip(ROLES, grads, strict=True):
            groups[role].add(grad, (head,))
    return {role: found.masks() for role, found in groups.items()}


def _reads(
    survey: Survey,
    component: Component,
    operands: Mapping[str, int],
    support: Support,
) -> tuple[ReadSplit, ...] | None:
    splits = []
    for number, site in enumerate(component.sites):
        if site.output is not None:
            return None
        split = _read_split(survey, site, number, operands, support)
        if split is None:
            return None
        splits.append(split)
    return tuple(splits)


def _read_split(
    survey: Survey, site: Site, number: int, operands: Mapping[str, int], support: Support
) -> ReadSplit | None:
    """The output after a reading call that divides into most readers, each of one role and its heads.

    Not behind an expansion: there a shared key/value head has become several equal ones.
    """
    recording = survey.recording
    best: ReadSplit | None = None
    largest = 0
    for value in gates(survey, recording.calls[site.call].outs, set(operands.values())):
        tensor = recording.values[value].tensor
        largest = largest or tensor.numel()
        if tensor.numel() > largest:
            break
        split = _columns(value, number, tensor, _masks(recording, value, operands, support))
        if split is not None and (best is None or len(split.columns) > len(best.columns)):
            best = split
        if best is not None and len(best.columns) == sum(len(support[role]) for role in _roles(best)):
            break
    return best


def _roles(split: ReadSplit) -> set[str]:
    return {role for role, _, _ in split.columns}


def _masks(
    recording: Recording, value: int, operands: Mapping[str, int], support: Support
) -> list[tuple[str, tuple[int, ...], Tensor]]:
    """For each role and group of heads, which entries of ``value`` reach its part of the operand."""
    base = randomised(recording.values[value].tensor, 11)
    found: list[tuple[str, tuple[int, ...], Tensor]] = []
    for role, operand in operands.items():
        reached = probe(recording, [operand], {value: base})[0]
        if not reached.requires_grad:
            continue
        weights = randomised(reached, 13).detach()
        groups = _Groups(base)
        for mask, heads in support[role]:
            part = (reached * weights)[mask].sum()
            groups.add(torch.autograd.grad(part, base, retain_graph=True, allow_unused=True)[0], heads)
        found += [(role, heads, mask) for mask, heads in groups.masks() if bool(mask.any())]
    return found


def _columns(
    value: int, number: int, tensor: Tensor, found: list[tuple[str, tuple[int, ...], Tensor]]
) -> ReadSplit | None:
    """Turn masks into disjoint columns; None when two readers share an entry."""
    if not found:
        return None
    total = torch.zeros(tensor.shape, dtype=torch.int32, device=tensor.device)
    for _, _, mask in found:
        total += mask
    if int(total.max()) > 1:
        return None
    for lead in range(tensor.dim() - 1, 0, -1):
        rows = [mask.reshape(-1, tensor[(0,) * lead].numel()) for _, _, mask in found]
        # A column belongs to a reader when any place uses it: a causal mask or a window may hide some places.
        used = [r.any(0) for r in rows]
        if int(torch.stack([u.int() for u in used]).sum(0).max()) <= 1:
            columns = tuple(
                (role, heads, tuple(torch.nonzero(u).flatten().tolist()))
                for (role, heads, _), u in zip(found, used, strict=True)
            )
            return ReadSplit(number, value, lead, columns)
    return None


class _Groups:
    """Heads grouped by the entries of one tensor that they use: those that share an entry are one group."""

    def __init__(self, like: Tensor) -> None:
        self.owner = torch.full(like.shape, -1, dtype=torch.long, device=like.device)
        self.heads: list[tuple[int, ...]] = []

    def add(self, grad: Tensor | None, heads: tuple[int, ...]) -> None:
        """Some heads use the entries where their gradient is not zero."""
        if grad is None:
            return
        mask = grad != 0
        owners = [n for n in self.owner[mask].unique().tolist() if n >= 0]
        into = owners[0] if owners else len(self.heads)
        if not owners:
            self.heads.append(())
        for other in owners[1:]:
            self.owner[self.owner == other] = into
            self.heads[into] += self.heads[other]
            self.heads[other] = ()
        self.owner[mask] = into
        self.heads[into] += heads

    def masks(self) -> list[tuple[Tensor, tuple[int, ...]]]:
        """Every group's entries and heads."""
        return [(self.owner == n, heads) for n, heads in enumerate(self.heads) if heads]
