"""What checks say of circuits that are right by certificate: minimal circuits of compiled programs, on all inputs.

A true circuit is faithful. What else is true of it depends on the program and on the fill, and not all of it is praise;
the table says what, and why. Checks that are written later get a column.
"""

from __future__ import annotations

from functools import cache

import pytest

from voltmeter.check.case import Case
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS
from voltmeter.check.registry import chosen
from voltmeter.circuit import Circuit
from voltmeter.discover.known import known_question
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.setting import Question, setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.wired import wiring_of

COLUMNS = ("faithful", "identifiable", "necessary", "complete", "minimal", "positions")
TABLE = {
    # Without m1, circuit and model put out different nonsense: under zero fills what is not in the circuit carries
    # constants that only matter when something else is gone.
    ("reverse", "zero"): (HOLDS, HOLDS, HOLDS, FAILS, HOLDS, HOLDS),
    # Positions and what is computed from them are the same for every input: 58 of 94 edges cannot be found.
    ("reverse", "resample"): (HOLDS, CANNOT_TELL, HOLDS, HOLDS, HOLDS, HOLDS),
    # Any six of its thirteen edges are as necessary. What keys do at one position they undo at another, so that a
    # needed edge comes to nothing when positions are merged.
    ("hist", "zero"): (HOLDS, HOLDS, CANNOT_TELL, HOLDS, HOLDS, FAILS),
    ("hist", "resample"): (HOLDS, CANNOT_TELL, HOLDS, HOLDS, HOLDS, CANNOT_TELL),
}


@cache
def true_circuit(name: str, fill: str) -> Case:
    """A minimal circuit of the program, and the question that it answers exactly."""
    model = compiled(program(name))
    wiring, setting = wiring_of(model).wiring, setting_of(model, Question(fill))
    question = known_question(model, wiring, setting, "projection", batch_size=64)
    certificate = truth(model, fill)
    assert certificate.minimal
    return Case(Circuit.from_edges(wiring, certificate.minimal[0]), question)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(("name", "fill"), list(TABLE))
def test_what_is_said_of_a_true_circuit(name: str, fill: str, column: str) -> None:
    (check,) = chosen([column])
    found = check.run(true_circuit(name, fill))
    assert found.verdict == TABLE[name, fill][COLUMNS.index(column)], found.says


def test_reverse_under_resample_names_what_nobody_can_find() -> None:
    (check,) = chosen(["identifiable"])
    found = check.run(true_circuit("reverse", "resample"))
    assert found.counted["other_edges_that_carry_nothing"] == 58
    rows = {row["writer or input"]: row["is"] for row in found.details}
    assert (rows["input.pos"], rows["m2"]) == ("constant", "constant")
    assert "a zero fill would show them" in found.says
