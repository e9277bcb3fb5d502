"""Cost of the kernel's operations against the plain model, interleaved in one process.

    python bench/speed.py --shape gpt2-small [--json] [--batch 16] [--length 16] [--repeats 7] [--threads 2]

F is a forward without gradients, full logits. FB is a forward and a backward to activations (weights frozen). Both are
of the same Hugging Face model, with the same attention kernel, as everything measured against them. Fills are
those of the paired run, computed once per batch, as in training; ``eap`` computes them anew (it meets a batch
once). ``mask_step`` draws one mask per example. Each ratio is the median over interleaved repeats, low and high its
quartiles. ``mask_step_extra_mib`` is the difference of peak resident memory, counted after wiring, of two fresh
processes that do nothing else.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import voltmeter as vm
from voltmeter.run.run import attribute

SHAPES = {
    "gpt2-small": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16, "vocab_size": 50257},
    "toy": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 1000},
}


class Bench:
    """The model of a shape, its wiring, and each operation as a function without arguments."""

    def __init__(self, shape: str, batch: int, length: int) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        self.model: nn.Module = GPT2LMHeadModel(GPT2Config(use_cache=False, **SHAPES[shape])).eval()
        self.model.requires_grad_(False)
        size = SHAPES[shape]["vocab_size"]
        self.clean, self.corrupted = (torch.randint(size, (batch, length)) for _ in range(2))
        self.wiring = vm.wire(self.model, self.clean[:2])
        self.fill = vm.fill.resample().values_for(self.wiring, self.clean, self.corrupted)
        self.kept = (torch.rand(len(self.wiring.edges)) < 0.5).float()
        self.mask = torch.rand(batch, len(self.wiring.edges))

    @torch.no_grad()
    def forward(self) -> None:
        self.model(self.clean)

    def forward_backward(self) -> None:
        embedded = self.model.get_input_embeddings()(self.clean).requires_grad_()
        _score(self.model(inputs_embeds=embedded)).backward()

    @torch.no_grad()
    def masked_forward(self) -> None:
        vm.run(self.wiring, self.clean, self.kept, self.fill)

    def mask_step(self) -> None:
        mask = self.mask.clone().requires_grad_()
        _score(vm.run(self.wiring, self.clean, mask, self.fill, axes="example edge")).backward()

    def eap(self) -> None:
        attribute(self.wiring, self.clean, vm.fill.resample(), self.corrupted, _score)


def _score(outputs: object) -> Tensor:
    return outputs.logits[:, -1].log_softmax(-1)[:, 0].sum()  # type: ignore[attr-defined]


OPERATIONS = {  # name -> (what is measured, what it is measured against)
    "masked_forward": ("masked_forward", "forward", "F"),
    "mask_step": ("mask_step", "forward_backward", "FB"),
    "eap": ("eap", "forward_backward", "FB"),
}


def seconds(operation: Callable[[], None]) -> float:
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start


def measure(bench: Bench, repeats: int) -> dict[str, dict[str, object]]:
    """Ratios over interleaved repeats, after one unmeasured round."""

    def once() -> dict[str, tuple[float, float]]:
        # Each beside its own plain run: the machine's pace drifts, and one operation leaves the caches to the next.
        return {
            name: (seconds(getattr(bench, plain)), seconds(getattr(bench, measured)))
            for name, (measured, plain, _) in OPERATIONS.items()
        }

    rounds = [once() for _ in range(repeats + 1)][1:]
    table: dict[str, dict[str, object]] = {}
    for operation, (_, _, unit) in OPERATIONS.items():
        ratios = [r[operation][1] / r[operation][0] for r in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        plain_ms = 1000 * statistics.median(r[operation][0] for r in rounds)
        table[operation] = {
            "ratio": round(middle, 3), "unit": unit, "low": round(low, 3), "high": round(high, 3),
            "plain_ms": round(plain_ms, 1),
        }  # fmt: skip
    return table


def peak_mib(arguments: list[str], operation: str) -> float:
    """Peak resident memory of a fresh process that does one operation three times."""
    command = [sys.executable, __file__, *arguments, "--only", operation]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def forget_peak() -> None:
    """Start the high-water mark of resident memory anew (Linux): wiring the model must not count."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_so_far_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--only", help="do one operation three times and print the peak memory in MiB")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench(given.shape, given.batch, given.length)
    if given.only:
        forget_peak()
        for _ in range(3):
            getattr(bench, given.only)()
        print(peak_so_far_mib())
        return
    table = measure(bench, given.repeats)
    sizes = ["--shape", given.shape, "--batch", str(given.batch), "--length", str(given.length)]
    sizes += ["--threads", str(given.threads)]
    plain, masked = (peak_mib(sizes, name) for name in ("forward_backward", "mask_step"))
    table["mask_step_extra_mib"] = {"value": round(masked - plain), "unit": "MiB", "plain": round(plain)}
    conditions = {
        "shape": given.shape, "batch": given.batch, "length": given.length, "threads": given.threads,
        "edges": len(bench.wiring.edges), "torch": torch.__version__,
    }  # fmt: skip
    if given.json:
        print(json.dumps(conditions | table))
        return
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    for name, row in table.items():
        print(f"{name:22}", ", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
