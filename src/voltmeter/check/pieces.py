"""What several checks do and say: circuits without some edges, and names in a sentence."""

from jaxtyping import Float
from torch import Tensor


def without(keep: Float[Tensor, "edge"], cuts: list[list[int]]) -> Float[Tensor, "circuit edge"]:
    """A keep for each of ``cuts``: the circuit without those edges."""
    rows = keep.repeat(len(cuts), 1)
    for row, edges in zip(rows, cuts, strict=True):
        row[edges] = 0
    return rows


def listed(names: list[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
