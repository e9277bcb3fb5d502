"""Not trivial: what is put out is held against rules without structure. Planted: constants, copies, leaks, corners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from planted import PLANTED, Planted, claims
from torch import Tensor, nn

import voltmeter as vm
from voltmeter.check import trivial
from voltmeter.check.board import regions
from voltmeter.check.case import Case
from voltmeter.check.finding import Finding
from voltmeter.check.outputs import put_out, readout_of
from voltmeter.check.rules import bits
from voltmeter.circuit import Circuit
from voltmeter.discover import ask
from voltmeter.task import Pairs, Task, metric_of

WORDS, LENGTH, PAIRS = 6, 5, 60  # tokens, of which each row has five, and pairs of a split
SUM = ("input -> fetch", "input -> add", "fetch -> add", "add -> logits")

Answer = Callable[[Tensor], Tensor]  # of tokens [pair, position]


# Token models: the last token and the second, added modulo six, or something simpler


class Table(nn.Module):
    """Writes an output for every pair of (token here, token fetched): ``answer`` [here, fetched]."""

    def __init__(self, answer: Tensor, gain: float = 1.0) -> None:
        super().__init__()
        here, fetched = (grid.flatten() for grid in torch.meshgrid(*[torch.arange(WORDS)] * 2, indexing="ij"))
        taken = torch.cat([torch.eye(WORDS)[here], torch.eye(WORDS)[fetched], torch.zeros(WORDS**2, WORDS)], 1)
        self.up = nn.Linear(3 * WORDS, WORDS**2)
        self.down = nn.Linear(WORDS**2, 3 * WORDS, bias=False)
        self.gain = gain
        with torch.no_grad():
            self.up.weight.copy_(taken)
            self.up.bias.fill_(-1)
            self.down.weight.zero_()
            self.down.weight[2 * WORDS + answer.flatten(), torch.arange(WORDS**2)] = 3 * gain

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Fetch(nn.Module):
    """Moves the token at ``place`` to every position, into dimensions ``to`` of ours (1: fetched, 2: output)."""

    def __init__(self, place: int, to: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.move = nn.Linear(3 * WORDS, 3 * WORDS, bias=False)
        self.place = place
        with torch.no_grad():
            self.move.weight.zero_()
            self.move.weight[to * WORDS : (to + 1) * WORDS, :WORDS] = gain * torch.eye(WORDS)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
        weights[:, self.place] = 1
        return torch.einsum("pq,bqd->bpd", weights, self.move(x))


class Tokens(nn.Module):
    """One-hot tokens, then parts that add to them; ``bias`` is that of the logits."""

    def __init__(self, parts: Mapping[str, nn.Module], bias: Tensor | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 3 * WORDS)
        for name, part in parts.items():
            self.add_module(name, part)
        self.names = tuple(parts)
        self.head = nn.Linear(3 * WORDS, WORDS)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(WORDS, 3 * WORDS))
            self.head.weight.copy_(torch.eye(3 * WORDS)[2 * WORDS :])
            self.head.bias.copy_(torch.zeros(WORDS) if bias is None else bias)
        self.double().eval()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for name in self.names:
            x = x + self.get_submodule(name)(x)
        return self.head(x)


def table(answer: Callable[[int, int], int]) -> Tensor:
    return torch.tensor([[answer(here, fetched) % WORDS for fetched in range(WORDS)] for here in range(WORDS)])


def added(tokens: Tensor) -> Tensor:
    return (tokens[:, -1] + tokens[:, 1]) % WORDS


def rows(seed: int, fixed: Callable[[Tensor], Tensor] = lambda tokens: tokens, n: int = PAIRS) -> Tensor:
    return fixed(torch.randint(WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(seed)))


def task(answer: Answer, fixed: Callable[[Tensor], Tensor] = lambda tokens: tokens, groups: int = 12) -> Task:
    """Rows against other rows with another answer; ``fixed`` is done to every row."""
    sides = []
    for split, seed in (("train", 0), ("held out", 1)):
        clean, other = rows(seed, fixed), rows(seed + 10, fixed, 20 * PAIRS)
        twins = torch.stack(
            [next(row for row in other if int(answer(row[None])) != int(answer(one[None]))) for one in clean]
        )
        names = [f"{split} {at % groups}" for at in range(PAIRS)]
        sides.append(Pairs.of(clean, twins, answer(clean), answer(twins), groups=names))
    return Task("tokens", *sides)


@cache
def adds() -> vm.wiring.Wiring:
    return wired({"fetch": Fetch(1), "add": Table(table(lambda a, b: a + b))})


def wired(parts: Mapping[str, nn.Module], bias: Tensor | None = None) -> vm.wiring.Wiring:
    return vm.wire(Tokens(parts, bias), rows(5))


def case(wiring: vm.wiring.Wiring, asked: Task, kept: Any, fill: str = "resample") -> Case:
    circuit = kept if isinstance(kept, Circuit) else Circuit.from_edges(wiring, kept)
    return Case(circuit, ask(wiring, asked, fill))


def found(wiring: vm.wiring.Wiring, asked: Task, kept: Any, fill: str = "resample") -> Finding:
    return trivial.not_trivial(case(wiring, asked, kept, fill))


def told(finding: Finding, verdict: str, *parts: str) -> None:
    assert finding.verdict == verdict, finding.says
    for part in parts:
        assert part in finding.says, finding.says


def rule(finding: Finding, name: str) -> dict[str, Any]:
    return next(row for row in finding.details if row["name"].startswith(name) and row["what"] != "output")


def sides(*inputs: Sequence[Any]) -> list[Pairs]:
    """Train and held-out pairs of (clean, corrupted), without answers, each pair a group of its own."""
    return [
        Pairs.of(clean, corrupted, groups=[f"{split} {n}" for n in range(PAIRS)])
        for split, (clean, corrupted) in zip(("train", "held out"), inputs, strict=True)
    ]


# What is planted for every check


@pytest.mark.parametrize(("name", "verdict"), claims("not-trivial"))
def test_planted(name: str, verdict: str) -> None:
    told(trivial.not_trivial(PLANTED[name]().case()), verdict)


def planted(name: str) -> Planted:
    return PLANTED[name]()


def test_class_labels_that_follow_the_input() -> None:
    finding = trivial.not_trivial(planted("sound").case())
    told(finding, "holds", "it puts out class 0 on 50%, class 1 on 50% of 80 inputs (the full model on 50%, 50%)")
    told(finding, "holds", "right on 100%", "'always the same' comes closest")
    assert finding.picture is not None
    assert (finding.picture.kind, finding.picture.data["values"]) == ("heat", [[1, 0], [0, 1]])
    assert finding.picture.data["x"] == finding.picture.data["y"] == ["class 0", "class 1"]
    signal = rule(finding, "the input[0]")
    assert signal["what"] == "bits"
    assert signal["circuit"] > 0.9 > 0.2 > rule(finding, "the input[2]")["circuit"]


def test_class_labels_that_never_change() -> None:
    finding = trivial.not_trivial(planted("trivial").case())
    told(finding, "fails", "whatever the input, it puts out class 0: on 100% of 80 inputs", "2 different answers")
    told(finding, "fails", "so it is with the full model (100%): the task itself is trivial")
    assert (finding.figure, finding.low, finding.high) == (1, 1, 1)
    assert finding.picture is not None
    assert finding.picture.data["values"] == [[1], [1]] or finding.picture.data["values"] == [[1, 0], [1, 0]]


# Tokens


def test_a_sum_is_explained_by_no_rule() -> None:
    finding = found(adds(), task(added), SUM)
    told(finding, "holds", "it answers token", "of 120 inputs", "right on 100%", "without structure")
    assert finding.figure is not None
    assert finding.figure < 0.6
    assert rule(finding, "a copy of")["circuit"] < 0.5


def test_always_one_answer_where_the_full_model_has_many() -> None:
    """With what adds cut, and zero in its place, only the bias of the logits is left."""
    bias = torch.tensor([0.0, 0, 0, 0.5, 0, 0])
    wiring = wired({"fetch": Fetch(1), "add": Table(table(lambda a, b: a + b)), "hum": Fetch(0, 2, 0.01)}, bias)
    finding = found(wiring, task(added), ("input -> hum", "hum -> logits"), "zero")
    told(finding, "fails", "whatever the input, it answers token 3: on 100% of 120 inputs, which ask for 6 different")
    told(finding, "fails", "of the full model that is so on")
    named = Task("named", *(task(added).train, task(added).held_out), how={"names": {"3": " Lily"}})
    told(found(wiring, named, ("input -> hum", "hum -> logits"), "zero"), "fails", "it answers ' Lily': on 100%")


def test_a_copy_of_a_token_though_the_full_model_adds() -> None:
    wiring = wired({"fetch": Fetch(1), "add": Table(table(lambda a, b: a + b)), "copy": Fetch(1, 2)})
    finding = found(wiring, task(added), ("input -> copy", "copy -> logits"), "zero")
    told(finding, "fails", "is a copy of the token in place 2, on 100%", "of the full model that is so on")
    assert rule(finding, "a copy of")["full model"] < 0.5


def test_a_leaked_answer_makes_the_task_trivial() -> None:
    """The answer stands in every input, one before the last token, and the model reads it there."""

    def leaked(tokens: Tensor) -> Tensor:
        tokens = tokens.clone()
        tokens[:, -2] = added(tokens)
        return tokens

    wiring = wired({"copy": Fetch(3, 2), "fetch": Fetch(1)})
    finding = found(wiring, task(added, leaked), ("input -> copy", "copy -> logits"))
    told(finding, "fails", "is a copy of the token in place 4, on 100%", "the full model (100%): the task itself")


def test_the_last_token_alone() -> None:
    wiring = wired({"fetch": Fetch(1), "add": Table(table(lambda a, b: 5 * a + 2))})
    finding = found(wiring, task(lambda tokens: (5 * tokens[:, -1] + 2) % WORDS), SUM)
    told(finding, "fails", "the last token alone says what it answers, on 100% of 120 inputs")


def test_what_cut_edges_carry_decides() -> None:
    """The kept way does as the model does, a hundredth as strongly: the corrupted run's answer comes out."""
    wiring = wired(
        {"fetch": Fetch(1), "add": Table(table(lambda a, b: a + b)), "hum": Table(table(lambda a, b: a + b), 0.01)}
    )
    kept = ("input -> fetch", "input -> hum", "fetch -> hum", "hum -> logits")
    told(
        found(wiring, task(added), kept),
        "fails",
        "on 100% of 120 inputs it answers what comes out with nothing kept: what cut edges carry decides",
    )


@pytest.mark.parametrize("fill", ["zero", "resample"])
def test_an_empty_circuit_and_a_full_one(fill: str) -> None:
    nothing = Circuit.from_edges(adds(), [])
    told(found(adds(), task(added), nothing, fill), "fails", "nothing of the input reaches the output: with every edge")
    told(found(adds(), task(added), ~nothing, fill), "holds")


def test_labels_that_the_full_model_does_not_give() -> None:
    """Each answer is another row's."""
    asked = task(added)
    shift = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(3))

    def dealt(pairs: Pairs) -> Pairs:
        return Pairs.of(pairs.clean, pairs.corrupted, pairs.answers[shift], pairs.wrong[shift], groups=pairs.groups)

    wrong = Task("mislabelled", dealt(asked.train), dealt(asked.held_out))
    told(found(adds(), wrong, SUM), "fails", "the full model itself is right on", "labelled as they should be?")
    few = Task("mislabelled", wrong.train, wrong.held_out.batch(range(6)))
    assert found(adds(), few, SUM).verdict != "holds"


def test_half_of_the_labels_are_exchanged() -> None:
    """At first choice the model is right more often than any one answer would be, and still no better than chance."""
    asked = task(added, groups=30)
    turned = torch.arange(PAIRS)[:, None] % 2 == 0

    def exchanged(pairs: Pairs) -> Pairs:
        answers, wrong = pairs.answers.where(turned, pairs.wrong), pairs.wrong.where(turned, pairs.answers)
        return replace(pairs, answers=answers, wrong=wrong)

    wrong = Task("half mislabelled", exchanged(asked.train), exchanged(asked.held_out))
    told(
        found(adds(), wrong, SUM), "fails", "right on 50%", "on 50% (", "half is chance", "labelled as they should be?"
    )


def test_a_circuit_that_does_what_the_full_model_does_not() -> None:
    """The full model's own answers are the wrong ones of the task, for one part outbids the other; the circuit's are
    the right ones: that is no matter of labels."""
    parts = {
        "fetch": Fetch(1),
        "add": Table(table(lambda a, b: a + b)),
        "outbid": Table(table(lambda a, b: a + b + 1), 2.0),
    }
    wiring = wired(parts)
    asked = task(added)

    def next_is_wrong(pairs: Pairs) -> Pairs:
        return replace(pairs, wrong=(pairs.answers + 1) % WORDS)

    outbid = Task("outbid", next_is_wrong(asked.train), next_is_wrong(asked.held_out))
    told(found(wiring, outbid, SUM, "zero"), "cannot tell", "the full model itself is right on 0%")


def test_inputs_that_all_ask_for_one_answer() -> None:
    def to_four(tokens: Tensor) -> Tensor:
        tokens = tokens.clone()
        tokens[:, 1] = (4 - tokens[:, -1]) % WORDS
        return tokens

    both = sides(*((to_four(rows(seed)), rows(seed + 10)) for seed in (0, 1)))
    fours = [replace(pairs, answers=torch.full((PAIRS, 1), 4)) for pairs in both]
    asked = Task("fours", *fours, metric=vm.task.metric.LOG_PROBABILITY)
    told(found(adds(), asked, SUM), "cannot tell", "every held-out input asks for token 4")


def test_few_groups_cannot_tell() -> None:
    told(found(adds(), task(added, groups=4), SUM), "cannot tell", "4 groups of pairs are too few to tell")
    told(found(adds(), task(added, groups=5), SUM), "holds")


def test_a_constant_first_choice_that_follows_its_own_pairs() -> None:
    """Token 3 is always first, and between a pair's own two answers the right one is higher."""
    bias = torch.tensor([0.0, 0, 0, 50, 0, 0])
    wiring = wired({"fetch": Fetch(1), "add": Table(table(lambda a, b: a + b))}, bias)
    told(
        found(wiring, task(added), SUM), "cannot tell", "it answers token 3", "between a pair's own answers it is right"
    )


def test_the_share_is_of_groups() -> None:
    """Intervals bootstrap over groups: with fewer of them they are wider."""
    wide, narrow = (found(adds(), task(added, groups=groups), SUM) for groups in (6, 60))
    for finding in (wide, narrow):
        assert finding.low is not None
        assert finding.low < finding.figure < finding.high
    assert wide.figure != 1
    assert wide.counted["groups"] == 6


# Outputs of other kinds


class Regression(nn.Module):
    """A number: the sum of the inputs, through two parts; ``gain`` of what is put out."""

    def __init__(self, gain: float, shape: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.first, self.head, self.gain, self.shape = nn.Linear(4, 4), nn.Linear(4, 1), gain, shape

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return (self.gain * self.head(x)).view(len(x), *self.shape)


def of_numbers(model: nn.Module) -> Finding:
    torch.manual_seed(4)
    model = model.double().eval()
    inputs = torch.randn(4, PAIRS, 4, dtype=torch.float64)
    value = metric_of("value", lambda outputs, pairs: outputs.flatten(1).sum(1))
    asked = Task("numbers", *sides(inputs[:2], inputs[2:]), value)
    wiring = vm.wire(model, asked.example)
    return found(wiring, asked, ~Circuit.from_edges(wiring, []), "zero")


def test_numbers_are_sorted_into_ranges() -> None:
    finding = of_numbers(Regression(1.0))
    told(finding, "holds", "it puts out", " to ", "of 120 inputs")
    assert len([row for row in finding.details if row["what"] == "output"]) == 8
    assert finding.picture is not None
    assert finding.picture.kind == "bars"


def test_outputs_that_are_no_choice() -> None:
    finding = of_numbers(Regression(1.0, (1, 1, 1)))
    told(finding, "cannot tell", "outputs of shape [1, 1, 1, 1] for one input are no choice among classes")
    assert finding.figure is None


def test_an_output_at_each_position() -> None:
    """Without answers: what comes out at each position, of five; it is the token there, or the sum."""
    value = metric_of("first", lambda outputs, pairs: outputs[:, -1, 0])
    asked = Task("places", *sides((rows(0), rows(10)), (rows(2), rows(12))), value)
    told(found(adds(), asked, SUM), "holds", "it puts out token")
    here = wired({"fetch": Fetch(1), "add": Table(table(lambda a, b: 5 * a + 1))})
    told(found(here, asked, SUM), "fails", "the token there alone says what it puts out")


# Boards


class Board(nn.Module):
    """A logit for each point: ``mark`` where plane 0 marks it, ``where`` [row, column] times plane 1; and a pass."""

    def __init__(self, mark: float, where: Tensor) -> None:
        super().__init__()
        points = where.numel()
        self.stem, self.block = nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 3, 1)
        self.policy = nn.Linear(3 * points, points)
        with torch.no_grad():
            for weight in self.parameters():
                weight.zero_()
            self.stem.weight[[0, 1], [0, 1]] = 1
            self.block.weight[2, 0] = mark
            self.policy.weight[:, points : 2 * points] = where.flatten().diag()
            self.policy.weight[:, 2 * points :] = torch.eye(points)
        self.double().eval()

    def forward(self, planes: Tensor, mask: Tensor) -> Tensor:
        x = self.stem(planes)
        x = x + self.block(x)
        points = self.policy(x.flatten(1)).masked_fill(~mask.flatten(1), -50.0)
        return torch.cat([points, points.new_full((len(points), 1), -1.0)], 1)


def corners(side: int, gain: float) -> Tensor:
    where = torch.zeros(side, side)
    where[[0, 0, -1, -1], [0, -1, 0, -1]] = gain
    return where


def boards(model: Board, side: int, on: int) -> Finding:
    """Boards of ``on`` x ``on`` in the corner of a tensor; plane 0 marks a point, plane 1 is noise."""
    torch.manual_seed(1)
    mask = torch.zeros(PAIRS, side, side, dtype=torch.bool)
    mask[:, :on, :on] = True

    def planes() -> Tensor:
        made = torch.rand(PAIRS, 2, side, side, dtype=torch.float64) * mask[:, None]
        inner = torch.randint(on, (2, PAIRS))
        made[:, 0] = 0
        made[torch.arange(PAIRS), 0, inner[0], inner[1]] = 1
        return made

    inputs = [{"planes": planes(), "mask": mask} for _ in range(4)]
    best = metric_of("first point", lambda outputs, pairs: outputs[:, 0])
    asked = Task("board", *sides(inputs[:2], inputs[2:]), best)
    wiring = vm.wire(model, asked.example)
    return found(wiring, asked, ~Circuit.from_edges(wiring, []), "resample")


def test_moves_that_follow_the_board() -> None:
    finding = boards(Board(3.0, torch.zeros(6, 6)), 6, 5)
    told(finding, "holds", "it plays row ", "of 120 inputs")
    assert finding.picture is not None
    picture = finding.picture
    assert (picture.kind, picture.data["x"]) == ("heat", [*"12345", "", *"12345"])
    assert picture.data["y"] == [*"12345"]
    assert picture.title == "Where the circuit plays, and on the right the full model, on 120 boards 5 x 5"
    for side in (slice(0, 5), slice(6, 11)):
        shares = torch.tensor([row[side] for row in picture.data["values"]])
        assert float(shares.sum()) == pytest.approx(1, abs=0.005)  # each is rounded to four digits
    assert {row[5] for row in picture.data["values"]} == {None}


def test_moves_that_are_always_in_a_corner() -> None:
    """Which corner depends on the input, so that no single move is frequent."""
    finding = boards(Board(0.01, corners(5, 5.0)), 5, 5)
    told(finding, "fails", "100% of its 120 moves are in a corner, 16.0% of the points; the most frequent is row")
    told(finding, "fails", "so it is with the full model (100%): the model itself is trivial on these inputs")
    assert finding.figure == 1
    assert rule(finding, "always the same")["circuit"] < 0.5
    assert finding.picture is not None
    values = torch.tensor([row[:5] for row in finding.picture.data["values"]])
    assert float(values[[0, 0, 4, 4], [0, 4, 0, 4]].sum()) == pytest.approx(1, abs=0.001)
    assert float(values.count_nonzero()) == 4


def test_regions_of_boards_of_any_size() -> None:
    there = torch.zeros(2, 9, 9, dtype=torch.bool)
    there[0, :5, :5] = True
    there[1, :9, :9] = True
    corner, near, edge = regions(there)
    assert corner.has[0].view(9, 9).nonzero().tolist() == [[0, 0], [0, 4], [4, 0], [4, 4]]
    assert [int(region.has[1].sum()) for region in (corner, near, edge)] == [4, 16, 32]
    assert corner.share == pytest.approx(8 / 106)
    assert corner.holds(torch.tensor([4, 4])).tolist() == [True, False]
    assert corner.holds(torch.tensor([81, 81])).tolist() == [False, False]  # the pass


def test_a_region_of_most_of_the_board_says_nothing() -> None:
    assert [region.name for region in regions(torch.ones(1, 4, 4, dtype=torch.bool))] == ["in a corner"]


# Details


def test_the_other_way_round_is_looked_at_once() -> None:
    """Where corrupted inputs are clean ones of other pairs, there is nothing to add."""
    asked = task(added)
    pairs = asked.held_out
    both = Pairs.of(
        torch.cat([pairs.clean, pairs.corrupted]),
        torch.cat([pairs.corrupted, pairs.clean]),
        torch.cat([pairs.answers, pairs.wrong]),
        torch.cat([pairs.wrong, pairs.answers]),
        groups=pairs.groups * 2,
    )
    whole = found(adds(), Task("both", asked.train, both), SUM)
    assert whole.counted["inputs"] == 2 * PAIRS
    assert whole.figure == pytest.approx(found(adds(), asked, SUM).figure, abs=0.1)


def test_readout_is_read_off_the_model() -> None:
    asked = case(adds(), task(added), SUM)
    readout = readout_of(asked)
    assert not isinstance(readout, str)
    assert (readout.kind, readout.options) == ("answers", tuple(range(WORDS)))
    seen = put_out(asked, readout, [torch.ones_like(asked.keep)])
    assert torch.equal(seen.label[0][:PAIRS], added(asked.task.held_out.clean))
    assert torch.equal(seen.right(seen.label[0]), torch.ones(2 * PAIRS, dtype=torch.float64))


def test_bits_of_what_is_known() -> None:
    """Four equally frequent values: two bits to themselves, one to their parity, none to noise."""
    drawn = torch.arange(4).repeat(64)
    noise = torch.randint(4, (256,))
    random = case(adds(), task(added), SUM).random("bits")
    told_bits = bits({"same": drawn, "noise": noise}, drawn, random)
    # less what chance gives: (4 - 1)² / (2 ln 2 x 256), about .025
    assert told_bits["same"] == pytest.approx(2, abs=0.05)
    assert told_bits["noise"] < 0.03
    assert bits({"same": drawn}, drawn % 2, random)["same"] == pytest.approx(1, abs=0.05)


def test_the_same_seed_says_the_same() -> None:
    first, second = (found(adds(), task(added), SUM) for _ in range(2))
    assert (first.details, first.says) == (second.details, second.says)
