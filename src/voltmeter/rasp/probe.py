"""A program tried on some inputs before it is compiled.

Whether an aggregate of categories ever selects two different ones depends on the inputs. A transformer would then
write a mixture of both, without a word; so the oracle is asked first.
"""

import random
from collections.abc import Iterable, Sequence
from itertools import product

from voltmeter.errors import ProgramError
from voltmeter.rasp.language import evaluate, nodes
from voltmeter.rasp.model import Value
from voltmeter.rasp.nodes import CATEGORICAL, Sop
from voltmeter.rasp.selectors import Aggregate
from voltmeter.rasp.values import Limits

_MOST_ROWS = 64


def refuse_ambiguous(sop: Sop, limits: Limits, causal: bool, inputs: Sequence[Sequence[Value]] | None) -> None:
    """Raise ProgramError if an aggregate is ambiguous on one of the inputs, or the model cannot be given one of them.

    Without ``inputs``, on those it is compiled for: all, shorter ones too, where 64 or fewer are of full length; else
    64 random ones. A program that passes may still be ambiguous on another; ``evaluate`` says so then.
    """
    if inputs is not None and not inputs:
        raise ProgramError("a program was said to be for no inputs at all", mend="leave inputs out, or give some")
    _refuse_misfits(limits, inputs or ())
    if not any(isinstance(node, Aggregate) and node.encoding is CATEGORICAL for node in nodes(sop)):
        return
    for row in _rows(limits) if inputs is None else inputs:
        try:
            evaluate(sop, row, causal)
        except ProgramError as error:
            mend = f"{error.mend}; or name the inputs that the program is for: inputs="
            raise ProgramError(error.problem, error.details, mend) from error


def _refuse_misfits(limits: Limits, inputs: Sequence[Sequence[Value]]) -> None:
    wrong = []
    for row in inputs:
        unknown = [repr(token) for token in row if token not in limits.vocabulary]
        wrong += [f"input {list(row)} has tokens that the vocabulary has not: {', '.join(unknown)}"] if unknown else []
        if not 1 <= len(row) <= limits.max_length:
            wrong.append(f"input {list(row)} has {len(row)} tokens, from 1 to {limits.max_length} were expected")
    if wrong:
        raise ProgramError(
            "a program was said to be for inputs that its model cannot be given",
            wrong,
            "leave them out, or compile for them (vocabulary=, max_length=)",
        )


def _rows(limits: Limits) -> Iterable[Sequence[Value]]:
    vocabulary, longest = limits.vocabulary, limits.max_length
    if len(vocabulary) ** longest <= _MOST_ROWS:
        return (row for length in range(longest, 0, -1) for row in product(vocabulary, repeat=length))
    draw = random.Random(0)
    lengths = [longest, longest, 1 + longest // 2]  # most at full length, where most is selected
    return [draw.choices(vocabulary, k=lengths[at % 3]) for at in range(_MOST_ROWS)]
