"""Each placed operation as the head and the hidden units that compute it.

BOS needs care. It is attended where nothing else is selected, and a map of numbers may leave something in its stream
that is no part of the program. What stands there is known (Values.at_bos), so a head's queries, keys and values take
it away again by reading the dimension "tokens:BOS".
"""

from collections.abc import Mapping
from dataclasses import dataclass

from voltmeter.errors import ProgramError
from voltmeter.rasp.nodes import NUMERICAL, LinearSequenceMap, Map, SequenceMap, Sop
from voltmeter.rasp.place import Layout
from voltmeter.rasp.selectors import Aggregate, Select, SelectorWidth
from voltmeter.rasp.semantics import apply, number
from voltmeter.rasp.values import Values, affine, cells
from voltmeter.rasp.weights import Head, Sum, Unit, copy, decode_width, linear, look_up, pattern, rounding, steps

_MOST_ROUNDING = 1e-6  # what an output dimension may be off


@dataclass(frozen=True)
class Builder:
    """Builds operations over one layout. ``coldness`` and ``exactness`` as in compile_program."""

    values: Mapping[Sop, Values]
    layout: Layout
    coldness: float
    exactness: float

    def head(self, node: Sop) -> Head | None:
        """The head of an aggregate or a selector width; None for what needs none."""
        match node:
            case Aggregate(selector=Select() as selector, sop=sop):
                values, outputs = copy(self.layout.spaces[sop], self.layout.spaces[node])
                values = [self._silent(value, sop) for value in values]
                if node.default is not None:
                    default = self.layout.spaces[node].write(node.default)
                    values, outputs = [*values, {self.layout.bos: 1.0}], [*outputs, default]
                return self._attend(selector, self.coldness / 2, values, outputs)
            case SelectorWidth(selector=Select() as selector):
                share: Sum = {self.layout.shares[node]: 1.0}
                return self._attend(selector, self.coldness, [{self.layout.bos: 1.0}], [share])
        return None

    def units(self, node: Sop) -> list[Unit]:
        """The hidden units of a map or a selector width; none for an aggregate."""
        layout = self.layout
        match node:
            case Map(sop=x) if x.encoding is NUMERICAL:
                return self._map_numbers(node)
            case Map(f=f, sop=x):
                held = layout.spaces[x].at
                return look_up([((at,), self._write(node, apply(node, f, v))) for v, at in held.items()], layout.one)
            case SequenceMap(f=f, a=a, b=b):
                one_of_a, one_of_b = layout.spaces[a].at.items(), layout.spaces[b].at.items()
                table = [((i, j), self._write(node, apply(node, f, u, v))) for u, i in one_of_a for v, j in one_of_b]
                return look_up(table, layout.one)
            case LinearSequenceMap(a=a, b=b):
                terms = [(self._number(a), float(node.factor_a)), (self._number(b), float(node.factor_b))]
                return linear(terms, 0.0, self._number(node), layout.one)
            case SelectorWidth():
                share, widths = layout.shares[node], layout.spaces[node]
                return decode_width(share, widths, layout.one, layout.bos, self.exactness)
        return []

    def _attend(self, selector: Select, bos_score: float, values: list[Sum], outputs: list[Sum]) -> Head:
        """Attend what ``selector`` selects, and BOS with ``bos_score``."""
        spaces = self.layout.spaces

        def selects(key: object, query: object) -> bool:
            return bool(apply(selector, selector.predicate, key, query))

        queries, keys = pattern(spaces[selector.keys], spaces[selector.queries], selects, self.coldness)
        queries = [*(self._silent(q, selector.queries) for q in queries), {self.layout.one: bos_score}]
        keys = [*(self._silent(k, selector.keys) for k in keys), {self.layout.bos: 1.0}]
        return Head(tuple(queries), tuple(keys), tuple(values), tuple(outputs))

    def _silent(self, reads: Sum, sop: Sop) -> Sum:
        """``reads`` of ``sop``'s dimensions, made 0 at BOS."""
        content = self.layout.spaces[sop].write(self.values[sop].at_bos)
        there = sum(reads.get(at, 0.0) * amount for at, amount in content.items())
        return {**reads, self.layout.bos: -there} if there else reads

    def _map_numbers(self, node: Map) -> list[Unit]:
        straight = affine(node)
        if straight is not None:
            slope, constant = straight
            return linear([(self._number(node.sop), slope)], constant, self._number(node), self.layout.one)
        table = [(x, self._write(node, result)) for x, result in cells(node, self.values[node.sop])]
        off = rounding(table, self.exactness)
        if off > _MOST_ROUNDING:
            raise ProgramError(
                f"{node} would be off by up to {off:.1g}: its steps are too steep for numbers as large as it reads",
                [f"it reads up to {max(abs(x) for x, _ in table):g}, and {_MOST_ROUNDING:g} is allowed"],
                "scale the numbers down first, or compile with blunter steps (mlp_exactness=)",
            )
        return steps(self._number(node.sop), table, self.layout.one, self.exactness)

    def _write(self, node: Sop, result: object) -> Sum:
        space = self.layout.spaces[node]
        if node.encoding is NUMERICAL:
            return space.write(number(node, result))
        if result is not None and result not in space.at:
            raise ProgramError(
                f"{node} gives {result!r} now, and gave something else when it was asked for its values",
                mend="its function has to give equal results for equal values: no chance, no state, no fresh objects",
            )
        return space.write(result)

    def _number(self, sop: Sop) -> int:
        found = self.layout.spaces[sop].number
        if found is None:
            raise ProgramError(f"{sop} is not numerical", mend="convert it with numerical(...)")
        return found
