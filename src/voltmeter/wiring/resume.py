"""Run a model from one of its reading calls on, with everything before that call taken from an earlier run.

Runs on the same inputs that differ only in what some reader reads make the same calls up to that reader's, with the
same results. A ``Rehearsal`` is a tapped run that remembers which of those results something later still uses; a
``Resumed`` run answers every call before its start with them, and with a stand-in of the right shape where nothing
later looks. The model's own code runs as ever, so nothing is assumed about how it is written.

Where that cannot be right, nothing is resumed, or not from there: results that the model goes on to change in place,
that it keeps for its next run, or that something makes which is no call. What a rehearsal cannot know shows in the run:
a stand-in that is used after all, or other calls than were rehearsed, are a ``NotAsRehearsed``, and the run is to be
made whole.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from voltmeter.errors import WiringError
from voltmeter.wiring.expr import Made
from voltmeter.wiring.follow import CallKey
from voltmeter.wiring.plan import Plan, Write
from voltmeter.wiring.tap import Listener, Modes, Tap
from voltmeter.wiring.trace import tensors_in

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size, torch.layout)
_UNTRACKED = (torch.Tensor.data.__get__, torch.Tensor.data.__set__)  # type: ignore[attr-defined]  # no version is counted


class NotAsRehearsed(WiringError):
    """A resumed run is not the rehearsed one, up to its start or in what it uses of it."""


@dataclass(frozen=True, eq=False)
class _Result:
    """What a call returned: for each leaf a stand-in of its shape, and the tensor itself where it is used later."""

    func: Callable[..., Any]
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

    key: CallKey | None  # of that call; None: the model has returned
    made: dict[CallKey, Made]
    x: dict[int, Tensor]
    shape: dict[int, torch.Size]
    early: dict[int, list[tuple[Write, Tensor]]]
    seen: set[CallKey]
    heard: Any  # by the listener
    versions: list[tuple[Tensor, int]]  # of the tensors that calls may be repeated with

    @property
    def is_as_it_was(self) -> bool:
        """Whether calls before it can be repeated: none of their tensors was changed in place since."""
        return all(_version(tensor) == version for tensor, version in self.versions)


@dataclass(frozen=True, eq=False)
class Start:
    """A call to start from: the calls before it with their results, and what the tap had in hand."""

    call: int
    funcs: tuple[Callable[..., Any], ...]
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


class _OutsideCalls(TorchDispatchMode):
    """Notes whether anything is computed while no call is being made: by TorchScript, or inside ``torch.vmap``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside, self.seen = True, False  # inside a call, or outside the model

    @no_type_check
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen |= not self.inside
        return func(*args, **(kwargs or {}))


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
        self._kept_before: list[Tensor] = []
        self._outside = _OutsideCalls()
        self._resumable = not self.plan.opaque

    # what the model calls -------------------------------------------------------------------------------

    def __enter__(self) -> "Rehearsal":
        super().__enter__()
        self._outside.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outside.__exit__(kind, value, trace)  # type: ignore[no-untyped-call]
        super().__exit__(kind, value, trace)

    def on_start(self) -> None:
        super().on_start()
        self._kept_before = self._kept()  # calls may return these too: x.to(...) where there is nothing to do
        self._outside.inside = False

    def on_call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        taps = self.plan.by_call.get(key)
        if taps is not None and taps.site is not None:
            self._could_start(taps.site.number, key)
        return self._logged(func, (args, kwargs), lambda: super(Rehearsal, self).on_call(key, func, args, kwargs))

    def unaddressed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._logged(func, (args, kwargs), lambda: super(Rehearsal, self).unaddressed(func, args, kwargs))

    def _logged(self, func: Callable[..., Any], given_to: Any, call: Callable[[], Any]) -> Any:
        self._outside.inside = True
        self._resumable &= func not in _UNTRACKED
        given = _tensors_of(given_to)
        ours = [tensor for tensor in given if tensor in self._origins]
        outsiders = [(tensor, _version(tensor)) for tensor in given if tensor not in self._origins]
        self._uses(ours)
        out = call()
        for tensor in ours:
            self._look_again(tensor)
        # A change to an input, or to what the model keeps between runs, would have to be made anew in each.
        self._resumable &= all(_version(tensor) == version for tensor, version in outsiders)
        self._returns(func, out)
        self._outside.inside = False
        return out

    def on_end(self, output: Any) -> Any:
        self._outside.inside = True
        for site in self.plan.sites:
            if site.output is not None:
                self._could_start(site.number, None)
        self._uses([tensor for tensor in tensors_in(output) if tensor in self._origins])
        self._resumable &= not (self._outside.seen or self._keeps_results())
        return super().on_end(output)

    def _kept(self) -> list[Tensor]:
        """The tensors that hang on the model's modules."""
        return tensors_in([{k: v for k, v in vars(m).items() if k != "_modules"} for m in self.model.modules()])

    def _keeps_results(self) -> bool:
        """Whether a module keeps what was made in this run, as a cache for its next one (which gets no stand-ins)."""
        before = {id(tensor) for tensor in self._kept_before}
        return any(tensor in self._origins and id(tensor) not in before for tensor in self._kept())

    # what becomes of the results ------------------------------------------------------------------------

    def _could_start(self, site: int, key: CallKey | None) -> None:
        now = len(self._results)
        self.site_calls[site] = now
        early = {stream: list(writes) for stream, writes in self._early.items()}
        repeated = tensors_in([(made.args, made.kwargs) for made in self._made.values()])
        self._standing[now] = _Standing(
            key, dict(self._made), dict(self._x), dict(self._shape), early, set(self._seen), self._heard(),
            [(tensor, _version(tensor)) for tensor in repeated],
        )  # fmt: skip

    def _uses(self, tensors: list[Tensor]) -> None:
        """Note that a call is about to use these, which earlier calls made."""
        now = len(self._results)
        latest = max(self._standing, default=-1)
        for tensor in tensors:
            self._look_again(tensor)
            for call, at in self._origins[tensor].places:
                if call < latest:
                    self._results[call].used[at] = (tensor, now)

    def _look_again(self, tensor: Tensor) -> None:
        """A tensor changed in place since it was seen is as it was for no start before now."""
        origin = self._origins[tensor]
        if _version(tensor) != origin.version:
            self._spoilt.append((origin.places[0][0], len(self._results)))
            origin.version = _version(tensor)

    def _returns(self, func: Callable[..., Any], out: Any) -> None:
        leaves, spec = tree_flatten(out)
        shown: list[Any] = []
        for at, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                origin = self._origins.setdefault(leaf, _Origin([], _version(leaf)))
                origin.places.append((len(self._results), at))
                self._resumable &= not is_functorch_wrapped_tensor(leaf)  # what torch.vmap makes of it, it does unseen
                shown.append(_stand_in(leaf))
            else:
                self._resumable &= isinstance(leaf, _PLAIN)
                shown.append(leaf)
        self._results.append(_Result(func, spec, shown))

    # starts ---------------------------------------------------------------------------------------------

    def start(self, call: int) -> Start | None:
        """The last place at or before ``call`` that a run may start from; None: only from the beginning."""
        if not self._resumable:
            return None
        spoilt = [*self._spoilt, *self._changed_since()]
        for at in sorted((s for s in self._standing if s <= call), reverse=True):
            standing, earlier = self._standing[at], self._results[:at]
            if standing.is_as_it_was and not any(made < at <= used for made, used in spoilt):
                outputs = tuple(result.at(at) for result in earlier)
                return Start(at, tuple(result.func for result in earlier), outputs, standing)
        return None

    def _changed_since(self) -> list[tuple[int, int]]:
        """Results in use later that were changed after that use, by way of another view of them."""
        return [
            (call, last)
            for call, result in enumerate(self._results)
            for tensor, last in result.used.values()
            if _version(tensor) != self._origins[tensor].version
        ]


class Resumed(Tap):
    """A tapped run that makes no call before its start. Raises NotAsRehearsed where it is not what was rehearsed."""

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
            return self._earlier(func)
        self._first_is(key)
        return super().on_call(key, func, args, kwargs)

    def unaddressed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._made_calls < self._start.call:
            return self._earlier(func)
        self._first_is(None)
        return super().unaddressed(func, args, kwargs)

    def on_end(self, output: Any) -> Any:
        if self._made_calls < self._start.call:
            raise _other_calls(f"it made {self._made_calls} of {self._start.call} calls before the start")
        self._first_is(None)
        return super().on_end(output)

    def _earlier(self, func: Callable[..., Any]) -> Any:
        number = self._made_calls
        if func is not self._start.funcs[number] and func != self._start.funcs[number]:
            given, wanted = (getattr(each, "__name__", str(each)) for each in (func, self._start.funcs[number]))
            raise _other_calls(f"call {number} is {given}, not {wanted}")
        self._made_calls += 1
        return self._start.outputs[number]

    def _first_is(self, key: CallKey | None) -> None:
        """The first call that is made must be the one to start at."""
        if self._made_calls == self._start.call:
            self._made_calls += 1
            if key != self._start.standing.key:
                raise _other_calls(f"it starts at {'the end' if key is None else key.place}")


def _other_calls(what: str) -> NotAsRehearsed:
    return NotAsRehearsed(
        "the model made other calls than when it was rehearsed",
        [what],
        "it takes another path from run to run, or keeps something from one for the next; run it whole",
    )


class _StandIn(Tensor):
    """A tensor that nothing was to look at any more. To use it is an error."""

    @classmethod
    @no_type_check
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise NotAsRehearsed(
            "a result was used that was not when the model was rehearsed",
            [f"by {getattr(func, '__name__', func)}"],
            "the model takes another path for this circuit; run it whole",
        )


def _stand_in(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes no memory."""
    empty = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    made: Tensor = torch.Tensor._make_subclass(_StandIn, empty)
    return made


def _version(tensor: Tensor) -> int:
    """How often a tensor or a view of it was changed in place; not counted in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def _tensors_of(tree: Any) -> list[Tensor]:
    """All tensors given to a call, also as bounds of slices."""
    return list(_tensors(tree_leaves(tree)))


def _tensors(leaves: list[Any]) -> Iterator[Tensor]:
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, slice):
            yield from _tensors([leaf.start, leaf.stop, leaf.step])
