"""The weights of an attention head, wherever its model keeps them: fused, interleaved, transposed, shared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voltmeter.errors import AddressError, WiringError, nearest
from voltmeter.wiring.algebra import mixes
from voltmeter.wiring.attention import core_of, operands_of
from voltmeter.wiring.expr import LINEAR_X, Expr, Linear, Made, Source, as_linear, calls_in
from voltmeter.wiring.follow import CallKey, Follower
from voltmeter.wiring.inputs import call
from voltmeter.wiring.plan import Divided, Site
from voltmeter.wiring.streams import Survey
from voltmeter.wiring.tap import refuse_tapped
from voltmeter.wiring.wiring import Wiring

_ROLES = {"q": "queries", "k": "keys", "v": "values"}
_OWN = "read them off the model's own parameters: dict(wiring.model.named_parameters())"


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The matrices of one head, named and shaped as in TransformerLens: ``q = x @ W_Q + b_Q``, ``out = z @ W_O + b_O``.

    They are copies of what the model multiplies by: norms before a product and scales after it are not folded in. In
    self-attention d_source is d_model; d_value is d_head in most models. A bias the model has not is None; ``b_O`` is
    the component's, added once for all its heads.
    """

    W_Q: Float[Tensor, "d_model d_head"]
    W_K: Float[Tensor, "d_source d_head"]
    W_V: Float[Tensor, "d_source d_value"]
    W_O: Float[Tensor, "d_value d_model"]
    b_Q: Float[Tensor, "d_head"] | None
    b_K: Float[Tensor, "d_head"] | None
    b_V: Float[Tensor, "d_value"] | None
    b_O: Float[Tensor, "d_model"] | None


def head_weights(wiring: Wiring, head: str) -> HeadWeights:
    """As ``Wiring.weights``."""
    refuse_tapped(wiring.model)
    number = _head_number(wiring, head)
    sites = {role: _site_of(wiring, head, role) for role in _ROLES}
    divided = next(w.divided for w in wiring.plan.writes if number in w.writers)
    assert divided is not None  # a head is a part
    wanted = {site.call for site, _ in sites.values()} | {divided.call}
    calls = _Watch(wiring.model, frozenset(key for key in wanted if key is not None), wiring.plan.opaque).of(wiring)
    operands = _operands(wiring.survey, divided)
    read = {role: _columns(wiring, head, role, *sites[role], calls, operands[role]) for role in _ROLES}
    projection = _projected(calls[divided.call], divided)
    if projection is None:
        raise _not_linear(head, "output", divided.call, calls[divided.call])
    rows = divided.columns[number - _first_part(wiring, head)]
    return HeadWeights(
        W_Q=read["q"][0],
        W_K=read["k"][0],
        W_V=read["v"][0],
        W_O=_copy(projection.weight[list(rows)]),
        b_Q=read["q"][1],
        b_K=read["k"][1],
        b_V=read["v"][1],
        b_O=None if projection.bias is None else _copy(projection.bias),
    )


def _head_number(wiring: Wiring, head: str) -> int:
    heads = {w.name: w.number for w in wiring.writers if w.kind == "head"}
    if head in heads:
        return heads[head]
    lines = [nearest(head, list(heads))] if heads else ["no component of this wiring is divided into heads"]
    mend = "a head is a writer, such as " + (next(iter(heads)) if heads else 'those of wiring.split("a0", "heads")')
    raise AddressError(f"no head is called '{head}'", lines, mend)


def _first_part(wiring: Wiring, head: str) -> int:
    """The number of the first head of the same component."""
    component = wiring.writer(head).component
    return min(w.number for w in wiring.writers if w.component == component)


def _site_of(wiring: Wiring, head: str, role: str) -> tuple[Site, tuple[int, ...]]:
    """Where a head's queries (keys, values) are read, and their columns of that call's output."""
    readers = [r.number for r in wiring.readers if r.kind == role and head in r.feeds]
    if not readers:
        read = [r.name for r in wiring.readers if head in r.feeds]
        raise WiringError(
            f"the {_ROLES[role]} of '{head}' are not made from a stream", [f"it reads {', '.join(read)}"], _OWN
        )
    return next(
        (site, reading.columns or ())
        for site in wiring.plan.sites
        for reading in site.readings
        if reading.reader == readers[0]
    )


def _columns(
    wiring: Wiring,
    head: str,
    role: str,
    site: Site,
    columns: tuple[int, ...],
    calls: Mapping[CallKey, Made],
    operand: int,
) -> tuple[Tensor, Tensor | None]:
    """The weight [in, column] and bias [column] that make a head's queries (keys, values) of the stream."""
    assert site.call is not None  # a head reads at a call
    made = calls[site.call]
    linear = as_linear(made)
    if linear is None or site.lead != linear.x.dim() - 1 or _multiplied_twice(wiring.survey, site, made, operand):
        raise _not_linear(head, _ROLES[role], site.call, made)
    chosen = list(columns)
    return _copy(linear.weight[:, chosen]), None if linear.bias is None else _copy(linear.bias[chosen])


def _operands(survey: Survey, divided: Divided) -> Mapping[str, int]:
    """The versions that attention multiplies, by role."""
    core = core_of(survey.recording, survey.call_at[divided.call].ins[divided.argument])
    operands = None if core is None else operands_of(survey.recording, core)
    assert operands is not None  # heads were found through them
    return operands


def _multiplied_twice(survey: Survey, site: Site, made: Made, operand: int) -> bool:
    """Between the stream and the ``operand`` of attention lies a product besides that of the site (a low rank)."""
    assert site.call is not None
    expr: Expr | Source | None = dict(site.inputs).get(LINEAR_X[made.func.__name__])
    if expr is None:
        return True
    ops, here = survey.recording.ops, survey.call_at[site.call]
    before = {survey.call_at[key].index for key in calls_in(expr)}
    if any(op.call in before and mixes(op) for op in ops):
        return True
    once, twice = {here.outs[site.leaf]}, set[int]()
    for op in ops:
        if any(i in twice for i in op.ins) or (mixes(op) and any(i in once for i in op.ins)):
            twice.update(op.outs)
        elif any(i in once for i in op.ins):
            once.update(op.outs)
    return operand in twice


def _projected(made: Made, divided: Divided) -> Linear | None:
    """The product that a component ends in, when a head's columns are columns of what it multiplies."""
    linear = as_linear(made)
    if linear is None or divided.argument != LINEAR_X[made.func.__name__] or divided.lead != linear.x.dim() - 1:
        return None
    return linear


def _not_linear(head: str, what: str, key: CallKey, made: Made) -> WiringError:
    of = "" if what == "output" else " of the stream"
    return WiringError(
        f"the {what} of '{head}' {'are' if of else 'is'} not one product{of} with a weight matrix",
        [f"{key.place} divides them by head in {getattr(made.func, '__name__', 'a call')}"],
        _OWN,
    )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


class _Watch(Follower):
    """One run of the model, of which some calls are kept: with the weights as they are now."""

    def __init__(self, model: nn.Module, wanted: frozenset[CallKey], opaque: frozenset[str]) -> None:
        super().__init__(model, opaque)
        self.wanted = wanted
        self.made: dict[CallKey, Made] = {}

    def of(self, wiring: Wiring) -> Mapping[CallKey, Made]:
        with torch.no_grad(), self:
            call(wiring.model, wiring.example)
        return self.made

    def on_call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if key in self.wanted:
            self.made[key] = Made(func, args, kwargs)
        return func(*args, **kwargs)
