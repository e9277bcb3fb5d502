"""``wire``: trace a model once, find its streams, divide its components, verify. One page of passes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from voltmeter.errors import AddressError, WiringError, counted, nearest
from voltmeter.wiring import verify
from voltmeter.wiring.fitness import refuse_no_model, refuse_unfit
from voltmeter.wiring.inputs import batch_size, call, paired, refuse_empty, unwrapped
from voltmeter.wiring.layout import WHOLE, Layout, lay_out
from voltmeter.wiring.plan import Plan, Site
from voltmeter.wiring.planner import make_plan
from voltmeter.wiring.rows import Rows, compare_rows, trace_alone
from voltmeter.wiring.steady import refuse_unsteady
from voltmeter.wiring.streams import Survey
from voltmeter.wiring.survey import survey
from voltmeter.wiring.tap import refuse_tapped
from voltmeter.wiring.trace import record
from voltmeter.wiring.wiring import Edges, Reader, Stream, Verified, Wiring, Writer


def wire(
    model: nn.Module, example: Any, divisions: Mapping[str, str] | None = None, *, declare: Iterable[str] = ()
) -> Wiring:
    """Read a model's wiring off one traced run, and verify it.

    ``example`` is an input of the model (a tensor, a tuple or a mapping; axis 0 of every tensor is the batch), of
    ordinary length; at most three of its rows are used. ``divisions`` says how components are divided, by name (see
    ``Wiring.split``); by default attention into heads, and plain networks into units or channels. ``declare`` names
    modules (by path) of which each is to be one opaque component: it ends the streams it reads, and begins another.

    Costs about thirteen forward passes on those rows, and holds on to the tensors of one. Raises WiringError when the
    model is not fit to be wired, when a stream cannot be read, when the graph depends on the data, the batch size or
    the length, and when the sums or laws 1 and 2 do not hold; AddressError for names that match nothing.
    """
    model = unwrapped(model)
    refuse_no_model(model)
    refuse_empty(example)
    refuse_tapped(model)
    refuse_unfit(model)
    opaque = _declared(model, declare)
    inputs, divisions = paired(example), dict(divisions or {})
    with torch.inference_mode(False), _open_attention():
        found = _traced(model, inputs, opaque)
        layout = lay_out(found, divisions)
        alone = trace_alone(lambda row: _traced(model, row, opaque), inputs)
        refuse_unsteady(model, inputs, layout, alone, lambda other: _traced(model, other, opaque))
        rows = compare_rows(found, alone, batch_size(inputs), verify.tolerance_of(found.recording))
        return _finished(model, inputs, layout, divisions, opaque, rows)


def divide(wiring: Wiring, name: str, into: str) -> Wiring:
    """Another division of one component (given by its name, or by that of one of its parts); no new trace."""
    return _divided(wiring, {**wiring.divisions, wiring.component_of(name): into})


def coarsen(wiring: Wiring) -> Wiring:
    """Every component whole."""
    return _divided(wiring, dict.fromkeys(wiring.components, WHOLE))


def _divided(wiring: Wiring, divisions: Mapping[str, str]) -> Wiring:
    refuse_tapped(wiring.model)
    with torch.inference_mode(False):
        layout = lay_out(wiring.survey, divisions)
        return _finished(wiring.model, wiring.example, layout, divisions, wiring.plan.opaque, wiring.rows)


# passes ---------------------------------------------------------------------------------------------------


def _declared(model: nn.Module, paths: Iterable[str]) -> frozenset[str]:
    known = {path for path, _ in model.named_modules()} - {""}
    declared = frozenset([paths] if isinstance(paths, str) else paths)
    unknown = sorted(declared - known)
    if unknown:
        raise AddressError(
            f"{counted(len(unknown), 'of the declared modules is', 'of the declared modules are')} not in the model",
            [f"'{path}': {nearest(path, sorted(known))}" for path in unknown],
            "see dict(model.named_modules()); the model itself cannot be declared",
        )
    return declared


def _traced(model: nn.Module, inputs: Any, opaque: frozenset[str]) -> Survey:
    recording = record(model, lambda: call(model, inputs), inputs, opaque)
    missed = opaque - {recorded.key.module for recorded in recording.calls}
    if missed:
        raise AddressError(
            f"{len(missed)} of the declared modules did not run, or took no tensor and gave none",
            sorted(missed),
            "declare modules that the model calls on this example",
        )
    return survey(recording)


@contextmanager
def _open_attention() -> Iterator[None]:
    """Attention spelled out in small ops while a model is traced.

    nn.MultiheadAttention's fast path hides its products, and the fused kernels differ from device to device and
    cannot all be differentiated again from their recorded arguments.
    """
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def _finished(
    model: nn.Module, inputs: Any, layout: Layout, divisions: Mapping[str, str], opaque: frozenset[str], rows: Rows
) -> Wiring:
    """Plan, nodes, edges, verification."""
    plan = make_plan(layout.survey, [w.wish for w in layout.writers], [r.wish for r in layout.readers], opaque)
    writers, readers = _writers(layout), _readers(layout, plan)
    streams = tuple(
        Stream(
            name,
            tuple(w.name for w in writers if w.stream == number),
            tuple(r.name for r in readers if r.stream == number),
        )
        for number, name in enumerate(layout.streams)
    )
    tolerance = verify.tolerance_of(layout.survey.recording)
    sum_error = verify.sums(model, plan, inputs, tolerance)
    modes = verify.find_modes(model, plan, inputs)
    law1, law2 = verify.laws(model, plan, inputs, modes, tolerance)
    return Wiring(
        model=model,
        streams=streams,
        writers=writers,
        readers=readers,
        edges=Edges(writers, readers, [state.members for state in plan.states]),
        verified=Verified(sum_error, law1, law2),
        example=inputs,
        survey=layout.survey,
        plan=plan,
        modes=modes,
        rows=rows,
        divisions=dict(divisions),
    )


def _writers(layout: Layout) -> tuple[Writer, ...]:
    rows = [(name, row) for row in layout.writers for name in row.wish.names]
    _refuse_namesakes("writers", [name for name, _ in rows])
    return tuple(
        Writer(name, number, row.stream, row.module, row.kind, row.component, row.linearised)
        for number, (name, row) in enumerate(rows)
    )


def _readers(layout: Layout, plan: Plan) -> tuple[Reader, ...]:
    state_of = dict(pair for site in plan.sites for pair in _states_read(site))
    readers: list[Reader] = []
    for row in layout.readers:
        stream = row.wish.component.stream
        for name, kind, feeds in zip(row.wish.names, row.kinds, row.feeds, strict=True):
            number = len(readers)
            readers.append(Reader(name, number, stream, state_of[number], row.module, kind, row.component, feeds))
    _refuse_namesakes("readers", [reader.name for reader in readers])
    return tuple(readers)


def _states_read(site: Site) -> Iterator[tuple[int, int]]:
    """(reader, state) for every reading of a site."""
    states = site.states if len(site.states) > 1 else site.states * len(site.readings)
    return ((reading.reader, state) for reading, state in zip(site.readings, states, strict=True))


def _refuse_namesakes(kind: str, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise WiringError(f"two {kind} have one name", twice, "report this model")
