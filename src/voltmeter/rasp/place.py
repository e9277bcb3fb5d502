"""Where each operation goes: a layer in which its operands are ready, and residual dimensions of its own.

In a layer attention comes before the MLP. An aggregate takes a head; a selector's width a head and the MLP behind it;
every map takes (a share of) an MLP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from voltmeter.rasp.functions import Category
from voltmeter.rasp.model import Value
from voltmeter.rasp.nodes import NUMERICAL, Leaf, Node, Sop
from voltmeter.rasp.selectors import Aggregate, Select, SelectorWidth
from voltmeter.rasp.values import Limits, Values
from voltmeter.rasp.weights import Space

PAD = "compiler_pad"


@dataclass(frozen=True)
class Slot:
    """A layer, with a head where attention is needed and ``mlp`` where the MLP is."""

    layer: int
    head: int | None
    mlp: bool

    @property
    def components(self) -> tuple[str, ...]:
        """As the wiring names them, the one that has the result last."""
        attention = () if self.head is None else (f"a{self.layer}.h{self.head}",)
        return (*attention, f"m{self.layer}") if self.mlp else attention


@dataclass(frozen=True)
class Layout:
    """The dimensions of the residual stream: those of each sequence, of each token, and three more.

    ``shares`` has, for each selector width, the dimension for the attention that BOS gets, which is decoded from there.
    """

    labels: tuple[str, ...]
    spaces: Mapping[Sop, Space]
    shares: Mapping[Sop, int]
    tokens: Mapping[Category, int]
    one: int
    bos: int
    pad: int


def place(order: Sequence[Node]) -> dict[Sop, Slot]:
    """A slot for each sequence that has to be computed (leaves are in the embedding), as tracr places them.

    Sequences are taken by depth, the longest path from the tokens to them. Each depth takes the next attention that
    is still to come, if it needs one, and then the next MLP, if it needs one.
    """
    slots: dict[Sop, Slot] = {}
    step = 0  # attention of layer l is step 2 l, its MLP step 2 l + 1
    for level in _by_depth(order):
        attending = [node for node in level if isinstance(node, Aggregate | SelectorWidth)]
        if attending:
            step += step % 2
            for head, node in enumerate(attending):
                slots[node] = Slot(step // 2, head, isinstance(node, SelectorWidth))
            step += 1
        if any(not isinstance(node, Aggregate) for node in level):
            step += 1 - step % 2
            slots |= {node: Slot(step // 2, None, True) for node in level if node not in slots}
            step += 1
    return slots


def _by_depth(order: Sequence[Node]) -> list[list[Sop]]:
    depth: dict[Sop, int] = {}
    levels: list[list[Sop]] = []
    for node in order:
        if isinstance(node, Leaf) or not isinstance(node, Sop):
            continue
        depth[node] = max((depth[operand] + 1 for operand in reads(node) if operand in depth), default=0)
        if depth[node] == len(levels):
            levels.append([])
        levels[depth[node]].append(node)
    return levels


def reads(node: Sop) -> tuple[Sop, ...]:
    """The sequences that a lowered operation reads, those of its selector included."""
    found: list[Sop] = []
    for operand in node.operands:
        if isinstance(operand, Select):
            found += [operand.keys, operand.queries]
        elif isinstance(operand, Sop):
            found.append(operand)
    return tuple(found)


def lay_out(order: Sequence[Node], values: Mapping[Sop, Values], limits: Limits, bos: Value) -> Layout:
    """Residual dimensions for "one", the tokens, the positions, and each sequence of ``order``."""
    labels = ["one"]
    tokens = _claim(labels, "tokens", (*limits.vocabulary, bos, PAD))
    positions = _claim(labels, "indices", tuple(range(limits.max_length)))
    spaces: dict[Sop, Space] = {}
    shares: dict[Sop, int] = {}
    for number, node in enumerate(node for node in order if isinstance(node, Sop)):
        name = f"{node.name or _kind(node)}_{number}"
        if isinstance(node, Leaf):
            spaces[node] = Space({v: tokens[v] for v in limits.vocabulary} if node.given == "tokens" else positions)
            continue
        if isinstance(node, SelectorWidth):
            shares[node] = _claim(labels, f"{name}_selector_width_attn_output", (None,))[None]
        if node.encoding is NUMERICAL:
            spaces[node] = Space({}, _claim(labels, name, (None,))[None])
        else:
            spaces[node] = Space(_claim(labels, name, values[node].known or ()))
    return Layout(tuple(labels), spaces, shares, tokens, 0, tokens[bos], tokens[PAD])


def _claim(labels: list[str], name: str, values: Sequence[Category]) -> dict[Category, int]:
    """New dimensions ``name:value``, or just ``name`` for the value None."""
    first = len(labels)
    labels.extend(name if value is None else f"{name}:{value}" for value in values)
    return {value: first + at for at, value in enumerate(values)}


def _kind(node: Sop) -> str:
    """What an unnamed sequence is called: a SequenceMap is "sequence_map"."""
    name = type(node).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
