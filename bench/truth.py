"""What a truth costs against the number of edges: random transformers of growing size, in which nothing can be skipped.

    python bench/truth.py [--json] [--picture FILE.html] [--least EDGES] [--most EDGES] [--inputs 4] [--threads 1]

``cuts`` are all single cuts in one batched pass (``us_per_edge`` of them), ``one_by_one`` the same by the engine, one
run per edge, extrapolated from a sample. ``certificate`` is ``truth`` with a limit of 2,000: single cuts, the gap, and
a search for circuits that stops there, because the weights are dense and no exact search over their circuits is to be
had (``states`` says how many it saw). Pairs of edges that restore the output are tried only where there are at most as
many as the limit: ``pairs`` says whether they were, and where they were not the certificate leaves that grade open.
All have d_model 32, d_head 4 and d_mlp 32.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import voltmeter as vm
from voltmeter.rasp.certificate import Certificate
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.effects import further_cuts, run_cut
from voltmeter.rasp.model import CompiledTransformer, Interface, Shape
from voltmeter.rasp.setting import Question, setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.wired import wiring_of

SIZES = ((1, 1), (4, 1), (6, 2), (8, 4), (10, 6), (12, 8), (12, 10))  # layers, heads
LENGTH, VOCABULARY, D_MODEL = 5, 4, 32
SAMPLE = 40  # edges run one by one
LIMIT = 2_000  # of states searched, and of pairs tried


@dataclass(frozen=True)
class Row:
    """Seconds, of one size, and what the certificate rests on."""

    layers: int
    heads: int
    edges: int
    cuts: float
    us_per_edge: float
    one_by_one: float
    certificate: float
    states: int
    pairs: bool


def random_compiled(layers: int, heads: int, inputs: int) -> Compiled:
    """A dense transformer: every weight drawn, scaled so that its stream neither dies nor explodes."""
    generator = torch.Generator().manual_seed(0)
    values = tuple(range(VOCABULARY))
    rows = {**{value: value for value in values}, "BOS": VOCABULARY}
    labels = tuple(f"d{at}" for at in range(D_MODEL))
    face = Interface("random", values, rows, "BOS", "BOS", LENGTH, labels, (0, 1, 2), None)
    model = CompiledTransformer(Shape(VOCABULARY + 1, LENGTH + 1, D_MODEL, layers, heads, 4, D_MODEL), face)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name != "unembedding.weight":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
    given = tuple(itertools.islice(itertools.product(values, repeat=LENGTH), 0, 7 * inputs, 7))
    return Compiled("random", model, given, tuple((None,) * LENGTH for _ in given))


def measure(layers: int, heads: int, inputs: int) -> Row:
    compiled = random_compiled(layers, heads, inputs)
    setting = setting_of(compiled, Question("resample"))
    n = len(setting.machine.edges)
    cuts = _seconds(lambda: further_cuts(setting, run_cut(setting, ()), range(n)))
    wiring = wiring_of(compiled).wiring
    tokens = compiled.model.encode(compiled.inputs)
    fill = vm.fill.zero()
    keeps = 1 - torch.eye(n, dtype=torch.float64)[:: max(1, n // SAMPLE)]
    each = _seconds(lambda: [vm.run(wiring, tokens, keep, fill) for keep in keeps]) / len(keeps)
    made: list[Certificate] = []
    certificate = _seconds(lambda: made.append(truth(compiled, "resample", limit=LIMIT)))
    grades = made[0].grades
    tried = grades.no_restoring_pair is not None
    return Row(layers, heads, n, cuts, 1e6 * cuts / n, each * n, certificate, grades.searched, tried)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        work()
    return time.perf_counter() - started


def picture(rows: list[Row], path: Path) -> None:
    """Seconds against edges, both logarithmic, as a page that stands alone."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, label in (
        ("cuts", "all single cuts, batched"),
        ("certificate", f"certificate (at most {LIMIT:,} states)"),
        ("one_by_one", "cuts one by one"),
    ):
        figure.add_scatter(x=[r.edges for r in rows], y=[getattr(r, name) for r in rows], name=label)
    figure.update_xaxes(type="log", title="edges").update_yaxes(type="log", title="seconds")
    figure.update_layout(title="Truth: cost against the number of edges")
    figure.write_html(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--picture", type=Path, help="write a picture there")
    parser.add_argument("--least", type=int, default=0, help="leave out models of fewer edges")
    parser.add_argument("--most", type=int, default=25_000, help="leave out models of more edges")
    parser.add_argument("--inputs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows: list[Row] = []
    for layers, heads in SIZES:
        before = [2 + layer * (heads + 1) for layer in range(layers + 1)]
        if not asked.least <= sum(3 * heads * n + n + heads for n in before[:-1]) + before[-1] <= asked.most:
            continue
        rows.append(measure(layers, heads, asked.inputs))
        if not asked.json:
            _print_row(rows[-1], header=len(rows) == 1)
    if asked.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    if asked.picture is not None:
        picture(rows, asked.picture)


def _print_row(row: Row, header: bool) -> None:
    if header:
        columns = f"{'layers x heads':>14} {'edges':>8} {'cuts':>9} {'per edge':>10} {'one by one':>11}"
        print(f"{columns} {'certificate':>11} {'states':>7} {'pairs':>5}")
    size = f"{row.layers} x {row.heads}"
    figures = f"{row.cuts:>8.2f}s {row.us_per_edge:>8.0f}us {row.one_by_one:>10.1f}s"
    figures += f" {row.certificate:>10.2f}s {row.states:>7,} {'yes' if row.pairs else 'no':>5}"
    print(f"{size:>14} {row.edges:>8,} {figures}", flush=True)


if __name__ == "__main__":
    main()
