"""Outputs that are points of a board: where on it they lie, and a map of them."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from voltmeter.check.finding import Picture
from voltmeter.check.outputs import PutOut
from voltmeter.task.pairs import Pairs
from voltmeter.task.tree import named_tensors

LEAST_OF_BOARD = 0.5  # a region that is more of the board than this says little of a move that lies in it


@final
@dataclass(frozen=True, eq=False)
class Region:
    """Part of a board: which unit's points lie in it, and how much of the board it is on average."""

    name: str
    has: Bool[Tensor, "unit point"]
    share: float

    def holds(self, label: Int64[Tensor, "unit"]) -> Bool[Tensor, "unit"]:
        """Whether each label lies in it; the pass, after the last point, lies nowhere."""
        points = self.has.shape[1]
        return self.has.gather(1, label.clamp(max=points - 1)[:, None])[:, 0] & (label < points)


def on_board(seen: PutOut) -> Bool[Tensor, "unit row column"]:
    """Which points each input's board has: those of a truth value for each point among its inputs; else all."""
    assert seen.readout.board is not None
    rows, columns = seen.readout.board
    return torch.cat([_points(part, rows, columns) for part in seen.pairs])[seen.pair]


def _points(pairs: Pairs, rows: int, columns: int) -> Bool[Tensor, "pair row column"]:
    for _, tensor in named_tensors(pairs.clean):
        if tensor.dtype == torch.bool and tensor.shape[1:] == (rows, columns):
            return tensor.cpu()
    return torch.ones(len(pairs), rows, columns, dtype=torch.bool)


def regions(there: Bool[Tensor, "unit row column"]) -> list[Region]:
    """The corners, what is next to them, and the edge, of boards of any size; the smallest first. A region that is more
    than half of the boards is left out."""
    down, across = _from_border(there.any(2)), _from_border(there.any(1))  # [unit, row], [unit, column], from 0
    down, across = down[:, :, None], across[:, None, :]
    near, far = torch.minimum(down, across), torch.maximum(down, across)
    named = {"in a corner": far < 1, "next to a corner, or in it": far < 2, "on the edge of the board": near < 1}
    found = []
    for name, inside in named.items():
        has = (inside & there).flatten(1)
        share = float(has.sum() / there.sum())
        if share <= LEAST_OF_BOARD:
            found.append(Region(name, has, share))
    return found


def _from_border(lines: Bool[Tensor, "unit line"]) -> Int64[Tensor, "unit line"]:
    """How many lines of the board lie between a line and the nearer border; negative off the board."""
    number = torch.arange(lines.shape[1])
    first = torch.where(lines, number, lines.shape[1]).amin(1, keepdim=True)
    last = torch.where(lines, number, -1).amax(1, keepdim=True)
    return torch.minimum(number - first, last - number)


def point_name(label: int, board: tuple[int, int]) -> str:
    """Counted from 1, from the top and from the left."""
    rows, columns = board
    return "the pass" if label >= rows * columns else f"row {label // columns + 1}, column {label % columns + 1}"


def board_map(
    circuit: Int64[Tensor, "unit"], full: Int64[Tensor, "unit"], there: Bool[Tensor, "unit row column"]
) -> Picture:
    """How often each point was chosen on boards of the most frequent size: by the circuit and by the full model."""
    sizes = torch.stack([there.any(2).sum(1), there.any(1).sum(1)], 1)
    kinds, which = sizes.unique(dim=0, return_inverse=True)
    kind = int(which.bincount().argmax())
    some, (height, width) = which == kind, kinds[kind].tolist()
    points = there[some].any(0)
    down, across = points.any(1), points.any(0)
    maps, passes = zip(*(_shares(labels[some], points) for labels in (circuit, full)), strict=True)
    left, right = ([[round(x, 4) for x in row] for row in each[down][:, across].tolist()] for each in maps)
    columns = [str(column + 1) for column in across.nonzero().flatten().tolist()]
    data = {
        "x": [*columns, "", *columns],
        "y": [str(row + 1) for row in down.nonzero().flatten().tolist()],
        "values": [[*one, None, *other] for one, other in zip(left, right, strict=True)],
    }
    title = (
        f"Where the circuit plays, and on the right the full model, on {int(some.sum()):,} boards {height} x {width}"
    )
    passed = f"; they pass on {passes[0]:.0%} and {passes[1]:.0%}" if any(passes) else ""
    return Picture("heat", f"{title}{passed}", "column: of the circuit, and of the full model", "row", data)


def _shares(chosen: Int64[Tensor, "unit"], points: Bool[Tensor, "row column"]) -> tuple[Tensor, float]:
    """The share of each point [row, column], and of the pass."""
    counts = chosen.bincount(minlength=points.numel() + 1).double() / len(chosen)
    return counts[: points.numel()].view(points.shape), float(counts[points.numel() :].sum())
