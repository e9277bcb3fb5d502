"""A certificate in plain sentences."""

from collections.abc import Iterator, Sequence

from voltmeter.rasp.certificate import LEAST_GAP, Certificate

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
        yield f"The output never changes under this fill ({_fill(it)}): with every edge cut it is what it was."


def _fill(it: Certificate) -> str:
    return it.question.fill + (" with random positions" if it.question.positions == "random" else "")


def _necessary(it: Certificate) -> Iterator[str]:
    n, total = len(it.necessary), len(it.effects)
    if not n:
        yield f"None of the {total:,} edges is necessary: no single cut changes the output."
    else:
        yield f"{n} of the {total:,} edges {_are(n)} necessary: cutting any one of them alone changes the output."


def _sufficient(it: Certificate) -> Iterator[str]:
    n = len(it.necessary)
    if not it.grades.sufficient:
        yield f"They are not sufficient: with only these kept the output changes by {it.necessary_kept:.3g}."
    elif it.droppable:
        yield (
            f"They are sufficient, and so are {n - 1} of them: "
            f"without {_either(it.droppable)} the output is still what it was."
        )
    elif n:
        yield "They are sufficient, and with only these kept none can be cut."


def _unique(it: Certificate) -> Iterator[str]:
    searched = f"{it.grades.searched:,} states searched"
    if it.grades.unique == "yes" and not it.necessary:
        yield f"The one minimal circuit keeps no edge at all ({searched}, none left out)."
    elif it.grades.unique == "yes":
        yield f"They are the only minimal circuit: every sufficient circuit holds them ({searched}, none left out)."
    elif it.grades.unique == "presumed":
        yield f"That they are the only minimal circuit is presumed: {searched}, which is not all."
    elif not it.minimal_is_complete:
        yield f"They are not the only minimal circuit; not all were searched for ({searched})."
    elif len(it.minimal) == 1:
        yield f"The one minimal circuit is another: {_size(it.minimal[0])} ({searched}, none left out)."
    else:
        sizes = ", ".join(str(len(circuit)) for circuit in it.minimal[:_SHOWN])
        more = ", ..." if len(it.minimal) > _SHOWN else ""
        yield f"There are {len(it.minimal)} minimal circuits, of {sizes}{more} edges ({searched}, none left out)."


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
        return
    edge, effect = it.weakest
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


def _either(edges: Sequence[str]) -> str:
    shown = " or ".join(edges[:_SHOWN])
    return shown + (f" or any of {len(edges) - _SHOWN} more" if len(edges) > _SHOWN else "")
