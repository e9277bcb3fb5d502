"""What is measured before a wiring is given out.

    sum_error   writers (and constants) add up to every state, relative to its largest entry; parts included
    law1_error  every edge kept, each reader through its own reading: the plain output (relative to its largest entry)
    law2_error  no edge kept, filled from another run: that run's output (relative to how far the two lie apart)

Sums alone would not notice a path that bypasses the stream; law 2 does. The checks use the slow, obvious
arithmetic and no engine.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from voltmeter.errors import WiringError
from voltmeter.wiring.calls import ReadingCall, readings_of, reread
from voltmeter.wiring.inputs import altered, call, output_tensors
from voltmeter.wiring.plan import Plan, State, Write
from voltmeter.wiring.refusals import UNREADABLE, declaring
from voltmeter.wiring.tap import LOOPED, Listener, Modes, Tap
from voltmeter.wiring.trace import Recording

# Rounding of sums over hundreds of writers, in the lowest precision that anything in the model is computed in.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
# Rounding of one call.
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}


class _Sums(Listener):
    """Adds up what writers wrote and compares with what stands."""

    wants_constants = True

    def __init__(self) -> None:
        self.outs: dict[int, Tensor] = {}  # by the first of the writers that wrote together: they have one coefficient
        self.constants: dict[int, Tensor] = {}  # by the number of the write that brought them
        self.worst: dict[int, float] = {}  # state -> relative gap

    def wrote(self, write: Write, outs: Tensor) -> None:
        # A tensor of its own: the model may overwrite what it added.
        self.outs[write.writers[0]] = outs.sum(0, dtype=torch.float64)

    def constant(self, write: Write, value: Tensor) -> None:
        self.constants[write.number] = value.double().clone()

    def stands(self, state: State, x: Tensor) -> None:
        exact = x.double()
        total = torch.zeros_like(exact)
        for writer, scale in zip(state.members, state.scales, strict=True):
            if writer in self.outs:
                total += scale * self.outs[writer].reshape(x.shape)
        for number, scale in state.constants:
            if number in self.constants:
                total += scale * self.constants[number].reshape(x.shape)
        self.worst[state.number] = float((total - exact).abs().max() / exact.abs().max().clamp_min(1e-30))

    def read(self, reading: ReadingCall) -> Any:
        return reading.plain()


class _Fixed(Listener):
    """Every reader reads what ``reads[state]`` says (law 2), or the state itself (law 1); or those of one site only."""

    wants_writes = False

    def __init__(self, reads: Mapping[int, Tensor] | None = None, only: int | None = None) -> None:
        self.reads, self.only = reads, only

    def read(self, reading: ReadingCall) -> Any:
        if self.only not in (None, reading.site.number):
            return reading.plain()
        source = reading.xs if self.reads is None else self.reads
        counts = {state: len(readings_of(reading.site, state)) for state in reading.site.states}
        return reading.evaluate({s: source[s].unsqueeze(0).expand(n, *source[s].shape) for s, n in counts.items()})


class _Remember(Listener):
    wants_writes = False

    def __init__(self) -> None:
        self.states: dict[int, Tensor] = {}

    def stands(self, state: State, x: Tensor) -> None:
        self.states[state.number] = x.clone()

    def read(self, reading: ReadingCall) -> Any:
        return reading.plain()


def _tapped(model: nn.Module, plan: Plan, listener: Listener, inputs: Any, modes: Modes) -> list[Tensor]:
    with torch.no_grad(), Tap(model, plan, listener, modes):
        return output_tensors(call(model, inputs))


def _gap(a: list[Tensor], b: list[Tensor]) -> float:
    return max((float((x.double() - y.double()).abs().max()) for x, y in zip(a, b, strict=True)), default=0.0)


def _size(a: list[Tensor]) -> float:
    return max((float(x.double().abs().max()) for x in a), default=0.0)


def tolerance_of(recording: Recording) -> float:
    """How far rounding may take the checks: by the lowest precision of what depends on the input."""
    dtypes = {v.tensor.dtype for v in recording.values if v.dynamic and v.tensor.is_floating_point()}
    return max((_TOLERANCE.get(d, 1e-4) for d in dtypes), default=1e-4)


def sums(model: nn.Module, plan: Plan, inputs: Any, tolerance: float) -> float:
    """The largest relative gap over all states. Raises WiringError naming the states that do not add up."""
    listener = _Sums()
    _tapped(model, plan, listener, inputs, LOOPED)
    wrong = {n: e for n, e in listener.worst.items() if not e <= tolerance}
    if wrong:
        raise WiringError(
            "the writers found do not add up to what the model computes",
            [f"{plan.states[n].place.call.place}: off by {e:.1e} of its largest entry" for n, e in wrong.items()],
            declaring(),
        )
    return max(listener.worst.values(), default=0.0)


def laws(model: nn.Module, plan: Plan, inputs: Any, modes: Modes, tolerance: float) -> tuple[float, float]:
    """Errors of law 1 and law 2. Raises WiringError where they do not hold."""
    other = altered(inputs)
    with torch.no_grad():
        plain, corrupted = (output_tensors(call(model, x)) for x in (inputs, other))
    apart = _gap(plain, corrupted)
    if apart <= 1e-6 * max(_size(plain), 1e-30):
        raise WiringError(
            "the model's output is the same for two different inputs, so its wiring cannot be checked",
            [f"the outputs differ by {apart:.1e}, and are of size {_size(plain):.1e}"],
            "give an example whose rows differ in something the model uses",
        )
    remember = _Remember()
    _tapped(model, plan, remember, other, modes)
    largest = max(_size(plain), _size(corrupted))  # one of them may be zero everywhere
    law1 = _gap(_tapped(model, plan, _Fixed(), inputs, modes), plain) / largest
    filled = _tapped(model, plan, _Fixed(remember.states), inputs, modes)
    law2 = _gap(filled, corrupted) / apart
    if not law1 <= tolerance:
        raise WiringError(
            "this model could not be run through its own wiring",
            [f"with every edge kept, its output was off by {law1:.1e} (law 1)", *_astray(model, plan, inputs, plain)],
            declaring(),
        )
    if not law2 <= tolerance:
        raise WiringError(
            UNREADABLE,
            [
                f"with nothing kept, its output still differed from the corrupted run by {law2 * apart:.2g} (law 2)",
                f"something passes from {_first_module(plan)} to the output outside the streams found",
            ],
            declaring(),
        )
    return law1, law2


def _astray(model: nn.Module, plan: Plan, inputs: Any, plain: list[Tensor]) -> Iterator[str]:
    """The calls that, evaluated once more on what they read, come to something else."""
    for site in plan.sites:
        if _gap(_tapped(model, plan, _Fixed(only=site.number), inputs, LOOPED), plain) > 0.01 * _size(plain):
            yield f"{site.call.place if site.call else 'the output'} could not be repeated"


def _first_module(plan: Plan) -> str:
    return plan.states[0].place.call.place if plan.states else "the input"


def find_modes(model: nn.Module, plan: Plan, inputs: Any) -> Modes:
    """Which divided calls may take all their readings stacked along the batch axis: those that give the same."""
    trial = _Trial()
    _tapped(model, plan, trial, inputs, Modes(frozenset(site.number for site in plan.sites)))
    return Modes(frozenset(trial.agree))


_FEW = 8  # readings of a call that are tried alone: all take the same way, and a big MLP has thousands


class _Trial(Listener):
    """Gives the readings of each divided site different inputs, all at once; and some of them again, alone."""

    wants_writes = False

    def __init__(self) -> None:
        self.agree: set[int] = set()
        self.generator = torch.Generator().manual_seed(0)

    def read(self, reading: ReadingCall) -> Any:
        if reading.site.readings[0].columns is not None and self._same(reading):
            self.agree.add(reading.site.number)
        return reading.plain()

    def _same(self, reading: ReadingCall) -> bool:
        ((state, x),) = reading.xs.items()
        count = len(reading.site.readings)
        few = sorted({round(n * (count - 1) / (_FEW - 1)) for n in range(_FEW)})
        factors = 1 + 0.5 * torch.rand((_FEW, *([1] * x.dim())), generator=self.generator)
        noise = torch.randn((_FEW, *x.shape), generator=self.generator)
        inputs = x * factors.to(x.device, x.dtype) + noise.to(x.device, x.dtype) * x.std()
        which = torch.arange(count) % _FEW
        try:
            folded = reading.tensor(reading.evaluate({state: inputs[which]}))
        except (RuntimeError, IndexError, ValueError):  # a view with explicit sizes, for one
            return False
        return all(self._agree(reading, n, inputs[which[n]], folded) for n in few)

    def _agree(self, reading: ReadingCall, n: int, x: Tensor, folded: Tensor) -> bool:
        """Whether a reading's share of ``folded`` is what the call makes of ``x`` alone."""
        site = reading.site
        alone = reading.tensor(reread(reading, dict.fromkeys(site.states, x)))
        if alone.shape != folded.shape:
            return False
        columns = list(site.readings[n].columns or ())
        mine, plain = (t.flatten(site.lead)[..., columns] for t in (folded, alone))
        largest = float(alone.abs().max())
        return bool((mine - plain).abs().max() <= _ROUNDING.get(folded.dtype, 1e-4) * largest)
