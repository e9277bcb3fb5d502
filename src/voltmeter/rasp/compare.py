"""A handcrafted model beside another, such as one that was trained.

compare              where their outputs agree
rank_unexplained     the inputs that the handcrafted one fails to explain
compare_circuits     which edges their circuits share
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.names import find_edges
from voltmeter.circuit.scores import checked_edges
from voltmeter.errors import CircuitError, ProgramError
from voltmeter.rasp.model import CompiledTransformer, Value


@dataclass(frozen=True, eq=False)
class Comparison:
    """How two models behave on the same inputs, position by position, BOS left out.

    ``agrees`` says where both decode to the same value (numbers: within the tolerance); ``difference`` is the largest
    |Δ| over the output dimensions; ``kl`` is KL(other ‖ handcrafted) in nats, None where the output is a number.
    ``counted`` are the positions that were asked about.
    """

    inputs: tuple[tuple[Value, ...], ...]
    agrees: Bool[Tensor, "input pos"]
    difference: Float[Tensor, "input pos"]
    kl: Float[Tensor, "input pos"] | None
    counted: Bool[Tensor, "input pos"]

    @property
    def agreement(self) -> float:
        """The share of the counted positions at which they agree."""
        return int((self.agrees & self.counted).sum()) / int(self.counted.sum())

    @property
    def disagreement(self) -> Float[Tensor, " input"]:
        """For each input, the share of its counted positions at which they disagree."""
        missed = (~self.agrees & self.counted).sum(1).double()
        return missed / self.counted.sum(1).clamp(min=1)

    @property
    def largest(self) -> float:
        """The largest difference of an output dimension at a counted position."""
        return float(self.difference[self.counted].max())

    @property
    def mean_kl(self) -> float | None:
        """KL over the counted positions, in nats; None where the output is a number."""
        return None if self.kl is None else float(self.kl[self.counted].mean())


@dataclass(frozen=True)
class Unexplained:
    """An input on which the handcrafted model differs: at which positions, from 0, and by how much at the worst.

    ``amount`` is KL(other ‖ handcrafted) in nats, or the difference where the output is a number.
    """

    given: tuple[Value, ...]
    positions: tuple[int, ...]
    handcrafted: tuple[Value, ...]
    other: tuple[Value, ...]
    amount: float


def compare(
    handcrafted: CompiledTransformer,
    other: nn.Module,
    inputs: Sequence[Sequence[Value]],
    *,
    counted: Bool[Tensor, "input pos"] | None = None,
    scale: int | float = 1.0,
    tolerance: int | float = 1e-6,
) -> Comparison:
    """Run both on ``inputs`` and compare their outputs.

    ``other`` takes what ``handcrafted`` takes, rows of its token embedding with BOS first, and gives the same output
    dimensions in the same order. ``counted`` leaves positions out, such as those where a program is undefined.
    ``scale`` multiplies the handcrafted outputs before KL: a one-hot of size 1 is a poor logit. Costs one pass of each.

    Raises:
        ProgramError: inputs that the handcrafted model does not take, outputs of another shape or that are not finite,
            a model in training mode, or nothing counted.
    """
    ours, theirs = _outputs(handcrafted, other, inputs)
    return _compared(handcrafted, ours, theirs, inputs, _counted(ours, counted), scale, tolerance)


def rank_unexplained(
    handcrafted: CompiledTransformer,
    other: nn.Module,
    inputs: Sequence[Sequence[Value]],
    *,
    counted: Bool[Tensor, "input pos"] | None = None,
    scale: int | float = 1.0,
    tolerance: int | float = 1e-6,
) -> list[Unexplained]:
    """The inputs on which the two differ, worst first; empty when the handcrafted model explains all.

    The worst has the most positions wrong, then the largest KL (difference, for numbers) at one of them.
    """
    ours, theirs = _outputs(handcrafted, other, inputs)
    found = _compared(handcrafted, ours, theirs, inputs, _counted(ours, counted), scale, tolerance)
    wrong = ~found.agrees & found.counted
    size = found.difference if found.kl is None else found.kl
    amounts = size.masked_fill(~wrong, 0.0).amax(1)
    decoded, others = handcrafted.decode(ours), handcrafted.decode(theirs)
    order = sorted(range(len(found.inputs)), key=lambda at: (-int(wrong[at].sum()), -float(amounts[at])))
    return [
        Unexplained(
            found.inputs[at],
            tuple(wrong[at].nonzero().flatten().tolist()),
            tuple(decoded[at]),
            tuple(others[at]),
            float(amounts[at]),
        )
        for at in order
        if wrong[at].any()
    ]


# Circuits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CircuitComparison:
    """The edges of two circuits: those of both and of the first only, in its order; and of the second only, in its."""

    both: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def jaccard(self) -> float:
        """Edges in both over edges in either; 1 for two empty circuits."""
        either = len(self.both) + len(self.only_first) + len(self.only_second)
        return len(self.both) / either if either else 1.0


def compare_circuits(
    first: Circuit | Iterable[str], second: Circuit | Iterable[str], edges: Iterable[str] | None = None
) -> CircuitComparison:
    """Compare the circuits of two models whose wirings have the same edges, such as a compiled one and its imitation.

    Each is a Circuit or the names of its edges. ``edges``, all that the wirings have, is asked only to check the names;
    a Circuit knows its own. Without either, a name that is no edge of the wiring is taken for an edge that one of them
    lacks.

    Example:
        >>> compare_circuits(["a0.h0 -> m0", "m0 -> logits"], ["input -> m0", "m0 -> logits"])
        CircuitComparison(both=('m0 -> logits',), only_first=('a0.h0 -> m0',), only_second=('input -> m0',))

        With certificates: ``compare_circuits(ours.necessary, theirs.necessary, edges=ours.effects)``.

    Raises:
        AddressError: what is no edge ("writer -> reader"), or none of the wiring's; lists each with the nearest.
        CircuitError: circuits of wirings with other edges, or an edge that stands twice.
    """
    known = _known_edges(first, second, edges)
    ours, theirs = _edges_of(first, known), _edges_of(second, known)
    return CircuitComparison(
        tuple(edge for edge in ours if edge in theirs),
        tuple(edge for edge in ours if edge not in theirs),
        tuple(edge for edge in theirs if edge not in ours),
    )


def _known_edges(
    first: Circuit | Iterable[str], second: Circuit | Iterable[str], edges: Iterable[str] | None
) -> tuple[str, ...] | None:
    """All edges of the wiring, where anything says so. Raises CircuitError if two sources differ."""
    sources = [] if edges is None else [checked_edges(edges)]
    sources += [each.edges for each in (first, second) if isinstance(each, Circuit)]
    for other in sources[1:]:
        if different := set(other) ^ set(sources[0]):
            lines = [f"{edge} (only in one)" for edge in (*sources[0], *other) if edge in different]
            raise CircuitError("the circuits are of wirings with other edges", lines, "compare models of one shape")
    return sources[0] if sources else None


def _edges_of(circuit: Circuit | Iterable[str], known: tuple[str, ...] | None) -> dict[str, None]:
    """The names of a circuit's edges, in its order."""
    if isinstance(circuit, Circuit):
        return dict.fromkeys(circuit.names)
    if known is None:
        return dict.fromkeys(checked_edges(circuit))
    return dict.fromkeys(checked_edges(known[at] for at in find_edges(circuit, known)))


# Behaviour ---------------------------------------------------------------------------------------------------------


def _outputs(
    handcrafted: CompiledTransformer, other: nn.Module, inputs: Sequence[Sequence[Value]]
) -> tuple[Tensor, Tensor]:
    """What both give, [input, pos, output], BOS's position first."""
    tokens = handcrafted.encode(inputs)
    _check_mode(handcrafted, other)
    with torch.no_grad():
        ours, theirs = handcrafted(tokens).double(), other(tokens).double()
    if ours.shape != theirs.shape:
        raise ProgramError(
            f"the other model gives outputs {list(theirs.shape)}, and {handcrafted.interface.name} {list(ours.shape)}",
            mend="both give [input, position, output], BOS's position included, with the same output dimensions",
        )
    _check_finite(handcrafted.interface.name, ours, inputs)
    _check_finite("the other model", theirs, inputs)
    return ours, theirs


def _check_mode(*models: nn.Module) -> None:
    if any(module.training for model in models for module in model.modules()):
        raise ProgramError(
            "a model that is compared is in training mode, in which chance and batches change its outputs",
            mend="call .eval() on it",
        )


def _check_finite(name: str, outputs: Tensor, inputs: Sequence[Sequence[Value]]) -> None:
    """NaN agrees with nothing, and yet has a largest entry."""
    wrong = [at for at, row in enumerate(outputs[:, 1:].flatten(1).isfinite().all(1).tolist()) if not row]
    if wrong:
        raise ProgramError(
            f"{name} gives outputs that are not finite for {len(wrong)} of {len(inputs)} inputs",
            [f"input {tuple(inputs[at])}" for at in wrong],
            "check its weights",
        )


def _counted(outputs: Tensor, counted: Tensor | None) -> Tensor:
    batch, positions = outputs.shape[0], outputs.shape[1] - 1
    if counted is None:
        return torch.ones(batch, positions, dtype=torch.bool)
    if counted.shape != (batch, positions) or not counted.any():
        raise ProgramError(
            f"counted is {list(counted.shape)} and has {int(counted.sum())} positions in it, "
            f"for {batch} inputs of {positions}",
            mend="give one truth value per input and position (BOS left out), at least one of them true",
        )
    return counted


def _compared(
    handcrafted: CompiledTransformer,
    ours: Tensor,
    theirs: Tensor,
    inputs: Sequence[Sequence[Value]],
    counted: Tensor,
    scale: int | float,
    tolerance: int | float,
) -> Comparison:
    ours, theirs = ours[:, 1:], theirs[:, 1:]
    rows = tuple(tuple(row) for row in inputs)
    difference = (ours - theirs).abs().amax(-1)
    if handcrafted.interface.decoded is None:
        return Comparison(rows, difference <= tolerance, difference, None, counted)
    same = ours.argmax(-1) == theirs.argmax(-1)
    return Comparison(rows, same, difference, _kl(theirs, ours * scale), counted)


def _kl(truth: Tensor, guess: Tensor) -> Tensor:
    """KL(truth ‖ guess) of logits, in nats, over the last axis."""
    p, q = truth.log_softmax(-1), guess.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
