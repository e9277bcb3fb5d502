"""Is it true: the battery that every circuit goes through."""

from voltmeter.check import faithfulness
from voltmeter.check.check import check
from voltmeter.check.finding import Finding, Findings, Picture
from voltmeter.check.registry import Check, checks

__all__ = ["Check", "Finding", "Findings", "Picture", "check", "checks", "faithfulness"]
