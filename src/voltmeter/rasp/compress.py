"""``compressed``: the same program in a narrower stream, where features share dimensions (superposition).

Each write w becomes ``encode @ w``, each read is made of ``decode @ x``, as in tracr's compression (Lindner et al.
2301.05062), with two differences. There one matrix serves both ways and is trained from noise; here the two start from
the best linear answer and are trained from there. That answer is a low-rank factorisation: readers R and writes X meet
only in R X, so that any stream as wide as R X's rank loses nothing, and the truncated singular value decomposition
loses least. Below that rank the ReLUs and the softmax must make up for the rest, and often they cannot.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.errors import ProgramError
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.components import run_components
from voltmeter.rasp.model import CompiledTransformer, layers_of
from voltmeter.rasp.variants import Variant, defined_positions, finish, mapped_weights, mixed

_NEGLIGIBLE = 1e-9  # of the largest singular value; what float64 leaves of zero is 1e-14 of it

_SELDOM = 1e-3  # the length of a direction that a writer never uses; those that it uses are about 1 long
_WEIGHT_OF_READS = 0.1  # in the loss; the outputs weigh 1

Progress: TypeAlias = Callable[[int, float], None]


def compressed(
    compiled: Compiled,
    d_model: int,
    seed: int,
    tolerance: float = 0.1,
    steps: int = 500,
    learning_rate: float = 1e-3,
    progress: Progress | None = None,
) -> Variant:
    """The model with a stream of ``d_model`` dimensions.

    If ``d_model`` reaches ``narrowest_exact`` nothing is trained, and all that writers can tell readers is kept, so
    that cut edges do what they do in the original as well. If not, ``steps`` steps of Adam on the outputs and on what
    the readers read follow, and ``progress(step, loss)`` is called after each. Either way a random basis of the narrow
    stream is chosen by ``seed``.

    Cost: ``steps`` forward and backward passes over all inputs.

    Raises TruthError if an output moves by more than ``tolerance`` (in units of the output: one-hot dimensions are 0
    or 1), and ProgramError if ``d_model`` is not between 1 and the original's.
    """
    _check_width(compiled, d_model)
    faces = _Interfaces.of(compiled)
    maps = faces.best(d_model)
    if d_model < faces.rank:
        maps = _train(compiled, maps, steps, learning_rate, progress)
    model = _rebuild(compiled.model, *_turned(maps, seed))
    settings = {"d_model": d_model, "rank": faces.rank, "tolerance": tolerance}
    if d_model < faces.rank:
        settings |= {"steps": steps, "learning_rate": learning_rate}
    return finish(compiled, model, "compressed", seed, dict(settings))


def narrowest_exact(compiled: Compiled) -> int:
    """The fewest dimensions in which every writer can tell every reader whatever it could in the full stream."""
    return _Interfaces.of(compiled).rank


Maps: TypeAlias = tuple[Float[Tensor, "narrow wide"], Float[Tensor, "wide narrow"]]  # encode, decode


@dataclass(frozen=True, eq=False)
class _Interfaces:
    """What readers look for (``_reads``), what writers write (``_written``), and where the two meet.

    ``left * values @ right`` is the singular value decomposition of ``reads @ written``, cut where it is nothing.
    """

    reads: Float[Tensor, "read wide"]
    written: Float[Tensor, "wide written"]
    left: Float[Tensor, "read rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank written"]

    @classmethod
    def of(cls, compiled: Compiled) -> "_Interfaces":
        written = _written(compiled)
        reads = _reads(compiled.model, written)
        left, values, right = torch.linalg.svd(reads @ written, full_matrices=False)
        rank = int((values > _NEGLIGIBLE * values[0]).sum())
        return cls(reads, written, left[:, :rank], values[:rank], right[:rank])

    @property
    def rank(self) -> int:
        return len(self.values)

    def best(self, d_model: int) -> Maps:
        """Maps with ``reads @ decode @ encode @ written`` as near to ``reads @ written`` as can be."""
        kept = min(d_model, self.rank)
        root = self.values[:kept].sqrt()
        encode = self.left[:, :kept].T @ self.reads / root[:, None]
        decode = self.written @ self.right[:kept].T / root
        spare = d_model - kept  # dimensions that stay empty until the basis is turned
        return torch.nn.functional.pad(encode, (0, 0, 0, spare)), torch.nn.functional.pad(decode, (0, spare))


def _reads(model: CompiledTransformer, written: Tensor) -> Tensor:
    """Every reader's weights, scaled so that what the writers tell each has size one: none counts for more."""
    blocks = [model.unembedding.weight]
    for layer in layers_of(model):
        attention = layer.attention
        blocks += [attention.query.weight, attention.key.weight, attention.value.weight, layer.mlp.first.weight]
    told = [(block, float((block @ written).norm()), float(block.norm() * written.norm())) for block in blocks]
    return torch.cat([block / size for block, size, most in told if size > _NEGLIGIBLE * most])


@torch.no_grad()
def _written(compiled: Compiled) -> Tensor:
    """Columns that span what each writer can write, longest along what it writes on the inputs.

    What a writer wrote becomes columns of the same second moments (over inputs and positions). What it can write and
    never does is there too, far shorter: it is the first to go when the stream is too narrow, and cut models need it.
    """
    _, wrote = run_components(compiled.model, compiled.model.encode(compiled.inputs))
    columns = []
    for name, can in _writable(compiled.model).items():
        out = wrote[name].flatten(0, 1)
        _, sizes, directions = torch.linalg.svd(out, full_matrices=False)
        columns += [directions.T * sizes / len(out) ** 0.5, _SELDOM * _basis(can)]
    return torch.cat(columns, dim=1)


def _writable(model: CompiledTransformer) -> dict[str, Tensor]:
    """For each writer, columns [d_model, n] of which everything that it can write is a sum."""
    pad = model.interface.rows[model.interface.pad]
    rows = [row for row in range(model.shape.rows) if row != pad]  # no input holds the pad token
    made = {"input.tok": model.token_embedding.weight[rows].T, "input.pos": model.position_embedding.weight.T}
    for at, layer in enumerate(layers_of(model)):
        attention, size = layer.attention, model.shape.d_head
        outputs, values = attention.output.weight.split(size, dim=1), attention.value.weight.split(size)
        biases, own = attention.value.bias.split(size), attention.output.bias[:, None]
        for head, (output, value, bias) in enumerate(zip(outputs, values, biases, strict=True)):
            made[f"a{at}.h{head}"] = torch.cat([output @ value, output @ bias[:, None], own], dim=1)
        made[f"m{at}"] = torch.cat([layer.mlp.second.weight, layer.mlp.second.bias[:, None]], dim=1)
    return made


def _basis(columns: Tensor) -> Tensor:
    """Orthonormal columns of the same span."""
    directions, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    kept: Tensor = directions[:, sizes > _NEGLIGIBLE * sizes.max()]
    return kept


def _turned(maps: Maps, seed: int) -> Maps:
    """Another basis of the narrow stream: nothing changes but which numbers its dimensions hold."""
    encode, decode = maps
    generator = torch.Generator().manual_seed(seed)
    size = len(encode)
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    turn = turn.to(encode)
    return turn @ encode, decode @ turn.T


def _rebuild(model: CompiledTransformer, encode: Tensor, decode: Tensor) -> CompiledTransformer:
    width = len(encode)
    face = mixed(model.interface, width)
    made = CompiledTransformer(dataclasses.replace(model.shape, d_model=width), face, model.unembedding.weight.dtype)
    made.load_state_dict(mapped_weights(model, encode, decode))
    return made


# Below the rank


def _train(compiled: Compiled, maps: Maps, steps: int, learning_rate: float, progress: Progress | None) -> Maps:
    """Adam on both maps: squared error of the outputs where the program defines them, plus that of the reads."""
    tokens, defined = compiled.model.encode(compiled.inputs), defined_positions(compiled)
    faces = _Interfaces.of(compiled)
    wanted = compiled.model(tokens)[:, 1:][defined]
    told = faces.reads @ faces.written
    encode, decode = (each.clone().requires_grad_() for each in maps)
    narrow = _rebuild(compiled.model, *maps)
    optimiser = torch.optim.Adam([encode, decode], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1), eta_min=learning_rate / 100)
    for step in range(steps):
        weights = mapped_weights(compiled.model, encode, decode)
        outputs = torch.func.functional_call(narrow, weights, (tokens,))
        tells = faces.reads @ decode @ encode @ faces.written
        off = (outputs[:, 1:][defined] - wanted).square().mean()
        loss = off + _WEIGHT_OF_READS * (tells - told).square().sum() / told.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, loss.item())
    return encode.detach(), decode.detach()


def _check_width(compiled: Compiled, d_model: int) -> None:
    wide = compiled.model.shape.d_model
    if not 1 <= d_model <= wide:
        raise ProgramError(
            f"{compiled.name} cannot be compressed to {d_model} dimensions",
            [f"its stream has {wide}"],
            f"give a width from 1 to {wide}; narrowest_exact(compiled) is the least that loses nothing",
        )
