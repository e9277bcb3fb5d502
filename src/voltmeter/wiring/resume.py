"""Run a model from one of its reading calls on, with everything before that call taken from an earlier run.

Runs on the same inputs that differ only in what some reader reads make the same calls up to that reader's, with the
same results. A ``Rehearsal`` is a tapped run that remembers which of those results something later still uses; a
``Resumed`` run answers every call before its start with them, and with an empty tensor of the right shape where nothing
later looks. The model's own code runs as ever, so nothing is assumed about how it is written.

Where that cannot be right (a result that the model goes on to change in place) a run starts from the nearest reading
call before it, at worst from the beginning.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from voltmeter.errors import WiringError
from voltmeter.wiring.expr import Made
from voltmeter.wiring.follow import CallKey
from voltmeter.wiring.plan import Plan, Write
from voltmeter.wiring.tap import Listener, Modes, Tap

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size, torch.layout)


@dataclass(frozen=True, eq=False)
class _Result:
    """What a call returned: for each leaf a stand-in of its shape, and the tensor itself where it is used later."""

    spec: TreeSpec
    leaves: list[Any]
    used: dict[int, tuple[Tensor, int]] = field(default_factory=dict)  # leaf -> tensor, number of its last use

    def at(self, start: int) -> Any:
        """The output for a run that starts at call ``start``."""
        leaves = [
            self.used[n][0] if n in self.used and self.used[n][1] >= start else leaf
            for n, leaf in enumerate(self.leaves)
        ]
        return tree_unflatten(leaves, self.spec)


@dataclass(eq=False)
class _Origin:
    """Where a tensor came from: the calls that returned it (those that change it in place return it again)."""

    places: list[tuple[int, int]]  # call, leaf of its output
    version: int  # when last looked at


@dataclass(frozen=True, eq=False)
class _Standing:
    """What a tap has in hand when a call is about to be made."""

    made: dict[CallKey, Made]
    x: dict[int, Tensor]
    shape: dict[int, torch.Size]
    early: dict[int, list[tuple[Write, Tensor]]]
    seen: set[CallKey]
    heard: Any  # by the listener


@dataclass(frozen=True, eq=False)
class Start:
    """A call to start from: the results of all before it, and what the tap had in hand."""

    call: int
    outputs: tuple[Any, ...]
    standing: _Standing

    @property
    def states(self) -> frozenset[int]:
        """The states of streams that stood."""
        return frozenset(self.standing.x)

    @property
    def heard(self) -> Any:
        """What the listener had heard."""
        return self.standing.heard


class Rehearsal(Tap):
    """A tapped run that can be resumed at any of its reading calls. Run the model once inside the ``with``.

    ``heard()`` is asked at each of them for what the listener has heard so far, and kept with the start.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, listener: Listener, modes: Modes, heard: Callable[[], Any]
    ) -> None:
        super().__init__(model, plan, listener, modes)
        self._heard = heard
        self.site_calls: dict[int, int] = {}  # site -> number of its call; the number of all calls for a returned one
        self._results: list[_Result] = []
        self._origins: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> _Origin
        self._standing: dict[int, _Standing] = {}
        self._spoilt: list[tuple[int, int]] = []  # results changed in place: (call that made it, call that used it so)
        self._resumable = not self.plan.opaque

    def on_call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        taps = self.plan.by_call.get(key)
        if taps is not None and taps.site is not None:
            self._could_start(taps.site.number)
        return self._logged((args, kwargs), lambda: super(Rehearsal, self).on_call(key, func, args, kwargs))

    def unaddressed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._logged((args, kwargs), lambda: super(Rehearsal, self).unaddressed(func, args, kwargs))

    def _logged(self, given_to: Any, call: Callable[[], Any]) -> Any:
        given = self._uses(given_to)
        out = call()
        for tensor in given:
            self._look_again(tensor)
        self._returns(out)
        return out

    def on_end(self, output: Any) -> Any:
        for site in self.plan.sites:
            if site.output is not None:
                self._could_start(site.number)
        self._uses(output)
        return super().on_end(output)

    def _could_start(self, site: int) -> None:
        now = len(self._results)
        self.site_calls[site] = now
        early = {stream: list(writes) for stream, writes in self._early.items()}
        self._standing[now] = _Standing(
            dict(self._made), dict(self._x), dict(self._shape), early, set(self._seen), self._heard()
        )

    def _uses(self, tree: Any) -> list[Tensor]:
        """Note that a call is about to use these; returns those of them that an earlier call made."""
        now = len(self._results)
        latest = max(self._standing, default=-1)
        found = [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor) and leaf in self._origins]
        for tensor in found:
            self._look_again(tensor)
            for call, at in self._origins[tensor].places:
                if call < latest:
                    self._results[call].used[at] = (tensor, now)
        return found

    def _look_again(self, tensor: Tensor) -> None:
        """A tensor changed in place since it was seen is as it was for no start before now."""
        origin = self._origins[tensor]
        if tensor._version != origin.version:
            self._spoilt.append((origin.places[0][0], len(self._results)))
            origin.version = tensor._version

    def _returns(self, out: Any) -> None:
        leaves, spec = tree_flatten(out)
        shown: list[Any] = []
        for at, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                origin = self._origins.setdefault(leaf, _Origin([], leaf._version))
                origin.places.append((len(self._results), at))
                shown.append(_stand_in(leaf))
            else:
                self._resumable &= isinstance(leaf, _PLAIN)
                shown.append(leaf)
        self._results.append(_Result(spec, shown))

    def start(self, call: int) -> Start | None:
        """The last place at or before ``call`` that a run may start from; None: only from the beginning."""
        if not self._resumable:
            return None
        spoilt = [*self._spoilt, *self._changed_since()]
        for at in sorted((s for s in self._standing if s <= call), reverse=True):
            if not any(made < at <= used for made, used in spoilt):
                return Start(at, tuple(result.at(at) for result in self._results[:at]), self._standing[at])
        return None

    def _changed_since(self) -> list[tuple[int, int]]:
        """Results in use later that were changed after that use, by way of another view of them."""
        return [
            (call, last)
            for call, result in enumerate(self._results)
            for tensor, last in result.used.values()
            if tensor._version != self._origins[tensor].version
        ]


class Resumed(Tap):
    """A tapped run that makes no call before its start."""

    def __init__(self, model: nn.Module, plan: Plan, listener: Listener, modes: Modes, start: Start) -> None:
        super().__init__(model, plan, listener, modes)
        self._start, self._made_calls = start, 0

    def on_start(self) -> None:
        super().on_start()
        standing, self._made_calls = self._start.standing, 0
        self._made, self._x, self._shape = dict(standing.made), dict(standing.x), dict(standing.shape)
        self._early = {stream: list(writes) for stream, writes in standing.early.items()}
        self._seen = set(standing.seen)

    def on_call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._made_calls < self._start.call:
            return self._earlier()
        return super().on_call(key, func, args, kwargs)

    def unaddressed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._made_calls < self._start.call:
            return self._earlier()
        return super().unaddressed(func, args, kwargs)

    def _earlier(self) -> Any:
        self._made_calls += 1
        return self._start.outputs[self._made_calls - 1]

    def on_end(self, output: Any) -> Any:
        if self._made_calls < self._start.call:
            raise WiringError(
                "the model made fewer calls than when it was rehearsed",
                [f"{self._made_calls} of {self._start.call} before the start"],
                "the model takes another path from run to run; run it whole",
            )
        return super().on_end(output)


def _stand_in(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes no memory; not a number, so that a use of it would show."""
    empty = torch.full((), float("nan") if tensor.is_floating_point() else 0, dtype=tensor.dtype, device=tensor.device)
    return empty.expand(tensor.shape)
