"""Random programs: the same every time, of the size asked for, and computed by their models as by the oracle."""

import functools
import os
import subprocess
import sys

import pytest

from voltmeter.errors import ProgramError
from voltmeter.rasp.agree import agreement
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.generate import MOST_LAYERS, generate, operations
from voltmeter.rasp.programs import Program, compiled

CASES = [(seed, size) for size in (1, 2, 4, 6, 10) for seed in range(5)]


@functools.cache
def made(seed: int, size: int) -> tuple[Program, Compiled]:
    program = generate(seed, size)
    return program, compiled(program)


@pytest.mark.parametrize(("seed", "size"), CASES)
def test_a_random_program_is_computed_by_its_model(seed: int, size: int) -> None:
    program, given = made(seed, size)
    assert len(operations(program.sop)) == size
    model = given.model
    assert 1 <= model.shape.layers <= MOST_LAYERS
    found = agreement(program, model=model)
    assert found.agrees, found.shown
    assert found.inputs == found.of  # all of them
    assert any(len(set(column) - {None}) > 1 for column in zip(*given.outputs, strict=True))


def test_a_seed_is_one_program_in_every_process() -> None:
    code = "from voltmeter.rasp.generate import generate; p = generate(3, 8); print(p.docs, p.vocabulary, p.causal)"
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another than here, where it is random
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = generate(3, 8)
    assert done == f"{here.docs} {here.vocabulary} {here.causal}\n"
    assert generate(4, 8).docs != here.docs


def test_programs_are_of_many_kinds() -> None:
    programs, models = zip(*(made(seed, size) for seed, size in CASES if size >= 4), strict=True)
    kinds = {type(node).__name__ for program in programs for node in operations(program.sop)}
    assert kinds >= {
        "Map",
        "SequenceMap",
        "LinearSequenceMap",
        "Aggregate",
        "SelectorWidth",
        "Select",
        "SelectorAnd",
        "SelectorOr",
        "SelectorNot",
    }
    assert {program.causal for program in programs} == {True, False}
    shapes = [given.model.shape for given in models]
    assert len({shape.layers for shape in shapes}) >= 4
    assert len({shape.heads for shape in shapes}) >= 2
    assert {program.sop.encoding.value for program in programs} == {"categorical", "numerical"}


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ProgramError) as refused:
        generate(0, 0)
    assert str(refused.value) == "a program of 0 operations was asked for\n  give a size of 1 or more"
