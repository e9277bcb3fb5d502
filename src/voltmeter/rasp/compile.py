"""Programs to transformers, in the manner of Lindner et al. 2301.05062 (tracr). The whole compiler on one page:

    refuse     programs that are ambiguous on inputs they are for                       probe.py
    lower      rewrite into what a transformer has; equal expressions become one        lower.py
    infer      the values that each sequence can take                                   values.py
    place      a layer, and a head or the MLP, for each operation                       place.py
    lay_out    a labelled residual dimension for each category, and for each number     place.py
    build      each operation as the sums that its head and hidden units take           build.py, weights.py
    assemble   the matrices; and, from the same bookkeeping, the edges                  assemble.py

Nothing is run but the oracle, in the first pass: the weights follow from the program, its vocabulary and its length.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from voltmeter.errors import ProgramError
from voltmeter.rasp.assemble import Parts, assemble, carried
from voltmeter.rasp.build import Builder
from voltmeter.rasp.functions import Category
from voltmeter.rasp.language import need_sequence, nodes
from voltmeter.rasp.lower import Lowered, lower
from voltmeter.rasp.model import CompiledTransformer, Interface, Value, is_value
from voltmeter.rasp.nodes import Leaf, Node, Sop
from voltmeter.rasp.place import PAD, Layout, Slot, lay_out, place
from voltmeter.rasp.probe import refuse_ambiguous
from voltmeter.rasp.values import Limits, Values, infer
from voltmeter.rasp.weights import Head, Unit


@dataclass(frozen=True, eq=False)
class Compilation:
    """A compiled program.

    ``carries`` has every edge that the program's dataflow uses, named as a wiring split at the input names them
    ("input.tok -> a3.h0<v>"), with the labels of what it carries; the compiler wrote it down, nothing was cut.
    ``where`` says which components compute each expression, the one that holds the result last; an aggregate's
    selector is computed by its head.
    """

    model: CompiledTransformer
    carries: Mapping[str, tuple[str, ...]]
    where: Mapping[Node, tuple[str, ...]]

    @property
    def provenance(self) -> tuple[str, ...]:
        """The edges that the program's dataflow uses."""
        return tuple(self.carries)


def compile_program(
    sop: Sop,
    vocabulary: Sequence[Value],
    max_length: int,
    name: str = "",
    causal: bool = False,
    bos: Value = "BOS",
    mlp_exactness: int | float = 100.0,
    coldness: int | float = 100.0,
    inputs: Sequence[Sequence[Value]] | None = None,
) -> Compilation:
    """Compile a program to a transformer that computes it for inputs of up to ``max_length`` tokens.

    Args:
        sop: the program. Its oracle is ``evaluate(sop, row, causal)``.
        vocabulary: the tokens it may be given.
        max_length: positions after BOS.
        name: for messages; the program's own name if not given.
        causal: whether a position can attend only itself, earlier ones, and BOS.
        bos: the token put in front, which is attended where nothing is selected.
        mlp_exactness: the steepness of steps in maps of numbers: 1 / mlp_exactness is the width of a ramp.
        coldness: the attention score of a selected position. Where something is selected, BOS keeps a share of at
            most e^(-coldness / 2) (2e-22 as given; tracr divides by √d_head and keeps about 5e-7).
        inputs: those that the program is for, if not all: it has to be unambiguous on each of them (without ``inputs``,
            on 64 drawn from all).

    Raises:
        ProgramError: an aggregate selects several different categories, a function fails on a value that can reach it
            or tells equal ones apart (1 and True), there are too many values to look up, too close or too large ones
            for float64 to keep outputs to 1e-6; the vocabulary is empty, repeats a token or has BOS in it; one of
            ``inputs`` is too long or has an unknown token; ``coldness`` or ``mlp_exactness`` is not above zero; or
            ``sop`` is no sequence.
    """
    need_sequence("compile_program", sop)
    limits = limits_of(vocabulary, max_length, bos)
    check_steepness(coldness=coldness, mlp_exactness=mlp_exactness)
    refuse_ambiguous(sop, limits, causal, inputs)
    lowered = lower(sop)
    order = nodes(lowered.root)
    values = infer(order, limits)
    slots = place(order)
    layout = lay_out(order, values, limits, bos)
    parts = _build(order, slots, layout, Builder(values, layout, float(coldness), float(mlp_exactness)), limits)
    interface = _interface(name or sop.name or "program", lowered.root, values, layout, limits, bos)
    return Compilation(assemble(parts, interface, causal), carried(parts, interface), _where(lowered, slots))


def limits_of(vocabulary: Sequence[Value], max_length: int, bos: Value) -> Limits:
    """What a model is made for. Raises ProgramError unless every token has a spelling and a value of its own."""
    taken: list[Value] = [bos, PAD]
    misses = [f"{token!r} is no number or string" for token in vocabulary if not is_value(token)]
    for at, token in enumerate(vocabulary):
        if any(_alike(token, each) for each in taken):
            misses.append(f"it has {token!r} in it: {bos!r} and {PAD!r} are the compiler's own")
        before = [each for each in vocabulary[:at] if _alike(token, each)]
        misses += [f"it repeats {before[0]!r}, as {token!r}"] if before else []
    if misses or not vocabulary:
        raise ProgramError(
            "the vocabulary cannot be used" if misses else "the vocabulary is empty",
            [f"vocabulary {list(vocabulary)}", *misses],
            "give each token once: equal values (1, 1.0, True) are one token, and so are equal spellings (1, '1')",
        )
    if max_length < 1:
        raise ProgramError(f"max_length is {max_length}", mend="compile for at least one position after BOS")
    return Limits(tuple(vocabulary), max_length)


def _alike(a: Value, b: Value) -> bool:
    """Rows of the embedding are found by value, and dimensions by their labels."""
    return a == b or str(a) == str(b)


def check_steepness(**given: int | float) -> None:
    """Raise ProgramError unless all are numbers above zero, and finite."""
    wrong = [f"{name} is {value}" for name, value in given.items() if not 0 < value < math.inf]
    if wrong:
        raise ProgramError("the model would not tell values apart", wrong, "give a number above zero: 100 is usual")


def _build(order: Sequence[Node], slots: Mapping[Sop, Slot], layout: Layout, builder: Builder, limits: Limits) -> Parts:
    heads: dict[tuple[int, int], Head] = {}
    units: dict[int, list[Unit]] = {}
    for node in order:
        if not isinstance(node, Sop) or node not in slots:
            continue
        slot, head = slots[node], builder.head(node)
        if head is not None and slot.head is not None:
            heads[slot.layer, slot.head] = head
        units.setdefault(slot.layer, []).extend(builder.units(node))
    token_rows = [(layout.one, at) for at in layout.tokens.values()]
    first = layout.labels.index("indices:0")
    return Parts(heads, units, token_rows, [(), *((first + at,) for at in range(limits.max_length))])


def _interface(
    name: str, root: Sop, values: Mapping[Sop, Values], layout: Layout, limits: Limits, bos: Value
) -> Interface:
    space = layout.spaces[root]
    rows = {token: row for row, token in enumerate((*limits.vocabulary, bos, PAD))}
    decoded = None if space.number is not None else tuple(_decodable(root, v) for v in space.at)
    return Interface(
        name, limits.vocabulary, rows, bos, PAD, limits.max_length, layout.labels, space.dimensions, decoded
    )


def _decodable(root: Sop, value: Category) -> Value:
    if not is_value(value):
        raise ProgramError(
            f"{root} gives {value!r}, which is neither a number nor a string",
            mend="let the last operation give plain values; inner ones may give tuples",
        )
    return value


def _where(lowered: Lowered, slots: Mapping[Sop, Slot]) -> dict[Node, tuple[str, ...]]:
    """The components of each original expression, and of those that lowering made."""
    found: dict[Node, tuple[str, ...]] = {}
    made = [node for node in slots if node not in lowered.became.values()]
    for original, now in [*lowered.became.items(), *((node, node) for node in made)]:
        if isinstance(now, Leaf):
            found[original] = ("input.tok" if now.given == "tokens" else "input.pos",)
        elif isinstance(now, Sop) and now in slots:
            found[original] = slots[now].components
    return found
