"""What nobody could have found on these data under this fill: edges that carry the same kept and cut.

A cut edge carries its writer's fill, a kept one what the writer wrote. Where the two are equal on every pair and at
every position, no run tells whether the edge is in the circuit: a method that leaves it out knows no better than one
that takes it in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.check.case import Case
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Verdict
from voltmeter.check.pieces import listed
from voltmeter.check.registry import register
from voltmeter.discover.question import Batch
from voltmeter.errors import counted
from voltmeter.run.engine import Cut
from voltmeter.run.keep import Keep
from voltmeter.run.padding import with_positions
from voltmeter.task.tree import named_tensors
from voltmeter.wiring.inputs import call, device_of
from voltmeter.wiring.tap import Tap
from voltmeter.wiring.wiring import Wiring

ROUNDING = 256  # spacings of numbers as large as the stream's largest: what two forwards' sums differ by
N_MIXED = 12  # runs with half of the edges cut, in which a writer that takes no part must be silent too
_ROWS = 200  # of details


@register("identifiable", "does every edge carry something under this fill, so that a method could find it?")
def identifiable(case: Case) -> Finding:
    """The writers whose fill is what they write, on every train and held-out pair; and inputs that never vary.

    It holds where every edge carries something, fails where an edge of the circuit carries nothing (it is there by
    accident: cutting it alone changes nothing at all), and cannot tell where only edges outside do: no method could
    have found them. Writers that write zero in every run, with edges cut too, take no part: they are told, and make a
    difference only where the circuit has edges of theirs. Costs two forwards of all pairs, ``N_MIXED`` of one batch.
    """
    writers = written(case)
    edges, kept = case.wiring.edges.writer_numbers, case.circuit.kept
    dead = torch.isin(edges, numbers_of(each for each in writers if each.is_same))
    silent = torch.isin(edges, numbers_of(each for each in writers if each.is_silent))
    useless = torch.isin(edges, numbers_of(each for each in writers if each.is_same_in_circuit))
    accidents, unseen = useless & kept, dead & ~silent & ~kept
    verdict: Verdict = FAILS if bool(accidents.any()) else CANNOT_TELL if bool(unseen.any()) else HOLDS
    rows = [_row(case, each, edges, kept) for each in writers if each.is_same]
    return Finding(
        "identifiable",
        verdict,
        int((accidents | unseen).sum()) / len(edges),
        None,
        None,
        f"edges that carry something else kept than cut, under {case.question.fill.name} fills",
        _says(case, writers, accidents, unseen),
        tuple([*rows, *_still_inputs(case)][:_ROWS]),
        {
            "pairs": sum(len(batch.pairs) for batch in _batches(case)),
            "edges": len(edges),
            "kept_edges_that_carry_nothing": int(accidents.sum()),
            "other_edges_that_carry_nothing": int(unseen.sum()),
            "silent_writers": sum(each.is_silent for each in writers),
        },
    )


@final
@dataclass
class Written:
    """Of one writer, over all pairs and positions. Sizes below ``rounding`` are zero."""

    number: int
    apart: float = 0.0
    """The largest |fill - out|."""
    apart_in_circuit: float = 0.0
    """The same in the circuit's own run, in which a writer may wake that is asleep in the full model."""
    size: float = 0.0
    """The largest |out|."""
    spread: float = 0.0
    """How far apart what it writes at one place is, between pairs."""
    size_when_cut: float = 0.0
    """The largest |out| in runs with edges cut."""
    rounding: float = 0.0

    @property
    def is_same(self) -> bool:
        """Whether its edges carry the same kept and cut."""
        return self.apart <= self.rounding

    @property
    def is_same_in_circuit(self) -> bool:
        """Whether they do in the circuit too: cutting one of them then changes nothing at all."""
        return self.is_same and self.apart_in_circuit <= self.rounding

    @property
    def is_silent(self) -> bool:
        """Whether it writes zero in every run."""
        return self.is_same and max(self.size, self.size_when_cut) <= self.rounding

    @property
    def is_constant(self) -> bool:
        return self.spread <= self.rounding


def numbers_of(writers: Iterator[Written]) -> Tensor:
    """Their numbers, to be looked for."""
    return torch.tensor([each.number for each in writers], dtype=torch.long)


def written(case: Case) -> list[Written]:
    """What every writer of the wiring writes, over all pairs."""
    wiring = case.wiring
    found = [Written(writer.number) for writer in wiring.writers]
    n = len(wiring.edges)
    for batch in _batches(case):
        for of, out, delta in _runs(wiring, batch, torch.ones(n)):
            each = found[of]
            each.apart = max(each.apart, float(delta.abs().max()))
            each.size = max(each.size, float(out.abs().max()))
            each.spread = max(each.spread, float((out.amax(0) - out.amin(0)).max()))
        for of, _, delta in _runs(wiring, batch, case.keep):
            found[of].apart_in_circuit = max(found[of].apart_in_circuit, float(delta.abs().max()))
    random = case.random("identifiable")
    mixed = [torch.zeros(n), *((random.uniform(n) < 0.5).float() for _ in range(N_MIXED))]
    for of, out, _ in (one for keep in mixed for one in _runs(wiring, next(_batches(case)), keep)):
        found[of].size_when_cut = max(found[of].size_when_cut, float(out.abs().max()))
    eps = ROUNDING * torch.finfo(next(_floats(wiring))).eps
    for members in wiring.plan.stream_writers:
        for member in members:
            found[member].rounding = eps * max(found[other].size for other in members)
    return found


def _batches(case: Case) -> Iterator[Batch]:
    """The held-out pairs, and the train pairs where they are others."""
    yield from case.held_out.judge.batches
    if case.task.train is not case.task.held_out:
        yield from case.question.batches()


@torch.no_grad()
def _runs(
    wiring: Wiring, batch: Batch, keep: Float[Tensor, "edge"]
) -> Iterator[tuple[int, Float[Tensor, "..."], Float[Tensor, "..."]]]:
    """For each writer, what it writes to its stream in a run, and what its fill differs by from that."""
    inputs = with_positions(wiring.model, batch.clean)
    run = Cut(wiring, inputs, Keep(keep.to(device_of(wiring.model)), "edge"), batch.fill)
    with Tap(wiring.model, wiring.plan, run, wiring.modes):
        call(wiring.model, inputs)
    for stream, members in enumerate(wiring.plan.stream_writers):
        for at, member in enumerate(members):
            delta = run.tape.delta[stream][at : at + 1]
            fill = batch.fill.rows(stream, slice(at, at + 1), delta)
            yield member, (-delta if fill is None else fill - delta)[0], delta[0]


def _floats(wiring: Wiring) -> Iterator[torch.dtype]:
    """The type of the weights; of a model without any, the usual one."""
    yield from (p.dtype for p in wiring.model.parameters() if p.dtype.is_floating_point)
    yield torch.get_default_dtype()


# In words --------------------------------------------------------------------------------------------------------


def _says(case: Case, writers: list[Written], accidents: Tensor, unseen: Tensor) -> str:
    fill, names = case.question.fill.name, case.circuit.edges
    silent = [_name(case, each) for each in writers if each.is_silent]
    aside = f"; {listed(silent)} never write anything" if silent else ""
    if bool(accidents.any()):
        kept = [names[at] for at in accidents.nonzero().flatten().tolist()]
        carry = counted(len(kept), "edge of the circuit carries", "edges of the circuit carry")
        return (
            f"{carry} the same kept and cut, on every pair, and {'is' if len(kept) == 1 else 'are'} in it by accident: "
            f"{listed(kept)}{aside}"
        )
    if not bool(unseen.any()):
        return f"all edges carry something else than their {fill} fill on some pair{aside}"
    which = [each for each in writers if each.is_same and not each.is_silent]
    mends = list(dict.fromkeys(_mend(each, fill) for each in which))
    edges = counted(int(unseen.sum()), "edge", "edges")
    return (
        f"{edges} outside the circuit, out of {listed([_name(case, each) for each in which])}, carry the same kept and "
        f"cut on every pair: no method could have found them; {', or '.join(mends)} would show them{aside}"
    )


def _mend(each: Written, fill: str) -> str:
    """What would show its edges."""
    if each.size <= each.rounding:
        return "inputs on which they write something"
    if each.is_constant:
        return "a zero fill" if fill != "zero" else "inputs on which they write something"
    return "a zero or mean fill, or pairs that differ in what they read"


def _name(case: Case, each: Written) -> str:
    return case.wiring.writers[each.number].name


def _row(case: Case, each: Written, edges: Tensor, kept: Tensor) -> dict[str, Any]:
    of = edges == each.number
    is_what = "silent" if each.is_silent else "constant" if each.is_constant else "the same as its fill"
    return {
        "writer or input": _name(case, each),
        "is": is_what,
        "edges": int(of.sum()),
        "kept": int((of & kept).sum()),
        "shown by": "nothing: it takes no part" if each.is_silent else _mend(each, case.question.fill.name),
    }


def _still_inputs(case: Case) -> Iterator[dict[str, Any]]:
    """Columns (token positions, features) that are the same in every pair, or in both runs of each pair."""
    splits = [case.task.held_out] + ([case.task.train] if case.task.train is not case.task.held_out else [])
    sides = [[dict(named_tensors(side)) for side in (pairs.clean, pairs.corrupted)] for pairs in splits]
    for name, tensor in sides[0][0].items():
        if tensor.dim() < 2 or "mask" in name:
            continue
        width = min(clean[name].shape[1] for clean, _ in sides)
        constant = _all(clean[name][:, :width] == clean[name][:1, :width] for clean, _ in sides)
        paired = _all(clean[name][:, :width] == corrupted[name][:, :width] for clean, corrupted in sides)
        for what, columns in (("constant", constant), ("the same in both runs", paired & ~constant)):
            if bool(columns.any()):
                yield {
                    "writer or input": f"input{name}, columns {listed(_ranges(columns), 12)} of {width}",
                    "is": what,
                    "edges": None,
                    "kept": None,
                    "shown by": "inputs that vary there",
                }


def _all(same: Iterator[Tensor]) -> Tensor:
    """Bool [column]: where all of several [pair, column, ...] are true."""
    found = [each.flatten(2).all(2).all(0) if each.dim() > 2 else each.all(0) for each in same]
    return torch.stack(found).all(0)


def _ranges(columns: Tensor) -> list[str]:
    """ "0", "3-7"."""
    ends: list[list[int]] = []
    for at in columns.nonzero().flatten().tolist():
        if ends and ends[-1][1] == at - 1:
            ends[-1][1] = at
        else:
            ends.append([at, at])
    return [str(first) if first == last else f"{first}-{last}" for first, last in ends]
