"""How masks are sorted: sizes drawn for every example, alphas moved to keep as many, scores over all sizes."""

import pytest
import torch

import voltmeter as vm
from voltmeter.discover import Question, ask
from voltmeter.discover.masks import EdgeSp, kept_probability, shift_for, tamed
from voltmeter.errors import VoltmeterError
from voltmeter.task import Task


@pytest.fixture(scope="module")
def question() -> Question:
    model, task = vm.load("demo")
    assert task is not None
    few = Task("few", task.train.batch(range(8)), task.held_out.batch(range(8)))
    return ask(vm.wire(model, task.example), few, "zero", batch_size=4)


def test_alphas_are_moved_to_keep_as_many_as_asked() -> None:
    alpha = torch.linspace(-30, 25, 500)
    counts = torch.tensor([1.0, 7.5, 60.0, 499.0])
    kept = kept_probability(alpha - shift_for(alpha, counts)[:, None]).sum(1)
    # 24 halvings of a range of 95 leave 6e-6 of alpha, and an edge in ten lies where that matters; the sum is float32
    assert torch.allclose(kept, counts, atol=1e-3)
    all_of_them = kept_probability(alpha - shift_for(alpha, torch.tensor([500.0]))[:, None]).sum()
    assert float(all_of_them) == pytest.approx(500, abs=1e-3)


def test_what_is_lost_anyway_weighs_little() -> None:
    lost = torch.tensor([-0.3, 0.0, 0.001, 1.0, 100.0]).requires_grad_()
    found = tamed(lost, 0.1)
    assert found.tolist() == pytest.approx([-0.3, 0.0, 0.1 * 0.00995033, 0.1 * 2.3978953, 0.1 * 6.9087548])
    found.sum().backward()
    assert lost.grad is not None
    assert lost.grad.tolist() == pytest.approx([1, 1, 1 / 1.01, 1 / 11, 1 / 1001])


def test_a_step_draws_one_size_from_every_octave() -> None:
    """Slices of the logarithm, one for each example, in an order of their own at every step."""
    method = EdgeSp(smallest=0.01, largest=0.64)
    uniform = torch.rand((6, 2), generator=torch.Generator().manual_seed(0))
    sizes = method._drawn_sizes(1000, uniform)
    octaves = torch.log2(sizes.sort().values / 10)
    assert octaves.floor().tolist() == [0, 1, 2, 3, 4, 5]
    assert sizes.argsort().tolist() == uniform[:, 0].argsort().tolist()


def test_scores_follow_the_alphas_without_ties(question: Question) -> None:
    """Also where masks are so surely kept, or cut, that their probability at one size is 1, or 0, in float32."""
    generator = torch.Generator().manual_seed(0)
    alpha = torch.linspace(-40, 40, question.n_edges)[torch.randperm(question.n_edges, generator=generator)]
    method = EdgeSp(n_steps=10, falling=0.5)
    state = method.start(question) | {"total": alpha * (10 - method._averaged_from())}
    values = method.values(question, state).float()
    assert values.argsort().tolist() == alpha.argsort().tolist()
    assert len(values.unique()) == len(values)
    assert 0 < float(values.min()) < float(values.max()) < 1


def test_sorting_has_no_price_and_falling_has(question: Question) -> None:
    """A price that nothing can pay: masks fall while it is asked for, and what is left of them is sorted after."""
    method = EdgeSp(n_steps=6, falling=0.5, price=1e6, spread=1.0)
    state = method.start(question)
    fallen = []
    for number in range(6):
        after = method.step(question, state, number)
        fallen.append(bool((after["alpha"] < state["alpha"]).all()))
        state = after
    assert fallen[:3] == [True, True, True]
    without = EdgeSp(n_steps=6, falling=0.5, price=0.0, spread=1.0)
    first, second = (each.step(question, each.start(question), 4)["alpha"] for each in (method, without))
    assert torch.equal(first, second), "the price counts while masks are sorted"


def test_a_target_is_steered_to_without_sorting(question: Question) -> None:
    steered, early = EdgeSp(n_steps=6, target=20), EdgeSp(n_steps=6, target=20, falling=0.0)
    for number in (0, 5):
        states = [each.step(question, each.start(question), number) for each in (steered, early)]
        assert torch.equal(states[0]["alpha"], states[1]["alpha"])
        assert not torch.equal(states[0]["price"], torch.tensor(steered.price))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"falling": 1.5}, "falling is 1.5, a share from 0 to 1 was expected"),
        ({"smallest": 0.0}, "smallest to largest is 0 to 0.5, shares from above 0 to 1 was expected"),
        ({"smallest": 0.7}, "smallest to largest is 0.7 to 0.5"),
        ({"scale": 0.0}, "scale is 0.0, a number above 0, or None was expected"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], told: str) -> None:
    with pytest.raises(VoltmeterError) as raised:
        EdgeSp(**settings)  # type: ignore[arg-type]
    assert told in str(raised.value)
