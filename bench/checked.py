"""The battery on real models: a circuit is found, every check is made, and the findings are written.

    python bench/checked.py NAME [--assets DIR] [--out DIR] [--budget S] [--steps N] [--threads 1]

NAME is one of

    arena_palindrome             is a list of twenty numbers a palindrome?
    stories260K                  he or she?
    gbmi_induction               what followed this letter before?
    dt_minigrid_memory           a decision transformer turns one way if success is asked for, the other if it is not
    katago_b6c96                 which parts of a Go network, kept, make it prefer the moves it likes least? (blocks)
    katago_b6c96-line3           the same, moves on the first two lines not counted
    katago_b6c96-channels        the same as the first, of every block's 96 channels each by itself
    katago_b6c96-channels-line3

A line for each finding is printed; with ``--out``, DIR/NAME holds findings.json and findings.html. Without a budget
every check does all it has planned, and says the same each time.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from checked_go import beside, most_surprising, retargeting
from one_roof import ASIDE
from roof_assets import ASSETS, Subject, windows
from roof_channels import by_channel
from torch import Tensor, nn

import voltmeter as vm
from voltmeter.check import Findings, checks
from voltmeter.check.files import FINDINGS, FINDINGS_PAGE, findings_bytes
from voltmeter.circuit import Circuit
from voltmeter.discover import Judge
from voltmeter.files import write_directory
from voltmeter.report.findings import findings_page
from voltmeter.run.fill import Fill
from voltmeter.task import Pairs, Task
from voltmeter.wiring import Wiring
from voltmeter.wiring.models.decision import load_decision

FAITHFUL = 0.9


@dataclass(frozen=True)
class Found:
    """A circuit, and what it is to answer. ``beside``: figures that its metric is to be seen beside."""

    wiring: Wiring
    task: Task
    circuit: Circuit
    fill: Fill
    beside: dict[str, float] = field(default_factory=dict)


Find = Callable[[Path, int | None], Found]


# --- circuits that do what the model does ---------------------------------------------------------------------


def faithful(build: Callable[[Path], Subject]) -> Find:
    """The smallest circuit of eap's scores that is faithful on the train pairs, under resample."""

    def find(assets: Path, steps: int | None) -> Found:
        model, task = build(assets)
        wiring = vm.wire(model, task.example)
        return Found(
            wiring, task, vm.discover(wiring, task, method="eap").circuit(faithful=FAITHFUL), vm.fill.resample()
        )

    return find


def returns(assets: Path) -> Subject:
    """Every recorded moment at which the return asked for decides: success (1) against failure (0), all else equal.

    There are four such moments, the fork of the corridor in each of four rooms, and each is asked both ways: nothing
    is left to hold out.
    """
    model = load_decision(assets / "dt_minigrid_memory")
    inputs, _, _ = windows(assets / "dt_minigrid_memory" / "episodes.npz", model)
    return model, Task("return", *[fork(model, inputs)] * 2, how={"names": {"0": "left", "1": "right", "2": "forward"}})


def fork(model: nn.Module, inputs: dict[str, Tensor]) -> Pairs:
    """The rows of ``inputs`` whose action changes when the other return is asked for, each against that."""
    other = inputs | {"returns": 1 - inputs["returns"]}
    with torch.no_grad():
        action, changed = (model(**some)[:, -1].argmax(-1) for some in (inputs, other))
    rows = (action != changed).nonzero().flatten()
    clean, corrupted = ({name: tensor[rows] for name, tensor in some.items()} for some in (inputs, other))
    seen = [states.numpy().tobytes() for states in clean["states"]]
    rooms = {moment: f"room {n}" for n, moment in enumerate(dict.fromkeys(seen))}
    last = torch.full((len(rows),), inputs["returns"].shape[1] - 1)
    groups = [rooms[moment] for moment in seen]
    return Pairs.of(clean, corrupted, answers=action[rows], wrong=changed[rows], position=last, groups=groups)


# --- a network that plays Go, retargeted ----------------------------------------------------------------------


def retargeted(line: int, channels: bool) -> Find:
    """The parts that, kept, surprise the full network most; what is cut is zero."""

    def find(assets: Path, steps: int | None) -> Found:
        side, train, held_out, at_a_time = (13, 18, 17, 4) if channels else (19, 64, 128, 8)
        model, task = retargeting(assets, line, side, train, held_out)
        wiring = vm.wire(model, task.example)
        wiring = by_channel(wiring) if channels else wiring
        settings = {"n_steps": steps or (40 if channels else 100), "objective": "metric", "scale": None}
        scores = vm.discover(wiring, task, method="edge-sp", fill="zero", batch_size=at_a_time, **settings)
        n = len(wiring.edges)
        sizes = sorted({max(1, round(n * share)) for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)})
        sizes = sizes if channels else list(range(1, n + 1))
        circuit = most_surprising(wiring, task, scores, sizes)
        return Found(wiring, task, circuit, vm.fill.zero(), beside(wiring, task, circuit, line))

    return find


FINDS: dict[str, Find] = {
    "arena_palindrome": faithful(ASSETS["arena_palindrome"]),
    "stories260K": faithful(ASSETS["stories260K pronoun"]),
    "gbmi_induction": faithful(ASSETS["gbmi_induction"]),
    "dt_minigrid_memory": faithful(returns),
    "katago_b6c96": retargeted(1, channels=False),
    "katago_b6c96-line3": retargeted(3, channels=False),
    "katago_b6c96-channels": retargeted(1, channels=True),
    "katago_b6c96-channels-line3": retargeted(3, channels=True),
}


# --- the checks -----------------------------------------------------------------------------------------------


def described(found: Found) -> str:
    """The circuit, what it is worth by its metric, and its edges."""
    worth = Judge(found.wiring, found.task, found.task.held_out, found.fill).measure(found.circuit)
    edges = ", ".join(found.circuit.names[:40]) + (" ..." if len(found.circuit) > 40 else "")
    return (
        f"{len(found.circuit):,} of {len(found.circuit.edges):,} edges; {worth.metric} on held-out pairs: "
        f"full model {worth.full:.2f}, circuit {worth.circuit:.2f}, nothing kept {worth.nothing_kept:.2f}"
        + "".join(f", {name} {value:.2f}" for name, value in found.beside.items())
        + f"\n{edges}"
    )


def write(out: Path, findings: Findings) -> None:
    """``findings.json`` and ``findings.html``, in place of those that stand there."""
    page = findings_page(findings, {each.name: each.asks for each in checks()})
    write_directory(out, {FINDINGS: findings_bytes(findings), FINDINGS_PAGE: page.encode()}, replace=out.exists())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FINDS)
    parser.add_argument("--assets", type=Path, default=ASIDE)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--budget", type=float, metavar="S", help="seconds for all checks together")
    parser.add_argument("--only", nargs="*", metavar="CHECK")
    parser.add_argument("--steps", type=int, help="of edge-sp, where it is used")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    start = time.perf_counter()
    found = FINDS[args.name](args.assets, args.steps)
    print(f"{described(found)}\n{time.perf_counter() - start:.0f} s to find it\n", flush=True)
    findings = vm.check(
        found.circuit,
        found.task,
        wiring=found.wiring,
        only=args.only,
        budget=args.budget,
        told=lambda finding: print(f"{finding}  [{finding.seconds:.0f} s]", flush=True),
    )
    print(f"\n{findings.counts}; {time.perf_counter() - start:.0f} s")
    if args.out is not None:
        write(args.out / args.name, findings)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
