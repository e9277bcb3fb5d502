"""Random programs against their oracle: whether each compiled model agrees on every input, and what they are made of.

    python bench/random_programs.py [--count 300] [--sizes 2,4,8,12] [--first-seed 0] [--json]

Program i has seed ``first-seed + i`` and the sizes in turn. Exits with 1 if any disagrees, naming it.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass

from voltmeter.rasp.agree import agreement
from voltmeter.rasp.compile import compile_program
from voltmeter.rasp.generate import generate, operations


@dataclass(frozen=True)
class Trial:
    """One program: its size, what it was compiled to, and how far that is from the oracle."""

    name: str
    size: int
    layers: int
    heads: int
    d_model: int
    kinds: tuple[str, ...]
    inputs: int
    undefined: float  # share of positions
    worst: float
    disagreeing: int
    seconds: float


def try_one(seed: int, size: int) -> Trial:
    """Generate, compile and compare one program."""
    start = time.perf_counter()
    program = generate(seed, size)
    model = compile_program(program.sop, program.vocabulary, program.max_length, causal=program.causal).model
    found = agreement(program, model=model)
    return Trial(
        name=program.name,
        size=size,
        layers=model.shape.layers,
        heads=model.shape.heads,
        d_model=model.shape.d_model,
        kinds=tuple(sorted({type(node).__name__ for node in operations(program.sop)})),
        inputs=found.inputs,
        undefined=found.undefined / (found.undefined + found.positions),
        worst=found.worst,
        disagreeing=found.disagreeing,
        seconds=time.perf_counter() - start,
    )


def table(trials: list[Trial]) -> str:
    """One line per size, then how many programs each kind of operation is in."""
    lines = ["size  programs  agree  layers (programs)                 heads  d_model  worst |off|   s/program"]
    for size in sorted({trial.size for trial in trials}):
        own = [trial for trial in trials if trial.size == size]
        layers = " ".join(f"{count}:{many}" for count, many in sorted(Counter(t.layers for t in own).items()))
        lines.append(
            f"{size:4}  {len(own):8}  {sum(t.disagreeing == 0 for t in own):5}  {layers:32}  "
            f"{statistics.mean(t.heads for t in own):5.2f}  {statistics.mean(t.d_model for t in own):7.1f}  "
            f"{max(t.worst for t in own):11.1e}  {statistics.mean(t.seconds for t in own):9.2f}"
        )
    kinds = Counter(kind for trial in trials for kind in trial.kinds)
    lines.append("programs with: " + ", ".join(f"{kind} {many}" for kind, many in kinds.most_common()))
    lines += [f"DISAGREES: {t.name} on {t.disagreeing} of {t.inputs} inputs" for t in trials if t.disagreeing]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--sizes", default="2,4,8,12")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON per program, and no table")
    asked = parser.parse_args()
    sizes = [int(size) for size in asked.sizes.split(",")]
    trials = []
    for at in range(asked.count):
        trials.append(try_one(asked.first_seed + at, sizes[at % len(sizes)]))
        if asked.json:
            print(json.dumps(vars(trials[-1])), flush=True)
    if not asked.json:
        print(table(trials))
    return 1 if any(trial.disagreeing for trial in trials) else 0


if __name__ == "__main__":
    sys.exit(main())
