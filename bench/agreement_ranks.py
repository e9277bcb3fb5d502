"""Whether two kinds of model rank methods alike: rank correlations of mean figures, and how sure they are.

Figures are [model, method], the lower the better. A kind's figure of a method is the mean over its models. Spearman's
rho and Kendall's tau-b are both cosines of what compares every method with every other: tau-b of the signs themselves,
rho of their sums over the others (twice a method's rank, centred; ties at the middle). Where one side says the same of
every method there is no order to compare, and the answer is None: cannot tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

DRAWS = 2000
_SAME = 1e-9  # figures nearer than this are a tie: they are means of sums in another order
_ENOUGH = 0.9  # of the draws must have an order for an interval to be told
_LEAST = 3  # models; of fewer no interval is told

Interval = tuple[float, float]


@dataclass(frozen=True)
class Correlation:
    """A coefficient with its 95% interval; each None where it cannot be told. ``n``: of how many methods."""

    value: float | None
    interval: Interval | None
    n: int


@dataclass(frozen=True, eq=False)
class Kind:
    """What a kind of model says of methods: ``figures`` [model, method].

    Models of one ``family`` are of the same units (programs, tasks), told by name, and are drawn together.
    """

    name: str
    family: str
    units: tuple[str, ...]
    methods: tuple[str, ...]
    figures: Tensor

    def of(self, methods: Sequence[str]) -> "Kind":
        """The same of some of its methods, in that order."""
        at = [self.methods.index(method) for method in methods]
        return Kind(self.name, self.family, self.units, tuple(methods), self.figures[:, at])

    def ranked(self) -> "Kind":
        """With each model's ranks of the methods in place of its figures: every model then counts alike."""
        return Kind(self.name, self.family, self.units, self.methods, ranks(self.figures))


# One coefficient --------------------------------------------------------------------------------------------------


def signs(figures: Tensor) -> Tensor:
    """Which of every two methods has the higher figure: 1, 0 or -1, [..., method, method]."""
    gaps = figures[..., :, None] - figures[..., None, :]
    return torch.where(gaps.abs() <= _SAME, 0.0, gaps.sign()).double()


def ranks(figures: Tensor) -> Tensor:
    """From 1 for the lowest; equal figures share the mean of their ranks."""
    return (signs(figures).sum(-1) + figures.shape[-1] + 1) / 2


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Of figures [..., method], a coefficient each; NaN where one side is constant."""
    return _cosine(signs(one).sum(-1), signs(other).sum(-1))


def kendall(one: Tensor, other: Tensor) -> Tensor:
    """Tau-b, likewise."""
    return _cosine(signs(one).flatten(-2), signs(other).flatten(-2))


COEFFICIENTS = {"spearman": spearman, "kendall": kendall}


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(-1) / (one.square().sum(-1) * other.square().sum(-1)).sqrt()


def _told(value: Tensor) -> float | None:
    """Rounding may put it past 1 by 1e-16."""
    return None if bool(value.isnan()) else float(value.clamp(-1, 1))


def _interval(values: Tensor, models: int) -> Interval | None:
    """The middle 95% of what was drawn; None where too many draws have no order, or models are too few to draw from."""
    have = values[~values.isnan()]
    if models < _LEAST or len(have) < _ENOUGH * len(values):
        return None
    low, high = have.clamp(-1, 1).quantile(torch.tensor([0.025, 0.975], dtype=have.dtype)).tolist()
    return low, high


# Between kinds, and within one ------------------------------------------------------------------------------------


def between(one: Kind, other: Kind, coefficient: str) -> Correlation:
    """How alike two kinds rank the methods that both have, bootstrapped over their units.

    Units of one family are drawn together, so that two kinds of the same programs are compared on the same draws. What
    is drawn are models alone: the interval says how much depends on which models were taken, not on which methods.
    """
    methods = [method for method in one.methods if method in other.methods]
    one, other = one.of(methods), other.of(methods)
    f = COEFFICIENTS[coefficient]
    value = _told(f(one.figures.mean(0), other.figures.mean(0)))
    fewest = min(len(one.units), len(other.units))
    ends = None if value is None else _interval(f(*drawn(one, other)), fewest)
    return Correlation(value, ends, len(methods))


def drawn(one: Kind, other: Kind) -> tuple[Tensor, Tensor]:
    """Mean figures [draw, method] of both kinds over units drawn with replacement; NaN where none of a kind's was."""
    generator = torch.Generator().manual_seed(0)
    families = {kind.family: [*one.units, *other.units] if one.family == other.family else kind.units
                for kind in (one, other)}  # fmt: skip
    counts = {family: _counts(sorted(set(units)), generator) for family, units in families.items()}
    ours, theirs = (_means(kind, counts[kind.family]) for kind in (one, other))
    return ours, theirs


def _counts(units: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    """How often each unit came, [draw] each."""
    chosen = torch.randint(len(units), (DRAWS, len(units)), generator=generator)
    return {unit: (chosen == at).sum(1).double() for at, unit in enumerate(units)}


def _means(kind: Kind, counts: dict[str, Tensor]) -> Tensor:
    times = torch.stack([counts[unit] for unit in kind.units], dim=1)
    return times @ kind.figures / times.sum(1, keepdim=True)


def halves(kind: Kind, coefficient: str) -> Correlation:
    """How alike two random halves of a kind's models rank the methods, and the middle 95% of such divisions.

    What a kind of half as many models can at best be expected to share with another. Under four models: cannot tell.
    """
    n = len(kind.units)
    orders = torch.rand(DRAWS, n, generator=torch.Generator().manual_seed(0)).argsort(1)
    first, second = (kind.figures[part].mean(1) for part in (orders[:, : n // 2], orders[:, n // 2 :]))
    return _mean_of(COEFFICIENTS[coefficient](first, second) if n >= 4 else torch.tensor([torch.nan]), n, kind.figures)


def _mean_of(values: Tensor, models: int, figures: Tensor) -> Correlation:
    """The mean of those that have a value, and the middle 95% of them."""
    have = values[~values.isnan()]
    return Correlation(float(have.mean()) if len(have) else None, _interval(values, models), figures.shape[1])


# Truth against what needs none ------------------------------------------------------------------------------------


def across(good: Tensor, figures: Tensor, coefficient: str) -> Correlation:
    """Whether methods of high ``good`` [model, method] have low figures: of the means over models, bootstrapped."""
    f = COEFFICIENTS[coefficient]
    value = _told(f(-good.mean(0), figures.mean(0)))
    rows = _draws(len(figures))
    ends = None if value is None else _interval(f(-good[rows].mean(1), figures[rows].mean(1)), len(figures))
    return Correlation(value, ends, figures.shape[1])


def inside(good: Tensor, figures: Tensor, coefficient: str) -> Correlation:
    """The same within each model, averaged over the models where both have an order."""
    each = COEFFICIENTS[coefficient](-good, figures)
    have = each[~each.isnan()]
    if not len(have):
        return Correlation(None, None, figures.shape[1])
    return Correlation(float(have.mean()), _interval(have[_draws(len(have))].mean(1), len(have)), figures.shape[1])


def _draws(models: int) -> Tensor:
    """Numbers of models drawn with replacement, [draw, model]."""
    return torch.randint(models, (DRAWS, models), generator=torch.Generator().manual_seed(0))


def pairs_of(kinds: Sequence[Kind]) -> list[tuple[Kind, Kind]]:
    """Every two kinds, in order."""
    return list(combinations(kinds, 2))
