"""Units and channels of plain layers: of a network without residual sums, or of whatever a layer puts out.

In a plain network every layer's output divides into units (or channels, for convolutions): the layer's readers, each
of which makes one of them, and the writers of the activation that the next layer reads. A stream that would have more
than ``MOST_EDGES`` edges is left whole.
"""

import torch
from torch import Tensor

from voltmeter.wiring.algebra import base_name
from voltmeter.wiring.planner import Split
from voltmeter.wiring.replay import probe, randomised
from voltmeter.wiring.streams import Component, Survey
from voltmeter.wiring.trace import Recording

MOST_EDGES = 4096
LETTERS = {"channels": "c", "positions": "p", "units": "u"}


def convolved(recording: Recording) -> frozenset[torch.Size]:
    """The shapes of what convolutions read and write: tensors whose features lie along axis 1."""
    ops = [op for op in recording.ops if "convolution" in base_name(op)]
    return frozenset(recording.values[v].tensor.shape for op in ops for v in (op.ins[0], op.outs[0]))


def feature_axis(survey: Survey, value: int) -> int:
    """Axis 1 of what convolutions compute with (and of images), the last axis (-1) of everything else."""
    tensor = survey.handed_as(value)
    image = tensor.dim() == 4 or (tensor.dim() > 2 and tensor.shape in convolved(survey.recording))
    return 1 if image else -1


def features(survey: Survey, value: int) -> int:
    """How many units or channels a tensor has."""
    return int(survey.handed_as(value).shape[feature_axis(survey, value)])


def kind_of(survey: Survey, value: int) -> str:
    """What the parts along the feature axis are called."""
    return "channels" if feature_axis(survey, value) == 1 else "units"


def layer_output(survey: Survey, component: Component) -> int | None:
    """The output of a component that is one call, or None."""
    if len(component.sites) != 1 or component.sites[0].output is not None:
        return None
    outs = survey.recording.calls[component.sites[0].call].outs
    return outs[0] if outs and survey.recording.values[outs[0]].tensor.dim() > 1 else None


def small_streams(survey: Survey) -> list[bool]:
    """For each stream of a plain network: divided on both sides it has at most ``MOST_EDGES`` edges."""
    readers = [0] * len(survey.streams)
    for component in survey.components:
        output = layer_output(survey, component)
        readers[component.stream] += 1 if output is None else features(survey, output)
    writers = [sum(features(survey, leaf) for leaf in stream.leaves) for stream in survey.streams]
    return [w * r <= MOST_EDGES for w, r in zip(writers, readers, strict=True)]


def output_split(survey: Survey, output: int) -> Split:
    """One reader for each unit or channel of a layer's output."""
    tensor = survey.recording.values[output].tensor
    lead = feature_axis(survey, output) % tensor.dim()
    inner = tensor[(0,) * (lead + 1)].numel()
    columns = ((u, tuple(range(u * inner, (u + 1) * inner))) for u in range(tensor.shape[lead]))
    return Split(0, output, lead, tuple(columns))


def made_of(survey: Survey, output: int, leaf: int) -> list[tuple[int, ...]]:
    """For each unit of a layer's output, the parts of ``leaf`` that are computed from it (or that may be).

    A part depends on one unit alone when nothing happens to it while all other units change. Where some part depends
    on several (a softmax or a norm lies between), every part counts as computed from every unit.
    """
    recording, axis = survey.recording, feature_axis(survey, output)
    like = recording.values[output].tensor
    parts = features(survey, leaf)
    alone = [set(range(parts)) for _ in range(like.shape[axis])]
    for seed in (17, 19):
        here, there = (4 * randomised(like, seed + n).detach() for n in (0, 1000))
        expected = probe(recording, [leaf], {output: here})[0]
        for unit, mine in enumerate(alone):
            mixed = there.clone()
            mixed.select(axis, unit).copy_(here.select(axis, unit))
            mine &= _unchanged(expected, probe(recording, [leaf], {output: mixed})[0], feature_axis(survey, leaf))
    if set().union(*alone) != set(range(parts)):
        return [tuple(range(parts))] * len(alone)
    return [tuple(sorted(mine)) for mine in alone]


def _unchanged(before: Tensor, after: Tensor, axis: int) -> set[int]:
    same = (before == after).movedim(axis, 0).flatten(1).all(1)
    return set(torch.nonzero(same).flatten().tolist())


def numbered(name: str, kind: str, count: int) -> tuple[str, ...]:
    """``0.u0``, ``0.u1``, ...: the parts of a component."""
    return tuple(f"{name}.{LETTERS[kind]}{n}" for n in range(count))


def divided_axis(survey: Survey, stream: int, kind: str) -> tuple[int, int] | None:
    """The axis of a stream along which the parts of its writers lie, and how many; None when there is no such axis."""
    state = survey.streams[stream].states[0]
    tensor, axis = survey.handed_as(state), feature_axis(survey, state)
    if kind == "positions" and tensor.dim() == 3 and axis == -1:
        return 1, tensor.shape[1]
    if kind in ("channels", "units"):
        return axis % tensor.dim(), tensor.shape[axis]
    return None
