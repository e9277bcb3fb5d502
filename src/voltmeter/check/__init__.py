"""Is it true: the battery that every circuit goes through."""

from voltmeter.check import (
    chance,
    faithfulness,
    fills,
    hypotheses,
    identifiability,
    minimality,
    necessity,
    optimisation,
    positions,
    redundancy,
    stability,
    trivial,
)
from voltmeter.check.check import check
from voltmeter.check.finding import Finding, Findings, Picture
from voltmeter.check.registry import Check, checks

__all__ = [
    "Check",
    "Finding",
    "Findings",
    "Picture",
    "chance",
    "check",
    "checks",
    "faithfulness",
    "fills",
    "hypotheses",
    "identifiability",
    "minimality",
    "necessity",
    "optimisation",
    "positions",
    "redundancy",
    "stability",
    "trivial",
]
