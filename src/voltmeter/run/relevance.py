"""Relevance propagation as a way to differentiate: the forward stays as it is, the backward follows the rules of LRP.

    norms                    the scale is held fixed: the norm is linear                            LN-rule
    elementwise functions    f(x) = f(0) + x · s with the slope s = (f(x) - f(0)) / x held fixed   identity rule
    products of two          each gets half of its gradient                                        half rule
    attention                patterns are held fixed: a head is linear in its values               AH-rule

(Jafari et al. 2508.21258, Table 1, after Ali et al. 2022 and Arras et al. 2019.) A model's own code is followed call by
call, so norms and activations written out by hand are met as well: square roots, their reciprocals and whatever is
divided by are scales; what is made of one tensor by elementwise calls and numbers alone is one elementwise function of
it, however many calls it takes (``0.5 * x * (1 + tanh(...))``).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from voltmeter.wiring.trace import tensors_in

_NEAR = 1e-4  # an input nearer to 0 gets the slope between 0 and here: the quotient has no digits left

_HELD = ("rsqrt", "sqrt", "std", "norm", "vector_norm", "matrix_norm", "linalg_norm", "linalg_vector_norm")
_ATTENTION = ("softmax", "scaled_dot_product_attention")
_ELEMENTWISE = (
    "relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "tanh", "sigmoid", "softplus",
    "softsign", "tanhshrink", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "erf", "exp", "expm1", "square",
    "abs", "sin", "cos", "atan", "clamp", "clamp_min", "clamp_max", "clip", "rpow",
)  # fmt: skip
_SUMS = ("add", "sub", "neg")
_PRODUCTS = ("matmul", "bmm", "mm", "einsum")
_SAME = {
    "multiply": "mul", "rmul": "mul", "imul": "mul", "true_divide": "div", "divide": "div", "truediv": "div",
    "itruediv": "div", "idiv": "div", "rtruediv": "reciprocal", "rdiv": "reciprocal", "radd": "add", "iadd": "add",
    "subtract": "sub", "isub": "sub", "rsub": "sub", "negative": "neg", "ipow": "pow", "rmatmul": "matmul",
    "absolute": "abs",
}  # fmt: skip


Rule = Callable[[Callable[..., Any], Any, Any], Any]  # what to make of (func, args, kwargs)


class _Made(NamedTuple):
    """A tensor is an elementwise function of ``source``; ``probe`` is the same function at 0 and at ``_NEAR``.

    As long as neither was changed in place: ``versions`` of the source and of the tensor. ``is_bent``: by more than
    sums and multiples.
    """

    source: Tensor
    probe: Tensor
    versions: tuple[int, int]
    is_bent: bool


class _Value(torch.autograd.Function):
    """``value``, with the gradient of ``linear`` (times ``slope``)."""

    @staticmethod
    def forward(ctx: Any, linear: Tensor, value: Tensor, slope: Tensor | None) -> Tensor:
        ctx.slope = slope
        return value.clone()  # the model may go on to change it in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad if ctx.slope is None else grad * ctx.slope, None, None


class _Half(torch.autograd.Function):
    """The same tensor, with half of the gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad / 2


def _instead(linear: Tensor, value: Tensor, slope: Tensor | None = None) -> Tensor:
    made: Tensor = _Value.apply(linear, value, slope)  # type: ignore[no-untyped-call]
    return made


def _half(tensor: Tensor) -> Tensor:
    made: Tensor = _Half.apply(tensor)  # type: ignore[no-untyped-call]
    return made


class RelevanceRules(TorchFunctionMode):
    """A context in which what torch computes is differentiated by the rules above. Values do not change.

    ``held_patterns=False`` leaves attention to ordinary differentiation: its softmax, and products of matrices.
    """

    def __init__(self, held_patterns: bool = True) -> None:
        super().__init__()
        self.held_patterns = held_patterns
        self._made: Any = WeakTensorKeyDictionary()

    @no_type_check
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        name = func.__name__
        rule = self._rule(_SAME.get(name.strip("_"), name.strip("_")))
        if rule is None or (rule == self._sum and _is_in_place(name, kwargs)):  # linear as it stands
            return func(*args, **kwargs)
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        if not _is_in_place(name, kwargs):
            return rule(func, args, kwargs)
        target = args[0]
        return target.copy_(rule(func, (target.clone(), *args[1:]), kwargs))

    def _rule(self, name: str) -> Rule | None:
        if name in _ATTENTION or name in _PRODUCTS:
            return _attention_rule(name) if self.held_patterns else None
        if name in _NORMS:
            return _normed(_NORMS[name])
        groups = {_HELD: _held, _ELEMENTWISE: self._elementwise, _SUMS: self._sum}
        own = {"mul": self._mul, "div": self._div, "pow": self._power, "reciprocal": self._reciprocal, "glu": self._glu}
        return own.get(name) or next((rule for names, rule in groups.items() if name in names), None)

    # functions of one tensor ----------------------------------------------------------------------------

    def _of(self, tensor: Any) -> _Made | None:
        """What a tensor is made of; at least of itself."""
        if not isinstance(tensor, Tensor) or not tensor.requires_grad:
            return None
        made: _Made | None = self._made.get(tensor)
        if made is None or made.versions != (made.source._version, tensor._version):
            versions = (tensor._version, tensor._version)
            return _Made(tensor, torch.tensor([0.0, _NEAR], dtype=torch.float64), versions, False)
        return made

    def _one_source(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Made | None:
        """The one source of all tensors given, with no other tensors among them; and the call's own probe."""
        given = tensors_in((args, kwargs))
        sources = [self._of(t) for t in given]
        if not sources or any(s is None or s.source is not sources[0].source for s in sources):  # type: ignore[union-attr]
            return None
        return sources[0]

    def _probed(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        """The function at 0 and nearby, on this call's other arguments."""
        probes = tree_map(lambda a: self._of(a).probe.clone() if isinstance(a, Tensor) else a, (args, kwargs))  # type: ignore[union-attr]
        made: Tensor = func(*probes[0], **probes[1])
        return made

    def _elementwise(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        one = self._one_source(args, kwargs)
        if one is None:  # a slope or a bound that is a tensor
            return func(*args, **kwargs)
        probe = self._probed(func, args, kwargs)
        if not bool(torch.isfinite(probe).all()):
            return func(*args, **kwargs)
        value, source = _value(func, args, kwargs), one.source.detach()
        start, near = probe.tolist()
        apart = source.abs() > _NEAR
        slope = torch.where(apart, (value - start) / torch.where(apart, source, 1), (near - start) / _NEAR)
        return self._remember(_instead(one.source, value, slope), one.source, probe, is_bent=True)

    def _power(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
        falls = isinstance(exponent, int | float) and exponent < 0
        return (self._reciprocal if falls else self._elementwise)(func, args, kwargs)

    def _remember(self, tensor: Tensor, source: Tensor, probe: Tensor, is_bent: bool) -> Tensor:
        self._made[tensor] = _Made(source, probe, (source._version, tensor._version), is_bent)
        return tensor

    def _sum(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Linear as it stands. Sums of functions of one tensor are one."""
        out, one = func(*args, **kwargs), self._one_source(args, kwargs)
        if one is None:
            return out
        return self._remember(out, one.source, self._probed(func, args, kwargs), self._is_bent(args, kwargs))

    def _is_bent(self, args: Any, kwargs: Any) -> bool:
        return any(made.is_bent for made in map(self._of, tensors_in((args, kwargs))) if made is not None)

    # products -------------------------------------------------------------------------------------------

    def _mul(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        active = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        if len(active) == 1:
            return self._sum(func, args, kwargs)
        if self._one_source(args, kwargs) is not None:
            return self._elementwise(func, args, kwargs)
        return _halved(func, args, kwargs)

    def _div(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """By a function of the same tensor, or by a scale, which is held."""
        divisor = args[1] if len(args) > 1 else kwargs["other"]
        if not (isinstance(divisor, Tensor) and divisor.requires_grad):
            return self._sum(func, args, kwargs)
        if self._one_source(args, kwargs) is not None:
            return self._elementwise(func, args, kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "other"}
        return func(args[0], divisor.detach(), *args[2:], **rest)

    def _reciprocal(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An activation written out (1 / (1 + exp(-x))), or a scale (1 / (mean + eps))."""
        return (self._elementwise if self._is_bent(args, kwargs) else _held)(func, args, kwargs)

    def _glu(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        value = _value(func, args, kwargs)
        carried, gate = args[0].chunk(2, args[1] if len(args) > 1 else kwargs.get("dim", -1))
        return _instead(_half(carried) * _half(self._elementwise(torch.sigmoid, (gate,), {})), value)


def _is_in_place(name: str, kwargs: Mapping[str, Any]) -> bool:
    if name.startswith("__"):
        return name in ("__imul__", "__itruediv__", "__idiv__", "__iadd__", "__isub__", "__ipow__")
    return name.endswith("_") or bool(kwargs.get("inplace", False))


@torch.no_grad()
def _value(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The call's plain output; its first argument is copied, since the call may work in place."""
    return func(*(arg.clone() if at == 0 and isinstance(arg, Tensor) else arg for at, arg in enumerate(args)), **kwargs)


def _held(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return func(*args, **kwargs)


def _halved(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A product: where several of its factors depend on the stream, each gets half of its gradient."""
    if sum(t.requires_grad for t in tensors_in((args, kwargs))) < 2:
        return func(*args, **kwargs)
    split = tree_map(lambda a: _half(a) if isinstance(a, Tensor) and a.requires_grad else a, (args, kwargs))
    return func(*split[0], **split[1])


def _attention_rule(name: str) -> Rule:
    return {"softmax": _held, "scaled_dot_product_attention": _attended}.get(name, _halved)


def _attended(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Queries and keys are held fixed, and so the pattern is."""
    given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    given |= {name: given[name].detach() for name in ("query", "key")}
    return func(given.pop("query"), given.pop("key"), given.pop("value"), *args[3:], **given)


# norms with their scale held: linear in x; their value is not used


def _normed(linear: Callable[..., Tensor]) -> Rule:
    return lambda func, args, kwargs: _instead(linear(*args, **kwargs), _value(func, args, kwargs))


def _scaled(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    return x * (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt()


def _weighed(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else x * weight


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _weighed(_scaled(input - input.mean(dims, keepdim=True), dims, eps), weight)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _weighed(_scaled(input, dims, torch.finfo(input.dtype).eps if eps is None else eps), weight)


def _group_norm(
    input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    groups = input.reshape(len(input), num_groups, -1)
    normed = _scaled(groups - groups.mean(-1, keepdim=True), (-1,), eps).reshape(input.shape)
    return _weighed(normed, None if weight is None else weight.reshape(1, -1, *[1] * (input.dim() - 2)))


def _normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **_: Any) -> Tensor:
    scale: Tensor = input.detach().norm(p, dim, keepdim=True).clamp(min=eps)
    return input / scale


_NORMS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "normalize": _normalize,
}
