"""Tables put aside in an unnamed temporary file, whose rows come back in any order, a block at a time."""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sqid_lib.errors import write_error

GROUP_ROWS = 16_384
_SCATTERED_BYTES = 64 << 20  # at once, of rows in another order: each block may have rows of every table

Ints = npt.NDArray[np.int64]


class Spool:
    """Tables whose rows are numbered through all of them.

    The file is mapped to be read; its pages leave the memory of this process when the next rows are asked for.

    Args:
        folder: of the file, made if absent; by default the system's for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        with self._reporting_disk_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._rows, self._bytes = [0], [0]  # where each table begins, and the end

    def append(self, table: pa.Table) -> None:
        """Write the next table; its columns may have other types than those of the tables before.

        Raises:
            DiskError: no space left, or the disk refused.
        """
        with self._reporting_disk_errors():
            with pa.ipc.new_stream(self._file, table.schema) as writer:
                writer.write_table(table)
            self._file.flush()
        self._rows.append(self._rows[-1] + table.num_rows)
        self._bytes.append(self._file.tell())

    def take(self, rows: Ints, convert: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
        """The rows of these numbers, in that order, in tables of n × 16,384 rows; the last may have fewer.

        Args:
            convert: chooses columns of a table that was appended, and gives them the types that all shall have.
        """
        size = GROUP_ROWS
        if (rows[1:] < rows[:-1]).any():
            a_group = self._bytes[-1] * GROUP_ROWS // max(self._rows[-1], 1)
            size *= max(1, min(8, _SCATTERED_BYTES // max(a_group, 1)))
        for first in range(0, len(rows), size):
            block = rows[first : first + size]
            yield self._gather(block, convert)
            low, high = np.searchsorted(self._rows, [block.min(), block.max()], side="right")
            self._drop_pages(int(low) - 1, int(high))

    def _gather(self, rows: Ints, convert: Callable[[pa.Table], pa.Table]) -> pa.Table:
        numbers = np.searchsorted(self._rows, rows, side="right") - 1
        by_table = np.argsort(numbers, kind="stable")
        parts = []
        for chosen in np.split(by_table, np.flatnonzero(np.diff(numbers[by_table])) + 1):
            number = int(numbers[chosen[0]])
            within = rows[chosen] - self._rows[number]
            table = convert(self._table(number))
            if (np.diff(within) == 1).all():
                parts.append(table.slice(int(within[0]), len(within)))
            else:
                parts.append(table.take(pa.array(within)))
                self._drop_pages(number, number + 1)
        found = pa.concat_tables(parts).combine_chunks()  # so that the bytes of a file do not depend on the parts
        return found if (np.diff(by_table) == 1).all() else found.take(pa.array(np.argsort(by_table)))

    def _table(self, number: int) -> pa.Table:
        first, end = self._bytes[number : number + 2]
        return pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(self._mapped).slice(first, end - first))).read_all()

    @contextmanager
    def _reporting_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(error, self._folder) from error

    @cached_property
    def _mapped(self) -> mmap.mmap:
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def _drop_pages(self, first: int, stop: int) -> None:
        """Those of some tables; the system keeps what it has room for."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = self._bytes[first] // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_DONTNEED, start, self._bytes[stop] - start)
