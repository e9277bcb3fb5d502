"""What a cut edge carries.

    zero            nothing
    mean            each writer's mean over batch and positions of given inputs (real tokens only)
    mean_position   each writer's mean at each position
    resample        what the writer wrote in the paired corrupted run
    tensor          given values
    optimal         learned values, with what they were trained on

A ``Fill`` is a value. ``values_for`` turns it into tensors for one batch; a fill that needs data it was not given,
or that is not finite, is a FillError.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from voltmeter.errors import FillError, counted, nearest
from voltmeter.run.padding import mask_for
from voltmeter.run.paired import check_paired
from voltmeter.run.watch import Outs, outs_of
from voltmeter.wiring.inputs import batch_size
from voltmeter.wiring.wiring import Wiring


@dataclass(frozen=True)
class FillValues:
    """Fills for one batch: per stream, None for zero or a tensor [writer of the stream, ...].

    The axes after the first are the last ones of the stream's shape; those that are missing or 1 do not vary.
    ``copies``: how many times over the batch is run (circuits are run as one batch).
    """

    name: str
    streams: tuple[Tensor | None, ...]
    copies: int = 1
    by_position: bool = False  # values of positions past the end of a shorter run are left out

    def by_example(self, stream: int, axes: int) -> bool:
        """Whether the fills of a stream of so many axes differ from example to example."""
        tensor = self.streams[stream]
        return tensor is not None and tensor.dim() == axes + 1 and tensor.shape[1] > 1

    def rows(self, stream: int, rows: slice | list[int], outs: Tensor) -> Tensor | None:
        """The fills of some writers, broadcastable to their ``outs`` [writers, *stream shape]; None for zero."""
        tensor = self.streams[stream]
        if tensor is None:
            return None
        fill = tensor[rows].to(outs.device)
        fill = fill.reshape(fill.shape[0], *([1] * (outs.dim() - fill.dim())), *fill.shape[1:])
        if self.copies > 1 and fill.shape[1] > 1:
            fill = fill.repeat(1, self.copies, *([1] * (fill.dim() - 2)))
        if self.by_position and fill.dim() > 2 and fill.shape[2] > outs.shape[2]:
            fill = fill[:, :, : outs.shape[2]]
        if not _fits(fill.shape[1:], outs.shape[1:]):
            raise FillError(
                f"the {self.name} fill has shape {list(fill.shape[1:])}",
                [f"its stream has shape {list(outs.shape[1:])} [batch, ...] in this run"],
                "an axis is the stream's, or 1; a mean-position fill needs inputs no longer than it was taken over",
            )
        return fill


def _fits(fill: torch.Size, outs: torch.Size) -> bool:
    return len(fill) == len(outs) and all(a in (1, b) for a, b in zip(fill, outs, strict=True))


class Fill(ABC):
    """What cut edges carry."""

    name: str

    @abstractmethod
    def values_for(
        self,
        wiring: Wiring,
        inputs: Any,
        corrupted: Any | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> FillValues:
        """Tensors for one batch. Raises FillError when data is missing, not paired or not finite."""

    @property
    def needs_corrupted(self) -> bool:
        """Whether ``run`` must be given the paired corrupted inputs."""
        return False


@dataclass(frozen=True)
class Zero(Fill):
    """Cut edges carry nothing."""

    name: str = "zero"

    def values_for(
        self,
        wiring: Wiring,
        inputs: Any,
        corrupted: Any | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> FillValues:
        return FillValues(self.name, (None,) * len(wiring.streams))


@dataclass(frozen=True)
class Resample(Fill):
    """Cut edges carry what the writer wrote in the paired corrupted run. Costs one forward per batch."""

    name: str = "resample"

    @property
    def needs_corrupted(self) -> bool:
        return True

    def values_for(
        self,
        wiring: Wiring,
        inputs: Any,
        corrupted: Any | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> FillValues:
        if corrupted is None:
            raise FillError(
                "a resample fill needs the corrupted inputs",
                mend="give them: run(..., fill=fill.resample(), corrupted=...)",
            )
        check_paired(inputs, corrupted)
        outs = outs_of(wiring, corrupted, params)
        return FillValues(self.name, _finite(wiring, self.name, outs.streams))


@dataclass(frozen=True, eq=False)
class Fixed(Fill):
    """Cut edges carry given values, one tensor per writer."""

    name: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    over: str = ""  # provenance: what the values were measured or trained on
    by_position: bool = False  # axis 1 of the values is the position; shorter runs take the first ones

    def values_for(
        self,
        wiring: Wiring,
        inputs: Any,
        corrupted: Any | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> FillValues:
        names = [w.name for w in wiring.writers]
        missing = [n for n in names if n not in self.tensors]
        unknown = [f"{n} ({nearest(n, names)})" for n in self.tensors if n not in names]
        if missing or unknown:
            raise FillError(
                f"the fill names {counted(len(unknown), 'writer that does', 'writers that do')} not exist "
                f"and leaves out {len(missing)}",
                [*(f"unknown: {n}" for n in unknown), *(f"missing: {n}" for n in missing)],
                "give one tensor for every writer in wiring.writers",
            )
        made = tuple(
            _stack({wiring.writers[w].name: self.tensors[wiring.writers[w].name] for w in members}, self.name)
            for members in wiring.plan.stream_writers
        )
        return FillValues(self.name, _finite(wiring, self.name, made), by_position=self.by_position)


def _stack(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The fills of one stream, [writer, ...]: size 1 along axes in which none of them varies."""
    if not tensors:
        return None
    try:
        shape = torch.broadcast_shapes(*(t.shape for t in tensors.values()))
    except RuntimeError:
        raise FillError(
            f"the {name} fills of one stream have shapes that do not fit together",
            [f"{writer}: {list(tensor.shape)}" for writer, tensor in tensors.items()],
            "give each the shape of the stream [batch, ...], or 1 where it does not vary",
        ) from None
    return torch.stack([t.expand(shape) for t in tensors.values()])


def _finite(wiring: Wiring, name: str, streams: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    streams = tuple(streams)
    wrong = [
        wiring.writers[writer].name
        for members, tensor in zip(wiring.plan.stream_writers, streams, strict=True)
        if tensor is not None and not bool(torch.isfinite(tensor.sum()))  # a sum keeps NaN and infinity
        for writer, row in zip(members, tensor, strict=True)
        if not bool(torch.isfinite(row).all())
    ]
    if wrong:
        raise FillError(f"the {name} fill is not finite for {counted(len(wrong), 'writer', 'writers')}", wrong)
    return streams


def zero() -> Fill:
    """Cut edges carry nothing."""
    return Zero()


def resample() -> Fill:
    """Cut edges carry what the writer wrote in the paired corrupted run (equal length and mask)."""
    return Resample()


def tensor(values: Mapping[str, Tensor], name: str = "tensor", over: str = "") -> Fill:
    """Cut edges carry ``values[writer]``, broadcastable to the stream [batch, ...]. Gradients flow to them."""
    if not isinstance(values, Mapping):
        raise FillError(
            f"a tensor fill was given a {type(values).__name__}",
            mend="give a tensor for each writer, by name: {name: tensor}",
        )
    return Fixed(name, dict(values), over)


def optimal(values: Mapping[str, Tensor], provenance: str, by_position: bool = False) -> Fill:
    """Cut edges carry learned ``values[writer]``, the same for all examples. ``provenance``: what they were trained on.

    ``voltmeter.discover.optimal_fill`` trains them. Raises FillError without provenance: a learned fill says nothing by
    itself, since for another circuit or task other values would be optimal.
    """
    if not provenance.strip():
        raise FillError(
            "an optimal fill is trained, and nothing says on what",
            mend="give its provenance: the task, the circuit, the steps and the seed",
        )
    return Fixed("optimal", dict(values), provenance, by_position)


def mean(wiring: Wiring, batches: Iterable[Any], over: str = "clean") -> Fill:
    """Each writer's mean over the batch and all real positions of ``batches``. Costs one forward per batch."""
    return Fixed("mean", _means(wiring, batches, by_position=False), over)


def mean_position(wiring: Wiring, batches: Iterable[Any], over: str = "clean", length: int | None = None) -> Fill:
    """Each writer's mean at each position, over rows with a real token there. All batches must be of one length.

    Shorter runs use the first positions. Longer ones are an error, unless ``length`` is given: then positions past the
    batches' own carry the mean of the last one measured.
    """
    means = _means(wiring, batches, by_position=True)
    if length is not None:
        means = {name: _lengthened(value, length) for name, value in means.items()}
    return Fixed("mean-position", means, over, by_position=True)


def _lengthened(means: Tensor, length: int) -> Tensor:
    """[1, position, ...] with the last position repeated up to ``length``."""
    missing = length - means.shape[1]
    if missing <= 0 or means.dim() < 3:
        return means
    return torch.cat([means, means[:, -1:].expand(-1, missing, *means.shape[2:])], 1)


def _means(wiring: Wiring, batches: Iterable[Any], by_position: bool) -> dict[str, Tensor]:
    if isinstance(batches, Tensor | Mapping):
        raise FillError(
            f"a mean fill takes batches of inputs, and was given one {type(batches).__name__}",
            mend="give a list of batches: fill.mean(wiring, [inputs])",
        )
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for inputs in batches:
        outs = outs_of(wiring, inputs)
        for stream, members in enumerate(wiring.plan.stream_writers):
            made = outs.streams[stream]
            if made is None:
                continue
            count = _real(wiring, outs, stream, inputs)
            axes = _places(made, batch_size(inputs), by_position)
            for writer, row in zip(members, made, strict=True):
                name = wiring.writers[writer].name
                dtypes[name] = row.dtype
                _add(totals, name, (row.cpu().double() * count).sum(axes, keepdim=True))
                _add(counts, name, count.sum(axes, keepdim=True))
    if not totals:
        raise FillError("a mean fill needs data, and none was given", mend="give at least one batch of inputs")
    empty = [name for name, count in counts.items() if not bool((count > 0).all())]
    if empty:
        raise FillError(
            "some positions have no real token to take a mean over",
            empty,
            "give more rows, or the mean over all positions: fill.mean",
        )
    return {name: (total / counts[name]).to(dtypes[name]) for name, total in totals.items()}


def _real(wiring: Wiring, outs: Outs, stream: int, inputs: Any) -> Tensor:
    """1 where a stream holds a real token, else 0."""
    shape = outs.shapes[stream]
    mask = mask_for(inputs, shape, wiring.streams[stream].name)
    return torch.ones(shape, dtype=torch.float64) if mask is None else mask.cpu().double().expand(shape)


def _places(made: Tensor, batch: int, by_position: bool) -> tuple[int, ...]:
    """The axes of a stream [batch, ...] to take means over: never that of the features."""
    if not by_position:
        # An image has its features along axis 1 and its places after it; a sequence has them last.
        return (0, 2, 3) if made.dim() == 5 else tuple(range(made.dim() - 2))
    if made.dim() == 3 and made.shape[1] != batch:
        raise FillError(
            "this model keeps its stream as [batch * position, width], without an axis of positions",
            [f"shape {list(made.shape[1:])} for a batch of {batch}"],
            "take the mean over all positions: fill.mean",
        )
    return (0,)


def _add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in totals and totals[name].shape != value.shape:
        raise FillError(
            "a mean-position fill needs batches of one length",
            [f"shapes {list(totals[name].shape)} and {list(value.shape)}"],
            "pad them to one length, with an attention_mask",
        )
    totals[name] = totals.get(name, 0) + value
