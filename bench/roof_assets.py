"""The published models under one roof, each with the task it was trained for. They are read where they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from roof_tasks import task_of
from safetensors.torch import load_file
from torch import Tensor, nn

from voltmeter.task import Pairs, Task
from voltmeter.task.load import task_for
from voltmeter.task.metric import LOG_PROBABILITY
from voltmeter.wiring.load import load_model
from voltmeter.wiring.models.decision import DecisionTransformer, load_decision
from voltmeter.wiring.models.katago_file import load_katago
from voltmeter.wiring.models.modular import load_modular

Subject = tuple[nn.Module, Task]


# --- two of ARENA's monthly problems, and the induction head of "guarantees-based mechanistic interpretability" ---


def palindrome(assets: Path) -> Subject:
    """Lists of twenty numbers against themselves with one number of the second half changed, both ways round."""
    directory = assets / "arena_palindrome"
    # Its settings say "bidirectional"; only causal attention gives the figures published for it.
    model = load_model(f"hooked:{directory}?attention=causal").model
    data = load_file(directory / "data.safetensors")
    lists = data["tokens"].long()[data["is_palindrome"].bool()]
    return model, Task("palindrome", _flipped(lists[:128], 1), _flipped(lists[128:256], 2))


def _flipped(lists: Tensor, seed: int) -> Pairs:
    """Not at positions 18 and 20, where the model is published not to notice."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.tensor([11, 12, 13, 14, 15, 16, 17, 19])
    at = places[torch.randint(len(places), (len(lists),), generator=generator)]
    rows, other = torch.arange(len(lists)), lists.clone()
    other[rows, at] = (other[rows, at] + torch.randint(1, 31, (len(lists),), generator=generator)) % 31
    answers = torch.tensor([1, 0]).repeat_interleave(len(lists))
    both = torch.cat([lists, other]), torch.cat([other, lists])
    return Pairs.of(*both, answers=answers, wrong=1 - answers, groups=[f"{seed}-{n}" for n in range(len(lists))] * 2)


def sums(assets: Path) -> Subject:
    """Four-digit sums; each is asked for one digit, against another sum with another digit there."""
    directory = assets / "arena_sum"
    tokens = load_file(directory / "data.safetensors")["tokens"].long()
    position = 9 + torch.arange(len(tokens)) % 4
    answers = tokens.gather(1, position[:, None] + 1)[:, 0]
    groups = [f"sum {n}" for n in range(len(tokens))]
    task = task_of("sum", tokens, answers, groups, position=position, kinds=position.tolist())
    return load_model(f"hooked:{directory}").model, task


def induction(assets: Path) -> Subject:
    """``... a b ... a``, against another sequence that ends in a."""
    generator = torch.Generator().manual_seed(0)
    count = 1024
    last = torch.randint(26, (count,), generator=generator)
    tokens = torch.randint(25, (count, 7), generator=generator)
    tokens += tokens >= last[:, None]  # any token but the last
    at = torch.randint(1, 5, (count,), generator=generator)
    rows = torch.arange(count)
    answers = tokens[rows, at + 1]
    tokens[rows, at] = tokens[rows, -1] = last
    groups = [f"sequence {n}" for n in range(count)]
    task = task_of("induction", tokens, answers, groups, kinds=last.tolist())
    return load_model(f"hooked:{assets / 'gbmi_induction'}").model, task


# --- addition modulo a number ---------------------------------------------------------------------------------


def modular_sums(name: str, modulus: int) -> Task:
    """(a + b) mod ``modulus``, against another sum; a + b and b + a are one group."""
    tokens = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    groups = [f"{min(pair)} and {max(pair)}" for pair in tokens.tolist()]
    return task_of(name, tokens, tokens.sum(1) % modulus, groups)


def modular(name: str) -> Callable[[Path], Subject]:
    return lambda assets: (load_modular(assets / name), modular_sums(name, 59))


# --- decision transformers ------------------------------------------------------------------------------------


def decisions(name: str) -> Callable[[Path], Subject]:
    """The recorded action, against the view, return and past of another episode in which another action was taken."""

    def build(assets: Path) -> Subject:
        model = load_decision(assets / name)
        inputs, actions, episodes = windows(assets / name / "episodes.npz", model)
        at = torch.full_like(actions, inputs["returns"].shape[1] - 1)
        return model, task_of(name, inputs, actions, episodes, position=at, metric=LOG_PROBABILITY)

    return build


def windows(path: Path, model: DecisionTransformer) -> tuple[dict[str, Tensor], Tensor, list[str]]:
    """Of each step of the recorded episodes: what the model is shown, the action taken, and a name for the episode.

    Shown are the last steps, as many as the model sees, padded in front with empty views, no action and time 0.
    Episodes that were played alike have one name, and are taken once.
    """
    steps, nothing = model.n_steps, len(model.get_parameter("action_embedding.0.weight")) - 1
    rows: dict[str, list[Tensor]] = {"returns": [], "states": [], "times": [], "actions": []}
    taken, episodes, known = [], [], set()
    with np.load(path) as recorded:
        for asked in (1.0, 0.0, -1.0):
            prefix = f"rtg{asked:g}_"
            if f"{prefix}obs" not in recorded:
                continue
            views, actions, rewards = (
                torch.from_numpy(recorded[prefix + key]) for key in ("obs", "actions", "rewards")
            )
            lengths = recorded[f"{prefix}lengths"].tolist()
            for number, parts in enumerate(
                zip(*(part.split(lengths) for part in (views, actions, rewards)), strict=True)
            ):
                digest = (asked, *(part.numpy().tobytes() for part in parts))
                if digest in known:
                    continue
                known.add(digest)
                for key, tensor in _windows(asked, *parts, steps, nothing).items():
                    rows[key].append(tensor)
                taken.append(parts[1])
                episodes += [f"return {asked:g}, episode {number}"] * len(parts[1])
    inputs = {key: torch.cat(found) for key, found in rows.items() if key != "actions" or steps > 1}
    return inputs, torch.cat(taken), episodes


def _windows(
    asked: float, views: Tensor, actions: Tensor, rewards: Tensor, steps: int, nothing: int
) -> dict[str, Tensor]:
    length, before = len(actions), steps - 1
    returns = asked - torch.cat([torch.zeros(1), rewards.cumsum(0)[:-1]])
    states = views.float().permute(0, 3, 1, 2).flatten(1)
    padded = {
        "returns": torch.cat([torch.full((before,), asked), returns]),
        "states": torch.cat([torch.zeros(before, states.shape[1]), states]),
        "times": torch.cat([torch.zeros(before, dtype=torch.long), torch.arange(length)]),
    }
    found = {key: torch.stack([whole[t : t + steps] for t in range(length)]) for key, whole in padded.items()}
    done = torch.cat([torch.full((before,), nothing), actions[:-1]])
    return found | {"actions": torch.stack([done[t : t + before] for t in range(length)])}


# --- a network that plays Go ----------------------------------------------------------------------------------


def go(assets: Path) -> Subject:
    """The move the network likes best, against another position on a board of the same size; games apart."""
    directory = assets / "katago_b6c96"
    model = load_katago(directory / "g170-b6c96.bin.gz")
    inputs, games = positions(directory / "positions_1024.npz")
    with torch.no_grad():
        best = torch.cat(
            [model(*rows).policy.argmax(1) for rows in zip(*(t.split(64) for t in inputs.values()), strict=True)]
        )
    boards = [mask.numpy().tobytes() for mask in inputs["mask"]]
    return model, task_of("go", inputs, best, games, kinds=boards, count=512, metric=LOG_PROBABILITY)


def positions(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Positions in KataGo's training format: inputs, and for each position its game."""
    with np.load(path) as data:
        bits = np.unpackbits(data["binaryInputNCHWPacked"], axis=2)[:, :, :361]
        planes = torch.from_numpy(bits).reshape(-1, 22, 19, 19).float()
        features = torch.from_numpy(data["globalInputNC"])
        games = [str(tuple(row.astype(int))) for row in data["globalTargetsNC"][:, 41:47]]  # the game's hash
    return {"planes": planes, "features": features, "mask": planes[:, 0] > 0}, games


# --- text, and the demo ---------------------------------------------------------------------------------------


def text(task: str) -> Callable[[Path], Subject]:
    def build(assets: Path) -> Subject:
        loaded = load_model(str(assets / "stories260K"))
        return loaded.model, task_for(loaded, task)

    return build


def demo(assets: Path) -> Subject:
    loaded = load_model("demo")
    return loaded.model, task_for(loaded, "induction-demo")


ASSETS: dict[str, Callable[[Path], Subject]] = {
    "arena_palindrome": palindrome,
    "arena_sum": sums,
    "gbmi_induction": induction,
    "pizza_model_a": modular("pizza_model_a"),
    "clock_model_b": modular("clock_model_b"),
    "dt_dynamic_obstacles": decisions("dt_dynamic_obstacles"),
    "dt_minigrid_memory": decisions("dt_minigrid_memory"),
    "stories260K pronoun": text("stories-pronoun"),
    "stories260K name": text("stories-name"),
    "stories260K quote": text("stories-quote"),
    "demo": demo,
    "katago_b6c96": go,
}
