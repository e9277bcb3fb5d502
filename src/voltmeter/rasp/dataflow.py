"""Which edges a model's weights let anything pass over, read off the weights alone: no input, no ablation."""

from collections.abc import Iterable

from torch import Tensor

from voltmeter.circuit.paths import on_a_path
from voltmeter.rasp.machine import Machine, machine_of
from voltmeter.rasp.model import CompiledTransformer

_INERT = 1e-13  # of the size of the terms: rounding of a product of weights that is zero


def meets(weight: Tensor, directions: Tensor) -> bool:
    """Whether a reader's weights [k, d_model] are non-zero on anything in the span of ``directions`` [n, d_model].

    Entries of the product that are rounding (under 1e-13 of the sizes multiplied) count as zero: a compiled model that
    was rotated has such entries where it had zeros.
    """
    exact, size = weight @ directions.T, weight.abs() @ directions.abs().T
    return bool((exact.abs() > _INERT * size).any())


def provenance_of(model: CompiledTransformer) -> tuple[str, ...]:
    """The edges that the program's dataflow uses, as far as the weights tell.

    An edge is used when its reader's weights are non-zero on what its writer can write, and it lies on a path of such
    edges from the embeddings to the output.
    """
    machine = machine_of(model)
    rows = [model.interface.rows[token] for token in (*model.interface.vocabulary, model.interface.bos)]
    directions = [model.token_embedding.weight[sorted(set(rows))], model.position_embedding.weight]
    directions += [part.directions() for part in machine.parts[:-1]]
    used = [
        edge
        for edge, (writer, part, reader) in enumerate(machine.ends)
        if meets(machine.parts[part].readers[reader].weight, directions[writer])
    ]
    return connected(machine, used)


def connected(machine: Machine, edges: Iterable[int]) -> tuple[str, ...]:
    """The names of those edges that lie on a path of them from the embeddings to the output."""
    chosen = list(edges)
    ends = [
        (machine.writers[w], machine.parts[part].readers[at].name)
        for w, part, at in map(machine.ends.__getitem__, chosen)
    ]
    feeds = {reader.name: (part.name,) for part in machine.parts[:-1] for reader in part.readers}
    on = on_a_path(ends, feeds, machine.writers[:2], [machine.parts[-1].readers[0].name])
    return tuple(machine.edges[edge] for edge, kept in zip(chosen, on, strict=True) if kept)
