"""The transformers of "The Clock and the Pizza" (Zhong et al. 2306.17844): addition modulo a number.

The code they come from (and the one it grew out of, Nanda's for 2301.05217) keeps weights the other way round than
HookedTransformer: ``embed.W_E`` [d_model, vocab], ``W_Q`` [heads, d_head, d_model], ``W_O`` [d_model, heads * d_head].

    pattern = c * softmax(q . k / sqrt(d_head)) + 1 - c        c, the attention coefficient, from 0 ("pizza") to 1

Attention is not causal, and there is no norm. Where c is 0 every key counts as one, and queries and keys do nothing:
their edges are there and can be cut at no cost.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from voltmeter.errors import AddressError, LoadError
from voltmeter.wiring.hooked_files import read_tensors, weights_file
from voltmeter.wiring.models.given import fill_module, path_of, settings_in

Stream = Float[Tensor, "batch pos d_model"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"ReLU": functional.relu, "GeLU": functional.gelu}
_MADE_ANEW = "attn.mask"  # a buffer that the published code does not use either


def load_modular(directory: Path | str, dtype: torch.dtype = torch.float32) -> "ModularTransformer":
    """The model in a directory, in eval mode: its only file of tensors, as for ``load_hooked``, and its configuration.

    ``config.json`` holds that, or ``about.json`` under "config".

    Raises:
        LoadError: files that are missing or damaged, settings that are none of a model, tensors that do not fit.
    """
    directory = path_of(directory)
    settings = settings_in(directory, "config")
    found = read_tensors(weights_file(directory))
    tensors: dict[str, Tensor] = {name: tensor for name, tensor in found.items() if not name.endswith(_MADE_ANEW)}
    model = _shaped(tensors, settings, directory).to(dtype)
    said = {name: value for name, value in model.state_dict().items() if name.endswith("attn.coefficient")}
    fill_module(model, tensors | said, str(directory))
    return model.eval()


def _shaped(tensors: Mapping[str, Tensor], settings: Mapping[str, object], directory: Path) -> "ModularTransformer":
    """A model of the sizes that the tensors show; those of later layers are checked when they are filled in."""
    coefficient, activation = settings.get("attn_coeff", 1), settings.get("act_fn", "ReLU")
    misses = []
    if not isinstance(coefficient, int | float) or isinstance(coefficient, bool) or not 0 <= coefficient <= 1:
        misses.append(f"attn_coeff is {coefficient!r}; a number from 0 to 1 was expected")
    if activation not in list(_ACTIVATIONS):
        misses.append(f"act_fn is {activation!r}; it can be {' or '.join(_ACTIVATIONS)}")
    axes = {"embed.W_E": 2, "pos_embed.W_pos": 2, "unembed.W_U": 2, "blocks.0.attn.W_Q": 3, "blocks.0.mlp.W_in": 2}
    misses += [
        f"{name} {'is missing' if name not in tensors else f'has shape {list(tensors[name].shape)}'}; "
        f"{n} axes were expected"
        for name, n in axes.items()
        if name not in tensors or tensors[name].ndim != n
    ]
    if misses or not isinstance(coefficient, int | float):
        raise LoadError(f"{directory} holds no model of modular addition", misses)
    (d_model, d_vocab), n_ctx = tensors["embed.W_E"].shape, len(tensors["pos_embed.W_pos"])
    n_heads, d_head, _ = tensors["blocks.0.attn.W_Q"].shape
    n_layers = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    blocks = [
        Block(d_model, n_heads, d_head, len(tensors["blocks.0.mlp.W_in"]), float(coefficient), str(activation))
        for _ in range(n_layers)
    ]
    return ModularTransformer(d_vocab, n_ctx, d_model, blocks, tensors["unembed.W_U"].shape[1])


class ModularTransformer(nn.Module):
    """Tokens [batch, pos] to logits [batch, pos, vocab]; the answer is read at the last position."""

    def __init__(self, d_vocab: int, n_ctx: int, d_model: int, blocks: list["Block"], d_vocab_out: int) -> None:
        super().__init__()
        self.embed, self.pos_embed, self.unembed = (nn.ParameterDict() for _ in range(3))
        self.embed["W_E"] = _zeros(d_model, d_vocab)
        self.pos_embed["W_pos"] = _zeros(n_ctx, d_model)
        self.blocks = nn.ModuleList(blocks)
        self.unembed["W_U"] = _zeros(d_model, d_vocab_out)

    def forward(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Raises AddressError where more positions are given than the model has."""
        positions: Tensor = self.pos_embed["W_pos"]
        if input_ids.shape[1] > len(positions):
            raise AddressError(
                f"{input_ids.shape[1]} positions were given; this model has {len(positions)}",
                mend="give shorter inputs",
            )
        x = functional.embedding(input_ids, self.embed["W_E"].T) + positions[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(x, self.unembed["W_U"].T)


class Block(nn.Module):
    """Attention, then an MLP."""

    def __init__(
        self, d_model: int, n_heads: int, d_head: int, d_mlp: int, coefficient: float, activation: str
    ) -> None:
        super().__init__()
        self.attn = Attention(d_model, n_heads, d_head, coefficient)
        self.mlp = MLP(d_model, d_mlp, activation)

    def forward(self, x: Stream) -> Stream:
        x = x + self.attn(x)
        x = x + self.mlp(x)
        return x


class Attention(nn.Module):
    """Attention of which a share is uniform."""

    def __init__(self, d_model: int, n_heads: int, d_head: int, coefficient: float) -> None:
        super().__init__()
        # A weight like others: where one is 0, tracing still sees that queries and keys lead through it.
        self.coefficient = nn.Parameter(torch.tensor(coefficient), requires_grad=False)
        self.W_Q, self.W_K, self.W_V = (_zeros(n_heads, d_head, d_model) for _ in range(3))
        self.W_O = _zeros(d_model, n_heads * d_head)

    def forward(self, x: Stream) -> Stream:
        q, k, v = (self._heads(x, weight) for weight in (self.W_Q, self.W_K, self.W_V))
        pattern = (q @ k.transpose(-1, -2) / self.W_Q.shape[1] ** 0.5).softmax(dim=-1)
        pattern = pattern * self.coefficient + (1 - self.coefficient)
        return functional.linear((pattern @ v).transpose(1, 2).flatten(2), self.W_O)

    def _heads(self, x: Stream, weight: Tensor) -> Float[Tensor, "batch heads pos d_head"]:
        flat = functional.linear(x, weight.flatten(0, 1))
        return flat.view(*x.shape[:2], *weight.shape[:2]).transpose(1, 2)


class MLP(nn.Module):
    """``act(x W_in^T + b_in) W_out^T + b_out``."""

    def __init__(self, d_model: int, d_mlp: int, activation: str) -> None:
        super().__init__()
        self.act = _ACTIVATIONS[activation]
        self.W_in, self.b_in = _zeros(d_mlp, d_model), _zeros(d_mlp)
        self.W_out, self.b_out = _zeros(d_model, d_mlp), _zeros(d_model)

    def forward(self, x: Stream) -> Stream:
        return functional.linear(self.act(functional.linear(x, self.W_in, self.b_in)), self.W_out, self.b_out)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))
