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

from sqid_lib.errors import DiskError, first_line
from sqid_lib.files import File
from sqid_lib.tables.keys import check_unique_in_splits
from sqid_lib.tables.reader import column_names, conform, open_parquet, reporting
from sqid_lib.tables.vector_columns import read_vectors, vector_width

_BATCH_ROWS = 1_024
_Copy = TypeVar("_Copy")
_BLOCK_ROWS = 16_384  # 50 MB of width 768: malloc gives blocks above 32 MB back to the system at once
_DIRECT_GROUP_ROWS = 16_384  # a larger row group is not decoded whole for a few of its rows


class VectorLookup:
    """The vectors of one or more parquet files with the same columns, rows numbered through all of them.

    Row groups are decoded as they are needed where the rows wanted lie in file order, as in a release. Where they lie
    scattered, as in the published file, the vectors are copied once and gathered from there: to memory if they fit into
    `memory` bytes, else to an unnamed temporary file.

    Args:
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
                keys.append(conform(parquet.read(columns=have.names), have, file.url))
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
        """The vectors of `rows` (int64 [n], each at most once, -1 for none), in that order; chooses how to read."""
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
            with reporting(self._files[file].url):
                table = self._opened[file].read_row_group(number, columns=list(self.columns))
            self._decoded = (group, self._dense(table, self._files[file].url))
        return self._decoded[1]

    def _dense(self, table: pa.Table, where: str) -> list[np.ndarray]:
        """For each column float32 [rows, width], zeros for null."""
        return [read_vectors(table, name, self.width, where)[0] for name in self.columns]

    def gather(self, rows: np.ndarray) -> list[list[np.ndarray | None]]:
        """For each column its vectors of `rows`, as float32 [up to 16,384, width] blocks.

        Each vector is put at its place as it is decoded, so that there is no second copy.
        """
        places = np.full(self.keys.num_rows, -1, np.int64)
        places[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        starts = range(0, len(rows), _BLOCK_ROWS)

        def gather(column: int) -> list[np.ndarray | None]:
            blocks = [np.zeros((min(_BLOCK_ROWS, len(rows) - i), self.width), np.float32) for i in starts]
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
        for file in self._files:
            with open_parquet(file) as parquet:
                batches = parquet.iter_batches(_BATCH_ROWS, columns=[name], use_threads=False)
                while True:
                    with reporting(file.url):  # around the read alone: errors of writing the copy are not the file's
                        batch = next(batches, None)
                    if batch is None:
                        break
                    yield read_vectors(pa.Table.from_batches([batch]), name, self.width, file.url)[0]

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
        self._given_back = 0

    def take(self, start: int, stop: int) -> list[np.ndarray]:
        """float32 [stop - start, width] for each column, zeros where there is no vector; not to be written to.

        Memory of the rows before `start` is given back: what is written next finds it. To ask for them again is slow.
        """
        if self._blocks is None:
            return self._vectors.take(self._rows[start:stop])
        if start < self._given_back * _BLOCK_ROWS:
            self._blocks, self._given_back = self._vectors.gather(self._rows), 0
        first, last = start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)
        for blocks in self._blocks:
            blocks[self._given_back : first] = [None] * (first - self._given_back)
        self._given_back = first
        return [_rows_of(blocks[first:last], start - first * _BLOCK_ROWS, stop - start) for blocks in self._blocks]


def _rows_of(blocks: Sequence[np.ndarray | None], start: int, count: int) -> np.ndarray:
    """Rows of neighbouring blocks; a view if they are of one."""
    there = [block for block in blocks if block is not None]
    if len(there) == 1:
        return there[0][start : start + count]
    return np.concatenate([there[0][start:], *there[1:]])[:count]


def _read_rows(stream: IO[bytes], rows: np.ndarray, there: np.ndarray, out: np.ndarray) -> None:
    """Fill out[there] with those rows of a file of float32 rows; neighbours in both are read at once.

    Plain reads, because a memory map would count every page around every row as this process's memory.
    """
    size = out.shape[1] * out.itemsize
    breaks = np.flatnonzero((np.diff(rows[there]) != 1) | (np.diff(there) != 1)) + 1
    for run in np.split(there, breaks):
        if len(run):
            os.preadv(stream.fileno(), [out[run[0] : run[-1] + 1].data], int(rows[run[0]]) * size)
