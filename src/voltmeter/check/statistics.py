"""Tests of hypotheses about means, dependence and ranks, each by its definition.

Pairs of one group (same names, same template) are not independent of each other: groups are what is counted, for a
mean as for a permutation. Distributions are by finite sums, exact for the whole degrees of freedom that occur here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

POWER = 0.8  # "would have been seen": in four of five samples, as is usual
_STEPS = 200  # of a bisection: halves any bracket of doubles to neighbours


# Means ------------------------------------------------------------------------------------------------------------


def student_cdf(t: float, df: int) -> float:
    """P(T <= t) of Student's t with ``df`` degrees of freedom, a whole number of at least 1.

    By the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4; exact to rounding (absolute 1e-15).
    """
    angle = math.atan(abs(t) / math.sqrt(df))
    cosine = math.cos(angle)
    odd = df % 2
    term, total = (cosine if odd else 1.0), 0.0
    for step in range((df - odd) // 2):
        total += term
        term *= cosine**2 * (2 * step + 1 + odd) / (2 * step + 2 + odd)
    both = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
    return 0.5 + math.copysign(both / 2, t)


def student_quantile(p: float, df: int) -> float:
    """The t below which a share ``p`` of Student's distribution lies."""
    return _root(lambda t: student_cdf(t, df) - p)


@final
@dataclass(frozen=True)
class Mean:
    """A mean over pairs, its standard error, and the degrees of freedom: groups less one."""

    value: float
    error: float
    df: int

    def p_above(self, bound: float = 0.0) -> float:
        """Of "the mean is at most ``bound``" against "it is above": a one-sided t test."""
        if self.error == 0:
            return 0.0 if self.value > bound else 1.0
        return student_cdf((bound - self.value) / self.error, self.df)

    def p_below(self, bound: float = 0.0) -> float:
        """Of "the mean is at least ``bound``" against "it is below"."""
        return Mean(-self.value, self.error, self.df).p_above(-bound)


def mean_of(values: Float[Tensor, "pair"], groups: Sequence[str]) -> Mean:
    """The mean over pairs; its error counts groups, not pairs (the usual one of the mean where each is its own).

    There must be two groups or more.
    """
    values = values.double()
    number = {name: at for at, name in enumerate(dict.fromkeys(groups))}
    count, mean = len(number), float(values.mean())
    of = torch.tensor([number[name] for name in groups])
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, of, values - mean)
    error = math.sqrt(float(sums.square().sum()) * count / (count - 1)) / len(values)
    return Mean(mean, error, count - 1)


@final
@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of differences against a margin.

    ``p``: of "they differ by the margin or more"; small where equivalence is shown. ``p_apart``: of "they differ by
    less"; small where a difference beyond the margin is shown. Both may be large: then the data tell neither.
    ``least``: the margin within which a difference of zero would have been shown with ``POWER``.
    """

    difference: Mean
    margin: float
    p: float
    p_apart: float
    least: float


def tost(
    differences: Float[Tensor, "pair"], margins: Float[Tensor, "pair"], groups: Sequence[str], level: float = 0.05
) -> Equivalence:
    """Whether ``differences`` are on average within the mean of ``margins``, to either side.

    A margin that is itself measured is given pair by pair, so that its error counts too. ``p`` is the larger of the two
    one-sided tests' (Schuirmann's), ``p_apart`` twice the smaller of the opposite ones'.
    """
    above, below = mean_of(differences + margins, groups), mean_of(margins - differences, groups)
    apart = min(1.0, 2 * min(above.p_below(), below.p_below()))
    found = mean_of(differences, groups)
    # At a true difference of zero each side fails in (1 - POWER) / 2 of the samples. By Student's quantiles in place of
    # the noncentral distribution: right to a few per cent from five degrees of freedom on.
    factor = student_quantile(1 - level, found.df) + student_quantile((1 + POWER) / 2, found.df)
    least = factor * max(above.error, below.error)
    return Equivalence(found, float(margins.mean()), max(above.p_above(), below.p_above()), apart, least)


# Dependence -------------------------------------------------------------------------------------------------------


def hsic(x: Float[Tensor, "pair"], y: Float[Tensor, "pair"]) -> float:
    """The Hilbert-Schmidt independence criterion, tr(KHLH) / n² (Gretton et al. 2007), with Gaussian kernels.

    Each kernel's width is the median distance between values that differ. Zero where either is constant.
    """
    return float((_centred(x) * _kernel(y)).sum()) / len(x) ** 2


def _kernel(x: Float[Tensor, "pair"]) -> Float[Tensor, "pair pair"]:
    distances = (x.double()[:, None] - x.double()[None]).abs()
    apart = distances[distances > 0]
    width = float(apart.median()) if len(apart) else 1.0
    return torch.exp(-0.5 * (distances / width).square())


def _centred(x: Float[Tensor, "pair"]) -> Float[Tensor, "pair pair"]:
    kernel = _kernel(x)
    return kernel - kernel.mean(0, keepdim=True) - kernel.mean(1, keepdim=True) + kernel.mean()


def hsic_test(
    x: Float[Tensor, "pair"],
    y: Float[Tensor, "pair"],
    groups: Sequence[str],
    generator: torch.Generator,
    permutations: int = 500,
) -> float:
    """p of "``y`` does not depend on ``x`` in any way": HSIC against what it is when ``y`` is permuted.

    Whole groups are permuted, among those of their size. The data count as one of the permutations, so that p is never
    below 1 / (permutations + 1). Costs permutations x pairs².
    """
    swaps = [permuted(groups, generator) for _ in range(permutations)]
    kernel, centred = _kernel(y), _centred(x)
    null = torch.stack([(centred * kernel[swap][:, swap]).sum() for swap in swaps])
    observed = float((centred * kernel).sum())
    reached = int((null >= observed - 1e-12 * abs(observed)).sum())  # the same arrangement summed in another order
    return (1 + reached) / (1 + permutations)


def permuted(groups: Sequence[str], generator: torch.Generator) -> Int64[Tensor, "pair"]:
    """The pairs in another order: each group's place is taken by a whole group of the same size."""
    members: dict[str, list[int]] = {}
    for at, name in enumerate(groups):
        members.setdefault(name, []).append(at)
    order = torch.empty(len(groups), dtype=torch.long)
    for size in {len(rows) for rows in members.values()}:
        same = torch.tensor([rows for rows in members.values() if len(rows) == size])
        order[same] = same[torch.randperm(len(same), generator=generator)]
    return order


_SAMPLES = 40  # of each correlation: .8 is then known to .06
_NULL = 100  # permutations to find what is rejected
_CORRELATIONS = tuple(at / 20 for at in range(1, 21))


def least_correlation(
    x: Float[Tensor, "pair"],
    y: Float[Tensor, "pair"],
    groups: Sequence[str],
    generator: torch.Generator,
    level: float = 0.05,
) -> float | None:
    """The smallest correlation that ``hsic_test`` would have seen with ``POWER``, to a twentieth; None: none at all.

    By mixing x into permuted ys, which do not depend on it: r x + sqrt(1 - r²) y, both standardised. Costs about as
    much as 700 permutations.
    """
    x, y, centred = _standard(x), _standard(y), _centred(x)
    swaps = [permuted(groups, generator) for _ in range(_SAMPLES)]
    others = [permuted(groups, generator) for _ in range(_NULL)]

    def is_seen(r: float) -> bool:
        mixed = [_kernel(r * x + math.sqrt(1 - r * r) * y[swap]) for swap in swaps]
        null = torch.stack([(centred * mixed[0][swap][:, swap]).sum() for swap in others])
        bound = null.quantile(1 - level)
        return sum(float((centred * kernel).sum() > bound) for kernel in mixed) >= POWER * len(mixed)

    low, high = 0, len(_CORRELATIONS)  # the first that is seen lies in between
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_seen(_CORRELATIONS[middle]) else (middle + 1, high)
    return _CORRELATIONS[low] if low < len(_CORRELATIONS) else None


def _standard(x: Float[Tensor, "pair"]) -> Float[Tensor, "pair"]:
    x = x.double() - x.double().mean()
    deviation = float(x.square().mean().sqrt())
    return x / deviation if deviation > 0 else x


# Counts, and many tests -------------------------------------------------------------------------------------------


def binomial_cdf(count: int, n: int, share: float) -> float:
    """P(at most ``count`` of ``n``), each with probability ``share``."""
    return min(1.0, sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(count + 1)))


def least_share_missed(n: int, share: float, level: float) -> float | None:
    """The largest true share that a test of "at least ``share``" on ``n`` draws rejects with ``POWER``; None: none."""
    critical = max((count for count in range(n + 1) if binomial_cdf(count, n, share) <= level), default=-1)
    if critical < 0:
        return None
    return _root(lambda true: POWER - binomial_cdf(critical, n, true), 0.0, 1.0)


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """p values corrected so that, of all that are at most α, none is a false alarm with probability 1 - α (Holm)."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=lambda at: ps[at])):
        largest = max(largest, min(1.0, ps[at] * (len(ps) - rank)))
        corrected[at] = largest
    return tuple(corrected)


def _root(rising: Callable[[float], float], low: float = -1e6, high: float = 1e6) -> float:
    """Where a rising function passes zero."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) >= 0 else (middle, high)
    return high
