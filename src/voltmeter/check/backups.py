"""Writers that something outside the circuit makes up for, and writers inside of which one or the other is enough."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from voltmeter.check.case import Case
from voltmeter.check.cuts import measure_while
from voltmeter.check.elsewhere import ENOUGH
from voltmeter.check.few import few_train
from voltmeter.check.pieces import without
from voltmeter.check.split import Split
from voltmeter.discover.intervals import interval

MADE_UP = 0.25
"""Loss of f that the rest of the model makes up for, from which it counts: a quarter of the behaviour."""

FREE = 0.1
"""Loss of f up to which a writer can be cut; what "faithful at .9" lets go."""

MOST_WRITERS = 64
"""Writers tried one by one as a backup; where more have edges outside, components are tried whole."""

MOST_NAMED = 4
"""Writers judged, those that most seems to be made up for: who has seen four needs no more."""


@final
@dataclass(frozen=True)
class Backup:
    """A writer of the circuit whose loss the rest of the model makes up for.

    ``alone``: the loss of f when it is cut in the circuit; ``in_full``: in the full model; ``made_up``: the difference,
    with its interval. ``by``: what makes up for it, if that is known; ``both``: the loss when that is cut too.
    """

    writer: str
    alone: float
    in_full: float
    made_up: float
    low: float
    high: float
    by: str | None = None
    both: float | None = None


@final
@dataclass(frozen=True)
class Either:
    """A writer of the circuit that can be cut, but not together with any one of ``partners``."""

    writer: str
    partners: tuple[str, ...]
    loss: float


@final
class Losses:
    """Losses of f on a few pairs, when all edges of some writers are cut in the circuit or in the full model.

    ``tried`` and ``missed`` count what was cut, and what there was no time for.
    """

    def __init__(self, case: Case, split: Split) -> None:
        self.case, self.split, self.tried, self.missed = case, split, 0, 0
        self.full = torch.ones(len(case.wiring.edges))
        self.out_of: dict[str, list[int]] = {writer.name: [] for writer in case.wiring.writers}
        for number, edge in enumerate(case.wiring.edges):
            self.out_of[edge.writer].append(number)
        kept = case.circuit.kept.tolist()
        self.writers = [name for name, edges in self.out_of.items() if any(kept[edge] for edge in edges)]
        self.outside = {name: [e for e in edges if not kept[e]] for name, edges in self.out_of.items()}

    def values(self, keep: Float[Tensor, "edge"], cuts: list[list[int]]) -> Float64[Tensor, "cut pair"]:
        """The metric with each of ``cuts`` cut from ``keep``: fewer where there is no time for all."""
        if not cuts:
            return torch.zeros(0, len(self.split), dtype=torch.float64)
        found = measure_while(self.case.clock, self.split, without(keep, cuts), keep).values
        self.tried += len(found)
        self.missed += len(cuts) - len(found)
        return found

    def of(self, keep: Float[Tensor, "edge"], cuts: list[list[int]]) -> Float64[Tensor, "cut resample"]:
        """What each cut loses of f, first over all pairs and then in each bootstrap draw."""
        lost = self.split.measure(keep[None]).values - self.values(keep, cuts)
        gap, drawn = self.split.full - self.split.nothing, self.split.groups.drawn
        return torch.cat([(lost.mean(1) / gap.mean())[:, None], drawn(lost) / drawn(gap)], 1)

    @cached_property
    def in_circuit(self) -> Float64[Tensor, "writer resample"]:
        """Of each writer of the circuit, cut in the circuit."""
        return self.of(self.case.keep, [self.out_of[name] for name in self.writers])


def backups(case: Case, losses: Losses) -> tuple[Backup, ...]:
    """Writers that are made up for from outside, most first, and by what.

    Every writer is cut in the circuit, and those that lose something are cut in the full model, on a few pairs; those
    that may be made up for are judged on all held-out ones. ``by`` is chosen on train pairs.
    """
    suspects = _suspects(losses)[:MOST_NAMED]
    if not suspects:
        return ()
    judge, search = Losses(case, case.held_out), Losses(case, few_train(case))
    cuts = [judge.out_of[name] for name in suspects]
    ours, theirs = judge.of(case.keep, cuts), judge.of(judge.full, cuts)
    found = [_backup(*each) for each in zip(suspects, ours, theirs, strict=False)]
    named = [_named(each, search, judge) for each in found if each.made_up > MADE_UP]
    losses.tried += judge.tried + search.tried
    losses.missed += judge.missed + search.missed
    return tuple(sorted(named, key=lambda each: -each.made_up))


def _suspects(losses: Losses) -> list[str]:
    """Writers of which more than half as much as counts is made up for on a few pairs, most first."""
    ours = losses.in_circuit[:, 0].tolist()
    needed = [at for at, loss in enumerate(ours) if loss > MADE_UP / 2]
    theirs = losses.of(losses.full, [losses.out_of[losses.writers[at]] for at in needed])[:, 0].tolist()
    made_up = [(ours[at] - loss, losses.writers[at]) for at, loss in zip(needed, theirs, strict=False)]
    return [name for most, name in sorted(made_up, key=lambda each: -each[0]) if most > MADE_UP / 2]


def _backup(writer: str, alone: Float64[Tensor, "resample"], in_full: Float64[Tensor, "resample"]) -> Backup:
    made_up = alone - in_full
    return Backup(writer, float(alone[0]), float(in_full[0]), float(made_up[0]), *interval(made_up[1:]))


def _named(backup: Backup, search: Losses, judge: Losses) -> Backup:
    """The backup with what makes up for it, where one other writer's edges outside the circuit explain half of that."""
    gone = judge.out_of[backup.writer]
    groups = _candidates(search, backup.writer)
    names = list(groups)
    both = search.of(search.full, [[*gone, *groups[name]] for name in names])[:, 0]
    alone = search.of(search.full, [groups[name] for name in names[: len(both)]])[:, 0]
    together = both[: len(alone)] - alone
    if not len(together):
        return backup
    # Of a chain every writer explains it: the last one is what the others work through.
    best = names[int((together >= ENOUGH * together.max()).nonzero().max())]
    loss = judge.of(judge.full, [[*gone, *groups[best]], groups[best]])[:, 0].tolist()
    if len(loss) < 2 or loss[0] - loss[1] - backup.in_full < backup.made_up / 2:
        return backup
    return replace(backup, by=best, both=loss[0])


def _candidates(losses: Losses, besides: str) -> dict[str, list[int]]:
    """Name -> the edges outside the circuit of a writer, or of a component where there are too many writers."""
    inputs = losses.case.wiring.inputs  # everything comes of them, so that they explain nothing
    outside = {name: edges for name, edges in losses.outside.items() if edges and name not in (besides, *inputs)}
    if len(outside) <= MOST_WRITERS:
        return outside
    whole: dict[str, list[int]] = {}
    for name, edges in outside.items():
        whole.setdefault(losses.case.wiring.component_of(name), []).extend(edges)
    return whole


def either(case: Case, losses: Losses) -> Either | None:
    """The first two ways to the same that the circuit holds, or None.

    The writers that can each be cut are cut one after the other, the least needed first. Where the loss comes all at
    once, the last one was only free because of one cut before; each of these is then cut with it alone.
    """
    alone = zip(losses.in_circuit[:, 0].tolist(), losses.writers, strict=False)
    free = sorted((loss, name) for loss, name in alone if abs(loss) <= FREE)
    names = [name for _, name in free]
    running = [[e for name in names[: at + 1] for e in losses.out_of[name]] for at in range(len(names))]
    after = losses.of(case.keep, running)[:, 0].tolist()
    before = 0.0
    for at, loss in enumerate(after):
        if loss - before > MADE_UP:
            return _partners(case, losses, names[at], names[:at])
        before = loss
    return None


def _partners(case: Case, losses: Losses, name: str, others: list[str]) -> Either | None:
    pairs = [[*losses.out_of[name], *losses.out_of[other]] for other in others]
    both = losses.of(case.keep, pairs)[:, 0].tolist()
    partners = [(loss, other) for loss, other in zip(both, others, strict=False) if loss > MADE_UP]
    if not partners:
        return None
    return Either(name, tuple(other for _, other in partners), max(loss for loss, _ in partners))
