"""``record``: look at what writers write and readers read, while the model runs as it is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from voltmeter.errors import AddressError, counted, nearest
from voltmeter.run.watch import require_untapped
from voltmeter.wiring.plan import Write
from voltmeter.wiring.tap import Listener, ReadingCall, Tap, readings_of
from voltmeter.wiring.wiring import Wiring


class Recorded(Mapping[str, Tensor]):
    """What was seen, by address; of the last run inside the ``with``, and of each in ``runs``."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Tensor]] = []

    def __getitem__(self, address: str) -> Tensor:
        if not self.runs:
            raise AddressError("nothing was recorded: the model did not run inside the with")
        if address not in self.runs[-1]:
            raise AddressError(f"'{address}' was not recorded", [nearest(address, list(self.runs[-1]))])
        return self.runs[-1][address]

    def __contains__(self, address: object) -> bool:
        return bool(self.runs) and address in self.runs[-1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs[-1] if self.runs else {})

    def __len__(self) -> int:
        return len(self.runs[-1]) if self.runs else 0


class _Recorder(Listener):
    """``asked``: address -> (side, name), side "out" for what a writer writes and "in" for what a reader reads."""

    def __init__(self, wiring: Wiring, asked: Mapping[str, tuple[str, str]], detach: bool) -> None:
        self.wiring, self.detach = wiring, detach
        self.addresses: dict[tuple[str, str], list[str]] = {}
        for address, node in asked.items():
            self.addresses.setdefault(node, []).append(address)
        self.seen = Recorded()

    def begin(self) -> None:
        self.seen.runs.append({})

    def _keep(self, side: str, name: str, tensor: Tensor) -> None:
        for address in self.addresses.get((side, name), ()):
            # A copy either way: the model may go on to overwrite what it added.
            self.seen.runs[-1][address] = (tensor.detach() if self.detach else tensor).clone()

    def wrote(self, write: Write, outs: Tensor) -> None:
        for number, out in zip(write.writers, outs, strict=True):
            self._keep("out", self.wiring.writers[number].name, out)

    def read(self, reading: ReadingCall) -> Any:
        for state, x in reading.xs.items():
            for number in readings_of(reading.site, state):
                self._keep("in", self.wiring.readers[number].name, x)
        return reading.plain()


def _asked(wiring: Wiring, addresses: str | Sequence[str] | None) -> dict[str, tuple[str, str]]:
    writers, readers = [w.name for w in wiring.writers], [r.name for r in wiring.readers]
    known = {f"{name}:in": ("in", name) for name in readers} | {f"{name}:out": ("out", name) for name in writers}
    known |= {name: ("in", name) for name in readers}
    known |= {name: ("out", name) for name in writers}  # where one name is both, it is the writer
    wanted = writers if addresses is None else [addresses] if isinstance(addresses, str) else list(addresses)
    unknown = [address for address in wanted if address not in known]
    if unknown:
        raise AddressError(
            f"{counted(len(unknown), 'address is that', 'addresses are those')} of no reader or writer",
            [f"'{address}' ({nearest(address, list(dict.fromkeys((*writers, *readers))))})" for address in unknown],
            "list them with wiring.writers and wiring.readers",
        )
    return {address: known[address] for address in wanted}


@contextmanager
def record(wiring: Wiring, addresses: str | Sequence[str] | None = None, *, detach: bool = True) -> Iterator[Recorded]:
    """Record while the model runs inside the ``with``.

    ``addresses``: names (or one name) of writers (what they write, [batch, ...]) and of readers (the state they read,
    before its norm). Where one name is both, ``m2`` and ``m2:out`` are the writer, ``m2:in`` the reader. None: every
    writer. Tensors are copies, detached unless ``detach=False``. Raises AddressError for names that match nothing, and
    when the model did not run; WiringError for a recording inside another of the same model.
    """
    require_untapped(wiring)
    recorder = _Recorder(wiring, _asked(wiring, addresses), detach)
    params = dict(wiring.model.named_parameters())  # as they are, so that gradients flow to them
    with Tap(wiring.model, wiring.plan, recorder, wiring.modes, params):
        yield recorder.seen
    if not recorder.seen.runs:
        raise AddressError("nothing was recorded: the model did not run inside the with")
