"""Vectors of feature files, found by key, without a whole file in memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import pyarrow as pa

from sqid_lib.errors import DiskError, first_line
from sqid_lib.files import File
from sqid_lib.sources.retry import MOVE_CACHE
from sqid_lib.tables.keys import check_unique_in_splits, trimmed
from sqid_lib.tables.reader import column_names, conform, open_parquet, reporting
from sqid_lib.tables.vector_columns import present, read_vectors, vector_width

_BATCH_ROWS = 1_024
_Copy = TypeVar("_Copy")
_BLOCK_ROWS = 16_384  # 50 MB of width 768: malloc gives blocks above 32 MB back to the system at once
_DIRECT_GROUP_ROWS = 16_384  # a larger row group is not decoded whole for a few of its rows


class VectorLookup:
    """The vectors of one or more parquet files with the same columns, rows numbered through all of them.

    Where the wanted rows are in file order, as in a release, row groups are decoded as they are needed. Where they are
    scattered, as in the published file, the vectors are first copied and then read from the copy: in memory if they fit
    into `memory` bytes, else in an unnamed temporary file.

    Args:
        key: columns that identify a row; `product_locale` may be absent from the files.
        columns: vector columns, all of the same width; see `read_vectors` for what is a missing vector.
        scratch: directory for the temporary file; made if absent.
        memory: bytes of vectors that may be in memory at once.

    Attributes:
        keys: table of the key columns the files have, a row per vector row.
        width: number of float32 in each vector.

    Raises:
        SourceError: as `tables.open_parquet`; SchemaError for vectors of unequal width.
        ContractError: a vector with NaN or infinity beside numbers, when it is read.
        DuplicateKeyError: a key occurs twice.
    """

    def __init__(
        self,
        files: Sequence[File],
        key: pa.Schema,
        columns: Sequence[str],
        scratch: Path | None = None,
        memory: int = 0,
    ) -> None:
        self.columns, self._memory = tuple(columns), memory
        self._files = list(files)
        self._scratch = scratch
        vector = pa.list_(pa.float32())
        self._opened, keys = [], []
        for file in files:
            names = column_names(file)
            have = pa.schema([f for f in key if f.name in names or f.name != "product_locale"])
            wanted = pa.schema([*have, *((c, vector) for c in columns)])
            parquet = open_parquet(file, wanted)
            self._opened.append(parquet)
            with reporting(file.url):
                keys.append(trimmed(conform(parquet.read(columns=have.names), have, file.url), file.url))
        check_unique_in_splits(keys, files, keys[0].column_names, "vector")
        self.keys = pa.concat_tables(keys)
        self.width = vector_width(files, self.columns)
        self._groups = [
            (f, g, parquet.metadata.row_group(g).num_rows)
            for f, parquet in enumerate(self._opened)
            for g in range(parquet.metadata.num_row_groups)
        ]
        self._starts = np.cumsum([0, *(rows for _, _, rows in self._groups)])
        self._decoded: tuple[int, list[np.ndarray]] | None = None
        self._spilled: list[IO[bytes]] | None = None

    def in_order(self, rows: np.ndarray) -> OrderedVectors:
        """The vectors of `rows` (int64 [n], each at most once, -1 for none), in that order; decides how to read."""
        there = rows[rows >= 0]
        groups = np.searchsorted(self._starts, there, side="right")
        decodes = 1 + int(np.count_nonzero(np.diff(groups)))
        largest = max((rows for _, _, rows in self._groups), default=0)
        direct = decodes <= 2 * len(self._groups) and largest <= _DIRECT_GROUP_ROWS
        fits = len(rows) * self.width * 4 * len(self.columns) <= self._memory
        if not direct and not fits:
            self._spilled = self._spilled or self._spill()
        return OrderedVectors(self, rows, gather=fits and not direct and len(rows) > 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors as float32."""
        return int(self.keys.num_rows * self.width * 4 * len(self.columns))

    def present(self, column: str) -> np.ndarray:
        """Which rows have a vector in a column that is not all zeros: bool [rows]; reads the whole column."""
        blocks = self._blocks(self.columns.index(column))
        return np.concatenate([np.zeros(0, np.bool_), *map(present, blocks)])

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Vectors of `rows` (int64 [n], -1 for none): float32 [n, width] for each column, zeros where there is none."""
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
            where = self._files[file].url
            first = int(self._starts[group] - self._starts[group - number])  # of the group, in its file
            # a thread of pyarrow that met an exception of a download would abort the interpreter as it ends
            local = "://" not in self._files[file].path
            with reporting(where):
                table = self._opened[file].read_row_group(number, columns=list(self.columns), use_threads=local)
            self._decoded = (group, [read_vectors(table, name, self.width, where, first)[0] for name in self.columns])
        return self._decoded[1]

    def gather(self, rows: np.ndarray) -> list[list[np.ndarray | None]]:
        """For each column the vectors of `rows`, as float32 blocks of up to [16,384, width].

        Each vector is written to its final place when it is decoded, so that there is no second copy.
        """
        places = np.full(self.keys.num_rows, -1, np.int64)
        places[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        starts = range(0, len(rows), _BLOCK_ROWS)

        def gather(column: int) -> list[np.ndarray | None]:
            blocks = [np.empty((min(_BLOCK_ROWS, len(rows) - i), self.width), np.float32) for i in starts]
            for block in blocks:  # touched here, where numpy leaves the interpreter's lock, and not row by row below
                block.fill(0)
            at = 0
            for decoded in self._blocks(column):
                place = places[at : at + len(decoded)]
                at += len(decoded)
                order = np.argsort(place)
                edges = np.searchsorted(place[order], [*starts, len(rows)])
                for block, first, last in zip(blocks, edges[:-1], edges[1:], strict=True):
                    chosen = order[first:last]
                    block[place[chosen] % _BLOCK_ROWS] = decoded[chosen]
            return list(blocks)

        return self._in_parallel(gather)

    def _spill(self) -> list[IO[bytes]]:
        """Every column in an unnamed file, which the system removes when the process ends in any way."""

        def spill(column: int) -> IO[bytes]:
            stream: IO[bytes] = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115
            weakref.finalize(self, stream.close)
            for block in self._blocks(column):
                stream.write(np.ascontiguousarray(block).data)
            stream.flush()
            return stream

        try:
            if self._scratch:
                self._scratch.mkdir(parents=True, exist_ok=True)
            return self._in_parallel(spill)
        except OSError as error:
            raise DiskError(
                f"no temporary copy of the vectors can be written: {error.strerror or first_line(error)}",
                where=self._scratch or tempfile.gettempdir(),
                expected=f"{self.nbytes / 1e9:.1f} GB free",
                fix=MOVE_CACHE,
            ) from error

    def _in_parallel(self, copy: Callable[[int], _Copy]) -> list[_Copy]:
        with ThreadPoolExecutor(len(self.columns)) as pool:
            return list(pool.map(copy, range(len(self.columns))))

    def _blocks(self, column: int) -> Iterator[np.ndarray]:
        """float32 [rows, width] of one column, zeros for missing vectors, through all files."""
        name = self.columns[column]
        for file in self._files:
            with open_parquet(file) as parquet:
                batches, first = parquet.iter_batches(_BATCH_ROWS, columns=[name], use_threads=False), 0
                while True:
                    with reporting(file.url):  # around the read alone: errors of writing the copy are not the file's
                        batch = next(batches, None)
                    if batch is None:
                        break
                    yield read_vectors(pa.Table.from_batches([batch]), name, self.width, file.url, first)[0]
                    first += batch.num_rows

    def close(self) -> None:
        """Close the files and the temporary copies."""
        for stream in [*self._opened, *(self._spilled or ())]:
            stream.close()
        self._spilled = self._decoded = None


class OrderedVectors:
    """Vectors of chosen rows in the order they are wanted; made by `VectorLookup.in_order`.

    Attributes:
        width: number of float32 in each vector.
    """

    def __init__(self, vectors: VectorLookup, rows: np.ndarray, *, gather: bool) -> None:
        self.width = vectors.width
        self._vectors, self._rows = vectors, rows
        self._blocks = vectors.gather(rows) if gather else None
        self._freed = 0

    def take(self, start: int, stop: int) -> list[np.ndarray]:
        """float32 [stop - start, width] for each column, zeros where there is no vector; read-only.

        The memory of the rows before `start` is freed. Asking for them again is slow.
        """
        if self._blocks is None:
            return self._vectors.take(self._rows[start:stop])
        if start < self._freed * _BLOCK_ROWS:
            self._blocks, self._freed = self._vectors.gather(self._rows), 0
        first, last = start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)
        for blocks in self._blocks:
            blocks[self._freed : first] = [None] * (first - self._freed)
        self._freed = first
        return [_rows_of(blocks[first:last], start - first * _BLOCK_ROWS, stop - start) for blocks in self._blocks]


def _rows_of(blocks: Sequence[np.ndarray | None], start: int, count: int) -> np.ndarray:
    """Rows of neighbouring blocks; a view where they are in one block."""
    there = [block for block in blocks if block is not None]
    if len(there) == 1:
        return there[0][start : start + count]
    return np.concatenate([there[0][start:], *there[1:]])[:count]


def _read_rows(stream: IO[bytes], rows: np.ndarray, there: np.ndarray, out: np.ndarray) -> None:
    """Fill out[there] with those rows of a file of float32 rows; rows next to each other in both are read at once.

    Plain reads, because with a memory map all pages around each row would count as memory of this process.
    """
    size = out.shape[1] * out.itemsize
    breaks = np.flatnonzero((np.diff(rows[there]) != 1) | (np.diff(there) != 1)) + 1
    for run in np.split(there, breaks):
        if len(run):
            os.preadv(stream.fileno(), [out[run[0] : run[-1] + 1].data], int(rows[run[0]]) * size)
