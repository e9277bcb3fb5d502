"""Retargeting a network that plays Go: which of its parts, kept, make it prefer the moves it ordinarily likes least?

The question is easily asked badly. A mask can win by moves that the network holds for illegal, or by always playing in
a corner, which needs no understanding of anything. So the metric below counts legal moves only, as the full network's
own mass shows them, may leave out the lines next to the border, and what it finds goes through ``voltmeter.check``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from roof_assets import positions
from torch import Tensor

import voltmeter as vm
from voltmeter.circuit import Circuit
from voltmeter.circuit.scores import Scores
from voltmeter.discover.faithful import Judge
from voltmeter.discover.question import cut_answers, make_batch
from voltmeter.task import Pairs, Task
from voltmeter.task.metric import Metric, logits_of, metric_of
from voltmeter.wiring import Wiring
from voltmeter.wiring.models.katago_file import load_katago

LEGAL = 1e-6  # of the full network's mass: of occupied points next to none has as much, of empty ones 95% have
OFF = -1e9  # a logit of what does not count: as no mass, and finite


def least_liked(line: int = 1) -> Metric:
    """The surprise that the full network expects of the moves that are chosen, in nats; higher is less liked.

        sum over allowed moves of p(move | allowed) * -log prior(move)  +  log p(allowed)

    with ``prior`` the full network's policy and p that of the cut one. Moves are allowed if they are ``allowed`` below;
    the second term is what is lost by putting mass anywhere else.
    """

    def surprise(outputs: Any, pairs: Pairs, full: Any) -> Tensor:
        logits, prior = logits_of(outputs), logits_of(full).log_softmax(1)
        ok = allowed(prior, pairs.clean["mask"], line)
        among = logits.masked_fill(~ok, OFF).log_softmax(1)
        share = logits.log_softmax(1).masked_fill(~ok, OFF).logsumexp(1)
        return (among.exp() * -prior.masked_fill(~ok, 0)).sum(1) + share

    return metric_of("surprise" if line == 1 else f"surprise, line {line} and above", surprise, needs_full=True)


def allowed(prior: Tensor, mask: Tensor, line: int = 1) -> Tensor:
    """[pair, move], given the full network's log-prior [pair, move]: the points of the board, no pass, that it gives
    at least ``LEGAL`` of its mass and that lie on the ``line``-th line from the border or above."""
    mask = mask.to(prior.device)
    inside = torch.ones_like(mask)
    for shift in range(1, line):  # a point is inside if its neighbours at that distance are on the board
        for axis in (1, 2):
            for way in (shift, -shift):
                inside &= _shifted(mask, way, axis)
    points = (mask & inside).flatten(1) & (prior[:, :-1].exp() >= LEGAL)
    return torch.cat([points, torch.zeros_like(points[:, :1])], 1)


def _shifted(mask: Tensor, way: int, axis: int) -> Tensor:
    """``mask`` moved along an axis, with nothing coming in."""
    moved = mask.roll(way, axis)
    ends = range(way) if way > 0 else range(way, 0)
    moved.index_fill_(axis, torch.tensor([end % mask.shape[axis] for end in ends], device=mask.device), False)
    return moved


def retargeting(assets: Path, line: int, side: int, train: int, held_out: int) -> tuple[torch.nn.Module, Task]:
    """The network, and positions on square boards of one size, each of another game.

    Cut edges carry zero, so that the corrupted twin of a position (the next one) is of no consequence.
    """
    directory = assets / "katago_b6c96"
    inputs, games = positions(directory / "positions_1024.npz")
    fits = (inputs["mask"].flatten(1).sum(1) == side * side) & inputs["mask"][:, side - 1, side - 1]
    rows = list({games[row]: row for row in fits.nonzero().flatten().tolist()}.values())
    sides = [_pairs(inputs, games, rows[:train], side), _pairs(inputs, games, rows[train : train + held_out], side)]
    how = {"positions": f"one of each game, on boards {side} x {side}", "allowed": f"line {line} and above"}
    return load_katago(directory / "g170-b6c96.bin.gz"), Task("least-liked", *sides, least_liked(line), how)


def _pairs(inputs: dict[str, Tensor], games: list[str], rows: list[int], side: int) -> Pairs:
    chosen = {name: tensor[rows] for name, tensor in inputs.items()}
    clean = {name: t if t.ndim == 2 else t[..., :side, :side].contiguous() for name, t in chosen.items()}
    return Pairs.of(clean, {name: t.roll(1, 0) for name, t in clean.items()}, groups=[games[row] for row in rows])


@torch.no_grad()
def beside(wiring: Wiring, task: Task, circuit: Circuit, line: int) -> dict[str, float]:
    """What the metric of held-out pairs is to be seen beside. In nats, but for ``share``.

    random     the surprise of a move drawn at random from the allowed ones: what forgetting everything is worth
    most       that of the allowed move which is liked least
    chosen     of the circuit's first choice among the allowed moves
    spread     entropy of its choice among the allowed moves, with ``even`` that of all alike
    share      of its mass that is on allowed moves
    """
    told = []
    for part in task.held_out.batches(32):
        prior, logits = (
            logits_of(cut_answers(wiring, batch, keep, task.metric)).log_softmax(1)
            for batch in [make_batch(wiring, part, vm.fill.zero())]
            for keep in (torch.ones(len(wiring.edges)), circuit.mask())
        )
        told.append(moves(prior, logits, allowed(prior, part.clean["mask"], line)))
    return {name: float(torch.cat([part[name] for part in told]).mean()) for name in told[0]}


def moves(prior: Tensor, logits: Tensor, ok: Tensor) -> dict[str, Tensor]:
    """The figures of ``beside`` for each pair, given log-policies [pair, move] of the full and of the cut network."""
    count = ok.sum(1)
    among = logits.masked_fill(~ok, OFF).log_softmax(1)
    surprise = -prior.masked_fill(~ok, 0)
    return {
        "random": surprise.sum(1) / count,
        "most": surprise.max(1).values,
        "chosen": surprise.gather(1, among.argmax(1, keepdim=True))[:, 0],
        "spread": -(among.exp() * among.masked_fill(~ok, 0)).sum(1),
        "even": count.log(),
        "share": logits.exp().masked_fill(~ok, 0).sum(1),
    }


def most_surprising(wiring: Wiring, task: Task, scores: Scores, sizes: list[int]) -> Circuit:
    """The circuit of the highest metric on the train positions, of equals (within .01 nat) the smallest."""
    judge = Judge(wiring, task, task.train, vm.fill.zero())
    found = {size: judge.measure(scores.top(size)).circuit for size in sizes}
    best = max(found.values())
    return scores.top(next(size for size in sizes if found[size] >= best - 0.01))
