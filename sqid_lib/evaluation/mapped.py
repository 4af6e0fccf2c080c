"""Arrays that are mapped from files: another process maps them again in place of getting a copy.

Pages that were read count as memory of the process until they are dropped.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class MappedFile:
    """Where the values of an array lie in a file, row by row."""

    path: str
    dtype: str
    offset: int
    shape: tuple[int, ...]

    def open(self) -> npt.NDArray[Any]:
        """Map the file, read-only."""
        return np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, self.shape))


def mapped_file(array: npt.NDArray[Any]) -> MappedFile | None:
    """Where the array lies in a file; None if it is not a contiguous part of a mapped file."""
    base = _memmap(array)
    if base is None or base.filename is None or not array.flags.c_contiguous:
        return None
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0] + base.offset
    return MappedFile(str(base.filename), array.dtype.str, offset, array.shape)


def drop_pages(*arrays: npt.NDArray[Any]) -> None:
    """Let what was read of arrays that are mapped from files leave the memory of this process.

    The page cache of the system keeps it: reading it again costs some 30 ms a GB. Other arrays stay as they are.
    """
    for array in arrays:
        base = _memmap(array)
        pages = None if base is None else base.base
        # not of a mapping that may have been changed: the changes of a private one would be lost
        if base is not None and base.mode == "r" and isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)


def _memmap(array: npt.NDArray[Any]) -> np.memmap[Any, Any] | None:
    """The mapping that an array is a part of."""
    base: Any = array
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    return base
