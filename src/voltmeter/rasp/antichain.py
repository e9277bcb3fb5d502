"""Families of edge sets of which none holds another. A set is an int: bit ``e`` says that edge ``e`` is kept."""

from collections.abc import Iterable
from typing import TypeAlias

Kept: TypeAlias = int
Family: TypeAlias = tuple[Kept, ...]

NOTHING: Family = (0,)


def minimal(sets: Iterable[Kept]) -> Family:
    """Those sets that hold no other one of them."""
    found: list[Kept] = []
    for candidate in sorted(set(sets), key=lambda kept: (kept.bit_count(), kept)):
        if not any(smaller & candidate == smaller for smaller in found):
            found.append(candidate)
    return tuple(found)


def unions(*families: Family) -> Family:
    """The minimal ones of all unions of one set from each family (which are of different edges)."""
    made: Family = NOTHING
    for family in families:
        made = tuple(one | other for one in made for other in family)
    return minimal(made)


def edges_of(kept: Kept) -> frozenset[int]:
    """The edges of a set."""
    return frozenset(at for at in range(kept.bit_length()) if kept >> at & 1)


def kept_of(edges: Iterable[int]) -> Kept:
    """The set of these edges."""
    return sum(1 << edge for edge in set(edges))
