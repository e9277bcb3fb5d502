"""KataGo's network: read from its own format, it says what the engine printed, and is wired like any other model."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_bench import voltmeter
from conftest import asset
from laws import EXACT
from torch import Tensor

import voltmeter as vm
from voltmeter.errors import AddressError, LoadError
from voltmeter.wiring.inputs import output_tensors
from voltmeter.wiring.load import load_model
from voltmeter.wiring.models.katago import Evaluation, KataGo
from voltmeter.wiring.models.katago_file import load_katago

# Six digits are printed: half of the last, and some 1e-7 of float32's own.
PRINTED = 2e-6
# The recorded figures were printed on a graphics card that multiplies with ten bits of mantissa (an RTX A5000, TF32):
# rounding the inputs and weights of our convolutions so moves win and loss by 9e-5, and the policy by 8e-4.
VALUE_IN_TF32, POLICY_IN_TF32 = 1e-4, 1e-3
# What the engine printed for the same commands before (KataGo at 1f257862, cpp/tests/results/gtp/rawnn.txt.stdout):
# win and loss of White, and the policy in the middle, rows and columns 2 to 6. Elsewhere the two are the same to 1e-6.
FIRST = {
    1: (
        0.532945,
        0.466993,
        """0.000677 0.008838 0.099341 0.063655 0.000615
                NAN 0.106903 0.188649 0.294320 0.006735
           0.000806 0.008236 0.007031 0.097045 0.006812
           0.000046 0.000334 0.007154 0.091556 0.004064
                NAN 0.000039 0.000642 0.004070 0.000397""",
    ),
    4: (
        0.525360,
        0.474585,
        """0.000494 0.003076 0.096934 0.073354 0.000565
                NAN 0.206358 0.242040 0.282600 0.006111
           0.000522 0.004891 0.008044 0.047697 0.003642
           0.000047 0.000185 0.001478 0.017619 0.001587
                NAN 0.000034 0.000197 0.000755 0.000104""",
    ),
    6: (
        0.549906,
        0.450042,
        """0.000733 0.007417 0.088536 0.057406 0.000598
                NAN 0.141518 0.216001 0.335663 0.006140
           0.000699 0.002046 0.001808 0.075319 0.007407
           0.000044 0.000192 0.002114 0.048819 0.002915
                NAN 0.000040 0.000337 0.002164 0.000253""",
    ),
}
SYMMETRIES = {1: 1, 4: 4, 6: 5}  # as the engine numbers them, and as ``turned`` does


@cache
def network() -> KataGo:
    return load_katago(asset("katago_b6c96") / "g170-b6c96.bin.gz")


def turned(x: Tensor, symmetry: int) -> Tensor:
    """4: rows and columns swapped; 2: columns reversed; 1: rows reversed; in that order."""
    x = x.mT if symmetry & 4 else x
    x = x.flip(-1) if symmetry & 2 else x
    return x.flip(-2) if symmetry & 1 else x


def turned_back(x: Tensor, symmetry: int) -> Tensor:
    x = x.flip(-2) if symmetry & 1 else x
    x = x.flip(-1) if symmetry & 2 else x
    return x.mT if symmetry & 4 else x


def position() -> dict[str, Tensor]:
    with np.load(asset("katago_b6c96") / "rawnn_position.npz") as data:
        planes, features = torch.from_numpy(data["binary"]), torch.from_numpy(data["globals"])
    return {"planes": planes, "features": features, "mask": planes[:, 0] > 0}


def printed(symmetry: int) -> tuple[float, float, Tensor, float]:
    """Win and loss of White, the policy [9, 9] with nan where a stone lies, and that of the pass."""
    text = (asset("katago_b6c96") / "rawnn_expected.txt").read_text()
    block = text.split(f"= symmetry {symmetry}\n")[1]
    win, loss, passed = (
        float(re.search(rf"{name} (\S+)", block)[1]) for name in ("whiteWin", "whiteLoss", "policyPass")
    )
    rows = block.split("policy\n")[1].splitlines()[:9]
    return win, loss, torch.tensor([[float(word) for word in row.split()] for row in rows]), passed


def differences(found: Evaluation, win: float, loss: float, policy: Tensor, passed: float) -> tuple[float, float]:
    """The largest between what the model, ``found``, and the engine say: of winning and losing, and of the policy."""
    value = found.value.softmax(-1)[0, :2] - torch.tensor([loss, win])  # Black is to move
    logits = found.policy[0].masked_fill(torch.cat([policy.flatten(), torch.zeros(1)]).isnan(), float("-inf"))
    expected = torch.cat([policy.nan_to_num().flatten(), torch.tensor([passed])])
    return float(value.abs().max()), float((logits.softmax(-1) - expected).abs().max())


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_it_says_what_the_engine_printed(symmetry: int) -> None:
    inputs, ours = position(), SYMMETRIES[symmetry]
    planes, mask = (turned(inputs[name], ours).contiguous() for name in ("planes", "mask"))
    with torch.no_grad():
        found = network()(planes, inputs["features"], mask)
    points = turned_back(found.policy[0, :-1].view(9, 9), ours).flatten()
    found = found._replace(policy=torch.cat([points, found.policy[0, -1:]])[None])

    win, loss, policy, passed = printed(symmetry)
    value, odds = differences(found, win, loss, policy, passed)
    assert value < VALUE_IN_TF32
    assert odds < POLICY_IN_TF32

    win, loss, middle = FIRST[symmetry]
    policy[2:7, 2:7] = torch.tensor([float(word) for word in middle.split()]).view(5, 5)
    value, odds = differences(found, win, loss, policy, passed)
    assert value < PRINTED
    assert odds < PRINTED


def test_a_small_board_in_a_larger_tensor_is_played_as_if_alone() -> None:
    inputs = position()
    padded = {name: torch.nn.functional.pad(t, (0, 10, 0, 10)) for name, t in inputs.items() if name != "features"}
    with torch.no_grad():
        alone, within = network()(**inputs), network()(**padded, features=inputs["features"])
    points = within.policy[0, :-1].view(19, 19)
    # Sums over more zeros, in another order: some 1e-6 of logits as large as 60.
    torch.testing.assert_close(points[:9, :9].flatten(), alone.policy[0, :-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(within.value, alone.value, atol=1e-4, rtol=0)
    assert within.policy.softmax(-1)[0, :-1].view(19, 19)[9:].sum() < 1e-12


def test_it_foresees_moves_of_real_games() -> None:
    """Of all 1,024 positions the recorded figures are .33 and 2.7; these are 48 of them."""
    with np.load(asset("katago_b6c96") / "positions_1024.npz") as data:
        bits = np.unpackbits(data["binaryInputNCHWPacked"][:48], axis=2)[:, :, :361]
        planes, features = torch.from_numpy(bits).reshape(-1, 22, 19, 19).float(), data["globalInputNC"][:48]
        visits = torch.from_numpy(data["policyTargetsNCMove"][:48, 0]).float()
    with torch.no_grad():
        policy = network()(planes, torch.from_numpy(features), planes[:, 0] > 0).policy
    played = visits / visits.sum(1, keepdim=True)
    assert (policy.argmax(1) == visits.argmax(1)).float().mean() > 0.25  # one in 300 by chance
    assert -(played * policy.log_softmax(1)).sum(1).mean() < 3.2  # 5.9 by chance


def test_its_trunk_is_one_stream() -> None:
    wiring = vm.wire(network(), position())
    blocks = [f"blocks.{n}" for n in range(6)]
    assert [writer.name for writer in wiring.writers] == ["input", *blocks]
    assert [reader.name for reader in wiring.readers] == [*blocks, "logits"]
    assert len(wiring.edges) == 28


def test_it_is_a_model_by_name() -> None:
    found = voltmeter("wire", f"katago:{asset('katago_b6c96')}/g170-b6c96.bin.gz")
    assert found.exit_code == 0, found.output
    assert "KataGo · 7 writers · 7 readers · 28 edges" in found.output
    assert "blocks.0-5" in found.output


# --- a tiny network of both kinds of blocks, written in the format: what holds of any, and what is refused ----------


class Writer:
    """KataGo's format, as far as this network goes; random floats."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.random = np.random.default_rng(0)

    def words(self, *words: object) -> None:
        self.parts += [f"{word}\n".encode() for word in words]

    def floats(self, *shape: int, positive: bool = False) -> None:
        drawn = self.random.normal(size=shape) / max(1, np.prod(shape[:-1])) ** 0.5
        self.parts.append(b"@BIN@" + (np.abs(drawn) + 0.5 if positive else drawn).astype("<f4").tobytes() + b"\n")

    def conv(self, name: str, size: int, inputs: int, outputs: int) -> None:
        self.words(name, size, size, inputs, outputs, 1, 1)
        self.floats(size, size, inputs, outputs)

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = False) -> None:
        self.words(name, inputs, outputs)
        self.floats(inputs, outputs)
        if bias:
            self.words(f"{name}/bias", outputs)
            self.floats(outputs)

    def act(self, name: str, channels: int, scale: bool) -> None:
        self.words(name, channels, 0.001, int(scale), 1)
        self.floats(channels)
        self.floats(channels, positive=True)
        for _ in range(1 + scale):
            self.floats(channels)
        self.words(f"{name}/relu")


def tiny(version: int = 8, kind: str = "gpool_block", first: int = 6) -> bytes:
    """Six channels; a global-pooling block and an ordinary one. ``first``: what the first norm says of its channels."""
    w = Writer()
    w.words("tiny", version, 22, 19, "trunk", 2, 6, 6, 4, 2, 2)
    w.conv("conv1", 3, 22, 6)
    w.linear("features", 19, 6)
    w.words(kind, "rconv1")
    w.act("rconv1/norm1", first, scale=False)
    w.conv("rconv1/w1a", 3, 6, 4)
    w.conv("rconv1/w1b", 3, 6, 2)
    w.act("rconv1/norm1b", 2, scale=False)
    w.linear("rconv1/w1r", 6, 4)
    w.act("rconv1/norm2", 4, scale=True)
    w.conv("rconv1/w2", 3, 4, 6)
    w.words("ordinary_block", "rconv2")
    w.act("rconv2/norm1", 6, scale=False)
    w.conv("rconv2/w1", 3, 6, 6)
    w.act("rconv2/norm2", 6, scale=True)
    w.conv("rconv2/w2", 3, 6, 6)
    w.act("tip", 6, scale=False)
    w.words("policyhead")
    w.conv("p1", 1, 6, 3)
    w.conv("g1", 1, 6, 2)
    w.act("g1/norm", 2, scale=False)
    w.linear("matmulg2w", 6, 3)
    w.act("p1/norm", 3, scale=False)
    w.conv("p2", 1, 3, 1)
    w.linear("matmulpass", 6, 1)
    w.words("valuehead")
    w.conv("v1", 1, 6, 2)
    w.act("v1/norm", 2, scale=False)
    w.linear("v2", 6, 4, bias=True)
    w.words("v2/relu")
    w.linear("v3", 4, 3, bias=True)
    w.linear("sv3", 4, 4, bias=True)
    w.conv("owner", 1, 2, 1)
    return b"".join(w.parts)


def written(directory: Path, data: bytes) -> str:
    path = directory / "tiny.bin.gz"
    path.write_bytes(gzip.compress(data))
    return str(path)


def games(count: int, seed: int) -> dict[str, Tensor]:
    """Positions of noise on a board of 4 by 5, in a tensor of 5 by 5."""
    drawn = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, 5, 5, dtype=torch.bool)
    mask[:, 4] = False
    planes = torch.randn(count, 22, 5, 5, generator=drawn, dtype=torch.float64) * mask[:, None]
    features = torch.randn(count, 19, generator=drawn, dtype=torch.float64)
    return {"planes": planes, "features": features, "mask": mask}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> KataGo:
    return load_katago(written(tmp_path_factory.mktemp("katago"), tiny()), torch.float64)


@pytest.mark.parametrize("split", [(), ("input", "blocks.0", "blocks.1")])
def test_the_laws_hold_of_all_that_it_returns(small: KataGo, split: tuple[str, ...]) -> None:
    wiring = vm.wire(small, games(3, seed=0))
    for component in split:
        wiring = wiring.split(component, "channels")
    assert len(wiring.edges) == (6 * 6 if split else 6)
    clean, corrupted = games(2, seed=1), games(2, seed=2)
    with torch.no_grad():
        for keep, inputs in ((torch.ones, clean), (torch.zeros, corrupted)):
            expected = output_tensors(small(**inputs))
            kept = keep(len(wiring.edges), dtype=torch.float64)
            found = output_tensors(vm.run(wiring, clean, kept, vm.fill.resample(), corrupted))
            assert len(found) == 4
            for one, other in zip(found, expected, strict=True):
                assert (one - other).abs().max() <= EXACT * other.abs().max()


def test_inputs_of_another_size_are_refused(small: KataGo) -> None:
    inputs = games(1, seed=0)
    with pytest.raises(AddressError, match=r"planes \[1, 21, 5, 5\] and features \[1, 19\] were given"):
        small(inputs["planes"][:, 1:], inputs["features"], inputs["mask"])


def test_every_float_is_read_and_in_its_place(tmp_path: Path) -> None:
    """A convolution by hand: the format keeps [row, column, input, output]."""
    data = tiny()
    at = data.index(b"@BIN@") + 5
    kernel = np.frombuffer(data[at : at + 4 * 3 * 3 * 22 * 6], dtype="<f4").reshape(3, 3, 22, 6)
    stem = load_katago(written(tmp_path, data)).stem
    planes = torch.zeros(1, 22, 5, 5)
    planes[0, 7, 1, 2] = 1
    found = stem.conv(planes)[0]
    for row, column in ((0, 0), (0, 2), (2, 1)):
        # What lies at (1, 2) is seen from (1 + 1 - row, 2 + 1 - column) through the kernel's entry (row, column).
        assert found[:, 2 - row, 3 - column].tolist() == pytest.approx(kernel[row, column, 7].tolist(), rel=1e-6)


Damage = Callable[[bytes], bytes]


def cut(name: bytes, more: int) -> Damage:
    """Up to some bytes behind the name of a layer."""
    return lambda data: data[: data.index(name) + more]


def put(old: bytes, new: bytes) -> Damage:
    return lambda data: data.replace(old, new, 1)


def negative_variance(data: bytes) -> bytes:
    """Of the first norm: the second floats behind its name."""
    at = data.index(b"@BIN@", data.index(b"@BIN@", data.index(b"rconv1/norm1\n")) + 5) + 5
    return data[:at] + np.float32(-1).tobytes() + data[at + 4 :]


NAN = np.float32("nan").tobytes()
DAMAGED: dict[str, tuple[Damage, str]] = {
    "within a layer": (cut(b"rconv2/w1\n", 100), r"ends within rconv2/w1\n  18 floats of \[3, 3, 6, 6\] are there"),
    "before a layer": (cut(b"valuehead", 10), "the name of a convolution was expected, the end of the file was found"),
    "other sizes": (
        put(b"rconv2/w1\n3\n3\n6\n", b"rconv2/w1\n3\n3\n7\n"),
        "7 input channels of rconv2/w1 where 6 were expected",
    ),
    "no number": (
        put(b"rconv2/w1\n3\n", b"rconv2/w1\nx\n"),
        "the height of rconv2/w1 was expected, a whole number, b'x' was found",
    ),
    "a huge number": (put(b"v1\n1\n1\n6\n2", b"v1\n1\n1\n6\n99999999"), "output channels of v1 was expected"),
    "an even kernel": (put(b"v1\n1\n1\n", b"v1\n1\n2\n"), "v1 is 1 by 2; odd sizes were expected"),
    "too long": (lambda data: data + b"and more", "8 bytes follow the end of the network"),
    "not finite": (put(b"@BIN@", b"@BIN@" + NAN), "conv1 holds values that are not finite"),
    "no epsilon": (
        put(b"\n0.001\n", b"\nnan\n"),
        "the epsilon of rconv1/norm1 was expected, a number above 0, b'nan' was found",
    ),
    "a variance below 0": (negative_variance, r"rconv1/norm1 \(variance\) holds values below 0"),
    "no floats": (put(b"@BIN@", b"@BAN@"), "the floats of conv1 were expected"),
    "another format": (lambda data: b"\x80PyTorch", "the name of the network was expected"),
    "empty": (lambda data: b"", "the name of the network was expected, the end of the file was found"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_an_error_that_names_the_place(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGED[damage]
    changed = change(tiny())
    assert changed != tiny()
    with pytest.raises(LoadError, match=message):
        load_katago(written(tmp_path, changed))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"version": 14}, "is of version 14 of KataGo's model format; version 8 was expected"),
        ({"kind": "dilated_block"}, "rconv1 is a 'dilated_block'"),
        ({"first": 5}, "5 channels of rconv1/norm1 where 6 were expected"),
    ],
)
def test_another_network_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=message):
        load_katago(written(tmp_path, tiny(**given)))


@pytest.mark.parametrize("how", ["cut short", "not packed", "a bit turned", "not there"])
def test_a_file_that_cannot_be_unpacked(how: str, tmp_path: Path) -> None:
    path = Path(written(tmp_path, tiny()))
    packed = path.read_bytes()
    middle = len(packed) // 2
    changed = {
        "cut short": packed[:middle],
        "not packed": tiny(),
        "a bit turned": packed[:middle] + bytes([packed[middle] ^ 1]) + packed[middle + 1 :],
    }
    if how in changed:
        path.write_bytes(changed[how])
    else:
        path.unlink()
    with pytest.raises(LoadError, match="there is no file" if how == "not there" else "tiny.bin.gz cannot be unpacked"):
        load_model(f"katago:{path}")
