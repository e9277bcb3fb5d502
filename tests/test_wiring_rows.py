"""Models that mix the rows of their batch: one circuit on one batch is right, circuits stacked along it are not."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest
import torch
from models import Residual, wired
from specimen import enliven, seeded
from torch import Tensor, nn
from zoo_parts import HEADS, WIDTH, Mlp

import voltmeter
from voltmeter import fill, run
from voltmeter.errors import KeepError
from voltmeter.run.heads import changes_of_heads
from voltmeter.run.points import plain_point
from voltmeter.run.prefix import Prefix

Of = Callable[[Tensor], Tensor]
EXACT = 1e-12  # float64; the same few dozen products, in another order
KINDS = {"circuit edge": 2, "example edge": 4, "example position edge": 4}


class Trunk(nn.Module):
    """Two residual MLPs; ``before`` is done to what the second reads, ``after`` to the answer."""

    def __init__(self, before: Of = torch.clone, after: Of = torch.clone) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(WIDTH, WIDTH), Mlp(), Mlp()
        self.unembed = nn.Linear(WIDTH, HEADS)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> object:
        x = self.embed(x)
        x = x + self.first(x)
        x = x + self.second(self.before(x))
        return self.after(self.unembed(x))


def centred(y: Tensor) -> Tensor:
    return y - y.mean(0)


def by_size(y: Tensor) -> Tensor:
    return y / y.shape[0]


def against_each_other(y: Tensor) -> Tensor:
    """A contrastive head: [batch, batch]."""
    return y.mean(1) @ y.mean(1).T


def one_by_one(y: Tensor) -> tuple[Tensor, ...]:
    return y.unbind(0)


MIXED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "centred": (lambda: Trunk(after=centred), "otherwise in its batch than alone, first in the model itself"),
    "centred-inside": (lambda: Trunk(before=centred), "otherwise in its batch than alone, first in the model itself"),
    "batch-norm": (
        lambda: Trunk(before=nn.BatchNorm1d(5, track_running_stats=False)),
        "otherwise in its batch than alone, first in the model itself",
    ),
    "by-size": (lambda: Trunk(after=by_size), "otherwise in its batch than alone, first in the model itself"),
    "contrastive": (lambda: Trunk(after=against_each_other), "otherwise in its batch than alone"),
    "one-by-one": (lambda: Trunk(after=one_by_one), "it returns 3 tensors for 3 rows, and 1 for one"),
}


def build(make: Callable[[], nn.Module]) -> nn.Module:
    return enliven(make()).double()


@functools.cache
def mixed(name: str) -> voltmeter.Wiring:
    return voltmeter.wire(build(MIXED[name][0]), seeded(0, 3, 5, WIDTH).double())


def told(name: str) -> str:
    return (
        "this model does not compute each row of a batch for itself, so no keep can differ from one to another\n"
        f"  {'' if name == 'one-by-one' else 'a row comes out '}{MIXED[name][1]}"
    )


def keep_of(wiring: voltmeter.Wiring, axes: str) -> Tensor:
    sizes = [KINDS[axes], *([5] if "position" in axes else [])]
    return seeded(2, *sizes, len(wiring.edges)).double()


@pytest.mark.parametrize("name", MIXED)
def test_mixed_rows_are_seen_and_stacking_refused(name: str) -> None:
    wiring, inputs = mixed(name), seeded(1, 4, 5, WIDTH).double()
    for axes in KINDS:
        with pytest.raises(KeepError, match=re.escape(told(name))) as caught:
            run(wiring, inputs, keep_of(wiring, axes), fill.zero(), axes=axes)
        assert caught.value.mend == "give one keep for all examples, and run circuits one by one"


@pytest.mark.parametrize("name", MIXED)
def test_one_circuit_on_one_batch_is_right(name: str) -> None:
    """Also where the model does not say how many tensors it returns."""
    wiring, inputs = mixed(name), seeded(1, 3, 5, WIDTH).double()
    keep, other = seeded(2, len(wiring.edges)).double(), seeded(3, 3, 5, WIDTH).double()
    fast, slow = (run(wiring, inputs, keep, fill.resample(), other, reference=reference) for reference in (False, True))
    for ours, theirs in zip(fast, slow, strict=True):
        assert (ours - theirs).abs().max() <= EXACT * theirs.abs().max()


def test_whatever_stacks_rows_asks() -> None:
    wiring, inputs = mixed("centred"), seeded(1, 4, 5, WIDTH).double()
    values = fill.zero().values_for(wiring, inputs)
    with pytest.raises(KeepError, match="each row of a batch"):
        Prefix(wiring, inputs, values, circuits=2)
    with pytest.raises(KeepError, match="each row of a batch"):
        plain_point(wiring, inputs, values, lambda y: y.sum(), rows=4)
    with pytest.raises(KeepError, match="each row of a batch"):
        next(changes_of_heads(wiring, inputs, {}, "q", 8))
    plain_point(wiring, inputs, values, lambda y: y.sum())  # one sum for all rows


def test_dividing_a_wiring_forgets_nothing() -> None:
    wiring = mixed("centred")
    assert wiring.split("first", "units").rows == wiring.rows
    assert wiring.bind(build(Trunk)).rows.mixed == ""


def test_a_model_that_does_not_run_on_one_row() -> None:
    """Nobody knows how it would treat rows of other circuits."""

    class OverTheBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    wiring = voltmeter.wire(build(lambda: Trunk(before=OverTheBatch())), seeded(0, 3, WIDTH).double())
    assert wiring.rows.mixed.startswith("it does not run on one row alone (ValueError: Expected more than 1 value")
    with pytest.raises(KeepError, match="it does not run on one row alone"):
        run(wiring, seeded(1, 2, WIDTH).double(), keep_of(wiring, "circuit edge"), fill.zero(), axes="circuit edge")


@pytest.mark.parametrize(
    "example", [torch.zeros(3, 5, WIDTH), seeded(0, 1, 5, WIDTH).expand(4, -1, -1)], ids=["nothing", "one row, again"]
)
def test_rows_that_are_all_the_same_do_not_hide_it(example: Tensor) -> None:
    """``y - y.mean(0)`` is zero for them, with others beside and alone."""
    wiring = voltmeter.wire(build(MIXED["centred"][0]), example.double())
    assert wiring.rows.mixed


def test_positions_in_front_are_not_rows_whatever_their_number() -> None:
    """Three positions of three rows look like rows, unless a row alone is looked at."""

    class PositionsFirst(Trunk):
        def forward(self, x: Tensor) -> object:
            y = super().forward(x.transpose(0, 1))
            assert isinstance(y, Tensor)
            return y.transpose(0, 1)

    wiring = voltmeter.wire(build(PositionsFirst), seeded(0, 3, 3, WIDTH).double())
    with pytest.raises(KeepError, match="otherwise in its batch than alone"):
        run(wiring, seeded(1, 3, 3, WIDTH).double(), keep_of(wiring, "circuit edge"), fill.zero(), axes="circuit edge")


class Summed(Trunk):
    """Answers by row, and beside them what sums the batch up; ``mean`` has as many entries as there may be rows."""

    def forward(self, x: Tensor) -> object:
        y = super().forward(x)
        assert isinstance(y, Tensor)
        return {"answers": y, "mean": y.mean((0, 1))}


def test_a_sum_over_the_batch_beside_answers_by_row() -> None:
    """It mixes circuits, even where it can be divided by their number; but not the answers of other examples."""
    wiring, inputs = voltmeter.wire(build(Summed), seeded(0, 3, 5, WIDTH).double()), seeded(1, 4, 5, WIDTH).double()
    assert (wiring.rows.mixed, wiring.rows.whole) == ("", {1})
    with pytest.raises(KeepError, match=rf"a tensor of shape \[{HEADS}\], which mixes the 2 circuits"):
        run(wiring, inputs, keep_of(wiring, "circuit edge"), fill.zero(), axes="circuit edge")
    keep = keep_of(wiring, "example edge")
    made = run(wiring, inputs, keep, fill.zero(), axes="example edge")
    assert torch.allclose(made["mean"], made["answers"].mean((0, 1)), rtol=EXACT)
    alone = run(wiring, inputs[:1], keep[0], fill.zero())["answers"]
    assert torch.allclose(made["answers"][:1], alone, rtol=0, atol=EXACT * float(alone.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_mixing(dtype: torch.dtype) -> None:
    """Another batch size takes other kernels; and mixing is seen all the same."""
    inputs = seeded(0, 3, 5, WIDTH).to(dtype)
    assert not voltmeter.wire(enliven(Trunk()).to(dtype), inputs).rows.mixed
    assert voltmeter.wire(enliven(Trunk(after=centred)).to(dtype), inputs).rows.mixed


def test_ordinary_models_keep_their_rows_apart() -> None:
    assert wired(Residual()).rows == voltmeter.wiring.Rows()


def test_an_answer_of_nothing_but_zeros() -> None:
    """Then law 1 is measured against the answer to the other input."""
    model, example = build(Trunk), seeded(0, 2, 5, WIDTH).double()
    assert isinstance(model, Trunk)
    most = model(example).detach().amax()
    model.after = lambda y: torch.relu(y - most)
    assert voltmeter.wire(model, example).verified.law1_error <= EXACT
