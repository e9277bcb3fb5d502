"""Programs compiled elsewhere, or saved by us: a directory with ``weights.safetensors`` and ``program.json``.

The names are those of tracr's own parameters (``transformer/layer_0/attn/query/w`` [in, out], ...). tracr's files say
neither which residual dimensions hold the answer nor what the program's dataflow is: the first is found by the
program's name among the labels (document.py), the second stays unknown. Ours say both, and that their scores are not
to be divided by √key_size (tracr's are), so that weights come back bit for bit.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from voltmeter.errors import FormatError, LoadError
from voltmeter.files import json_bytes, parse_object, plain, read_bytes, write_directory
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.document import Document, check_document, interface_of
from voltmeter.rasp.model import CompiledTransformer, Interface, Shape, Value

WEIGHTS, PROGRAM = "weights.safetensors", "program.json"
_UNEMBEDDING = "unembed/w"  # ours alone: tracr's models end at the residual stream
_FLOAT32 = 1e-6  # tracr's recorded numbers were computed in float32
_LAYER = {  # name in a layer of ours -> name in a layer of tracr's; weights [out, in] here, [in, out] there
    "attention.query": "attn/query",
    "attention.key": "attn/key",
    "attention.value": "attn/value",
    "attention.output": "attn/linear",
    "mlp.first": "mlp/linear_1",
    "mlp.second": "mlp/linear_2",
}
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load_export(directory: Path | str, *, check: bool = True) -> Compiled:
    """The compiled program in ``directory``, in float64.

    With ``check`` the model is run once over the recorded inputs and must reproduce the recorded outputs (those that
    are numbers to 1e-6, where the file says nothing else), which no damage to the weights survives.

    Raises:
        LoadError: a file is missing or damaged, the output variable cannot be told, or outputs are not reproduced.
        FormatError: ``program.json`` is damaged, the two files do not fit together, or they ask for what a compiled
            model has not (layer norm).
    """
    where = Path(directory)
    document = parse_object(read_bytes(where / PROGRAM), str(where / PROGRAM))
    check_document(document, f"{where / PROGRAM} is damaged")
    interface = interface_of(document, where / PROGRAM)
    weights = _weights(where / WEIGHTS)
    shape = _shape(document, weights, where)
    _check_weights(shape, interface, weights, where)
    model = CompiledTransformer(shape, interface)
    _fill(model, weights, divided=document.get("scores_divided", True))
    made = Compiled(
        interface.name,
        model,
        tuple(tuple(row) for row in document["inputs"]),
        tuple(tuple(row) for row in document["outputs"]),
        None if document.get("provenance") is None else tuple(document["provenance"]),
    )
    if check:
        _check_outputs(made, float(document.get("output_tolerance", _FLOAT32)), where)
    return made


def save_export(compiled: Compiled, directory: Path | str, *, output_tolerance: float = _FLOAT32) -> None:
    """Write ``compiled`` as a directory that ``load_export`` reads back bit for bit. Atomic; never over another.

    ``output_tolerance``: how far outputs that are numbers lie from the program's (more for noised models).

    Raises:
        OutputError: the directory cannot be written, or is not empty.
        FormatError: something a file cannot keep, such as two tokens with one spelling, or that ``load_export`` would
            refuse, such as an input that stands twice.
    """
    _check_spellings(compiled.model.interface)
    document = plain(_document(compiled, output_tolerance), PROGRAM)
    check_document(document, f"{compiled.name} cannot be kept in a file")
    weights = {name: tensor.contiguous() for name, tensor in _named(compiled.model).items()}
    write_directory(directory, {PROGRAM: json_bytes(document), WEIGHTS: save(weights)})


def _document(compiled: Compiled, output_tolerance: float) -> Document:
    face, shape = compiled.model.interface, compiled.model.shape
    return {
        "name": compiled.name,
        "vocab": face.vocabulary,
        "max_seq_len": face.max_length,
        "bos": face.bos,
        "pad": face.pad,
        "encoding": {str(token): row for token, row in face.rows.items()},
        "output_encoding": None if face.decoded is None else {str(v): at for at, v in enumerate(face.decoded)},
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "key_size": shape.d_head,
        "mlp_hidden_size": shape.d_mlp,
        "layer_norm": False,
        "causal": shape.causal,
        "activation": "relu",
        "scores_divided": False,
        "residual_labels": face.labels,
        "output_labels": face.output_labels,
        "output_dimensions": face.output,
        "output_values": face.decoded,
        "output_tolerance": output_tolerance,
        "provenance": compiled.provenance,
        "inputs": compiled.inputs,
        "outputs": compiled.outputs,
    }


def _named(model: CompiledTransformer) -> dict[str, Tensor]:
    """Every weight under its name in the file, in the file's orientation."""
    named = {
        "token_embed/embeddings": model.token_embedding.weight,
        "pos_embed/embeddings": model.position_embedding.weight,
        _UNEMBEDDING: model.unembedding.weight.T,
    }
    for number, layer in enumerate(model.layers):
        for ours, theirs in _LAYER.items():
            linear = layer.get_submodule(ours)
            named[f"transformer/layer_{number}/{theirs}/w"] = linear.get_parameter("weight").T
            named[f"transformer/layer_{number}/{theirs}/b"] = linear.get_parameter("bias")
    return {name: tensor.detach() for name, tensor in named.items()}


def _check_spellings(face: Interface) -> None:
    """The file's dictionaries are keyed by spelling."""
    for what, values in (("tokens", list(face.rows)), ("output values", list(face.decoded or ()))):
        spelled: dict[str, list[Value]] = {}
        for value in values:
            spelled.setdefault(str(value), []).append(value)
        twice = [f"{same[0]!r} and {same[1]!r}" for same in spelled.values() if len(same) > 1]
        if twice:
            raise FormatError(f"{face.name} has {what} that a file cannot tell apart", twice, "rename one of each")


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load(read_bytes(path))
    except SafetensorError as error:
        raise LoadError(
            f"{path} is damaged: {error}", mend="copy it again from where it came from, or compile the program again"
        ) from error


def _shape(document: Document, weights: Mapping[str, Tensor], where: Path) -> Shape:
    """Sizes: rows and positions from the embeddings, the rest as declared (every weight is checked against it)."""
    tables = [weights.get("token_embed/embeddings"), weights.get("pos_embed/embeddings")]
    if any(table is None or table.dim() != 2 for table in tables):
        raise FormatError(f"{where / WEIGHTS} has no token and position embeddings", sorted(weights)[:8])
    tokens, positions = (table for table in tables if table is not None)
    wrong = [
        f"encoding: the row {row} of the token {token!r} is none of {len(tokens)}"
        for token, row in document["encoding"].items()
        if row >= len(tokens)
    ]
    if len(positions) <= document["max_seq_len"]:
        wrong.append(f"max_seq_len: {len(positions)} positions do not hold BOS and {document['max_seq_len']} tokens")
    if document["num_layers"] > len(weights):
        wrong.append(f"num_layers: {len(weights)} weights do not make {document['num_layers']} layers")
    if wrong:
        raise _apart(where, wrong)
    return Shape(
        rows=len(tokens),
        positions=len(positions),
        d_model=len(document["residual_labels"]),
        layers=document["num_layers"],
        heads=document["num_heads"],
        d_head=document["key_size"],
        d_mlp=document["mlp_hidden_size"],
        causal=document["causal"],
    )


def _apart(where: Path, wrong: list[str]) -> FormatError:
    return FormatError(f"{where}: {WEIGHTS} and {PROGRAM} do not fit together", wrong)


def _check_weights(shape: Shape, face: Interface, weights: Mapping[str, Tensor], where: Path) -> None:
    """Raise FormatError listing all that are missing, unknown, of another shape or kind, or not finite.

    Before a model is made: a damaged size must not ask for more memory than the file's own weights take.
    """
    places = dict(_places(shape, len(face.output_labels)))
    optional = {_UNEMBEDDING} if face.output else set()  # without it, outputs are dimensions
    wrong = [f"missing: {name}" for name in places if name not in weights and name not in optional]
    wrong += [f"unknown: {name}" for name in weights if name not in places]
    for name, place in places.items():
        if name not in weights:
            continue
        weight = weights[name]
        if tuple(weight.shape) != place:
            wrong.append(f"{name} is {list(weight.shape)}, {list(place)} was expected ({_sizes(shape)})")
        elif weight.dtype not in _FLOATS:
            wrong.append(f"{name} is {weight.dtype}, floats were expected".replace("torch.", ""))
        elif not bool(torch.isfinite(weight).all()):
            wrong.append(f"{name} is not finite")
    if wrong:
        raise _apart(where, wrong)


def _sizes(shape: Shape) -> str:
    return (
        f"{shape.d_model} residual_labels, num_heads {shape.heads}, key_size {shape.d_head}, "
        f"mlp_hidden_size {shape.d_mlp}"
    )


def _places(shape: Shape, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight's name in the file, with its shape there."""
    wide, inner = shape.d_model, shape.heads * shape.d_head
    yield "token_embed/embeddings", (shape.rows, wide)
    yield "pos_embed/embeddings", (shape.positions, wide)
    yield _UNEMBEDDING, (wide, outputs)
    projections = {
        "mlp.first": (wide, shape.d_mlp),
        "mlp.second": (shape.d_mlp, wide),
        "attention.output": (inner, wide),
    }
    for number in range(shape.layers):
        for ours, theirs in _LAYER.items():
            given, made = projections.get(ours, (wide, inner))
            yield f"transformer/layer_{number}/{theirs}/w", (given, made)
            yield f"transformer/layer_{number}/{theirs}/b", (made,)


@torch.no_grad()
def _fill(model: CompiledTransformer, weights: Mapping[str, Tensor], divided: bool) -> None:
    """Copy every weight to its place; ``divided``: scores are divided by √d_head where these come from."""
    scale = 1 / math.sqrt(model.shape.d_head) if divided else 1.0
    for name, place in _named(model).items():
        if name in weights:
            place.copy_(weights[name].double() * (scale if "/attn/query/" in name else 1.0))


def _check_outputs(compiled: Compiled, tolerance: float, where: Path) -> None:
    """Raise LoadError unless the model computes every recorded output."""
    if not compiled.inputs:
        raise LoadError(f"{where / PROGRAM} records no inputs", mend="compile the program again")
    answers = zip(compiled.inputs, compiled.model.compute(compiled.inputs), compiled.outputs, strict=True)
    wrong = [
        f"of {list(row)}: {got} was computed, {list(wanted)} is recorded"
        for row, got, wanted in answers
        if len(got) != len(wanted) or not all(_agree(*pair, tolerance) for pair in zip(got, wanted, strict=True))
    ]
    if wrong:
        raise LoadError(
            f"{where} does not compute its recorded outputs: {len(wrong)} of {len(compiled.inputs)} differ",
            wrong,
            "compile the program again, or give check=False to load it as it is",
        )


def _agree(got: Value, wanted: Value | None, tolerance: float) -> bool:
    if wanted is None:  # the program leaves this position undefined
        return True
    if type(got) is float and type(wanted) in (int, float):
        return abs(got - float(wanted)) <= tolerance
    return got == wanted
