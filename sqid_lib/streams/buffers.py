"""Memory that batches are gathered into, reused once nothing refers to it."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from sqid_lib.streams.batches import Arrays, Layout

_ALIGN = 64  # bytes; a cache line


def place(layout: Layout) -> dict[str, tuple[int, int, np.dtype[Any], tuple[int, ...]]]:
    """Where each field lies in one buffer: start and stop in bytes, dtype, shape; each starts at a cache line."""
    places, start = {}, 0
    for name, (dtype, shape) in layout.items():
        stop = start + math.prod(shape) * dtype.itemsize
        places[name] = (start, stop, dtype, shape)
        start = -(-stop // _ALIGN) * _ALIGN
    return places


def size_of(layout: Layout) -> int:
    """Bytes of the buffer that `place` needs."""
    return max(stop for _, stop, _, _ in place(layout).values())


def carve(buffer: npt.NDArray[np.uint8], layout: Layout) -> Arrays:
    """The fields as views of one buffer."""
    return {
        name: buffer[start:stop].view(dtype).reshape(shape)
        for name, (start, stop, dtype, shape) in place(layout).items()
    }


class Memory(Protocol):
    """Memory for batches, and how a batch is made in it."""

    def take(self, size: int) -> Buffer: ...

    def batch(self, kind: type[Any], buffer: Buffer, layout: Layout) -> Any:
        """A batch of what was gathered into `buffer`, made by any thread."""

    def hand_over(self, batch: Any) -> Any:
        """The batch again; called in the thread that uses it."""


@dataclass(frozen=True)
class Buffer:
    """Some bytes to gather into, and the object that owns them."""

    bytes: npt.NDArray[np.uint8]
    owner: Any = None


class Recycler:
    """Gives out buffers, and reuses those that nothing refers to any more: fresh pages cost more than the gather.

    Every view of a buffer, numpy or torch, keeps its lease alive, so a batch that the user keeps is never overwritten.
    """

    def __init__(self, keep: int = 8) -> None:
        self._free: deque[npt.NDArray[np.uint8]] = deque(maxlen=keep)

    def take(self, size: int) -> Buffer:
        """`size` bytes of any content."""
        for _ in range(len(self._free)):
            try:
                whole = self._free.pop()  # the latest, which the processor's cache may still hold
            except IndexError:  # another thread was quicker
                break
            if len(whole) >= size:  # a smaller one is dropped
                return Buffer(lease(whole, size, self._free.append, whole))
        whole = np.empty(size, dtype=np.uint8)
        return Buffer(lease(whole, size, self._free.append, whole))

    def batch(self, kind: type[Any], buffer: Buffer, layout: Layout) -> Any:
        """A batch of numpy arrays."""
        return kind(**carve(buffer.bytes, layout))

    def hand_over(self, batch: Any) -> Any:
        return batch


def lease(whole: npt.NDArray[np.uint8], size: int, ended: Callable[..., object], *args: Any) -> npt.NDArray[np.uint8]:
    """The first `size` bytes as an array of its own: `ended(*args)` is called once no view of it is left."""
    owner: Any = memoryview(cast(Any, whole))  # so that views refer to the array made here, not to `whole`
    array = np.frombuffer(owner, dtype=np.uint8, count=size)
    weakref.finalize(array, ended, *args).atexit = False
    return array
