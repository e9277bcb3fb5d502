"""The model that ships with voltmeter: what its record says is true, and it does induction by two layers of heads."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import script
from safetensors.torch import load_file
from torch import Tensor

import voltmeter
from voltmeter.task.gate import gate
from voltmeter.task.sets import task_set
from voltmeter.task.sets.induction import BOS, N_POSITIONS, N_TOKENS, build
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.load import DATA, digest_of, load_demo

PREVIOUS_TOKEN = ("a0.h4", "a0.h5")
INDUCTION = ("a1.h0", "a1.h3", "a1.h4", "a1.h5", "a1.h7")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_demo()


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((DATA / "demo.json").read_text())


@pytest.fixture(scope="module", name="script")
def train_demo() -> ModuleType:
    return script("tools/train_demo.py")


# --- the record ---------------------------------------------------------------------------------------------------


def test_it_is_small_and_float32(model: HookedModel) -> None:
    assert (DATA / "demo.safetensors").stat().st_size < 1_000_000
    assert {tensor.dtype for tensor in load_file(DATA / "demo.safetensors").values()} == {torch.float32}
    assert (model.settings.n_layers, model.settings.n_heads, model.settings.d_mlp) == (2, 8, None)


@torch.no_grad()
def test_the_record_is_true(model: HookedModel, record: dict[str, Any], script: ModuleType) -> None:
    assert record["digest"] == digest_of(model)
    assert record["held_out"]["seed"] != record["training"]["seed"]
    count, seed = record["held_out"]["sequences"], record["held_out"]["seed"]
    tokens, known = script.sequences(count, torch.Generator().manual_seed(seed))
    loss, accuracy = script.loss_and_accuracy(model, tokens, known)
    assert accuracy == record["held_out"]["accuracy"] == 1.0
    assert loss.item() == pytest.approx(record["held_out"]["loss"], abs=1e-5)
    assert record["training"]["loss_last_100_steps"] < 0.001
    for kind, layers in script.attention_to(model, tokens[:500], known[:500]).items():
        assert torch.tensor(layers).allclose(torch.tensor(record["attention"][kind]), atol=0.02)


def trained(script: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[bytes, Any]:
    monkeypatch.setattr(sys, "argv", ["train_demo.py", "--out", str(out), *options])
    script.main()
    return (out / "demo.safetensors").read_bytes(), json.loads((out / "demo.json").read_text())


def test_the_script_makes_both_files_and_the_same_ones_again(
    script: ModuleType,
    record: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "HELD_OUT", 50)
    first, made = trained(script, tmp_path / "one", monkeypatch, "--steps", "4", "--batch", "8")
    assert "step     0   loss 4." in capsys.readouterr().out
    assert made.keys() == record.keys()
    assert made["settings"] == record["settings"]
    assert made["training"]["command"].startswith("python tools/train_demo.py --out src/voltmeter/data --steps 4 ")
    assert trained(script, tmp_path / "two", monkeypatch, "--steps", "4", "--batch", "8")[0] == first
    assert trained(script, tmp_path / "other", monkeypatch, "--steps", "4", "--batch", "8", "--seed", "1")[0] != first


def test_the_recorded_command_is_the_script_as_it_is(script: ModuleType, record: dict[str, Any]) -> None:
    words = record["training"]["command"].split()
    chosen = vars(script.options(words[2:]))
    assert words[:2] == ["python", "tools/train_demo.py"]
    assert chosen == vars(script.options(["--out", "src/voltmeter/data"]))  # the defaults
    assert {name: record["training"][name] for name in ("steps", "batch", "penalty", "seed")} == {
        name: value for name, value in chosen.items() if name != "out"
    }


# --- it must look tokens up: nothing else tells the answer ----------------------------------------------------------


def test_no_position_and_no_distance_tells_the_answer(script: ModuleType) -> None:
    """In training: whoever always looks at the best position, or the best distance, is right one time in seven."""
    tokens, known = script.sequences(20_000, torch.Generator().manual_seed(3))
    row, question = known.nonzero(as_tuple=True)
    earlier = (tokens[row] == tokens[row, question, None]).int().argmax(dim=1)
    assert torch.equal(tokens[row, earlier], tokens[row, question])
    assert (earlier < question).all()
    assert torch.equal(tokens[row, earlier + 1], tokens[row, question + 1])
    counts = torch.zeros(N_POSITIONS, N_POSITIONS)
    counts.index_put_((question, earlier), torch.ones(len(row)), accumulate=True)
    likely = counts.sum(dim=1) > 500
    assert (counts.amax(dim=1) / counts.sum(dim=1))[likely][5:].max() < 0.15
    distances = torch.bincount(question - earlier) / len(row)
    assert distances.max() < 0.15


@torch.no_grad()
def test_without_the_evidence_it_does_not_know(model: HookedModel) -> None:
    """Sabotage: the first A taken away, the answers are chance."""
    pairs = build().held_out
    rows = torch.arange(len(pairs))
    key = pairs.clean[rows, pairs.position]
    first = (pairs.clean == key[:, None]).int().argmax(dim=1)
    blind = pairs.clean.clone()
    blind[rows, first] = N_TOKENS - 1 - key
    right = model(blind)[rows, pairs.position].argmax(dim=-1) == pairs.answers[:, 0]
    assert right.float().mean() < 0.2


# --- the task -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_model_does_the_task(model: HookedModel) -> None:
    task = build()
    for pairs in (task.train, task.held_out):
        logits = model(pairs.clean)[torch.arange(len(pairs)), pairs.position]
        assert (logits.argmax(dim=-1) == pairs.answers[:, 0]).all()  # of the whole vocabulary: 100%
    assert str(gate(task, model)).startswith("the model does it: 100% right, logit difference 21.")
    untrained = gate(task, HookedModel(model.settings).initialise(0))
    assert not untrained.does_it


def test_the_task_is_what_it_says() -> None:
    task = build(0)
    assert (task.name, len(task.train), len(task.held_out)) == ("induction-demo", 256, 256)
    assert task.example.shape == (2, N_POSITIONS)
    assert build(0).digest == task.digest == task_set("induction-demo")(None, 0).digest
    assert build(1).digest != task.digest
    for pairs in (task.train, task.held_out):
        assert (pairs.clean[:, 0] == BOS).all()
        for i in range(len(pairs)):
            clean, corrupted = pairs.clean[i].tolist(), pairs.corrupted[i].tolist()
            question, span = int(pairs.position[i]), pairs.spans[i]
            key = clean[question]
            assert span is not None
            assert span[1] < question
            assert [n for n, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b] == list(
                range(span[0], span[1] + 1)
            )
            for tokens, answer in ((clean, pairs.answers[i, 0]), (corrupted, pairs.wrong[i, 0])):
                assert tokens.count(key) == 2
                assert tokens[tokens.index(key) + 1] == answer
                assert tokens.count(int(answer)) == 1
                assert len(set(tokens)) == N_POSITIONS - 1  # nothing else stands twice
            assert int(pairs.wrong[i, 0]) not in clean
            assert pairs.groups[i].startswith(f"token {key}, distance ")
            assert pairs.texts[i][0].split()[1:] == [str(token) for token in clean[1:]]


def test_held_out_pairs_are_of_other_tokens_and_other_distances() -> None:
    task = build()
    keys, distances, answers = [], [], []
    for pairs in (task.train, task.held_out):
        names = [name.split() for name in pairs.groups]
        keys.append({name[1] for name in names})
        distances.append({int(name[3]) for name in names})
        answers.append({*pairs.answers.flatten().tolist(), *pairs.wrong.flatten().tolist()})
        assert min(len(keys[-1]), len(answers[-1])) >= 30
        assert len(distances[-1]) >= 10
        assert len(set(pairs.position.tolist())) == 17
        assert len(set(pairs.spans)) > 60
        assert all(pairs.groups[i] == pairs.groups[i + 1] for i in range(0, len(pairs), 2))  # both directions
        assert torch.equal(pairs.clean[0::2], pairs.corrupted[1::2])
    for train, held_out in (keys, distances, answers):
        assert not train & held_out


# --- the circuit: previous-token heads are read by the keys of induction heads ---------------------------------------


@pytest.fixture(scope="module")
def wiring(model: HookedModel) -> Any:
    return voltmeter.wire(model, build().example)


@torch.no_grad()
def logit_difference(wiring: Any, keep: Tensor) -> float:
    task = build()
    pairs, fill = task.held_out, voltmeter.fill.resample()
    outputs = voltmeter.run(wiring, pairs.clean, keep=keep, fill=fill, corrupted=pairs.corrupted)
    return task.metric(outputs, pairs).mean().item()


@pytest.fixture(scope="module")
def ends(wiring: Any) -> tuple[float, float]:
    """The held-out logit difference with nothing kept, and with everything."""
    n = len(wiring.edges)
    return logit_difference(wiring, torch.zeros(n)), logit_difference(wiring, torch.ones(n))


def faithfulness(wiring: Any, keep: Tensor, ends: tuple[float, float]) -> float:
    return (logit_difference(wiring, keep) - ends[0]) / (ends[1] - ends[0])


def keeping(wiring: Any, wanted: set[tuple[str, str]]) -> Tensor:
    keep = torch.tensor([float((edge.writer, edge.reader) in wanted) for edge in wiring.edges])
    assert keep.sum() == len(wanted)
    return keep


def test_the_demo_is_wired(wiring: Any) -> None:
    assert (len(wiring.writers), len(wiring.readers), len(wiring.edges)) == (17, 49, 257)


def test_induction_is_composed_of_two_layers(wiring: Any, ends: tuple[float, float]) -> None:
    """22 edges, as the textbook has them, keep 93% of what the model does."""
    textbook = {("input", f"{head}<v>") for head in (*PREVIOUS_TOKEN, *INDUCTION)}
    textbook |= {(head, f"{later}<k>") for head in PREVIOUS_TOKEN for later in INDUCTION}
    textbook |= {(head, "logits") for head in INDUCTION}
    assert len(textbook) == 22
    assert faithfulness(wiring, keeping(wiring, textbook), ends) == pytest.approx(0.934, abs=0.005)


@pytest.mark.parametrize(("role", "left"), [("q", 1.0), ("k", 0.51), ("v", 1.0)])
def test_previous_token_heads_speak_to_keys(wiring: Any, ends: tuple[float, float], role: str, left: float) -> None:
    """Keys decide where is looked: with them corrupted it looks where neither answer is, half way to corrupted."""
    cut = [edge.writer in PREVIOUS_TOKEN and edge.reader.endswith(f"<{role}>") for edge in wiring.edges]
    assert sum(cut) == 16
    assert faithfulness(wiring, 1.0 - torch.tensor(cut).float(), ends) == pytest.approx(left, abs=0.01)


def test_attention_is_where_it_should_be(record: dict[str, Any]) -> None:
    previous, induction = record["attention"]["previous_token"], record["attention"]["induction"]
    named = {f"a{i}.h{j}": (previous[i][j], induction[i][j]) for i in range(2) for j in range(8)}
    assert {name for name, (before, _) in named.items() if before > 0.5} == set(PREVIOUS_TOKEN)
    assert {name for name, (_, followed) in named.items() if followed > 0.91} == set(INDUCTION)
    assert max(induction[0]) < 0.05  # no head does it in one layer
