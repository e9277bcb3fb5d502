"""Weights by hand: a lookup or an attention pattern placed into a chosen MLP or head of a labelled model.

    model = blank("abc", 4, {"previous": "abc", "pair": (True, False)}, output="pair", layers=2, d_head=8, d_mlp=16)
    model = place_attention(model, "a0.h0", keys="indices", queries="indices", selects=lambda k, q: k == q - 1,
                            values="tokens", writes="previous")
    model = place_lookup(model, "m1", ("tokens", "previous"), {("a", "b"): True}, writes="pair")

It is the machinery that programs are compiled with, so a compiled model can be extended as well. A sequence is named
as its labels are before the colon ("tokens", "length_5"): with a dimension per value, "name:value", it is categorical;
with the one dimension "name" it is a number. Every call returns a new model.
"""

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from voltmeter.errors import AddressError, ProgramError, nearest
from voltmeter.rasp.assemble import Parts, fill_embeddings, write_head, write_units
from voltmeter.rasp.compile import check_steepness, limits_of
from voltmeter.rasp.functions import Category
from voltmeter.rasp.model import CompiledTransformer, Interface, Shape, Value, value_of
from voltmeter.rasp.place import PAD
from voltmeter.rasp.values import TOO_CLOSE
from voltmeter.rasp.weights import Head, Space, Sum, Unit, look_up, pattern, steps
from voltmeter.rasp.weights import copy as copy_values


def blank(
    vocabulary: Sequence[Value],
    max_length: int,
    sequences: Mapping[str, Sequence[Value] | None],
    output: str,
    *,
    layers: int,
    d_head: int,
    d_mlp: int,
    heads: int = 1,
    causal: bool = False,
    name: str = "handcrafted",
    bos: Value = "BOS",
) -> CompiledTransformer:
    """A model whose embeddings hold "one", "tokens" and "indices" and which computes nothing yet.

    ``sequences`` are what it will compute, each with its values, or None for a number; ``output`` is one of them.

    Raises:
        ProgramError: the output is none of the sequences, a sequence takes a name that is in use, values that cannot be
            told apart by their labels, a size below 1, or a vocabulary that ``compile_program`` would refuse.
    """
    limits_of(vocabulary, max_length, bos)
    _check_sizes(layers=layers, heads=heads, d_head=d_head, d_mlp=d_mlp)
    _check_sequences(sequences, output)
    rows = (*vocabulary, bos, PAD)
    labels = ["one", *(f"tokens:{token}" for token in rows), *(f"indices:{at}" for at in range(max_length))]
    first_index, spaces = 1 + len(rows), {}
    for each, values in sequences.items():
        spaces[each] = range(len(labels), len(labels) + (1 if values is None else len(values)))
        labels += [each] if values is None else [f"{each}:{value}" for value in values]
    decoded = sequences[output]
    interface = Interface(
        name,
        tuple(vocabulary),
        {token: row for row, token in enumerate(rows)},
        bos,
        PAD,
        max_length,
        tuple(labels),
        tuple(spaces[output]),
        None if decoded is None else tuple(decoded),
    )
    shape = Shape(len(rows), max_length + 1, len(labels), layers, heads, d_head, d_mlp, causal)
    model = CompiledTransformer(shape, interface)
    token_rows = [(0, 1 + row) for row in range(len(rows))]
    fill_embeddings(model, Parts({}, {}, token_rows, [(), *((first_index + at,) for at in range(max_length))]))
    return model


def _check_sizes(**sizes: int) -> None:
    wrong = [f"{name} is {size}" for name, size in sizes.items() if size < 1]
    if wrong:
        raise ProgramError("the model would have no room", wrong, "give sizes of 1 or more")


def _check_sequences(sequences: Mapping[str, Sequence[Value] | None], output: str) -> None:
    """Labels are all that a model remembers of its sequences: they have to be read back as they were meant."""
    taken = [each for each in sequences if each in ("one", "tokens", "indices")]
    if taken or output not in sequences:
        what = f"'{taken[0]}' is a sequence of every model" if taken else f"the output '{output}' is not computed"
        raise ProgramError(
            what, [f"sequences: {', '.join(sequences)}"], "name each sequence once, the output among them"
        )
    misses = [f"'{name}' has a colon in its name" for name in sequences if ":" in name]
    for name, values in sequences.items():
        listed = list(values or ())
        misses += [f"'{name}' has {v!r} twice" for at, v in enumerate(listed) if v in listed[:at]]
        misses += [
            f"'{name}' has the text {v!r}, which is read as {value_of(v)!r}"
            for v in listed
            if isinstance(v, str) and value_of(v) != v
        ]
        if values is not None and not listed:
            misses.append(f"'{name}' has no values: None makes it a number")
    if misses:
        raise ProgramError(
            "labels 'name:value' would not say which sequence and value they stand for",
            misses,
            "give names without colons, each value once, and numbers and truth values as such, not as text",
        )


def place_attention(
    model: CompiledTransformer,
    at: str,
    *,
    keys: str,
    queries: str,
    selects: Callable[[Category, Category], bool],
    values: str,
    writes: str,
    coldness: int | float = 100.0,
) -> CompiledTransformer:
    """A copy of ``model`` in which head ``at`` ("a1.h0") attends where ``selects(key, query)``.

    It writes the mean of ``values`` over the selected positions to ``writes``; BOS is attended where none is. ``keys``
    and ``queries`` are categorical sequences; ``values`` and ``writes`` are both numbers, or ``writes`` has all values
    of ``values``. What stands at BOS is read like any other position's: a lookup of a number leaves something there,
    which the compiler would take away and this does not.

    Raises:
        AddressError: no such head or sequence.
        ProgramError: the head is in use or too narrow, a sequence is of the wrong kind, ``selects`` holds for no key
            and query, or ``coldness`` is not above zero.
    """
    check_steepness(coldness=coldness)
    layer, head = _head(model, at)
    key_space, query_space = _categories(model, keys), _categories(model, queries)
    source, target = space(model, values), space(model, writes)
    numbers = [each.number is not None for each in (source, target)]
    lacking = [value for value in source.at if value not in target.at] if not any(numbers) else []
    if numbers[0] != numbers[1] or lacking:
        raise ProgramError(
            f"'{values}' cannot be copied to '{writes}'",
            [f"'{writes}' has no dimension for {value!r}" for value in lacking],
            "give both the same values, or make both numbers",
        )
    one, bos = _dimension(model, "one"), _dimension(model, f"tokens:{model.interface.bos}")
    query_sums, key_sums = pattern(key_space, query_space, selects, float(coldness))
    if not query_sums:
        raise ProgramError(
            f"{at} would only ever attend BOS: selects holds for no key of '{keys}' and query of '{queries}'",
            [f"keys {', '.join(map(repr, key_space.at))}", f"queries {', '.join(map(repr, query_space.at))}"],
            "select some of these values (their types count: 1 is not '1')",
        )
    value_sums, outputs = copy_values(source, target)
    rest: Sum = {one: coldness / 2}
    weights = Head((*query_sums, rest), (*key_sums, {bos: 1.0}), tuple(value_sums), tuple(outputs))
    made = copy.deepcopy(model)
    write_head(made, layer, head, weights)
    return made


def place_lookup(
    model: CompiledTransformer,
    at: str,
    reads: str | Sequence[str],
    table: Mapping[Category, Value],
    *,
    writes: str,
    exactness: int | float = 100.0,
) -> CompiledTransformer:
    """A copy of ``model`` in which MLP ``at`` ("m1") looks ``table`` up and adds what it finds to ``writes``.

    The keys of ``table`` are values of the sequence read, or tuples with one for each of several sequences; where none
    fits, nothing is written. A number is looked up by the nearest key, so that the table is a piecewise-constant
    function with steps ``1 / exactness`` wide.

    Raises:
        AddressError: no such MLP, sequence, or value.
        ProgramError: the MLP has too few free units, a number is to be looked up beside another sequence or by keys
            that are no numbers or too close, something else than a number is to be written as one, or ``exactness`` is
            not above zero.
    """
    check_steepness(exactness=exactness)
    made = copy.deepcopy(model)
    write_units(made, _mlp(model, at), _units(model, reads, table, writes, float(exactness)))
    return made


def space(model: CompiledTransformer, name: str) -> Space:
    """Where ``model`` holds the sequence ``name``.

    The values of "tokens" are its vocabulary (BOS left out); those of others are read off their labels: True, False,
    numbers, else text. Raises AddressError if no label has this name.
    """
    labels, face = model.interface.labels, model.interface
    if name in labels:
        return Space({}, labels.index(name))
    if name == "tokens":
        return Space({token: _dimension(model, f"tokens:{token}") for token in face.vocabulary})
    found: dict[Category, int] = {
        value_of(label.split(":", 1)[1]): at for at, label in enumerate(labels) if label.split(":", 1)[0] == name
    }
    if not found:
        known = sorted({label.split(":", 1)[0] for label in labels})
        raise AddressError(
            f"{face.name} holds no sequence '{name}'", [nearest(name, known)], f"it has {', '.join(known)}"
        )
    return Space(found)


def _units(
    model: CompiledTransformer,
    reads: str | Sequence[str],
    table: Mapping[Category, Value],
    writes: str,
    exactness: float,
) -> list[Unit]:
    if not table:
        raise ProgramError("the table is empty", mend="give it at least one value to look up")
    target, one = space(model, writes), _dimension(model, "one")
    names = [reads] if isinstance(reads, str) else list(reads)
    sources = [space(model, name) for name in names]
    outputs = [(key if isinstance(key, tuple) else (key,), _written(writes, target, v)) for key, v in table.items()]
    if len(sources) == 1 and sources[0].number is not None:
        return steps(sources[0].number, _cells(names[0], outputs), one, exactness)
    numbers = [name for name, source in zip(names, sources, strict=True) if source.number is not None]
    if numbers:
        raise ProgramError(
            f"'{numbers[0]}' is a number, and is to be looked up together with {len(names) - 1} more sequences",
            mend="look it up by itself first, into a categorical sequence",
        )
    return look_up([(_dimensions(names, sources, key), written) for key, written in outputs], one)


def _cells(name: str, outputs: Sequence[tuple[tuple[Category, ...], Sum]]) -> list[tuple[float, Sum]]:
    """The numbers of a table in rising order, each with what is written for it."""
    wrong = [f"{key if len(key) != 1 else key[0]!r}" for key, _ in outputs if len(key) != 1 or not _is_number(key[0])]
    if wrong:
        raise ProgramError(f"'{name}' is a number, and the table has other keys", wrong, "give one number for each key")
    cells = sorted(((float(key[0]), written) for key, written in outputs), key=lambda cell: cell[0])  # type: ignore[arg-type]
    close = [f"{a!r} and {b!r}" for (a, _), (b, _) in pairwise(cells) if b - a <= TOO_CLOSE]
    if close:
        raise ProgramError(
            f"the table's keys for '{name}' are too close to tell apart",
            close,
            f"keep them more than {TOO_CLOSE} apart",
        )
    return cells


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _dimensions(names: Sequence[str], sources: Sequence[Space], key: tuple[Category, ...]) -> list[int]:
    if len(key) != len(sources):
        raise ProgramError(
            f"the table's {key!r} has {len(key)} values", mend=f"give one for each of {', '.join(names)}"
        )
    for name, source, value in zip(names, sources, key, strict=True):
        if value not in source.at:
            raise AddressError(
                f"'{name}' has no value {value!r}", mend=f"its values are {', '.join(map(repr, source.at))}"
            )
    return [source.at[value] for source, value in zip(sources, key, strict=True)]


def _written(name: str, target: Space, value: Value) -> Sum:
    if target.number is None and value not in target.at:
        raise AddressError(f"'{name}' has no value {value!r}", mend=f"its values are {', '.join(map(repr, target.at))}")
    if target.number is not None and not _is_number(value):
        raise ProgramError(f"'{name}' is a number, and {value!r} is none", mend="give a finite number")
    return target.write(value)


def _categories(model: CompiledTransformer, name: str) -> Space:
    found = space(model, name)
    if found.number is not None:
        raise ProgramError(f"'{name}' is a number, and attention compares categories", mend="look it up into one first")
    return found


def _dimension(model: CompiledTransformer, label: str) -> int:
    labels = model.interface.labels
    if label not in labels:
        raise AddressError(f"{model.interface.name} has no dimension '{label}'", [nearest(label, labels)])
    return labels.index(label)


def _head(model: CompiledTransformer, at: str) -> tuple[int, int]:
    found = re.fullmatch(r"a(\d+)\.h(\d+)", at)
    shape = model.shape
    if not found or int(found[1]) >= shape.layers or int(found[2]) >= shape.heads:
        raise AddressError(
            f"{model.interface.name} has no head '{at}'",
            mend=f"its heads are a0.h0 to a{shape.layers - 1}.h{shape.heads - 1}",
        )
    return int(found[1]), int(found[2])


def _mlp(model: CompiledTransformer, at: str) -> int:
    found = re.fullmatch(r"m(\d+)", at)
    if not found or int(found[1]) >= model.shape.layers:
        raise AddressError(
            f"{model.interface.name} has no MLP '{at}'", mend=f"they are m0 to m{model.shape.layers - 1}"
        )
    return int(found[1])
