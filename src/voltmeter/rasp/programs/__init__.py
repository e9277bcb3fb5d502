"""The programs that voltmeter knows, each in the module of its family; ``programs()`` finds them all.

program("hist").examples            inputs with outputs worked out by hand
compiled(program("hist"))           its model, inputs and provenance
"""

from voltmeter.errors import ProgramError, nearest
from voltmeter.rasp.compile import compile_program
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.language import evaluate
from voltmeter.rasp.programs import brackets, counting, redundancy, sequences, sorting
from voltmeter.rasp.programs.program import Program, known

__all__ = ["Program", "compiled", "known", "program", "programs"]

_FAMILIES = (sequences, sorting, counting, brackets, redundancy)


def programs() -> tuple[Program, ...]:
    """Every program, family by family, in the order in which they are written."""
    return tuple(value for family in _FAMILIES for value in vars(family).values() if isinstance(value, Program))


def program(name: str) -> Program:
    """The program of this name. Raises ProgramError if there is none, with the nearest names."""
    by_name = {each.name: each for each in programs()}
    if name not in by_name:
        raise ProgramError(
            f"there is no program '{name}'", [nearest(name, list(by_name))], "list them with `voltmeter programs`"
        )
    return by_name[name]


def compiled(given: Program, limit: int = 512, seed: int = 0) -> Compiled:
    """A program compiled, with its inputs (``Program.inputs``) and what the oracle says of them.

    Raises ProgramError for a program that cannot be compiled.
    """
    made = compile_program(given.sop, given.vocabulary, given.max_length, name=given.name, causal=given.causal)
    inputs = given.inputs(limit, seed)
    outputs = tuple(tuple(evaluate(given.sop, row, given.causal)) for row in inputs)
    return Compiled(given.name, made.model, inputs, outputs, made.provenance)
