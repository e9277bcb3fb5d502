"""Why an edge that the program's dataflow uses is not in the truth."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from voltmeter.rasp.catalogue import SAME
from voltmeter.rasp.certificate import Explained
from voltmeter.rasp.effects import Base, further_cuts, run_cut
from voltmeter.rasp.setting import Setting, change_in_words

KINDS = {
    "constant writer": "what the writer writes is what the cut edge carries, on every input",
    "ignored": "the writer writes something else than the cut edge carries, in what the reader does not read",
    "constant reader": "what the reader's component writes is the same on every input",
    "absorbed": "the reader's component writes the same with and without it",
    "redundant": "another edge does as well: cutting both changes the output",
    "lost": "the reader's component writes something else, and nothing after it passes that on",
    "below tolerance": "it changes the output by no more than the tolerance",
}


@torch.no_grad()
def explain(
    setting: Setting,
    base: Base,
    edges: Sequence[int],
    effects: Sequence[float],
    others: Sequence[int],
    limit: int,
) -> tuple[Explained, ...]:
    """Say of each of ``edges``, which is not necessary, why. ``base``: the uncut run; ``effects``: of every edge.

    ``others``: the edges that may make one redundant, none of them necessary; where that is more than ``limit``
    pairs none is tried, and it is said of each edge that none was. Cost: one evaluation of a component per edge,
    and a batch of second cuts for those that change what their reader makes.
    """
    explainer = _Explainer(setting, base, effects, others if len(edges) * len(others) <= limit else None)
    return tuple(explainer.explained(edge) for edge in edges)


@final
class _Explainer:
    """``others`` is None where they are too many to be tried."""

    def __init__(self, setting: Setting, base: Base, effects: Sequence[float], others: Sequence[int] | None) -> None:
        self.setting, self.machine, self.base = setting, setting.machine, base
        self.effects, self.others = effects, others

    def explained(self, edge: int) -> Explained:
        kind, why = self._reason(edge)
        return Explained(self.machine.edges[edge], kind, why)

    def _reason(self, edge: int) -> tuple[str, str]:
        writer, at, reader = self.machine.ends[edge]
        part = self.machine.parts[at]
        moved = self.base.outs[writer] - self.setting.fills[writer]
        if _is_rounding(moved, self.base.outs[writer]):
            return "constant writer", self._same_as_cut(writer)
        share = moved @ part.readers[reader].weight.T
        if _is_rounding(share, self.base.outs[writer]):
            what = "what varies" if self._varies(writer) else "the difference"
            return "ignored", f"{self._differs(writer)}, but {part.readers[reader].name} does not read {what}"
        other = self._other(edge)
        if other is not None:
            changed = change_in_words(other[1], self.setting.answers)
            return "redundant", f"{other[0]} does as well: cutting both changes {changed}"
        kind, why = self._passed_on(edge, share)
        return kind, why + ("; whether another edge does as well was not tried" if self.others is None else "")

    def _passed_on(self, edge: int, share: Tensor) -> tuple[str, str]:
        """How far the change comes; ``share``: what the cut changes in what its reader reads."""
        writer, at, _ = self.machine.ends[edge]
        if at == len(self.machine.parts) - 1:  # the answer has no result of its own: what it reads is the output
            return self._beyond(edge, float(share.abs().max()))
        change, part = self._change(edge), self.machine.parts[at]
        if not _is_rounding(change, self.base.outs[2 + at]):
            return self._beyond(edge, float(change.abs().max()))
        if self._varies(2 + at):
            return "absorbed", f"{self._differs(writer)}, but {part.name} writes the same with the edge and without"
        same = f"{part.name} writes the same for every input all the same"
        return "constant reader", f"{self._differs(writer)}, but {same}"

    def _same_as_cut(self, writer: int) -> str:
        name = self.machine.writers[writer]
        if self.setting.question.fill == "zero":
            return f"{name} writes nothing, which is what the cut edge carries"
        if self._varies(writer):  # with the input: then the fill does too, as only a corrupted run's does
            return f"{name} writes for every input what it writes for the one it is paired with"
        return f"{name} writes the same for every input, which is what the cut edge carries"

    def _differs(self, writer: int) -> str:
        name = self.machine.writers[writer]
        return f"{name} varies" if self._varies(writer) else f"{name} writes something else than the cut edge carries"

    def _varies(self, writer: int) -> bool:
        """Whether what a writer writes depends on the input."""
        out = self.base.outs[writer]
        return not _is_rounding(out - out[:1], out)

    def _change(self, edge: int) -> Tensor:
        """What cutting the edge changes in what its reader's component writes."""
        writer, at, reader = self.machine.ends[edge]
        reads = [self.base.reads[at, number] for number in range(len(self.machine.parts[at].readers))]
        reads[reader] = reads[reader] + self.setting.fills[writer] - self.base.outs[writer]
        return self.machine.parts[at](*reads) - self.base.outs[2 + at]

    def _other(self, edge: int) -> tuple[str, float] | None:
        """Another edge that is not necessary either, whose cut together with this one changes the output most."""
        tolerance = self.setting.question.tolerance
        others = [other for other in self.others or () if other != edge]
        if not others:
            return None
        both = self.setting.over_inputs(further_cuts(self.setting, run_cut(self.setting, [edge]), others))
        worst = int(both.argmax())
        figure = float(both[worst])
        return (self.machine.edges[others[worst]], figure) if figure > tolerance else None

    def _beyond(self, edge: int, change: float) -> tuple[str, str]:
        """The cut changes what the component writes, and yet not the output."""
        effect, tolerance = self.effects[edge], self.setting.question.tolerance
        if effect <= SAME:
            part = self.machine.parts[self.machine.ends[edge][1]].name
            end = "nothing after passes that on" if self.setting.answers is None else "no answer becomes another"
            return "lost", f"without it {part} changes by up to {change:.3g}, and {end}"
        return "below tolerance", f"it changes the output by {effect:.3g}, within the tolerance {tolerance:g}"


def _is_rounding(difference: Tensor, of: Tensor) -> bool:
    return float(difference.abs().max()) <= SAME * max(1.0, float(of.abs().max()))
