"""The small vocabulary of ops that decides what is a sum, an alias, a norm, and what is a reading.

Four classes of value can be made from a stream without reading it:

    S  the stream itself: views, casts, slices, scaled copies of it
    Q  a square or magnitude of it, on the way to a statistic
    T  a statistic of it (a mean, a variance, a norm)
    N  the stream, normalised: shifted and scaled by statistics of its own and by constants

Any op that takes one of these to something else reads the stream.
"""

from typing import Any

import torch
from torch.utils._pytree import tree_map

from voltmeter.wiring.trace import OPAQUE, Op, Recording, Ref, words

# The same entries in the same order (casts and copies included).
FLAT = words("""
    view _unsafe_view reshape view_as _reshape_alias flatten unflatten squeeze unsqueeze
    clone contiguous detach alias lift_fresh lift_fresh_copy _to_copy
""")
# The same entries elsewhere, or some of them.
MOVED = words("""
    transpose permute t mT numpy_T movedim flip roll
    slice select narrow index index_select gather diagonal unfold
    unbind split split_with_sizes chunk expand repeat
""")
_SQUARES = words("pow square abs")
_STATISTICS = words("mean sum var std var_mean std_mean linalg_vector_norm norm amax max logsumexp")
_FUSED_NORMS = words("""
    native_layer_norm layer_norm rms_norm _fused_rms_norm native_group_norm
    native_batch_norm batch_norm cudnn_batch_norm _batch_norm_no_update
    _native_batch_norm_legit _native_batch_norm_legit_no_training
""")
_POINTWISE = words("add sub rsub mul div neg reciprocal pow sqrt rsqrt exp log clamp clamp_min maximum")
# Products, convolutions and whatever else brings different entries together with weights.
_MIXING = words("""
    mm addmm bmm baddbmm matmul linear einsum dot mv addmv _grouped_mm grouped_mm
    convolution _convolution embedding
    lstm gru rnn_tanh rnn_relu mkldnn_rnn_layer _cudnn_rnn _thnn_fused_lstm_cell _thnn_fused_gru_cell
""")


def mixes(op: Op) -> bool:
    """The op brings different entries together: a product, a convolution, attention, a declared module."""
    name = base_name(op)
    return name in _MIXING or name == OPAQUE or name.startswith("_scaled_dot_product")


def base_name(op: Op) -> str:
    """``add`` for ``aten::add.Tensor``, ``aten::add_.Tensor`` alike; ``_to_copy`` stays."""
    name = op.name
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name


def is_flat(op: Op, recording: Recording) -> bool:
    """The op's output holds the same entries in the same order as its first input."""
    name = base_name(op)
    if not op.ins or len(op.outs) != 1:
        return False
    given, made = recording.values[op.ins[0]].tensor, recording.values[op.outs[0]].tensor
    if not (given.is_floating_point() and made.is_floating_point()):
        return False
    if name in FLAT:
        return True
    if name in ("slice", "expand", "transpose", "permute", "index") and given.shape == made.shape:
        return _keeps_order(op, given, recording)
    return False


def _keeps_order(op: Op, given: torch.Tensor, recording: Recording) -> bool:
    """The op leaves entries where they are. Asked of numbered entries: those of the run may be equal by chance."""
    numbers = torch.arange(given.numel(), device=given.device).reshape(given.shape)
    args = tree_map(lambda leaf: recording.values[leaf.value].tensor if isinstance(leaf, Ref) else leaf, op.args[1:])
    return torch.equal(op.func(numbers.clone(), *args, **op.kwargs), numbers)


def scale_of(op: Op, recording: Recording) -> tuple[int, float] | None:
    """``(input, factor)`` when the op multiplies one tensor by a number, else None."""
    name = base_name(op)
    if name == "neg":
        return op.ins[0], -1.0
    if name not in ("mul", "div") or len(op.args) != 2:
        return None
    left, right = (_as_number(arg, recording) for arg in op.args)
    if isinstance(op.args[0], Ref) and right is not None:
        return op.args[0].value, (right if name == "mul" else 1.0 / right)
    if isinstance(op.args[1], Ref) and left is not None and name == "mul":
        return op.args[1].value, left
    return None


def _as_number(arg: Any, recording: Recording) -> float | None:
    if isinstance(arg, bool | int | float):
        return float(arg)
    if isinstance(arg, Ref):
        value = recording.values[arg.value]
        constant = not value.dynamic and value.source != "param" and value.op is None
        if constant and value.tensor.dim() == 0:
            return float(value.tensor)
    return None


def terms_of(op: Op, recording: Recording) -> list[tuple[int, float]] | None:
    """``[(input, coefficient), ...]`` when the op adds two tensors of one stream's shape, else None."""
    name = base_name(op)
    if name not in ("add", "sub", "rsub") or len(op.args) < 2 or not op.outs:
        return None
    left, right = op.args[0], op.args[1]
    if name == "rsub":  # rsub(a, b) is b - a
        name, left, right = "sub", right, left
    alpha = float(op.kwargs.get("alpha", op.args[2] if len(op.args) > 2 else 1))
    sign = -1.0 if name == "sub" else 1.0
    made = recording.values[op.outs[0]].tensor
    if not made.is_floating_point() or made.dim() == 0:
        return None
    if isinstance(left, Ref) and isinstance(right, Ref):
        pair = [recording.values[v.value].tensor for v in (left, right)]
        if not all(t.is_floating_point() for t in pair) or any(_only_shifts(t, made) for t in pair):
            return None
        return [(left.value, 1.0), (right.value, sign * alpha)]
    return None


def _only_shifts(term: torch.Tensor, total: torch.Tensor) -> bool:
    """A mean that is being subtracted ([..., 1]) or a scalar is no addend of a stream."""
    return term.dim() == 0 or (term.shape[-1] == 1 and total.shape[-1] != 1)


def zero_added(op: Op) -> int | None:
    """The tensor to which a plain 0 is added (``sum([...])`` starts so), else None."""
    if base_name(op) != "add" or len(op.args) < 2:
        return None
    left, right = op.args[0], op.args[1]
    if isinstance(left, Ref) and not isinstance(right, Ref) and right == 0:
        return left.value
    if isinstance(right, Ref) and not isinstance(left, Ref) and left == 0:
        return right.value
    return None


def derived(op: Op, classes: dict[int, str], recording: Recording) -> str | None:
    """The class of the op's outputs given its inputs' classes, or None when the op reads the stream.

    ``classes`` maps the versions that come from the stream to S, Q, T or N.
    """
    name = base_name(op)
    mine = [classes[i] for i in op.ins if i in classes]
    others_static = all(i in classes or not recording.values[i].dynamic for i in op.ins)
    if not others_static:
        return None
    if len(mine) == 1 and (name in FLAT or name in MOVED):
        return mine[0]
    if set(mine) == {"S"} or set(mine) == {"N"}:
        return _from_stream(name, mine, op, recording)
    if set(mine) == {"Q"}:
        if name in _STATISTICS:
            return "T"
        return "Q" if len(mine) == 1 and scale_of(op, recording) else None
    if set(mine) == {"T"}:
        return "T" if name in _POINTWISE else None
    if set(mine) in ({"S", "T"}, {"N", "T"}) and name in ("add", "sub", "mul", "div"):
        return "N"
    return None


def _from_stream(name: str, mine: list[str], op: Op, recording: Recording) -> str | None:
    if len(mine) == 2:
        return "Q" if name == "mul" and len(set(op.ins)) == 1 else None
    if name in _FUSED_NORMS:
        return "N"
    if name in _SQUARES:
        return "Q"
    if name in _STATISTICS:
        return "T"
    if scale_of(op, recording) is not None or zero_added(op) is not None:
        return mine[0]
    if name in ("mul", "add", "sub") or (name == "div" and isinstance(op.args[0], Ref) and op.args[0].value in op.ins):
        return "N"
    return None
