"""KataGo's network (version 8 of its model format, the "g170" nets): a residual network that plays Go.

    x = conv(planes) + linear(features)
    x = x + block(x)                                   for each block: norm, ReLU, conv, norm, ReLU, conv
    policy, value, score, ownership = heads(ReLU(norm(x)))

A global-pooling block tells its convolution what the whole board looks like. Every activation is zero off the board, so
that boards smaller than the tensor are played as if they were alone. It is ordinary torch, and is wired by tracing.
Sources: Wu 2019 (1902.10565), and KataGo's own C++ and Python for the format and the constants.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from voltmeter.errors import AddressError

PLANES, FEATURES = 22, 19  # of version 7 of the inputs, which version 8 of the nets takes
OFF_BOARD_LOGIT = -50.0  # KataGo says -5000: as impossible as e^-50, and float32 would keep three digits of the others

Planes = Float[Tensor, "batch planes row column"]
Features = Float[Tensor, "batch channel row column"]
Mask = Float[Tensor, "batch 1 row column"]  # 1 on the board, 0 off it


class Evaluation(NamedTuple):
    """What the network says of a position, for the side to move."""

    policy: Float[Tensor, "batch move"]  # logits: row * columns + column; the last is the pass
    value: Float[Tensor, "batch 3"]  # logits of win, loss, no result
    score: Float[Tensor, "batch 4"]  # raw: mean, deviation before softplus, lead, variance of the time left
    ownership: Float[Tensor, "batch row column"]  # -1 to 1; before masking


class KataGo(nn.Module):
    """``KataGo(stem, blocks, tip, policy, value)``; ``voltmeter.wiring.models.katago_file`` makes one from a file."""

    def __init__(
        self, stem: "Stem", blocks: list[nn.Module], tip: "NormAct", policy: "PolicyHead", value: "ValueHead"
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.tip = stem, nn.ModuleList(blocks), tip
        self.policy, self.value = policy, value

    def forward(
        self,
        planes: Planes,
        features: Float[Tensor, "batch features"],
        mask: Bool[Tensor, "batch row column"],
    ) -> Evaluation:
        """``planes`` [batch, 22, row, column] and global ``features`` [batch, 19] as KataGo makes them; ``mask`` is
        true on the board, as plane 0 is 1 there. It is an input of its own because it fills no edge: what is off the
        board in one position cannot be on it in the run that edges are filled from.

        Raises AddressError where they are of other sizes.
        """
        if planes.shape[1] != PLANES or features.shape[1] != FEATURES:
            raise AddressError(
                f"planes {list(planes.shape)} and features {list(features.shape)} were given",
                mend=f"give planes [batch, {PLANES}, row, column] and features [batch, {FEATURES}]",
            )
        on_board = mask[:, None].to(planes.dtype)
        x = self.stem(planes, features)
        for block in self.blocks:
            x = x + block(x, on_board)
        x = self.tip(x, on_board)
        return Evaluation(self.policy(x, on_board), *self.value(x, on_board))


class Stem(nn.Module):
    """The first convolution, and what the global features add to every point."""

    def __init__(self, conv: nn.Conv2d, features: nn.Linear) -> None:
        super().__init__()
        self.conv, self.features = conv, features

    def forward(self, planes: Planes, features: Float[Tensor, "batch features"]) -> Features:
        spread = everywhere(self.features(features)).expand(-1, -1, *planes.shape[2:])
        x: Tensor = self.conv(planes) + spread
        return x


class NormAct(nn.Module):
    """Batch norm as trained, ReLU, zero off the board."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Features, mask: Mask) -> Features:
        return torch.relu(self.norm(x)) * mask


class OrdinaryBlock(nn.Module):
    """Two convolutions."""

    def __init__(self, first: NormAct, conv1: nn.Conv2d, second: NormAct, conv2: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.conv1, self.second, self.conv2 = first, conv1, second, conv2

    def forward(self, x: Features, mask: Mask) -> Features:
        hidden: Tensor = self.conv1(self.first(x, mask))
        out: Tensor = self.conv2(self.second(hidden, mask))
        return out


class PoolingBlock(nn.Module):
    """Two convolutions; beside the first another, pooled over the board, which adds to every point of the first."""

    def __init__(self, first: NormAct, conv1: nn.Conv2d, pool: "PooledBias", second: NormAct, conv2: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.conv1, self.pool, self.second, self.conv2 = first, conv1, pool, second, conv2

    def forward(self, x: Features, mask: Mask) -> Features:
        x = self.first(x, mask)
        bias, _ = self.pool(x, mask)
        out: Tensor = self.conv2(self.second(self.conv1(x) + everywhere(bias), mask))
        return out


class PooledBias(nn.Module):
    """A convolution pooled over the board, and the bias that is computed from it."""

    def __init__(self, conv: nn.Conv2d, act: NormAct, to_bias: nn.Linear) -> None:
        super().__init__()
        self.conv, self.act, self.to_bias = conv, act, to_bias

    def forward(self, x: Features, mask: Mask) -> tuple[Float[Tensor, "batch bias"], Float[Tensor, "batch pooled"]]:
        pooled = pool(self.act(self.conv(x), mask), mask)
        return self.to_bias(pooled), pooled


class PolicyHead(nn.Module):
    """Where to play: a logit for each point, and one for the pass."""

    def __init__(self, conv1: nn.Conv2d, pool: PooledBias, act: NormAct, conv2: nn.Conv2d, to_pass: nn.Linear) -> None:
        super().__init__()
        self.conv1, self.pool, self.act, self.conv2, self.to_pass = conv1, pool, act, conv2, to_pass

    def forward(self, x: Features, mask: Mask) -> Float[Tensor, "batch move"]:
        bias, pooled = self.pool(x, mask)
        points = self.conv2(self.act(self.conv1(x) + everywhere(bias), mask))
        points = points.masked_fill(mask == 0, OFF_BOARD_LOGIT)
        return torch.cat([points.flatten(1), self.to_pass(pooled)], dim=1)


class ValueHead(nn.Module):
    """Who wins, by how much, and whose each point will be."""

    def __init__(
        self,
        conv: nn.Conv2d,
        act: NormAct,
        hidden: nn.Linear,
        to_value: nn.Linear,
        to_score: nn.Linear,
        to_owner: nn.Conv2d,
    ) -> None:
        super().__init__()
        self.conv, self.act, self.hidden = conv, act, hidden
        self.to_value, self.to_score, self.to_owner = to_value, to_score, to_owner

    def forward(
        self, x: Features, mask: Mask
    ) -> tuple[Float[Tensor, "batch 3"], Float[Tensor, "batch 4"], Float[Tensor, "batch row column"]]:
        x = self.act(self.conv(x), mask)
        hidden = torch.relu(self.hidden(pool_for_value(x, mask)))
        return self.to_value(hidden), self.to_score(hidden), torch.tanh(self.to_owner(x))[:, 0]


def pool(x: Features, mask: Mask) -> Float[Tensor, "batch pooled"]:
    """Mean, mean times the size of the board, and maximum, of every channel. ``x`` is 0 off the board, on it >= 0."""
    mean, size = _mean(x, mask), _size(mask)
    return torch.cat([mean, mean * (size * 0.1), x.amax((2, 3))], dim=1)


def pool_for_value(x: Features, mask: Mask) -> Float[Tensor, "batch pooled"]:
    """Mean, mean times the size of the board, and mean times its square, of every channel."""
    mean, size = _mean(x, mask), _size(mask)
    return torch.cat([mean, mean * (size * 0.1), mean * (size.square() * 0.01 - 0.1)], dim=1)


def _mean(x: Features, mask: Mask) -> Float[Tensor, "batch channel"]:
    return x.sum((2, 3)) / mask.sum((2, 3))


def _size(mask: Mask) -> Float[Tensor, "batch 1"]:
    """The side of a square board of as many points, less 14."""
    return mask.sum((2, 3)).sqrt() - 14


def everywhere(bias: Float[Tensor, "batch channel"]) -> Float[Tensor, "batch channel 1 1"]:
    """The same at every point."""
    return bias[:, :, None, None]
