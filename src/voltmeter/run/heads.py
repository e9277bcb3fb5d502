"""What heads write when one query edge, or one key edge, of each is cut, and nothing else about their inputs changes.

One run answers for every layer. Its batch is many blocks of the same examples. Every reader reads the *plain* stream
of the first block, whatever was written in its own, so cuts in one layer do not reach the next; and in each block one
edge of each of some readers is cut besides. As many blocks as the longest list of edges of a reader are all edges.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.run.keep import require_rows_first
from voltmeter.run.padding import with_positions
from voltmeter.run.watch import require_untapped
from voltmeter.wiring.calls import reread
from voltmeter.wiring.inputs import batch_size, call, expand_rows
from voltmeter.wiring.plan import Write
from voltmeter.wiring.tap import Listener, ReadingCall, Tap, readings_of
from voltmeter.wiring.wiring import Wiring

Cuts = Mapping[int, int]  # reader -> which of its edges is cut, counted among its own


class _Blocks(Listener):
    """Block 0 is the plain run; block c + 1 has ``cuts[c]``. ``changes``: head -> plain - cut [cut, *stream shape]."""

    def __init__(
        self, wiring: Wiring, deltas: Mapping[int, Tensor], cuts: Sequence[Cuts], heads: frozenset[int]
    ) -> None:
        self.wiring, self.deltas, self.cuts, self.heads = wiring, deltas, cuts, heads
        self.local = {w: at for members in wiring.plan.stream_writers for at, w in enumerate(members)}
        self.changes: dict[int, Tensor] = {}

    def _by_block(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(len(self.cuts) + 1, -1, *tensor.shape[1:])

    def wrote(self, write: Write, outs: Tensor) -> None:
        for writer, out in zip(write.writers, outs, strict=True):
            if writer in self.heads:
                blocks = self._by_block(out)
                self.changes[writer] = blocks[:1] - blocks[1:]

    def read(self, reading: ReadingCall) -> Any:
        plain = {n: self._by_block(x)[:1].expand_as(self._by_block(x)) for n, x in reading.xs.items()}
        if not any(r.reader in cut for r in reading.site.readings for cut in self.cuts):
            return reread(reading, {n: x.flatten(0, 1) for n, x in plain.items()})
        reads = {n: self._reads(readings_of(reading.site, n), n, x) for n, x in plain.items()}
        return reading.evaluate({n: x.flatten(1, 2) for n, x in reads.items()})

    def _reads(self, readers: list[int], number: int, plain: Tensor) -> Tensor:
        """[reading, block, *x.shape of a block]."""
        state = self.wiring.plan.states[number]
        reads = plain[None].repeat(len(readers), *[1] * plain.dim())
        for block, cut in enumerate(self.cuts, 1):
            for at, reader in enumerate(readers):
                if reader in cut:
                    delta = self.deltas[state.stream][self.local[state.members[cut[reader]]]]
                    reads[at, block] += (state.scales[cut[reader]] * delta).reshape(plain.shape[1:]).to(reads.dtype)
        return reads


def changes_of_heads(
    wiring: Wiring, inputs: Any, deltas: Mapping[int, Tensor], kind: str, max_rows: int
) -> Iterator[tuple[list[Cuts], dict[int, Float[Tensor, "cut ..."]]]]:
    """How what heads write changes when an edge of their queries (``kind`` "q") or keys ("k") is cut, a few at a time.

    ``deltas``: fill - out of the plain run, stream -> [writer, *stream shape]. Yields cuts (one edge of every reader
    that has so many) with, for every head, plain - cut [cut, *stream shape]: softmax, rotary embeddings and what else
    lies between made anew, values as they were. ``max_rows``: examples of all blocks run at once (one cut at least).

    Costs one forward per edge of the reader that has most, and one more per run: not one per edge.
    Raises KeepError where the model's rows cannot be told apart.
    """
    require_untapped(wiring)
    require_rows_first(wiring)
    readers = [r for r in wiring.readers if r.kind == kind]
    heads = frozenset(wiring.writer(name).number for r in readers for name in r.feeds)
    widths = {r.number: len(wiring.plan.states[r.state].members) for r in readers}
    inputs = with_positions(wiring.model, inputs)
    blocks = max(1, max_rows // batch_size(inputs) - 1)
    for first in range(0, max(widths.values(), default=0), blocks):
        last = min(first + blocks, max(widths.values()))
        cuts: list[Cuts] = [{r: at for r, width in widths.items() if at < width} for at in range(first, last)]
        listener = _Blocks(wiring, deltas, cuts, heads)
        with torch.no_grad(), Tap(wiring.model, wiring.plan, listener, wiring.modes):
            call(wiring.model, expand_rows(inputs, len(cuts) + 1))
        yield cuts, listener.changes
