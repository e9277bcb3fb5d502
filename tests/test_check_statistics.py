"""Statistics against tables, closed forms and hand counts; under the null they err one time in twenty."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from voltmeter.check.statistics import (
    Mean,
    binomial_cdf,
    holm,
    hsic,
    hsic_test,
    least_correlation,
    least_share_missed,
    mean_of,
    permuted,
    student_cdf,
    student_quantile,
    tost,
)

N_NULL = 200  # samples drawn under the null
MOST_FALSE = 20
"""Of 200 samples at the level .05 ten are false alarms on average; more than 20 are one in 500 tests: exactly the
binomial tail tested below."""


def own(n: int) -> tuple[str, ...]:
    return tuple(f"pair {i}" for i in range(n))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64)


# Student's t -------------------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_the_tables() -> None:
    """Three digits, as every textbook prints them."""
    for df, one_in_twenty, one_in_forty in (
        (1, 6.314, 12.706),
        (2, 2.920, 4.303),
        (5, 2.015, 2.571),
        (30, 1.697, 2.042),
    ):
        assert student_quantile(0.95, df) == pytest.approx(one_in_twenty, abs=5e-4)
        assert student_quantile(0.975, df) == pytest.approx(one_in_forty, abs=5e-4)


def test_closed_forms() -> None:
    for t in (-3.0, -0.5, 0.0, 1.0, 20.0):
        assert student_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-14)
        assert student_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-14)
    # at many degrees of freedom it is the normal distribution, but for terms of order 1 / df
    assert student_cdf(1.0, 4001) == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))), abs=1e-4)


def test_a_mean_of_groups_counts_groups() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    alone = mean_of(values, own(4))
    assert (alone.value, alone.error, alone.df) == (3, pytest.approx(float(values.std()) / 2), 3)
    # two groups: their sums' deviations are -3 and 3
    pairs = mean_of(values, ["a", "a", "b", "b"])
    assert (pairs.value, pairs.error, pairs.df) == (3, pytest.approx(math.sqrt(18 * 2) / 4), 1)
    # the same pair ten times over tells no more than once
    many = mean_of(values.repeat_interleave(10), [name for name in "abcd" for _ in range(10)])
    assert (many.value, many.error, many.df) == (3, pytest.approx(alone.error), 3)


def test_one_sided_tests_by_hand() -> None:
    found = Mean(2.0, 1.0, 2)
    assert found.p_above() == pytest.approx(0.5 - 2 / (2 * math.sqrt(6)))
    assert found.p_above() + found.p_below() == pytest.approx(1)
    assert found.p_above(2.0) == pytest.approx(0.5)
    assert [Mean(1.0, 0.0, 3).p_above(bound) for bound in (0.0, 1.0, 2.0)] == [0.0, 1.0, 1.0]  # no spread at all


# Equivalence ------------------------------------------------------------------------------------------------------


def test_equivalence_is_the_worse_of_two_one_sided_tests() -> None:
    differences = torch.tensor([0.1, 0.3, 0.2, 0.4])
    found = tost(differences, torch.full((4,), 0.5), own(4))
    error = float(differences.std()) / 2
    assert found.p == pytest.approx(1 - student_cdf(0.25 / error, 3))
    assert found.p < 0.05
    assert found.p_apart == 1.0


def test_not_seeing_a_difference_is_not_equivalence() -> None:
    few = tost(torch.tensor([2.0, -2.0, 1.0, -1.0]), torch.full((4,), 0.1), own(4))
    assert few.difference.value == 0
    assert few.p > 0.4  # neither shown
    assert few.p_apart > 0.4  # nor refuted
    assert few.least > 1


def test_a_difference_beyond_the_margin_is_told() -> None:
    for side in (1, -1):
        found = tost(side * torch.tensor([1.0, 1.1, 0.9, 1.05]), torch.full((4,), 0.5), own(4))
        assert found.p_apart < 0.01
        assert found.p > 0.99


def test_at_the_margin_equivalence_is_shown_by_mistake_one_time_in_twenty() -> None:
    generator, margin = seeded(), torch.full((24,), 0.5)
    groups = [f"group {i // 2}" for i in range(24)]
    shown = apart = 0
    for _ in range(N_NULL):
        noise = normal(12, generator).repeat_interleave(2) * 0.3 + normal(24, generator) * 0.1
        found = tost(noise + 0.5, margin, groups)
        shown, apart = shown + (found.p <= 0.05), apart + (found.p_apart <= 0.05)
    assert 1 <= shown <= MOST_FALSE  # none at all would be a test that shows nothing
    assert apart <= MOST_FALSE


def test_the_least_margin_is_shown_four_times_in_five() -> None:
    generator, values = seeded(), normal(12, seeded(1))
    factor = student_quantile(0.95, 11) + student_quantile(0.9, 11)
    least = tost(values, torch.ones(12), own(12)).least
    assert least == pytest.approx(factor * float(values.std()) / math.sqrt(12))
    shown = sum(
        tost(normal(12, generator), torch.full((12,), factor / math.sqrt(12)), own(12)).p <= 0.05 for _ in range(N_NULL)
    )
    assert 140 <= shown <= 180  # 160, three binomial deviations to either side


# Dependence -------------------------------------------------------------------------------------------------------


def test_hsic_of_three_pairs_by_hand() -> None:
    x, y = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 0.0, 0.0])

    def kernel(z: torch.Tensor, width: float) -> torch.Tensor:
        rows = [[math.exp(-0.5 * ((float(a) - float(b)) / width) ** 2) for b in z] for a in z]
        return torch.tensor(rows, dtype=torch.float64)

    centre = torch.eye(3, dtype=torch.float64) - 1 / 3
    by_hand = torch.trace(kernel(x, 2.0) @ centre @ kernel(y, 2.0) @ centre) / 9
    assert hsic(x, y) == pytest.approx(float(by_hand))
    assert hsic(x, torch.ones(3)) == pytest.approx(0, abs=1e-15)
    assert hsic(x * 7 - 1, y / 3) == pytest.approx(hsic(x, y))  # widths go with the data


def test_p_of_a_permutation_test_by_counting() -> None:
    """Of four pairs there are 24 orders; a p value over 2000 random ones is near the share over all."""
    x, y = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([0.0, 1.0, 2.5, 4.0])
    every = [hsic(x, y[list(order)]) for order in itertools.permutations(range(4))]
    share = sum(value >= hsic(x, y) - 1e-12 for value in every) / 24
    found = hsic_test(x, y, own(4), seeded(), permutations=2000)
    assert found == pytest.approx(share, abs=0.03)  # four binomial deviations


def test_what_is_uncorrelated_and_dependent_is_found() -> None:
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)
    assert abs(float((x * x.square()).mean())) < 1e-12
    assert hsic_test(x, x.square(), own(40), seeded(), permutations=199) == 1 / 200


def test_independent_pairs_are_called_dependent_one_time_in_twenty() -> None:
    generator, false = seeded(), 0
    for _ in range(N_NULL):
        false += hsic_test(normal(20, generator), normal(20, generator), own(20), generator, permutations=59) <= 0.05
    assert 1 <= false <= MOST_FALSE


def test_groups_are_permuted_whole() -> None:
    groups = ["a", "b", "a", "c", "b", "d", "d"]
    for seed in range(20):
        order = permuted(groups, seeded(seed)).tolist()
        assert sorted(order) == list(range(7))
        assert order[3] == 3  # the only group of one pair
        blocks = [[order[0], order[2]], [order[1], order[4]], [order[5], order[6]]]
        assert sorted(blocks) == [[0, 2], [1, 4], [5, 6]]


def test_pairs_that_share_a_group_are_no_evidence() -> None:
    """Eight groups of five near copies, x and y independent between groups: by pairs it would look dependent."""
    generator, groups = seeded(3), [f"group {i // 5}" for i in range(40)]
    false, by_pairs = 0, 0
    for _ in range(40):
        x, y = (normal(8, generator).repeat_interleave(5) + 0.05 * normal(40, generator) for _ in range(2))
        false += hsic_test(x, y, groups, generator, permutations=59) <= 0.05
        by_pairs += hsic_test(x, y, own(40), generator, permutations=59) <= 0.05
    assert false <= 7  # of 40: one in 300 tests
    assert by_pairs >= 15


def test_the_least_correlation_is_seen_four_times_in_five() -> None:
    generator = seeded(5)
    least = least_correlation(normal(40, generator), normal(40, generator), own(40), generator)
    assert least is not None
    assert 0.3 <= least <= 0.7  # Pearson's own test sees .43 of 40 pairs with this power; HSIC a little more
    x, noise = (normal(40 * 30, generator).view(30, 40) for _ in range(2))
    mixed = least * x + math.sqrt(1 - least**2) * noise
    seen = sum(hsic_test(*both, own(40), generator, permutations=99) <= 0.05 for both in zip(x, mixed, strict=True))
    assert seen >= 17  # of 30, where 24 are expected; three deviations
    few = least_correlation(normal(8, generator), normal(8, generator), own(8), generator)
    assert few is None or few > least
    assert least_correlation(normal(2, generator), normal(2, generator), own(2), generator) is None


# Counts, and many tests -------------------------------------------------------------------------------------------


def test_binomial_tails() -> None:
    assert binomial_cdf(1, 3, 0.5) == 0.5
    assert binomial_cdf(0, 10, 0.9) == pytest.approx(1e-10)
    assert binomial_cdf(10, 10, 0.9) == 1.0
    assert 1 - binomial_cdf(MOST_FALSE, N_NULL, 0.05) < 0.002  # what the tests under the null stand on


def test_the_share_that_is_missed_by_hand() -> None:
    """Of three draws at least half: none of three is rejected at .125, which a share s does with (1 - s)³."""
    assert least_share_missed(3, 0.5, 0.125) == pytest.approx(1 - 0.8 ** (1 / 3))
    assert least_share_missed(3, 0.5, 0.12) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()
