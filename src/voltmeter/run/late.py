"""Products with weights after which nothing mixes positions any more, made only where the answer is read.

After the last attention every position is on its own, so that all but the answer's may be left out: the last MLP and
the unembedding are a third of a small model's work. Which weights these are is not read off the architecture but tried:
a product's other positions are filled with NaN, and where none reaches the answer, they do not matter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, no_type_check

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from voltmeter.wiring.expr import LINEAR_X, Made, as_linear
from voltmeter.wiring.inputs import call

_ROUNDING = 1e-5  # in float32, of a product over fewer rows; relative to the largest entry


class _Products(TorchFunctionMode):
    """A context in which each product of one of ``weights`` goes through ``product(x, make)``; None: of any."""

    def __init__(self, weights: frozenset[int] | None, product: Callable[[int, Tensor, Callable[[Tensor], Any]], Any]):
        super().__init__()
        self.weights, self.product = weights, product

    @no_type_check  # a check would be made for every torch call of the model
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in LINEAR_X or as_linear(made := Made(func, args, kwargs)) is None:
            return func(*args, **kwargs)
        weight, at = _weight(made), LINEAR_X[name]
        if weight is None or (self.weights is not None and id(weight) not in self.weights):
            return func(*args, **kwargs)
        return self.product(id(weight), args[at], lambda x: func(*args[:at], x, *args[at + 1 :], **kwargs))


def _weight(made: Made) -> Tensor | None:
    """The parameter that is multiplied with."""
    given = [*made.args, *made.kwargs.values()]
    return next((t for t in given if isinstance(t, nn.Parameter) and t.dim() == 2), None)


def _only_at(positions: Tensor, x: Tensor, make: Callable[[Tensor], Any], fill: float) -> Any:
    """A product at one position of every row [row, position, ...] (or [row * position, ...]), ``fill`` elsewhere."""
    rows = len(positions)
    apart = x.reshape(rows, -1, x.shape[-1])
    if x.dim() not in (2, 3) or (x.dim() == 3 and len(x) != rows) or apart.shape[1] == 1:
        return make(x)
    at = torch.arange(rows, device=x.device), positions
    chosen = apart[at]
    some = make(chosen if x.dim() == 2 else chosen[:, None])
    out = some.new_full((*apart.shape[:2], some.shape[-1]), fill)
    out[at] = some.reshape(rows, -1)
    return out.reshape(*x.shape[:-1], some.shape[-1])


@contextmanager
def only_at(positions: Int[Tensor, "row"] | None, late: frozenset[int]) -> Iterator[None]:
    """Inside, products with the ``late`` weights are made at one position of every row, and zero elsewhere."""
    if positions is None or not late:
        yield
        return
    with _Products(late, lambda _, x, make: _only_at(positions, x, make, 0.0)):
        yield


def late_weights(
    model: nn.Module, inputs: Any, positions: Int[Tensor, "row"], answer: Callable[[Any], Tensor]
) -> frozenset[int]:
    """The ids of weights whose products matter at the answer's position alone; ``answer(outputs)`` is looked at.

    The longest run of products at the end for which that is so, found by halving: about six plain forwards.
    """
    order: list[int] = []

    def note(weight: int, x: Tensor, make: Callable[[Tensor], Any]) -> Any:
        order.append(weight)
        return make(x)

    with torch.no_grad():
        with _Products(None, note):
            wanted = answer(call(model, inputs))
        low, high = 0, len(order)  # at ``high`` on, nothing matters elsewhere
        while low < high:
            middle = (low + high) // 2
            with _Products(_late(order, middle), lambda _, x, make: _only_at(positions, x, make, float("nan"))):
                found = answer(call(model, inputs))
            if _same(found, wanted):
                high = middle
            else:
                low = middle + 1
    return _late(order, high)


def _late(order: Sequence[int], start: int) -> frozenset[int]:
    return frozenset(order[start:]) - frozenset(order[:start])


def _same(found: Tensor, wanted: Tensor) -> bool:
    return bool(((found - wanted).abs().max() <= _ROUNDING * wanted.abs().max()).item())
