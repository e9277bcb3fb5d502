"""Between compiled and trained: a compiled model's function in weights that look less and less designed.

    noised       every weight gets Gaussian noise, as large as its role's weights are
    rotated      the stream, the heads and the hidden units get another basis: nothing is aligned with a dimension
    compressed   the stream gets fewer dimensions, so that features share them (superposition; in compress.py)

Each measures how far its outputs are from the compiled model's, says so, and is refused beyond its tolerance.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.errors import ProgramError, TruthError
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.model import Attention, CompiledTransformer, Interface, Layer, layers_of

Setting: TypeAlias = int | float | bool | str
Square: TypeAlias = Float[Tensor, "n n"]


@dataclass(frozen=True, eq=False)
class Variant:
    """A model made from a compiled one, how it was made, and what it cost.

    ``deviation``: largest |Δ output| over all inputs, at the positions after BOS that the program defines.
    ``agreement``: share of those positions where the decoded value is the same (of numbers, see ``decoded``).
    """

    compiled: Compiled
    kind: str
    of: str
    seed: int
    settings: Mapping[str, Setting]
    deviation: float
    agreement: float


def noised(compiled: Compiled, scale: float, seed: int, tolerance: float = 0.1) -> Variant:
    """The model with Gaussian noise on its weights, so that no weight and no effect is exactly zero.

    The standard deviation is ``scale`` times the root mean square of the nonzero weights of that role (queries, first
    MLP matrices, ...) over all layers: unused components get noise too. Roles that are all zero stay so, and so does
    attention's output bias, which no edge carries.

    Raises TruthError if an output moves by more than ``tolerance``, and ProgramError unless ``scale`` is above zero.
    """
    if not scale > 0:
        raise ProgramError(f"{compiled.name} cannot be noised at scale {scale}", mend="give a scale above zero")
    model, generator = copy.deepcopy(compiled.model), torch.Generator().manual_seed(seed)
    sizes = _sizes_by_role(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 0.0 if name.endswith("attention.output.bias") else scale * sizes[_role(name)]
            weight.add_(spread * _normal(weight, generator))
    return finish(compiled, model, "noised", seed, {"scale": scale, "tolerance": tolerance})


def rotated(compiled: Compiled, seed: int, tolerance: float = 1e-6) -> Variant:
    """The same function in random bases: an orthogonal one of the stream, one of each head's queries and keys, one of
    its values; hidden units are shuffled and scaled by 1/2 to 2, all that ReLU lets through.

    What writers tell readers is the same up to rounding, and so is every cut; no dimension has a meaning any more.
    Rounding is amplified by the steep weights that compiled programs have, hence the tolerance.

    Raises TruthError if an output moves by more than ``tolerance``.
    """
    model, generator = copy.deepcopy(compiled.model), torch.Generator().manual_seed(seed)
    turn = _orthogonal(model.shape.d_model, generator, model.unembedding.weight)
    with torch.no_grad():
        model.load_state_dict(mapped_weights(model, encode=turn.T, decode=turn))
        for layer in layers_of(model):
            _turn_heads(layer.attention, generator)
            _shuffle_hidden(layer, generator)
    model.interface = mixed(model.interface, model.shape.d_model)
    return finish(compiled, model, "rotated", seed, {"tolerance": tolerance})


# What every variant needs


def finish(
    original: Compiled, model: CompiledTransformer, kind: str, seed: int, settings: dict[str, Setting]
) -> Variant:
    """The variant, measured. Raises TruthError if its outputs are further off than ``settings["tolerance"]``."""
    deviation, agreement = compare(original, model)
    tolerance = float(settings["tolerance"])
    if not deviation <= tolerance:
        raise TruthError(
            f"{original.name} {kind} does not compute what {original.name} computes: "
            f"an output is off by {deviation:.2g}, {tolerance:.2g} is allowed",
            [
                ", ".join(f"{name} {value}" for name, value in settings.items() if name != "tolerance"),
                f"decoded, {agreement:.1%} of its outputs are the same",
            ],
            "change it less, or allow more (tolerance=)",
        )
    made = dataclasses.replace(original, name=f"{original.name} {kind}", model=model)
    return Variant(made, kind, original.name, seed, settings, deviation, agreement)


@torch.no_grad()
def compare(original: Compiled, model: CompiledTransformer) -> tuple[float, float]:
    """Largest difference of the outputs, and share of equal decoded values, where the program defines them.

    Raises ProgramError where it defines none.
    """
    tokens = original.model.encode(original.inputs)
    before, after = original.model(tokens), model(tokens)
    defined = defined_positions(original)
    if not defined.any():
        raise ProgramError(
            f"{original.name} defines no output on any of its {len(original.inputs)} inputs, so that none can differ",
            mend="give it inputs on which it does: dataclasses.replace(compiled, inputs=..., outputs=...)",
        )
    apart = (after - before)[:, 1:][defined].abs()
    deviation = float(apart.max()) if not bool(apart.isnan().any()) else float("inf")
    same = decoded(original, before) == decoded(original, after)
    return deviation, float(same[defined].double().mean())


def decoded(original: Compiled, outputs: Tensor) -> Tensor:
    """The number of the value that each output says, [input, position after BOS]: the largest dimension.

    Where one dimension holds a number: that of the nearest among the numbers that the program gives on its inputs.
    """
    if original.model.interface.decoded is not None:
        return outputs[:, 1:].argmax(-1)
    known = sorted({float(v) for row in original.outputs for v in row if v is not None})
    return (outputs[:, 1:] - torch.tensor(known).to(outputs)).abs().argmin(-1)


def defined_positions(compiled: Compiled) -> Tensor:
    """Boolean, [input, position after BOS]: where the program defines its output."""
    return torch.tensor([[value is not None for value in row] for row in compiled.outputs])


def mapped_weights(model: CompiledTransformer, encode: Tensor, decode: Tensor) -> dict[str, Tensor]:
    """The model's weights with ``encode @ w`` for every write w to its stream, and ``decode @ x`` read for x.

    ``encode`` is [new d_model, d_model], ``decode`` [d_model, new d_model]; gradients flow to both.
    """
    weights = dict(model.state_dict())
    for name in ("token_embedding.weight", "position_embedding.weight"):
        weights[name] = weights[name] @ encode.T
    weights["unembedding.weight"] = weights["unembedding.weight"] @ decode
    for layer in range(model.shape.layers):
        for reader in ("attention.query", "attention.key", "attention.value", "mlp.first"):
            name = f"layers.{layer}.{reader}.weight"
            weights[name] = weights[name] @ decode
        for writer in ("attention.output", "mlp.second"):
            for part in ("weight", "bias"):
                name = f"layers.{layer}.{writer}.{part}"
                weights[name] = encode @ weights[name]
    return weights


def mixed(face: Interface, d_model: int) -> Interface:
    """The interface of a model whose stream has ``d_model`` dimensions without a meaning of their own.

    None of them holds the answer, so that outputs keep only the names that they have in ``face``.
    """
    labels = tuple(f"mixed:{at}" for at in range(d_model))
    return dataclasses.replace(face, labels=labels, output=(), answers=face.output_labels)


# Noise


def _role(name: str) -> str:
    """ "layers.3.mlp.first.weight" -> "mlp.first.weight"."""
    return ".".join(part for part in name.split(".") if part != "layers" and not part.isdigit())


def _sizes_by_role(model: CompiledTransformer) -> dict[str, float]:
    """Root mean square of the nonzero weights of each role; 0 where there are none."""
    held: dict[str, list[Tensor]] = {}
    for name, weight in model.named_parameters():
        held.setdefault(_role(name), []).append(weight.detach()[weight != 0])
    joined = {role: torch.cat(parts) for role, parts in held.items()}
    return {role: float(all_.square().mean().sqrt()) if len(all_) else 0.0 for role, all_ in joined.items()}


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn in float64 on the CPU, so that a seed means the same on every device and for every dtype."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return drawn.to(like)


# Rotations


def _orthogonal(size: int, generator: torch.Generator, like: Tensor) -> Square:
    """A random orthogonal matrix, uniform (Haar): QR of a Gaussian one, signs fixed by R's diagonal."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    turn: Tensor = q * r.diagonal().sign()
    return turn.to(like)


def _turn_heads(attention: Attention, generator: torch.Generator) -> None:
    """Queries and keys of a head by one orthogonal matrix, its values by another that the output undoes."""
    heads, size = attention.heads, attention.d_head
    alike, values = (
        torch.block_diag(*(_orthogonal(size, generator, attention.query.weight) for _ in range(heads))) for _ in "qv"
    )
    for project, turn in ((attention.query, alike), (attention.key, alike), (attention.value, values)):
        project.weight.data, project.bias.data = turn @ project.weight, turn @ project.bias
    attention.output.weight.data = attention.output.weight @ values.T


def _shuffle_hidden(layer: Layer, generator: torch.Generator) -> None:
    first, second = layer.mlp.first, layer.mlp.second
    order = torch.randperm(first.out_features, generator=generator).to(first.weight.device)
    scale = 2 ** (2 * torch.rand(len(order), generator=generator, dtype=torch.float64) - 1).to(first.weight)
    first.weight.data, first.bias.data = first.weight[order] * scale[:, None], first.bias[order] * scale
    second.weight.data = second.weight[:, order] / scale
