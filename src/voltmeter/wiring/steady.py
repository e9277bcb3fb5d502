"""What is wired must hold for every input: the same answer twice, the same graph for other data and other sizes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from voltmeter.errors import WiringError
from voltmeter.wiring.algebra import base_name
from voltmeter.wiring.inputs import altered, call, expand_rows, output_tensors, shorter
from voltmeter.wiring.layout import Layout
from voltmeter.wiring.naming import signature
from voltmeter.wiring.rows import REFUSALS
from voltmeter.wiring.streams import Survey
from voltmeter.wiring.trace import Recording
from voltmeter.wiring.verify import tolerance_of


def refuse_unsteady(
    model: nn.Module, inputs: Any, layout: Layout, alone: Survey | Exception, trace: Callable[[Any], Survey]
) -> None:
    """Raises WiringError when the wiring depends on chance, data, batch size or length. ``alone``: see ``rows``."""
    recording = layout.survey.recording
    with torch.no_grad():
        first, again = (output_tensors(call(model, inputs)) for _ in range(2))
    if not first or not all(bool(torch.isfinite(t).all()) for t in first):
        raise WiringError(
            "the model's output is not finite" if first else "the model returns no floating-point tensor",
            mend="check the example and the weights",
        )
    rounding = tolerance_of(recording) / 100  # some kernels add up in another order each time
    if not all(_close(a, b, rounding) for a, b in zip(first, again, strict=True)):
        raise WiringError(
            "the model gives two answers to the same input",
            [f"random numbers are drawn in {place}" for place in _random_places(recording)],
            "switch dropout and other randomness off",
        )
    for what, found in _others(inputs, alone, trace):
        differences = _differences(signature(layout.survey), signature(found)) or _moved_columns(layout, found)
        if differences:
            raise WiringError(
                f"the model's wiring changes with its input ({what})",
                differences,
                "what is computed must not depend on the data, the batch size or the length",
            )


def _close(a: Tensor, b: Tensor, rounding: float) -> bool:
    return bool((a - b).abs().max() <= rounding * a.abs().max()) if a.numel() else True


def _others(inputs: Any, alone: Survey | Exception, trace: Callable[[Any], Survey]) -> Iterator[tuple[str, Survey]]:
    if isinstance(alone, Exception):
        yield "twice the rows", trace(expand_rows(inputs, 2))
    else:
        yield "one row", alone
    yield "other data", trace(altered(inputs))
    short = shorter(inputs)
    if short is None:
        return
    try:
        found = trace(short)
    except REFUSALS:  # a model of fixed length
        return
    yield "one position less", found


def _random_places(recording: Recording) -> list[str]:
    names = ("rand", "bernoulli", "dropout", "normal", "uniform", "multinomial", "exponential")
    places = [
        recording.calls[op.call].key.place
        for op in recording.ops
        if op.call is not None and any(base_name(op).startswith(name) for name in (*names, "native_dropout"))
    ]
    return list(dict.fromkeys(places)) or ["a place that could not be found"]


def _differences(a: Sequence[str], b: Sequence[str]) -> list[str]:
    lost, gained = Counter(a) - Counter(b), Counter(b) - Counter(a)
    found = [f"only before: {name}" for name in lost] + [f"only now: {name}" for name in gained]
    return found or ([] if a == b else ["the same components in another order"])


def _moved_columns(layout: Layout, other: Survey) -> list[str]:
    """Outputs divided into columns must have the same columns in the other run."""
    shapes = {c.key: [other.recording.values[v].tensor.shape for v in c.outs] for c in other.recording.calls}
    recording = layout.survey.recording
    moved = []
    for row in layout.readers:
        for split in row.wish.splits:
            made = recording.calls[recording.ops[recording.values[split.value].op or 0].call or 0]
            mine = recording.values[split.value].tensor.shape[split.lead :]
            theirs = shapes.get(made.key)
            if theirs is None or theirs[made.outs.index(split.value)][split.lead :] != mine:
                moved.append(f"{made.key.place}: the columns of its parts")
    return moved
