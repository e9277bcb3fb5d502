"""Run a model while a listener hears every write to its streams and answers every read.

``Tap`` carries out a plan on a run: at the calls of the plan it hands contributions to the listener, asks it what
each reader reads, and puts the answers in. What the answers are (plain, cut, scaled, recorded) is the listener's
affair: the engine, its slow reference, the recorder and the wire-time checks are all listeners.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_flatten, tree_unflatten

from voltmeter.errors import AddressError, WiringError, counted, nearest
from voltmeter.wiring.calls import ModelCall, ReadingCall, ReturnedCall, readings_of
from voltmeter.wiring.expr import Made, evaluate, substitute
from voltmeter.wiring.follow import CallKey, Follower
from voltmeter.wiring.plan import AT_HAND, Divided, Plan, Site, State, Taps, Write
from voltmeter.wiring.projections import held_run, multiplied
from voltmeter.wiring.trace import tensors_in

__all__ = ["LOOPED", "Listener", "Modes", "ReadingCall", "Tap", "readings_of", "refuse_tapped"]


class Listener(ABC):
    """What a tapped run is for. Subclasses answer reads, and hear what else they care for."""

    wants_constants = False
    wants_writes = True  # a component's parts are made only for who listens

    def begin(self) -> None:
        """The model is about to run."""
        return

    def portion(self, write: Write) -> Write | None:
        """What of a write is to be made and heard: all, some of its writers, or nothing."""
        return write if (self.wants_writes if write.writers else self.wants_constants) else None

    def stands(self, state: State, x: Tensor) -> None:
        """A state of a stream was computed: ``x`` [batch, ...]. All its writers have been heard."""
        return

    def wrote(self, write: Write, outs: Tensor) -> None:
        """``outs`` [writers of this write, *stream shape] were added to a stream."""
        return

    def constant(self, write: Write, value: Tensor) -> None:
        """A bias was added to a stream, alone or with a divided writer (heard only where ``wants_constants``)."""
        return

    @abstractmethod
    def read(self, reading: ReadingCall) -> Any:
        """The output of a reading call: ``reading.plain()``, or ``reading.evaluate(...)`` of other inputs."""


@dataclass(frozen=True)
class Modes:
    """How calls with several readings are evaluated, found by trying at wire time.

    ``folded``: numbers of the sites that take all their readings stacked along the batch axis; the others are looped.
    """

    folded: frozenset[int] = frozenset()


LOOPED = Modes()


class Tap(Follower):
    """A context in which runs of ``model`` are tapped. ``params`` stand in for the model's own, by name."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        listener: Listener,
        modes: Modes = LOOPED,
        params: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(model, plan.opaque)
        self.plan, self.listener, self.modes = plan, listener, modes
        self._watched = plan.modules
        self._swap = _swaps(model, params)
        self._made: dict[CallKey, Made] = {}
        self._x: dict[int, Tensor] = {}
        self._shape: dict[int, torch.Size] = {}
        self._early: dict[int, list[tuple[Write, Tensor]]] = {}
        self._seen: set[CallKey] = set()

    # the model's calls ----------------------------------------------------------------------------------

    def on_start(self) -> None:
        self._forget()
        self.listener.begin()

    def _forget(self) -> None:
        self._made, self._x, self._shape, self._early, self._seen = {}, {}, {}, {}, set()

    def unaddressed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._swap:
            args, kwargs = self._swapped(args, kwargs)
        return func(*args, **kwargs)

    def on_call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._swap:
            args, kwargs = self._swapped(args, kwargs)
        taps = self.plan.by_call.get(key)
        if taps is None:
            return func(*args, **kwargs)
        made = Made(func, args, kwargs)
        self._before_call(key, taps, made)
        out = func(*args, **kwargs) if taps.site is None else self._site(taps.site, made)
        self._after_call(taps, out)
        return out

    def on_opaque(
        self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        taps = self.plan.by_call.get(key)
        if taps is None:
            return output
        made = Made(func, args, kwargs)
        self._before_call(key, taps, made)
        out = output if taps.site is None else self._site(taps.site, made)
        self._after_call(taps, out)
        return out

    def _swapped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(self._other(a) for a in args), {k: self._other(v) for k, v in kwargs.items()}

    def _other(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self._swap.get(id(arg), arg)
        if type(arg) in (list, tuple) and any(isinstance(a, Tensor) for a in arg):
            return type(arg)(self._swap.get(id(a), a) for a in arg)
        return arg

    def _before_call(self, key: CallKey, taps: Taps, made: Made) -> None:
        self._seen.add(key)
        if taps.kept:
            self._made[key] = made
        if taps.arrive:
            leaves = tensors_in((made.args, made.kwargs))
            for state in taps.arrive:
                self._stand(state, leaves[state.place.leaf])
        for write in taps.before:
            self._contribute(write, _operand(write, made))

    def _after_call(self, taps: Taps, out: Any) -> None:
        if not (taps.after or taps.define):
            return
        leaves = tensors_in(out)
        for write in taps.after:
            self._contribute(write, leaves[write.place.leaf])
        for state in taps.define:
            self._stand(state, leaves[state.place.leaf])

    def on_end(self, output: Any) -> Any:
        missed = [key for key in self.plan.by_call if key not in self._seen]
        if missed:
            raise WiringError(
                f"{counted(len(missed), 'call', 'calls')} seen while wiring did not happen in this run",
                sorted({key.place for key in missed}),
                "the model takes another path for these inputs; wire it with an example like them",
            )
        for site in self.plan.sites:
            if site.output is not None:
                output = self._returned(site, output)
        self._forget()
        return output

    # writing --------------------------------------------------------------------------------------------

    def _contribute(self, write: Write, operand: Tensor) -> None:
        heard = self.listener.portion(write)
        if heard is None:
            return
        write = heard
        if write.divided is not None:
            outs, bias = self._parts(write, write.divided, operand)
            if bias is not None:
                self._constant(write, bias * write.scale)
        else:
            outs = operand[None]
        self._deliver(write, _times(outs, write.scale))

    def _constant(self, write: Write, bias: Tensor) -> None:
        if write.stream in self._shape:
            bias = _fit(bias[None], self._shape[write.stream])[0]
        self.listener.constant(write, bias)

    def _deliver(self, write: Write, outs: Tensor) -> None:
        shape = self._shape.get(write.stream)
        if shape is None:
            # Nothing stands yet, so the stream's shape is not known; the model may overwrite what it added.
            self._early.setdefault(write.stream, []).append((write, outs.clone()))
        elif write.writers:
            outs = _fit(outs, shape)
            self.listener.wrote(write, outs if write.axis_parts is None else _along(outs[0], write))
        else:
            self.listener.constant(write, _fit(outs, shape)[0])

    def _stand(self, state: State, x: Tensor) -> None:
        x = x.clone() if state.copied else x
        if state.stream not in self._shape:
            self._shape[state.stream] = x.shape
        for number in state.commits:
            self._contribute(self.plan.writes[number], x)
        for write, outs in self._early.pop(state.stream, ()):
            self._deliver(write, outs)
        self._x[state.number] = x
        self.listener.stands(state, x)

    def _parts(self, write: Write, divided: Divided, operand: Tensor) -> tuple[Tensor, Tensor | None]:
        """A writer's parts [parts, *operand.shape], and its bias where the listener wants it."""
        made = self._made[divided.call]
        parts, bias = multiplied(made, divided, self.listener.wants_constants)
        if divided.after is None:
            parts = _times(parts.reshape(len(divided.columns), *operand.shape), divided.scale)
            return parts, None if bias is None else _times(bias.reshape(operand.shape), divided.scale)
        run = held_run(self._made, divided.after)
        nothing = torch.zeros_like(parts[0])
        empty = evaluate(divided.after, run, {AT_HAND: nothing})
        done = torch.stack([evaluate(divided.after, run, {AT_HAND: part}) - empty for part in parts])
        if not self.listener.wants_constants:
            return done, None
        return done, evaluate(divided.after, run, {AT_HAND: nothing if bias is None else bias})

    # reading --------------------------------------------------------------------------------------------

    def _site(self, site: Site, made: Made) -> Any:
        xs = {number: self._x[number] for number in site.states}
        out = self.listener.read(ModelCall(site, xs, made, self._made, site.number in self.modes.folded))
        return _written(site, made, out)

    def _returned(self, site: Site, output: Any) -> Any:
        assert site.output is not None
        leaves, spec = tree_flatten(output)
        xs = {number: self._x[number] for number in site.states}
        leaves[site.output] = self.listener.read(ReturnedCall(site, xs, leaves[site.output], self._made))
        return tree_unflatten(leaves, spec)


def refuse_tapped(model: nn.Module) -> None:
    """Raises WiringError inside ``record`` of the same model: each would listen to the calls that the other answers."""
    if any(isinstance(mode, Tap) and mode.model is model for mode in _get_current_function_mode_stack()):
        raise WiringError(
            "the model is being recorded, and can meanwhile neither be wired, cut nor recorded once more",
            mend="inside record call wiring.model(...), and leave the with before run, fills, wire or another record",
        )


def _written(site: Site, made: Made, out: Any) -> Any:
    """What a reading call returns; where it works in place, in the tensor that the model may go on to use."""
    if len(site.overwritten) != 1 or not isinstance(out, Tensor):
        return out
    target = tensors_in((made.args, made.kwargs))[site.overwritten[0]]
    return out if out is target else target.copy_(out)


def _operand(write: Write, made: Made) -> Tensor:
    """The tensor that a summing call is about to add, in the shape of the sum."""
    leaves = tensors_in((made.args, made.kwargs))
    if write.remainder:
        return substitute(made, {0: torch.zeros_like(leaves[0])})  # type: ignore[no-any-return]
    operand = leaves[write.place.leaf]
    shape = torch.broadcast_shapes(*(t.shape for t in leaves))
    return operand.expand(shape) if operand.shape != shape else operand


def _times(tensor: Tensor, scale: float) -> Tensor:
    """``tensor * scale``, without a pass over it where that changes nothing."""
    return tensor if scale == 1.0 else tensor * scale


def _along(operand: Tensor, write: Write) -> Tensor:
    """Parts of a tensor: its entries along one axis, each in place with zeros elsewhere."""
    axis, count = write.axis_parts or 0, len(write.writers)
    if operand.shape[axis] != count:
        raise WiringError(
            f"a component was divided into {count} parts along axis {axis}, and has {operand.shape[axis]} in this run",
            [write.place.call.place],
            "give inputs of the length (or image size) it was wired with",
        )
    eye = torch.eye(count, dtype=operand.dtype, device=operand.device)
    shape = [count, *([1] * operand.dim())]
    shape[1 + axis] = count
    return operand[None] * eye.reshape(shape)


def _fit(outs: Tensor, shape: torch.Size) -> Tensor:
    """Bring contributions [parts, ...] to the stream's shape: broadcast, or another view of the same entries."""
    if outs.shape[1:] == shape:
        return outs
    if outs[0].numel() == shape.numel():
        return outs.reshape(outs.shape[0], *shape)
    return outs.reshape(outs.shape[0], *([1] * (len(shape) - outs.dim() + 1)), *outs.shape[1:]).expand(-1, *shape)


def _swaps(model: nn.Module, params: Mapping[str, Tensor] | None) -> dict[int, Tensor]:
    """What stands in for each parameter: the one given, or itself without a gradient (none is asked for)."""
    if params is None:
        return {id(p): p.detach() for p in model.parameters() if p.requires_grad} if torch.is_grad_enabled() else {}
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    unknown = [name for name in params if name not in named]
    if unknown:
        raise AddressError(
            f"{counted(len(unknown), 'of the given params is', 'of the given params are')} not in the model",
            [f"{name} ({nearest(name, list(named))})" for name in unknown],
            "see dict(model.named_parameters())",
        )
    swaps = {id(p): p.detach() for p in named.values() if p.requires_grad}
    return swaps | {id(named[name]): tensor for name, tensor in params.items()}
