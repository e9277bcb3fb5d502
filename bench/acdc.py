"""Fast ACDC against sequential ACDC: the same decisions, and what each costs per edge.

    python bench/acdc.py [--programs N] [--palindrome DIR] [--stories DIR] [--thresholds a,b] [--pairs P] [--json]

Each row is one model and threshold: edges, edges kept, decisions made by trying (of an edge whose reader leads nowhere
the decision needs no trial), whether every decision is the same, and the cost of both forms in forwards of the plain
model on the same pairs, timed around them in the same process: per edge decided, and per edge tried. A program's
threshold is a share of the squared distance of nothing kept, a trained model's one of its KL.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import voltmeter as vm
from voltmeter.discover import ask
from voltmeter.discover.acdc import Acdc
from voltmeter.discover.known import known_question
from voltmeter.discover.method import final_state
from voltmeter.discover.question import Question
from voltmeter.errors import VoltmeterError
from voltmeter.rasp.generate import generate
from voltmeter.rasp.programs import compiled
from voltmeter.rasp.setting import Question as Cut
from voltmeter.rasp.setting import setting_of
from voltmeter.rasp.wired import wiring_of
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.inputs import call

SIZES = (2, 4, 8, 12)
Ask = Callable[[], Question]


def programs(count: int) -> Iterator[tuple[str, Ask, str]]:
    """Random programs whose output changes when nothing is kept, under resample: the first ``count`` of them."""
    seed = found = 0
    while found < count:
        model = compiled(generate(seed, SIZES[seed // 2 % 4]), limit=128)
        name, seed = f"random:{seed}", seed + 1
        try:
            wiring = wiring_of(model).wiring
            setting = setting_of(model, Cut(fill="resample"))

            def question(model: Any = model, wiring: Any = wiring, setting: Any = setting) -> Question:
                return known_question(model, wiring, setting, "distance", batch_size=len(model.inputs))

            question()
        except VoltmeterError:
            continue
        found += 1
        yield name, question, "metric"


def palindrome(directory: Path, pairs: int) -> tuple[str, Ask, str]:
    """Is this list a palindrome? Corrupted: the same list with one number of its first half changed."""
    data = load_file(directory / "data.safetensors")
    tokens = data["tokens"][data["is_palindrome"].bool()][:pairs].long()
    other, rows = tokens.clone(), torch.arange(len(tokens))
    at = 1 + rows % 10
    other[rows, at] = (other[rows, at] + 7) % 31
    ones = [1] * len(tokens)
    made = Pairs.of(tokens, other, ones, [0] * len(tokens), position=[tokens.shape[1] - 1] * len(tokens))
    model, _ = vm.load(f"hooked:{directory}?attention=causal")
    wiring = vm.wire(model, tokens[:2])
    task = Task("palindrome", made, made)
    return "arena_palindrome", lambda: ask(wiring, task, batch_size=pairs), "kl"


def stories(directory: Path, pairs: int) -> tuple[str, Ask, str]:
    model, task = vm.load(str(directory), "stories-pronoun")
    assert task is not None
    wiring = vm.wire(model, task.example)
    return "stories260K, stories-pronoun", lambda: ask(wiring, task, batch_size=pairs), "kl"


def row(name: str, make: Ask, objective: str, threshold: float, circuits: int, sequential: bool) -> dict[str, Any]:
    """Both forms on one model at one threshold."""
    made: dict[str, Any] = {"model": name, "threshold": threshold}
    kept = {}
    for fast in (True, False) if sequential else (True,):
        question = make()
        method = Acdc((threshold,), objective=objective, fast=fast, circuits=circuits, n_pairs=question.batch_size)
        before = forward_seconds(question)
        start = time.perf_counter()
        state = final_state(method, question)
        seconds = time.perf_counter() - start
        unit = statistics.median([*before, *forward_seconds(question)])
        kept[fast] = state["keep"]
        n, (tried, runs) = question.n_edges, state["tried"].tolist()
        made |= {"edges": n, "kept": int(state["keep"].sum()), "plain_ms": 1e3 * unit}
        form = "fast" if fast else "sequential"
        made[form] = {
            "seconds": seconds,
            "tried": tried,
            "circuits_run": runs,
            "forwards_per_edge": seconds / unit / n,
            "forwards_per_edge_tried": seconds / unit / max(1, tried),
        }
    made["same"] = bool(torch.equal(kept[True], kept[False])) if sequential else None
    return made


def forward_seconds(question: Question, times: int = 9) -> list[float]:
    """Plain forwards of the pairs that ACDC looks at."""
    batch, taken = question.batch(0), []
    with torch.no_grad():
        for _ in range(times):
            start = time.perf_counter()
            call(question.wiring.model, batch.clean)
            taken.append(time.perf_counter() - start)
    return taken


def told(each: dict[str, Any]) -> str:
    fast = each["fast"]
    text = (
        f"{each['model']:30s} t {each['threshold']:<7g} {each['edges']:6,} edges, {each['kept']:4} kept  "
        f"fast {fast['forwards_per_edge']:.2f} F an edge, {fast['forwards_per_edge_tried']:.2f} tried ({fast['tried']})"
    )
    if each["same"] is None:
        return text
    slow = each["sequential"]
    same = "same decisions" if each["same"] else "OTHER DECISIONS"
    return f"{text}  one by one {slow['forwards_per_edge']:.2f}, {slow['forwards_per_edge_tried']:.2f}  {same}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--palindrome", type=Path)
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--thresholds", default="0.03,0.003")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--circuits", type=int, default=4)
    parser.add_argument("--only-fast", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    models = list(programs(asked.programs))
    if asked.palindrome:
        models.append(palindrome(asked.palindrome, asked.pairs))
    if asked.stories:
        models.append(stories(asked.stories, asked.pairs))
    rows = []
    for name, make, objective in models:
        for threshold in map(float, asked.thresholds.split(",")):
            rows.append(row(name, make, objective, threshold, asked.circuits, not asked.only_fast))
            print(told(rows[-1]), file=sys.stderr if asked.json else sys.stdout, flush=True)
    same = [each["same"] for each in rows if each["same"] is not None]
    if asked.json:
        print(json.dumps({"rows": rows, "same": sum(same), "compared": len(same)}))
    else:
        print(f"{sum(same)} of {len(same)} searches decide alike")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
