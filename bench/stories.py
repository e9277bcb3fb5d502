"""Which method is best on a trained model: one model, its tasks, every method, several seeds.

    python bench/stories.py MODEL [--tasks a,b,c] [--methods a,b,...] [--seeds 10] [--fill resample]
                            [--out FILE.jsonl] [--json]

Scores come from the train pairs, everything reported from the held-out ones. A row is one method on one task: CPR and
CMD (over shares of all edges, over MIB's self-normalised sizes, and over log sizes), edges needed for .9, .95 and .99
on held-out pairs, and seconds. Figures are means over seeds with 95% intervals (Student's t over seeds; methods that
draw nothing have none). ``--out`` keeps a line for each task, method and seed; what it holds is not computed again.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import voltmeter as vm
from voltmeter.discover import Judge, method_named
from voltmeter.discover.discover import ask
from voltmeter.discover.measures import curve, edges_needed
from voltmeter.errors import VoltmeterError
from voltmeter.task.task import Task
from voltmeter.wiring.wiring import Wiring

TASKS = ("stories-pronoun", "stories-name", "stories-quote")
METHODS = (
    "edge-sp", "eap", "eap-ig-inputs", "hisp", "relp", "atp*", "node-sp", "edge-pruning", "ugs", "magnitude", "random"
)  # fmt: skip
WITHOUT_SEED = ("exact", "acdc", "eap", "eap-ig-inputs", "eap-ig-activations", "hisp", "relp", "atp*", "magnitude")
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26, 12: 2.20, 20: 2.09}


def measured(wiring: Wiring, task: Task, judge: Judge, name: str, fill: str, seed: int) -> dict[str, Any]:
    """One method, task and seed."""
    start = time.process_time()
    scores = vm.discover(wiring, task, method_named(name), fill, seed=seed)
    seconds = time.process_time() - start
    found = curve(judge, scores)
    needed = {f"edges-{t:g}": n for t, n in edges_needed(judge, scores).items()}
    return {"task": task.name, "method": name, "seed": seed, "seconds": seconds} | needed | found.areas()


def rows_of(lines: Iterable[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """A row for each task and method, best first."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["task"], line["method"]), []).append(line)
    made = []
    for (task, method), found in groups.items():
        figures = {key: interval([f[key] for f in found]) for key in found[0] if key not in ("task", "method", "seed")}
        made.append({"task": task, "method": method, "seeds": len(found)} | figures)
    by_task = {row["task"]: row["edges-0.9"][0] for row in made if row["method"] == against}
    for row in made:
        row["times"] = row["edges-0.9"][0] / by_task[row["task"]] if row["task"] in by_task else None
    return sorted(made, key=lambda row: (row["task"], row["edges-0.9"][0]))


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval; 0 where it is one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, 0.0
    t = T_95[max(n for n in T_95 if n <= len(values))]
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def told(row: dict[str, Any]) -> str:
    def of(key: str, digits: int) -> str:
        mean, half = row[key]
        return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half else "")

    edges = " | ".join(of(f"edges-{t}", 0) for t in ("0.9", "0.95", "0.99"))
    areas = " | ".join(of(key, 3) for key in ("cpr-share", "cmd-share", "cmd-self", "cmd-log"))
    return f"| {row['task']} | `{row['method']}` | {row['seeds']} | {edges} | {areas} | {of('seconds', 1)} |"


HEAD = (
    "| task | method | seeds | edges .9 | .95 | .99 | CPR share | CMD share | CMD self | CMD log | CPU s |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--fill", default="resample")
    parser.add_argument("--against", default="edge-sp")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = (
        [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out and asked.out.exists() else []
    )
    done = {(line["task"], line["method"], line["seed"]) for line in lines}
    wanted = [
        (seed, task, method)
        for seed in range(asked.seeds)
        for task in asked.tasks.split(",")
        for method in asked.methods.split(",")
        if seed == 0 or method not in WITHOUT_SEED
    ]
    ready: dict[str, tuple[Wiring, Task, Judge]] = {}
    for at, (seed, name, method) in enumerate(wanted, 1):
        if (name, method, seed) in done:
            continue
        if name not in ready:
            model, task = vm.load(asked.model, name)
            assert task is not None
            wiring = vm.wire(model, task.example)
            judge = Judge(wiring, task, task.held_out, ask(wiring, task, asked.fill).fill)
            ready[name] = (wiring, task, judge)
        wiring, task, judge = ready[name]
        try:
            lines.append(measured(wiring, task, judge, method, asked.fill, seed))
        except VoltmeterError as error:
            print(f"{name} {method}: {error}", file=sys.stderr)
            continue
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
        print(f"{at} of {len(wanted)}  {name} {method} seed {seed}: {lines[-1]['edges-0.9']} edges", file=sys.stderr)
    rows = rows_of(lines, asked.against)
    if asked.json:
        print(json.dumps({"rows": rows}))
    else:
        print(HEAD)
        print("\n".join(map(told, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
