"""A release read in place: its judgments and queries in memory, its products row group by row group."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sqid_lib import schemas, sources
from sqid_lib.errors import CorruptFileError, IntegrityError, MissingFileError, SchemaError, StoreError
from sqid_lib.files import File, parse_shard_name
from sqid_lib.sources import Address, open_ranges
from sqid_lib.sources.retry import downloading
from sqid_lib.streams.batches import Rows
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import open_parquet, read_parquet, reporting
from sqid_lib.tables.vector_columns import dense, read_vectors

T = TypeVar("T")
_PIECE = 256  # rows decoded at once; 1.5 MB at width 768
_COLUMNS = ["product_id", "product_locale", "has_image", *schemas.VECTOR_COLUMNS]


class Judgments:
    """The judgments that the filters keep, and their queries, in memory."""

    def __init__(self, tables: list[tuple[str, pa.Table]], width: int) -> None:
        self.width = width
        judged = np.concatenate([dense(table["query_id"]) for _, table in tables])
        self.gain: npt.NDArray[np.float32] = np.concatenate([dense(table["gain"]) for _, table in tables])
        self.query_ids, rows = np.unique(judged, return_inverse=True)
        self.query_rows: Rows = rows.astype(np.int64)
        self.query_features = np.empty((len(self.query_ids), width), np.float32)
        parts = (self.query_ids, self.query_rows, self.gain)
        self.digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]
        self._by_split: dict[str, tuple[pa.Array, Rows, Rows]] = {}
        splits = np.repeat([split for split, _ in tables], [len(table) for _, table in tables])
        for part in dict.fromkeys(split for split, _ in tables):
            keys = key_strings(pa.concat_tables(table for split, table in tables if split == part))
            order = pc.sort_indices(keys)
            keys = keys.take(order)
            new = pc.not_equal(keys[1:], keys[:-1])
            known = pa.concat_arrays([keys[:1], keys[1:].filter(new)])
            starts = np.concatenate([[0], np.flatnonzero(dense(new)) + 1, [len(keys)]])
            self._by_split[part] = (known, starts, np.flatnonzero(splits == part)[dense(order)])

    def read_queries(self, files: Iterable[File]) -> None:
        """Fill `query_features`. A query occurs several times if it is judged in several splits."""
        missing = np.ones(len(self.query_ids), np.bool_)
        columns = ["query_id", schemas.VECTOR_COLUMNS[0]]
        for file in files:
            with open_parquet(file) as parquet, reporting(file.url):
                for piece in parquet.iter_batches(_PIECE, columns=columns):
                    ids = dense(piece["query_id"])
                    rows = np.searchsorted(self.query_ids, ids).clip(max=len(missing) - 1)
                    asked = (self.query_ids[rows] == ids) & missing[rows]
                    vectors, _ = read_vectors(pa.Table.from_batches([piece]), columns[1], self.width, file.url)
                    self.query_features[rows[asked]] = vectors[asked]
                    missing[rows[asked]] = False
        if missing.any():
            raise IntegrityError("a judged query is not in the release", where=schemas.JUDGMENTS)

    def of(self, keys: pa.Array, split: str) -> tuple[Rows, Rows]:
        """The pairs of some products: their position in `keys`, and the judgment."""
        if split not in self._by_split:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        known, starts, judgments = self._by_split[split]
        least, most = pc.min_max(keys).values()  # of a sorted release, so that few of `known` need a look
        low, high = (
            side(range(len(known)), end.as_py() or "", key=lambda n: known[n].as_py())
            for side, end in ((bisect_left, least), (bisect_right, most))
        )
        found = pc.index_in(keys, value_set=known[low:high])
        rows, nth = np.flatnonzero(dense(found.is_valid())), dense(found.drop_null()) + low
        first, counts = starts[nth], starts[nth + 1] - starts[nth]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(rows, counts), judgments[np.repeat(first, counts) + within]


def read_judgments(
    release: Release, labels: Iterable[str] | None, split: str | None, queries: Iterable[int] | None
) -> Judgments:
    """The judgments that the filters keep; errors as `stream_pairs`."""
    wanted = None if queries is None else pa.array(sorted(queries), pa.int64())
    grades = None if labels is None else pa.array(sorted(labels), pa.string())
    tables = []
    for part, file in release.judgments:
        table = read_parquet(file, _JUDGMENT_SCHEMA)
        for column, values in (("esci_label", grades), ("query_id", wanted)):
            if values is not None:
                table = table.filter(pc.is_in(table[column], value_set=values))
        if len(table) and split in (None, part):
            tables.append((part, table))
    if not tables:
        raise StoreError("no judgment is left", where=release.name, fix="Loosen the filters.")
    judged = Judgments(tables, release.width)
    tables.clear()
    del table
    judged.read_queries(release.queries)
    pa.default_memory_pool().release_unused()
    return judged


_JUDGMENT_SCHEMA = pa.schema(
    [
        schemas.config_schema(schemas.JUDGMENTS).field(name)
        for name in ("query_id", "product_id", "product_locale", "esci_label", "gain")
    ]
)


class FeatureFile:
    """A parquet file of product_features, here or elsewhere; every process that reads it opens it itself."""

    def __init__(self, file: File, split: str, first_row: int) -> None:
        self.file, self.split, self.first_row = file, split, first_row
        self._close()
        self.metadata: pq.FileMetaData = None
        self.metadata = self._reporting(lambda: self._open().metadata, file.url)

    def _close(self) -> None:
        self._file: pq.ParquetFile | None = None
        self._lock = threading.Lock()  # two threads that read ahead in one ParquetFile can wait for each other forever
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._close()

    def enter_process(self) -> None:
        """To call before threads read: a forked process must not use its parent's connections and locks."""
        if self._pid != os.getpid():
            self._close()

    def first_of(self, group: int) -> int:
        """The first row of a row group, counted through the files of the release."""
        return self.first_row + sum(int(self.metadata.row_group(before).num_rows) for before in range(group))

    def read(self, group: int, use: Callable[[Iterator[pa.Table]], T]) -> T:
        """What `use` makes of a row group, which comes in small pieces: decoding whole ones takes 50 MB more.

        `use` is called again from the start if the network fails; DownloadError if it keeps failing.
        """
        result: T = self._reporting(lambda: self._read(group, use), f"{self.file}, row group {group}")
        return result

    def _reporting(self, call: Callable[[], Any], where: str) -> Any:
        if not self.file.local:
            return downloading(call, where)
        with reporting(where):
            return call()

    def _read(self, group: int, use: Callable[[Iterator[pa.Table]], T]) -> T:
        with self._lock:
            try:
                return use(self._pieces(group))
            except BaseException:
                self._file = None  # a broken connection is not asked again
                raise

    def _pieces(self, group: int) -> Iterator[pa.Table]:
        rows, expected = 0, self.metadata.row_group(group).num_rows
        for piece in self._open().iter_batches(_PIECE, row_groups=[group], columns=_COLUMNS):
            rows += len(piece)
            yield pa.Table.from_batches([piece])
        if rows != expected:
            raise CorruptFileError("the row group is cut", where=self.file, expected=expected, got=f"{rows} rows")

    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            if not self.file.local:
                # without a cache: pyarrow asks for whole columns, each once
                stream = pa.PythonFile(open_ranges(self.file.url, cache=False), mode="r")
                self._file = pq.ParquetFile(stream, metadata=self.metadata, pre_buffer=True)
            else:
                self._file = pq.ParquetFile(
                    self.file.path, metadata=self.metadata, buffer_size=1 << 20, pre_buffer=False
                )
        return self._file


@dataclass(frozen=True)
class Release:
    """The files of a release that pairs are made of; `name` tells it from others."""

    name: str
    features: tuple[FeatureFile, ...]
    queries: tuple[File, ...]
    judgments: tuple[tuple[str, File], ...]  # split, file

    @property
    def width(self) -> int:
        """Floats in a vector."""
        first = self.features[0]
        schema = first.metadata.schema.to_arrow_schema()
        missing = [name for name in _COLUMNS if name not in schema.names]
        if missing or not pa.types.is_fixed_size_list(schema.field(schemas.VECTOR_COLUMNS[0]).type):
            fix = "Use EmbeddingStore.open for other files."
            raise SchemaError("not the columns of a release", where=first.file, got=schema.names, fix=fix)
        return int(schema.field(schemas.VECTOR_COLUMNS[0]).type.list_size)


def open_release(address: Address) -> Release:
    """The release at an address, on the Hub at the commit its revision stands for now; errors as `stream_pairs`."""
    files = sources.listing(address)
    parts = {
        config: fnmatch.filter(files, f"data/{config}/*.parquet")
        for config in (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS)
    }
    for config, found in parts.items():
        if not found:
            raise MissingFileError("the release lacks a part", where=address, expected=f"data/{config}/*.parquet")
    features: list[FeatureFile] = []
    rows = 0
    for name in sorted(parts[schemas.FEATURES]):
        features.append(FeatureFile(files[name], _split(name), rows))
        rows += features[-1].metadata.num_rows
    here = {
        name: sources.download(files[name]) for config in (schemas.QUERIES, schemas.JUDGMENTS) for name in parts[config]
    }
    judgments = tuple((_split(name), here[name]) for name in sorted(parts[schemas.JUDGMENTS]))
    first = features[0].file
    name = first.url.removesuffix(sorted(parts[schemas.FEATURES])[0]).rstrip("/")
    return Release(name, tuple(features), tuple(here[name] for name in sorted(parts[schemas.QUERIES])), judgments)


def _split(name: str) -> str:
    shard = parse_shard_name(name)
    return shard.split if shard else Path(name).stem
