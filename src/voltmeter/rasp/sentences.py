"""A certificate in plain sentences."""

from collections.abc import Iterator, Sequence

from voltmeter.rasp.certificate import LEAST_GAP, Certificate
from voltmeter.rasp.setting import change_in_words

_SHOWN = 4  # edges named in one sentence


def sentences(certificate: Certificate) -> tuple[str, ...]:
    """What the certificate says, the most important first."""
    return (
        *_outputs(certificate),
        *_necessary(certificate),
        *_sufficient(certificate),
        *_unique(certificate),
        *_restoring(certificate),
        *_gap(certificate),
    )


def _outputs(it: Certificate) -> Iterator[str]:
    if not it.outputs_vary:
        yield f"All {it.n_inputs} inputs have the same output."
    if it.nothing_kept <= it.question.tolerance:
        yield f"With every edge cut the output is what it was (fill {_fill(it)})."


def _fill(it: Certificate) -> str:
    return it.question.fill + (" with random positions" if it.question.positions == "random" else "")


def _necessary(it: Certificate) -> Iterator[str]:
    n, total = len(it.necessary), len(it.effects)
    if not n:
        yield f"None of the {total:,} edges is necessary: no single cut changes {_what(it, 'any')}."
    else:
        changed = _what(it, "some")
        yield f"{n} of the {total:,} edges {_are(n)} necessary: cutting any one of them alone changes {changed}."


def _what(it: Certificate, which: str) -> str:
    return "the output" if it.answers is None else f"{which} of the {it.answers:,} decoded answers"


def _subject(it: Certificate) -> str:
    """The necessary edges, as the subject of a sentence; its verb follows the number."""
    return "The necessary edge" if len(it.necessary) == 1 else "The necessary edges"


def _sufficient(it: Certificate) -> Iterator[str]:
    n = len(it.necessary)
    changed = change_in_words(it.necessary_kept, it.answers)
    if not n:
        if not it.grades.sufficient:
            yield f"And yet some are needed: cutting every edge changes {changed}."
    elif not it.grades.sufficient:
        yield f"{_subject(it)} {_are(n)} not sufficient: keeping only {_them(n)} changes {changed}."
    elif it.droppable:
        yield (
            f"{_subject(it)} {_are(n)} sufficient, and so {_fewer(n - 1)}: "
            f"without {_either(it.droppable)} the output is still what it was."
        )
    else:
        yield f"{_subject(it)} {_are(n)} sufficient, and with only {_them(n)} kept none can be cut."


def _unique(it: Certificate) -> Iterator[str]:
    n, searched = len(it.necessary), f"{it.grades.searched:,} states searched"
    if it.grades.unique == "yes" and not n:
        yield f"The one minimal circuit keeps no edge at all ({searched}, none left out)."
    elif it.grades.unique == "yes":
        holds = f"every sufficient circuit holds {_them(n)}"
        yield f"{_subject(it)} {_are(n)} the only minimal circuit: {holds} ({searched}, none left out)."
    elif it.grades.unique == "presumed":
        which = f"{_subject(it)} {_are(n)} the only minimal circuit" if n else "The empty circuit suffices"
        yield f"{which}, it is presumed: {searched}, {_UNDECIDED[it.search]}."
    elif it.search == "whole":
        yield f"{_minimal(it)} ({searched}, none left out)."
    elif not it.grades.sufficient:
        yield f"Which circuits are minimal is not known: {searched}, {_UNDECIDED[it.search]}."
    else:
        yield (
            f"{_subject(it)} {_are(n)} not the only minimal circuit, and not all are known: "
            f"{searched}, {_UNDECIDED[it.search]}."
        )


_UNDECIDED = {
    "stopped": "which is not all",
    "unsure": "but rounding could have put one of them on the other side of the tolerance",
}


def _minimal(it: Certificate) -> str:
    if len(it.minimal) == 1:
        return f"The one minimal circuit is another: {_size(it.minimal[0])}"
    sizes = ", ".join(str(len(circuit)) for circuit in it.minimal[:_SHOWN])
    more = ", ..." if len(it.minimal) > _SHOWN else ""
    return f"There are {len(it.minimal)} minimal circuits, of {sizes}{more} edges"


def _size(circuit: Sequence[str]) -> str:
    if not circuit:
        return "no edge at all"
    shown = ", ".join(circuit[:_SHOWN]) + (", ..." if len(circuit) > _SHOWN else "")
    return f"{len(circuit)} edge{'' if len(circuit) == 1 else 's'}, {shown}"


def _restoring(it: Certificate) -> Iterator[str]:
    if it.grades.no_restoring_pair is None:
        yield "Restoring pairs were not searched for: there are more pairs than the limit."
    elif it.restoring:
        first, second = it.restoring[0]
        yield (
            f"{len(it.restoring)} pair{'s restore' if len(it.restoring) > 1 else ' restores'} the output: "
            f"with {first} cut, cutting {second} too brings it back{', for one' if len(it.restoring) > 1 else ''}."
        )


def _gap(it: Certificate) -> Iterator[str]:
    if it.weakest is None:
        if not it.certified:
            yield (
                f"No certificate: the tolerance {it.question.tolerance:g} hides a change of {it.below:.3g} "
                f"in outputs of up to {it.size:.3g}."
            )
        return
    edge, effect = it.weakest
    if it.answers is not None:
        counted = change_in_words(effect, it.answers)
        yield f"The smallest necessary effect is {counted} ({edge}); every other edge changes none."
        return
    if it.strongest_other is None:
        other = f"no other edge has any (rounding is {it.rounding:.2g})"
    else:
        other = f"the largest unnecessary one {it.strongest_other[1]:.3g} ({it.strongest_other[0]})"
    figures = f"the smallest necessary effect is {effect:.3g} ({edge}), {other}"
    if it.certified:
        yield f"The gap is {it.gap:.3g}: {figures}."
    else:
        yield f"No certificate: the gap is {it.gap:.3g}, under {LEAST_GAP:g}; {figures}."
    if it.leaks:
        yield _leaks(it)


def _leaks(it: Certificate) -> str:
    n = len(it.leaks)
    most = max(it.effects[edge] for edge in it.leaks)
    rest = min(it.effects[edge] for edge in it.necessary if edge not in it.leaks)
    subject = "One of the necessary edges changes" if n == 1 else f"{n} of the necessary edges change"
    return (
        f"{subject} the output by at most {most:.3g}, {rest / most:.2g} times less than the others "
        f"({', '.join(it.leaks[:_SHOWN])}{', ...' if n > _SHOWN else ''}): "
        f"with a tolerance between, {len(it.necessary) - n} would be necessary."
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def _fewer(count: int) -> str:
    return {0: "is no edge at all", 1: "is one of them"}.get(count, f"are {count} of them")


def _either(edges: Sequence[str]) -> str:
    shown = " or ".join(edges[:_SHOWN])
    return shown + (f" or any of {len(edges) - _SHOWN} more" if len(edges) > _SHOWN else "")
