"""Real trained models under one roof: each is loaded, wired, held to laws 1 and 2, and asked for its circuit.

    python bench/one_roof.py [--method eap] [--set n_steps=300] [--only WORD ...] [--assets DIR] [--json] [--threads 1]

Published models on twelve tasks (../shared/assets), and four models trained here from a committed seed. ``kept`` is the
smallest circuit of the method's scores that is faithful at .9 on the train pairs; ``f`` and ``KL`` are what it is worth
on held-out pairs (other sentences, sequences, sums, games, episodes), f with its 95% interval over their groups.
Law 1 is how far the engine with every edge kept is from the plain model, relative to the largest output; law 2 how far
it is with none kept from the corrupted run, relative to what lies between the two runs; both on held-out pairs. A row
that fails is printed as such, and the others go on; the script ends with 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from roof_assets import ASSETS, Subject
from roof_trained import TRAINED
from torch import Tensor

import voltmeter as vm
from voltmeter.discover import Judge
from voltmeter.discover.question import make_batch
from voltmeter.task import Pairs
from voltmeter.task.gate import gate
from voltmeter.wiring import Wiring
from voltmeter.wiring.inputs import call, output_tensors

SUBJECTS: dict[str, Callable[[Path], Subject]] = {**ASSETS, **TRAINED}
FAITHFUL = 0.9
LAWS = 1e-4  # float32, where the softmax of a deep model makes more of rounding than its sums do
ASIDE = Path(__file__).resolve().parents[2] / "shared" / "assets"


@dataclass(frozen=True)
class Row:
    """One model on one task. ``failure`` is None, or what went wrong in one line; then the figures are None."""

    model: str
    method: str
    seconds: float
    failure: str | None = None
    parameters: int | None = None
    edges: int | None = None
    right: float | None = None  # share of held-out pairs
    law1: float | None = None
    law2: float | None = None
    kept: int | None = None
    f: float | None = None
    f_interval: tuple[float, float] | None = None
    kl_share: float | None = None
    n_held_out: int | None = None
    n_groups: int | None = None


def measure(name: str, assets: Path, method: str, settings: dict[str, Any]) -> Row:
    """The row of one model; whatever is raised stands in it."""
    start = time.perf_counter()
    try:
        figures = _figures(SUBJECTS[name], assets, method, settings)
    except Exception as error:  # noqa: BLE001 (one row must not end the table)
        first = " ".join(str(error).split("\n")[:2])
        return Row(name, method, time.perf_counter() - start, f"{type(error).__name__}: {first}")
    return Row(name, method, time.perf_counter() - start, **figures)


def _figures(build: Callable[[Path], Subject], assets: Path, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    model, task = build(assets)
    wiring = vm.wire(model, task.example)
    law1, law2 = laws(wiring, task.held_out.batch(range(min(16, len(task.held_out)))))
    if max(law1, law2) > LAWS:
        raise RuntimeError(f"law 1 holds to {law1:.0e} and law 2 to {law2:.0e}; {LAWS:.0e} was expected")
    able = gate(task, model)
    if not able.does_it:
        raise RuntimeError(str(able))
    circuit = vm.discover(wiring, task, method=method, **settings).circuit(faithful=FAITHFUL)
    found = Judge(wiring, task, task.held_out, vm.fill.resample()).measure(circuit)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "edges": len(wiring.edges),
        "right": able.right,
        "law1": law1,
        "law2": law2,
        "kept": len(circuit),
        "f": found.normalised,
        "f_interval": found.normalised_interval,
        "kl_share": found.kl_share,
        "n_held_out": found.n_pairs,
        "n_groups": found.n_groups,
    }


def laws(wiring: Wiring, pairs: Pairs) -> tuple[float, float]:
    """How far the engine is from laws 1 and 2 on these pairs: on all that the model returns."""
    batch = make_batch(wiring, pairs, vm.fill.resample())
    with torch.no_grad():
        plain, corrupted = (output_tensors(call(wiring.model, inputs)) for inputs in (batch.clean, batch.corrupted))
        kept, cut = (
            output_tensors(vm.run(wiring, batch.clean, keep, batch.fill, batch.corrupted))
            for keep in (torch.ones(len(wiring.edges)), torch.zeros(len(wiring.edges)))
        )
    return _gap(kept, plain) / max(float(t.abs().max()) for t in plain), _gap(cut, corrupted) / _gap(plain, corrupted)


def _gap(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


# --- the table ------------------------------------------------------------------------------------------------

_HEAD = (
    f"{'model':22}{'parameters':>11}{'edges':>7}{'right':>7}{'law 1':>8}{'law 2':>8}  {'method':9}{'kept':>6}"
    f"{'f':>7}  {'95% interval':15}{'KL':>6}{'pairs':>7}{'groups':>8}{'seconds':>9}"
)


def line(row: Row) -> str:
    """A row as the table shows it."""
    if row.failure is not None:
        return f"{row.model:22}failed after {row.seconds:.0f} s: {row.failure}"
    low, high = row.f_interval or (0.0, 0.0)
    kl = "-" if row.kl_share is None else f"{row.kl_share:.3f}"
    return (
        f"{row.model:22}{row.parameters:>11,}{row.edges:>7,}{row.right:>7.0%}{row.law1:>8.0e}{row.law2:>8.0e}"
        f"  {row.method:9}{row.kept:>6,}{row.f:>7.3f}  {f'{low:.3f} to {high:.3f}':15}{kl:>6}{row.n_held_out:>7}"
        f"{row.n_groups:>8}{row.seconds:>9.1f}"
    )


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="eap")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--only", nargs="*", default=[""], metavar="WORD", help="models whose name has one of these")
    parser.add_argument("--assets", type=Path, default=ASIDE)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = [name for name in SUBJECTS if any(word in name for word in args.only)]
    rows = []
    if not args.json:
        print(_HEAD)
    for name in names:
        rows.append(measure(name, args.assets, args.method, dict(args.set)))
        if not args.json:
            print(line(rows[-1]), flush=True)
    if args.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1))
    return int(not rows or any(row.failure is not None for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
