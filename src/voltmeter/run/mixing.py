"""What readers read as a product: how much of each delta goes into each reading, and the product itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voltmeter.run.memory import room
from voltmeter.run.tape import Rows, in_own_precision


@dataclass(frozen=True, eq=False)
class Share:
    """How much of each delta, and of where a mix starts from, goes into what some readers read.

    ``deltas`` [..., readings, n]; ``fills`` [..., readings, 1] is 1 for a reading that starts from the fills, 0 for one
    that starts from ``x``, and None where all do the latter.
    """

    deltas: Tensor
    fills: Tensor | None

    @classmethod
    def of(cls, keep: Tensor, scale: Tensor | None, dtype: torch.dtype, both: bool) -> "tuple[Share, Tensor]":
        """The share, and the part of each delta that is cut, in the shape of ``keep``."""
        kept = keep.to(dtype)
        cut = 1 - kept
        if scale is not None:
            kept, cut = kept * scale, cut * scale
        if not both:
            return cls(cut, None), cut
        nearer = kept.abs().sum(-1, keepdim=True) < cut.abs().sum(-1, keepdim=True)  # most is cut
        return cls(torch.where(nearer, -kept, cut), nearer.to(cut.dtype)), cut

    def whole(self) -> Tensor:
        """The coefficients of [fills, x, deltas], or of [x, deltas]: [..., readings, n + 1 or 2]."""
        if self.fills is None:
            return torch.cat([torch.ones_like(self.deltas[..., :1]), self.deltas], -1)
        return torch.cat([self.fills, 1 - self.fills, self.deltas], -1)

    def start(self, x: Tensor, from_fills: Tensor | None, shape: torch.Size) -> Tensor:
        """Where each reading starts: [readings, *shape]."""
        if self.fills is None or from_fills is None:
            return x[None]
        places = self.fills[..., 0, 0].numel()
        share = self.fills.reshape(places, -1, 1).transpose(0, 1)  # [readings, place, 1]
        mixed = share * from_fills.reshape(1, places, -1) + (1 - share) * x.reshape(1, places, -1)
        return mixed.reshape(-1, *shape)


@dataclass(frozen=True, eq=False)
class Ahead:
    """Readings of a later state, to be begun with the first ``n`` deltas."""

    state: int
    share: Share
    n: int


@dataclass(frozen=True, eq=False)
class Begun:
    """Readings of a state as far as the first ``n`` deltas: [readings, *x.shape]."""

    n: int
    mixed: Tensor


# The three products, for each shape of ``cut``: [readings, n], [batch, readings, n], [batch, position, readings, n].


def _places(cut: Tensor, delta: Tensor) -> tuple[int, int]:
    """How many places have a cut of their own, and the entries at each."""
    places = cut[..., 0, 0].numel()
    return places, delta[0].numel() // places


def with_ahead(share: Share, ahead: Sequence[Ahead]) -> Tensor:
    """The coefficients of all rows to be mixed: [..., readings and those ahead, starts and deltas]."""
    whole = share.whole()
    starts = whole.shape[-1] - share.deltas.shape[-1]
    return torch.cat([whole, *(torch.nn.functional.pad(a.share.deltas[..., : a.n], (starts, 0)) for a in ahead)], -2)


def mix(share: Tensor, pieces: Tensor, shape: torch.Size) -> Tensor:
    """share @ pieces: [readings, *shape]."""
    readings, n = share.shape[-2:]
    # Not a view of the product: see _Read.forward.
    reads = room((readings, *shape), pieces.dtype, pieces.device)
    if share.dim() == 2:
        torch.mm(share, pieces.flatten(1), out=reads.view(readings, -1))
        return reads
    places, width = _places(share, pieces)
    by_place = reads.view(readings, places, width).transpose(0, 1)
    torch.bmm(share.reshape(places, readings, n), pieces.reshape(n, places, width).transpose(0, 1), out=by_place)
    return reads


def against(grad: Tensor, delta: Tensor, cut: Tensor) -> Tensor:
    """grad · delta for every reading and writer, in the shape of ``cut``."""
    readings, n = cut.shape[-2:]
    with in_own_precision(delta.device):
        if cut.dim() == 2:
            return grad.reshape(readings, -1) @ delta.reshape(n, -1).t()
        places, width = _places(cut, delta)
        left = grad.reshape(readings, places, width).transpose(0, 1)
        right = delta.reshape(n, places, width).permute(1, 2, 0)
        return torch.bmm(left, right).reshape(cut.shape)


def accumulate(total: Tensor, rows: Rows, cut: Tensor, grad: Tensor) -> None:
    """total[rows] += cut^T @ grad, in place."""
    readings, n = cut.shape[-2:]
    whole = isinstance(rows, slice)
    part = total[rows]
    if cut.dim() == 2:
        part.view(n, -1).addmm_(cut.t(), grad.reshape(readings, -1))
    else:
        places, width = _places(cut, part)
        part.view(n, places, width).transpose(0, 1).baddbmm_(
            cut.reshape(places, readings, n).transpose(1, 2), grad.reshape(readings, places, width).transpose(0, 1)
        )
    if not whole:
        total[rows] = part
