"""Vectors of a feature file, found by key, without the whole file in memory."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib.errors import CorruptFileError, DiskError
from sqid_lib.parquet import read_vectors
from sqid_lib.selection import check_unique
from sqid_lib.tables import by_split, column_names, conform, first_line, open_parquet, telling

_BATCH_ROWS = 2_048
_Copy = TypeVar("_Copy")
_DIRECT_GROUP_ROWS = 16_384  # a larger row group is not decoded whole for a few of its rows


class Vectors:
    """The vectors of one or more parquet files with the same columns, rows numbered through all of them.

    Row groups are decoded as they are needed where the rows wanted lie in file order, as in a release. Where they lie
    scattered, as in the published file, the vectors are copied once and gathered from there: to memory if they fit into
    `memory` bytes, else to an unnamed temporary file.

    Args:
        paths: (path, name in messages) of every file.
        key: columns that identify a row; `product_locale` may be absent from the files.
        columns: vector columns, each a list of float32 of the same width, null where there is none.
        scratch: directory for the temporary file; made if absent.
        memory: bytes of vectors that may be in memory at once.

    Attributes:
        keys: table of the key columns the files have, a row per vector row.
        width: number of float32 in each vector.

    Raises:
        SourceError: as `tables.open_parquet`; SchemaError for vectors of unequal width.
        DuplicateKeyError: a key twice.
    """

    def __init__(
        self,
        paths: Sequence[tuple[str, str]],
        key: pa.Schema,
        columns: Sequence[str],
        scratch: Path | None = None,
        memory: int = 0,
    ) -> None:
        self.columns, self._memory = tuple(columns), memory
        self._paths, self._where = list(paths), [where for _, where in paths]
        self._scratch = scratch
        vector = pa.list_(pa.float32())
        self._files, keys = [], []
        for path, where in paths:
            names = column_names(path, where=where)
            have = pa.schema([f for f in key if f.name in names or f.name != "product_locale"])
            wanted = pa.schema([*have, *((c, vector) for c in columns)])
            file = open_parquet(path, wanted, where=where)
            self._files.append(file)
            with telling(where):
                keys.append(conform(file.read(columns=have.names), have, where))
        for where, table in by_split(keys, paths):
            check_unique(table, table.column_names, "vector", where)
        self.keys = pa.concat_tables(keys)
        self.width = self._find_width()
        self._groups = [
            (f, g, file.metadata.row_group(g).num_rows)
            for f, file in enumerate(self._files)
            for g in range(file.metadata.num_row_groups)
        ]
        self._starts = np.cumsum([0, *(rows for _, _, rows in self._groups)])
        self._decoded: tuple[int, list[np.ndarray]] | None = None
        self._gathered: list[np.ndarray] | None = None
        self._spilled: list[IO[bytes]] | None = None

    def prepare(self, rows: np.ndarray) -> None:
        """Choose how to read, given every row that will be taken, in that order (int64, -1 for none)."""
        present = rows[rows >= 0]
        groups = np.searchsorted(self._starts, present, side="right")
        decodes = 1 + int(np.count_nonzero(np.diff(groups)))
        largest = max((rows for _, _, rows in self._groups), default=0)
        if self._spilled or self._gathered or (decodes <= 2 * len(self._groups) and largest <= _DIRECT_GROUP_ROWS):
            return
        if self.nbytes <= self._memory:
            self._gathered = self._gather()
        else:
            self._spilled = self._spill()

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors as float32."""
        return int(self.keys.num_rows * self.width * 4 * len(self.columns))

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Vectors of `rows` (int64 [n], -1 for none): float32 [n, width] for each column, zeros where there is none."""
        if self._gathered is not None:
            taken = [np.take(matrix, rows, axis=0, mode="clip") for matrix in self._gathered]
            for matrix in taken:
                matrix[rows < 0] = 0
            return taken
        there = np.flatnonzero(rows >= 0)
        if self._spilled is None:
            return self._take_decoded(rows, there)
        taken = [np.zeros((len(rows), self.width), np.float32) for _ in self.columns]
        for stream, matrix in zip(self._spilled, taken, strict=True):
            _read_rows(stream, rows, there, matrix)
        return taken

    def _take_decoded(self, rows: np.ndarray, present: np.ndarray) -> list[np.ndarray]:
        taken = [np.zeros((len(rows), self.width), np.float32) for _ in self.columns]
        groups = np.searchsorted(self._starts, rows[present], side="right") - 1
        for group in np.unique(groups):
            chosen = present[groups == group]
            for matrix, decoded in zip(taken, self._group(int(group)), strict=True):
                matrix[chosen] = decoded[rows[chosen] - self._starts[group]]
        return taken

    def _group(self, group: int) -> list[np.ndarray]:
        if self._decoded is None or self._decoded[0] != group:
            file, number, _ = self._groups[group]
            with telling(self._where[file]):
                table = self._files[file].read_row_group(number, columns=list(self.columns))
            self._decoded = (group, self._dense(table, self._where[file]))
        return self._decoded[1]

    def _dense(self, table: pa.Table, where: str) -> list[np.ndarray]:
        """For each column float32 [rows, width], zeros for null."""
        return [read_vectors(table, name, self.width, where)[0] for name in self.columns]

    def _find_width(self) -> int:
        for file, where in zip(self._files, self._where, strict=True):
            for name in self.columns:
                dtype = file.schema_arrow.field(name).type
                if pa.types.is_fixed_size_list(dtype):
                    return int(dtype.list_size)
            with telling(where):
                for batch in file.iter_batches(64, columns=list(self.columns)):
                    for column in batch.columns:
                        if column.null_count < len(column):
                            return int(pc.list_value_length(pc.drop_null(column))[0].as_py())
        raise CorruptFileError("there is not one vector in the file", where=self._where[0], fix="Fetch it again.")

    def _gather(self) -> list[np.ndarray]:
        """Every column in memory."""

        def gather(column: int) -> np.ndarray:
            whole = np.empty((self.keys.num_rows, self.width), np.float32)
            at = 0
            for block in self._blocks(column):
                whole[at : at + len(block)] = block
                at += len(block)
            return whole

        return self._side_by_side(gather)

    def _spill(self) -> list[IO[bytes]]:
        """Every column in an unnamed file, gone with the process however it ends."""
        if self._scratch:
            self._scratch.mkdir(parents=True, exist_ok=True)

        def spill(column: int) -> IO[bytes]:
            stream: IO[bytes] = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115
            weakref.finalize(self, stream.close)
            for block in self._blocks(column):
                stream.write(np.ascontiguousarray(block).data)
            stream.flush()
            return stream

        try:
            return self._side_by_side(spill)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DiskError(
                f"no space for a temporary copy of the vectors: {first_line(error)}",
                where=self._scratch or tempfile.gettempdir(),
                expected=f"{self.nbytes / 1e9:.1f} GB free",
                fix="Free some space, or name another cache_dir.",
            ) from error

    def _side_by_side(self, copy: Callable[[int], _Copy]) -> list[_Copy]:
        with ThreadPoolExecutor(len(self.columns)) as pool:
            return list(pool.map(copy, range(len(self.columns))))

    def _blocks(self, column: int) -> Iterator[np.ndarray]:
        """float32 [rows, width] of one column, zeros for null, all through the files."""
        name = self.columns[column]
        for path, where in self._paths:
            with open_parquet(path, pa.schema([]), where=where) as file:
                batches = file.iter_batches(_BATCH_ROWS, columns=[name], use_threads=False)
                while True:
                    with telling(where):  # what the writer of the copy raises is not the file's fault
                        batch = next(batches, None)
                    if batch is None:
                        break
                    yield read_vectors(pa.Table.from_batches([batch]), name, self.width, where)[0]

    def close(self) -> None:
        """Let go of files and copies."""
        for stream in [*self._files, *(self._spilled or ())]:
            stream.close()
        self._spilled = self._gathered = self._decoded = None


def _read_rows(stream: IO[bytes], rows: np.ndarray, there: np.ndarray, out: np.ndarray) -> None:
    """Fill out[there] with those rows of a file of float32 rows; neighbours in both are read at once.

    Plain reads, because a memory map would count every page around every row as this process's memory.
    """
    size = out.shape[1] * out.itemsize
    breaks = np.flatnonzero((np.diff(rows[there]) != 1) | (np.diff(there) != 1)) + 1
    for run in np.split(there, breaks):
        if len(run):
            os.preadv(stream.fileno(), [out[run[0] : run[-1] + 1].data], int(rows[run[0]]) * size)


def fixed_lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """A float32 matrix [n, width] as n fixed-size lists, without null."""
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def present(matrix: np.ndarray) -> np.ndarray:
    """Which of the vectors [n, width] are not all zeros: bool [n]."""
    found: np.ndarray = matrix[:, 0] != 0
    doubtful = np.flatnonzero(~found)
    found[doubtful] = matrix[doubtful].any(axis=1)
    return found
