"""``keep``: a real number for every edge. 1 carries what the writer wrote, 0 carries the fill."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from voltmeter.errors import KeepError
from voltmeter.wiring.inputs import batch_size
from voltmeter.wiring.plan import Site
from voltmeter.wiring.tap import readings_of
from voltmeter.wiring.wiring import Wiring

AXES = ("edge", "circuit edge", "example edge", "example position edge")


@runtime_checkable
class HasMask(Protocol):
    """A circuit: something that can say which edges it keeps."""

    @property
    def edges(self) -> tuple[str, ...]: ...

    def mask(self, dtype: torch.dtype = ...) -> Tensor: ...


_KEEPS = (
    "give a tensor of a number for every edge, a circuit (of names: Circuit.from_edges(wiring, names)), a list of "
    'circuits, or a tensor of several: run(..., keep=torch.stack(keeps), axes="circuit edge")'
)
KeepLike = Tensor | HasMask | Sequence[HasMask] | None


@dataclass(frozen=True)
class Keep:
    """A keep with named axes: ``values`` [*axes], the last axis in ``wiring.edges`` order."""

    values: Tensor
    axes: str

    @property
    def circuits(self) -> int | None:
        """How many circuits are run at once, or None when it is not a batch of circuits."""
        return self.values.shape[0] if self.axes == "circuit edge" else None

    def check_fits(self, x: Tensor, stream: str, rows: int) -> None:
        """Raise KeepError when a state ``x`` of that stream has not the axes of the keep: examples, and positions."""
        if self.axes != "edge" and not _has_rows_first(x, rows):
            raise _not_first(stream, x, rows)
        if self.axes != "example position edge":
            return
        batch, length = self.values.shape[:2]
        flat = x.dim() == 2 and x.shape[0] == batch * length  # a stream kept as [batch * position, width]
        if not flat and (x.dim() != 3 or x.shape[:2] != (batch, length)):
            raise KeepError(
                f"the keep is for {length} positions, which the stream '{stream}' does not have",
                [f"it has shape {list(x.shape)} in this run; with positions it would be [{batch}, {length}, width]"],
                'give one number for all positions: axes="example edge"',
            )


def read_keep(wiring: Wiring, keep: KeepLike, axes: str | None = None) -> Keep | None:
    """Bring what the user gave to a ``Keep``. Raises KeepError when shape, axes or edges do not fit."""
    if keep is None:
        return None
    if isinstance(keep, Tensor):
        made = Keep(keep, axes or _axes_of(keep))
    elif isinstance(keep, HasMask):
        made = Keep(_mask(wiring, keep), "edge")
    elif isinstance(keep, Sequence) and not isinstance(keep, str):
        made = Keep(_masks(wiring, keep), "circuit edge")
    else:
        raise KeepError(f"a {type(keep).__name__} was given for what is kept", mend=_KEEPS)
    if axes is not None and axes != made.axes:
        raise KeepError(
            f"what is kept has the axes {made.axes!r}, not {axes!r}", mend="leave axes to keeps that are tensors"
        )
    _check(wiring, made)
    return made


def _axes_of(keep: Tensor) -> str:
    if keep.dim() == 1:
        return "edge"
    raise KeepError(
        f"a keep of shape {list(keep.shape)} can mean several things",
        [f"axes must be one of: {', '.join(repr(a) for a in AXES)}"],
        'say which, for example run(..., keep=keep, axes="circuit edge")',
    )


def _mask(wiring: Wiring, circuit: HasMask) -> Tensor:
    if tuple(circuit.edges) != wiring.edges.names:
        raise KeepError(
            "the circuit belongs to another wiring",
            [f"it has {len(circuit.edges):,} edges, this wiring {len(wiring.edges):,}; or their names differ"],
            "wire the model with the same divisions as when the circuit was found",
        )
    return circuit.mask(torch.float32)


def _masks(wiring: Wiring, circuits: Sequence[HasMask]) -> Tensor:
    wrong = [f"number {at} is a {type(c).__name__}" for at, c in enumerate(circuits) if not isinstance(c, HasMask)]
    if wrong or not circuits:
        raise KeepError(
            "a list of keeps holds something else than circuits" if wrong else "a list of circuits is empty",
            wrong,
            _KEEPS,
        )
    return torch.stack([_mask(wiring, circuit) for circuit in circuits])


def _check(wiring: Wiring, keep: Keep) -> None:
    if keep.axes not in AXES:
        raise KeepError(f"unknown axes {keep.axes!r}", [f"they are: {', '.join(repr(a) for a in AXES)}"])
    if keep.values.dim() != len(keep.axes.split()):
        raise KeepError(f"a keep of shape {list(keep.values.shape)} has not the axes {keep.axes!r}")
    if keep.values.shape[-1] != len(wiring.edges):
        raise KeepError(
            f"the keep has {keep.values.shape[-1]:,} entries along its edge axis",
            [f"the wiring has {len(wiring.edges):,} edges"],
            "give one number for every edge, in the order of wiring.edges",
        )
    if not keep.values.numel():
        raise KeepError(f"the keep is empty: it has shape {list(keep.values.shape)}, {keep.axes}")
    if keep.axes != "edge":
        require_rows_first(wiring)
    if not keep.values.is_floating_point():
        raise KeepError(f"a keep is a real number per edge, not {keep.values.dtype}", mend="give keep.float()")
    if not bool(torch.isfinite(keep.values.detach()).all()):
        raise KeepError("the keep is not finite")


def require_rows_first(wiring: Wiring) -> None:
    """Raise KeepError where examples cannot differ in what is kept.

    They cannot where a stream has them along another axis than the first, nor where the model mixes them.
    """
    rows = batch_size(wiring.example)
    for stream, found in zip(wiring.streams, wiring.survey.streams, strict=True):
        for version in found.states:
            x = wiring.survey.recording.values[version].tensor
            if not _has_rows_first(x, rows):
                raise _not_first(stream.name, x, rows)
    if wiring.rows.mixed:
        raise KeepError(
            "this model does not compute each row of a batch for itself, so no keep can differ from one to another",
            [wiring.rows.mixed],
            "give one keep for all examples, and run circuits one by one",
        )


def _has_rows_first(x: Tensor, rows: int) -> bool:
    """Whether axis 0 are the rows, or rows and positions. Told by size: as many positions as rows look like rows."""
    by_position = x.dim() > 2 and x.shape[0] != rows and x.shape[1] == rows
    return x.shape[0] % rows == 0 and not by_position


def _not_first(stream: str, x: Tensor, rows: int) -> KeepError:
    return KeepError(
        f"the stream '{stream}' has not its examples along axis 0, so no keep can differ from one to another",
        [f"it has shape {list(x.shape)} for {rows} rows"],
        "give one keep for all examples, and run circuits one by one",
    )


def of_site(wiring: Wiring, site: Site, state: int, values: Tensor) -> Tensor:
    """The share of a keep [..., edge] that a site needs: [..., readings, members], a view where it can be."""
    readers = readings_of(site, state)
    starts, width = wiring.edges.starts, len(wiring.plan.states[state].members)
    first, last = readers[0], readers[-1]
    if readers == list(range(first, last + 1)):
        mine = values[..., starts[first] : starts[last] + width]
        return mine.reshape(*mine.shape[:-1], len(readers), width)
    return torch.stack([values[..., starts[r] : starts[r] + width] for r in readers], -2)
