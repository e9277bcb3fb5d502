"""Which edges matter: methods that score every edge, how scores become a circuit, and how faithful a circuit is."""

from voltmeter.discover import (  # methods register themselves
    acdc,
    atp,
    attribution,
    baseline,
    ensemble,
    exact,
    hisp,
    ig,
    masks,
    nodes,
    pruning,
    relp,
    ugs,
)
from voltmeter.discover.constants import optimal_fill
from voltmeter.discover.criteria import Faithful, Within
from voltmeter.discover.discover import ask, discover
from voltmeter.discover.discretise import greedy, prune, threshold, top_k
from voltmeter.discover.faithful import Faithfulness, Judge, smallest_faithful
from voltmeter.discover.method import METHODS, Method, method_named, register
from voltmeter.discover.question import FILLS, Question, prepare_fill

__all__ = [
    "FILLS",
    "METHODS",
    "Faithful",
    "Faithfulness",
    "Judge",
    "Method",
    "Question",
    "Within",
    "acdc",
    "ask",
    "atp",
    "attribution",
    "baseline",
    "discover",
    "ensemble",
    "exact",
    "greedy",
    "hisp",
    "ig",
    "masks",
    "method_named",
    "nodes",
    "optimal_fill",
    "prepare_fill",
    "prune",
    "pruning",
    "register",
    "relp",
    "smallest_faithful",
    "threshold",
    "top_k",
    "ugs",
]
