"""Arrays that are mapped from files: another process maps them again in place of getting a copy."""

from __future__ import annotations

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
    base: Any = array
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    if base is None or base.filename is None or not array.flags.c_contiguous:
        return None
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0] + base.offset
    return MappedFile(str(base.filename), array.dtype.str, offset, array.shape)
