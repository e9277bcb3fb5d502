"""Published models in formats of their own do what is recorded of them, are wired, and are refused when damaged."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT, asset
from laws import EXACT
from safetensors.torch import load_file, save_file
from torch import Tensor

import voltmeter as vm
from voltmeter.errors import AddressError, LoadError
from voltmeter.wiring import Wiring
from voltmeter.wiring.inputs import call, output_tensors
from voltmeter.wiring.load import load_model
from voltmeter.wiring.models.decision import load_decision
from voltmeter.wiring.models.modular import load_modular

# --- addition modulo 59 -----------------------------------------------------------------------------------------

MODULUS = 59
SUMS = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))


@pytest.mark.parametrize(("name", "irrelevance"), [("pizza_model_a", 0.1717), ("clock_model_b", 0.848)])
def test_modular_addition_is_as_published(name: str, irrelevance: float) -> None:
    """Always right; and how little the right answer's logit depends on a + b, given a - b, as a share."""
    with torch.no_grad():
        logits = load_modular(asset(name))(SUMS)[:, -1]
    answers = SUMS.sum(1) % MODULUS
    assert (logits.argmax(1) == answers).all()
    right = logits.gather(1, answers[:, None])
    difference = (SUMS[:, 0] - SUMS[:, 1]) % MODULUS
    within = torch.stack([right[difference == d].std(correction=0) for d in range(MODULUS)])
    assert float(within.mean() / right.std(correction=0)) == pytest.approx(irrelevance, abs=5e-4)  # its last digit


def test_pizza_has_heads_whose_queries_and_keys_do_nothing() -> None:
    loaded = load_model(f"modular:{asset('pizza_model_a')}", dtype=torch.float64)
    wiring = vm.wire(loaded.model, loaded.example)
    assert [writer.name for writer in wiring.writers] == ["input", *(f"a0.h{n}" for n in range(4)), "m0"]
    keep = torch.tensor([0.0 if edge.reader[-3:] in ("<q>", "<k>") else 1.0 for edge in wiring.edges])
    assert keep.sum() == len(wiring.edges) - 8
    with torch.no_grad():
        cut = vm.run(wiring, SUMS[:50], keep.double(), vm.fill.zero())
        assert (cut - wiring.model(SUMS[:50])).abs().max() <= EXACT * cut.abs().max()


# --- decision transformers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """``bench/one_roof.py``, which finds its neighbours beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        yield importlib.import_module("one_roof")
    for name in ("one_roof", "roof_assets", "roof_tasks", "roof_trained"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "episodes"), [("dt_dynamic_obstacles", 180), ("dt_minigrid_memory", 8)])
def test_a_decision_transformer_does_again_what_it_did(name: str, episodes: int, bench: ModuleType) -> None:
    """Every recorded action, from the views, returns and actions before it. Of memory's 120 episodes 8 differ."""
    model = load_decision(asset(name))
    inputs, actions, groups = sys.modules["roof_assets"].windows(asset(name) / "episodes.npz", model)
    assert len(set(groups)) == episodes
    with torch.no_grad():
        chosen = model(**inputs)[:, -1].argmax(1)
    assert torch.equal(chosen, actions)


def test_decision_needs_an_action_for_every_step_but_the_last() -> None:
    model = load_decision(asset("dt_minigrid_memory"))
    with pytest.raises(AddressError, match="3 steps and 3 actions were given"):
        model(torch.zeros(1, 3), torch.zeros(1, 3, 980), torch.zeros(1, 3).long(), torch.zeros(1, 3).long())


# --- all of them: wired, by the laws ------------------------------------------------------------------------------

SPECS = {
    "modular:clock_model_b": (6, 23),
    "modular:pizza_model_a": (6, 23),
    "decision:dt_dynamic_obstacles": (4, 13),
    "decision:dt_minigrid_memory": (11, 110),
    "hooked:arena_sum": (7, 52),
}


@pytest.mark.parametrize("spec", SPECS)
def test_the_laws_hold(spec: str) -> None:
    kind, name = spec.split(":")
    loaded = load_model(f"{kind}:{asset(name)}", dtype=torch.float64)
    example = torch.randint(12, (2, 14)) if loaded.example is None else loaded.example
    wiring = vm.wire(loaded.model, example)
    assert (len(wiring.writers), len(wiring.edges)) == SPECS[spec]
    assert law_errors(wiring, example) == (pytest.approx(0, abs=EXACT), pytest.approx(0, abs=EXACT))


def law_errors(wiring: Wiring, inputs: object) -> tuple[float, float]:
    """Of the engine: everything kept against the plain run; nothing kept against the rows in the other order."""
    other = torch.utils._pytree.tree_map(lambda t: t.flip(0), inputs)
    errors = []
    with torch.no_grad():
        for keep, like in ((torch.ones, inputs), (torch.zeros, other)):
            (expected,) = output_tensors(call(wiring.model, like))
            kept = keep(len(wiring.edges), dtype=torch.float64)
            (found,) = output_tensors(vm.run(wiring, inputs, kept, vm.fill.resample(), other))
            errors.append(float((found - expected).abs().max() / expected.abs().max()))
    return errors[0], errors[1]


# --- what is refused ----------------------------------------------------------------------------------------------


def copied(name: str, to: Path, tensors: dict[str, Tensor | None], **settings: object) -> Path:
    """A model's directory with some tensors replaced, or (None) taken out, and some of its settings changed."""
    shutil.copytree(asset(name), to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("episodes.npz"))
    weights = load_file(to / "weights.safetensors") | tensors
    save_file({key: tensor for key, tensor in weights.items() if tensor is not None}, to / "weights.safetensors")
    about = json.loads((to / "about.json").read_text())
    for key, value in settings.items():
        about[key] = value
    (to / "about.json").write_text(json.dumps(about))
    return to


@pytest.mark.parametrize("name", ["clock_model_b", "dt_dynamic_obstacles"])
def test_a_checkpoint_of_torch_is_read_if_it_holds_nothing_but_tensors(name: str, tmp_path: Path) -> None:
    kind = "decision" if name.startswith("dt_") else "modular"
    directory = copied(name, tmp_path / name, {})
    tensors = load_file(directory / "weights.safetensors")
    (directory / "weights.safetensors").unlink()
    torch.save(tensors, directory / "checkpoint.pt")
    assert load_model(f"{kind}:{directory}").digest == load_model(f"{kind}:{asset(name)}").digest
    torch.save({"model": tensors, "by": Path()}, directory / "checkpoint.pt")
    with pytest.raises(LoadError, match=r"checkpoint.pt holds more than tensors, and loading it could run code"):
        load_model(f"{kind}:{directory}")
    torch.save(tensors, directory / "another.pth")
    with pytest.raises(LoadError, match=r"holds more than one file of weights\n  another.pth\n  checkpoint.pt"):
        load_model(f"{kind}:{directory}")


REFUSED = {
    "missing": ("clock_model_b", {"blocks.0.mlp.b_in": None}, {}, "missing: blocks.0.mlp.b_in"),
    "first missing": ("clock_model_b", {"embed.W_E": None}, {}, "embed.W_E is missing; 2 axes were expected"),
    "unknown": ("clock_model_b", {"ln.w": torch.ones(3)}, {}, r"unexpected: ln.w \[3\]"),
    "shape": (
        "clock_model_b",
        {"blocks.0.attn.W_O": torch.zeros(128, 64)},
        {},
        r"blocks.0.attn.W_O has shape \[128, 64\]; \[128, 128\] was expected",
    ),
    "nan": (
        "clock_model_b",
        {"unembed.W_U": torch.full((128, 59), torch.nan)},
        {},
        "unembed.W_U holds values that are",
    ),
    "setting": (
        "clock_model_b",
        {},
        {"config": {"attn_coeff": 2, "act_fn": "Quad"}},
        "attn_coeff is 2; a number from 0 to 1 was expected\n  act_fn is 'Quad'; it can be ReLU or GeLU",
    ),
    "settings of other types": (
        "clock_model_b",
        {},
        {"config": {"attn_coeff": True, "act_fn": ["ReLU"]}},
        r"attn_coeff is True; a number from 0 to 1 was expected\n  act_fn is \['ReLU'\]; it can be ReLU or GeLU",
    ),
    "whole numbers": (
        "clock_model_b",
        {"embed.W_E": torch.ones(128, 59, dtype=torch.int64)},
        {},
        "embed.W_E is torch.int64; floating point was expected",
    ),
    "no settings": (
        "clock_model_b",
        {},
        {"config": None},
        r"has no settings\n  write them to config.json, or to about",
    ),
    "no axes": (
        "dt_dynamic_obstacles",
        {"action_predictor.weight": torch.zeros(())},
        {},
        r"action_predictor.weight has shape \[\]; 2 axes were expected",
    ),
    "no actions": ("dt_dynamic_obstacles", {"action_predictor.weight": None}, {}, "missing: action_predictor.weight"),
    "trunk": ("dt_dynamic_obstacles", {"transformer.blocks.0.attn.W_O": None}, {}, "missing: blocks.0.attn.W_O"),
    "width": (
        "dt_dynamic_obstacles",
        {"time_embedding.weight": torch.zeros(1001, 64)},
        {},
        r"time_embedding.weight has shape \[1001, 64\]; \[1001, 128\] was expected",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    name, tensors, settings, message = REFUSED[case]
    kind = "decision" if name.startswith("dt_") else "modular"
    directory = copied(name, tmp_path, tensors, **settings)
    with pytest.raises(LoadError, match=message):
        load_model(f"{kind}:{directory}")


@pytest.mark.parametrize("kind", ["modular", "decision"])
def test_no_directory(kind: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no directory"):
        load_model(f"{kind}:{tmp_path}/none")
    with pytest.raises(LoadError, match="no file or directory is named\n  write it behind the colon"):
        load_model(f"{kind}:")
    with pytest.raises(LoadError, match="there is no directory ~nobody-of-this-name"):
        load_model(f"{kind}:~nobody-of-this-name/model")


# --- under one roof -----------------------------------------------------------------------------------------------


def test_a_row_is_measured_and_its_neighbour_may_fail(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = asset("dt_minigrid_memory").parent

    def broken(assets: Path) -> object:
        raise OSError("the disk is gone\nand more")

    subjects = {"broken": broken, "pizza": bench.SUBJECTS["pizza_model_a"]}
    monkeypatch.setattr(bench, "SUBJECTS", subjects)
    monkeypatch.setattr(sys, "argv", ["one_roof.py", "--method", "eap", "--assets", str(assets)])
    assert bench.main() == 1
    _, failed, found = capsys.readouterr().out.splitlines()
    assert "failed after 0 s: OSError: the disk is gone and more" in failed
    assert found.startswith("pizza")
    assert "23   100%" in found


def test_a_model_that_cannot_do_its_task_fails(bench: ModuleType) -> None:
    model, task = bench.SUBJECTS["pizza_model_a"](asset("pizza_model_a").parent)
    with torch.no_grad():
        model.unembed["W_U"].mul_(-1)
    with pytest.raises(RuntimeError, match="the model does not do it: 0% right"):
        bench._figures(lambda assets: (model, task), Path(), "eap", {})


def test_twins_are_of_one_kind_and_never_of_one_group(bench: ModuleType) -> None:
    task_of = sys.modules["roof_tasks"].task_of
    rows = torch.arange(120)[:, None] * torch.ones(1, 2, dtype=torch.long)
    answers, kinds, groups = rows[:, 0] % 3, (rows[:, 0] % 2).tolist(), [f"{n // 4}" for n in range(120)]
    task = task_of("rows", rows, answers, groups, kinds=kinds, count=20)
    assert (len(task.train), len(task.held_out)) == (20, 20)
    for side in (task.train, task.held_out):
        clean, other = side.clean[:, 0], side.corrupted[:, 0]
        assert (clean % 2 == other % 2).all()
        assert (side.answers[:, 0] == clean % 3).all()
        assert (side.wrong[:, 0] == other % 3).all()
        assert (clean % 3 != other % 3).all()
        assert (clean // 4 != other // 4).all()
    seen = {int(n) // 4 for side in (task.train.clean, task.train.corrupted) for n in side[:, 0]}
    judged = {int(n) // 4 for side in (task.held_out.clean, task.held_out.corrupted) for n in side[:, 0]}
    assert not seen & judged


def test_what_is_taught_here_is_true(bench: ModuleType) -> None:
    taught = sys.modules["roof_trained"]
    generator = torch.Generator().manual_seed(1)
    tokens, _, answers = taught._brackets(200, generator)
    for row, answer in zip(tokens[:, :-1].tolist(), answers[:, 0].tolist(), strict=True):
        depths = [sum(1 if token else -1 for token in row[: n + 1]) for n in range(len(row))]
        assert depths[-1] == 0
        assert answer == (min(depths) >= 0)
    assert 0.4 < answers.double().mean() < 0.7
    tokens, position, answers = taught._repeats(50, generator)
    for row, at, answer in zip(tokens.tolist(), position[:, 0].tolist(), answers[:, 0].tolist(), strict=True):
        assert row[row.index(row[at]) + 1] == answer
        assert row.count(row[at]) == 2
    tokens, position, answers = taught._lists(50, generator)
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert sorted(row[:5]) == answer
        assert row[6:] == answer[:-1]


def test_training_is_the_same_for_the_same_seed(bench: ModuleType) -> None:
    taught = sys.modules["roof_trained"]
    one, other = (taught.train(taught.settings(23, 2, 1, 32), taught._sums, steps=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
