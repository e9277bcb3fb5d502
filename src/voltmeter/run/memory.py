"""Room for large tensors of a run, used again by the next.

The system hands out fresh memory a page at a time and takes large pieces back at once, so that a run's 100 MB of
deltas cost up to a tenth of a second before anything is computed. Blocks that no tensor uses any more are lent again;
nobody sees what they held, as with any allocator. They go back to the system with the last wiring that was run (or by
``forget``). Only on the CPU: PyTorch keeps such blocks itself on a GPU.
"""

import math
import sys
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LARGE = 1 << 20  # bytes; smaller ones are quick to be had
_LINE = 64  # bytes a block is aligned to
_MOST_BLOCKS = 4  # deltas, their gradients, what is read, and one in between
_lock = threading.RLock()  # a collection of garbage inside may end with the last wiring
_blocks: list[NDArray[np.uint8]] = []  # lent or free: a tensor on one holds a reference to it
_runners: "weakref.WeakSet[object]" = weakref.WeakSet()  # the wirings that were run


def room(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, as ``torch.empty``. No other tensor that is still alive shares its memory."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE:
        return torch.empty(shape, dtype=dtype, device=device)
    with _lock:
        block = _free_block(size + _LINE)
        if block is None:
            return torch.empty(shape, dtype=dtype)
        start = -block.ctypes.data % _LINE
        return own(torch.from_numpy(block)[start : start + size].view(dtype).view(*shape))


def own(view: Tensor) -> Tensor:
    """The same entries as a tensor that autograd does not know for a view. It keeps their memory."""
    made = view.new_empty(0)
    return made.set_(view.untyped_storage(), view.storage_offset(), view.shape, view.stride())


def keep_while(wiring: object) -> None:
    """Blocks stay as long as ``wiring`` lives, which is about to run."""
    if wiring not in _runners:
        weakref.finalize(wiring, _forget_after_the_last).atexit = False
        _runners.add(wiring)


def _forget_after_the_last() -> None:
    if not list(_runners):
        forget()


def forget() -> None:
    """Give the blocks back to the system (those lent, when their tensors are gone)."""
    with _lock:
        _blocks.clear()


def _free_block(size: int) -> NDArray[np.uint8] | None:
    """The smallest free block large enough, and not twice too large; else a new one; None where too many are lent."""
    free = [at for at in range(len(_blocks)) if _is_free(at)]
    fitting = [at for at in free if size <= len(_blocks[at]) <= 2 * size]
    if fitting:
        return _blocks[min(fitting, key=lambda at: len(_blocks[at]))]
    if len(_blocks) == _MOST_BLOCKS:
        if not free:
            return None
        del _blocks[free[0]]  # the oldest
    _blocks.append(np.empty(size, dtype=np.uint8))
    return _blocks[-1]


def _is_free(at: int) -> bool:
    """No tensor holds the block: its references are the list's and the one that asks."""
    return sys.getrefcount(_blocks[at]) == 2
