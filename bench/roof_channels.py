"""A circuit of a network that plays Go, channel by channel: of what each block writes, what does its policy need?

    python bench/roof_channels.py [--method eap] [--pairs N] [--chosen-on N] [--at-a-time 2] [--assets DIR] [--json]

The trunk of katago_b6c96 is one stream of 96 channels, to which the first convolution and six blocks write. Each
channel of each of them is a part, and can be cut from each later block or from the heads: 2,688 edges. The task is that
of ``one_roof.py``: the network's own best move, against another position on a board of the same size.

Edges are scored on the train positions. Circuits of several sizes are measured on some of these; the smallest that is
faithful at .9, half of it, and as many edges at random are then measured on the positions held out (of other games). A
part holds a whole stream, 93 MB of them a pair, so that few pairs are run at a time and nothing of them is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from one_roof import ASIDE, FAITHFUL
from roof_assets import go
from torch import Tensor

import voltmeter as vm
from voltmeter.circuit import Circuit
from voltmeter.discover.intervals import Groups, interval
from voltmeter.discover.question import Batch, cut_answers, make_batch, plain_answers
from voltmeter.task import Pairs, Task
from voltmeter.task.metric import KL
from voltmeter.wiring import Wiring

SIZES = (64, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 2496, 2688)


@dataclass(frozen=True)
class Row:
    """A circuit on some pairs."""

    circuit: str
    pairs: str
    edges: int
    f: float
    f_interval: tuple[float, float]
    kl_share: float
    n_pairs: int
    seconds: float

    @property
    def faithful(self) -> bool:
        """As ``scores.circuit(faithful=.9)`` asks: the interval's lower end, too."""
        near = self.f_interval[0] >= FAITHFUL and self.f <= 2 - FAITHFUL
        return near and self.kl_share <= 1 - FAITHFUL


def by_channel(wiring: Wiring) -> Wiring:
    """The same wiring, every writer split into the channels that it writes."""
    for writer in wiring.writers:
        wiring = wiring.split(writer.name, "channels")
    return wiring


def measured(
    wiring: Wiring, task: Task, circuits: Mapping[str, Circuit], pairs: Pairs, name: str, at_a_time: int
) -> list[Row]:
    """What each circuit is worth on the pairs, by the definitions of ``Judge``."""
    start = time.perf_counter()
    keeps = [torch.zeros(len(wiring.edges)), *(circuit.mask(torch.float32) for circuit in circuits.values())]
    parts = []
    with torch.no_grad():
        for part in pairs.batches(at_a_time):
            batch = make_batch(wiring, part, vm.fill.resample())
            full = plain_answers(wiring, batch, task.metric)
            answers = [full, *(cut_answers(wiring, batch, keep, task.metric) for keep in keeps)]
            parts.append(torch.stack([_values(task, batch, each, full) for each in answers]))
    values, divergences = torch.cat(parts, -1).unbind(1)
    seconds, groups = (time.perf_counter() - start) / len(circuits), Groups(pairs.groups)
    gained, lost = values - values[1], divergences / divergences[1].mean()
    spread = groups.drawn(gained)
    return [
        Row(
            circuit,
            name,
            len(circuits[circuit]),
            float(gained[n].mean() / gained[0].mean()),
            interval(spread[n] / spread[0]),
            float(lost[n].mean()),
            len(pairs),
            seconds,
        )
        for n, circuit in enumerate(circuits, start=2)
    ]


def _values(task: Task, batch: Batch, answers: object, full: object) -> Tensor:
    """[metric and divergence, pair]."""
    return torch.stack([metric(answers, batch.pairs, full=full).double() for metric in (task.metric, KL)])


def table(circuit: Circuit) -> Counter[tuple[str, str]]:
    """How many channels of each writer the circuit keeps for each reader."""
    return Counter((row.writer.rpartition(".")[0], row.reader) for row in circuit.table())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="eap")
    parser.add_argument("--pairs", type=int, default=512, metavar="N", help="train and held-out positions, at most")
    parser.add_argument("--chosen-on", type=int, default=64, metavar="N", help="train positions that choose the size")
    parser.add_argument("--at-a-time", type=int, default=2, metavar="N", help="pairs in a run; 0.6 GB each")
    parser.add_argument("--assets", type=Path, default=ASIDE)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model, whole = go(args.assets)
    train, held_out = (side.batch(range(min(args.pairs, len(side)))) for side in (whole.train, whole.held_out))
    task = Task(whole.name, train, held_out, whole.metric, whole.how)
    wiring = by_channel(vm.wire(model, train.batch(range(2)).clean))
    print(f"{len(wiring.writers)} writers, {len(wiring.edges):,} edges", file=sys.stderr)
    scores, random = (
        vm.discover(wiring, task, method=name, batch_size=args.at_a_time) for name in (args.method, "random")
    )
    few = train.batch(range(min(args.chosen_on, len(train))))
    sizes = {f"{args.method}, {n}": scores.top(n) for n in SIZES}
    rows = measured(wiring, task, sizes, few, "train", args.at_a_time)
    for row in rows:
        _show(row, args.json)
    size = next((row.edges for row in rows if row.faithful), len(scores))
    ours = {f"{args.method}, {n}": scores.top(n) for n in (size // 2, size)}
    rows += measured(wiring, task, ours | {"random": random.top(size)}, held_out, "held-out", args.at_a_time)
    for row in rows[-3:]:
        _show(row, args.json)
    kept = table(scores.top(size))
    if args.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "kept": [[*edge, n] for edge, n in kept.items()]}))
        return 0
    for (writer, reader), count in sorted(kept.items()):
        print(f"{writer} -> {reader}: {count} of 96 channels")
    return 0


def _show(row: Row, as_json: bool) -> None:
    low, high = row.f_interval
    line = f"{row.circuit:12}{row.pairs:10}{row.edges:>6,} edges  f {row.f:.3f} ({low:.3f} to {high:.3f})"
    print(
        f"{line}  KL {row.kl_share:.3f}  {row.n_pairs} pairs  {row.seconds:.0f} s", file=sys.stderr if as_json else None
    )


if __name__ == "__main__":
    raise SystemExit(main())
