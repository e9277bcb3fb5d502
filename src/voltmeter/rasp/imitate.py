"""Small transformers trained to imitate a compiled one, with its circuit or with whatever circuit training finds.

The imitation has the compiled model's layers, heads and components, random weights to begin with, and is trained on
the compiled model's outputs. Aligned, it is also trained by strict interchange interventions (Geiger et al. 2112.00826;
Gupta et al. 2407.14494): a component's output on one input is put into a run on another, and the imitation must then do
what the compiled model does under the same interchange. Components that the program does not use write nothing in the
compiled model, so that theirs must not matter in the imitation either.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from voltmeter.errors import ProgramError
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.components import component_names, run_components
from voltmeter.rasp.model import CompiledTransformer
from voltmeter.rasp.variants import Variant, compare, decoded, defined_positions, mixed

Progress: TypeAlias = Callable[[int, float], None]


@dataclass(frozen=True)
class Recipe:
    """How an imitation is trained, and the sizes that need not be the compiled model's (layers and heads are)."""

    aligned: bool = True
    steps: int = 600
    batch: int = 64
    learning_rate: float = 5e-3
    d_model: int = 48
    d_head: int = 16
    d_mlp: int = 64


@dataclass(frozen=True, eq=False)
class Imitation:
    """A trained model, and how like the compiled one it became.

    ``variant`` says how it was made and how far its outputs are; ``interchange`` says of each component in how many of
    the tried interchanges the imitation's decoded output was the compiled model's, at all positions: 1.0 where the
    component does in the imitation what it does in the program. ``loss`` is the last step's.
    """

    variant: Variant
    interchange: Mapping[str, float]
    loss: float


def imitate(compiled: Compiled, seed: int, recipe: Recipe | None = None, progress: Progress | None = None) -> Imitation:
    """Train an imitation. The same seed and recipe give the same model on the same machine.

    ``progress(step, loss)`` is called after each step. An imitation is never refused: look at its ``agreement``.
    Cost: per step two forwards and a backward over ``batch`` inputs; aligned, five forwards and a backward.

    Raises ProgramError for a recipe that cannot be followed.
    """
    how = recipe or Recipe()
    _check_recipe(compiled, how)
    generator = torch.Generator().manual_seed(seed)
    model = _untrained(compiled.model, how, generator)
    lesson = _Lesson.of(compiled)
    loss = _train(model, lesson, how, generator, progress)
    model.requires_grad_(False)
    deviation, agreement = compare(compiled, model)
    kind = "imitated, aligned" if how.aligned else "imitated"
    named = dataclasses.replace(
        compiled,
        name=f"{compiled.name} {kind}",
        model=model,
        provenance=compiled.provenance if how.aligned else None,  # a circuit of its own: nobody knows which
    )
    variant = Variant(named, kind, compiled.name, seed, dataclasses.asdict(how), deviation, agreement)
    return Imitation(variant, interchange_agreement(compiled, model, seed), loss)


@torch.no_grad()
def interchange_agreement(
    compiled: Compiled, model: CompiledTransformer, seed: int, pairs: int = 256
) -> dict[str, float]:
    """Of each component, the share of ``pairs`` drawn (base, source) pairs where an interchange decodes the same."""
    lesson, generator = _Lesson.of(compiled), torch.Generator().manual_seed(seed)
    found = {}
    for name in component_names(compiled.model):
        base, source = (lesson.draw(pairs, generator) for _ in range(2))
        wanted, made = (_interchanged(each, lesson.tokens, base, source, name) for each in (compiled.model, model))
        same = decoded(compiled, made) == decoded(compiled, wanted)
        found[name] = float((same | ~lesson.defined[base]).all(dim=1).double().mean())
    return found


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What is taught: the compiled model on its inputs."""

    compiled: Compiled
    tokens: Int[Tensor, "input pos"]
    outputs: Float[Tensor, "input pos output"]
    defined: Tensor  # [input, position after BOS]

    @classmethod
    def of(cls, compiled: Compiled) -> "_Lesson":
        tokens = compiled.model.encode(compiled.inputs)
        with torch.no_grad():
            return cls(compiled, tokens, compiled.model(tokens), defined_positions(compiled))

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
        return torch.randint(len(self.tokens), (count,), generator=generator)

    def loss(self, made: Tensor, wanted: Tensor, rows: Tensor) -> Tensor:
        """Mean squared error after BOS, where the program defines its output, as a share of the outputs' own power."""
        power = self.outputs[:, 1:][self.defined].square().mean()
        return (made - wanted)[:, 1:][self.defined[rows]].square().mean() / power


def _train(
    model: CompiledTransformer,
    lesson: _Lesson,
    how: Recipe,
    generator: torch.Generator,
    progress: Progress | None,
) -> float:
    """Adam, the learning rate falling to a tenth along a cosine. Returns the last loss."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=how.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps, eta_min=how.learning_rate / 10)
    names = component_names(model)
    loss = torch.zeros(())
    for step in range(how.steps):
        rows = lesson.draw(how.batch, generator)
        loss = lesson.loss(model(lesson.tokens[rows]), lesson.outputs[rows], rows)
        if how.aligned:
            name = names[int(torch.randint(len(names), (), generator=generator))]
            loss = loss + _interchange_loss(model, lesson, rows, lesson.draw(how.batch, generator), name)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, loss.item())
    return loss.item()


def _interchange_loss(model: CompiledTransformer, lesson: _Lesson, base: Tensor, source: Tensor, name: str) -> Tensor:
    with torch.no_grad():
        wanted = _interchanged(lesson.compiled.model, lesson.tokens, base, source, name)
    return lesson.loss(_interchanged(model, lesson.tokens, base, source, name), wanted, base)


def _interchanged(model: CompiledTransformer, tokens: Tensor, base: Tensor, source: Tensor, name: str) -> Tensor:
    """Outputs on ``base`` with component ``name`` writing what it writes on ``source``."""
    _, wrote = run_components(model, tokens[source])
    outputs, _ = run_components(model, tokens[base], {name: wrote[name]})
    return outputs


def _untrained(original: CompiledTransformer, how: Recipe, generator: torch.Generator) -> CompiledTransformer:
    """Random weights: each linear map keeps the size of what it is given; embeddings are small, so that attention is
    nearly uniform at first. (Of size 1/2 instead of 1/4, one imitation of hist in three failed to learn.)
    """
    shape = dataclasses.replace(
        original.shape,
        d_model=how.d_model,
        d_head=how.d_head,
        d_mlp=how.d_mlp,
    )
    face = mixed(original.interface, shape.d_model)
    model = CompiledTransformer(shape, face, original.unembedding.weight.dtype)
    for name, weight in model.named_parameters():
        if name.endswith("attention.output.bias"):
            continue  # no edge carries it when there are several heads: it stays zero
        if weight.ndim == 2:
            spread = (
                0.25 if name in ("token_embedding.weight", "position_embedding.weight") else weight.shape[1] ** -0.5
            )
            weight.copy_(spread * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        weight.requires_grad_(True)
    return model


def _check_recipe(compiled: Compiled, how: Recipe) -> None:
    counts = {name: getattr(how, name) for name in ("steps", "batch", "d_model", "d_head", "d_mlp")}
    misses = [f"{name} is {count}" for name, count in counts.items() if count < 1]
    if not how.learning_rate > 0:
        misses.append(f"learning_rate is {how.learning_rate}")
    if misses:
        raise ProgramError(f"{compiled.name} cannot be imitated by this recipe", misses, "give numbers above zero")
