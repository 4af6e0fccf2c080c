"""The distinct texts or images of all rows, in order of first appearance; the values are in a temporary file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sqid_lib.stored_images import as_digests
from sqid_lib.tables.spool import Spool

_HASHED_AT_ONCE = 16_384
Numbers = NDArray[np.int32]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Values:
    """Texts in a temporary file, of which some rows are meant, in order. A pickled copy has them in memory."""

    _spool: Spool
    _rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self._rows)

    def slice(self, start: int, length: int) -> list[str]:
        """Some of them, in memory."""
        tables = self._spool.take(self._rows[start : start + length], lambda table: table)
        return [value for table in tables for value in table["value"].to_pylist()]

    def filter(self, mask: NDArray[np.bool_]) -> Values:
        """Those of a mask."""
        return Values(self._spool, self._rows[mask])

    def __reduce__(self) -> tuple[type[_InMemory], tuple[pa.ChunkedArray]]:
        tables = self._spool.take(self._rows, lambda table: table)
        return _InMemory, (pa.chunked_array([chunk for t in tables for chunk in t["value"].chunks], pa.large_string()),)


@dataclass(frozen=True)
class _InMemory:
    """What `Values` are in another process, which may be on another machine, without the file."""

    _column: pa.ChunkedArray

    def slice(self, start: int, length: int) -> list[str]:
        """As of `Values`."""
        found: list[str] = self._column.slice(start, length).to_pylist()
        return found


@dataclass(frozen=True)
class Items:
    """Distinct texts or images, in order of first appearance.

    Attributes:
        values: the texts; of images the sha256 of their bytes as hexadecimal digits, or URLs for a backend that
            downloads them itself.
        digests: sha256 of each text as it is given to the encoder, of each image's bytes, or of its URL: `DIGEST`.
    """

    values: Values
    digests: pa.FixedSizeBinaryArray


class Collected:
    """The values of the rows of all parts.

    Args:
        digest: of a value, 32 bytes.
        scratch: folder of the temporary file; by default that of the system.
    """

    def __init__(self, digest: Callable[[str], bytes], scratch: Path | None) -> None:
        self._digest, self._spool = digest, Spool(scratch)
        self._digests = bytearray()
        self._there: dict[str, list[NDArray[np.bool_]]] = {}

    def add(self, part: str, column: pa.ChunkedArray) -> None:
        """Take in the values of the next rows of a part, null for none."""
        self._there.setdefault(part, []).append(column.is_valid().to_numpy())
        values = column.drop_null().cast(pa.large_string()).combine_chunks()
        if len(values):
            self._spool.append(pa.table({"value": values}))
        for start in range(0, len(values), _HASHED_AT_ONCE):
            for value in values.slice(start, _HASHED_AT_ONCE).to_pylist():
                self._digests += self._digest(value)

    def distinct(self) -> tuple[Items, dict[str, Numbers]]:
        """The distinct values; per part, the number of each row's value (−1: null)."""
        digests = as_digests(self._digests)
        numbers, firsts = _numbered(words(digests))
        if len(firsts) < len(numbers):
            digests = digests.take(pa.array(firsts))
        of_parts, first = {}, 0
        for part, masks in self._there.items():
            there = np.concatenate(masks)
            of_parts[part] = np.full(len(there), -1, np.int32)
            of_parts[part][there] = numbers[first : first + int(there.sum())]
            first += int(there.sum())
        return Items(Values(self._spool, firsts), digests), of_parts


def words(digests: pa.FixedSizeBinaryArray) -> Words:
    """The first 16 bytes of each digest as two numbers, which tell it from all others: [2, digests]."""
    width = digests.type.byte_width // 8
    values = np.frombuffer(digests.buffers()[1], np.uint64)[digests.offset * width :][: len(digests) * width]
    return np.ascontiguousarray(values.reshape(-1, width)[:, :2].T)


def _numbered(digests: Words) -> tuple[Numbers, NDArray[np.int64]]:
    """The number of each value among the distinct ones in order of appearance, and the row of each of those."""
    order = np.lexsort(digests)
    new = np.ones(len(order), np.bool_)
    if len(order):
        new[1:] = np.logical_or.reduce([np.diff(word[order]) != 0 for word in digests])
    if new.all():
        return np.arange(len(order), dtype=np.int32), np.arange(len(order))
    groups = np.cumsum(new, dtype=np.int32) - 1
    firsts = order[new]  # sorting is stable: the first row of each
    appearance = np.argsort(firsts)
    ranks = np.empty(len(firsts), np.int32)
    ranks[appearance] = np.arange(len(firsts), dtype=np.int32)
    numbers = np.empty(len(order), np.int32)
    numbers[order] = ranks[groups]
    return numbers, firsts[appearance]
