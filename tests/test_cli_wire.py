"""``voltmeter wire`` and the lists, and the example inputs that models are wired with."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from cli_bench import N_EDGES, make_tiny, voltmeter
from conftest import asset
from torch import nn

import voltmeter as vm
from voltmeter.cli import main
from voltmeter.cli.examples import Limits, example_for, read_inputs
from voltmeter.cli.lists import told_of_task
from voltmeter.cli.wire import document, shortened
from voltmeter.discover import METHODS
from voltmeter.errors import LoadError
from voltmeter.task.sets import task_names
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_settings import HookedSettings
from voltmeter.wiring.load import LoadedModel

KEYS = ["streams", "n_writers", "n_readers", "n_edges", "verified"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# what is printed -------------------------------------------------------------------------------------------------


MIXING = """
import torch
from torch import nn

class Centred(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0)

def centred():
    return Centred(nn.Linear(4, 4), nn.Linear(4, 2)), torch.rand(3, 4)
"""


def test_a_model_that_mixes_the_rows_of_its_batch(here: Path) -> None:
    (here / "mixing.py").write_text(MIXING)
    done = voltmeter("wire", "py:mixing:centred")
    assert done.exit_code == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("rows "))
    assert line.startswith(
        "rows      not each for itself, so circuits are run one at a time: a row comes out otherwise"
    )


def test_the_demo_on_one_screen() -> None:
    done = voltmeter("wire", "demo")
    assert done.exit_code == 0, done.stderr
    first, second, *rest = done.stdout.splitlines()
    assert re.fullmatch(
        r"wiring    HookedModel · 17 writers · 49 readers · 257 edges · sums to \de-\d, laws hold", first
    )
    assert re.fullmatch(r"verified  writers add up to their stream to \S+ · .*\(law 1\) · .*\(law 2\)", second)
    assert rest == [
        "",
        "stream    main · 17 writers, 49 readers, 257 edges",
        "writers   input, a0.h0-7, a1.h0-7",
        "readers   a0.h0-7<q>, a0.h0-7<k>, a0.h0-7<v>, a1.h0-7<q>, a1.h0-7<k>, a1.h0-7<v>, logits",
        "",
        "next      every name: voltmeter wire demo --all; one of them: --node NAME",
    ]


def test_every_name(here: Path) -> None:
    done = voltmeter("wire", "hooked:tiny", "--all")
    assert "writers   input, a0.h0, a0.h1\n" in done.stdout
    assert "next" not in done.stdout


def test_json_says_what_the_wiring_is(here: Path) -> None:
    done = voltmeter("wire", "hooked:tiny", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert list(told) == KEYS
    wiring = vm.wire(vm.load("hooked:tiny").model, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert [each["name"] for each in told["streams"]] == [stream.name for stream in wiring.streams]
    assert told["streams"][0]["writers"] == ["input", "a0.h0", "a0.h1"]
    assert told["streams"][0]["readers"][-1] == "logits"
    assert (told["n_writers"], told["n_readers"], told["n_edges"]) == (3, 7, N_EDGES)
    assert list(told["verified"]) == ["sum_error", "law1_error", "law2_error"]
    assert document(wiring)["verified"] == asdict(wiring.verified)


def test_divided_otherwise(here: Path) -> None:
    done = voltmeter("wire", "hooked:tiny", "--split", "input", "--merge", "a0", "--json")
    [stream] = json.loads(done.stdout)["streams"]
    assert stream == {"name": "main", "writers": ["input.tok", "input.pos", "a0"], "readers": ["a0", "logits"]}
    declared = voltmeter("wire", "hooked:tiny", "--declare", "blocks.0.attn", "--json")
    assert "blocks.0.attn" in json.loads(declared.stdout)["streams"][0]["writers"]


def test_one_node_and_one_edge(here: Path) -> None:
    said = {name: voltmeter("wire", "hooked:tiny", "--node", name).stdout for name in ("a0.h1", "a0.h1<k>")}
    assert said["a0.h1"] == "writer    a0.h1 · head · blocks.0.attn · main\nread by   logits\n"
    assert said["a0.h1<k>"] == "reader    a0.h1<k> · k · blocks.0.attn · main\nreads     input\nfeeds     a0.h1\n"
    edge = voltmeter("wire", "hooked:tiny", "--node", "a0.h1 → logits")
    assert edge.stdout == "edge      a0.h1 -> logits · number 8 of 9\n"


def test_long_lists_are_cut_to_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 80 columns; what is left out is counted right."""
    from voltmeter.cli import screen, wire

    class Terminal(screen.Console):
        def __init__(self, **_: Any) -> None:
            super().__init__(force_terminal=True, width=80, color_system=None, record=True)

    monkeypatch.setattr(screen, "Console", Terminal)
    names = [f"layers.{i}.{part}" for i in range(50) for part in ("mixer", "norm")]
    shown = screen.Screen.open()
    assert wire._show_names(shown, "writers", names, False)
    lines = shown.out.export_text().splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    listed = ", ".join(line[10:] for line in lines[:3]).count("layers.")
    assert lines[3] == f"          … {100 - listed} more"
    assert not wire._show_names(shown, "writers", names, True)


def test_names_in_short() -> None:
    assert shortened(["input", "a0.h0", "a0.h1", "a0.h2", "m0", "m1", "a1.h2"]) == ["input", "a0.h0-2", "m0-1", "a1.h2"]
    assert shortened(["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h2<k>"]) == ["a0.h0-1<q>", "a0.h0<k>", "a0.h2<k>"]
    assert shortened(["layers.9.mixer", "layers.10.mixer"]) == ["layers.9-10.mixer"]
    assert shortened(["m1", "m0"]) == ["m1", "m0"]
    assert shortened([]) == []


# example inputs --------------------------------------------------------------------------------------------------

SPECIMENS = {specimen.name: specimen for specimen in zoo.ZOO}
KINDS = {"gpt2-sdpa": "input_ids", "mamba": "input_ids", "t5": "decoder_input_ids", "bert": "input_ids"}


def loaded(model: nn.Module, example: object | None = None) -> LoadedModel:
    kind = "hooked" if isinstance(model, HookedModel) else "hugging-face"
    return LoadedModel(model.eval(), None, "it", kind, "", example)


@pytest.mark.parametrize("name", [*KINDS, "vit"])
def test_a_made_up_example_wires_the_model_as_its_own_does(name: str) -> None:
    specimen = SPECIMENS[name]
    model = specimen.build()
    example = example_for(loaded(model.float()))
    assert KINDS.get(name, "pixel_values") in example
    assert {len(tensor) for tensor in example.values()} == {2}
    ours, theirs = vm.wire(model, example), vm.wire(model, specimen.example(3, 8))
    assert ours.edges.names == theirs.edges.names


def test_tokens_are_known_different_and_not_special() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=7,
        pad_token_id=4,
    )
    ids = example_for(loaded(LlamaForCausalLM(config)))["input_ids"]
    assert ids.shape == (2, 7)
    assert len(set(ids.flatten().tolist())) == 14
    assert set(ids.flatten().tolist()) <= set(range(30)) - {config.bos_token_id, config.eos_token_id, 4}


@pytest.mark.parametrize(("d_vocab", "n_ctx", "shape"), [(5, 3, (2, 3)), (50, 40, (2, 12)), (None, 3, (2, 3, 4))])
def test_hooked_models_get_what_they_take(d_vocab: int | None, n_ctx: int, shape: tuple[int, ...]) -> None:
    settings = HookedSettings(
        n_layers=1, n_heads=2, d_model=4, d_head=2, attention="causal", d_vocab=d_vocab, d_vocab_out=5, n_ctx=n_ctx
    )
    model = HookedModel(settings).initialise(0)
    example = example_for(loaded(model))
    assert example.shape == shape
    assert Limits.of(model) == Limits(d_vocab, n_ctx)
    if d_vocab is not None:
        assert int(example.max()) < d_vocab
        assert len(example.unique()) == min(d_vocab, 2 * shape[1])


def test_a_model_that_takes_something_else() -> None:
    class Hears(nn.Linear):
        main_input_name = "input_values"

    with pytest.raises(LoadError, match="no example inputs are known for Hears, which takes input_values"):
        example_for(loaded(Hears(2, 2)))


def test_named_tensors_of_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"input_ids": torch.zeros(2, 3)}, tmp_path / "named.safetensors")
    assert list(read_inputs(tmp_path / "named.safetensors")) == ["input_ids"]
    save_file({"10": torch.zeros(1), "9": torch.ones(1)}, tmp_path / "numbered.safetensors")
    assert read_inputs(tmp_path / "numbered.safetensors") == (torch.ones(1), torch.zeros(1))


def test_a_real_model_with_grouped_queries() -> None:
    done = voltmeter("wire", asset("stories260K"), "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["n_writers"], told["n_readers"], told["n_edges"]) == (46, 86, 1701)


# lists, help, and how quickly they come --------------------------------------------------------------------------


def test_every_task_and_method_has_its_line() -> None:
    tasks = voltmeter("tasks").stdout
    for name in task_names():
        assert len(told_of_task(name)) > 20
        assert re.search(rf"^{name} +\S.{{20}}", tasks, re.MULTILINE)
    methods = voltmeter("methods").stdout
    for name in METHODS:
        assert re.search(rf"^{re.escape(name)} +\S.{{20}}", methods, re.MULTILINE)
    assert "--set n_steps=400 learning_rate=0.1" in methods


def test_version_and_help() -> None:
    assert voltmeter("--version").stdout == f"voltmeter {vm.__version__}\n"
    said = voltmeter("--help").stdout
    for name in ("wire", "discover", "demo", "show", "tasks", "methods", "MODEL is a Hugging Face id"):
        assert name in said
    assert "..." not in said.partition("Commands:")[2]
    assert voltmeter("discover", "-h").stdout.count("--") >= 20


def test_help_loads_nothing_it_does_not_need() -> None:
    heavy = ("transformers", "rich", "jinja2", "plotly")
    code = f"import sys, voltmeter.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_locale_without_arrows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("sys.argv", ["voltmeter", "wire", "hooked:tiny"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "HookedModel ? 3 writers" in written.getvalue().decode("ascii")
