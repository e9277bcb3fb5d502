"""``Program``: a program with what one needs to know about it, and the decorator that makes one of a function.

@known(vocabulary="abc", max_length=5, examples={"abca": "bcab"})
def caesar() -> Sop:
    \"\"\"Each letter replaced by the next.\"\"\"
    return ...
"""

import itertools
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from voltmeter.errors import ProgramError
from voltmeter.rasp.language import Sop
from voltmeter.rasp.model import Value

Row: TypeAlias = tuple[Value, ...]
Outputs: TypeAlias = tuple[Value | None, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A program in RASP.

    ``vocabulary`` and ``max_length`` are what it is compiled for, ``causal`` whether positions see only earlier ones.
    ``distinct`` says that its inputs hold no token twice. ``tags`` say what it is good for ("redundant", "veto", ...).
    ``examples`` pairs inputs with the outputs that a person worked out; None is a position left undefined.

    Raises ProgramError where there is no input: no token, no position, or fewer tokens than ``distinct`` ones need.
    """

    name: str
    docs: str
    sop: Sop
    vocabulary: tuple[Value, ...]
    max_length: int
    examples: tuple[tuple[Row, Outputs], ...]
    causal: bool = False
    distinct: bool = False
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.max_length < 1 or not self.count_inputs():
            kinds = f"{len(self.vocabulary)} tokens"
            needed = f"{self.max_length} {'different ones' if self.distinct else 'positions'}"
            raise ProgramError(
                f"{self.name} has no inputs: it is for {needed}, and its vocabulary has {kinds}",
                mend="give at least one position, and as many tokens as inputs need",
            )

    def inputs(self, limit: int = 512, seed: int = 0) -> tuple[Row, ...]:
        """Every input of ``max_length`` tokens, in the order of ``itertools.product``; beyond ``limit``, a sample."""
        count = self.count_inputs()
        if count <= limit:
            if self.distinct:
                return tuple(itertools.permutations(self.vocabulary, self.max_length))
            return tuple(itertools.product(self.vocabulary, repeat=self.max_length))
        return tuple(self._input(at) for at in sorted(_some(count, limit, seed)))

    def count_inputs(self) -> int:
        """How many inputs of ``max_length`` tokens there are."""
        kinds = len(self.vocabulary)
        return math.perm(kinds, self.max_length) if self.distinct else kinds**self.max_length

    def _input(self, at: int) -> Row:
        """The input number ``at`` of all, counted in their order: its digits, first the largest."""
        left, row = list(self.vocabulary), []
        below = self.count_inputs()
        for _ in range(self.max_length):
            below //= len(left)
            digit, at = divmod(at, below)
            row.append(left.pop(digit) if self.distinct else left[digit])
        return tuple(row)


def _some(count: int, limit: int, seed: int) -> Iterable[int]:
    """``limit`` different numbers below ``count``, which may be larger than a range can be long."""
    draw = random.Random(seed)
    if count <= sys.maxsize:
        return draw.sample(range(count), limit)
    chosen: set[int] = set()
    while len(chosen) < limit:
        chosen.add(draw.randrange(count))
    return chosen


def known(
    vocabulary: Iterable[Value],
    max_length: int,
    examples: Mapping[str | Row, str | Outputs],
    causal: bool = False,
    distinct: bool = False,
    tags: Iterable[str] = (),
) -> Callable[[Callable[[], Sop]], Program]:
    """The program that a function returns, named as the function and described by its docstring."""

    def make(build: Callable[[], Sop]) -> Program:
        return Program(
            name=build.__name__,
            docs=(build.__doc__ or "").strip(),
            sop=build().named(build.__name__),
            vocabulary=tuple(vocabulary),
            max_length=max_length,
            examples=tuple((tuple(given), tuple(expected)) for given, expected in examples.items()),
            causal=causal,
            distinct=distinct,
            tags=frozenset(tags),
        )

    return make
