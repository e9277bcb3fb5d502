"""Is what the circuit puts out more than a rule without structure would say: always one answer, a copy, a corner?"""

import torch

from voltmeter.check.case import Case
from voltmeter.check.finding import CANNOT_TELL, FAILS, HOLDS, Finding, Verdict
from voltmeter.check.look import CIRCUIT, EXPLAINED, FULL, Explained, Look, mean, most_frequent
from voltmeter.check.outputs import put_out, readout_of
from voltmeter.check.registry import register
from voltmeter.check.rules import CONSTANT, COPY, LAST, NOTHING_KEPT, POSITION, THERE
from voltmeter.check.shown import details, name_of, picture

FEWEST_GROUPS = 5  # fewer are too often alike by chance: with two answers, five are once in sixteen times
FOLLOWS = 0.75  # of the pairs, on which their own answers are above their own wrong ones: half would be chance


@register("not-trivial", "does what it puts out depend on the input, and is it more than a simple rule would say?")
def not_trivial(case: Case) -> Finding:
    """What the circuit chooses over the held-out inputs, clean and corrupted, against rules that know no structure.

    It fails where one output, or one region of a board, makes up at least 95% of what is put out; where a copied token,
    the last token or the fills alone say the same on as many inputs; where the input does not reach the output at all;
    and where circuit and full model are both no better at the task than chance, as where answers are mislabelled.
    Whether the full model is explained as well, so that the task itself is trivial, is said. It cannot tell where all
    inputs ask for one answer, where only the full model misses the task, and of fewer than five groups of pairs. Costs
    three masked forwards of the held-out pairs, and as many of them the other way round.
    """
    readout = readout_of(case)
    if isinstance(readout, str):
        return Finding("not-trivial", CANNOT_TELL, None, None, None, "", f"{readout}: nothing can be compared")
    nothing = torch.zeros_like(case.keep)
    look = Look(case, put_out(case, readout, [case.keep, 1 - nothing, nothing]))
    best, (verdict, says) = look.closest, _verdict(look)
    return Finding(
        "not-trivial",
        verdict,
        best.agrees,
        best.low,
        best.high,
        f"the rule '{best.name}', on {look.seen.n_inputs:,} held-out inputs",
        says,
        details(look),
        {"pairs": len(case.held_out), "inputs": look.seen.n_inputs, "groups": look.groups.count},
        picture(look),
    )


def _verdict(look: Look) -> tuple[Verdict, str]:
    """The verdict, and why."""
    best = look.closest
    if not look.is_reached:
        return FAILS, _not_reached(look)
    if look.groups.count < FEWEST_GROUPS:
        return CANNOT_TELL, f"{look.groups.count} groups of pairs are too few to tell; {FEWEST_GROUPS} are needed"
    if look.asks_for_one:
        return CANNOT_TELL, f"every held-out input asks for {name_of(look, look.asked[0])}: give inputs that differ"
    if best.verdict == FAILS:
        return _explained_away(look, best)
    if not look.does_the_task():
        mislabelled = all(look.misses_the_task(run, FOLLOWS) for run in (CIRCUIT, FULL))
        return FAILS if mislabelled else CANNOT_TELL, _no_better_than_chance(look)
    if best.verdict == CANNOT_TELL:
        return CANNOT_TELL, f"{_rule(look, best)}: more held-out pairs would tell; {_outputs(look)}"
    return HOLDS, f"{_outputs(look)}; {_rule(look, best)}"


def _explained_away(look: Look, best: Explained) -> tuple[Verdict, str]:
    """It fails; unless what never changes is only the first choice, and a pair's own answers are told apart."""
    says = f"{_cause(look, best)}; {_full_too(look, best)}"
    follows, low, _ = look.follows(CIRCUIT)
    if best.name in CONSTANT and low > FOLLOWS:
        return CANNOT_TELL, f"{says}; yet between a pair's own answers it is right on {follows:.0%}"
    return FAILS, says


# In words ----------------------------------------------------------------------------------------------------------


def _not_reached(look: Look) -> str:
    most = most_frequent(look.circuit)[0]
    return (
        "nothing of the input reaches the output: with every edge cut the same comes out, on all "
        f"{look.seen.n_inputs:,} inputs ({name_of(look, most)} on {mean(look.circuit == most):.0%})"
    )


def _no_better_than_chance(look: Look) -> str:
    right = look.right(look.full)
    share = 0.0 if right is None else mean(right)
    says = (
        f"the full model itself is right on {share:.0%} of the inputs, and always {name_of(look, look.asked[0])} would "
    )
    if not look.has_wrong:
        return f"{says}be on {look.chance:.0%}: are the answers labelled as they should be?"
    prefers, low, high = look.prefers(FULL)
    return (
        f"{says}be on {look.chance:.0%}; a pair's own answer is above its own wrong one on {prefers:.0%} ({low:.0%} to "
        f"{high:.0%}), where half is chance: are the answers labelled as they should be?"
    )


def _cause(look: Look, best: Explained) -> str:
    """ "whatever the input, it answers ' he': on 99% of 240 inputs, which ask for 2 different answers"."""
    inputs, verb = f"on {best.agrees:.0%} of {look.seen.n_inputs:,} inputs", _verb(look)
    most = most_frequent(look.circuit)[0]
    name = name_of(look, most)
    for region in look.regions:
        if region.name == best.name:
            where = f"{best.agrees:.0%} of its {look.seen.n_inputs:,} moves are {best.name}"
            often = mean(look.circuit == most)
            return f"{where}, {region.share:.1%} of the points; the most frequent is {name} ({often:.0%})"
    if best.name in CONSTANT:
        asks = f", which ask for {len(look.asked):,} different answers" if len(look.asked) > 1 else ""
        return f"whatever the input, it {verb} {name}: {inputs}{asks}"
    if best.name == POSITION:
        return f"whatever the input, it {verb} the same at each position, {inputs}"
    if best.name == NOTHING_KEPT:
        return f"{inputs} it {verb} what comes out with nothing kept: what cut edges carry decides"
    if best.name in (LAST, THERE):
        return f"{best.name} alone says what it {verb}, {inputs}"
    assert best.name.startswith(COPY)
    return f"what it {verb} is {best.name}, {inputs}"


def _full_too(look: Look, best: Explained) -> str:
    if best.full >= EXPLAINED:
        what = "the task itself is trivial" if look.asked else "the model itself is trivial on these inputs"
        return f"so it is with the full model ({best.full:.0%}): {what}"
    return f"of the full model that is so on {best.full:.0%}"


def _rule(look: Look, best: Explained) -> str:
    sure = f"{best.agrees:.0%} ({best.low:.0%} to {best.high:.0%})"
    if best.name in {region.name for region in look.regions}:
        return f"{sure} of its moves are {best.name}, {best.full:.0%} of the full model's"
    return f"of the rules without structure, '{best.name}' comes closest: it says the same on {sure}"


def _outputs(look: Look) -> str:
    """ "it answers ' he' on 52%, ' she' on 48% of 240 inputs (the full model on 51%, 49%), right on 94%"."""
    order = most_frequent(look.circuit)
    mine = ", ".join(f"{name_of(look, label)} on {mean(look.circuit == label):.0%}" for label in order[:3])
    full = ", ".join(f"{mean(look.full == label):.0%}" for label in order[:3])
    more = f" and {len(order) - 3:,} others" if len(order) > 3 else ""
    right = look.right(look.circuit)
    is_right = "" if right is None else f", right on {mean(right):.0%}"
    return f"it {_verb(look)} {mine}{more} of {look.seen.n_inputs:,} inputs (the full model on {full}){is_right}"


def _verb(look: Look) -> str:
    readout = look.seen.readout
    if readout.board is not None:
        return "plays"
    return "answers" if readout.kind == "answers" else "puts out"
