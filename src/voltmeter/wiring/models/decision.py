"""Decision Transformers as in "Decision Transformer Interpretability" (Bloom): what to do next in a small world.

Each step of an episode is three tokens, return-to-go, state, action; the last step has no action yet.

    token = embedding of the return-to-go, state or action + embedding of the time
    logits = action_predictor(trunk(tokens)) at the states

The trunk is a HookedTransformer. The checkpoints also hold predictors of states and rewards; they are left aside.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from voltmeter.errors import AddressError, LoadError
from voltmeter.wiring.hooked import HookedModel
from voltmeter.wiring.hooked_files import load_hooked, read_tensors, weights_file
from voltmeter.wiring.models.given import fill_module, path_of, settings_in

TRUNK = "transformer."
_ASIDE = ("state_predictor.", "reward_predictor.")
_TOKEN_TENSORS = ("reward_embedding.0", "state_embedding", "action_embedding.0", "time_embedding", "action_predictor")


def load_decision(directory: Path | str, dtype: torch.dtype = torch.float32) -> "DecisionTransformer":
    """The model in a directory, in eval mode: its only file of tensors, as for ``load_hooked``, and its configuration.

    ``config.json`` holds that, or ``about.json`` under "checkpoint" and there "model_config".

    Raises:
        LoadError: files that are missing or damaged, settings that are none of a model, tensors that do not fit.
    """
    directory = path_of(directory)
    config = settings_in(directory, "checkpoint", "model_config")
    trunk = load_hooked(directory, settings=_trunk_settings(config), dtype=dtype)
    found = read_tensors(weights_file(directory))
    own = {name: tensor for name, tensor in found.items() if not name.startswith((TRUNK, *_ASIDE))}
    sizes = {name: own[f"{name}.weight"].shape for name in _TOKEN_TENSORS if f"{name}.weight" in own}
    misses = [f"missing: {name}.weight" for name in _TOKEN_TENSORS if name not in sizes]
    misses += [
        f"{name}.weight has shape {list(size)}; 2 axes were expected" for name, size in sizes.items() if len(size) != 2
    ]
    if misses:
        raise LoadError(f"{directory} holds no decision transformer", misses)
    model = DecisionTransformer(
        trunk,
        n_states=sizes["state_embedding"][-1],
        n_actions=sizes["action_embedding.0"][0],
        n_times=sizes["time_embedding"][0],
        n_choices=sizes["action_predictor"][0],
    ).to(dtype)
    weights = {f"{TRUNK}{name}": tensor for name, tensor in trunk.state_dict().items()}
    fill_module(model, own | weights, str(directory))
    return model.eval()


def _trunk_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the trunk. ``layer_norm`` is "LN", or false for none; the activation is ReLU where none is named."""
    return {
        "prefix": TRUNK,
        "attention": "causal",
        "norm": config.get("layer_norm") or None,
        "activation": config.get("activation_fn", "relu"),
        **{name: config[name] for name in ("n_layers", "n_heads", "d_model", "d_mlp", "n_ctx") if name in config},
    }


class DecisionTransformer(nn.Module):
    """``n_states``: entries of a view; ``n_actions``: those that are seen, padding among them; ``n_choices``: those
    that can be chosen.
    """

    def __init__(self, trunk: HookedModel, n_states: int, n_actions: int, n_times: int, n_choices: int) -> None:
        super().__init__()
        width = trunk.settings.d_model
        self.reward_embedding = nn.Sequential(nn.Linear(1, width, bias=False))
        self.state_embedding = nn.Linear(n_states, width, bias=False)
        self.action_embedding = nn.Sequential(nn.Embedding(n_actions, width))
        self.time_embedding = nn.Embedding(n_times, width)
        self.transformer = trunk
        self.action_predictor = nn.Linear(width, n_choices)

    @property
    def n_steps(self) -> int:
        """The most steps of an episode that the model sees."""
        return math.ceil((self.transformer.settings.n_ctx or 2) / 3)

    def forward(
        self,
        returns: Float[Tensor, "batch step"],
        states: Float[Tensor, "batch step state"],
        times: Int[Tensor, "batch step"],
        actions: Int[Tensor, "batch earlier"] | None = None,
    ) -> Float[Tensor, "batch step choice"]:
        """Logits of what to do at each step. ``states``: views, [channel, row, column] flattened. ``actions``: those
        of all steps but the last; None where there is one step. Raises AddressError for another number of them.
        """
        earlier = 0 if actions is None else actions.shape[1]
        if earlier != returns.shape[1] - 1:
            raise AddressError(f"{returns.shape[1]} steps and {earlier} actions were given; the last step has none yet")
        time = self.time_embedding(times)
        told = self.reward_embedding(returns[..., None]) + time
        seen = self.state_embedding(states) + time
        tokens = torch.stack([told, seen], dim=2)
        if actions is not None:
            done = self.action_embedding(actions) + time[:, :-1]
            before = torch.cat([tokens[:, :-1], done[:, :, None]], dim=2).flatten(1, 2)
            tokens = torch.cat([before, tokens[:, -1]], dim=1)
        x = self.transformer(tokens.flatten(1, -2))
        logits: Tensor = self.action_predictor(x[:, 1::3])
        return logits
