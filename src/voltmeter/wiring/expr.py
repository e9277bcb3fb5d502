"""How to recompute what a call computed, from another tensor in place of the one it was given.

An ``Expr`` names a call of the present run and says which of its tensor arguments are themselves recomputed;
a ``Source`` is where the new tensor goes in. Expressions are found once, at wire time; they are evaluated on the
calls of the run at hand, so shapes, masks and positions are always those of that run.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from voltmeter.errors import WiringError
from voltmeter.wiring.follow import CallKey
from voltmeter.wiring.refusals import UNREADABLE, declaring
from voltmeter.wiring.trace import Op, Recording, tensors_in


@dataclass(frozen=True)
class Source:
    """The tensor that is put in: a state's number, or -1 for the one tensor at hand."""

    state: int


@dataclass(frozen=True)
class Expr:
    """Tensor leaf ``leaf`` of the output of ``call``, with the arguments at ``inputs`` recomputed.

    The call works in place on the arguments numbered in ``overwritten``.
    """

    call: CallKey
    inputs: tuple[tuple[int, "Expr | Source"], ...]
    leaf: int
    overwritten: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """A tensor of a run: leaf ``leaf`` of a call's arguments (``side`` "in") or of its output ("out")."""

    call: CallKey
    side: str
    leaf: int


@dataclass(frozen=True)
class Made:
    """A call of the present run, kept so that it can be recomputed."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def substitute(made: Made, changed: Mapping[int, Tensor], overwritten: Collection[int] = ()) -> Any:
    """Make the call again with the tensor leaves numbered in ``changed`` replaced.

    Copies are given of those in ``overwritten``, into which the call writes: others will read them.
    """
    if not changed:
        return made.func(*made.args, **made.kwargs)
    leaves, spec = tree_flatten((made.args, made.kwargs))
    number = 0
    for at, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            leaf = changed.get(number, leaf)
            leaves[at] = leaf.clone() if number in overwritten else leaf
            number += 1
    args, kwargs = tree_unflatten(leaves, spec)
    return made.func(*args, **kwargs)


def evaluate(expr: "Expr | Source", run: Mapping[CallKey, Made], sources: Mapping[int, Tensor]) -> Tensor:
    """The value of ``expr`` with ``sources[state]`` put in for each Source; every call is made once."""
    memo: dict[CallKey, list[Tensor]] = {}

    def value(node: Expr | Source) -> Tensor:
        if isinstance(node, Source):
            return sources[node.state]
        if node.call not in memo:
            made = run.get(node.call)
            if made is None:
                raise WiringError(
                    "a call seen while wiring did not happen in this run",
                    [node.call.place],
                    "the model takes another path for these inputs; wire it with an example like them",
                )
            changed = {at: value(child) for at, child in node.inputs}
            memo[node.call] = tensors_in(substitute(made, changed, node.overwritten))
        return memo[node.call][node.leaf]

    return value(expr)


def calls_in(expr: "Expr | Source") -> set[CallKey]:
    """The calls an expression makes."""
    if isinstance(expr, Source):
        return set()
    return {expr.call}.union(*(calls_in(child) for _, child in expr.inputs))


class Builder:
    """Builds expressions over one recording, from one version (and the tensors equal to it)."""

    def __init__(self, recording: Recording, start: set[int], region: Mapping[int, str], state: int) -> None:
        self.recording, self.start, self.region, self.state = recording, start, region, state

    def expr(self, value: int) -> "Expr | Source":
        """How ``value`` is made from the start."""
        if value in self.start:
            return Source(self.state)
        op = self.producer(value)
        call = self.recording.calls[op.call] if op.call is not None else None
        if call is None or value not in call.outs:
            raise self.lost(op)
        inputs = self.inputs(call.index)
        if not inputs:
            raise self.lost(op)
        return Expr(call.key, inputs, call.outs.index(value), call.overwritten)

    def inputs(self, call: int) -> tuple[tuple[int, "Expr | Source"], ...]:
        """Which arguments of a call come from the start, and how."""
        ins = self.recording.calls[call].ins
        return tuple((at, self.expr(v)) for at, v in enumerate(ins) if v in self.start or v in self.region)

    def producer(self, value: int) -> Op:
        number = self.recording.values[value].op
        if number is None:
            raise WiringError("a tensor from outside the model was taken for a part of its stream")
        return self.recording.ops[number]

    def lost(self, op: Op) -> WiringError:
        key = self.recording.calls[op.call].key if op.call is not None else None
        return WiringError(
            UNREADABLE,
            [f"{key.place if key else 'the model'}: {op.name} does something to it that cannot be repeated"],
            declaring(key.module if key else ""),
        )


def leaf_of(recording: Recording, value: int, equal: set[int]) -> Place | None:
    """Where the model's code holds ``value``: the output of the call that made it (or an equal view of it)."""
    number = recording.values[value].op
    if number is not None and recording.ops[number].call is not None:
        call = recording.calls[recording.ops[number].call]  # type: ignore[index]
        for at, out in enumerate(call.outs):
            if out == value or out in equal:
                return Place(call.key, "out", at)
    if number is None:
        for call in recording.calls:
            for at, given in enumerate(call.ins):
                if given == value:
                    return Place(call.key, "in", at)
    return None


@dataclass(frozen=True)
class Linear:
    """A call that multiplies one tensor argument by a weight matrix: y = x @ weight (+ bias)."""

    x: Tensor
    weight: Tensor  # [in, out]
    bias: Tensor | None


def as_linear(made: Made) -> Linear | None:
    """Read a call as ``x @ weight + bias``, or None when it is not of that form."""
    name, args, kwargs = getattr(made.func, "__name__", ""), made.args, made.kwargs
    if name == "linear" and args:
        x, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return Linear(x, weight.t(), bias) if weight.dim() == 2 else None
    if name == "addmm" and len(args) == 3 and not kwargs:
        return Linear(args[1], args[2], args[0]) if args[0].dim() == 1 else None
    if name in ("matmul", "mm", "__matmul__") and len(args) == 2 and not kwargs:
        return Linear(args[0], args[1], None) if args[1].dim() == 2 and args[0].dim() >= 2 else None
    return None


LINEAR_X = {"linear": 0, "addmm": 1, "matmul": 0, "mm": 0, "__matmul__": 0}
