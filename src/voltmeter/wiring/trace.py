"""Record one run of a model: every torch call, every dispatched op, every version of every tensor.

Calls (what the model's code asks for) say where a run can be steered; ops (what torch then does) say exactly
what was computed, in a small vocabulary that in-place writes, operators and fused functions all come down to.
The recording keeps both, and the link between them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from voltmeter.wiring.follow import CallKey, Follower


def words(text: str) -> frozenset[str]:
    """A set of names, written as a line of prose."""
    return frozenset(text.split())


# Entries of an output that are not the model's answer: caches, and copies of what happened inside.
BYPRODUCTS = words("""
    past_key_values cache_params hidden_states attentions encoder_last_hidden_state encoder_hidden_states
    encoder_attentions decoder_hidden_states decoder_attentions cross_attentions router_logits
""")

# Ops that take no more than the shape of their input.
_SHAPE_ONLY = words("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided")

# The name of the one op that an opaque (declared) module is.
OPAQUE = "opaque_module"


@dataclass(frozen=True)
class Ref:
    """A tensor argument, by the version it had."""

    value: int


@dataclass
class Value:
    """One version of one tensor."""

    tensor: Tensor
    op: int | None  # which op made it; None for parameters, inputs and constants from outside
    source: str = ""  # "param", "input", "const" when no op made it
    dynamic: bool = False  # depends on the model's inputs


@dataclass
class Op:
    """One dispatched op. ``args`` and ``kwargs`` hold ``Ref`` in place of tensors."""

    index: int
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    call: int | None

    @property
    def name(self) -> str:
        return str(getattr(self.func, "_opname", getattr(self.func, "__name__", "op")))


@dataclass
class Call:
    """One torch call of the model's code; ``ins`` are the tensor leaves of its arguments, in order, and
    ``overwritten`` the numbers of those that it wrote into."""

    index: int
    key: CallKey
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ins: tuple[int, ...] = ()
    outs: tuple[int, ...] = ()
    overwritten: tuple[int, ...] = ()


@dataclass
class Returned:
    """A module's return: which versions went in, which came out."""

    module: str
    entry: int
    ins: frozenset[int]
    outs: tuple[int, ...]


@dataclass
class Recording:
    """All that one run did."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    returns: list[Returned] = field(default_factory=list)
    outputs: tuple[tuple[int, int], ...] = ()  # (leaf number in the output pytree, value)
    mutated: set[int] = field(default_factory=set)  # versions later overwritten in place

    @cached_property
    def weights(self) -> frozenset[int]:
        """Versions that are parameters, or are made of parameters and other constants alone."""
        found = {v for v, held in enumerate(self.values) if held.op is None and isinstance(held.tensor, nn.Parameter)}
        for op in self.ops:
            if any(i in found for i in op.ins):
                found.update(out for out in op.outs if not self.values[out].dynamic)
        return frozenset(found)


def record(model: nn.Module, run: Callable[[], Any], inputs: Any, opaque: Iterable[str] = ()) -> Recording:
    """Run ``run()`` (which calls ``model``) without gradients and record all it does.

    A module named in ``opaque`` is recorded as one call of one op.
    """
    recorder = _Recorder(model, inputs, opaque)
    with torch.no_grad(), recorder.ops, recorder:
        run()
    return recorder.recording


def mutates(func: Any) -> bool:
    """The op writes into some of its arguments."""
    schema = getattr(func, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def overwritten(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an op writes into."""
    if not mutates(func):
        return []
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        found += tensors_in(given)
    return found


def results(out: Any, written: Iterable[Tensor]) -> list[Tensor]:
    """What an op made: the tensors it returned and those it overwrote, each once."""
    return list({id(t): t for t in [*tensors_in(out), *written]}.values())


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensor leaves of a pytree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Recorder(Follower):
    def __init__(self, model: nn.Module, inputs: Any, opaque: Iterable[str]) -> None:
        super().__init__(model, opaque)
        self.recording = Recording()
        self.ops = _OpRecorder(self)
        self.versions: dict[int, int] = {}  # id(tensor) -> its present version
        self.storages: dict[int, set[int]] = {}  # storage -> ids of tensors on it
        self.objects: dict[int, Tensor] = {}
        self.calling: int | None = None
        for kind, tensors in (
            ("param", [*model.parameters(), *model.buffers()]),
            ("input", tensors_in(inputs)),
        ):
            for tensor in tensors:
                self.version(tensor, kind)

    # values ------------------------------------------------------------------------------------------------

    def version(self, tensor: Tensor, source: str = "const") -> int:
        """The present version of ``tensor``; a tensor never seen before comes from outside."""
        known = self.versions.get(id(tensor))
        if known is None:
            known = self.new(tensor, None, source, source == "input")
        return known

    def new(self, tensor: Tensor, op: int | None, source: str, dynamic: bool) -> int:
        number = len(self.recording.values)
        self.recording.values.append(Value(tensor, op, source, dynamic))
        self.versions[id(tensor)] = number
        self.objects[id(tensor)] = tensor  # kept alive, so that no id is used twice
        self.storages.setdefault(_storage(tensor), set()).add(id(tensor))
        return number

    def on_call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outer, calls = self.calling, self.recording.calls
        given = tensors_in((args, kwargs))
        call = Call(len(calls), key, func, args, kwargs, tuple(self.version(t) for t in given))
        calls.append(call)
        self.calling = call.index
        try:
            out = func(*args, **kwargs)
        finally:
            self.calling = outer
        call.outs = tuple(self.version(t) for t in tensors_in(out))
        call.overwritten = tuple(at for at, t in enumerate(given) if self.version(t) != call.ins[at])
        return out

    def on_opaque(
        self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        calls, ops = self.recording.calls, self.recording.ops
        ins = tuple(self.version(t) for t in tensors_in((args, kwargs)))
        refs, kwrefs = tree_map(lambda x: Ref(self.version(x)) if isinstance(x, Tensor) else x, (args, kwargs))
        dynamic = any(self.recording.values[i].dynamic for i in ins)
        # Fresh objects, should the module return what it was given: what it returns is its own.
        output = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, output)
        outs = tuple(self.new(t, len(ops), "", dynamic) for t in tensors_in(output))
        call = Call(len(calls), key, func, args, kwargs, ins, outs)
        calls.append(call)
        func.__name__ = OPAQUE
        ops.append(Op(len(ops), func, refs, kwrefs, ins, outs, call.index))
        return output

    def on_module(self, path: str, entry: int, args: Any, output: Any) -> None:
        ins = frozenset(self.version(t) for t in tensors_in(args))
        outs = tuple(self.version(t) for t in tensors_in(output))
        self.recording.returns.append(Returned(path, entry, ins, outs))

    def on_end(self, output: Any) -> Any:
        self.recording.outputs = tuple(
            (number, self.version(leaf))
            for number, (name, leaf) in enumerate(_named_leaves(output))
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and name not in BYPRODUCTS
        )
        return output


def _named_leaves(output: Any) -> list[tuple[str, Any]]:
    """The leaves of an output in the order of its pytree, each with the name of the entry that it is in."""
    if isinstance(output, Mapping):  # by hand: transformers 4.57 gives its outputs no keyed flattening
        return [(str(name), leaf) for name, entry in output.items() for leaf in tree_leaves(entry)]
    return [("", leaf) for leaf in tree_leaves(output)]


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # tensors without storage (fake, functional)
        return -id(tensor)


class _OpRecorder(TorchDispatchMode):
    def __init__(self, owner: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        owner, kwargs = self.owner, kwargs or {}
        if owner.muted:
            return func(*args, **kwargs)
        before = [(t, owner.version(t)) for t in tensors_in((args, kwargs))]
        written = overwritten(func, args, kwargs)
        for tensor in written:  # what it held is about to be lost
            old = owner.version(tensor)
            owner.recording.values[old].tensor = tensor.clone()
            owner.recording.mutated.add(old)
        refs = tree_map(lambda leaf: Ref(owner.version(leaf)) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        out = func(*args, **kwargs)
        self._note(func, refs, tuple(v for _, v in before), out, written)
        return out

    def _note(self, func: Any, refs: Any, ins: tuple[int, ...], out: Any, written: Iterable[Tensor]) -> None:
        owner, recording = self.owner, self.owner.recording
        dynamic = any(recording.values[i].dynamic for i in ins) and func._opname not in _SHAPE_ONLY
        index = len(recording.ops)
        fresh = results(out, written)
        if self._added_product(func, refs, out):
            product = torch.bmm if func._opname == "baddbmm" else torch.mm
            value = product(recording.values[ins[1]].tensor, recording.values[ins[2]].tensor)
            made = owner.new(value, index, "", dynamic)
            recording.ops.append(Op(index, product, refs[0][1:], {}, ins[1:], (made,), owner.calling))
            scaled = {k: v for k, v in refs[1].items() if k == "alpha"}
            refs, ins, index = ((refs[0][0], Ref(made)), scaled), (ins[0], made), index + 1
            func = torch.ops.aten.add.Tensor
        outs = tuple(owner.new(tensor, index, "", dynamic) for tensor in fresh)
        recording.ops.append(Op(index, func, refs[0], refs[1], ins, outs, owner.calling))
        for tensor in written:
            self._spread(tensor, owner.versions[id(tensor)])

    def _added_product(self, func: Any, refs: Any, out: Any) -> bool:
        """addmm and baddbmm of something that is no bias are a product and a sum."""
        if getattr(func, "_opname", "") not in ("addmm", "baddbmm") or len(refs[0]) != 3:
            return False
        if refs[1].get("beta", 1) != 1:
            return False
        added = self.owner.recording.values[refs[0][0].value]
        return added.dynamic and bool(added.tensor.shape == out.shape)

    def _spread(self, written: Tensor, version: int) -> None:
        """Views of an overwritten tensor hold something else now: a version that depends on both."""
        owner, recording = self.owner, self.owner.recording
        for other in list(owner.storages.get(_storage(written), ())):
            if other == id(written):
                continue
            tensor, old = owner.objects[other], owner.versions[other]
            index = len(recording.ops)
            new = owner.new(tensor, index, "", True)
            windows = tuple((*t.shape, *t.stride(), t.storage_offset()) for t in (tensor, written))
            args = (Ref(old), Ref(version), windows, tensor.dim(), written.dim())
            recording.ops.append(Op(index, _seen_through, args, {}, (old, version), (new,), owner.calling))


def _seen_through(view: Tensor, written: Tensor, windows: Any, view_dim: int, written_dim: int) -> Tensor:
    """What ``view`` holds after ``written``, another view of its storage, was overwritten."""
    (a, b), dims = windows, (view_dim, written_dim)
    geometry = [(w[:d], w[d : 2 * d], w[-1]) for w, d in zip((a, b), dims, strict=True)]
    length = max(
        offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 for size, stride, offset in geometry
    )
    storage = view.new_zeros(length)
    for tensor, (size, stride, offset) in zip((view, written), geometry, strict=True):
        storage = torch.as_strided_scatter(storage, tensor, size, stride, offset)
    return storage.as_strided(*geometry[0])
