"""A call of the run at hand that reads streams, and its output when its readers read something else."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.errors import WiringError
from voltmeter.wiring.expr import LINEAR_X, Linear, Made, Source, as_linear, evaluate, substitute
from voltmeter.wiring.follow import CallKey
from voltmeter.wiring.plan import Site
from voltmeter.wiring.projections import columnwise, grouped, inverse, ungrouped
from voltmeter.wiring.trace import tensors_in


class ReadingCall(ABC):
    """A call of the run at hand that reads streams: ``site`` says who reads, ``xs`` what stands in each state."""

    def __init__(self, site: Site, xs: Mapping[int, Tensor]) -> None:
        self.site, self.xs = site, xs

    @property
    def is_product(self) -> bool:
        """Whether the call is one product with constant weights."""
        return False

    @abstractmethod
    def plain(self) -> Any:
        """The call's output as the model would have it."""

    @abstractmethod
    def evaluate(self, reads: Mapping[int, Tensor]) -> Any:
        """The call's output when each reading has its own input: state -> [readings of the state, *x.shape]."""

    @property
    def divides(self) -> bool:
        """Whether ``columns`` can be asked for: one product with weights, of which each reading has its own columns."""
        return False

    @property
    def shape(self) -> torch.Size:
        """Of the output, where it ``divides``."""
        raise NotImplementedError

    def columns(self, which: Sequence[int], reads: Tensor) -> list[Tensor]:
        """The columns of the readings numbered in ``which``, each [..., columns], from ``reads`` [which, ...], which
        may be of another batch than the call's. Only where it ``divides``."""
        raise NotImplementedError

    @abstractmethod
    def tensor(self, output: Any) -> Tensor:
        """The tensor of an output that gradients come back to."""

    def pull(self, grad: Tensor) -> dict[int, Tensor]:
        """The gradient of each reading's input, state -> [readings, *x.shape], at the plain input, given that of
        the output."""
        with torch.enable_grad():
            reads = {
                state: x.detach().expand(len(readings_of(self.site, state)), *x.shape).clone().requires_grad_()
                for state, x in self.xs.items()
            }
            output = self.tensor(self.evaluate(reads))
            if not output.requires_grad:  # it takes no more than a shape from what it reads
                return {state: torch.zeros_like(read) for state, read in reads.items()}
            grads = torch.autograd.grad(output, list(reads.values()), grad, allow_unused=True)
        return {
            state: torch.zeros_like(read) if g is None else g
            for (state, read), g in zip(reads.items(), grads, strict=True)
        }


def readings_of(site: Site, state: int) -> list[int]:
    """The readers of one state at a site, in order."""
    if len(site.states) == 1:
        return [r.reader for r in site.readings]
    return [r.reader for r, s in zip(site.readings, site.states, strict=True) if s == state]


def reread(reading: ReadingCall, xs: Mapping[int, Tensor]) -> Any:
    """The output of a reading call when all its readers read ``xs`` (by state) in place of what stands there.

    Costs the call once, and the norm before it: no reader is evaluated apart.
    """
    whole = copy(reading)
    readings = tuple(replace(one, columns=None) for one in reading.site.readings)
    whole.site = replace(reading.site, readings=readings)  # nobody reads a share: the call is made once, as it is
    return whole.evaluate({state: x[None] for state, x in xs.items()})


class ModelCall(ReadingCall):
    """A call of the model's code."""

    def __init__(
        self, site: Site, xs: Mapping[int, Tensor], made: Made, run: Mapping[CallKey, Made], folded: bool
    ) -> None:
        super().__init__(site, xs)
        self.made, self.run, self.folded = made, run, folded

    @property
    def is_product(self) -> bool:
        """The call is one product with constant weights: a tensor that depends on the states read and nothing else."""
        linear = self._linear()
        return linear is not None and not any(t is not None and t.requires_grad for t in (linear.weight, linear.bias))

    def plain(self) -> Any:
        return self.made.func(*self.made.args, **self.made.kwargs)

    def tensor(self, output: Any) -> Tensor:
        return tensors_in(output)[self.site.leaf]

    def evaluate(self, reads: Mapping[int, Tensor]) -> Any:
        if self.site.readings[0].columns is None:
            return self._call({state: x[0] for state, x in reads.items()})
        stacked = reads[self.site.states[0]]
        if self.folded:
            return self._folded(stacked)
        outputs = [self._call({self.site.states[0]: x}) for x in stacked]
        return self._put(outputs[0], self._assembled(torch.stack([self.tensor(out) for out in outputs])))

    @property
    def divides(self) -> bool:
        return self.folded and self.site.readings[0].columns is not None and self._linear() is not None

    @property
    def shape(self) -> torch.Size:
        linear = self._linear()
        assert linear is not None
        return torch.Size((*linear.x.shape[:-1], linear.weight.shape[1]))

    def columns(self, which: Sequence[int], reads: Tensor) -> list[Tensor]:
        linear = self._linear()
        assert linear is not None
        x = evaluate(self.site.inputs[0][1], self.run, {self.site.states[0]: reads.flatten(0, 1)})
        pieces = columnwise(x.reshape(len(which), -1, x.shape[-1]), self.site, which, linear.weight, linear.bias)
        return [piece.unflatten(0, (x.shape[0] // len(which), *x.shape[1:-1])) for piece in pieces]

    def _call(self, sources: Mapping[int, Tensor]) -> Any:
        changed = {at: evaluate(expr, self.run, sources) for at, expr in self.site.inputs}
        return substitute(self.made, changed, self.site.overwritten)

    def _linear(self) -> Linear | None:
        """The call as one product with weights, when its only changed argument is what is multiplied."""
        linear = as_linear(self.made)
        if linear is None or [at for at, _ in self.site.inputs] != [LINEAR_X[self.made.func.__name__]]:
            return None
        return linear if self.site.lead in (0, linear.x.dim() - 1) else None  # 0: not divided

    def _folded(self, stacked: Tensor) -> Any:
        """All readings at once, stacked along the batch axis; a plain product as one grouped product."""
        count, sources = stacked.shape[0], {self.site.states[0]: stacked.flatten(0, 1)}
        linear = self._linear()
        if linear is not None:
            x = evaluate(self.site.inputs[0][1], self.run, sources)
            out = grouped(x.reshape(count, -1, x.shape[-1]), self.site, linear.weight, linear.bias)
            return out.reshape(*linear.x.shape[:-1], linear.weight.shape[1])
        output = self._call(sources)
        return self._put(output, self._assembled(self.tensor(output).unflatten(0, (count, -1))))

    def _put(self, output: Any, tensor: Tensor) -> Any:
        """``output`` with ``tensor`` in place of the leaf that is divided."""
        if isinstance(output, Tensor):
            return tensor
        divided = self.tensor(output)
        return tree_map(lambda leaf: tensor if leaf is divided else leaf, output)

    def _assembled(self, outs: Tensor) -> Tensor:
        """Take from each reading's output [readings, *out.shape] its own columns."""
        flat = outs.flatten(1 + self.site.lead)
        pieces = [flat[n][..., list(r.columns or ())] for n, r in enumerate(self.site.readings)]
        order = [c for r in self.site.readings for c in (r.columns or ())]
        if flat.shape[-1] != len(order):
            raise WiringError(
                f"a call's output was divided into {len(order)} columns, and has {flat.shape[-1]} in this run",
                [self.site.call.place if self.site.call else "the output"],
                "give inputs of the sizes the model was wired with",
            )
        return torch.cat(pieces, -1)[..., inverse(order)].reshape(outs.shape[1:])

    def pull(self, grad: Tensor) -> dict[int, Tensor]:
        """As ``ReadingCall.pull``; through a product with weights without making the product again."""
        linear = self._linear()
        whole = self.site.readings[0].columns is None
        if linear is None or not (whole or self.folded):
            return super().pull(grad)
        (state,) = self.site.states
        x, count = self.xs[state], len(self.site.readings)
        expr = self.site.inputs[0][1]
        flat = grad.reshape(-1, grad.shape[-1]).to(linear.weight.dtype)  # under autocast it is of lower precision
        back = (flat @ linear.weight.t())[None] if whole else ungrouped(flat, self.site, linear.weight)
        if isinstance(expr, Source):
            return {state: back.view(count, *x.shape)}
        with torch.enable_grad():
            leaf = x.detach().expand(count, *x.shape).requires_grad_()
            stacked = leaf.flatten(0, 1) if count > 1 else leaf[0]
            normed = evaluate(expr, self.run, {state: stacked})
            pulled = torch.autograd.grad(normed, leaf, back.reshape(normed.shape))[0]
        return {state: pulled}


class ReturnedCall(ReadingCall):
    """The model returns a stream (or its norm): reading is handing it out."""

    def __init__(self, site: Site, xs: Mapping[int, Tensor], value: Tensor, run: Mapping[CallKey, Made]) -> None:
        super().__init__(site, xs)
        self.value, self.run = value, run

    def plain(self) -> Any:
        return self.value

    def evaluate(self, reads: Mapping[int, Tensor]) -> Any:
        assert self.site.value is not None
        return evaluate(self.site.value, self.run, {state: x[0] for state, x in reads.items()})

    def tensor(self, output: Any) -> Tensor:
        return output  # type: ignore[no-any-return]
