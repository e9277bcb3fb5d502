"""From what a person writes to a model: every kind of spec, and what is said when it cannot be."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import asset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from voltmeter.errors import LoadError
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_files import save_hooked
from voltmeter.wiring.hooked_settings import HookedSettings
from voltmeter.wiring.load import DATA, digest_of, load_demo, load_model

KINDS = (
    "a model is a Hugging Face id, a local directory, demo, hooked:DIR, rasp:NAME, katago:FILE, modular:DIR, "
    "decision:DIR or py:package.module:factory"
)
TINY = HookedSettings(n_layers=1, n_heads=2, d_model=4, d_head=2, attention="causal", d_vocab=5, d_vocab_out=5, n_ctx=3)


def refusal(spec: str, place: Path | None = None) -> str:
    """What the error says, with ``place`` written as DIR."""
    with pytest.raises(LoadError) as caught:
        load_model(spec)
    return str(caught.value) if place is None else str(caught.value).replace(str(place), "DIR")


# --- demo and hooked --------------------------------------------------------------------------------------------


def test_demo() -> None:
    loaded = load_model("demo")
    assert (loaded.spec, loaded.kind, loaded.tokenizer_dir, loaded.example) == ("demo", "demo", None, None)
    assert isinstance(loaded.model, HookedModel)
    assert not loaded.model.training
    assert loaded.digest == digest_of(load_demo()) == json.loads((DATA / "demo.json").read_text())["digest"]
    assert load_demo(torch.float64)(torch.zeros(1, 2, dtype=torch.long)).dtype == torch.float64


def test_hooked_with_and_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HookedModel(TINY).initialise(0)
    save_hooked(model, tmp_path / "saved")
    loaded = load_model(f"hooked:{tmp_path}/saved")
    assert (loaded.kind, loaded.tokenizer_dir, loaded.digest) == ("hooked", None, digest_of(model))
    monkeypatch.chdir(tmp_path)
    changed = load_model("hooked:saved?attention=bidirectional&norm=null&eps=0.5&attention_dir=bidirectional")
    assert isinstance(changed.model, HookedModel)
    assert (changed.model.settings.attention, changed.model.settings.norm) == ("bidirectional", None)
    assert changed.model.settings.eps == 0.5
    (tmp_path / "saved" / "tokenizer.json").write_text("{}")
    assert load_model("hooked:saved").tokenizer_dir == Path("saved")
    assert "'atention' is not a setting; nearest: attention" in refusal("hooked:saved?atention=causal")
    assert refusal("hooked:nowhere") == (
        "there is no directory nowhere\n  hooked: takes a directory with weights and settings"
    )


# --- py:package.module:factory ----------------------------------------------------------------------------------

FACTORIES = """
import torch
from torch import nn

SIZE = 3

def plain():
    return nn.Linear(SIZE, 2)

def with_example():
    return nn.Linear(SIZE, 2), torch.ones(2, SIZE)

def nothing():
    pass

def triple():
    return nn.Linear(1, 1), 1, 2

def class_itself():
    return nn.Linear

def broken():
    raise KeyError("no weights here")

def late():
    import toys.helper
    return toys.helper.made()
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "toys"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(FACTORIES)
    (package / "helper.py").write_text("from torch import nn\ndef made():\n    return nn.Identity()\n")
    (package / "raising.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "toys"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_py_gives_the_module_and_its_example(toys: Path) -> None:
    path = list(sys.path)
    plain = load_model("py:toys.models:plain")
    assert (plain.kind, plain.example, plain.tokenizer_dir) == ("python", None, None)
    assert isinstance(plain.model, nn.Linear)
    assert not plain.model.training
    both = load_model("py:toys.models:with_example", dtype=torch.float64)
    assert isinstance(both.example, Tensor)
    assert both.model.weight.dtype == torch.float64
    assert isinstance(load_model("py:toys.models:late").model, nn.Identity)
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("py:", "'py:' does not name a factory\n  write py:package.module:factory"),
        ("py:toys.models", "'py:toys.models' does not name a factory\n  write py:package.module:factory"),
        (
            "py:toys.moduls:plain",
            "'toys.moduls' in 'py:toys.moduls:plain' could not be imported\n"
            "  ModuleNotFoundError: No module named 'toys.moduls'\n"
            "  modules are looked for in the working directory and among the installed packages",
        ),
        (
            "py:toys.raising:made",
            "'toys.raising' in 'py:toys.raising:made' could not be imported\n  ZeroDivisionError: division by zero\n"
            "  modules are looked for in the working directory and among the installed packages",
        ),
        ("py:toys.models:plian", "toys.models has nothing called 'plian'\n  nearest: plain, late, triple"),
        ("py:toys.models:SIZE", "SIZE in toys.models is an int; a factory to call was expected"),
        (
            "py:toys.models:broken",
            "py:toys.models:broken failed\n  KeyError: 'no weights here'\n  it is called with no arguments",
        ),
        (
            "py:toys.models:nothing",
            "py:toys.models:nothing returned nothing; a torch.nn.Module, or (module, example inputs), was expected\n"
            "  return the module itself",
        ),
        (
            "py:toys.models:triple",
            "py:toys.models:triple returned a tuple; a torch.nn.Module, or (module, example inputs), was expected\n"
            "  return the module itself",
        ),
        (
            "py:toys.models:class_itself",
            "py:toys.models:class_itself returned a type; "
            "a torch.nn.Module, or (module, example inputs), was expected\n"
            "  return the module itself",
        ),
    ],
)
def test_py_that_gives_no_module(toys: Path, spec: str, message: str) -> None:
    assert refusal(spec) == message


def test_the_cause_is_kept_for_debugging(toys: Path) -> None:
    with pytest.raises(LoadError) as caught:
        load_model("py:toys.models:broken")
    assert isinstance(caught.value.__cause__, KeyError)


# --- Hugging Face -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as saved by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 11}
    directory = tmp_path_factory.mktemp("saved") / "llama"
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)).save_pretrained(directory)
    return directory


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "llama"))


def reconfigured(directory: Path, **change: Any) -> None:
    config = json.loads((directory / "config.json").read_text()) | change
    (directory / "config.json").write_text(json.dumps(config))


def retensored(directory: Path, **change: Tensor | None) -> None:
    tensors: dict[str, Tensor | None] = {**load_file(directory / "model.safetensors"), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_real_model_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    directory = asset("stories260K")
    loaded = load_model(str(directory))
    assert (loaded.kind, loaded.tokenizer_dir) == ("hugging-face", directory)
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert digest_of(load_model(str(directory), dtype=torch.bfloat16).model) != loaded.digest
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_the_class_is_the_one_the_configuration_names(copy: Path) -> None:
    reconfigured(copy, architectures=["LlamaModel"])
    retensored(copy, **{"lm_head.weight": None})
    assert type(load_model(str(copy)).model).__name__ == "LlamaModel"


def test_a_hub_id_is_taken_from_the_cache(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cached = tmp_path / "models--someone--tiny-llama"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(llama, cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_model("someone/tiny-llama")
    assert (loaded.kind, loaded.spec) == ("hugging-face", "someone/tiny-llama")
    assert loaded.digest == load_model(str(llama)).digest


def test_an_unknown_model(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy.parent / "elsewhere").mkdir()
    monkeypatch.chdir(copy.parent)
    for spec in ("./lama", "no/such/directory"):
        assert refusal(spec) == (
            f"there is no model {spec!r}\n  there is no such directory\n"
            f"  local directories with a model, nearest: llama\n  {KINDS}"
        )
    offline = refusal("nobody/no-such-model")
    assert offline.startswith(
        "there is no model 'nobody/no-such-model'\n  on the Hugging Face hub: LocalEntryNotFoundError: "
    )
    assert offline.endswith(f"local directories with a model, nearest: llama\n  {KINDS}")
    for odd in ("tl:gpt2", "~nobody-of-this-name", "x" * 5000, "a\0b", " ", ""):
        assert refusal(odd).startswith(f"there is no model {odd!r}\n")
    monkeypatch.chdir("elsewhere")
    assert "\n  local directories with a model, there are none\n" in refusal("./lama")


def test_a_file_is_not_a_model(copy: Path) -> None:
    assert refusal(f"{copy}/config.json", copy) == (
        "DIR/config.json is a file, not a model\n  give the directory that holds config.json and the weights"
    )


def test_a_directory_without_a_configuration(copy: Path) -> None:
    empty = copy.parent / "empty"
    empty.mkdir()
    assert refusal(str(empty), copy.parent) == (
        "DIR/empty is not a Hugging Face model: it has no config.json\n"
        "  local directories with a model, nearest: DIR/llama\n"
        "  if its tensors have HookedTransformer's names, say hooked:DIR/empty"
    )


def test_configurations_that_cannot_be_read(copy: Path) -> None:
    reconfigured(copy, architectures=["LlamaForCausalLMs"])
    message = refusal(str(copy), copy)
    assert re.match(
        r"transformers [\d.]+ has no LlamaForCausalLMs, which DIR asks for\n  nearest: LlamaForCausalLM,", message
    )
    assert message.endswith("or load the model in your own code and give py:module:factory")
    for named in (None, [], ["A", "B"]):
        reconfigured(copy, architectures=named)
        assert refusal(str(copy), copy) == (
            f'DIR/config.json names no single class in "architectures": {named!r}\n'
            '  add the class of the model, for example "architectures": ["LlamaForCausalLM"]'
        )
    (copy / "config.json").write_text("{broken")
    assert refusal(str(copy), copy).startswith("DIR/config.json is not JSON\n  Expecting property name")
    (copy / "config.json").write_text("[]")
    assert refusal(str(copy), copy).startswith('DIR/config.json names no single class in "architectures": None')


def test_damaged_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        weights.write_bytes(damaged)
        message = refusal(str(copy), copy)
        assert message.startswith("the weights in DIR are damaged\n  model.safetensors: ")
        assert message.endswith("\n  copy them again from where they came from")
    weights.unlink()
    assert refusal(str(copy), copy).startswith("transformers could not load DIR as LlamaForCausalLM\n  OSError: ")


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    """transformers would draw them at random and go on."""
    gone = "model.layers.0.self_attn.q_proj.weight"
    retensored(copy, **{gone: None, "model.norm.weight": None})
    assert refusal(str(copy), copy) == (
        f"DIR does not hold all the weights of LlamaForCausalLM\n  missing: {gone}\n  missing: model.norm.weight"
    )


def test_weights_of_another_shape(copy: Path) -> None:
    retensored(copy, **{"model.norm.weight": torch.ones(9)})
    message = refusal(str(copy), copy)
    assert message.startswith(
        ("transformers could not load DIR as Llama", "DIR does not hold all the weights of Llama")
    )


# --- digests ----------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Weights of odd kinds: no axes, no entries, bfloat16, tied, not contiguous, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.narrow = nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
        self.turned = nn.Parameter(torch.arange(6.0).view(2, 3).T)
        self.tied = self.turned
        self.register_buffer("count", torch.tensor([1, 2]))


def test_a_digest_is_of_names_shapes_types_and_bytes() -> None:
    base = digest_of(Odd())
    assert base == digest_of(Odd())
    assert re.fullmatch(r"[0-9a-f]{64}", base)
    changes: dict[str, Any] = {
        "scalar": nn.Parameter(torch.tensor(2.0000002)),
        "empty": nn.Parameter(torch.zeros(3, 0)),
        "narrow": nn.Parameter(torch.ones(2, 3, dtype=torch.float16)),
        "turned": nn.Parameter(torch.arange(6.0).view(3, 2)),
        "count": torch.tensor([1, 3]),
        "extra": nn.Parameter(torch.zeros(1)),
    }
    digests = {base}
    for name, value in changes.items():
        changed = Odd()
        setattr(changed, name, value)
        digests.add(digest_of(changed))
    assert len(digests) == 1 + len(changes)


def test_a_digest_does_not_depend_on_the_order_of_modules() -> None:
    one, other = nn.Module(), nn.Module()
    for module, names in ((one, "ab"), (other, "ba")):
        for name in names:
            module.register_parameter(name, nn.Parameter(torch.full((2,), float(ord(name)))))
    assert digest_of(one) == digest_of(other)
