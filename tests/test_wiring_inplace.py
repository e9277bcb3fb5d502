"""Models that overwrite tensors: run as they are meant, or refused at the line that could not be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from laws import EXACT, EXACT_GRADIENT, assert_close
from specimen import chain_counts, enliven, seeded
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_parts import HIDDEN, WIDTH, Adding, Trunk

import voltmeter
from voltmeter import fill, run
from voltmeter.errors import WiringError
from voltmeter.wiring import Wiring

Add = Callable[[Tensor, nn.Module], Tensor]
BLOCKS = 2


class Gated(nn.Module):
    """Two calls read what is given."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


def built(add: Add) -> nn.Module:
    return enliven(Trunk([Adding(add, Gated()) for _ in range(BLOCKS)])).double()


def inputs(seed: int) -> Tensor:
    return seeded(seed, 2, 3, WIDTH).double()


# Sums that are changed after


def scaled_by_name(x: Tensor, f: nn.Module) -> Tensor:
    x = x + f(x)
    x.mul_(0.7)
    return x


def augmented(x: Tensor, f: nn.Module) -> Tensor:
    x = x + f(x)
    x *= 0.5
    x /= 0.9
    return x


def both_scaled(x: Tensor, f: nn.Module) -> Tensor:
    out = f(x)
    out.mul_(0.5)
    x += out
    return x.mul_(0.9)


def tanh_by_name(x: Tensor, f: nn.Module) -> Tensor:
    x = x + f(x)
    x.tanh_()
    return x


def masked(x: Tensor, f: nn.Module) -> Tensor:
    return (x + f(x)).masked_fill_(torch.arange(WIDTH) < 3, 0.0)


CHANGED_AFTER: dict[str, Add] = {
    "mul": lambda x, f: (x + f(x)).mul_(0.7),
    "div": lambda x, f: (x + f(x)).div_(1.5),
    "add, alpha": lambda x, f: x.add_(f(x), alpha=0.5).mul_(0.9),
    "dropout": lambda x, f: F.dropout(x + f(x), 0.1, training=False, inplace=True),
    "by name": scaled_by_name,
    "augmented": augmented,
    "writer and stream": both_scaled,
}
ACTIVATED: dict[str, Add] = {
    "relu": lambda x, f: (x + f(x)).relu_(),
    "functional relu": lambda x, f: F.relu(x + f(x), inplace=True),
    "clamp": lambda x, f: (x + f(x)).clamp_(-1, 1),
    "tanh by name": tanh_by_name,
    "masked": masked,
}

# Copies that are changed before they are read


def centred(x: Tensor, f: nn.Module) -> Tensor:
    y = x.clone()
    y -= y.mean(-1, keepdim=True)
    y /= y.std(-1, keepdim=True) + 0.1
    return x + f(y)


def normed(x: Tensor, f: nn.Module) -> Tensor:
    return x + f(F.layer_norm(x, (WIDTH,)).mul_(0.5).add_(1))


CHANGED_BEFORE: dict[str, Add] = {
    "scaled copy": lambda x, f: x + f(x.clone().mul_(2)),
    "centred copy": centred,
    "norm": normed,
}

# What cannot be read


def slice_assigned(x: Tensor, f: nn.Module) -> Tensor:
    x = x + f(x)
    x[:] = x * 0.7
    return x


def sum_assigned(x: Tensor, f: nn.Module) -> Tensor:
    x = x.clone()
    x[:] = x + f(x)
    return x


def position_cleared(x: Tensor, f: nn.Module) -> Tensor:
    x = x + f(x)
    x[:, 0] = 0
    return x


def slice_scaled(x: Tensor, f: nn.Module) -> Tensor:
    x = x + f(x)
    x[..., :3] *= 2
    return x


def shifted(x: Tensor, f: nn.Module) -> Tensor:
    x = x + f(x)
    x[:, 1:] += x[:, :-1].clone()
    return x


def through_a_view(x: Tensor, f: nn.Module) -> Tensor:
    x = x + f(x)
    x.view(-1).mul_(0.5)
    return x


def constant_used_up(x: Tensor, f: nn.Module) -> Tensor:
    """The call that scales by a constant overwrites the constant: it cannot be made again."""
    return x + f(torch.full((WIDTH,), 0.5, dtype=x.dtype).expand_as(x).clone().mul_(x))


UNREADABLE: dict[str, Add] = {
    add.__name__: add
    for add in (slice_assigned, sum_assigned, position_cleared, slice_scaled, shifted, through_a_view, constant_used_up)
}


def each(adds: dict[str, Add]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("add", list(adds.values()), ids=list(adds))


def assert_laws(wiring: Wiring) -> None:
    """Laws 1 and 2, and engine and reference agree, gradients included."""
    clean, corrupted, count = inputs(1), inputs(2), len(wiring.edges)
    with torch.no_grad():
        expected, other = wiring.model(clean.clone()), wiring.model(corrupted.clone())
    given = clean.clone()
    assert_close(run(wiring, clean, torch.ones(count), fill.zero()), expected, EXACT)
    assert_close(run(wiring, clean, torch.zeros(count), fill.resample(), corrupted), other, EXACT)
    assert torch.equal(clean, given)
    found = []
    for reference in (False, True):
        keep = seeded(4, count).double().requires_grad_()
        output = run(wiring, clean, keep, fill.resample(), corrupted, reference=reference)
        found.append((output, torch.autograd.grad(output.sin().sum(), keep)[0]))
    assert_close(found[0][0], found[1][0], EXACT)
    assert_close(found[0][1], found[1][1], EXACT_GRADIENT)


@each(CHANGED_AFTER | CHANGED_BEFORE)
def test_a_chain_of_blocks_whatever_is_overwritten(add: Add) -> None:
    wiring = voltmeter.wire(built(add), inputs(0))
    assert (len(wiring.writers), len(wiring.readers), len(wiring.edges)) == chain_counts(BLOCKS)
    assert_laws(wiring)


@each(ACTIVATED)
def test_sums_that_are_activated_in_place(add: Add) -> None:
    wiring = voltmeter.wire(built(add), inputs(0))
    assert len(wiring.streams) >= BLOCKS
    assert_laws(wiring)


@each(UNREADABLE)
def test_refused_by_name(add: Add) -> None:
    with pytest.raises(WiringError, match=r"blocks\.[01]") as caught:
        voltmeter.wire(built(add), inputs(0))
    assert caught.value.mend
