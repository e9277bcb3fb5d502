"""Readers whose reading changes nothing: no path of kept edges leads from them to an output."""

from torch import Tensor

from voltmeter.wiring.wiring import Wiring


def idle_readers(wiring: Wiring, kept: Tensor) -> frozenset[int]:
    """The numbers of these readers, when the edges in ``kept`` (Bool [edge]) are. Cost: one pass over the edges.

    Not so with padding: nothing is ever cut there, so that what they read still changes what the model returns there,
    and elsewhere too where it lets padding be seen (by a convolution along positions, say).
    """
    edges, numbers = wiring.edges, {w.name: w.number for w in wiring.writers}
    kept_from = edges.writer_numbers[kept.cpu()].tolist(), edges.reader_numbers[kept.cpu()].tolist()
    heard_by: dict[int, set[int]] = {}
    for writer, reader in zip(*kept_from, strict=True):
        heard_by.setdefault(writer, set()).add(reader)
    counts: set[int] = set()
    for reader in reversed(wiring.readers):
        fed = [heard_by.get(number, set()) for number in _made_with(wiring, [numbers[name] for name in reader.feeds])]
        if not reader.feeds or any(later & counts for later in fed):
            counts.add(reader.number)
    return frozenset(range(len(wiring.readers))) - counts


def _made_with(wiring: Wiring, writers: list[int]) -> list[int]:
    """These, and those whose scale they have a part in (shares of one normalised sum)."""
    shared = {wiring.writers[n].component for n in writers if wiring.writers[n].linearised}
    return writers + [w.number for w in wiring.writers if w.linearised and w.component in shared]
