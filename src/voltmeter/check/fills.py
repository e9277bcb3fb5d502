"""Is the circuit as faithful under other fills, and are the best edges the same ones?"""

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor

from voltmeter.check.case import FEW, Case
from voltmeter.check.faithfulness import faithful_at
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Picture, Verdict, finite
from voltmeter.check.norms import norm_ratio
from voltmeter.check.registry import register
from voltmeter.check.repeated import jaccard
from voltmeter.check.split import Split
from voltmeter.discover.attribution import Eap
from voltmeter.discover.discover import ask
from voltmeter.discover.method import run_method
from voltmeter.discover.question import FILLS, Question, make_batch
from voltmeter.errors import VoltmeterError
from voltmeter.task.task import Task

SHRUNK = 0.5  # of its norm, or twice it: a state read so much smaller or larger is a run unlike any the model saw


@register("same-under-other-fills", "is it as faithful when cut edges carry something else?")
def same_under_other_fills(case: Case) -> Finding:
    """The circuit's verdict of faithfulness under zero, mean, mean-position and resample fills, against its own fill.

    It holds where all verdicts are the same, and fails where one is the other way round: then the circuit answers the
    question that its fill asks, and no other. The figure is the f that is farthest from that under its own fill. Beside
    it, in the details: how many of the best edges by eap, as many as the circuit has, are the same, and how much larger
    or smaller the state is that the output is read from. Costs, for each fill, four masked forwards of the held-out
    pairs and a gradient of at most 64 train pairs.
    """
    own = _under(case, case.question, case.held_out)
    rows, missing = [own], {}
    for name in FILLS:
        if name == own.fill:
            continue
        if case.clock.over:
            missing[name] = "the time was used up"
            continue
        try:
            question = ask(case.wiring, case.task, name, seed=case.question.seed)
            rows.append(_under(case, question, Split.of(question, case.task.held_out)))
        except VoltmeterError as error:
            missing[name] = error.problem
    others = rows[1:]
    farthest = max(others, key=lambda row: abs(row.f - own.f), default=None)
    return Finding(
        "same-under-other-fills",
        _verdict(own, others),
        None if farthest is None else farthest.f,
        None if farthest is None else farthest.low,
        None if farthest is None else farthest.high,
        f"f of {own.f:.0%} ({own.low:.0%} to {own.high:.0%}) under its own fill, {own.fill}",
        _says(own, others, missing),
        tuple(row.row(own.best) for row in rows),
        {"pairs": len(case.held_out), "fills": len(rows)} | ({"left_out": missing} if missing else {}),
        _picture(rows, case.threshold),
    )


@final
@dataclass(frozen=True, eq=False)
class Under:
    """The circuit under a fill. ``best``: the best edges by eap, None where the metric has no gradient to follow."""

    fill: str
    f: float
    low: float
    high: float
    kl_share: float | None
    verdict: Verdict
    norm: float
    best: Bool[Tensor, "edge"] | None

    def overlap(self, best: Bool[Tensor, "edge"] | None) -> float | None:
        if best is None or self.best is None:
            return None
        return float(jaccard(torch.stack([self.best, best]))[0, 1])

    def row(self, best: Bool[Tensor, "edge"] | None) -> dict[str, Any]:
        numbers = {"f": self.f, "low": self.low, "high": self.high, "KL share": self.kl_share, "norm": self.norm}
        numbers["overlap"] = self.overlap(best)
        told = {name: finite(n) for name, n in numbers.items()}  # NaN: no effect to have a share of
        rounded = {name: None if n is None else round(n, 4) for name, n in told.items()}
        return {"fill": self.fill, "faithful": self.verdict} | rounded


def _under(case: Case, question: Question, split: Split) -> Under:
    found = split.measure(case.keep[None])
    low, high = found.interval()
    few = case.few.pairs
    return Under(
        question.fill.name,
        float(found.f[0]),
        low,
        high,
        None if found.kl_share is None else float(found.kl_share[0]),
        faithful_at(found, case.threshold),
        norm_ratio(case.wiring, make_batch(case.wiring, few, question.fill), case.keep),
        _best(case, question),
    )


def _best(case: Case, question: Question) -> Bool[Tensor, "edge"] | None:
    """As many edges as the circuit has, the best by eap on at most 64 train pairs."""
    task = question.task
    if not 0 < len(case.circuit) < len(case.circuit.edges):
        return None
    train = task.train.batch(sorted(case.random("train").choose(len(task.train), FEW)))
    asked = Question(question.wiring, _trained_on(task, train), question.fill, question.seed, question.batch_size)
    try:
        values = run_method(Eap(), asked)
    except VoltmeterError:
        return None
    kept = torch.zeros_like(case.circuit.kept)
    kept[torch.argsort(values.abs(), descending=True, stable=True)[: len(case.circuit)]] = True
    return kept


def _trained_on(task: Task, train: Any) -> Task:
    return replace(task, train=train, held_out=train if task.train is task.held_out else task.held_out)


def _verdict(own: Under, others: list[Under]) -> Verdict:
    verdicts = {row.verdict for row in others}
    if own.verdict == CANNOT_TELL:
        return CANNOT_TELL
    if verdicts - {own.verdict, CANNOT_TELL}:
        return FAILS
    return HOLDS if verdicts == {own.verdict} else CANNOT_TELL


_WORDS = {HOLDS: "faithful", FAILS: "not faithful", CANNOT_TELL: "not clear"}


def _says(own: Under, others: list[Under], missing: dict[str, str]) -> str:
    told = [f"{_WORDS[own.verdict]} under {own.fill}, its own fill (it keeps {own.f:.0%})"]
    told += [f"{_WORDS[row.verdict]} under {row.fill} ({row.f:.0%})" for row in others]
    says = ", ".join(told)
    apart = [row for row in others if not SHRUNK * own.norm <= row.norm <= own.norm / SHRUNK]
    if apart:
        sizes = ", ".join(f"{row.norm:.2g} times under {row.fill}" for row in apart)
        says += (
            f"; what the output reads has {own.norm:.2g} times the norm it has in the full model under {own.fill}, "
            f"{sizes}: that alone may be why"
        )
    if missing:
        says += f"; not measured under {', '.join(missing)}"
    return says


def _picture(rows: list[Under], threshold: float) -> Picture | None:
    """Of the fills under which there is something to keep a share of."""
    rows = [row for row in rows if all(finite(value) is not None for value in (row.f, row.low, row.high))]
    if not rows:
        return None
    data = {
        "names": [row.fill for row in rows],
        "values": [row.f for row in rows],
        "low": [row.low for row in rows],
        "high": [row.high for row in rows],
    }
    return Picture("bars", "What the circuit keeps under each fill", "fill of cut edges", "f", data, line=threshold)
