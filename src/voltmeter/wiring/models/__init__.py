"""Published models in formats of their own, each read into plain torch: prefixes for ``load_model``.

katago:FILE             a network that plays Go, KataGo's .bin.gz
modular:DIR             a transformer that adds modulo a number ("The Clock and the Pizza")
decision:DIR            a decision transformer ("Decision Transformer Interpretability")

Each comes with an example to wire it with: positions, sums and episodes of noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voltmeter.wiring.load import LoadedModel, digest_of, register_kind

_BOARD = 19


def _katago(spec: str, dtype: torch.dtype | None) -> LoadedModel:
    from voltmeter.wiring.models.katago import FEATURES, PLANES
    from voltmeter.wiring.models.katago_file import load_katago

    model = load_katago(_rest(spec), dtype or torch.float32)
    drawn = _generator()
    planes = (torch.rand(2, PLANES, _BOARD, _BOARD, generator=drawn) < 0.2).to(dtype or torch.float32)
    planes[:, 0] = 1
    features = torch.randn(2, FEATURES, generator=drawn).to(planes)
    return _loaded(spec, model, {"planes": planes, "features": features, "mask": planes[:, 0] > 0})


def _modular(spec: str, dtype: torch.dtype | None) -> LoadedModel:
    from voltmeter.wiring.models.modular import load_modular

    model = load_modular(_rest(spec), dtype or torch.float32)
    size, length = model.embed["W_E"].shape[1], len(model.pos_embed["W_pos"])
    return _loaded(spec, model, torch.randint(size, (2, length), generator=_generator()))


def _decision(spec: str, dtype: torch.dtype | None) -> LoadedModel:
    from voltmeter.wiring.models.decision import load_decision

    model = load_decision(_rest(spec), dtype or torch.float32)
    steps, drawn = model.n_steps, _generator()
    state = model.state_embedding.weight
    example: dict[str, Tensor] = {
        "returns": torch.rand(2, steps, generator=drawn).to(state.dtype),
        "states": (torch.rand(2, steps, state.shape[1], generator=drawn) < 0.1).to(state.dtype),
        "times": torch.arange(steps).expand(2, -1).clone(),
    }
    if steps > 1:
        choices = model.action_predictor.out_features
        example["actions"] = torch.randint(choices, (2, steps - 1), generator=drawn)
    return _loaded(spec, model, example)


def _loaded(spec: str, model: nn.Module, example: object) -> LoadedModel:
    return LoadedModel(model, None, spec, "python", digest_of(model), example)


def _rest(spec: str) -> str:
    return spec.partition(":")[2]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


for _prefix, _loader in (("katago", _katago), ("modular", _modular), ("decision", _decision)):
    register_kind(_prefix, _loader)
