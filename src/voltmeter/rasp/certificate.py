"""A certificate: what is true of a compiled model's circuit, in stated grades, with every figure it rests on."""

import sys
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from voltmeter.errors import FormatError, TruthError
from voltmeter.files import json_bytes, parse_object, plain, read_bytes, seal, unseal, write_file
from voltmeter.rasp.budget import Search
from voltmeter.rasp.setting import Question

_KIND, _SCHEMA = "certificate", 2
LEAST_GAP = 100.0

Unique: TypeAlias = Literal["yes", "no", "presumed"]
Circuits: TypeAlias = tuple[tuple[str, ...], ...]


@final
@dataclass(frozen=True)
class Grades:
    """What was shown of the necessary edges N (those whose cut alone changes the uncut model's output).

    sufficient          N alone gives the uncut model's output
    one_minimal         and cutting any one of N from N alone changes it
    no_restoring_pair   with one of N cut, cutting any second edge does not bring the output back (None: not searched)
    unique              yes: N is the only minimal circuit, every sufficient circuit holds it; no: it is not;
                        presumed: N is sufficient and 1-minimal, and the search, of ``searched`` states, did not
                        decide (it stopped at its limit, or rounding could have: ``Certificate.search``)
    """

    sufficient: bool
    one_minimal: bool
    no_restoring_pair: bool | None
    unique: Unique
    searched: int


@final
@dataclass(frozen=True)
class Explained:
    """Why an edge that the program's dataflow uses is not necessary. ``kind`` is one of ``explain.KINDS``."""

    edge: str
    kind: str
    why: str


@final
@dataclass(frozen=True)
class Certificate:
    """The truth about one compiled model, for one question. Made by ``truth``; ``verify`` checks it from scratch.

    ``effects``: for every edge of the wiring, in its order, how much cutting it alone changes the output. ``minimal``:
    the circuits that suffice and of which no part does; all of them if ``search`` is "whole" (else it was "stopped" by
    its limit, or "unsure": rounding could have decided, as for an effect within 10% of τ). ``restoring``: pairs
    (necessary, second), each once, whose cut together changes nothing. ``nothing_kept``: the output's change with every
    edge cut; ``necessary_kept``: with all but N cut. Changes are of a number of the output; where ``answers`` says how
    many decoded answers there are, shares of those. ``model`` and ``inputs`` are digests. ``seconds``: what it took.
    """

    name: str
    model: str
    inputs: str
    n_inputs: int
    outputs: tuple[str, ...]  # labels of the dimensions that hold the answer; measured at every position but BOS's
    question: Question
    dtype: str
    versions: dict[str, str]
    effects: dict[str, float]
    grades: Grades
    minimal: Circuits
    search: Search
    restoring: Circuits
    droppable: tuple[str, ...]  # edges of N, each of which N does without
    nothing_kept: float
    necessary_kept: float
    outputs_vary: bool  # over the inputs
    answers: int | None
    size: float  # the largest number of an output
    provenance: tuple[str, ...]
    provenance_from: Literal["program", "weights"]
    explained: tuple[Explained, ...]
    limit: int
    seconds: float = field(compare=False)

    @cached_property
    def necessary(self) -> tuple[str, ...]:
        """The edges whose cut alone changes the output, in the wiring's order."""
        return tuple(edge for edge, effect in self.effects.items() if effect > self.question.tolerance)

    @property
    def rounding(self) -> float:
        """Of an output: effects under it are none."""
        return sys.float_info.epsilon * max(1.0, self.size)

    @property
    def minimal_is_complete(self) -> bool:
        """Whether ``minimal`` are all minimal circuits there are."""
        return self.search == "whole"

    @cached_property
    def weakest(self) -> tuple[str, float] | None:
        """The necessary edge of the smallest effect."""
        return min(((edge, self.effects[edge]) for edge in self.necessary), key=lambda pair: pair[1], default=None)

    @cached_property
    def strongest_other(self) -> tuple[str, float] | None:
        """The edge of the largest effect among those that are not necessary; None where none is more than rounding."""
        least, most = self.rounding, self.question.tolerance
        others = ((edge, effect) for edge, effect in self.effects.items() if least < effect <= most)
        return max(others, key=lambda pair: pair[1], default=None)

    @cached_property
    def gap(self) -> float | None:
        """The smallest necessary effect over the largest unnecessary one (or ``rounding``, where that is more).

        None where no edge is necessary, and of counted answers: an edge changes one of those or none.
        """
        if self.weakest is None or self.answers is not None:
            return None
        return self.weakest[1] / (self.rounding if self.strongest_other is None else self.strongest_other[1])

    @cached_property
    def leaks(self) -> tuple[str, ...]:
        """Necessary edges whose effects lie at least 100 times below all the others': a larger τ would drop them."""
        if self.answers is not None:  # no τ may lie between
            return ()
        ordered = sorted(self.necessary, key=lambda edge: self.effects[edge])
        for count in range(len(ordered) - 1, 0, -1):
            if self.effects[ordered[count]] >= LEAST_GAP * self.effects[ordered[count - 1]]:
                return tuple(edge for edge in self.necessary if edge in ordered[:count])
        return ()

    @cached_property
    def below(self) -> float | None:
        """Where no edge is necessary, the largest change within τ: by one cut, or by all. None: rounding only."""
        if self.necessary or self.answers is not None:
            return None
        hidden = (*self.effects.values(), self.nothing_kept)
        return max((change for change in hidden if self.rounding < change <= self.question.tolerance), default=None)

    @property
    def certified(self) -> bool:
        """Whether τ is no choice: the gap is wide enough.

        Where nothing is necessary, τ stands for the least effect, and may itself be no more than a leak of the outputs.
        """
        if self.gap is not None:
            return self.gap >= LEAST_GAP
        return self.below is None or self.below <= self.question.tolerance / LEAST_GAP <= self.size / LEAST_GAP**2

    @property
    def says(self) -> tuple[str, ...]:
        """The grades in plain sentences."""
        from voltmeter.rasp.sentences import sentences

        return sentences(self)

    def document(self) -> dict[str, Any]:
        """Plain data, as ``voltmeter truth --json`` prints it."""
        return {
            "program": self.name,
            "question": self.question.as_dict(),
            "n_inputs": self.n_inputs,
            "n_edges": len(self.effects),
            "necessary": list(self.necessary),
            "minimal": [list(circuit) for circuit in self.minimal],
            "grades": {each.name: getattr(self.grades, each.name) for each in fields(self.grades)},
            "gap": self.gap,
            "explained": [{"edge": each.edge, "why": each.why} for each in self.explained],
            "seconds": self.seconds,
            "certified": self.certified,
            "leaks": list(self.leaks),
            "minimal_is_complete": self.minimal_is_complete,
            "search": self.search,
            "answers": self.answers,
            "says": list(self.says),
        }

    # The file

    def save(self, path: Path | str) -> None:
        """Write the certificate, whole or not at all.

        Raises TruthError where there is no certificate (``certified``), OutputError where the file cannot be written.
        """
        if not self.certified:
            raise self._refusal()
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        content |= {
            "question": self.question.as_dict(),
            "grades": vars(self.grades),
            "explained": [vars(each) for each in self.explained],
            "necessary": self.necessary,
            "gap": self.gap,
        }
        write_file(path, json_bytes(seal(plain(content, _KIND), _KIND, _SCHEMA)))

    def _refusal(self) -> TruthError:
        shown = [f"{edge}: {effect:.3g}" for edge, effect in filter(None, (self.weakest, self.strongest_other))]
        if self.gap is None:
            return TruthError(
                f"there is no certificate of {self.name}: no edge is necessary, "
                f"and the tolerance {self.question.tolerance:g} hides a change of {self.below:.3g} "
                f"in outputs of up to {self.size:.3g}",
                shown,
                "give a smaller tolerance, or use another fill",
            )
        return TruthError(
            f"there is no certificate of {self.name}: its gap is {self.gap:.3g}, at least {LEAST_GAP:g} is needed",
            shown,
            "move the tolerance between other effects (certificate.effects), or use another fill",
        )

    @classmethod
    def load(cls, path: Path | str) -> "Certificate":
        """Read a certificate. Raises LoadError, or FormatError where the file is damaged or something else."""
        where = str(path)
        content = unseal(parse_object(read_bytes(path), where), _KIND, _SCHEMA, where)
        try:
            made = cls(**{each.name: _READ.get(each.name, _same)(content[each.name]) for each in fields(cls)})
            told = list(content["necessary"])
            differ = sorted(map(str, set(made.necessary) ^ set(told)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{where} is no whole certificate ({type(error).__name__}: {error})") from error
        if list(made.necessary) != told:
            raise TruthError(
                f"{where} contradicts itself: its necessary edges are not those whose effect is over its tolerance",
                differ,
            )
        return made


def _same(value: Any) -> Any:
    return value


def _circuits(value: Any) -> Circuits:
    return tuple(tuple(circuit) for circuit in value)


_READ: dict[str, Any] = {
    "outputs": tuple,
    "question": lambda value: Question(**value),
    "grades": lambda value: Grades(**value),
    "minimal": _circuits,
    "restoring": _circuits,
    "droppable": tuple,
    "provenance": tuple,
    "explained": lambda value: tuple(Explained(**each) for each in value),
}
