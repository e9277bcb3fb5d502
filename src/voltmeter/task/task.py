"""A task: the question put to a model, as train and held-out pairs and a metric."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voltmeter.errors import TaskError, counted
from voltmeter.files import digest_file
from voltmeter.task.formats import read_rows
from voltmeter.task.metric import KL, LOG_PROBABILITY, LOGIT_DIFFERENCE, Metric, metric_named
from voltmeter.task.pairs import Pairs
from voltmeter.task.rows import LONG, Row, build_pairs, group_names
from voltmeter.task.tokens import Encoder, Tokenizer
from voltmeter.task.tree import Inputs

_SPLITS = ("train", "held_out")


@dataclass(frozen=True, eq=False)
class Task:
    """Pairs to learn from, pairs to be judged on, and the metric.

    Invariants, checked here with a TaskError (MetricError for the last): neither split is empty; no group of
    pairs, and no pair in either direction, is in both splits; the pairs hold what the metric needs. A question
    with every possible input in it has nothing to hold out: give the same ``Pairs`` object twice.
    """

    name: str
    train: Pairs
    held_out: Pairs
    metric: Metric = LOGIT_DIFFERENCE
    how: dict[str, Any] = field(default_factory=dict)  # provenance: source, seed, split; plain values

    def __post_init__(self) -> None:
        for split, pairs in (("train", self.train), ("held-out", self.held_out)):
            if not len(pairs):
                raise TaskError(f"the task {self.name} is empty: it holds no {split} pairs")
            self.metric.require(pairs)
        if self.train is not self.held_out:
            _require_apart(self)

    def __repr__(self) -> str:
        return f"Task({self.name}: {len(self.train)} train, {len(self.held_out)} held-out pairs, {self.metric.name})"

    @property
    def example(self) -> Inputs:
        """The clean inputs of two train pairs, without padding that both have: what a model is wired with."""
        return self.train.batch([0, min(1, len(self.train) - 1)]).clean

    @property
    def digest(self) -> str:
        """SHA-256 of the name, the metric's name and both splits."""
        parts = (self.name, self.metric.name, self.train.digest, self.held_out.digest)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def from_file(
    path: Path | str,
    tokenizer: Tokenizer | None = None,
    *,
    name: str | None = None,
    held_out: Path | str | float | int = 0.5,
    metric: Metric | str | None = None,
    seed: int = 0,
    counterfactual: str | None = None,
    long_answers: str = "refuse",
    drop_misaligned: bool = False,
    check_words: bool = True,
    bos: bool | None = None,
    as_dict: bool = True,
) -> Task:
    """A task read from a file in one of the formats of ``voltmeter.task.formats``.

    What is held out: the file ``held_out`` if it is a path; else what the rows' ``split`` says; else that share of
    the groups, drawn by ``seed``. Groups are the rows' ``group``, or the pairs that share a clean prompt, in
    either direction: only a file that names them can keep names and templates apart.

    ``metric`` defaults to the logit difference, without wrong answers (or for whole sequences) to the
    log-probability, and without answers to KL. ``bos`` and ``as_dict`` are as in ``Encoder`` and
    ``Pairs.from_tokens``, ``long_answers`` and ``check_words`` as in ``build_pairs``.
    """
    encoder = None if tokenizer is None else Encoder(tokenizer, bos)

    def build(rows: Sequence[Row], unnamed: str = "row") -> tuple[Pairs, tuple[int, ...]]:
        return build_pairs(rows, encoder, long_answers, drop_misaligned, check_words, as_dict, unnamed)

    rows = read_rows(path, counterfactual)
    pairs, dropped = build(rows)
    how: dict[str, Any] = {
        "file": str(path),
        "sha256": digest_file(path),
        "dropped_rows": list(dropped),
        "long_answers": LONG[long_answers],
        "seed": seed,
    }
    if isinstance(held_out, int | float):
        kept = [row for row in rows if row.number not in dropped]
        splits, how["split"] = _splits(kept, float(held_out), seed)
        train, judged = (_of_split(pairs, splits, split) for split in _SPLITS)
    else:
        train, how["split"] = pairs, f"held out: {held_out}"
        judged, how["dropped_held_out_rows"] = build(read_rows(held_out, counterfactual), "held-out row")
        how["held_out_sha256"] = digest_file(held_out)
    chosen = metric_named(metric) if isinstance(metric, str) else metric or _default_metric(pairs)
    return Task(name or Path(path).stem, train, judged, chosen, how)


def _of_split(pairs: Pairs, splits: dict[int, str], split: str) -> Pairs:
    return pairs.batch([i for i, row in enumerate(pairs.rows) if splits[row] == split])


def _splits(rows: Sequence[Row], share: float, seed: int) -> tuple[dict[int, str], str]:
    """The split of every row by its number, and how it came about."""
    if any(row.split is not None for row in rows):
        return _declared_splits(rows), "as the file says"
    groups = group_names(rows)
    names = sorted(set(groups.values()))
    random.Random(seed).shuffle(names)
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    if not 0 < share < 1 or count < 1:
        raise TaskError(
            f"{share:.0%} of {counted(len(names), 'group', 'groups')} of pairs cannot be held out",
            mend="give a share between 0 and 1 and at least two groups, or another file with held-out pairs",
        )
    held = set(names[:count])
    named = all(row.group is not None for row in rows)
    how = f"{share:g} of the groups, " + ("as the file names them" if named else "which the file does not name")
    return {row.number: "held_out" if groups[row.number] in held else "train" for row in rows}, how


def _declared_splits(rows: Sequence[Row]) -> dict[int, str]:
    wrong = [f"row {row.number}: {row.split!r}" for row in rows if row.split not in _SPLITS]
    if wrong:
        raise TaskError(
            f"{len(wrong)} of {counted(len(rows), 'row', 'rows')} {'names' if len(wrong) == 1 else 'name'} no split",
            wrong,
            f"expected {' or '.join(map(repr, _SPLITS))}",
        )
    return {row.number: str(row.split) for row in rows}


def _default_metric(pairs: Pairs) -> Metric:
    if pairs.wrong.shape[1]:
        return LOGIT_DIFFERENCE
    return LOG_PROBABILITY if pairs.answers.shape[1] else KL


def _require_apart(task: Task) -> None:
    shared = sorted(set(task.train.groups) & set(task.held_out.groups))
    if shared:
        raise TaskError(
            f"{counted(len(shared), 'group of pairs is', 'groups of pairs are')} both train and held out",
            [f"'{group}'" for group in shared],
            "pairs that share names or templates belong on one side",
        )
    known = set(task.train.pair_digests())
    twice = [
        f"held-out row {row}"
        for row, pair in zip(task.held_out.rows, task.held_out.pair_digests(), strict=True)
        if pair in known
    ]
    if twice:
        raise TaskError(
            f"{counted(len(twice), 'held-out pair is a train pair', 'held-out pairs are train pairs')} too, "
            "in one direction or the other",
            twice,
            "both directions of a pair belong on one side",
        )
