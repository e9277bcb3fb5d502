"""``verify``: a certificate checked from scratch, by other means than those that made it.

Every figure is measured again with the slow engine (one edge at a time, one circuit at a time), through the model's
traced wiring; nothing of the machine, the batched cuts or the search is used. A search over all circuits cannot be
repeated so: each minimal circuit is shown to suffice, and not to without any one of its edges; that there is no other
is only looked for, among random circuits. Of explanations, which edges have one is checked, not the words.
"""

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from voltmeter.errors import TruthError
from voltmeter.files import digest_json
from voltmeter.rasp.certificate import LEAST_GAP, Certificate
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.dataflow import provenance_of
from voltmeter.rasp.refill import fill_values_of
from voltmeter.rasp.setting import answers_counted, largest
from voltmeter.rasp.wired import Source, wiring_of
from voltmeter.run.run import run
from voltmeter.wiring.load import digest_of

# Two ways of adding the same numbers differ by some 1e-15; the ramps of a compiled MLP are up to 100 steep, and a
# handful of them stand behind each other.
_ROUNDING = 1e-9


@final
@dataclass(frozen=True)
class Verified:
    """What was run: circuits, pairs tried of all there are, random circuits that lack a necessary edge.

    ``wired``: what the wiring's own laws were verified on.
    """

    circuits: int
    pairs: int
    all_pairs: int
    samples: int
    wired: Source
    seconds: float


def verify(certificate: Certificate, compiled: Compiled, pairs: int | None = 100, samples: int = 100) -> Verified:
    """Check a certificate of ``compiled`` from scratch.

    ``pairs``: how many pairs of cuts are tried against the grade "no restoring pair" (None: all); ``samples``: how many
    random circuits that lack a necessary edge are tried against the grade "unique". Both are drawn by the seed.

    Costs one slow run over all inputs for every edge, every pair and every sample, and one for each edge of each
    minimal circuit. Raises TruthError naming everything that differs, and whatever wiring the model raises.
    """
    started = time.perf_counter()
    identity = list(_identity(certificate, compiled))
    if identity:
        raise TruthError(f"the certificate of {certificate.name} is of something else", identity)
    check = _Check(certificate, compiled)
    differences = [difference for find in check.passes(pairs, samples) for difference in find]
    if differences:
        raise TruthError(
            f"the certificate of {certificate.name} does not check: {len(differences)} of its statements differ",
            differences,
            "make it again: truth(compiled, ...)",
        )
    return Verified(check.runs, check.pairs, check.all_pairs, check.samples, check.wired, time.perf_counter() - started)


def _identity(it: Certificate, compiled: Compiled) -> Iterator[str]:
    face = compiled.model.interface
    outputs = face.output_labels
    dtype = str(compiled.model.token_embedding.weight.dtype).removeprefix("torch.")
    for what, said, found in (
        ("program", it.name, compiled.name),
        ("model's digest", it.model, digest_of(compiled.model)),
        ("inputs' digest", it.inputs, digest_json(compiled.inputs)),
        ("number of inputs", it.n_inputs, len(compiled.inputs)),
        ("output", it.outputs, outputs),
        ("dtype", it.dtype, dtype),
        ("number of decoded answers", it.answers, answers_counted(it.question, compiled.model, *_sizes(compiled))),
    ):
        if said != found:
            yield f"{what}: {said} is certified, {found} was given"


def _sizes(compiled: Compiled) -> tuple[int, int]:
    return len(compiled.inputs), len(compiled.inputs[0])


@final
class _Check:
    """One check: the question put anew, and its passes, each of which yields what differs."""

    def __init__(self, certificate: Certificate, compiled: Compiled) -> None:
        wired = wiring_of(compiled)
        self.it, self.wired, self.wiring = certificate, wired.verified_on, wired.wiring
        self.compiled, self.model, self.tokens = compiled, compiled.model, compiled.model.encode(compiled.inputs)
        with torch.no_grad():
            self.full: Tensor = self.model(self.tokens)[:, 1:]
        self.fill = fill_values_of(certificate.question, self.model, self.wiring, self.tokens)
        self.runs = self.pairs = self.all_pairs = self.samples = 0

    def passes(self, pairs: int | None, samples: int) -> Iterator[Iterable[str]]:
        names = self.wiring.edges.names
        if names != tuple(self.it.effects):
            unknown = set(names) ^ set(self.it.effects)
            yield [f"the certificate has other edges than the model: {edge}" for edge in sorted(unknown)] or ["order"]
            return
        yield self._outputs()
        yield self._effects()
        yield self._gap()
        yield self._necessary_alone()
        yield self._minimal()
        yield self._restoring(pairs)
        yield self._unique(samples)
        yield self._provenance()

    # Running one circuit

    def effect(self, cut: Iterable[str]) -> float:
        """The output's change with these edges cut."""
        keep = torch.ones(len(self.wiring.edges), dtype=torch.float64)
        keep[[self.wiring.edges.find(edge) for edge in cut]] = 0.0
        with torch.no_grad():
            outputs: Tensor = run(self.wiring, self.tokens, keep, self.fill, reference=True)
        self.runs += 1
        return self._change(outputs)

    def kept(self, circuit: Iterable[str]) -> float:
        """The output's change with only these edges kept."""
        kept = set(circuit)
        return self.effect(edge for edge in self.it.effects if edge not in kept)

    def _change(self, outputs: Tensor) -> float:
        """τ's figure: the largest move, or of decoded values the share that are others."""
        real = outputs[:, 1:]
        if self.it.answers is None:
            return float((real - self.full).abs().max())
        return float((largest(real) != largest(self.full)).double().mean())

    def changes(self, effect: float) -> bool:
        return effect > self.it.question.tolerance

    def _differs(self, what: str, said: float, found: float) -> Iterator[str]:
        """Where two figures are apart by more than rounding, or on different sides of τ."""
        if not abs(said - found) <= _ROUNDING * max(1.0, abs(found)):
            yield f"{what}: {said:.6g} is certified, {found:.6g} was measured"
        elif self.changes(said) != self.changes(found):
            tolerance = self.it.question.tolerance
            yield f"{what}: {said:.6g} is certified, {found:.6g} was measured, across the tolerance {tolerance:g}"

    # Passes

    def _outputs(self) -> Iterator[str]:
        size = float(self.full.abs().max())
        if self.it.answers is None:
            least = min(self.it.question.tolerance, size / LEAST_GAP)
            vary = bool(((self.full - self.full[:1]).abs() > least).any())
        else:
            vary = bool((largest(self.full) != largest(self.full[:1])).any())
        if vary != self.it.outputs_vary:
            yield f"the outputs {'vary' if vary else 'are the same'} over the inputs, the certificate says otherwise"
        yield from self._differs("the change with every edge cut", self.it.nothing_kept, self.kept(()))
        if not math.isclose(self.it.size, size, rel_tol=_ROUNDING):
            yield f"the largest number of an output: {self.it.size:.6g} is certified, {size:.6g} was measured"

    def _effects(self) -> Iterator[str]:
        for edge, said in self.it.effects.items():
            yield from self._differs(f"the effect of cutting {edge}", said, self.effect([edge]))

    def _gap(self) -> Iterator[str]:
        """By the effects, which were just measured again. A certificate without one would not have been saved."""
        if not self.it.certified:
            what = f"its gap is {self.it.gap:.3g}" if self.it.gap is not None else "its tolerance hides a change"
            yield f"{what}: that is no certificate"

    def _necessary_alone(self) -> Iterator[str]:
        it = self.it
        alone = self.kept(it.necessary)
        yield from self._differs("the change with only the necessary edges kept", it.necessary_kept, alone)
        sufficient = not self.changes(alone)
        without = {edge: [other for other in it.necessary if other != edge] for edge in it.necessary}
        droppable = [edge for edge, rest in without.items() if sufficient and not self.changes(self.kept(rest))]
        yield from _unlike("sufficient", it.grades.sufficient, sufficient)
        yield from _unlike("one_minimal", it.grades.one_minimal, sufficient and not droppable)
        yield from _unlike("the necessary edges that can be dropped", list(it.droppable), droppable)

    def _minimal(self) -> Iterator[str]:
        it = self.it
        for number, circuit in enumerate(it.minimal):
            unknown = [edge for edge in circuit if edge not in it.effects]
            if unknown:
                yield f"minimal circuit {number} has edges the model has not: {', '.join(unknown)}"
                continue
            if self.changes(self.kept(circuit)):
                yield f"minimal circuit {number} ({len(circuit)} edges) is not sufficient"
            for edge in circuit:
                if not self.changes(self.kept(other for other in circuit if other != edge)):
                    yield f"minimal circuit {number} suffices without {edge}"
        necessary, sets = set(it.necessary), [set(circuit) for circuit in it.minimal]
        if it.minimal_is_complete and not it.minimal:
            yield "no minimal circuit is named, and the whole model suffices"
        if len(set(map(frozenset, sets))) < len(sets):
            yield "a minimal circuit is named twice"
        if any(one < other for one in sets for other in sets):
            yield "one minimal circuit holds another"
        shown = "yes" if sets == [necessary] else "no"
        match it.grades.unique:
            case "presumed":
                if not (it.grades.sufficient and it.grades.one_minimal):
                    yield "unique is 'presumed', which only a sufficient and 1-minimal set of edges can be"
                if it.minimal_is_complete:
                    yield f"unique is 'presumed', but the search is certified as whole, which shows '{shown}'"
                elif sets != [necessary]:
                    yield "unique is 'presumed', but another circuit is named than the necessary edges"
            case _ if it.minimal_is_complete:
                yield from _unlike("unique", it.grades.unique, shown)
            case "yes":
                yield f"unique is 'yes', but the search is certified as '{it.search}'"
            case _ if it.grades.one_minimal and all(necessary <= circuit for circuit in sets):
                yield "unique is 'no', but no circuit is named that lacks a necessary edge"

    def _restoring(self, count: int | None) -> Iterator[str]:
        it = self.it
        if it.grades.no_restoring_pair is not None:
            yield from _unlike("no_restoring_pair", it.grades.no_restoring_pair, not it.restoring)
        for first, second in it.restoring:
            if first not in it.necessary or second not in it.effects:
                yield f"the restoring pair {first}, {second} is not one of a necessary edge and another"
            elif self.changes(self.effect([first, second])):
                yield f"the pair {first}, {second} does not restore the output"
        if it.grades.no_restoring_pair is None:
            return
        number, restoring = {edge: at for at, edge in enumerate(it.necessary)}, set(it.restoring)
        others = [(a, b) for a, at in number.items() for b in it.effects if number.get(b, len(number)) > at]
        others = [pair for pair in others if pair not in restoring]
        self.all_pairs = len(others)
        for first, second in _some(others, count, it.question.seed):
            self.pairs += 1
            if not self.changes(self.effect([first, second])):
                yield f"with {first} cut, cutting {second} restores the output"

    def _unique(self, count: int) -> Iterator[str]:
        """Random circuits, each without some necessary edge: none may suffice if the others are the only way."""
        it = self.it
        if it.grades.unique == "no" or not it.necessary:
            return
        draw = random.Random(f"circuits {it.question.seed}").random
        for _ in range(count):
            lacking = it.necessary[int(draw() * len(it.necessary))]
            share = draw()
            circuit = [e for e in it.effects if e != lacking and (e in it.necessary or draw() < share)]
            self.samples += 1
            if not self.changes(self.kept(circuit)):
                yield f"a circuit of {len(circuit)} edges without {lacking} is sufficient too"

    def _provenance(self) -> Iterator[str]:
        it = self.it
        given = self.compiled.provenance
        found = provenance_of(self.model) if given is None else tuple(e for e in it.effects if e in set(given))
        yield from _unlike("provenance", list(it.provenance), list(found))
        wanted = [edge for edge in found if edge not in it.necessary]
        yield from _unlike("the edges explained", [each.edge for each in it.explained], wanted)


def _unlike(what: str, said: object, found: object) -> Iterator[str]:
    if said != found:
        yield f"{what}: {said} is certified, {found} was found"


def _some(items: Sequence[tuple[str, str]], count: int | None, seed: int) -> Sequence[tuple[str, str]]:
    if count is None or count >= len(items):
        return items
    return random.Random(f"pairs of cuts {seed}").sample(items, count)
