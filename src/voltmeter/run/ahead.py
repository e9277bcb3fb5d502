"""Which readings can be begun before their state stands.

Mixing what the 36 readings of an attention layer read is one pass over the deltas so far, bound by memory. The MLP
after it reads the same deltas and those of the layer's own heads: its one row joins the pass at next to no cost, and
only the new deltas are left for when its state stands.
"""

from collections.abc import Mapping
from itertools import islice

from voltmeter.wiring.plan import Plan, Site, State
from voltmeter.wiring.tap import readings_of

_MANY = 4  # as many readings of the earlier state as of the later one, or the pass saved is not worth the rows held


def readings_ahead(plan: Plan) -> Mapping[int, tuple[tuple[State, Site], ...]]:
    """State number -> the later states to begin when it is read, each with the one site that reads it.

    A later state is one that adds writers after those of the earlier, with the same coefficients. One that is begun
    already is not begun again, and none is begun past a state that has many readings itself.
    """
    read_at: dict[int, list[Site]] = {}
    for site in plan.sites:
        for number in dict.fromkeys(site.states):
            read_at.setdefault(number, []).append(site)
    found: dict[int, tuple[tuple[State, Site], ...]] = {}
    begun: set[int] = set()
    for state in plan.states:
        if state.number in begun or state.number not in read_at:
            continue
        later = _extending(plan, state, read_at)
        if later:
            found[state.number] = later
            begun.update(s.number for s, _ in later)
    return found


def _extending(plan: Plan, state: State, read_at: Mapping[int, list[Site]]) -> tuple[tuple[State, Site], ...]:
    count = max(len(readings_of(site, state.number)) for site in read_at[state.number])
    made = []
    for later in islice(plan.states, state.number + 1, None):
        if later.stream != state.stream or later.number not in read_at:
            continue
        sites, n = read_at[later.number], len(state.members)
        few = len(sites) == 1 and _MANY * len(readings_of(sites[0], later.number)) <= count
        if not few or later.members[:n] != state.members or later.scales[:n] != state.scales:
            break
        made.append((later, sites[0]))
    return tuple(made)
