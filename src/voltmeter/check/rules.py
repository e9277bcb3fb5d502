"""Rules without structure, and how much of what a model puts out they explain.

    always the same       the most frequent output
    the usual answer      the most frequent answer of the task
    the usual token       of the outputs, the one that stands most often in the inputs (unigram)
    a copy                the token so many places from the start, or before the answer: the best of all such places
    the last token        whatever mostly came out where the last token was the same, or the token there (bigram)
    the position          whatever mostly came out at this position (where there is an output at each)
    nothing kept          what comes out where every edge is cut: the fills alone decide

What a rule has to learn it learns from some groups of pairs, and is tried on the others: each group is tried once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from voltmeter.check.case import Random
from voltmeter.check.outputs import PutOut
from voltmeter.task.pairs import Pairs
from voltmeter.task.tree import named_tensors, token_ids

FOLDS = 5  # four fifths of the groups are learnt from at a time
PLACES = 48  # from either end, at which a token is looked for
COLUMNS = 256  # features of inputs that are no tokens; more are not looked at
_BINS = 8  # of a feature that is a number
_SHUFFLES = 8  # by which chance agreement is taken off mutual information: its mean is known to a third of its spread

CONSTANT = ("always the same", "the usual answer", "the usual token")
COPY, LAST, THERE = "a copy of", "the last token", "the token there"
POSITION, NOTHING_KEPT = "the position", "nothing kept"

Labels = Int64[Tensor, "unit"]


@final
@dataclass(frozen=True, eq=False)
class Rule:
    """What a rule says of every unit; -1 is nothing."""

    name: str
    says: Labels


@final
@dataclass(frozen=True, eq=False)
class Features:
    """What the inputs are made of, a column for each thing that can be looked at; -1 where it is not there.

    ``tokens`` and ``others`` map what people call a column to Int [unit]; ``nearest`` is the token where the output is.
    """

    tokens: Mapping[str, Labels]
    others: Mapping[str, Labels]
    nearest: str | None

    @cached_property
    def all(self) -> dict[str, Labels]:
        return {**self.tokens, **self.others}


def features_of(seen: PutOut) -> Features:
    """Tokens by place, from the start and backwards from where the answer is read; of other inputs, every number."""
    if all(token_ids(part.clean) is not None for part in seen.pairs):
        columns = _merged([_token_columns(part) for part in seen.pairs], seen.pair)
        there = _at_place(seen) if seen.readout.kind == "places" else None
        if there is None:
            return Features(columns, {}, LAST)
        return Features({**columns, THERE: there}, {}, THERE)
    return Features({}, _merged([_other_columns(part) for part in seen.pairs], seen.pair), None)


def _token_columns(pairs: Pairs) -> dict[str, Tensor]:
    ids = token_ids(pairs.clean)
    assert ids is not None
    ids, length = ids.cpu(), ids.shape[1]
    columns = {f"the token in place {at + 1}": ids[:, at] for at in range(min(PLACES, length))}
    for back in range(min(PLACES, length)):
        at = pairs.position - back
        name = LAST if back == 0 else f"the token {back} before the last"
        there = ids.gather(1, at.clamp(min=0)[:, None])[:, 0]
        columns[name] = torch.where((at >= 0) & (pairs.position >= 0), there, -1)
    return columns


def _at_place(seen: PutOut) -> Labels | None:
    """The token at each unit's own place, where outputs are as many as tokens."""
    whole = [token_ids(part.clean) for part in seen.pairs]
    widths = {ids.shape[1] for ids in whole if ids is not None}
    if len(widths) != 1 or int(seen.place.max()) >= min(widths):
        return None
    return torch.cat([ids for ids in whole if ids is not None]).cpu()[seen.pair, seen.place]


def _other_columns(pairs: Pairs) -> dict[str, Tensor]:
    """Every number of inputs that are no tokens, sorted into at most eight ranges; of large inputs none."""
    columns: dict[str, Tensor] = {}
    for name, tensor in named_tensors(pairs.clean):
        flat = tensor.reshape(len(pairs), -1).cpu()
        if flat.shape[1] + len(columns) > COLUMNS:
            continue
        for at, column in enumerate(flat.double().T):
            title = f"{name or 'the input'}[{at}]" if flat.shape[1] > 1 else name or "the input"
            columns[title] = column
    return columns


def _merged(parts: list[dict[str, Tensor]], pair: Tensor) -> dict[str, Labels]:
    """Columns of the sides under each other, by unit; numbers as labels."""
    merged = {}
    for name in parts[0]:
        if not all(name in part for part in parts):
            continue
        column = torch.cat([part[name] for part in parts])
        merged[name] = (_binned(column) if column.is_floating_point() else column.long())[pair]
    return merged


def _binned(column: Tensor) -> Labels:
    column = column.contiguous()  # else torch warns
    values = column.unique()
    if len(values) <= _BINS:
        return torch.searchsorted(values, column)
    ends = column.quantile(torch.linspace(0, 1, _BINS + 1, dtype=column.dtype)[1:-1])
    return torch.bucketize(column, ends)


# Rules -------------------------------------------------------------------------------------------------------------


def rules_for(seen: PutOut, features: Features, labels: Labels, nothing: Labels | None, random: Random) -> list[Rule]:
    """Every rule, learnt from ``labels``, which it is to explain. ``nothing``: what comes out with nothing kept."""
    fold = _folds(seen, random)
    same, answer, token = CONSTANT
    found = [Rule(same, _by_folds(fold, lambda train: _mode(labels[train])))]
    if seen.asked is not None and bool((seen.asked[:, 0] >= 0).any()):
        first = seen.asked[:, 0]
        found.append(Rule(answer, _by_folds(fold, lambda train: _mode(first[train & (first >= 0)]))))
    if features.tokens:
        as_label = {name: _token_labels(seen, column) for name, column in features.tokens.items()}
        every = torch.stack(list(as_label.values()))
        found.append(Rule(token, torch.full_like(labels, _mode(every[every >= 0]))))
        found.append(_copy(as_label, labels, fold))
    if features.nearest is not None:
        found.append(_by_table(features.nearest, features.tokens[features.nearest], labels, fold))
    if int(seen.place.max()) > 0:
        found.append(_by_table(POSITION, seen.place, labels, fold))
    if nothing is not None:
        found.append(Rule(NOTHING_KEPT, nothing))
    return found


def _folds(seen: PutOut, random: Random) -> Int64[Tensor, "unit"]:
    """The fold of every unit; units of a group are in one."""
    groups = seen.groups
    names = sorted(set(groups))
    of = {names[name]: at % FOLDS for at, name in enumerate(random.permutation(len(names)))}
    return torch.tensor([of[group] for group in groups])


def _by_folds(fold: Tensor, learn: Callable[[Tensor], "Tensor | int"]) -> Labels:
    """What is learnt from the other folds, said of each fold."""
    says = torch.full_like(fold, -1)
    for number in fold.unique().tolist():
        here = fold == number
        train = ~here if bool((~here).any()) else here
        told = learn(train)
        says[here] = told if isinstance(told, int) else told[here]
    return says


def _by_table(name: str, keys: Labels, labels: Labels, fold: Labels) -> Rule:
    return Rule(name, _by_folds(fold, lambda train: _table(keys[train], labels[train], keys)))


def _mode(labels: Tensor) -> int:
    """The most frequent label, the lowest of equals; -1 of none."""
    if not len(labels):
        return -1
    values, counts = labels.unique(return_counts=True)
    return int(values[counts.argmax()])


def _table(keys: Tensor, labels: Tensor, asked: Tensor) -> Labels:
    """Of each key the label most frequent with it; of a key never seen, the most frequent of all."""
    known, at = keys.unique(return_inverse=True)
    counts = torch.zeros(len(known), int(labels.max()) + 1, dtype=torch.long)
    counts.index_put_((at, labels), torch.ones_like(labels), accumulate=True)
    place = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
    return torch.where(known[place] == asked, counts.argmax(1)[place], _mode(labels))


def _token_labels(seen: PutOut, column: Labels) -> Labels:
    """Tokens as labels, where they are among the outputs chosen from; else -1."""
    if seen.readout.kind != "answers":
        return column
    options = torch.tensor(seen.readout.options)
    place = torch.searchsorted(options, column.clamp(min=0)).clamp(max=len(options) - 1)
    return torch.where(options[place] == column, place, -1)


def _copy(columns: Mapping[str, Labels], labels: Labels, fold: Tensor) -> Rule:
    """The token at whichever place it agrees most often."""
    names, every = list(columns), torch.stack(list(columns.values()))
    agrees = (every == labels).double()
    best = int(agrees.mean(1).argmax())

    def learn(train: Tensor) -> Tensor:
        return every[int(agrees[:, train].mean(1).argmax())]

    return Rule(f"{COPY} {names[best]}", _by_folds(fold, learn))


# Mutual information --------------------------------------------------------------------------------------------------


def bits(columns: Mapping[str, Labels], labels: Labels, random: Random) -> dict[str, float]:
    """Mutual information of each column with the labels, less what chance gives: its mean over shuffles. At least 0."""
    shuffles = [torch.tensor(random.permutation(len(labels))) for _ in range(_SHUFFLES)]
    found = {}
    for name, column in columns.items():
        both = _entropy(column) + _entropy(labels)
        joint = torch.stack([_entropy(_joint(column[shuffle], labels)) for shuffle in shuffles])
        found[name] = max(0.0, float(joint.mean() - _entropy(_joint(column, labels)))) if float(both) else 0.0
    return found


def _joint(one: Labels, other: Labels) -> Labels:
    return one * (int(other.max()) + 2) + other


def _entropy(labels: Labels) -> Float64[Tensor, ""]:
    """In bits."""
    share = labels.unique(return_counts=True)[1].double() / len(labels)
    total: Tensor = (share * share.log2()).sum()
    return -total
