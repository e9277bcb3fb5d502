"""``program.json``: what each of its fields may hold, how they fit together, and the interface they make.

tracr's files say neither which residual dimensions hold the answer nor which value each stands for: the variable is
found by the program's name among the labels. Ours say both.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from voltmeter.errors import FormatError, LoadError
from voltmeter.rasp.model import Interface, Value, value_of

Document: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[str, Any], Iterator[str]]
"""Says of the value at a place ("inputs[3]") what is wrong with it, a line for each miss."""

PAD = "compiler_pad"
"""What the row that pads inputs is called, in files that do not say."""


# What a field may hold ---------------------------------------------------------------------------------------------


def _one(expected: str, fits: Callable[[Any], bool]) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        if not fits(value):
            yield f"{where} is {json.dumps(value)[:60]}, {expected} was expected"

    return check


def _list(item: Check) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        yield from _LIST(where, value)
        if type(value) is list:
            for at, each in enumerate(value):
                yield from item(f"{where}[{at}]", each)

    return check


def _table(item: Check) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        yield from _TABLE(where, value)
        if type(value) is dict:
            for key, each in value.items():
                yield from item(f"{where}[{key!r}]", each)

    return check


def _or_null(check: Check) -> Check:
    return lambda where, value: iter(()) if value is None else check(where, value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


_LIST = _one("a list", lambda value: type(value) is list)
_TABLE = _one("an object", lambda value: type(value) is dict)
_TEXT = _one("text", lambda value: type(value) is str)
_FLAG = _one("true or false", lambda value: type(value) is bool)
_SIZE = _one("a whole number above zero", lambda value: type(value) is int and value > 0)
_PLACE = _one("a whole number", lambda value: type(value) is int and value >= 0)
_TOLERANCE = _one("a finite number of 0 or more", lambda v: type(v) in (int, float) and _is_number(v) and v >= 0)
_VALUE = _one("text, a finite number, true or false", lambda value: type(value) is str or _is_number(value))

_NEEDED: Mapping[str, Check] = {
    **dict.fromkeys(("max_seq_len", "num_layers", "num_heads", "key_size", "mlp_hidden_size"), _SIZE),
    **dict.fromkeys(("name", "activation"), _TEXT),
    **dict.fromkeys(("causal", "layer_norm"), _FLAG),
    "bos": _VALUE,
    "vocab": _list(_VALUE),
    "encoding": _table(_PLACE),
    "residual_labels": _list(_TEXT),
    "output_encoding": _or_null(_table(_PLACE)),
    "inputs": _list(_list(_VALUE)),
    "outputs": _list(_list(_or_null(_VALUE))),
}
_OPTIONAL: Mapping[str, Check] = {
    "pad": _VALUE,
    "scores_divided": _FLAG,
    "output_dimensions": _list(_PLACE),
    "output_labels": _list(_TEXT),
    "output_values": _or_null(_list(_VALUE)),
    "output_tolerance": _TOLERANCE,
    "provenance": _or_null(_list(_TEXT)),
}


def check_document(document: Document, subject: str) -> None:
    """Raise FormatError unless every field is of its kind and all fit together.

    ``subject`` begins the message: "reverse/program.json is damaged". Every miss is a line that names its field.
    """
    missing = [name for name in _NEEDED if name not in document]
    if missing:
        raise FormatError(f"{subject}: fields are missing", [f"it has no {name}" for name in missing])
    checks = {**_NEEDED, **{name: check for name, check in _OPTIONAL.items() if name in document}}
    wrong = [miss for name, check in checks.items() for miss in check(name, document[name])]
    if wrong:
        raise FormatError(f"{subject}: {len(wrong)} of its values are of the wrong kind", wrong)
    if document["layer_norm"] or document["activation"] != "relu":
        raise FormatError(
            f"{subject}: it asks for a transformer that compiled models are not",
            [f"layer_norm {document['layer_norm']}, activation {document['activation']!r}"],
            "compile it without layer norm, and with ReLU MLPs",
        )
    wrong = [*_tokens(document), *_rows(document), *_outputs(document)]
    if wrong:
        raise FormatError(f"{subject}: its fields do not fit together", wrong)


# How fields fit together -------------------------------------------------------------------------------------------


def _tokens(document: Document) -> Iterator[str]:
    """Rows are found by spelling, and tokens by value: each token needs its own of both."""
    vocabulary, bos, encoding = document["vocab"], document["bos"], document["encoding"]
    if not vocabulary:
        yield "vocab is empty"
    specials = {"bos": bos, "pad": document.get("pad", PAD)}
    for at, token in enumerate(vocabulary):
        named = {**{f"vocab[{before}]": each for before, each in enumerate(vocabulary[:at])}, **specials}
        for name, other in named.items():
            if token == other or str(token) == str(other):
                yield f"vocab[{at}], {token!r}, cannot be told from {name}, {other!r}"
    unplaced = [repr(token) for token in (*vocabulary, bos) if str(token) not in encoding]
    if unplaced:
        yield f"encoding gives {len(unplaced)} tokens no row of the embedding: {', '.join(unplaced)}"


def _rows(document: Document) -> Iterator[str]:
    """Inputs are of one length, of known tokens, and each stands once; every one has its output."""
    inputs, outputs, longest = document["inputs"], document["outputs"], document["max_seq_len"]
    if len(inputs) != len(outputs):
        yield f"inputs and outputs are not as many: {len(inputs)} inputs, {len(outputs)} outputs"
    lengths = sorted({len(row) for row in inputs})
    if len(lengths) > 1 or not all(1 <= length <= longest for length in lengths):
        yield f"inputs have lengths {', '.join(map(str, lengths))}: one from 1 to max_seq_len, {longest}, was expected"
    known = {(type(token), token) for token in document["vocab"]}
    for at, row in enumerate(inputs):
        unknown = [repr(token) for token in row if (type(token), token) not in known]
        if unknown:
            yield f"inputs[{at}] has tokens that vocab has not: {', '.join(unknown)}"
    counts = Counter(map(tuple, inputs))
    yield from (f"inputs has {list(row)} {count} times" for row, count in counts.items() if count > 1)
    for at, (row, output) in enumerate(zip(inputs, outputs, strict=False)):
        if len(row) != len(output):
            yield f"outputs[{at}] has {len(output)} values, and its input has {len(row)}"


def _outputs(document: Document) -> Iterator[str]:
    """What is said of the output: which dimensions hold it, what each is called, what value it stands for."""
    labels, encoding = document["residual_labels"], document["output_encoding"]
    if not labels:
        yield "residual_labels is empty"
    if encoding is not None and not encoding:
        yield "output_encoding is empty: null says that the output is a number"
    if "output_dimensions" not in document:
        return
    dimensions, values = document["output_dimensions"], document.get("output_values")
    named = document.get("output_labels", [])
    said = [labels[at] if at < len(labels) else at for at in dimensions]
    count = len(named) if values is None else len(values)
    if not named or (dimensions and said != named) or len(named) != count:
        yield (
            "its output dimensions, labels and values disagree: "
            f"output_dimensions {dimensions}, output_labels {named}, output_values {values}"
        )
    if values is None and len(named) > 1:
        yield f"output_values is null, and {len(named)} outputs are no one number"
    spelled = Counter(str(value) for value in values or ())
    yield from (f"output_values has {text} {count} times" for text, count in spelled.items() if count > 1)


# The interface -----------------------------------------------------------------------------------------------------


def interface_of(document: Document, path: Path) -> Interface:
    """The interface that a checked document describes. Raises LoadError where its output cannot be told."""
    encoding, pad = document["encoding"], document.get("pad", PAD)
    rows: dict[Value, int] = {token: encoding[str(token)] for token in (*document["vocab"], document["bos"])}
    if str(pad) in encoding:
        rows[pad] = encoding[str(pad)]
    dimensions, decoded = _answer(document, path)
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
        answers=None if dimensions else tuple(document["output_labels"]),
    )


def _answer(document: Document, path: Path) -> tuple[tuple[int, ...], tuple[Value, ...] | None]:
    """The residual dimensions that hold the answer, and the value each stands for (None: one number)."""
    labels: Sequence[str] = document["residual_labels"]
    if "output_dimensions" in document:
        values = document.get("output_values")
        return tuple(document["output_dimensions"]), None if values is None else tuple(values)
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
