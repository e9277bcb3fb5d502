"""``truth``: which edges a compiled model needs on its inputs, certified in stated grades. One page of passes.

    setting      what the edges carry, kept and cut            setting.py
    effects      every edge cut alone                          effects.py
    grades       sufficient, 1-minimal, no restoring pair      here
    search       all minimal circuits                          search.py
    explained    the dataflow's edges that are not necessary   explain.py

Single cuts alone prove little: a veto ``x + relu(u - 10 a)``, a cancellation ``x + p - p`` or two paths of which either
suffices each defeat them. The search over all circuits is exact and does not build on them.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from voltmeter.errors import AddressError, TruthError, nearest
from voltmeter.files import digest_json
from voltmeter.rasp.certificate import LEAST_GAP, Certificate, Grades, Unique
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.dataflow import provenance_of
from voltmeter.rasp.effects import Base, further_cuts, names_of, run_cut, run_kept
from voltmeter.rasp.explain import explain
from voltmeter.rasp.machine import machine_of
from voltmeter.rasp.search import Found, can_matter, minimal_circuits, witnesses
from voltmeter.rasp.setting import Question, Setting, largest, setting_of
from voltmeter.versions import version_of
from voltmeter.wiring.load import digest_of

LIMIT = 100_000


def truth(
    compiled: Compiled,
    fill: str,
    positions: str = "paired",
    tolerance: float = 1e-6,
    output: str = "raw",
    seed: int = 0,
    limit: int = LIMIT,
) -> Certificate:
    """The truth about ``compiled`` on its own inputs; edges are those of its wiring with the input split.

    ``fill``: what cut edges carry; mean fills are over the inputs, resample fills pair every input with another one by
    ``seed``; with ``positions="random"`` that other run's positional embeddings are shuffled too, for each input by
    itself, BOS's apart. ``tolerance`` τ: the output changed where it moved by more than τ at some input and some
    position that is not BOS's; ``output="decoded"``: where it stands for another value, in a share of more than τ of
    the answers. ``limit``: after how many states the search for minimal circuits stops (the grade is then "presumed"),
    and the most pairs that are tried: against "no restoring pair" (the grade is else None), and for what is redundant
    (else no edge is called so).

    Costs a forward pass over the inputs for each edge that carries anything, and a search over a few inputs. Returns a
    certificate even where τ is too near some effect for one (``certified`` is then false, and it will not be saved).
    Raises AddressError for a provenance that names unknown edges, and TruthError for settings that are unknown or could
    change nothing (``setting_of``), and for outputs that are not finite, also with edges cut.
    """
    started = time.perf_counter()
    question = Question(fill, positions, output, tolerance, seed)
    if limit < 1:
        raise TruthError(f"a limit of {limit} states leaves nothing to search", mend=f"{LIMIT:,} is usual")
    provenance = _provenance(compiled)
    setting = setting_of(compiled, question)
    _require_exact(compiled, setting)
    base = run_cut(setting, ())
    names, n = setting.machine.edges, len(setting.machine.edges)
    changes = further_cuts(setting, base, range(n))
    effects: list[float] = setting.over_inputs(changes).tolist()
    nothing_kept = _effect(setting, run_kept(setting, ()))
    _require_finite(compiled, {**dict(zip(names, effects, strict=True)), "every edge": nothing_kept})
    necessary = [edge for edge in range(n) if effects[edge] > tolerance]
    rows = witnesses(changes, tolerance)
    matters = [edge for edge, does in enumerate(can_matter(setting)) if does]
    alone = _Alone.of(setting, necessary, rows)
    restoring = _restoring(setting, necessary, matters, rows, limit)
    suffice = [range(n), *alone.suffice(necessary), *([()] if nothing_kept <= tolerance else [])]
    found = _believed(minimal_circuits(setting, rows, limit), suffice)
    grades = Grades(
        sufficient=alone.sufficient,
        one_minimal=alone.sufficient and not alone.droppable,
        no_restoring_pair=None if restoring is None else not restoring,
        unique=_unique(necessary, alone, found),
        searched=found.searched,
    )
    in_dataflow = set(provenance)
    others = [edge for edge in matters if effects[edge] <= tolerance]
    unexplained = [at for at, name in enumerate(names) if name in in_dataflow and effects[at] <= tolerance]
    return Certificate(
        name=compiled.name,
        model=digest_of(compiled.model),
        inputs=digest_json(compiled.inputs),
        n_inputs=len(compiled.inputs),
        outputs=compiled.model.interface.output_labels,
        question=question,
        dtype=str(setting.tok.dtype).removeprefix("torch."),
        versions={"voltmeter": version_of("voltmeter"), "torch": torch.__version__},
        effects=dict(zip(names, effects, strict=True)),
        grades=grades,
        minimal=tuple(
            names_of(setting.machine, circuit) for circuit in _circuits(setting, necessary, rows, alone, found)
        ),
        search=found.search,
        restoring=tuple((names[first], names[second]) for first, second in restoring or ()),
        droppable=names_of(setting.machine, alone.droppable),
        nothing_kept=nothing_kept,
        necessary_kept=alone.effect,
        outputs_vary=_outputs_vary(setting),
        answers=setting.answers,
        size=float(setting.full.abs().max()),
        provenance=provenance,
        provenance_from="weights" if compiled.provenance is None else "program",
        explained=explain(setting, base, unexplained, effects, others, limit),
        limit=limit,
        seconds=time.perf_counter() - started,
    )


# passes -------------------------------------------------------------------------------------------------------


def _require_exact(compiled: Compiled, setting: Setting) -> None:
    if setting.full.dtype != torch.float64:
        raise TruthError(
            f"{compiled.name} computes in {str(setting.full.dtype).removeprefix('torch.')}, truths are told in float64",
            mend="convert it: compiled.model.double()",
        )
    if not bool(torch.isfinite(setting.full).all() and torch.isfinite(setting.outs).all()):
        raise TruthError(
            f"{compiled.name} computes numbers that are not finite", mend="look at its weights: compile it again"
        )


def _require_finite(compiled: Compiled, effects: dict[str, float]) -> None:
    """A NaN is not over any tolerance, and would pass for no effect."""
    broken = [f"{cut} cut: {effect}" for cut, effect in effects.items() if not math.isfinite(effect)]
    if broken:
        raise TruthError(
            f"with edges cut, {compiled.name} computes numbers that are not finite",
            broken,
            "look at its weights, or use another fill",
        )


def _outputs_vary(setting: Setting) -> bool:
    """By more than τ; where τ is not small, by more than a leak."""
    full = setting.full
    if setting.answers is not None:
        return bool((largest(full) != largest(full[:1])).any())
    return bool(((full - full[:1]).abs() > min(setting.question.tolerance, float(full.abs().max()) / LEAST_GAP)).any())


def _effect(setting: Setting, base: Base) -> float:
    return float(setting.effect(base.answer))


@final
@dataclass(frozen=True)
class _Alone:
    """The necessary edges with nothing else kept: the output's change, and which of them can be cut besides."""

    effect: float
    sufficient: bool
    droppable: tuple[int, ...]

    @classmethod
    def of(cls, setting: Setting, necessary: Sequence[int], rows: Sequence[int]) -> "_Alone":
        effect = _effect(setting, run_kept(setting, necessary))
        if not math.isfinite(effect):
            raise TruthError(
                "with only the necessary edges kept, numbers are computed that are not finite",
                mend="look at the weights, or use another fill",
            )
        if effect > setting.question.tolerance:
            return cls(effect, False, ())
        cut = set(range(len(setting.machine.edges))) - set(necessary)
        return cls(effect, True, tuple(_quiet(setting, rows, cut, necessary)))

    def suffice(self, necessary: Sequence[int]) -> list[Sequence[int]]:
        """The circuits that these runs found sufficient."""
        fewer = [[edge for edge in necessary if edge != dropped] for dropped in self.droppable]
        return [necessary, *fewer] if self.sufficient else []


def _quiet(setting: Setting, rows: Sequence[int], cut: Iterable[int], edges: Sequence[int]) -> list[int]:
    """Those of ``edges`` whose cut besides ``cut`` leaves the output as the uncut model's.

    An edge that changes the output at one of ``rows`` is none; only those left over are run on all inputs.
    """
    tolerance, left = setting.question.tolerance, list(edges)
    for where in (setting.on(rows), setting):
        if left:
            changes = further_cuts(where, run_cut(where, cut), left).amax(-1).tolist()
            left = [edge for edge, change in zip(left, changes, strict=True) if change <= tolerance]
    return left


def _restoring(
    setting: Setting, necessary: Sequence[int], matters: Sequence[int], rows: Sequence[int], limit: int
) -> list[tuple[int, int]] | None:
    """Pairs (necessary, other) whose cut together leaves the output as it was; None if they are more than ``limit``.

    A pair of two necessary edges is tried once. Edges that can carry nothing are passed over: cutting them is cutting
    nothing.
    """
    n = len(necessary)
    if n * len(matters) - n * (n + 1) // 2 > limit:
        return None
    number = {edge: at for at, edge in enumerate(necessary)}
    return [
        (first, second)
        for at, first in enumerate(necessary)
        for second in _quiet(setting, rows, [first], [edge for edge in matters if number.get(edge, n) > at])
    ]


def _believed(found: Found, suffice: Iterable[Iterable[int]]) -> Found:
    """The search, unless exact runs contradict it: each circuit that they found sufficient holds a minimal one."""
    if found.search == "stopped":
        return found
    if all(any(circuit <= kept for circuit in found.minimal) for kept in map(set, suffice)):
        return found
    return replace(found, minimal=(), search="unsure")


def _unique(necessary: Sequence[int], alone: _Alone, found: Found) -> Unique:
    """Whether the necessary edges are the only minimal circuit."""
    if found.minimal == (frozenset(necessary),):
        return "yes" if found.search == "whole" else "presumed"
    if found.minimal:  # run exactly, each suffices: one lacks a necessary edge, or the necessary edges do not suffice
        return "no"
    return "presumed" if alone.sufficient and not alone.droppable else "no"


def _circuits(
    setting: Setting, necessary: Sequence[int], rows: Sequence[int], alone: _Alone, found: Found
) -> tuple[frozenset[int], ...]:
    """Those that were found. If none: one, 1-minimal only, and only if the necessary edges suffice."""
    if found.minimal:
        return found.minimal
    if not alone.sufficient:
        return ()
    kept, droppable = list(necessary), alone.droppable
    while droppable:
        kept.remove(droppable[0])
        droppable = _Alone.of(setting, kept, rows).droppable
    return (frozenset(kept),)


def _provenance(compiled: Compiled) -> tuple[str, ...]:
    """The edges of the program's dataflow, from the compiler if it said so, else from the weights; in wiring order."""
    if compiled.provenance is None:
        return provenance_of(compiled.model)
    names = machine_of(compiled.model).edges
    known, used = set(names), set(compiled.provenance)
    unknown = [edge for edge in compiled.provenance if edge not in known]
    if unknown:
        raise AddressError(
            f"the provenance of {compiled.name} names {len(unknown)} edges that its model has not",
            [f"{edge}: {nearest(edge, names)}" for edge in unknown],
        )
    return tuple(name for name in names if name in used)
