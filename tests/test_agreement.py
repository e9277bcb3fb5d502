"""``bench/agreement.py``: rank correlations against cases worked out by hand, rows of made-up lines, one small run."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cli_bench import SETTINGS, rows_for
from conftest import ROOT, script
from torch import Tensor

import voltmeter as vm
from voltmeter.discover.discover import ask
from voltmeter.discover.question import cut_answers, plain_answers
from voltmeter.rasp.imitate import Recipe
from voltmeter.task import Pairs, Task
from voltmeter.task.metric import LOGIT_DIFFERENCE
from voltmeter.wiring.hooked import HookedModel


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")  # where the script finds what it is made of
        yield script("bench/agreement.py")


@pytest.fixture
def ranks(bench: ModuleType) -> ModuleType:
    return script("bench/agreement_ranks.py")


@pytest.fixture
def rows(bench: ModuleType) -> ModuleType:
    return script("bench/agreement_rows.py")


def figures(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# rank correlations -------------------------------------------------------------------------------------------------

BY_HAND = [
    # ranks 1 2 3 4 against 2 1 4 3: sum of squared gaps 4, rho 1 - 6·4/60; 4 pairs agree, 2 do not
    ([1, 2, 3, 4], [0.2, 0.1, 0.9, 0.5], 0.6, 2 / 6),
    ([1, 2, 3, 4], [40, 30, 20, 10], -1.0, -1.0),
    # a tie on one side: ranks 1 2.5 2.5 4 against 1 2 3 4; 5 pairs agree of √(5·6)
    ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5), 5 / math.sqrt(30)),
    # ties on both: ranks 1.5 1.5 3.5 3.5 against 1.5 3.5 1.5 3.5: no pair of pairs in common but two that cancel
    ([0, 0, 1, 1], [0, 1, 0, 1], 0.0, 0.0),
]


@pytest.mark.parametrize(("one", "other", "rho", "tau"), BY_HAND)
def test_coefficients_by_hand(ranks: ModuleType, one: list[float], other: list[float], rho: float, tau: float) -> None:
    given = figures(one)[0], figures(other)[0]
    assert float(ranks.spearman(*given)) == pytest.approx(rho)
    assert float(ranks.kendall(*given)) == pytest.approx(tau)
    assert float(ranks.kendall(*reversed(given))) == pytest.approx(tau)


def test_ranks_share_ties(ranks: ModuleType) -> None:
    assert ranks.ranks(figures([0.3, 0.1, 0.3, 0.9])).tolist() == [[2.5, 1.0, 2.5, 4.0]]
    assert ranks.ranks(figures([0.1 + 0.2, 0.3])).tolist() == [[1.5, 1.5]], "equal but for rounding"


def kind(ranks: ModuleType, name: str, family: str, table: Tensor, methods: str = "abcd") -> Any:
    units = tuple(f"{family} {at}" for at in range(len(table)))
    return ranks.Kind(name, family, units, tuple(methods), table)


def test_a_constant_side_cannot_be_told(ranks: ModuleType) -> None:
    flat = kind(ranks, "flat", "programs", torch.ones(5, 4, dtype=torch.float64))
    order = kind(ranks, "order", "programs", figures([1, 2, 3, 4]).repeat(5, 1))
    for coefficient in ranks.COEFFICIENTS:
        for found in (ranks.between(flat, order, coefficient), ranks.halves(flat, coefficient)):
            assert (found.value, found.interval, found.n) == (None, None, 4)
        assert ranks.inside(flat.figures, order.figures, coefficient).value is None
        assert ranks.across(flat.figures, order.figures, coefficient).interval is None


def test_kinds_of_the_same_programs_are_drawn_together(ranks: ModuleType) -> None:
    table = torch.rand(6, 4, dtype=torch.float64)
    one, same = kind(ranks, "one", "programs", table), kind(ranks, "same", "programs", table)
    other = kind(ranks, "other", "tasks", table)
    together, apart = ranks.between(one, same, "spearman"), ranks.between(one, other, "spearman")
    assert together == ranks.Correlation(1.0, (1.0, 1.0), 4)
    assert apart.value == 1.0
    assert apart.interval[0] < 1, "drawn apart, the same models give different means"


def test_intervals_are_over_models(ranks: ModuleType) -> None:
    sure = kind(ranks, "sure", "programs", figures([1, 2, 3, 4]).repeat(5, 1))
    mixed = kind(ranks, "mixed", "tasks", figures(*[[1, 2, 3, 4]] * 4, [9, 8, 7, 0]))
    found = ranks.between(sure, mixed, "kendall")
    assert found.value == pytest.approx(3 / math.sqrt(30))  # means 2.6 3.2 3.8 3.2: 4 pairs agree, 1 does not, 1 ties
    assert -1 <= found.interval[0] < 0 < found.interval[1] <= 1
    few = kind(ranks, "few", "tasks", figures([1, 2, 3, 4], [1, 2, 3, 4]))
    assert ranks.between(sure, few, "kendall") == ranks.Correlation(1.0, None, 4)
    assert ranks.between(sure, mixed.of("ba"), "kendall").n == 2, "methods that both have"
    assert ranks.between(sure, mixed.ranked(), "spearman").value == 1.0, "each model counts alike: 4 to 1"


def test_halves_tell_noise_from_order(ranks: ModuleType) -> None:
    order = figures([1, 2, 3, 4, 5]).repeat(8, 1)
    assert ranks.halves(kind(ranks, "order", "programs", order, "abcde"), "spearman").value == 1.0
    noise = torch.rand(40, 5, dtype=torch.float64)
    found = ranks.halves(kind(ranks, "noise", "programs", noise, "abcde"), "spearman")
    assert found.value < 0.6
    assert found.interval[0] < 0
    assert ranks.halves(kind(ranks, "three", "programs", order[:3], "abcde"), "kendall").value is None


def test_truth_and_figures_agree_where_good_is_low(ranks: ModuleType) -> None:
    good, free = figures([0.9, 0.8, 0.5], [1.0, 0.9, 0.4], [0.7, 0.7, 0.7]), figures(*[[0.1, 0.2, 0.6]] * 3)
    assert ranks.across(good, free, "spearman").value == 1.0
    assert ranks.inside(good, free, "kendall").value == 1.0, "where all are alike there is no order to disagree"
    assert ranks.across(-good, free, "spearman").value == -1.0


# figures -----------------------------------------------------------------------------------------------------------


def test_figures_of_one_method(rows: ModuleType) -> None:
    needed = torch.zeros(40)
    needed[[3, 17, 31]] = 1

    def step(keep: Tensor) -> float:
        return float((keep * needed).sum() == 3)

    best = rows.figures(needed, step, 0)
    assert best["needed"] == 3
    assert best["size"] == pytest.approx(math.log(4) / math.log(41))
    assert best["area"] == pytest.approx(best["size"], abs=0.1)  # a step at 3, by trapezoids
    worst = rows.figures(1 - needed, step, 0)
    assert worst["needed"] == 40
    assert worst["area"] > 0.95
    assert rows.figures(needed, lambda keep: -50.0, 0)["area"] <= 1, "no worse than nothing kept"
    assert rows.figures(needed, lambda keep: math.nan, 0)["size"] == 1.0
    assert rows.figures(needed, lambda keep: 1.5, 0)["needed"] == 40, "above the full model is unfaithful too"


def test_ties_are_drawn_not_taken_in_order(rows: ModuleType) -> None:
    """With all scores equal, the first edges are not kept first."""
    firsts: list[Tensor] = []

    def f(keep: Tensor) -> float:
        firsts.append(keep)
        return 0.0

    for seed in range(2):
        rows.figures(torch.zeros(30), f, seed)
    kept = [keep.nonzero().flatten().tolist() for keep in firsts if int(keep.sum()) == 5]
    assert kept[0] != kept[1]
    assert [0, 1, 2, 3, 4] not in kept


def test_numbers_as_the_documents_write_them(rows: ModuleType) -> None:
    written = [rows.number(value, 2) for value in (None, 0.123, -0.5, 0.999, 1.0, -1.0, 0.0, -0.001, 12.0)]
    assert written == ["-", ".12", "-.50", "1", "1", "-1", "0", "0", "12.00"]


# rows of made-up lines ----------------------------------------------------------------------------------------------


def made_up(kind: str, unit: str, areas: dict[str, float], **more: float) -> list[dict[str, Any]]:
    about = {"kind": kind, "unit": unit, "about": True, "edges": 9, "seconds": 1.0, "agreement": 1.0, "truth_f": 1.0}
    return [about] + [
        {"kind": kind, "unit": unit, "method": method, "area": area, "size": area, "seconds": 2.0, **more}
        for method, area in areas.items()
    ]


def test_the_document(bench: ModuleType) -> None:
    lines = []
    for at in range(4):
        lines += made_up("compiled", f"p{at}", {"eap": 0.1, "exact": 0.2 + at / 100, "random": 0.9}, auroc=0.5)
        lines += made_up("trained-task", f"t{at}", {"eap": 0.3, "exact": 0.2, "random": 0.8})
    lines += made_up("compiled", "p9", {"eap": 0.1})  # stopped before the others were tried
    lines[1] = {**{k: lines[1][k] for k in ("kind", "unit", "method", "seconds")}, "error": "MetricError: no"}
    document = bench.document_of(lines, ("compiled", "trained-task"), ("exact", "eap", "random"))
    json.dumps(document, allow_nan=False)
    assert document["left_out"] == ["compiled p9"]
    assert document["failures"] == ["eap on compiled p0: MetricError: no"]
    assert [(each["kind"], each["models"]) for each in document["kinds"]] == [("compiled", 4), ("trained-task", 4)]
    eap = next(row for row in document["rows"] if (row["kind"], row["method"]) == ("compiled", "eap"))
    assert eap["area"] == pytest.approx((1 + 3 * 0.1) / 4), "a failure is the worst"
    assert eap["auroc"] == pytest.approx(3 * 0.5 / 4)
    assert eap["failures"] == ["p0"]
    asked = {"figure": "area", "of": "all", "mean": "figures", "one": "compiled", "other": "trained-task"}
    found = next(each for each in document["correlations"] if each.items() >= asked.items())
    assert found["spearman"] == 1.0, "exact, eap, random on either side; without the failure eap would lead"
    assert found["methods"] == 3
    text = bench.page(document)
    assert "not finished, and left out: compiled p9" in text
    assert "failed: eap on compiled p0: MetricError: no" in text
    assert "nan" not in text.lower()


def test_what_a_stopped_run_has_in_full(rows: ModuleType) -> None:
    lines = [line for at in range(5) for line in made_up("compiled", f"p{at}", {"eap": 0.1, "random": 0.9})]
    lines += made_up("compiled", "p0", {"ugs": 0.2})[1:]  # on one of five: the method is left out
    lines += made_up("noised", "p0", {"eap": 0.1, "ugs": 0.2})
    found, left_out = rows.complete([*lines, *made_up("compiled", "p5", {"eap": 0.1})], ("eap", "random", "ugs"))
    assert left_out == ["compiled ugs", "compiled p5"]
    assert found == [line for line in lines if (line["kind"], line.get("method")) != ("compiled", "ugs")]


# one small run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> tuple[HookedModel, Task]:
    model = HookedModel(SETTINGS).initialise(0, gain=3.0).eval()
    found = rows_for(model)
    sides = [
        Pairs.of(
            torch.tensor([row["clean"] for row in part]),
            torch.tensor([row["corrupted"] for row in part]),
            answers=torch.tensor([row["answers"][0] for row in part]),
            wrong=torch.tensor([row["wrong"][0] for row in part]),
            groups=[str(row["clean"]) for row in part],
        )
        for part in (found[:16], found[16:])
    ]
    return model, Task("tiny", *sides, LOGIT_DIFFERENCE)


def test_the_output_as_a_question_of_trained_models(bench: ModuleType, tiny: tuple[HookedModel, Task]) -> None:
    """Nothing kept loses 1 by either metric, and no metric sees a number that is added to all logits."""
    models = script("bench/agreement_models.py")
    model, task = tiny
    wiring = vm.wire(model, task.example)
    question = ask(wiring, task)
    batch, none = question.batch(0), torch.zeros(question.n_edges)
    for name, changed in models.output_tasks(question).items():
        metric = changed.metric
        full, cut = plain_answers(wiring, batch, metric), cut_answers(wiring, batch, none, metric)
        values = [metric(answers, batch.pairs, full=full) for answers in (full, cut, cut + 7.0)]
        assert float((values[0] - values[1]).mean()) == pytest.approx(1, abs=1e-5), name  # float32
        assert torch.allclose(values[1], values[2], atol=1e-4), name  # logits of size 7 in float32
    assert not bool(metric(full, batch.pairs, full=full).isnan().any())


def test_a_small_run_and_that_nothing_is_computed_twice(
    bench: ModuleType,
    tiny: tuple[HookedModel, Task],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    models = sys.modules["agreement_models"]  # that the bench imported
    tasks: dict[str, Callable[[Path], Any]] = {"tiny": lambda assets: tiny}
    monkeypatch.setattr(models, "SUBJECTS", tasks)
    monkeypatch.setattr(models, "RECIPE", Recipe(steps=5, d_model=8, d_head=4, d_mlp=8))
    out, kept = tmp_path / "out.jsonl", tmp_path / "kept"
    asked = (
        "--programs", "majority", "--tasks", "tiny", "--kinds", "compiled,imitated,trained-task",
        "--methods", "eap,random", "--cache", str(kept), "--out", str(out),
    )  # fmt: skip
    assert bench.main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["failures"] == document["left_out"] == []
    row = {(each["kind"], each["method"]): each for each in document["rows"]}
    assert len(row) == 6
    assert row["compiled", "eap"]["auroc"] > row["compiled", "random"]["auroc"]
    assert row["imitated", "eap"]["auroc"] is None, "nobody knows its circuit"
    assert row["trained-task", "eap"]["area"] < row["trained-task", "random"]["area"]
    assert [path.suffix for path in kept.iterdir()] == [".safetensors"]
    lines = out.read_text()
    monkeypatch.setattr(bench, "built", None)  # would raise if it were called
    assert bench.main(asked) == 0
    assert out.read_text() == lines
    assert "| eap |" in capsys.readouterr().out


def test_what_is_not_there_is_named(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(["--kinds", "compiled,squashed"])
    assert "no kinds called squashed; there are compiled, noised" in capsys.readouterr().err
    with pytest.raises(ValueError, match="length has no unique circuit under resample"):
        script("bench/agreement_models.py").Workshop("length", "resample", 0).truth  # noqa: B018
