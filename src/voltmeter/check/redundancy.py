"""Does anything else do the same: a circuit outside of this one, or what steps in when a part of it is cut?"""

from typing import Any

from voltmeter.check.backups import MADE_UP, Backup, Either, Losses, backups, either
from voltmeter.check.case import Case
from voltmeter.check.cuts import no_interval, percent
from voltmeter.check.elsewhere import SAME, Looked, Measure, look_again
from voltmeter.check.few import few_held_out
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Picture, Verdict
from voltmeter.check.pieces import listed
from voltmeter.check.registry import register

_ROWS = 200  # of details


@register("redundant", "does something else do the same?")
def redundant(case: Case) -> Finding:
    """The rest of the model is looked through for circuits that do it too, and for what makes up for cut writers.

    It fails where the rest keeps more than ``SAME`` of the effect without any edge of the circuit, or where the full
    model makes up for more than ``MADE_UP`` of what the circuit loses with one of its writers. Two ways to the same
    inside the circuit are told, and are no fault: it is complete for it.

    Costs one masked forward of the held-out pairs, and of at most 32 of them one or two for each writer of the circuit
    and another where it is needed; of each that is made up for, two for every other writer. Where the rest does the
    same, as much as finding a circuit: about three runs for each edge outside, or thirty and a few gradients where
    there are more than 600.
    """
    why = _nothing_to_look_at(case)
    if why:
        return Finding("redundant", CANNOT_TELL, None, None, None, _AGAINST, why)
    looked = look_again(case)
    losses = Losses(case, few_held_out(case))
    made_up = backups(case, losses)
    inside = either(case, losses)
    rest = looked.rests[0]
    return Finding(
        "redundant",
        _verdict(rest, made_up, bool(losses.missed)),
        rest.f,
        rest.low,
        rest.high,
        _AGAINST,
        _says(case, looked, made_up, inside),
        tuple((*_other_rows(case, looked), *map(_backup_row, made_up))[:_ROWS]),
        {"pairs": len(case.held_out), "groups": case.held_out.groups.count, "circuits": looked.tried + losses.tried}
        | ({"left_out": f"{losses.missed} cuts: the time was used up"} if losses.missed else {}),
        _picture(looked, made_up),
    )


_AGAINST = f"{SAME:.0%} of the full model's effect, without any edge of the circuit"


def _nothing_to_look_at(case: Case) -> str:
    if not len(case.circuit):
        return "the circuit is empty, so that all of the model is outside of it: give a circuit with edges"
    return no_interval(case.held_out)


def _verdict(rest: Measure, made_up: tuple[Backup, ...], missed: bool) -> Verdict:
    if rest.low > SAME or any(each.low > MADE_UP for each in made_up):
        return FAILS
    return HOLDS if rest.high <= SAME and not made_up and not missed else CANNOT_TELL


# What is told ----------------------------------------------------------------------------------------------------


def _says(case: Case, looked: Looked, made_up: tuple[Backup, ...], inside: Either | None) -> str:
    rest = looked.rests[0]
    figures = f"{percent(rest.f)} ({percent(rest.low)} to {percent(rest.high)})"
    told = [f"with every edge of the circuit cut, the rest does {figures}"]
    if rest.low <= SAME < rest.high:
        told.append(f"more pairs would settle whether that is more than {SAME:.0%}")
    told += [f"{_called(case, other)} do{_es(case, other)} the same, {percent(other.f)}" for other in looked.others]
    if looked.others and not looked.rests[-1].low > SAME:
        told.append(f"beside {'it' if len(looked.others) == 1 else 'these'} nothing more does")
    told += [_made_up(each) for each in made_up[:3]]
    if not made_up and not looked.others:
        told.append("nothing makes up for a writer of the circuit that is cut")
    if inside is not None:
        told.append(f"inside the circuit, {inside.writer} or {listed(list(inside.partners))} is enough")
    return "; ".join(told)


def _called(case: Case, other: Measure) -> str:
    """The writers that only the other circuit uses; its edges where there are none."""
    ours = {writer for writer, _ in case.circuit}
    edges = [case.wiring.edges[at] for at in other.kept.nonzero().flatten().tolist()]
    writers = [name for name in dict.fromkeys(edge.writer for edge in edges) if name not in ours]
    names = writers or [str(edge) for edge in edges]
    return f"{listed(names)} ({len(edges):,} edge{'' if len(edges) == 1 else 's'})"


def _es(case: Case, other: Measure) -> str:
    return "es" if int(other.kept.sum()) == 1 else ""


def _made_up(backup: Backup) -> str:
    alone, in_full = percent(backup.alone), percent(backup.in_full)
    cut = f"cutting {backup.writer} loses {alone} in the circuit and {in_full} in the full model"
    if backup.low <= MADE_UP:
        return (
            f"{cut}, a difference of {backup.low:.0%} to {backup.high:.0%}: too few pairs to say if it is made up for"
        )
    if backup.by is None or backup.both is None:
        return f"{cut}: no one component outside makes up for it, but they do together"
    return f"{cut}: {backup.by} makes up for it (both cut: {backup.both:.0%})"


def _other_rows(case: Case, looked: Looked) -> list[dict[str, Any]]:
    """The edges of the other circuits."""
    return [
        _row("other circuit", str(case.wiring.edges[edge]), number, f=round(other.f, 4))
        for number, other in enumerate(looked.others, 1)
        for edge in other.kept.nonzero().flatten().tolist()
    ]


def _backup_row(backup: Backup) -> dict[str, Any]:
    return _row("made up for", backup.writer, None, round(backup.alone, 4), round(backup.in_full, 4), backup.by)


def _row(
    what: str,
    name: str,
    circuit: int | None,
    lost_in_circuit: float | None = None,
    lost_in_full: float | None = None,
    by: str | None = None,
    f: float | None = None,
) -> dict[str, Any]:
    return {
        "what": what,
        "name": name,
        "circuit": circuit,
        "lost_in_circuit": lost_in_circuit,
        "lost_in_full": lost_in_full,
        "by": by,
        "f": f,
    }


def _picture(looked: Looked, made_up: tuple[Backup, ...]) -> Picture:
    """What is left of the behaviour when the circuit is cut, and then each that was found."""
    names = ["without the circuit", *(f"and without other {n}" for n in range(1, len(looked.rests)))]
    data = {
        "names": names,
        "values": [rest.f for rest in looked.rests],
        "low": [rest.low for rest in looked.rests],
        "high": [rest.high for rest in looked.rests],
    }
    return Picture("bars", "What the rest still does", "f", "edges cut", data, SAME)
