"""What the rest of the model does without the circuit: is it needed, and is it all that is needed?

    necessary   the full model with the circuit's edges cut loses the behaviour
    complete    whatever else is cut from both, the circuit goes on doing what the full model does

Completeness is Wang et al.'s (2211.00593): |F(C \\ K) - F(M \\ K)| for subsets K of the circuit, of which the worst is
looked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.check.case import Case
from voltmeter.check.check import left_out
from voltmeter.check.cuts import Differences, measure_once, measure_while, no_interval, percent
from voltmeter.check.finding import CANNOT_TELL, HOLDS, Finding, Picture, within
from voltmeter.check.pieces import listed
from voltmeter.check.registry import register
from voltmeter.check.split import Measured, Split

LOST = 0.5  # of the effect: what is needed is needed for most of it
N_RANDOM = 21  # random sets of edges; only their median is used, and it is known to about a fifth of their spread
INCOMPLETE = 0.3  # of the effect: three times what a circuit faithful at 0.9 may miss, as K is the worst of many
N_HALVES = 6  # sampled K
N_FIRST = 12  # writers tried alone, before the greedy search goes on from the worst K so far
N_STEPS = 3  # writers added to it after that, one by one
N_TRIED = 4  # writers tried at each of those steps
N_PAIRS = 32  # on which K is chosen; it is measured on all
_ROWS = 200  # of details


# necessary -------------------------------------------------------------------------------------------------------


@register("necessary", "does the full model lose it when the circuit alone is cut?")
def necessary(case: Case) -> Finding:
    """The full model without the circuit's edges, beside the full model without as many edges drawn at random.

    It holds where more than ``LOST`` of the effect is gone, and fails where less is: then it is done elsewhere too.
    Where half of the random sets lose as much, being needed says nothing about these edges: "cannot tell". Costs one
    masked forward of the held-out pairs, and ``N_RANDOM`` of at most 64 of them.
    """
    why = no_interval(case.few)
    if why:
        return left_out("necessary", why)
    rest = 1 - case.keep
    found = case.held_out.measure(rest[None])
    f, (low, high) = float(found.f[0]), found.interval()
    verdict = within(low, high, at_most=LOST)
    sets = _random_sets(case)
    random = measure_while(case.clock, case.few, 1 - sets).f
    same_pairs = float(case.few.measure(rest[None]).f[0])
    typical = float(random.median())
    as_bad = verdict == HOLDS and typical <= same_pairs + 1e-5
    return Finding(
        "necessary",
        CANNOT_TELL if as_bad else verdict,
        f,
        low,
        high,
        f"{len(random)} random sets of {len(case.circuit):,} edges cut instead: half leave {percent(typical)} or more",
        _necessary_says(case, f, low, high, typical, as_bad),
        tuple({"cut": f"random set {n + 1}", "f": round(value, 4)} for n, value in enumerate(random.tolist())),
        {"pairs": len(case.held_out), "groups": case.held_out.groups.count, "circuits": 2 + len(random)}
        | _left_out(len(sets) - len(random), "random sets"),
        Picture(
            "bars",
            "What is left of the effect",
            "what is cut from the full model",
            f"share of the {case.task.metric.name}",
            {
                "names": ["the circuit", *(f"random {n + 1}" for n in range(len(random)))],
                "values": [f, *random.tolist()],
            },
            LOST,
        ),
    )


def _random_sets(case: Case) -> Float[Tensor, "circuit edge"]:
    """As many edges as the circuit has, drawn from all."""
    random, n = case.random("necessary"), len(case.keep)
    sets = torch.zeros(N_RANDOM, n)
    for each in sets:
        each[random.choose(n, len(case.circuit))] = 1
    return sets


def _necessary_says(case: Case, f: float, low: float, high: float, typical: float, as_bad: bool) -> str:
    metric, count = case.task.metric.name, len(case.circuit)
    said = (
        f"with the circuit alone cut, the full model keeps {percent(f)} of the {metric} "
        f"({percent(low)} to {percent(high)})"
    )
    if as_bad:
        return (
            f"{said}, but cutting {count:,} edges at random leaves no more ({percent(typical)}, in the middle): that "
            "these edges are needed says nothing; a smaller circuit would tell"
        )
    if not count:
        return f"{said}: the circuit is empty, nothing was cut"
    return f"{said}; at most {LOST:.0%} was asked for. As many random edges cut leave {percent(typical)}"


def _left_out(count: int, what: str) -> dict[str, Any]:
    return {"left_out": f"{count} {what}: the time was used up"} if count else {}


# complete --------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Knocked:
    """What is cut from the circuit and from the full model alike: edges out of some of the circuit's writers.

    ``whole``: from the full model all edges out of them, as if the writers were knocked out; else those of the circuit
    only. In the circuit the two are the same. The first sees what steps in for a writer that is gone; the second what
    an input goes on to do by other ways.
    """

    writers: tuple[int, ...]
    whole: bool


@register("complete", "does the circuit do what the full model does, also when parts of both are cut?")
def complete(case: Case) -> Finding:
    """The largest |F(C \\ K) - F(M \\ K)| found over writers K of the circuit: sampled halves, then greedily the worst.

    K is chosen on ``N_PAIRS`` held-out pairs and measured on all of them. It holds where the difference is at most
    ``INCOMPLETE`` of the effect, and fails where it is more: something outside does what the circuit did. Costs up to
    three masked forwards of those pairs for each of about thirty sets of writers.
    """
    why = no_interval(case.few)
    if why:
        return left_out("complete", why)
    search = Search(case)
    worst = search.worst()
    circuit, full = _both(case, case.held_out, worst)
    found = Differences(circuit, full)
    f, (low, high) = float(found.f[0].abs()), found.interval_of_f()
    return Finding(
        "complete",
        within(low, high, at_most=INCOMPLETE),
        f,
        low,
        high,
        f"the full model with the same cut, {len(search.tried):,} sets of the circuit's writers tried",
        _complete_says(case, worst, float(circuit.f[0]), float(full.f[0]), low, high),
        tuple(_tried_row(case, knocked, size) for knocked, size in search.worst_first()[:_ROWS]),
        {
            "pairs": len(case.held_out),
            "groups": case.held_out.groups.count,
            "sets": len(search.tried),
        }
        | ({"left_out": "the search for the worst set: the time was used up"} if search.stopped else {}),
    )


@final
class Search:
    """K tried so far, each with |F(C \\ K) - F(M \\ K)| on a few pairs."""

    def __init__(self, case: Case) -> None:
        self.case, self.random = case, case.random("complete")
        pairs = case.few.pairs
        chosen = sorted(self.random.choose(len(pairs), N_PAIRS))
        self.split = case.few if len(chosen) == len(pairs) else Split.of(case.question, pairs.batch(chosen))
        self.tried: dict[Knocked, float] = {}
        self.stopped = False
        numbers = case.wiring.edges.writer_numbers
        self.writers: list[int] = numbers[case.circuit.kept].unique().tolist()

    def worst(self) -> Knocked:
        """Sampled halves; then writer by writer from the worst single one. Stops where there is no more time."""
        self._try([(), *self._halves()])
        self._try([(writer,) for writer in self._some(self.writers, N_FIRST)])
        for _ in range(N_STEPS):
            start = self._best().writers
            others = [writer for writer in self.writers if writer not in start]
            if not others or self.stopped:
                break
            self._try([tuple(sorted((*start, writer))) for writer in self._some(others, N_TRIED)])
            if self._best().writers == start:
                break
        return self._best()

    def worst_first(self) -> list[tuple[Knocked, float]]:
        """Of sets that do as badly, the smallest comes first."""
        return sorted(self.tried.items(), key=lambda item: (-round(item[1], 6), len(item[0].writers)))

    def _best(self) -> Knocked:
        return self.worst_first()[0][0]

    def _halves(self) -> Iterator[tuple[int, ...]]:
        """Each writer in or out, as a coin falls."""
        for _ in range(N_HALVES if len(self.writers) > 1 else 0):
            heads = (self.random.uniform(len(self.writers)) < 0.5).tolist()
            yield tuple(writer for writer, is_in in zip(self.writers, heads, strict=True) if is_in)

    def _some(self, writers: list[int], count: int) -> list[int]:
        return [writers[at] for at in self.random.choose(len(writers), count)]

    def _try(self, sets: list[tuple[int, ...]]) -> None:
        new = dict.fromkeys(Knocked(writers, whole) for writers in sets for whole in (False, True))
        wanted = [knocked for knocked in new if knocked not in self.tried and (knocked.writers or not knocked.whole)]
        if self.tried and self.case.clock.over:
            self.stopped = self.stopped or bool(wanted)
            return
        for some in (wanted[at : at + 64] for at in range(0, len(wanted), 64)):
            found = Differences(*_both(self.case, self.split, *some))
            self.tried.update(zip(some, found.f.abs().tolist(), strict=True))


def _both(case: Case, split: Split, *knocked: Knocked) -> tuple[Measured, Measured]:
    """The circuit without each K, and the full model without it, measured."""
    full = torch.ones_like(case.keep)
    without = torch.stack([_without(case, full, each) for each in knocked])
    return measure_once(split, case.keep * without), measure_once(split, without)


def _without(case: Case, keep: Float[Tensor, "edge"], knocked: Knocked) -> Float[Tensor, "edge"]:
    """The full model without K."""
    gone = torch.isin(case.wiring.edges.writer_numbers, torch.tensor(knocked.writers, dtype=torch.long))
    return keep.masked_fill(gone if knocked.whole else gone & case.circuit.kept, 0)


def _names(case: Case, knocked: Knocked) -> list[str]:
    return [case.wiring.writers[writer].name for writer in knocked.writers]


def _with_cut(case: Case, knocked: Knocked) -> str:
    """ "with all edges out of a, b, c, d and 2 more cut"."""
    if not knocked.writers:
        return "with nothing else cut"
    which = "all edges" if knocked.whole else "the circuit's edges"
    return f"with {which} out of {listed(_names(case, knocked))} cut"


def _complete_says(case: Case, worst: Knocked, circuit: float, full: float, low: float, high: float) -> str:
    return (
        f"{_with_cut(case, worst)}, the circuit keeps {percent(circuit)} of the {case.task.metric.name} and the full "
        f"model {percent(full)}: {percent(abs(circuit - full))} apart ({percent(low)} to {percent(high)}), at most "
        f"{INCOMPLETE:.0%} was asked for"
    )


def _tried_row(case: Case, knocked: Knocked, size: float) -> dict[str, Any]:
    return {"cut": listed(_names(case, knocked), 12), "whole": knocked.whole, "apart": round(size, 4)}
