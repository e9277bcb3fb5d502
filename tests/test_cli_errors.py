"""Bad input: what is said, exit code 2, no traceback, and nothing written. Each through the command itself."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_bench import LENGTH, discover, files, make_tiny, voltmeter, write_rows
from safetensors.torch import save_file
from typer.testing import CliRunner

from voltmeter.cli.app import app
from voltmeter.errors import VoltmeterError

MODELS = '''
import torch
from torch import nn
from voltmeter.wiring.hooked_files import load_hooked


def no_example():
    return load_hooked("tiny")


class Own(nn.Module):
    """One residual block on tokens 0-11; ``wild`` is what token 11 becomes."""

    def __init__(self, wild=None, says_nan=False, blind=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mlp, self.unembed = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12)
        self.says_nan, self.blind = says_nan, blind
        if wild is not None:
            self.embed.weight.data[11] = wild

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.mlp(x)
        y = self.unembed(torch.tanh(x))
        if self.says_nan:
            y = torch.where((ids == 11).any(1)[:, None, None], torch.nan, y)
        return y


def infinite():
    return Own(wild=torch.inf).eval(), torch.tensor([[1, 2, 3], [4, 5, 6]])


def nan():
    return Own(says_nan=True).eval()


def plain():
    return Own().eval()


def left_padded():
    ids = torch.tensor([[1, 1, 5, 6], [7, 8, 9, 10]])
    return Masked(), {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])}


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = Own()
        self.eval()

    def forward(self, input_ids, attention_mask):
        return self.own(input_ids % 12) * attention_mask[..., None]
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny(tmp_path)
    (tmp_path / "cli_models.py").write_text(MODELS)
    (tmp_path / "readme.txt").write_text("no model")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not tensors")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(place: Path, invoke: Callable[[], Any]) -> str:
    """What is on stderr from ``voltmeter:`` on, after checking everything else that a refusal promises."""
    before = files(place)
    result = invoke()
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert "Traceback" not in result.stdout + result.stderr
    assert "written" not in result.stdout
    assert files(place) == before
    assert result.stderr.count("voltmeter: ") == 1
    return str(result.stderr[result.stderr.index("voltmeter: ") :])


# rows of a task --------------------------------------------------------------------------------------------------


def rows(**changes: Any) -> list[dict[str, Any]]:
    """Four pairs; ``changes`` are made to the third."""
    made = [
        {"clean": [i, 1, 2, 3, 4, 5], "corrupted": [i, 1, 6, 3, 4, 5], "answers": [7], "wrong": [8]} for i in range(4)
    ]
    made[2] |= changes
    return made


def alone(**changes: Any) -> list[dict[str, Any]]:
    return [{**row, **changes} for row in rows()]


@dataclass(frozen=True)
class Refusal:
    """``says``: the lines, or a regular expression for a line that begins with ``~``."""

    args: str
    says: tuple[str, ...]
    rows: tuple[dict[str, Any], ...] | None = None


WRONG = {
    "unknown model": Refusal(
        "discover ./stories --task pairs.jsonl",
        (
            "voltmeter: there is no model './stories'",
            "  there is no such directory",
            "~  local directories with a model, nearest: .*broken.*",
            "  a model is a Hugging Face id, a local directory, demo, hooked:DIR, rasp:NAME, katago:FILE, "
            "modular:DIR, decision:DIR or py:package.module:factory",
        ),
    ),
    "a file that is no model": Refusal(
        "discover readme.txt --task pairs.jsonl",
        (
            "voltmeter: readme.txt is a file, not a model",
            "  give the directory that holds config.json and the weights",
        ),
    ),
    "weights that are none": Refusal(
        "wire broken",
        (
            "voltmeter: the weights in broken are damaged",
            "~  model.safetensors: .*",
            "  copy them again from where they came from",
        ),
    ),
    "a factory without an example": Refusal(
        "wire py:cli_models:no_example",
        (
            "voltmeter: py:cli_models:no_example gives no example inputs to wire the model with",
            "  let the factory return (module, example inputs), or give --input FILE.safetensors",
        ),
    ),
    "unknown node": Refusal(
        "wire hooked:tiny --node a7.h2",
        (
            "voltmeter: no reader or writer is called 'a7.h2'",
            "~  this model has layers 0-0 and heads 0-1; nearest: a0\\.h\\d.*",
            "  list them all with: voltmeter wire hooked:tiny --all",
        ),
    ),
    "unknown edge": Refusal(
        "wire hooked:tiny --node 'a0.h0 -> a0.h1<q>'",
        ("voltmeter: there is no edge 'a0.h0 -> a0.h1<q>'", "~  nearest: .*a0.h1.*", "~.*", "~.*"),
    ),
    "unknown component": Refusal(
        "wire hooked:tiny --split b0=heads", ("~voltmeter: .*'b0'.*", "~  'b0': nearest: a0.*", "~.*")
    ),
    "unknown task": Refusal(
        "discover hooked:tiny --task stories-pronouns",
        (
            "voltmeter: there is no task or file called 'stories-pronouns'",
            "  built-in tasks: stories-pronoun, stories-name, stories-quote, induction-demo",
            "  give one of these, or a file of pairs (.jsonl, .json, .csv)",
        ),
    ),
    "a task of text without a tokenizer": Refusal(
        "discover hooked:tiny --task stories-pronoun",
        (
            "voltmeter: the task stories-pronoun is text, and hooked:tiny has no tokenizer beside its weights",
            "  put tokenizer.json into its directory, or give pairs of token ids",
        ),
    ),
    "pairs that do not align": Refusal(
        "discover hooked:tiny --task task.jsonl",
        (
            "voltmeter: 1 of 4 pairs does not line up",
            "  row 3: 6 tokens clean, 5 corrupted (they part at position 2)",
            "  give aligned pairs, or drop these rows with --drop-misaligned (drop_misaligned=True)",
        ),
        tuple(rows(corrupted=[2, 1, 6, 3, 4])),
    ),
    "a declared span": Refusal(
        "discover hooked:tiny --task task.jsonl",
        (
            "voltmeter: 1 of 4 pairs does not line up",
            "  row 3: it changes at positions 2, but positions 3-4 are declared",
            "~.*",
        ),
        tuple(rows(span=[3, 4])),
    ),
    "empty task": Refusal(
        "discover hooked:tiny --task task.jsonl", ("voltmeter: the task is empty: task.jsonl holds no pairs",), ()
    ),
    "no corrupted inputs to resample from": Refusal(
        "discover hooked:tiny --task task.jsonl",
        (
            "voltmeter: 1 of 4 rows of task.jsonl cannot be read",
            "  row 3: 'corrupted' is 3, a text or a list of token ids was expected",
            "~.*",
        ),
        tuple(rows(corrupted=3)),
    ),
    "answers missing from the vocabulary": Refusal(
        "discover hooked:tiny --task task.jsonl",
        (
            "voltmeter: 1 pair has answers missing from the vocabulary of 12 tokens",
            "~  (train|held-out) row 3: \\[99\\]",
            "  give the token ids of this model's tokenizer",
        ),
        tuple(rows(answers=[99])),
    ),
    "tokens missing from the vocabulary": Refusal(
        "discover hooked:tiny --task task.jsonl",
        (
            "voltmeter: 1 pair has tokens missing from the vocabulary of 12 tokens",
            "~  (train|held-out) row 3, corrupted: \\[12\\]",
            "  give the token ids of this model's tokenizer",
        ),
        tuple(rows(corrupted=[2, 1, 12, 3, 4, 5])),
    ),
    "tokens missing on both sides of a pair": Refusal(
        "discover hooked:tiny --task task.jsonl",
        (
            "voltmeter: 1 pair has tokens missing from the vocabulary of 12 tokens",
            "~  (train|held-out) row 3, clean: \\[13\\]",
            "~  (train|held-out) row 3, corrupted: \\[13, 12\\]",
            "  give the token ids of this model's tokenizer",
        ),
        tuple(rows(clean=[13, 1, 2, 3, 4, 5], corrupted=[13, 1, 12, 3, 4, 5])),
    ),
    "more positions than there are": Refusal(
        "discover hooked:tiny --task task.jsonl",
        ("~voltmeter: .*7 positions.*", "~.*"),
        tuple({**row, "clean": [*row["clean"], 1], "corrupted": [*row["corrupted"], 1]} for row in rows()),
    ),
    "a metric that is NaN": Refusal(
        "discover py:cli_models:nan --task task.jsonl",
        (
            "voltmeter: logit-difference is not finite on 1 of 2 pairs",
            "  row 3: nan",
            "  look at these rows: the model's logits there, or the metric itself, overflow or are NaN",
        ),
        tuple(
            {**row, "split": "train" if i < 2 else "held_out"}
            for i, row in enumerate(rows(corrupted=[2, 1, 11, 3, 4, 5]))
        ),
    ),
    "a metric that is constant": Refusal(
        "discover hooked:tiny --task task.jsonl",
        (
            "voltmeter: logit-difference is the same for the full model and for nothing kept on all 2 pairs",
            "  both give 0 on average",
            "  give another metric, or corrupted inputs that change the answer",
        ),
        tuple(alone(wrong=[7])),
    ),
    "a metric without a gradient": Refusal(
        "discover hooked:tiny --task pairs.jsonl --method eap --metric accuracy",
        (
            "voltmeter: accuracy has no gradient, and eap follows it",
            "  use logit-difference or log-probability, or a metric of your own that is differentiable",
        ),
    ),
    "a metric whose gradient is zero": Refusal(
        "discover hooked:tiny --task pairs.jsonl --method eap --metric kl",
        (
            "voltmeter: eap takes the gradient at the full model, where kl is at its best: it is zero for every edge",
            "  use logit-difference or log-probability, or another method",
        ),
    ),
    "a fill that is not finite": Refusal(
        "discover py:cli_models:infinite --task task.jsonl",
        ("~voltmeter: the resample fill is not finite for \\d writers", "  input", "~  .*"),
        tuple({**row, "corrupted": [i, 1, 11, 3, 4, 6]} for i, row in enumerate(rows())),
    ),
    "unknown fill": Refusal(
        "discover hooked:tiny --task pairs.jsonl --fill optimal",
        (
            "voltmeter: there is no fill called 'optimal'",
            "~  nearest: .*",
            "  fills: zero, mean, mean-position, resample",
        ),
    ),
    "unknown metric": Refusal(
        "discover hooked:tiny --task pairs.jsonl --metric logits",
        ("voltmeter: there is no metric 'logits'", "~  nearest: .*logit-difference.*"),
    ),
    "unknown method": Refusal(
        "discover hooked:tiny --task pairs.jsonl --method adcd",
        ("voltmeter: there is no method called 'adcd'", "~  nearest: .*acdc.*", "~  methods: .*eap.*edge-sp.*"),
    ),
    "unknown setting": Refusal(
        "discover hooked:tiny --task pairs.jsonl --set steps=3",
        (
            "voltmeter: edge-sp has no setting called 'steps'",
            "  its settings: n_steps, learning_rate, price, spread, falling, smallest, largest, scale, target, "
            "objective, initial, warm_start, warm_gain",
        ),
    ),
    "settings of a member that are no object": Refusal(
        "discover hooked:tiny --task pairs.jsonl --method ensemble --set member_settings=eap",
        ("voltmeter: ensemble's setting member_settings is a JSON object, 'eap' was given",),
    ),
    "a list with a word among its numbers": Refusal(
        "discover hooked:tiny --task pairs.jsonl --method acdc --set thresholds=0.1,high",
        ("voltmeter: acdc's setting thresholds is a number, 'high' was given",),
    ),
    "a setting of the wrong kind": Refusal(
        "discover hooked:tiny --task pairs.jsonl --set price=cheap",
        ("voltmeter: edge-sp's setting price is a number, 'cheap' was given",),
    ),
    "a setting without a value": Refusal(
        "discover hooked:tiny --task pairs.jsonl --set price",
        ("voltmeter: --set price sets nothing", "  write --set name=value; voltmeter methods lists them"),
    ),
    "steps of a method that has none to set": Refusal(
        "discover hooked:tiny --task pairs.jsonl --method eap --steps 3",
        ("voltmeter: eap takes no --steps", "  voltmeter methods lists the settings it has"),
    ),
    "unknown precision": Refusal(
        "discover hooked:tiny --task pairs.jsonl --dtype float46",
        (
            "voltmeter: there is no precision 'float46' here",
            "~  nearest: float64.*",
            "  give float32, float64, bfloat16",
        ),
    ),
    "unknown device": Refusal(
        "discover hooked:tiny --task pairs.jsonl --device meta",
        ("voltmeter: the device 'meta' cannot be used", "  it holds no numbers", "  give --device cpu"),
    ),
    "more edges than exist": Refusal(
        "discover hooked:tiny --task pairs.jsonl --edges 1000",
        ("voltmeter: a circuit of 1,000 edges was asked for, the wiring has 9", "  give --edges 9 or fewer"),
    ),
    "settings that cannot be meant": Refusal(
        "discover hooked:tiny --task pairs.jsonl --set spread=0 --set target=-5 --set initial=2 --set learning_rate=0",
        (
            "voltmeter: edge-sp cannot work with these settings",
            "  learning_rate is 0.0, a number above 0 was expected",
            "  spread is 0.0, a number from 1 was expected",
            "  initial is 2.0, a probability between 0 and 1 was expected",
            "  target is -5, a whole number from 1, or None was expected",
        ),
    ),
    "a price that is none": Refusal(
        "discover hooked:tiny --task pairs.jsonl --edges 3 --set price=0",
        (
            "voltmeter: edge-sp cannot work with these settings",
            "  price is 0.0, a number above 0 to be steered was expected",
        ),
    ),
    "a price that is no number": Refusal(
        "discover hooked:tiny --task pairs.jsonl --set price=nan",
        ("voltmeter: edge-sp cannot work with these settings", "  price is nan, a number from 0 was expected"),
    ),
    "a setting given twice": Refusal(
        "discover hooked:tiny --task pairs.jsonl --set price=1 --set price=2 --set n_steps=3 --steps 4",
        (
            "voltmeter: a setting was given more than once",
            "  price: 1 and 2",
            "  n_steps: 3 and 4",
            "  give each once; --steps is n_steps",
        ),
    ),
    "a name too long for a task": Refusal(
        f"discover hooked:tiny --task {'a' * 300}",
        (f"voltmeter: there is no task or file called '{'a' * 300}'", "~  built-in tasks: .*", "~.*"),
    ),
    "a task without a name": Refusal(
        "discover hooked:tiny --task ''",
        ("voltmeter: there is no task or file called ''", "~  built-in tasks: .*", "~.*"),
    ),
    "a token id that no tensor holds": Refusal(
        "discover hooked:tiny --task task.jsonl",
        (
            "voltmeter: 1 of 4 rows of task.jsonl cannot be read",
            "  row 3: 'answers' holds 9223372036854775808, a text or token ids were expected",
            "~.*",
        ),
        tuple(rows(answers=[2**63])),
    ),
    "a name too long for a directory": Refusal(
        f"discover hooked:tiny --task pairs.jsonl --out {'a' * 300}",
        ("~voltmeter: .*a{300} cannot be written \\(File name too long\\)", "~  give .*--out"),
    ),
    "two sizes": Refusal(
        "discover hooked:tiny --task pairs.jsonl --edges 3 --faithful 0.9",
        (
            "voltmeter: both --edges and --faithful were given",
            "  give the one that says how large the circuit shall be",
        ),
    ),
    "faithful beyond all": Refusal(
        "discover hooked:tiny --task pairs.jsonl --faithful 1.5",
        ("voltmeter: --faithful 1.5 was given, a number above 0 and up to 1 was expected",),
    ),
    "an output directory that cannot be written": Refusal(
        "discover hooked:tiny --task pairs.jsonl --out readme.txt/deep/it",
        ("~voltmeter: .*readme.txt/deep cannot be written \\(.*\\)", "~  give .*--out"),
    ),
    "an output directory that is a file": Refusal(
        "discover hooked:tiny --task pairs.jsonl --out readme.txt",
        ("~voltmeter: .*readme.txt is a file, a directory was expected", "  give another directory with --out"),
    ),
    "an output directory that holds something else": Refusal(
        "discover hooked:tiny --task pairs.jsonl --out broken",
        (
            "~voltmeter: .*broken is not empty",
            "  it holds config.json, model.safetensors",
            "  give another directory with --out, or empty this one",
        ),
    ),
    "left padding that a model cannot be told of": Refusal(
        "wire py:cli_models:left_padded",
        (
            "voltmeter: 1 row is padded on the left, and this model takes no position_ids",
            "  row 0",
            "  pad on the right",
        ),
    ),
    "inputs that are none": Refusal(
        "wire hooked:tiny --input readme.txt",
        (
            "voltmeter: no inputs can be read from readme.txt",
            "~  .*",
            "  give a .safetensors file that holds the model's arguments by name",
        ),
    ),
    "an undeclared module": Refusal(
        "wire hooked:tiny --declare blocks.9",
        ("~voltmeter: 1 of the declared modules .*", "~  'blocks.9': nearest: blocks.0.*", "~  .*"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_in_words(here: Path, name: str) -> None:
    wrong = WRONG[name]
    if wrong.rows is not None:
        write_rows(here / "task.jsonl", list(wrong.rows))
    said = refused(here, lambda: voltmeter(*shlex.split(wrong.args))).splitlines()
    assert len(said) == len(wrong.says), said
    for line, expected in zip(said, wrong.says, strict=True):
        if expected.startswith("~"):
            assert re.fullmatch(expected[1:], line), (line, expected)
        else:
            assert line == expected


def test_a_directory_that_holds_another_run(here: Path) -> None:
    assert discover("--edges", 3, "--out", "it").exit_code == 0
    assert refused(here, lambda: discover("--edges", 4, "--out", "it")) == (
        "voltmeter: it already holds another run\n"
        "  edge-sp on HookedModel, pairs, fill resample, seed 0\n"
        "  give another directory with --out\n"
    )


def test_notes_beside_a_run_are_not_lost(here: Path) -> None:
    assert discover("--edges", 3, "--out", "it").exit_code == 0
    (here / "it" / "notes.txt").write_text("what I saw")
    assert "it holds this run, and files that are no part of it\n  notes.txt\n" in refused(
        here, lambda: discover("--edges", 3, "--out", "it")
    )


def test_a_row_longer_than_the_model_takes(here: Path) -> None:
    """The example that a model is wired on may be of shorter rows."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=6)
    transformers.GPT2LMHeadModel(config).save_pretrained(here / "gpt2")
    long = {key: [*row, 1, 1] for key, row in rows()[3].items() if key in ("clean", "corrupted")}
    short = [{**row, "split": "train" if i < 2 else "held_out"} for i, row in enumerate(rows())]
    write_rows(here / "task.jsonl", [*short[:3], {**short[3], **long}])
    said = refused(here, lambda: voltmeter("discover", "gpt2", "--task", "task.jsonl")).splitlines()
    assert re.fullmatch("voltmeter: gpt2 does not run on held-out row 4 of task, the longest", said[0])
    assert said[1:3] == ["  IndexError: index out of range in self", "  ['input_ids']: int64 [1, 8]"]


def test_many_rows_are_listed_as_far_as_a_screen_goes(here: Path) -> None:
    bad = [{**row, "corrupted": row["corrupted"][:-1]} for row in rows() * 5]
    write_rows(here / "task.jsonl", [*bad, *rows()])
    said = refused(here, lambda: voltmeter("discover", "hooked:tiny", "--task", "task.jsonl")).splitlines()
    assert said[0] == "voltmeter: 20 of 24 pairs do not line up"
    assert said[-2] == "  ... and 8 more"
    assert len(said) == 15


def test_inputs_from_a_file(here: Path) -> None:
    save_file({"0": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])}, here / "inputs.safetensors")
    done = voltmeter("wire", "py:cli_models:no_example", "--input", "inputs.safetensors", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["n_edges"] == 9
    save_file({"input_ids": torch.full((2, LENGTH), 50)}, here / "inputs.safetensors")
    assert refused(here, lambda: voltmeter("wire", "hooked:tiny", "--input", "inputs.safetensors")) == (
        "voltmeter: hooked:tiny does not run on the example inputs\n"
        "  IndexError: index out of range in self\n"
        "  ['input_ids']: int64 [2, 6]\n"
        "  give inputs of your own: --input FILE.safetensors, the model's arguments by name\n"
    )


# how commands end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["discover", "demo"],
        ["discover", "demo", "--task", "x", "--edges", "many"],
        ["discover", "demo", "--task", "x", "--edges", "0"],
        ["discover", "demo", "--task", "x", "--seed", "-1"],
        ["wire"],
        ["wire", "demo", "--nodes", "a0.h1"],
        ["observe", "demo"],
    ],
)
def test_what_cannot_be_parsed_exits_with_2(args: list[str]) -> None:
    done = voltmeter(*args)
    assert done.exit_code == 2
    assert "Usage: voltmeter" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_where(here: Path) -> None:
    done = voltmeter("wire", "./nothing", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "LoadError" in done.stderr
    assert "voltmeter: there is no model './nothing'" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (VoltmeterError("a problem", ["one", "two"], "a mend"), 2, "a problem\n  one\n  two\n  a mend"),
        (
            KeyError("x"),
            1,
            "something went wrong that should not\n  KeyError: 'x'\n  say --debug to see where; please report it",
        ),
        (
            ValueError(),
            1,
            "something went wrong that should not\n  ValueError\n  say --debug to see where; please report it",
        ),
        (MemoryError(), 1, "the machine's memory is not enough\n  MemoryError\n  give a smaller --batch-size"),
        (
            RuntimeError("CUDA out of memory. Tried"),
            1,
            "the machine's memory is not enough\n  RuntimeError: CUDA out of memory. Tried\n"
            "  give a smaller --batch-size",
        ),
        (
            RuntimeError("more than one element refers to a single memory location"),
            1,
            "something went wrong that should not\n"
            "  RuntimeError: more than one element refers to a single memory location\n"
            "  say --debug to see where; please report it",
        ),
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
    ],
)
def test_whatever_is_raised_ends_in_words(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("voltmeter.cli.wire.load_model", failing)
    done = CliRunner().invoke(app, ["wire", "demo"])
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", f"voltmeter: {said}\n")
