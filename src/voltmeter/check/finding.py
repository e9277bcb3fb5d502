"""What a check found: a verdict, the figure behind it, and what it was compared with."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from voltmeter.errors import CheckError
from voltmeter.files import plain

Verdict = Literal["holds", "fails", "cannot tell"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

HOLDS, FAILS, CANNOT_TELL = VERDICTS


@dataclass(frozen=True)
class Picture:
    """What a picture shows, as plain data; ``report`` draws it.

    ``kind``, and what ``data`` holds for it:

        bars     {"names": [...], "values": [...]}, and "low", "high" beside the values where there are intervals
        points   {"x": [...], "y": [...], "names": [...]}
        lines    {"x": [...], "lines": {"name": [...]}}, and "low"/"high" likewise: {"name": [...]}
        heat     {"x": [...], "y": [...], "values": [[...], ...]}, a row for each y

    ``line``: a value of the upright axis (of ``bars``: the level one) to be marked, such as a threshold.
    """

    kind: Literal["bars", "points", "lines", "heat"]
    title: str
    x: str
    """What is along the level axis, with its unit."""
    y: str
    data: dict[str, Any]
    line: float | None = None
    diagonal: bool = False
    """Of points: whether to draw where both axes say the same."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", plain(self.data, "data"))


@dataclass(frozen=True)
class Finding:
    """What one check says of a circuit.

    ``figure`` with its 95% interval ``low`` to ``high`` (None where there is none to give), ``against`` what it was
    compared with, and ``says`` the finding in a sentence of plain words. ``details`` are rows of plain values, all with
    the same keys: the worst pairs, the edges that can be cut. ``counted`` says how much work stands behind it (pairs,
    circuits, resamples, and what a budget left out).
    """

    check: str
    verdict: Verdict
    figure: float | None
    low: float | None
    high: float | None
    against: str
    says: str
    details: tuple[dict[str, Any], ...] = ()
    counted: dict[str, Any] = field(default_factory=dict)
    picture: Picture | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise CheckError(f"'{self.verdict}' is no verdict", [f"verdicts: {', '.join(VERDICTS)}"])
        for name in ("figure", "low", "high"):
            object.__setattr__(self, name, finite(getattr(self, name)))
        object.__setattr__(self, "details", tuple(plain(list(self.details), "details")))
        object.__setattr__(self, "counted", plain(self.counted, "counted"))

    def __str__(self) -> str:
        return f"{self.check}: {self.verdict}. {self.says}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``--json`` prints it; the picture's data is on the page only."""
        names = ("check", "verdict", "figure", "low", "high", "against", "says", "details", "counted", "seconds")
        told = {name: getattr(self, name) for name in names}
        return told | {"details": list(self.details), "seconds": round(self.seconds, 3)}


def finite(value: float | None) -> float | None:
    """A number that JSON can hold; None for NaN and infinities."""
    return None if value is None or not math.isfinite(value) else float(value)


def within(
    low: float, high: float, at_least: float | None = None, at_most: float | None = None, rounding: float = 1e-5
) -> Verdict:
    """The verdict on an interval: it holds where all of it lies between the bounds, fails where all lies outside.

    ``rounding``: how far the ends may miss a bound; float32 sums in another order differ by about that.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return CANNOT_TELL
    bottom = -math.inf if at_least is None else at_least - rounding
    top = math.inf if at_most is None else at_most + rounding
    if bottom <= low and high <= top:
        return HOLDS
    return FAILS if high < bottom or low > top else CANNOT_TELL


@dataclass(frozen=True)
class Findings(Sequence[Finding]):
    """Findings of one circuit, in the order of the checks, and the conditions they hold under."""

    found: tuple[Finding, ...]
    conditions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", plain(self.conditions, "conditions"))

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, which: int | slice | str) -> Any:
        """A finding by place, or by the name of its check. Raises CheckError for a check that was not made."""
        if not isinstance(which, str):
            return self.found[which]
        for finding in self.found:
            if finding.check == which:
                return finding
        raise CheckError(f"no check '{which}' was made", [f"made: {', '.join(f.check for f in self.found)}"])

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def of(self, verdict: Verdict) -> tuple[Finding, ...]:
        """The findings with this verdict."""
        return tuple(finding for finding in self.found if finding.verdict == verdict)

    def __str__(self) -> str:
        """ "12 findings: 10 hold, 1 fails (redundant: ...), 1 cannot tell (stable: ...)"."""
        return self._told(_each)

    @property
    def counts(self) -> str:
        """ "12 findings: 10 hold, 1 fails (redundant), 1 cannot tell (stable)"."""
        return self._told(lambda findings: ", ".join(finding.check for finding in findings))

    def _told(self, of: Callable[[tuple[Finding, ...]], str]) -> str:
        holds, fails, unsure = (self.of(verdict) for verdict in VERDICTS)
        parts = [f"{len(holds)} hold{'s' if len(holds) == 1 else ''}"]
        if fails:
            parts.append(f"{len(fails)} fail{'s' if len(fails) == 1 else ''} ({of(fails)})")
        if unsure:
            parts.append(f"{len(unsure)} cannot tell ({of(unsure)})")
        return f"{len(self)} finding{'' if len(self) == 1 else 's'}: {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data: ``findings``, a count of each verdict, and the conditions."""
        counts: Mapping[str, int] = {verdict: len(self.of(verdict)) for verdict in VERDICTS}
        return {"findings": [f.as_dict() for f in self.found], "verdicts": dict(counts), "conditions": self.conditions}


def _each(findings: tuple[Finding, ...]) -> str:
    return "; ".join(f"{finding.check}: {finding.says.rstrip('.')}" for finding in findings)
