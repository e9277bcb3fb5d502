"""The components of a compiled transformer, one at a time: what each writes, and the model with some of it swapped.

It is the model's own forward pass, written out so that every addend of the stream has its name (``input.tok``,
``input.pos``, ``a0.h1``, ``m2``). Gradients flow through it, which is what training with interchanges needs; for
cutting edges there is ``voltmeter.run``.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from voltmeter.errors import AddressError, nearest
from voltmeter.rasp.model import Attention, CompiledTransformer, Stream, layers_of


def component_names(model: CompiledTransformer) -> tuple[str, ...]:
    """Heads and MLPs in the order in which they write. The two embeddings are no components: they compute nothing."""
    names = []
    for layer in range(model.shape.layers):
        names += [f"a{layer}.h{head}" for head in range(model.shape.heads)] + [f"m{layer}"]
    return tuple(names)


def run_components(
    model: CompiledTransformer, tokens: Int[Tensor, "batch pos"], swap: Mapping[str, Tensor] | None = None
) -> tuple[Float[Tensor, "batch pos output"], dict[str, Tensor]]:
    """The model's outputs, and what each addend of the stream wrote, [batch, pos, d_model].

    ``swap`` gives addends that write something else; what they would have written is still recorded.
    Raises AddressError if ``swap`` names no addend of this model.
    """
    swapped = dict(swap or {})
    _check_names(model, swapped)
    wrote: dict[str, Tensor] = {}

    def write(name: str, made: Tensor) -> Tensor:
        wrote[name] = made
        return swapped.get(name, made)

    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    x = write("input.tok", model.token_embedding(tokens)) + write("input.pos", model.position_embedding(places))
    for at, layer in enumerate(layers_of(model)):
        heads = outputs_by_head(layer.attention, x)
        for head, made in enumerate(heads):
            x = x + write(f"a{at}.h{head}", made)
        if len(heads) > 1:  # of a lone head the bias is a part
            x = x + layer.attention.output.bias
        x = x + write(f"m{at}", layer.mlp(x))
    return model.unembedding(x), wrote


def outputs_by_head(attention: Attention, x: Stream) -> tuple[Stream, ...]:
    """What each head adds to the stream. They add up to ``attention(x)``, but for its output bias when several."""
    columns = attention.output.weight.split(attention.d_head, dim=1)
    bias = attention.output.bias if attention.heads == 1 else 0.0
    return tuple(z @ part.T + bias for z, part in zip(attention.mixed(x).unbind(1), columns, strict=True))


def _check_names(model: CompiledTransformer, swap: Mapping[str, Tensor]) -> None:
    known = ("input.tok", "input.pos", *component_names(model))
    unknown = [name for name in swap if name not in known]
    if unknown:
        raise AddressError(
            f"{model.interface.name} has no component of these names",
            [f"'{name}' ({nearest(name, known)})" for name in unknown],
            "list them with component_names(model)",
        )
