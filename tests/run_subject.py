"""What the tests of ``run`` run: a small model, its inputs, keeps of any shape, and two circuits."""

from __future__ import annotations

from dataclasses import dataclass

import models
import torch
from cases import Case
from models import Transformer, wired
from torch import Tensor

MODEL = Transformer(layers=2, heads=2, kv=2, norm="layer", mlp="plain", seed=7)
CASE = Case(MODEL, batch=2, length=4, fill="resample", axes="edge", binary=False, seed=3)
WIRING = wired(MODEL)
EDGES = len(WIRING.edges)
INPUTS, CORRUPTED = CASE.inputs, CASE.corrupted


def keep_like(*sizes: int) -> Tensor:
    return models.seeded(5, *sizes, EDGES).double()


@dataclass(frozen=True)
class Kept:
    """The least that ``run`` takes for a circuit."""

    edges: tuple[str, ...]
    kept: tuple[int, ...]

    def mask(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor([float(n in self.kept) for n in range(len(self.edges))], dtype=dtype)


A = Kept(WIRING.edges.names, (0, 3, 5))
B = Kept(WIRING.edges.names, tuple(range(0, EDGES, 2)))
