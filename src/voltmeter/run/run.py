"""``run``: what happens if these edges are cut. Pure: it changes no model and remembers nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from voltmeter.errors import FillError, KeepError, VoltmeterError, counted
from voltmeter.run.attributing import Attribute
from voltmeter.run.engine import Cut
from voltmeter.run.fill import Fill, FillValues
from voltmeter.run.keep import Keep, KeepLike, read_keep
from voltmeter.run.padding import with_positions
from voltmeter.run.reference import ReferenceCut
from voltmeter.run.watch import require_untapped
from voltmeter.wiring.inputs import batch_size, call, expand_rows, refuse_empty
from voltmeter.wiring.tap import LOOPED, Listener, Tap
from voltmeter.wiring.wiring import Wiring


def run(
    wiring: Wiring,
    inputs: Any,
    keep: KeepLike = None,
    fill: Fill | FillValues | None = None,
    corrupted: Any | None = None,
    *,
    axes: str | None = None,
    params: Mapping[str, Tensor] | None = None,
    reference: bool = False,
) -> Any:
    """Run the model with edges cut, and return what the model returns.

    ``keep``: a real number per edge, 1 kept and 0 cut, as a tensor [edge] in ``wiring.edges`` order, a circuit, or a
    list of circuits (run as one batch; outputs gain a leading circuit axis). Other shapes need ``axes``:
    "circuit edge", "example edge" or "example position edge" (the reading position). None keeps all. Gradients flow to
    it (one backward pass per run).

    ``fill``: what cut edges carry (``voltmeter.fill``); a resample fill needs ``corrupted``, the paired inputs.
    ``params``: tensors to use in place of the model's own, by parameter name. ``reference``: use the slow oracle.

    Costs one forward and about one matrix product per reading call. Raises KeepError, FillError; VoltmeterError naming
    the ``params`` of another shape than the model's; WiringError inside ``record`` of the same model.
    """
    _require_wiring(wiring)
    require_untapped(wiring)
    refuse_empty(inputs)
    asked = read_keep(wiring, keep, axes)
    _check_params(wiring, params)
    inputs = with_positions(wiring.model, inputs)
    if asked is None:
        asked = Keep(torch.ones(len(wiring.edges)), "edge")
        fills = FillValues("none", (None,) * len(wiring.streams))
    else:
        fills = _fills(wiring, fill, inputs, corrupted, params)
    if asked.circuits is not None:
        return _circuits(wiring, inputs, asked, fills, params, reference)
    asked = _fitting(wiring, asked, inputs)
    listener: Listener = (ReferenceCut if reference else Cut)(wiring, inputs, asked, fills)
    with Tap(wiring.model, wiring.plan, listener, LOOPED if reference else wiring.modes, params):
        return call(wiring.model, inputs)


def attribute(
    wiring: Wiring,
    inputs: Any,
    fill: Fill | FillValues,
    corrupted: Any | None,
    score: Callable[[Any], Tensor],
) -> tuple[Float64[Tensor, "edge"], Tensor]:
    """The gradient of ``score(outputs)`` (one number, summed over examples) with respect to every edge's keep, at 1.

    Returns it with the score's value. Exact; costs one forward and one backward, and a pull-back per reader.
    """
    require_untapped(wiring)
    inputs = with_positions(wiring.model, inputs)
    listener = Attribute(wiring, inputs, _fills(wiring, fill, inputs, corrupted, None))
    with torch.enable_grad(), Tap(wiring.model, wiring.plan, listener, wiring.modes):
        value = score(call(wiring.model, inputs))
        value.backward()
    return listener.total, value.detach()


def _fills(
    wiring: Wiring,
    fill: Fill | FillValues | None,
    inputs: Any,
    corrupted: Any | None,
    params: Mapping[str, Tensor] | None,
) -> FillValues:
    if isinstance(fill, FillValues):
        return fill
    if fill is None:
        raise FillError("edges are cut, and nothing says what they carry", mend="give fill=voltmeter.fill.zero(), ...")
    if not isinstance(fill, Fill):
        raise FillError(
            f"a {type(fill).__name__} was given for what cut edges carry",
            [repr(fill)],
            "give one of voltmeter.fill, called: zero(), mean(wiring, batches), resample(), tensor(values), ...",
        )
    if corrupted is not None:
        corrupted = with_positions(wiring.model, corrupted)
    return fill.values_for(wiring, inputs, corrupted, params)


def _require_wiring(wiring: object) -> None:
    if not isinstance(wiring, Wiring):
        raise VoltmeterError(
            f"a wiring is run, and a {type(wiring).__name__} was given",
            mend="wire the model first: wiring = voltmeter.wire(model, example)",
        )


def _check_params(wiring: Wiring, params: Mapping[str, Tensor] | None) -> None:
    """Names that the model has not are refused where they are put in its place."""
    if not params:
        return
    model = wiring.model
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    wrong = [
        f"{name}: {list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__} given, "
        f"{list(own[name].shape)} in the model"
        for name, tensor in params.items()
        if name in own and not (isinstance(tensor, Tensor) and tensor.shape == own[name].shape)
    ]
    if wrong:
        what = counted(len(wrong), "of the given params has", "of the given params have")
        raise VoltmeterError(f"{what} another shape than the model's", wrong, "give tensors of these shapes")


def _fitting(wiring: Wiring, keep: Keep, inputs: Any) -> Keep:
    """A keep on the model's device, with batch and position axes that fit the inputs."""
    axes, values = keep.axes.split(), keep.values
    if axes[0] == "example" and values.shape[0] != batch_size(inputs):
        raise KeepError(f"the keep is for {values.shape[0]} examples, the inputs hold {batch_size(inputs)}")
    device = next((p.device for p in wiring.model.parameters()), values.device)
    return Keep(values.to(device), keep.axes)


def _circuits(
    wiring: Wiring, inputs: Any, keep: Keep, fills: FillValues, params: Mapping[str, Tensor] | None, reference: bool
) -> Any:
    """Circuits as one batch: the examples repeated for each, every row with its circuit's keep."""
    count, size = keep.values.shape[0], batch_size(inputs)
    repeated = replace(fills, copies=count)
    rows = Keep(keep.values.repeat_interleave(size, 0), "example edge")
    output = run(
        wiring, expand_rows(inputs, count), rows.values, repeated, axes=rows.axes, params=params, reference=reference
    )
    return by_circuit(wiring, output, count)


def by_circuit(wiring: Wiring, output: Any, count: int) -> Any:
    """What the model returned for circuits as one batch, with every tensor [circuit, batch, ...]. Raises KeepError."""
    leaves, spec = tree_flatten(output)
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            leaves[number] = _apart(leaf, count, number in wiring.rows.whole)
    return tree_unflatten(leaves, spec)


def _apart(tensor: Tensor, count: int, is_whole: bool) -> Tensor:
    """[circuit x batch, ...] -> [circuit, batch, ...]."""
    if is_whole or tensor.dim() == 0 or tensor.shape[0] % count:
        raise KeepError(
            f"the model returns a tensor of shape {list(tensor.shape)}, which mixes the {count} circuits of the batch",
            ["circuits are run as one batch, along axis 0 of every tensor"],
            "run them one by one, or leave out what makes the model sum over its batch (labels, for one)",
        )
    return tensor.reshape(count, -1, *tensor.shape[1:])
