"""The learned ("optimal") fill: a constant for every writer, trained so that the cut model loses as little as it can.

Source: optimal ablation, Li & Janson 2409.09951; as there, training begins at the writers' means. A constant is of the
last axis of its stream, or of whatever the fill it begins from does not vary over (a mean by position stays one).
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.circuit.circuit import Circuit
from voltmeter.discover.learning import adam, adam_start, cut_loss
from voltmeter.discover.method import State
from voltmeter.discover.question import Batch, Question, prepare_fill
from voltmeter.errors import FillError, VoltmeterError
from voltmeter.run.fill import Fill, FillValues, Fixed, optimal
from voltmeter.run.watch import outs_of
from voltmeter.task.task import Task
from voltmeter.wiring.wiring import Wiring

_PREFIX = "constants."


def optimal_fill(
    wiring: Wiring,
    task: Task,
    keep: Circuit | Float[Tensor, "edge"],
    *,
    steps: int = 200,
    seed: int = 0,
    rate: float = 0.03,
    objective: str = "kl",
    start: str | Fill = "mean",
    batch_size: int = 32,
) -> Fill:
    """The constants that serve one circuit (or keep [edge]) best, trained on the train pairs by Adam.

    ``rate`` is a step's length as a share of what the stream's writers write (root mean square); it falls linearly to
    0 over the run. ``start``: the fill to begin from, which must be the same for all examples. Only constants of cut
    edges are trained. Costs ``steps`` forward+backward passes of one batch. Raises FillError for another start.
    """
    if steps < 1:
        raise VoltmeterError(f"a fill was to be trained for {steps} steps, at least 1 is needed")
    question = Question(wiring, task, prepare_fill(start, wiring, task), seed, batch_size)
    kept = keep.mask(torch.float32) if isinstance(keep, Circuit) else keep
    state = constants_start(question)
    for number in range(steps):
        variables, batch = with_constants(question, state, question.batch(number))
        cut_loss(question, batch, kept.expand(len(batch.pairs), -1), objective).backward()
        state |= constants_step(state, variables, number, rate * (1 - number / steps))
    how = f"trained for {steps} steps on the train pairs of {task.name} (seed {seed}), {int(kept.sum())} edges kept"
    return fill_from(question, state, how)


def constants_start(question: Question) -> State:
    """The question's fill as constants to be trained, one tensor [writer of the stream, ...] for each stream.

    Raises FillError where the fill is not the same for all examples.
    """
    batch, fill = question.batch(0), question.fill
    varies = [values.shape[1] > 1 for values in batch.fill.streams if values is not None]
    if not isinstance(fill, Fixed) or any(varies):
        raise FillError(
            f"constants are to be learned, and the {fill.name} fill is none to begin from",
            ["a learned fill is the same for all examples; training begins at the one that is given"],
            "begin at the means: fill='mean'",
        )
    written = outs_of(question.wiring, batch.clean).streams
    state: State = {}
    for at, (values, outs) in enumerate(zip(batch.fill.streams, written, strict=True)):
        if values is not None:
            assert outs is not None, "a stream with writers was not written to"
            state |= adam_start(f"{_PREFIX}{at}", values.detach().clone())
            state[f"{_PREFIX}{at}.scale"] = outs.square().mean().sqrt()
    return state


def with_constants(question: Question, state: Mapping[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Batch]:
    """The constants of a state as variables with a gradient, and the batch with them for its fill."""
    names = [f"{_PREFIX}{at}" for at in range(len(question.wiring.streams))]
    variables = {name: state[name].clone().requires_grad_() for name in names if name in state}
    streams = tuple(variables.get(name) for name in names)
    return variables, replace(batch, fill=FillValues("optimal", streams, by_position=batch.fill.by_position))


def constants_step(state: State, variables: Mapping[str, Tensor], number: int, rate: float) -> State:
    """What a step of Adam makes of the constants; ``rate`` as for ``optimal_fill``."""
    after: State = {}
    for name, variable in variables.items():
        if variable.grad is not None:
            after |= adam(state, name, variable.grad, number, rate * state[f"{name}.scale"])
    return after


def fill_from(question: Question, state: Mapping[str, Tensor], provenance: str) -> Fixed:
    """The constants of a state as a fill."""
    wiring, found = question.wiring, {}
    for at, members in enumerate(wiring.plan.stream_writers):
        for writer, values in zip(members, state.get(f"{_PREFIX}{at}", ()), strict=True):
            found[wiring.writers[writer].name] = values.detach().clone()
    made = optimal(found, provenance, by_position=question.batch(0).fill.by_position)
    assert isinstance(made, Fixed)
    return made
