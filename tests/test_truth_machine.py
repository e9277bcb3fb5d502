"""The machine, the batched cuts and the settings are the same arithmetic as the engine's and the oracle's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from known_models import EXPORTS, export, random_model
from torch import Tensor

import voltmeter
from voltmeter.errors import TruthError
from voltmeter.rasp import effects
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.effects import further_cuts, run_cut, run_kept
from voltmeter.rasp.machine import machine_of
from voltmeter.rasp.refill import fill_values_of
from voltmeter.rasp.setting import FILLS as FILL_NAMES
from voltmeter.rasp.setting import Question, Setting, answers_counted, derangement, largest, setting_of, shuffles
from voltmeter.rasp.wired import wiring_of
from voltmeter.run.fill import FillValues
from voltmeter.wiring.wiring import Wiring

# The same products and sums in another order; the ramps of compiled MLPs are up to 100 steep, one behind the other.
ROUNDING = 1e-10

FILLS = (*((fill, "paired") for fill in FILL_NAMES), ("resample", "random"))


def models() -> Iterator[Compiled]:
    yield from (random_model(seed, layers=2, heads=heads) for seed, heads in ((0, 1), (1, 3), (2, 2)))


def put(compiled: Compiled, fill: str, positions: str = "paired") -> tuple[Setting, Wiring, FillValues]:
    question = Question(fill, positions, seed=3)
    wiring = wiring_of(compiled).wiring
    tokens = compiled.model.encode(compiled.inputs)
    return setting_of(compiled, question), wiring, fill_values_of(question, compiled.model, wiring, tokens)


def by_engine(compiled: Compiled, wiring: Wiring, fill: FillValues, keep: Tensor, reference: bool = False) -> Tensor:
    tokens = compiled.model.encode(compiled.inputs)
    with torch.no_grad():
        out: Tensor = voltmeter.run(wiring, tokens, keep, fill, reference=reference)
    return out[:, 1:]


@pytest.mark.parametrize("name", EXPORTS)
def test_edges_are_those_of_the_wiring(name: str) -> None:
    compiled = export(name)
    assert machine_of(compiled.model).edges == wiring_of(compiled).wiring.edges.names


@pytest.mark.parametrize(("fill", "positions"), FILLS)
@pytest.mark.parametrize("name", ["frac_prevs_x", "reverse"])
def test_random_circuits_run_as_in_the_engine(name: str, fill: str, positions: str) -> None:
    check_random_circuits(export(name), fill, positions, 3)


@pytest.mark.parametrize(("fill", "positions"), FILLS)
def test_random_circuits_of_random_models_run_as_in_the_engine(fill: str, positions: str) -> None:
    for compiled in models():
        check_random_circuits(compiled, fill, positions, 3)


def check_random_circuits(compiled: Compiled, fill: str, positions: str, count: int) -> None:
    short = dataclasses.replace(compiled, inputs=compiled.inputs[::20], outputs=compiled.outputs[::20])
    compiled = short if len(compiled.inputs) > 100 else compiled
    setting, wiring, values = put(compiled, fill, positions)
    assert setting.machine.edges == wiring.edges.names
    n = len(wiring.edges)
    for draw in range(count):
        keep = (torch.rand(n) < (draw + 1) / (count + 1)).double()
        mine = run_kept(setting, keep.nonzero().flatten().tolist()).answer
        for reference in (False, True):
            torch.testing.assert_close(
                mine, by_engine(compiled, wiring, values, keep, reference), rtol=ROUNDING, atol=ROUNDING
            )


@pytest.mark.parametrize(("fill", "positions"), FILLS)
def test_batched_cuts_are_single_runs(fill: str, positions: str) -> None:
    """With nothing cut, one edge, and many, of models of one head and of several beside each other."""
    for compiled in (export("frac_prevs_x"), *models()):
        setting = setting_of(compiled, Question(fill, positions))
        n = len(setting.machine.edges)
        for cut in ((), (0,), tuple(range(0, n, 5))):
            changes = further_cuts(setting, run_cut(setting, cut), range(n))
            for edge in range(0, n, 3):
                single = setting.changes(run_cut(setting, [*cut, edge]).answer)
                torch.testing.assert_close(changes[edge], single, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", EXPORTS)
def test_edges_that_are_skipped_do_nothing(name: str) -> None:
    compiled = export(name)
    for fill, positions in (FILLS[0], FILLS[-1]):
        setting = setting_of(compiled, Question(fill, positions)).on(range(0, len(compiled.inputs), 15))
        everything = range(len(setting.machine.edges))
        for cut in ((), everything[::4]):
            base = run_cut(setting, cut)
            walk = effects._Walk(setting, base)
            inert = [edge for edge in everything if edge not in base.cut and walk.is_inert(edge)]
            assert 0 < len(inert) < len(everything), "some are skipped, and not all"
            skipped = further_cuts(setting, base, everything)
            # Rounding only: a sum of exact zeros is added where nothing was skipped.
            torch.testing.assert_close(
                skipped, further_cuts(setting, base, everything, skip_inert=False), rtol=0, atol=1e-12
            )


def test_small_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of(export("reverse"), Question("zero"))
    base, edges = run_cut(setting, (1, 30)), range(94)
    whole = further_cuts(setting, base, edges)
    monkeypatch.setattr("voltmeter.rasp.effects._CHUNK", 300_000)
    torch.testing.assert_close(further_cuts(setting, base, edges), whole, rtol=0, atol=1e-12)


def test_the_output_bias_of_several_heads_is_a_constant() -> None:
    """It belongs to no head, and is read whatever is cut."""
    compiled = random_model(5, heads=2)
    setting, wiring, values = put(compiled, "zero")
    assert bool(compiled.model.layers[0].attention.output.bias.abs().sum() > 0)
    nothing = run_kept(setting, ()).answer
    torch.testing.assert_close(
        nothing, by_engine(compiled, wiring, values, torch.zeros(len(wiring.edges))), rtol=0, atol=1e-12
    )


# Settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 17, 512])
def test_every_input_is_paired_with_another(count: int) -> None:
    order = derangement(count, seed=1)
    assert sorted(order.tolist()) == list(range(count))
    assert bool((order != torch.arange(count)).all())
    assert torch.equal(order, derangement(count, seed=1))
    assert count < 4 or not torch.equal(order, derangement(count, seed=2))


def test_one_input_cannot_be_paired() -> None:
    with pytest.raises(TruthError, match="1 input cannot be paired with another one"):
        derangement(1, seed=0)


def short(compiled: Compiled, count: int, length: int = 2) -> Compiled:
    rows = tuple(row[:length] for row in compiled.inputs[:count])
    return dataclasses.replace(compiled, inputs=rows, outputs=tuple(row[:length] for row in compiled.outputs[:count]))


@pytest.mark.parametrize(
    ("compiled", "question", "text"),
    [
        (short(random_model(0), 1), Question("mean-position"), "the mean over 1 input at each position is that input"),
        (
            dataclasses.replace(random_model(0), inputs=((1,), (2,)), outputs=((0.0,), (0.0,))),
            Question("resample", "random"),
            "inputs of 1 token have nothing to shuffle: BOS keeps its position",
        ),
        (
            dataclasses.replace(random_model(0), inputs=((1, 2), (2, 1), (1, 2)), outputs=((0.0, 0.0),) * 3),
            Question("resample"),
            "1 of the inputs of random 0 are given more than once\n  1 2: 2 times",
        ),
        (
            random_model(0),
            Question("zero", output="decoded", tolerance=0.2),
            "the tolerance 0.2 is a share of the 18 decoded answers, and lets 3 of them be another\n"
            "  give less than one answer's share, 0.0556",
        ),
        (random_model(0), Question("zero", output="decoded", tolerance=1 / 18), "lets 1 of them be another"),
    ],
)
def test_questions_that_this_model_cannot_be_asked(compiled: Compiled, question: Question, text: str) -> None:
    with pytest.raises(TruthError) as caught:
        setting_of(compiled, question)
    assert text in str(caught.value)


def test_answers_are_counted_where_values_are_named() -> None:
    """However many dimensions name them; a number is measured, decoded or not."""
    model = random_model(0).model
    decoded = Question("zero", output="decoded")
    assert answers_counted(decoded, model, 9, 2) == 18
    assert answers_counted(Question("zero"), model, 9, 2) is None
    one = dataclasses.replace(model.interface, output=model.interface.output[:1], decoded=("only",))
    number = dataclasses.replace(one, decoded=None)
    for interface, count in ((one, 18), (number, None)):
        model.interface = interface
        assert answers_counted(decoded, model, 9, 2) == count


def test_answers_that_are_not_finite_are_no_answers() -> None:
    for output in ("raw", "decoded"):
        setting = setting_of(random_model(0), Question("zero", output=output))
        broken = setting.full.clone()
        broken[3] = torch.nan
        assert torch.isfinite(setting.changes(broken)).tolist() == [at != 3 for at in range(9)]


def test_positions_are_shuffled_for_each_input_and_bos_stays() -> None:
    orders = shuffles(200, 6, seed=0)
    assert bool((orders[:, 0] == 0).all())
    assert bool((orders.sort(1).values == torch.arange(6)).all())
    assert len({tuple(row) for row in orders.tolist()}) > 60  # of 120
    assert torch.equal(orders, shuffles(200, 6, seed=0))


def test_ties_go_to_the_first() -> None:
    rows = torch.tensor([[0.2, 0.2 + 1e-16, 0.2], [0.1, 0.3, 0.3 + 1e-12], [0.0, 0.1, 0.2]], dtype=torch.float64)
    assert largest(rows).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"fill": "nothing"}, "the fill 'nothing' is unknown"),
        ({"positions": "shuffled"}, "the positions 'shuffled' is unknown"),
        ({"output": "logits"}, "the output 'logits' is unknown"),
        ({"fill": "zero", "positions": "random"}, "the zero fill has none"),
        ({"tolerance": 0.0}, r"the tolerance 0\.0 is no positive number"),
    ],
)
def test_questions_that_cannot_be_asked(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(TruthError, match=text):
        Question(**{"fill": "resample", **wrong})
