"""Many circuits that begin to differ at some reader, each run from there on.

Cutting an edge changes nothing before its reader. So what comes before is computed once, under the keep that the
circuits share, and only what comes after is run, for all circuits as one batch. The deltas of writers before the start
are the same for every circuit and kept once; readers that the circuits treat alike mix them once.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from voltmeter.errors import KeepError
from voltmeter.run.batched import Rehearsed, Shared, Suffix
from voltmeter.run.engine import Cut
from voltmeter.run.fill import FillValues
from voltmeter.run.keep import Keep, require_rows_first
from voltmeter.run.late import Late, only_at
from voltmeter.run.padding import with_positions
from voltmeter.run.run import by_circuit
from voltmeter.run.watch import require_untapped
from voltmeter.wiring.inputs import call, device_of, expand_rows
from voltmeter.wiring.resume import NotAsRehearsed, Rehearsal, Resumed, Start
from voltmeter.wiring.tap import Tap
from voltmeter.wiring.wiring import Wiring

_ENTRIES = 1 << 21  # of a stream, over all circuits of a run
_MOST_CIRCUITS = 64


class Prefix:
    """A batch of inputs, rehearsed under ``keep``, on which ``circuits`` circuits can be run at a time.

    ``circuits`` None: as many as are worth it. Costs one forward of the batch with edges cut and one of ``circuits``
    times the batch. Holds the deltas of the batch [writer, *stream] and, per reading call, what later calls use of the
    repeated batch. ``late``: what ``late_products`` found for these examples; what ``run`` returns is then right at its
    positions only. Raises KeepError for less than one circuit, or a keep of another size.
    """

    def __init__(
        self,
        wiring: Wiring,
        inputs: Any,
        fill: FillValues,
        circuits: int | None = None,
        keep: Float[Tensor, "edge"] | None = None,
        late: Late | None = None,
    ) -> None:
        require_untapped(wiring)
        require_rows_first(wiring)
        self.wiring = wiring
        self.keep = _in_common(wiring, keep).to(device_of(wiring.model))
        if circuits is not None and circuits < 1:
            raise KeepError(f"{circuits} circuits at a time were asked for, at least 1 was expected")
        inputs = with_positions(wiring.model, inputs)
        with torch.no_grad():
            once = Cut(wiring, inputs, Keep(self.keep, "edge"), fill)
            with Tap(wiring.model, wiring.plan, once, wiring.modes):
                call(wiring.model, inputs)
            deltas = once.tape.delta
            self.circuits = _fitting(deltas) if circuits is None else circuits
            self._inputs = expand_rows(inputs, self.circuits)
            self._late = None if late is None else late.repeated(self.circuits)
            self._fill = replace(fill, copies=self.circuits)
            every = self.keep.expand(self.circuits, -1)
            self._shared = Shared(deltas, {}, {})
            whole = Rehearsed(wiring, self._inputs, every, self._fill, self._shared)
            self._rehearsal = Rehearsal(wiring.model, wiring.plan, whole, wiring.modes, whole.at_hand)
            with self._rehearsal:
                call(wiring.model, self._inputs)
        self._starts: dict[int, Start | None] = {}
        self._calls = _calls_by_reader(wiring, self._rehearsal.site_calls)

    @torch.no_grad()
    def run(self, keep: Float[Tensor, "circuit edge"]) -> Any:
        """What ``run(wiring, inputs, keep, axes="circuit edge")`` returns, for up to ``circuits`` circuits.

        Only what comes after the first reader in which a circuit differs from the shared keep is computed. No gradients
        flow. Raises KeepError for more circuits than were rehearsed.
        """
        count = len(keep)
        if not 1 <= count <= self.circuits or keep.shape[1:] != self.keep.shape:
            raise KeepError(
                f"a keep of shape {list(keep.shape)} was given",
                [f"1 to {self.circuits} circuits of {len(self.keep):,} edges were rehearsed for"],
            )
        shared = self.keep.to(torch.promote_types(keep.dtype, self.keep.dtype))
        full = torch.cat([keep.to(shared), shared.expand(self.circuits - count, -1)])
        first = self._first_call((full != self.keep).any(0))
        try:
            output = self._made(full, self._start(first))
        except NotAsRehearsed:
            self._starts[first] = None
            output = self._made(full, None)
        split = by_circuit(self.wiring, output, self.circuits)
        return tree_map(lambda leaf: leaf[:count] if isinstance(leaf, Tensor) else leaf, split)

    def _made(self, keep: Tensor, start: Start | None) -> Any:
        """What the model returns for the repeated batch, run from ``start`` or whole."""
        wiring = self.wiring
        listener = Suffix(wiring, self._inputs, keep, self._fill, self._shared, start)
        given = (wiring.model, wiring.plan, listener, wiring.modes)
        with only_at(self._late), Tap(*given) if start is None else Resumed(*given, start):
            return call(wiring.model, self._inputs)

    def _first_call(self, differs: Tensor) -> int:
        """The first call that reads for a reader of these edges."""
        readers = self.wiring.edges.reader_numbers[differs.cpu()].unique().tolist()
        return min((self._calls[reader] for reader in readers), default=max(self._calls.values()))

    def _start(self, first: int) -> Start | None:
        """From where to run circuits that differ in what this call reads."""
        if first not in self._starts:
            self._starts[first] = self._rehearsal.start(first)
        return self._starts[first]


def _in_common(wiring: Wiring, keep: Tensor | None) -> Tensor:
    """What the circuits of a prefix share, a real number per edge."""
    n = len(wiring.edges)
    if keep is not None and tuple(keep.shape) != (n,):
        raise KeepError(f"what circuits have in common has shape {list(keep.shape)}, [{n}] was expected")
    return torch.ones(n) if keep is None else keep.detach().to(torch.promote_types(keep.dtype, torch.float32))


def _fitting(deltas: Mapping[int, Tensor]) -> int:
    """How many circuits at a time: streams of about eight megabytes in float32, which is where time per circuit levels
    off; fewer cost more each, more only need room."""
    largest = max(delta[0].numel() for delta in deltas.values())
    return max(1, min(_MOST_CIRCUITS, _ENTRIES // largest))


def _calls_by_reader(wiring: Wiring, site_calls: Mapping[int, int]) -> dict[int, int]:
    """Reader -> number of the first call that reads for it (a gated MLP makes two)."""
    first: dict[int, int] = {}
    for site in wiring.plan.sites:
        for reading in site.readings:
            at = site_calls[site.number]
            first[reading.reader] = min(at, first.get(reading.reader, at))
    return first
