"""Random programs: as many known models as anyone wants.

    generate(seed=7, size=8)        the same program every time

A program grows from tokens and indices, one sequence at a time, each made of what is there already: maps, sequence
maps, sums, aggregates and widths over selectors of every kind. What is constant, ambiguous, mostly undefined or of too
many values is thrown away as it appears, by asking the oracle. Nothing is thrown away for what its compiled model does:
a model that disagrees with its oracle is a finding.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from voltmeter.errors import ProgramError
from voltmeter.rasp.compile import compile_program
from voltmeter.rasp.draws import Drawn, draw_sop, draw_taste
from voltmeter.rasp.language import Constant, Node, Sop, evaluate, indices, nodes, tokens
from voltmeter.rasp.model import Value
from voltmeter.rasp.nodes import Leaf
from voltmeter.rasp.programs.program import Program, Row

MOST_LAYERS = 6
_SETTINGS: tuple[tuple[tuple[Value, ...], int], ...] = (
    (("a", "b"), 5),
    (("a", "b", "c"), 4),
    (("a", "b", "c", "d"), 4),
    ((0, 1), 6),
    ((1, 2, 3), 5),
    ((0, 1, 2, 3), 4),
)
"""Vocabularies, and the length of inputs: at most 256 inputs, so that truths are cheap."""

_ATTEMPTS, _DRAWS = 100, 150  # programs begun before giving up, sequences drawn for each; a few are enough
_ROWS = 32  # inputs on which every sequence drawn is tried
_MOST_VALUES = 16
_LEAST_DEFINED = 0.5
_CAUSAL_SHARE = 0.25
_PREFER_LARGEST = (0.0, 0.2, 0.6)  # how often a new sequence is made of the largest yet: the more, the deeper


def generate(seed: int, size: int = 8) -> Program:
    """A random program of ``size`` operations and 1 to 6 layers, whose output depends on its tokens.

    Operations are maps, sums, aggregates, widths, selects and what joins selects; tokens, indices and constants are
    none, and one that is used twice counts once. An aggregate or width takes the attention of a layer, a map (and a
    width once more) its MLP, so that the longest chain of them decides: programs of size 4 mostly have 2 or 3 layers,
    of size 8 3 to 5, of size 12 5 or 6.

    Cost: tens to hundreds of milliseconds. Raises ProgramError if ``size`` is below 1, or no program is found.
    """
    if size < 1:
        raise ProgramError(f"a program of {size} operations was asked for", mend="give a size of 1 or more")
    rng = random.Random(f"voltmeter program {seed} of size {size}")  # a string seeds the same on every platform
    for _ in range(_ATTEMPTS):
        vocabulary, max_length = rng.choice(_SETTINGS)
        most_depth = rng.randint(1 + size // 5, size)  # a low ceiling makes programs of parallel parts
        draft = _Draft(rng, vocabulary, max_length, rng.random() < _CAUSAL_SHARE, most_depth)
        sop = draft.grow(size)
        if sop is None:
            continue
        program = draft.program(sop, f"random_{seed}_{size}")
        if _varies(program) and _compiles(program):
            return program
    raise ProgramError(
        f"no program of {size} operations was found in {_ATTEMPTS} attempts (seed {seed})",
        mend="give a smaller size, or another seed",
    )


def operations(sop: Sop) -> frozenset[Node]:
    """What counts towards a program's size: every expression but tokens, indices and constants."""
    return frozenset(node for node in nodes(sop) if not isinstance(node, Leaf | Constant))


def _depth(sop: Sop) -> int:
    """The longest chain of sequences that are computed one from the other."""
    depths: dict[Node, int] = {}
    for node in nodes(sop):
        below = max((depths[operand] for operand in node.operands), default=0)
        depths[node] = below + (isinstance(node, Sop) and not isinstance(node, Leaf | Constant))
    return depths[sop]


@dataclass
class _Draft:
    """A program in the making: the sequences it has so far, with the values that each takes."""

    rng: random.Random
    vocabulary: tuple[Value, ...]
    max_length: int
    causal: bool
    most_depth: int
    pool: list[Drawn] = field(init=False)
    rows: list[Row] = field(init=False)
    taste: tuple[float, ...] = field(init=False)
    prefer_largest: float = field(init=False)

    def __post_init__(self) -> None:
        self.taste, self.prefer_largest = draw_taste(self.rng), self.rng.choice(_PREFER_LARGEST)
        every = [*itertools.product(self.vocabulary, repeat=self.max_length)]
        self.rows = self.rng.sample(every, _ROWS)
        self.pool = [Drawn(tokens, self.vocabulary, 0), Drawn(indices, tuple(range(self.max_length)), 0)]

    def grow(self, size: int) -> Sop | None:
        """A sequence of ``size`` operations that depends on the tokens; None if none came up."""
        for _ in range(_DRAWS):
            sop = draw_sop(self.rng, self._operand, self.taste)
            count = len(operations(sop))
            if count > size or _depth(sop) > self.most_depth:
                continue
            drawn = self._tried(sop, count)
            if drawn is None:
                continue
            self.pool.append(drawn)
            if count == size and drawn.depends:
                return sop
        return None

    def program(self, sop: Sop, name: str) -> Program:
        return Program(
            name=name,
            docs=sop.show(depth=12),
            sop=sop.named(name),
            vocabulary=self.vocabulary,
            max_length=self.max_length,
            examples=(),
            causal=self.causal,
            tags=frozenset({"random"}),
        )

    def _operand(self, fits: Callable[[Drawn], bool]) -> Drawn:
        """One of the pool that fits: often the largest, of equal ones the latest, otherwise any."""
        fitting = [drawn for drawn in self.pool if fits(drawn)]
        if self.rng.random() < self.prefer_largest:
            return max(fitting, key=lambda drawn: drawn.size)
        return self.rng.choice(fitting)

    def _tried(self, sop: Sop, size: int) -> Drawn | None:
        """The sequence with its values, or None if it is of no use."""
        try:
            found = [evaluate(sop, row, self.causal) for row in self.rows]
        except ProgramError:
            return None  # ambiguous
        flat = [value for row in found for value in row]
        values = {value for value in flat if value is not None}
        defined = sum(value is not None for value in flat) / len(flat)
        if defined < _LEAST_DEFINED or not 2 <= len(values) <= _MOST_VALUES:
            return None
        return Drawn(sop, tuple(sorted(values, key=_order)), size, depends=_differ(found))


def _order(value: Value) -> tuple[bool, Value]:
    """A key that puts numbers before strings."""
    return isinstance(value, str), value


def _differ(outputs: Sequence[Sequence[Value | None]]) -> bool:
    """Whether some position holds several values over the inputs."""
    return any(len(set(column) - {None}) > 1 for column in zip(*outputs, strict=True))


def _varies(program: Program) -> bool:
    """Over all inputs. Raises nothing: one that is ambiguous on an input not tried before does not count."""
    try:
        return _differ([evaluate(program.sop, row, program.causal) for row in program.inputs()])
    except ProgramError:
        return False


def _compiles(program: Program) -> bool:
    try:
        made = compile_program(program.sop, program.vocabulary, program.max_length, causal=program.causal)
    except ProgramError:
        return False
    return made.model.shape.layers <= MOST_LAYERS
