"""The truth about random programs under every fill, and which grades it earns.

    python bench/random_truths.py [--count 300] [--sizes 2,4,8,12] [--fills zero,mean,resample] [--jobs 2] [--limit N]
                                  [--out FILE.jsonl] [--json]

Program i has seed i and the sizes in turn; before its truths are told it must agree with its oracle on all inputs.
A program's grade under a fill is one of

    unique      its necessary edges are the only minimal circuit: no other circuit suffices without holding them
    presumed    they suffice and none can be dropped; the search for others did not decide
    several     several minimal circuits, all of them known (how many is counted)
    another     one minimal circuit, which is not the set of necessary edges
    unsearched  the necessary edges do not suffice or some can be dropped, and the search did not name all circuits
    no gap      effects on both sides of the tolerance within a factor 100: no certificate

``--out`` takes a line per program and goes on where such a file ends, asked the same; a line that a kill cut short is
made again. Exits with 1 if a model disagrees with its oracle.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from voltmeter.rasp.agree import agreement
from voltmeter.rasp.certificate import Certificate
from voltmeter.rasp.generate import generate
from voltmeter.rasp.programs import compiled
from voltmeter.rasp.truth import LIMIT, truth

GRADES = ("unique", "presumed", "several", "another", "unsearched", "no gap")


def grade(certificate: Certificate) -> str:
    """The row of the table a certificate stands in."""
    if not certificate.certified:
        return "no gap"
    if certificate.grades.unique == "yes":
        return "unique"
    if certificate.minimal_is_complete:
        return "several" if len(certificate.minimal) > 1 else "another"
    return "presumed" if certificate.grades.unique == "presumed" else "unsearched"


def try_one(seed: int, size: int, fills: tuple[str, ...], limit: int) -> dict[str, Any]:
    """One program: agreement, and a grade under each fill."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    program = generate(seed, size)
    made = compiled(program)
    row: dict[str, Any] = {
        "seed": seed, "size": size, "limit": limit, "layers": made.model.shape.layers,
        "disagreeing": agreement(program, model=made.model).disagreeing, "truths": {},
    }  # fmt: skip
    for fill in fills:
        it = truth(made, fill, limit=limit)
        row["truths"][fill] = {
            "grade": grade(it), "edges": len(it.effects), "necessary": len(it.necessary),
            "circuits": len(it.minimal) if it.minimal_is_complete else None, "gap": it.gap,
            "restoring": None if it.grades.no_restoring_pair is None else len(it.restoring),
            "searched": it.grades.searched, "seconds": round(it.seconds, 3),
        }  # fmt: skip
    return row | {"seconds": round(time.perf_counter() - start, 3)}


def table(rows: list[dict[str, Any]], fills: Iterable[str], seconds: float) -> str:
    """Programs by grade and fill; how many circuits the several are; edges, and time."""
    lines = [f"{'fill':10}" + "".join(f"{name:>12}" for name in GRADES) + "   circuits of the several (programs)"]
    for fill in fills:
        found = [row["truths"][fill] for row in rows]
        counts = Counter(each["grade"] for each in found)
        several = Counter(each["circuits"] for each in found if each["grade"] == "several")
        spread = " ".join(f"{many}:{count}" for many, count in sorted(several.items()))
        lines.append(f"{fill:10}" + "".join(f"{counts[name]:12}" for name in GRADES) + f"   {spread}")
    edges = sorted(next(iter(row["truths"].values()))["edges"] for row in rows)
    slowest = max((each["seconds"], row["seed"], fill) for row in rows for fill, each in row["truths"].items())
    pairs = sum(bool(each["restoring"]) for row in rows for each in row["truths"].values())
    lines += [
        f"{len(rows)} programs, {sum(row['disagreeing'] == 0 for row in rows)} agree with their oracle on all inputs",
        f"edges: {edges[0]} to {edges[-1]}, median {edges[len(edges) // 2]}; restoring pairs in {pairs} truths",
        f"{seconds:.0f} s in all; slowest truth {slowest[0]:.1f} s (seed {slowest[1]}, {slowest[2]})",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--sizes", default="2,4,8,12")
    parser.add_argument("--fills", default="zero,mean,resample")
    parser.add_argument("--limit", type=int, default=LIMIT)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a line of JSON per program; what it holds already is not done again")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    sizes, fills = [int(size) for size in asked.sizes.split(",")], tuple(asked.fills.split(","))
    rows = [row for row in _before(asked.out) if row["seed"] < asked.count]
    for line in _asked_otherwise(rows, sizes, fills, asked.limit):
        parser.error(f"{asked.out}: {line}; ask the same again, or give another --out")
    done, start = {row["seed"] for row in rows}, time.perf_counter()
    waiting = [seed for seed in range(asked.count) if seed not in done]
    with ProcessPoolExecutor(asked.jobs) as pool:
        for row in pool.map(
            try_one, waiting, [sizes[seed % len(sizes)] for seed in waiting],
            [fills] * len(waiting), [asked.limit] * len(waiting),
        ):  # fmt: skip
            rows.append(row)
            if asked.out:
                with asked.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if sys.stderr.isatty():
                print(f"\r{len(rows)} of {asked.count}", end="", file=sys.stderr)
    seconds = time.perf_counter() - start
    print(json.dumps({"rows": rows, "seconds": seconds}) if asked.json else table(rows, fills, seconds))
    return 1 if any(row["disagreeing"] for row in rows) else 0


def _before(out: Path | None) -> list[dict[str, Any]]:
    """The rows of a file; what stands behind its last whole line is taken off it."""
    if out is None or not out.exists():
        return []
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(out, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _asked_otherwise(rows: Iterable[dict[str, Any]], sizes: list[int], fills: tuple[str, ...], limit: int) -> list[str]:
    """What rows of a file were asked that is not asked now."""
    return [
        f"seed {row['seed']} has size {row['size']}, limit {row.get('limit')} and fills {','.join(row['truths'])}"
        for row in rows
        if (row["size"], row.get("limit"), tuple(row["truths"])) != (sizes[row["seed"] % len(sizes)], limit, fills)
    ]


if __name__ == "__main__":
    sys.exit(main())
