"""How long a run will take and how much memory, told before it: measured on its first steps."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from voltmeter.cli.checkpoint import Keeper, Saved
from voltmeter.cli.choose import CURVE_POINTS
from voltmeter.cli.options import Size
from voltmeter.cli.screen import Screen, count, duration, memory
from voltmeter.discover import Judge, Method, Question
from voltmeter.wiring.inputs import device_of

_TRIAL_SECONDS = 1.0
_SIZES_TRIED = 30  # by the search for the smallest faithful circuit
_MASKED = 1.6  # forwards that a masked forward costs, at most


@dataclass(frozen=True)
class Judging:
    """What measuring circuits costs: to set up a judge, and per circuit; seconds over the held-out pairs."""

    judge: Judge
    setup_seconds: float
    circuit_seconds: float

    @classmethod
    def on(cls, question: Question, forward_seconds: float) -> Judging:
        """A judge on the held-out pairs. Raises MetricError where the metric cannot tell the model from nothing."""
        start = time.perf_counter()
        judge = Judge(question.wiring, question.task, question.task.held_out, question.fill)
        seconds = time.perf_counter() - start
        # Setting up is a fill, a plain forward and a masked one.
        return cls(judge, seconds, max(seconds - 2 * forward_seconds, _MASKED * forward_seconds))

    def seconds_for(self, size: Size) -> float:
        """What choosing a circuit on the train pairs and measuring it on the held-out ones will take."""
        seconds = (CURVE_POINTS + 2) * self.circuit_seconds
        if size.faithful is None:
            return seconds
        share = len(self.judge.task.train) / len(self.judge.pairs)
        return seconds + share * (self.setup_seconds + _SIZES_TRIED * self.circuit_seconds)


def first_steps(method: Method, question: Question, keeper: Keeper) -> float:
    """Takes the first steps, which count, for about a second; returns the seconds that those left will take."""
    steps = method.steps(question)
    if keeper.newest is None:
        keeper.newest = Saved(0, steps, 0.0, method.start(question))
    step, state = keeper.newest.step, keeper.newest.state
    making, stepping = [0.0], [0.0]
    begun = time.perf_counter()
    while step < steps and _tell_more(len(stepping) - 1, steps, time.perf_counter() - begun):
        start = time.perf_counter()
        question.batch(step)  # the first time its fills are computed, later they are remembered
        made = time.perf_counter()
        state = method.step(question, state, step)
        step += 1
        making.append(made - start)
        stepping.append(time.perf_counter() - made)
        keeper.done(step, state)
    new_batches = max(min(question.n_batches - step, steps - step), 0)
    return (steps - step) * _typical(stepping) + new_batches * _typical(making)


def _tell_more(taken: int, steps: int, seconds: float) -> bool:
    """Whether one more step tells more: the first is slower than the others, and memory grows over a few."""
    return (
        taken < 1 or (taken < 2 and seconds < 10 * _TRIAL_SECONDS) or (seconds < _TRIAL_SECONDS and taken < steps / 10)
    )


def _typical(seconds: list[float]) -> float:
    """The median but for the first step, where there are others. The list begins with a 0 for none."""
    return statistics.median(seconds[2:] or seconds[-1:])


def show_plan(
    screen: Screen, method: Method, question: Question, keeper: Keeper, left_seconds: float, judging_seconds: float
) -> None:
    """The line about what is to come."""
    assert keeper.newest is not None
    before = keeper.resumed_from
    steps = count(keeper.steps, "step", "steps")
    if before:
        steps += f", going on after {before:,}"
    seconds = keeper.seconds_here + left_seconds + judging_seconds
    device = device_of(question.wiring.model)
    where = "" if device.type == "cpu" else f" on {device}"
    expected = memory(peak_mib(device) + _fills_to_come(question, judging_seconds > 0) / 2**20)
    screen.line("plan", f"{method.name} · {steps} · about {duration(seconds)}, {expected}{where}")


def _fills_to_come(question: Question, searched: bool) -> float:
    """Bytes of fills that will be held at once beside what is held now."""
    batch = question.batch(0)
    held = sum(t.numel() * t.element_size() for t in batch.fill.streams if t is not None)
    if question.fill.name != "resample":  # the same few values for every batch
        return 0.0
    train = len(question.task.train) if searched else (question.n_batches - 1) * question.batch_size
    return held * train / len(batch.pairs)


def peak_mib(device: torch.device) -> float:
    """The most memory so far: of the GPU in tensors, or on a CPU of the whole process (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
