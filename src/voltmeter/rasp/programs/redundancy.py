"""Programs that single cuts misjudge: several ways to one answer, ways that wake when another is cut, and ways that
undo each other. Equal expressions are compiled once, so that ways which compute the same are written differently.
"""

from voltmeter.rasp.language import Aggregate, LinearSequenceMap, Map, SequenceMap, Sop, equals, numerical, tokens
from voltmeter.rasp.programs.pieces import anywhere, everywhere, is_token, last, previous, share_so_far, shifted
from voltmeter.rasp.programs.program import known


def _occurs_by_count(token: str) -> Sop:
    """1 if the token occurs, else 0: counted by a selector's width."""
    return numerical(anywhere(is_token(token)))


def _occurs_by_share(token: str) -> Sop:
    """1 if the token occurs, else 0: its share of all tokens is above zero."""
    return numerical(Aggregate(everywhere, numerical(is_token(token))) > 0)


def _occurs_by_end(token: str) -> Sop:
    """1 if the token occurs, else 0: at the last position it is known whether it has been seen so far."""
    return numerical(last(share_so_far(is_token(token)) > 0))


def _sum(a: Sop, b: Sop) -> Sop:
    return LinearSequenceMap(a, b)


def _relu(sop: Sop) -> Sop:
    return numerical(Map(lambda x: max(x, 0), sop))


@known("vwxyz", 3, {"vxz": (True,) * 3, "yw": (False,) * 2, "x": (True,)}, tags=["redundant"])
def two_paths() -> Sop:
    """Whether x occurs, by counting or by its share: under zero or mean fills either path suffices.

    Three tokens of five kinds, so that x occurs in less than half of the inputs and a mean fill says "no" too.
    """
    return _sum(_occurs_by_count("x"), _occurs_by_share("x")) > 0.5


@known("xyz", 4, {"yxzz": (True,) * 4, "yzy": (False,) * 3, "x": (True,)}, tags=["redundant"])
def three_paths() -> Sop:
    """Whether x occurs, by two of three votes: under any fill one path may be cut, whichever it is."""
    two = _sum(_occurs_by_count("x"), _occurs_by_share("x"))
    return _sum(two, _occurs_by_end("x")) > 1.5


@known((0, 1), 5, {(1, 0, 1, 1, 0): (False, False, True, False, True), (1, 1): (False, False)}, tags=["redundant"])
def two_back_twice() -> Sop:
    """Whether there is a 1 two places back, by one head that looks two places back or by two that look one place."""
    at_once, in_steps = shifted(tokens, 2), previous(previous(tokens))
    return _sum(numerical(equals(at_once, 1)), numerical(equals(in_steps, 1))) > 0.5


@known("xyz", 4, {"yxzx": (1,) * 4, "zyz": (0,) * 3, "x": (1,)}, tags=["redundant", "backup"])
def backup() -> Sop:
    """Whether x occurs: p + relu(q - p), where q (by share) says the same as p (by counting) and steps in for it.

    Cut p's way to the sum, and the answer is lost; cut its way to the backup as well, and it is back.
    """
    p, q = _occurs_by_count("x"), _occurs_by_share("x")
    return _sum(p, _relu(LinearSequenceMap(q, p, 1.0, -1.0)))


@known("xyz", 4, {"yxzx": (0, 1, 0, 1), "zz": (0, 0), "xxy": (1, 1, 0)}, tags=["veto"])
def veto() -> Sop:
    """Whether the token is x, plus relu(u - 10 a): u (y occurs) only matters when a (the share of y) is cut."""
    share = Aggregate(everywhere, numerical(is_token("y")))
    held_down = LinearSequenceMap(_occurs_by_count("y"), share, 1.0, -10.0)
    return _sum(numerical(is_token("x")), _relu(held_down))


@known("xyz", 4, {"yxzx": (0, 1, 0, 1), "zz": (0, 0), "xxy": (1, 1, 0)}, tags=["cancellation"])
def cancellation() -> Sop:
    """Whether the token is x, plus the share of y so far, less the share of y so far."""
    share = share_so_far(is_token("y"))
    return LinearSequenceMap(_sum(numerical(is_token("x")), share), share, 1.0, -1.0)


@known("abc", 5, {"abca": (None, "b", "c", "a"), "cc": (None, "c")}, tags=["ignored"])
def ignored_input() -> Sop:
    """The token, by a lookup that is also given the token before and makes no use of it."""
    return SequenceMap(lambda before, token: token, previous(tokens), tokens)
