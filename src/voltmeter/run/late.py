"""Products with weights after which nothing mixes positions any more, made only where the answer is read.

After the last attention every position is on its own, so that all but the answer's may be left out: the last MLP and
the unembedding are a third of a small model's work. Which weights these are is not read off the architecture but tried:
a product's other positions are filled with NaN, and where none reaches the answer, they do not matter.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, no_type_check

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from voltmeter.wiring.expr import LINEAR_X, Made, as_linear
from voltmeter.wiring.inputs import call

_ROUNDING = 1e-5  # in float32, of a product over fewer rows; relative to the largest entry
_WEIGHT = {
    "linear": (1, "weight"),
    "addmm": (2, "mat2"),
    "matmul": (1, "other"),
    "mm": (1, "mat2"),
    "__matmul__": (1, ""),
}

Product = Callable[[int, Tensor, Callable[[Tensor], Any]], Any]  # what to make of (weight, x, make)


@dataclass(frozen=True, eq=False)
class Late:
    """Where the answer of each row is read, and the products that matter nowhere else.

    ``lengths``: the id of a weight -> the positions of what it is multiplied with. A product of other sizes is not one
    of those that were tried, and is made whole.
    """

    positions: Int[Tensor, "row"]
    lengths: Mapping[int, int]

    def repeated(self, times: int) -> "Late":
        """For the whole batch ``times`` times over."""
        return replace(self, positions=self.positions.repeat(times))


class _Products(TorchFunctionMode):
    """A context in which each product with a weight matrix that is a parameter goes through ``product``."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product

    @no_type_check  # a check would be made for every torch call of the model
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in LINEAR_X or as_linear(Made(func, args, kwargs)) is None:
            return func(*args, **kwargs)
        (where, called), at = _WEIGHT[name], LINEAR_X[name]
        weight = args[where] if len(args) > where else kwargs.get(called)
        if not isinstance(weight, nn.Parameter):
            return func(*args, **kwargs)
        return self.product(id(weight), args[at], lambda x: func(*args[:at], x, *args[at + 1 :], **kwargs))


def _length(x: Tensor, rows: int) -> int:
    """The positions of [row, position, feature], or of a view of it as [row * position, feature]; else 0.

    What is no view has its rows in an order of its own, such as the tokens that are sent to an expert.
    """
    if x.dim() == 3 and len(x) == rows:
        return x.shape[1]
    return len(x) // rows if x.dim() == 2 and x._is_view() and len(x) % rows == 0 else 0


def _only_at(positions: Tensor, x: Tensor, make: Callable[[Tensor], Any], fill: float) -> Any:
    """A product at one position of every row, ``fill`` elsewhere."""
    apart = x.reshape(len(positions), -1, x.shape[-1])
    at = torch.arange(len(positions), device=x.device), positions
    chosen = apart[at]
    some = make(chosen if x.dim() == 2 else chosen[:, None])
    out = some.new_full((*apart.shape[:2], some.shape[-1]), fill)
    out[at] = some.reshape(len(positions), -1)
    return out.reshape(*x.shape[:-1], some.shape[-1])


def _products_of(late: Late, fill: float) -> _Products:
    def product(weight: int, x: Tensor, make: Callable[[Tensor], Any]) -> Any:
        length = late.lengths.get(weight)
        if length is None or _length(x, len(late.positions)) != length:
            return make(x)
        return _only_at(late.positions, x, make, fill)

    return _Products(product)


@contextmanager
def only_at(late: Late | None) -> Iterator[None]:
    """Inside, the ``late`` products are made at one position of every row, and are zero elsewhere."""
    if late is None or not late.lengths:
        yield
        return
    with _products_of(late, 0.0):
        yield


def late_products(
    model: nn.Module, inputs: Any, positions: Int[Tensor, "row"], answer: Callable[[Any], Tensor]
) -> Late:
    """The products that matter at the answer's position alone; ``answer(outputs)`` is looked at.

    The longest run of products at the end for which that is so, found by halving: about six plain forwards. Give the
    batch twice over (at least): of a single row, one layout of positions looks like another.
    """
    made: dict[int, list[int]] = defaultdict(list)
    order: list[int] = []

    def note(weight: int, x: Tensor, make: Callable[[Tensor], Any]) -> Any:
        made[weight].append(_length(x, len(positions)))
        order.append(weight)
        return make(x)

    with torch.no_grad():
        with _Products(note):
            wanted = answer(call(model, inputs))
        lengths = _lengths(made, int(positions.max()))
        order = [weight for weight in order if weight in lengths]
        low, high = 0, len(order)  # at ``high`` on, nothing matters elsewhere
        while low < high:
            middle = (low + high) // 2
            with _products_of(Late(positions, _after(order, middle, lengths)), float("nan")):
                found = answer(call(model, inputs))
            if _same(found, wanted):
                high = middle
            else:
                low = middle + 1
    return Late(positions, _after(order, high, lengths))


def _lengths(made: Mapping[int, Sequence[int]], last: int) -> dict[int, int]:
    """Weight -> positions, of those always multiplied with several positions, the answers' among them."""
    return {weight: each[0] for weight, each in made.items() if len(set(each)) == 1 and each[0] > max(last, 1)}


def _after(order: Sequence[int], start: int, lengths: Mapping[int, int]) -> dict[int, int]:
    """Those multiplied from ``start`` on, and not before."""
    return {weight: lengths[weight] for weight in set(order[start:]) - set(order[:start])}


def _same(found: Tensor, wanted: Tensor) -> bool:
    return bool(((found - wanted).abs().max() <= _ROUNDING * wanted.abs().max()).item())
