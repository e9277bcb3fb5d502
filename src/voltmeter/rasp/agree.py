"""Whether a compiled model does what its program says, on every input or a sample of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voltmeter.rasp.compile import compile_program
from voltmeter.rasp.language import evaluate
from voltmeter.rasp.model import CompiledTransformer, Interface, Value
from voltmeter.rasp.programs.program import Outputs, Program, Row

TOLERANCE = 1e-6
"""What an output dimension may be off: float64 loses about 1e-12, amplified by the steep steps of compiled MLPs."""

_SHOWN = 5


@dataclass(frozen=True)
class Disagreement:
    """An input on which model and oracle differ; ``worst`` is the largest difference of an output dimension."""

    given: Row
    oracle: Outputs
    model: tuple[Value, ...]
    worst: float


@dataclass(frozen=True)
class Agreement:
    """How far a compiled model is from its oracle.

    ``inputs`` were tried, of ``of`` that there are; ``positions`` compared, ``undefined`` left out because the program
    says nothing there. ``worst`` is the largest |output - oracle| of any dimension, an oracle's category being 1 in its
    own dimension and 0 in the others. ``disagreeing`` counts inputs above the tolerance; the first few are ``shown``.
    """

    name: str
    inputs: int
    of: int
    positions: int
    undefined: int
    worst: float
    disagreeing: int
    shown: tuple[Disagreement, ...]

    @property
    def agrees(self) -> bool:
        return self.disagreeing == 0


def agreement(
    program: Program,
    inputs: Sequence[Row] | None = None,
    limit: int = 2048,
    seed: int = 0,
    model: CompiledTransformer | None = None,
) -> Agreement:
    """Compare the compiled program (or ``model``) with the oracle.

    ``inputs``, all of one length, default to ``program.inputs(limit, seed)``. Raises ProgramError for a program that
    cannot be compiled, that is ambiguous on one of the inputs, or is given unknown tokens.
    """
    rows = program.inputs(limit, seed) if inputs is None else tuple(tuple(row) for row in inputs)
    if model is None:
        model = compile_program(
            program.sop, program.vocabulary, program.max_length, name=program.name, causal=program.causal
        ).model
    with torch.no_grad():
        raw = model(model.encode(rows))
    said = [tuple(evaluate(program.sop, row, program.causal)) for row in rows]
    wanted, defined = _expected(said, model.interface, raw)
    apart = (raw[:, 1:] - wanted).abs().nan_to_num(torch.inf).amax(-1)
    apart = torch.where(defined, apart, 0.0).amax(-1)
    off = (apart > TOLERANCE).nonzero().flatten().tolist()
    decoded = model.decode(raw[off[:_SHOWN]]) if off else []
    return Agreement(
        name=program.name,
        inputs=len(rows),
        of=program.count_inputs(),
        positions=int(defined.sum()),
        undefined=int((~defined).sum()),
        worst=float(apart.max()),
        disagreeing=len(off),
        shown=tuple(
            Disagreement(rows[at], said[at], tuple(made), float(apart[at]))
            for at, made in zip(off[:_SHOWN], decoded, strict=True)
        ),
    )


def _expected(said: Sequence[Outputs], face: Interface, like: Tensor) -> tuple[Tensor, Tensor]:
    """What the output dimensions should hold after BOS, and where that is defined. A value without dimension is NaN."""
    defined = torch.tensor([[value is not None for value in row] for row in said])
    wanted = torch.zeros_like(like[:, 1:])
    places = {value: at for at, value in enumerate(face.decoded or ())}
    for at, row in enumerate(said):
        for position, value in enumerate(row):
            if value is None:
                continue
            if face.decoded is None:
                wanted[at, position, 0] = float(value)
            elif value in places:
                wanted[at, position, places[value]] = 1.0
            else:
                wanted[at, position] = torch.nan
    return wanted, defined
