"""Questions whose answer is known: a compiled model as a task for methods, and its own arithmetic as judge.

What the truth compares is the whole output (the output variable's dimensions at every position but BOS's), so a method
is given that too, over the same inputs, each with the partner that the truth's resample fill gives it. Which number a
method makes of it depends on what it can follow (``OBJECTIVES``):

    distance     minus the squared distance to the full model's output: for methods that compare with the full model
    projection   the output's component along (full model − nothing kept): for methods that take the gradient at the
                 full model, where that of a distance is zero

Both are scaled so that the full model's mean is one more than that of nothing kept.
"""

from dataclasses import replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voltmeter.circuit.circuit import Circuit
from voltmeter.circuit.scores import Scores
from voltmeter.discover.discretise import prune
from voltmeter.discover.question import Question, prepare_fill
from voltmeter.errors import MetricError, VoltmeterError, nearest
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.effects import further_cuts, run_cut, run_kept
from voltmeter.rasp.search import witnesses
from voltmeter.rasp.setting import Setting, derangement
from voltmeter.task.metric import Metric, metric_of
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.wiring import Wiring

OBJECTIVES = ("distance", "projection")
_MOST_NUMBERS = 2**22  # held for circuits run at once: 32 MiB in float64


def known_question(
    compiled: Compiled, wiring: Wiring, setting: Setting, objective: str, seed: int = 0, batch_size: int = 32
) -> Question:
    """The question whose answer is the truth about ``compiled`` in this setting.

    ``wiring``: that of ``compiled`` with the input split (``rasp.wired.wiring_of``). There is nothing to hold out: the
    inputs are all there are. Raises VoltmeterError for an unknown objective and for a wiring of another model;
    MetricError where the output is the same with nothing kept, so that no edge is needed.
    """
    if wiring.edges.names != setting.machine.edges:
        raise VoltmeterError(
            f"the wiring is not that of {compiled.name} with its input split",
            [f"it has {len(wiring.edges):,} edges, the compiled model {len(setting.machine.edges):,}"],
            "wiring_of(compiled).wiring",
        )
    tokens = compiled.model.encode(compiled.inputs)
    pairs = Pairs.of(tokens, tokens[derangement(len(tokens), setting.question.seed)])
    task = Task(compiled.name, pairs, pairs, _metric(compiled.name, setting, objective))
    return Question(wiring, task, prepare_fill(setting.question.fill, wiring, task), seed, batch_size)


def _metric(name: str, setting: Setting, objective: str) -> Metric:
    full = setting.full
    direction = full - run_kept(setting, ()).answer
    unit = direction.square().sum((1, 2)).mean()
    if float(direction.abs().max()) <= setting.question.tolerance:
        raise MetricError(
            f"the output of {name} is the same with nothing kept: no edge is needed, and no score can be right",
            mend="count such truths apart",
        )

    def distance(outputs: Tensor, pairs: Pairs) -> Tensor:
        return -(outputs[:, 1:] - full[_rows(pairs)]).square().sum((1, 2)) / unit

    def projection(outputs: Tensor, pairs: Pairs) -> Tensor:
        return (outputs[:, 1:] * direction[_rows(pairs)]).sum((1, 2)) / unit

    match objective:
        case "distance":
            return metric_of(objective, distance)
        case "projection":
            return metric_of(objective, projection)
        case _:
            raise VoltmeterError(
                f"there is no objective '{objective}'", [nearest(objective, OBJECTIVES)], ", ".join(OBJECTIVES)
            )


def _rows(pairs: Pairs) -> Tensor:
    """The inputs that pairs were made of, by number."""
    return torch.tensor(pairs.rows) - 1


@final
class Sufficient:
    """Whether circuits of a compiled model suffice: the output is the full model's on every input, within τ.

    As a criterion (of ``discretise.prune`` or anything else) it is exact: circuits are first run as one batch on a few
    inputs, those that show every single cut which changes anything, and what passes is run on all of them.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.tolerance = setting, setting.question.tolerance
        changes = further_cuts(setting, run_cut(setting, ()), range(len(setting.machine.edges)))
        self._rows = witnesses(changes, self.tolerance)

    def __call__(self, keep: Float[Tensor, "circuit edge"]) -> Bool[Tensor, "circuit"]:
        holds = self._on_few(keep)
        for circuit in holds.nonzero().flatten().tolist():
            holds[circuit] = self.alone(keep[circuit].nonzero().flatten().tolist())
        return holds

    def __str__(self) -> str:
        return f"output within {self.tolerance:g} of the full model's on every input"

    def prune(self, scores: Scores) -> Circuit:
        """A circuit that suffices on every input, of which no single edge can be cut.

        As ``discretise.prune``, by the few inputs alone; then it is run on all. Where it fails, an input on which it
        does joins the few, and it is pruned again: so nearly all circuits are tried on a few inputs only. What cannot
        be cut on these cannot be cut on all.
        """
        while True:
            circuit = prune(scores, self._on_few)
            changes = self._changes(circuit.kept.nonzero().flatten().tolist())
            if bool((changes <= self.tolerance).all()):
                return replace(circuit, how={**circuit.how, "criterion": str(self)})
            self._rows.append(int(changes.argmax()))

    def _on_few(self, keep: Tensor) -> Tensor:
        return changes_kept(self.setting.on(self._rows), keep) <= self.tolerance

    def alone(self, kept: list[int]) -> bool:
        """Whether one circuit, by the numbers of its edges, suffices: by the truth's own arithmetic."""
        return bool((self._changes(kept) <= self.tolerance).all())

    def _changes(self, kept: list[int]) -> Float[Tensor, "batch"]:
        return self.setting.changes(run_kept(self.setting, kept).answer)

    def one_minimal(self, kept: list[int]) -> bool:
        """Whether it suffices and without any one of its edges does not: likewise."""
        if not self.alone(kept):
            return False
        changes = further_cuts(self.setting, run_kept(self.setting, kept), kept).amax(-1)
        return bool((changes > self.tolerance).all())


def changes_kept(setting: Setting, keep: Float[Tensor, "circuit edge"]) -> Float[Tensor, "circuit"]:
    """How far each circuit's output is from the full model's, over the setting's inputs: many circuits in one pass."""
    widest = max(len(reader.weight) for part in setting.machine.parts for reader in part.readers)
    numbers = setting.tok.shape.numel() * len(setting.machine.writers) + setting.tok.shape[:2].numel() * widest
    return torch.cat([_changes_kept(setting, some) for some in keep.split(max(1, _MOST_NUMBERS // numbers))])


@torch.no_grad()
def _changes_kept(setting: Setting, keep: Tensor) -> Tensor:
    machine, count, shape = setting.machine, len(keep), setting.tok.shape
    keep = keep.to(setting.tok.dtype)
    deltas = setting.tok.new_empty(count, len(machine.writers), shape.numel())  # of what was written and its fill
    fills = setting.fills.expand(len(machine.writers), *shape)
    deltas[:, 0] = (setting.tok - fills[0]).flatten()
    deltas[:, 1] = (setting.pos.expand(shape) - fills[1]).flatten()
    for at, part in enumerate(machine.parts):
        n = part.n_before
        nothing = machine.constants[at] + fills[:n].sum(0)
        numbers = [[machine.number[writer, at, reader] for writer in range(n)] for reader in range(len(part.readers))]
        kept = keep[:, numbers] @ deltas[:, :n]
        out = part(*(nothing + kept[:, reader].view(count, *shape) for reader in range(len(part.readers))))
        if at < len(machine.parts) - 1:
            deltas[:, 2 + at] = (out - fills[2 + at]).flatten(1)
    return setting.effect(out)
