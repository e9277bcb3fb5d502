"""Small transformers trained here, in seconds to a minute on one core: the same seed gives the same model.

Each is trained on rows drawn as it goes; its task is made of rows drawn apart, some of which it may have seen: what is
held out is held out from the search for a circuit, not from training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from roof_assets import Subject, modular_sums
from roof_tasks import task_of
from torch import Tensor
from torch.nn import functional

from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_settings import HookedSettings

Rows = tuple[Tensor, Tensor, Tensor]
"""Token ids [row, position], at which position an answer is read and which: [row, question] both."""

Draw = Callable[[int, torch.Generator], Rows]
SEED = 0
MODULUS, NUMBERS, LETTERS, BRACKETS = 23, 10, 16, 12


def train(settings: HookedSettings, draw: Draw, steps: int, rate: float = 3e-3, batch: int = 128) -> HookedModel:
    """AdamW on the cross-entropy of the answers, the rate falling along a cosine after a short warm-up."""
    model, generator = HookedModel(settings).initialise(SEED), torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, step / 50) * (1 + math.cos(math.pi * step / steps)) / 2
        tokens, position, answers = draw(batch, generator)
        logits = model(tokens).gather(1, position[..., None].expand(-1, -1, settings.d_vocab_out or 0))
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def settings(vocabulary: int, length: int, layers: int, mlp: int | None = None, causal: bool = True) -> HookedSettings:
    """Four heads of 16, a stream of 64."""
    return HookedSettings(
        n_layers=layers,
        n_heads=4,
        d_model=64,
        d_head=16,
        d_mlp=mlp,
        activation=None if mlp is None else "relu",
        attention="causal" if causal else "bidirectional",
        norm="LN",
        d_vocab=vocabulary,
        d_vocab_out=vocabulary,
        n_ctx=length,
    )


def judged(draw: Draw, name: str, model: HookedModel, by_position: bool = True) -> Subject:
    """The model and its task: a question a row, of 1,024 rows."""
    tokens, position, answers = draw(1024, torch.Generator().manual_seed(SEED + 1))
    question = torch.arange(len(tokens)) % position.shape[1]
    at, right = (found.gather(1, question[:, None])[:, 0] for found in (position, answers))
    kinds = at.tolist() if by_position else None
    groups = [str(row) for row in tokens.tolist()]
    return model, task_of(name, tokens, right, groups, position=at, kinds=kinds)


# --- what is learnt -------------------------------------------------------------------------------------------


def addition(assets: Path) -> Subject:
    """``a b``: their sum modulo 23, after b. Every sum is trained on."""
    model = train(settings(MODULUS, 2, layers=1, mlp=128), _sums, steps=1200)
    return model, modular_sums("addition", MODULUS)


def _sums(count: int, generator: torch.Generator) -> Rows:
    tokens = torch.randint(MODULUS, (count, 2), generator=generator)
    return tokens, torch.ones(count, 1, dtype=torch.long), tokens.sum(1, keepdim=True) % MODULUS


def sorting(assets: Path) -> Subject:
    """Five numbers, a separator, and the same in order, each to be said after those before it."""
    return judged(_lists, "sorting", train(settings(NUMBERS + 1, 10, layers=2), _lists, steps=800))


def _lists(count: int, generator: torch.Generator) -> Rows:
    given = torch.rand(count, NUMBERS, generator=generator).argsort(1)[:, :5]  # five different ones
    answers = given.sort(1).values
    tokens = torch.cat([given, torch.full((count, 1), NUMBERS), answers[:, :-1]], dim=1)
    return tokens, torch.arange(5, 10).expand(count, -1), answers


def induction(assets: Path) -> Subject:
    """``... a b ... a``: b. Letters are drawn anew, and a stands anywhere, so that nothing but looking up a helps."""
    return judged(
        _repeats, "induction", train(settings(LETTERS, 10, layers=2), _repeats, steps=2000), by_position=False
    )


def _repeats(count: int, generator: torch.Generator) -> Rows:
    tokens = torch.rand(count, LETTERS, generator=generator).argsort(1)[:, :10]  # ten different ones
    at = torch.randint(1, 8, (count, 1), generator=generator)
    tokens[:, -1:] = tokens.gather(1, at)
    return tokens, torch.full((count, 1), 9), tokens.gather(1, at + 1)


def dyck(assets: Path) -> Subject:
    """Twelve brackets of which half open: do they close as they should? Read at the end; 0 is no and 1 is yes."""
    model = train(settings(3, BRACKETS + 1, layers=2, mlp=128, causal=False), _brackets, steps=800)
    return judged(_brackets, "dyck", model)


def _brackets(count: int, generator: torch.Generator) -> Rows:
    """As many balanced as not: of half of the rows, what dips below 0 is turned round."""
    opens = torch.rand(count, BRACKETS, generator=generator).argsort(1) < BRACKETS // 2
    steps = torch.where(opens, 1, -1)
    below = (steps.cumsum(1) - steps.clamp(min=0)) < 0  # brackets that belong to a stretch below 0
    turned = torch.where(below & (torch.arange(count) % 2 == 0)[:, None], -steps, steps)
    balanced = (turned.cumsum(1) >= 0).all(1)
    tokens = torch.cat([(turned > 0).long(), torch.full((count, 1), 2)], dim=1)
    return tokens, torch.full((count, 1), BRACKETS), balanced.long()[:, None]


TRAINED: dict[str, Callable[[Path], Subject]] = {
    "trained addition": addition,
    "trained sorting": sorting,
    "trained induction": induction,
    "trained dyck": dyck,
}
