"""Programs compiled elsewhere, or saved by us: a directory with ``weights.safetensors`` and ``program.json``.

The names are those of tracr's own parameters (``transformer/layer_0/attn/query/w`` [in, out], ...). tracr's files say
neither which residual dimensions hold the answer nor what the program's dataflow is: the first is found by the
program's name among the labels, the second stays unknown. Ours say both, and that their scores are not to be divided
by √key_size (tracr's are), so that weights come back bit for bit.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from voltmeter.errors import FormatError, LoadError
from voltmeter.files import json_bytes, parse_object, plain, read_bytes, write_directory
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.model import CompiledTransformer, Interface, Shape, Value, value_of

WEIGHTS, PROGRAM = "weights.safetensors", "program.json"
PAD = "compiler_pad"
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

Document: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class _Key:
    """A key of ``program.json`` and the Python types its value may have."""

    name: str
    kinds: tuple[type, ...]


_KEYS = (
    *(_Key(name, (int,)) for name in ("max_seq_len", "num_layers", "num_heads", "key_size", "mlp_hidden_size")),
    *(_Key(name, (str,)) for name in ("name", "bos", "activation")),
    *(_Key(name, (bool,)) for name in ("causal", "layer_norm")),
    *(_Key(name, (list,)) for name in ("vocab", "residual_labels", "inputs", "outputs")),
    _Key("encoding", (dict,)),
    _Key("output_encoding", (dict, type(None))),
)


def load_export(directory: Path | str, *, check: bool = True) -> Compiled:
    """The compiled program in ``directory``, in float64.

    With ``check`` the model is run once over the recorded inputs and must reproduce the recorded outputs (those that
    are numbers to 1e-6, where the file says nothing else), which no damage to the weights survives.

    Raises:
        LoadError: a file is missing or damaged, the output variable cannot be told, or outputs are not reproduced.
        FormatError: the two files do not fit together, or ask for what a compiled model here has not (layer norm).
    """
    where = Path(directory)
    document = parse_object(read_bytes(where / PROGRAM), str(where / PROGRAM))
    _check_document(document, where / PROGRAM)
    weights = _weights(where / WEIGHTS)
    interface = _interface(document, where / PROGRAM)
    model = CompiledTransformer(_shape(document, weights, where), interface)
    _fill(model, document, weights, where)
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
        FormatError: something a file cannot keep, such as two tokens with one spelling.
    """
    face, shape = compiled.model.interface, compiled.model.shape
    _check_spellings(face)
    labels = [face.labels[at] for at in face.output]
    document = {
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
        "output_labels": labels,
        "output_dimensions": face.output,
        "output_values": face.decoded,
        "output_tolerance": output_tolerance,
        "provenance": compiled.provenance,
        "inputs": compiled.inputs,
        "outputs": compiled.outputs,
    }
    files = {
        PROGRAM: json_bytes(plain(document, PROGRAM)),
        WEIGHTS: save({name: tensor.contiguous() for name, tensor in _named(compiled.model).items()}),
    }
    write_directory(directory, files)


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


# Reading -----------------------------------------------------------------------------------------------------


def _check_document(document: Document, path: Path) -> None:
    missing = [key.name for key in _KEYS if key.name not in document]
    if missing:
        raise FormatError(f"{path} is no compiled program", [f"it has no {name}" for name in missing])
    wrong = [
        f"{key.name} is {json.dumps(document[key.name])[:60]}"
        for key in _KEYS
        if type(document[key.name]) not in key.kinds
    ]
    if wrong:
        raise FormatError(f"{path} is damaged: {len(wrong)} of its values are of the wrong kind", wrong)
    rows = [*document["inputs"], *document["outputs"]]
    if not all(isinstance(row, list) for row in rows) or len(document["inputs"]) != len(document["outputs"]):
        counts = f"{len(document['inputs'])} inputs, {len(document['outputs'])} outputs"
        raise FormatError(f"{path} is damaged: inputs and outputs are not two lists of as many rows", [counts])
    if document["layer_norm"] or document["activation"] != "relu":
        raise FormatError(
            f"{path} asks for a transformer that compiled models here are not",
            [f"layer_norm {document['layer_norm']}, activation {document['activation']!r}"],
            "compile it without layer norm, and with ReLU MLPs",
        )
    unplaced = [
        repr(token) for token in (*document["vocab"], document["bos"]) if str(token) not in document["encoding"]
    ]
    if unplaced:
        raise FormatError(f"{path} gives {len(unplaced)} tokens no row of the embedding", unplaced)


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


def _fill(model: CompiledTransformer, document: Document, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy every weight to its place. Raises FormatError listing all that are missing, unknown or of another shape."""
    places = _named(model)
    optional = {_UNEMBEDDING}
    wrong = [f"missing: {name}" for name in places if name not in weights and name not in optional]
    wrong += [f"unknown: {name}" for name in weights if name not in places]
    wrong += [
        f"{name} is {list(weights[name].shape)}, {list(place.shape)} was expected"
        for name, place in places.items()
        if name in weights and weights[name].shape != place.shape
    ]
    wrong += [f"{name} is not finite" for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    wrong += [
        f"the row {row!r} of the token {token!r} is none of {model.shape.rows}"
        for token, row in document["encoding"].items()
        if type(row) is not int or not 0 <= row < model.shape.rows
    ]
    if model.shape.positions <= document["max_seq_len"]:
        wrong.append(f"{model.shape.positions} positions do not hold BOS and {document['max_seq_len']} tokens")
    if wrong:
        raise FormatError(f"{where}: {WEIGHTS} and {PROGRAM} do not fit together", wrong)
    divided = document.get("scores_divided", True)
    scale = 1 / math.sqrt(document["key_size"]) if divided else 1.0
    with torch.no_grad():
        for name, place in places.items():
            if name in weights:
                place.copy_(weights[name].double() * (scale if "/attn/query/" in name else 1.0))


def _interface(document: Document, path: Path) -> Interface:
    encoding = document["encoding"]
    pad = document.get("pad", PAD)
    rows: dict[Value, int] = {token: encoding[str(token)] for token in document["vocab"]}
    for special in (document["bos"], pad):
        if str(special) in encoding:
            rows[special] = encoding[str(special)]
    dimensions, decoded = _output(document, path)
    return Interface(
        name=document["name"],
        vocabulary=tuple(document["vocab"]),
        rows=rows,
        bos=document["bos"],
        pad=pad,
        max_length=document["max_seq_len"],
        labels=tuple(document["residual_labels"]),
        output=dimensions,
        decoded=decoded,
    )


def _output(document: Document, path: Path) -> tuple[tuple[int, ...], tuple[Value, ...] | None]:
    """The residual dimensions that hold the answer, and the value each stands for (None: one number)."""
    labels: Sequence[str] = document["residual_labels"]
    if "output_dimensions" in document:
        dimensions, values = document["output_dimensions"], document.get("output_values")
        said = [labels[at] if type(at) is int and 0 <= at < len(labels) else at for at in dimensions]
        if said != document.get("output_labels") or (values is not None and len(values) != len(dimensions)):
            raise FormatError(
                f"{path} is damaged: its output dimensions, labels and values disagree",
                [f"dimensions {dimensions}", f"labels {document.get('output_labels')}", f"values {values}"],
            )
        return tuple(dimensions), None if values is None else tuple(values)
    encoding = document["output_encoding"]
    variable = _output_variable(document, path)
    if encoding is None:
        return (labels.index(variable),), None
    spelled = sorted(encoding, key=lambda value: int(encoding[value]))
    return tuple(labels.index(f"{variable}:{text}") for text in spelled), tuple(_values(spelled, document))


def _output_variable(document: Document, path: Path) -> str:
    """The variable named as the program (``reverse_1`` of reverse, ``sort_14`` of sort_unique) whose values fit."""
    name, encoding = document["name"], document["output_encoding"]
    wanted = None if encoding is None else set(encoding)
    groups: dict[str, set[str]] = {}
    for label in document["residual_labels"]:
        variable, colon, value = label.partition(":")
        groups.setdefault(variable, set()).update([value] if colon else [])
    named = [group for group in groups if _is_called(group, name)]
    fitting = [group for group in named if groups[group] == (wanted or set())]
    if len(fitting) != 1:
        raise LoadError(
            f"{path} does not say which variable is its output: {len(fitting)} are called as '{name}' is "
            f"and take the values {'of a number' if wanted is None else ', '.join(sorted(wanted))}",
            [f"{group}: {', '.join(sorted(groups[group])) or 'a number'}" for group in (fitting or groups)],
            "say so in program.json: output_dimensions, output_labels and output_values",
        )
    return fitting[0]


def _is_called(variable: str, name: str) -> bool:
    """tracr numbers variables (``frac_prevs_7``), and the export's name may go on (``frac_prevs_x``)."""
    stem, _, number = variable.rpartition("_")
    return number.isdigit() and bool(stem) and (name == stem or name.startswith(stem + "_"))


def _values(spelled: Sequence[str], document: Document) -> list[Value]:
    """Values from their spellings: as they stand in the recorded outputs or the vocabulary, else as they look."""
    known: dict[str, Value] = {str(token): token for token in document["vocab"]}
    known |= {str(value): value for row in document["outputs"] for value in row}
    return [known[text] if text in known else value_of(text) for text in spelled]


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
