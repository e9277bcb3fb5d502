"""A model whose program is known: what was compiled, on which inputs, and which edges its dataflow uses."""

from dataclasses import dataclass

from voltmeter.rasp.model import CompiledTransformer, Value


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled transformer with the inputs to measure it on.

    ``inputs`` are of one length; ``outputs`` are what the program (not the model) says of them, None where it leaves a
    position undefined. ``provenance`` names the edges that the program's dataflow uses ("input.tok -> a0.h0<v>", input
    split into ``input.tok`` and ``input.pos``); None where the program is not at hand and only the weights are.
    """

    name: str
    model: CompiledTransformer
    inputs: tuple[tuple[Value, ...], ...]
    outputs: tuple[tuple[Value | None, ...], ...]
    provenance: tuple[str, ...] | None = None
