"""Reads KataGo's ``.bin.gz``: words in ASCII, and after each ``@BIN@`` the floats of a layer, little-endian.

What a layer says of its sizes is checked against the layers before it, and the file must end where the network does:
a damaged file is an error that names the layer, and never a network.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from voltmeter.errors import LoadError
from voltmeter.files import read_bytes
from voltmeter.wiring.models.given import path_of
from voltmeter.wiring.models.katago import (
    FEATURES,
    PLANES,
    KataGo,
    NormAct,
    OrdinaryBlock,
    PolicyHead,
    PooledBias,
    PoolingBlock,
    Stem,
    ValueHead,
)

VERSION = 8
_MARK = b"@BIN@"
_MOST = 1 << 16  # channels or blocks: a damaged number must not ask for all memory


def load_katago(path: Path | str, dtype: torch.dtype = torch.float32) -> KataGo:
    """The network in a file, in eval mode.

    Raises:
        LoadError: no such file, no gzip, cut short or damaged, of another version, sizes that do not fit each other.
    """
    return _network(_Words(_unpacked(path_of(path)), str(path))).to(dtype).eval()


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(read_bytes(path))
    except (EOFError, OSError, zlib.error) as error:
        raise LoadError(
            f"{path} cannot be unpacked", [f"{type(error).__name__}: {error}"], "give KataGo's .bin.gz, whole"
        ) from error


# --- the network, in the order of the file --------------------------------------------------------------------


def _network(words: "_Words") -> KataGo:
    words.word("the name of the network")
    version = words.number("the version")
    if version != VERSION:
        raise LoadError(
            f"{words.path} is of version {version} of KataGo's model format; version {VERSION} was expected",
            mend="the networks called g170 are of that version",
        )
    words.expect("planes", PLANES)
    words.expect("global features", FEATURES)
    words.word("the name of the trunk")
    n_blocks = words.number("the number of blocks")
    trunk, middle, regular, _, pooled = (words.number("the channels of the trunk") for _ in range(5))
    stem = Stem(words.conv(PLANES, trunk), words.linear(FEATURES, trunk))
    blocks = [_block(words, trunk, middle, regular, pooled) for _ in range(n_blocks)]
    tip = words.act(trunk)
    network = KataGo(stem, blocks, tip, _policy(words, trunk), _value(words, trunk))
    words.end()
    return network


def _block(words: "_Words", trunk: int, middle: int, regular: int, pooled: int) -> nn.Module:
    kind, name = words.word("the kind of a block"), words.word("the name of a block")
    first = words.act(trunk)
    if kind == "ordinary_block":
        return OrdinaryBlock(first, words.conv(trunk, middle), words.act(middle), words.conv(middle, trunk))
    if kind == "gpool_block":
        conv1 = words.conv(trunk, regular)
        pool = _pool(words, trunk, pooled, regular)
        return PoolingBlock(first, conv1, pool, words.act(regular), words.conv(regular, trunk))
    raise LoadError(
        f"{words.path}: {name} is a {kind!r}", mend="ordinary_block and gpool_block are the blocks that can be read"
    )


def _pool(words: "_Words", inputs: int, pooled: int | None, outputs: int) -> PooledBias:
    conv = words.conv(inputs, pooled)
    return PooledBias(conv, words.act(conv.out_channels), words.linear(3 * conv.out_channels, outputs))


def _policy(words: "_Words", trunk: int) -> PolicyHead:
    words.word("the name of the policy head")
    conv1 = words.conv(trunk)
    pool = _pool(words, trunk, None, conv1.out_channels)
    act, conv2 = words.act(conv1.out_channels), words.conv(conv1.out_channels, 1)
    return PolicyHead(conv1, pool, act, conv2, words.linear(3 * pool.conv.out_channels, 1))


def _value(words: "_Words", trunk: int) -> ValueHead:
    words.word("the name of the value head")
    conv = words.conv(trunk)
    act = words.act(conv.out_channels)
    hidden = words.linear(3 * conv.out_channels, bias=True)
    words.word("the name of an activation")
    to_value, to_score = (words.linear(hidden.out_features, outputs, bias=True) for outputs in (3, 4))
    return ValueHead(conv, act, hidden, to_value, to_score, words.conv(conv.out_channels, 1))


# --- words and layers -----------------------------------------------------------------------------------------


class _Words:
    """A place in the file, and how the next word, number or layer is read from it."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data, self.path, self.at = data, path, 0

    def word(self, what: str) -> str:
        rest = self.data[self.at : self.at + 1000].lstrip()
        self.at += min(1000, len(self.data) - self.at) - len(rest)
        found = rest.split(maxsplit=1)[0] if rest else b""
        if not found or not found.isascii():
            raise self._damaged(f"{what} was expected", found)
        self.at += len(found)
        return found.decode("ascii")

    def number(self, what: str) -> int:
        text = self.word(what)
        if not text.isdecimal() or not 0 <= int(text) <= _MOST:
            raise self._damaged(f"{what} was expected, a whole number", text.encode())
        return int(text)

    def positive(self, what: str) -> float:
        text = self.word(what)
        try:
            found = float(text)
        except ValueError:
            found = 0.0
        if not 0 < found < math.inf:
            raise self._damaged(f"{what} was expected, a number above 0", text.encode())
        return found

    def expect(self, what: str, expected: int | None) -> int:
        found = self.number(what)
        if expected is not None and found != expected:
            raise LoadError(f"{self.path}: {found} {what} where {expected} were expected", mend=_AGAIN)
        return found

    def floats(self, name: str, *shape: int) -> Tensor:
        """The floats of a layer, [*shape]."""
        start = self.data.find(_MARK, self.at, self.at + 100)
        if start < 0 or self.data[self.at : start].strip():
            raise self._damaged(f"the floats of {name} were expected", self.data[self.at : self.at + 20])
        self.at = start + len(_MARK) + 4 * int(np.prod(shape))
        found = self.data[start + len(_MARK) : self.at]
        if self.at > len(self.data):
            raise LoadError(
                f"{self.path} ends within {name}",
                [f"{len(found) // 4:,} floats of {list(shape)} are there"],
                _AGAIN,
            )
        values = torch.from_numpy(np.frombuffer(found, dtype="<f4").reshape(shape).astype(np.float32))
        if not bool(values.isfinite().all()):
            raise LoadError(f"{self.path}: {name} holds values that are not finite", mend=_AGAIN)
        return values

    def conv(self, inputs: int, outputs: int | None = None) -> nn.Conv2d:
        name = self.word("the name of a convolution")
        rows, columns = self.number(f"the height of {name}"), self.number(f"the width of {name}")
        self.expect(f"input channels of {name}", inputs)
        outputs = self.expect(f"output channels of {name}", outputs)
        for _ in range(2):
            self.expect(f"(dilation) of {name}", 1)
        if not rows % 2 or not columns % 2:
            raise LoadError(f"{self.path}: {name} is {rows} by {columns}; odd sizes were expected", mend=_AGAIN)
        layer: nn.Conv2d = nn.utils.skip_init(
            nn.Conv2d, inputs, outputs, (rows, columns), padding=(rows // 2, columns // 2), bias=False
        )
        _set(layer.weight, self.floats(name, rows, columns, inputs, outputs).permute(3, 2, 0, 1))
        return layer

    def linear(self, inputs: int, outputs: int | None = None, bias: bool = False) -> nn.Linear:
        name = self.word("the name of a matrix")
        self.expect(f"inputs of {name}", inputs)
        outputs = self.expect(f"outputs of {name}", outputs)
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
        _set(layer.weight, self.floats(name, inputs, outputs).T)
        if bias:
            name = self.word("the name of a bias")
            self.expect(f"entries of {name}", outputs)
            _set(layer.bias, self.floats(name, outputs))
        return layer

    def act(self, channels: int) -> NormAct:
        norm = self._norm(channels)
        self.word("the name of an activation")
        return NormAct(norm)

    def _norm(self, channels: int) -> nn.BatchNorm2d:
        name = self.word("the name of a norm")
        self.expect(f"channels of {name}", channels)
        eps = self.positive(f"the epsilon of {name}")
        scaled, shifted = (self.number(f"whether {name} has a {what}") for what in ("scale", "bias"))
        layer = nn.BatchNorm2d(channels, eps=eps)
        if layer.running_mean is not None and layer.running_var is not None:  # which they are not: for mypy
            _set(layer.running_mean, self.floats(f"{name} (mean)", channels))
            _set(layer.running_var, self.floats(f"{name} (variance)", channels))
            if bool((layer.running_var < 0).any()):
                raise LoadError(f"{self.path}: {name} (variance) holds values below 0", mend=_AGAIN)
        if scaled:
            _set(layer.weight, self.floats(f"{name} (scale)", channels))
        if shifted:
            _set(layer.bias, self.floats(f"{name} (bias)", channels))
        return layer

    def end(self) -> None:
        rest = self.data[self.at :].strip()
        if rest:
            raise LoadError(f"{self.path}: {len(rest):,} bytes follow the end of the network", mend=_AGAIN)

    def _damaged(self, what: str, found: bytes) -> LoadError:
        shown = "the end of the file" if self.at >= len(self.data) or not found else repr(found[:20])
        return LoadError(f"{self.path} is damaged", [f"at byte {self.at:,}: {what}, {shown} was found"], _AGAIN)


_AGAIN = "copy it again from where it came from"


def _set(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
