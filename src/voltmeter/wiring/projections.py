"""Products with weights, for a call that serves several parts: each part's own columns, and nothing twice."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from voltmeter.wiring.expr import Expr, Made, as_linear, calls_in, substitute
from voltmeter.wiring.follow import CallKey
from voltmeter.wiring.plan import Divided, Site
from voltmeter.wiring.trace import tensors_in


def grouped(x: Tensor, site: Site, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` [readings, rows, in] times each reading's columns of ``weight`` [in, out] -> [rows, out]."""
    columns = [r.columns or () for r in site.readings]
    order = [c for cols in columns for c in cols]
    split, _ = _split_columns(columns, weight)
    if split is None:
        out = torch.cat([x[n] @ weight[:, list(cols)] for n, cols in enumerate(columns)], -1)
    else:
        out = torch.bmm(x, split).permute(1, 0, 2).flatten(1)
    if order != list(range(weight.shape[1])):
        out = out[:, inverse(order)]
    return out if bias is None else out + bias.to(out.dtype)  # under autocast the product is of lower precision


def columnwise(x: Tensor, site: Site, which: Sequence[int], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """``x`` [readings in ``which``, rows, in] times the columns of each -> for each [rows, its columns]."""
    columns = [site.readings[n].columns or () for n in which]
    split, chosen = _split_columns(columns, weight)
    if split is None:
        made = [x[n] @ weight[:, list(cols)] for n, cols in enumerate(columns)]
        # As the product: of lower precision under autocast.
        return tuple(m if bias is None else m + bias[list(c)].to(m.dtype) for m, c in zip(made, columns, strict=True))
    if bias is None:
        return torch.bmm(x, split).unbind()
    return torch.baddbmm(bias[chosen].view(len(columns), 1, -1), x, split).unbind()


def ungrouped(grad: Tensor, site: Site, weight: Tensor) -> Tensor:
    """The transpose of ``grouped``: gradient [rows, out] -> [readings, rows, in]."""
    columns = [r.columns or () for r in site.readings]
    split, chosen = _split_columns(columns, weight)
    if split is None:
        return torch.stack([grad[:, list(c)] @ weight[:, list(c)].t() for c in columns])
    picked = grad[:, chosen].unflatten(1, (len(columns), len(columns[0]))).permute(1, 0, 2)
    return torch.bmm(picked, split.transpose(1, 2))


def _split_columns(columns: Sequence[tuple[int, ...]], weight: Tensor) -> tuple[Tensor | None, slice | list[int]]:
    """A weight [in, out] as [readings, in, columns of each] (a view where it can be), and the columns in order."""
    order = [c for cols in columns for c in cols]
    width = len(columns[0])
    if any(len(cols) != width for cols in columns):
        return None, order
    in_order = order == list(range(order[0], order[0] + len(order)))
    chosen: slice | list[int] = slice(order[0], order[0] + len(order)) if in_order else order
    return weight[:, chosen].unflatten(1, (len(columns), width)).permute(1, 0, 2), chosen


def inverse(order: Sequence[int]) -> Tensor:
    return torch.argsort(torch.tensor(order))


def multiplied(made: Made, divided: Divided, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """The projection applied to each part's columns alone: [parts, *output.shape], without bias; and the bias."""
    x = tensors_in((made.args, made.kwargs))[divided.argument]
    linear, width = as_linear(made), len(divided.columns[0])
    if linear is not None and divided.lead == x.dim() - 1 and all(len(c) == width for c in divided.columns):
        order = [c for cols in divided.columns for c in cols]
        in_order = order == list(range(order[0], order[0] + len(order)))
        flat, count = x.reshape(-1, x.shape[-1]), len(divided.columns)
        pick = slice(order[0], order[0] + len(order)) if in_order else order
        z = flat[:, pick].unflatten(1, (count, width)).transpose(0, 1)
        parts = torch.bmm(z, linear.weight[pick].unflatten(0, (count, width)))
        parts = parts.reshape(count, *x.shape[:-1], linear.weight.shape[1])
        bias = None if linear.bias is None or not with_bias else linear.bias.expand(parts.shape[1:])
        return parts, bias
    empty = substitute(made, {divided.argument: torch.zeros_like(x)})
    outs = []
    for cols in divided.columns:
        alone = torch.zeros_like(x).flatten(divided.lead)
        alone[..., list(cols)] = x.flatten(divided.lead)[..., list(cols)]
        outs.append(substitute(made, {divided.argument: alone.reshape(x.shape)}) - empty)
    return torch.stack(outs), empty if with_bias else None


def held_run(run: Mapping[CallKey, Made], after: Expr) -> dict[CallKey, Made]:
    """The calls of an expression with fused norms made linear: the scale is that of the run, not of the part."""
    return {key: _held(run[key]) for key in calls_in(after)}


def _held(made: Made) -> Made:
    name = getattr(made.func, "__name__", "")
    if name not in ("rms_norm", "layer_norm"):
        return made
    return Made(partial(_rms_norm if name == "rms_norm" else _layer_norm, made.args[0]), made.args, made.kwargs)


def _rms_norm(
    whole: Tensor, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """``torch.rms_norm`` of ``x`` with the scale of ``whole``."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(whole.dtype).eps if eps is None else eps
    normed = x * torch.rsqrt(whole.pow(2).mean(axes, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def _layer_norm(
    whole: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``torch.layer_norm`` of ``x`` with the scale of ``whole``."""
    axes = tuple(range(-len(normalized_shape), 0))
    scale = torch.rsqrt(whole.var(axes, unbiased=False, keepdim=True) + eps)
    normed = (x - x.mean(axes, keepdim=True)) * scale
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias
