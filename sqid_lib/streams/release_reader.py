"""A release read where it lies: its judgments and queries in memory, its products row group by row group."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
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

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, IntegrityError, MissingFileError, SchemaError, StoreError, UsageError
from sqid_lib.files import parse_shard_name
from sqid_lib.sources import retrying
from sqid_lib.streams.batches import Rows
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet, telling
from sqid_lib.tables.vector_columns import dense, open_parquet, read_vectors

T = TypeVar("T")
_PIECE = 256  # rows decoded at once; 1.5 MB at width 768
_COLUMNS = ["product_id", "product_locale", "has_image", *schemas.VECTOR_COLUMNS]


class Judged:
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

    def read_queries(self, paths: Iterable[Path]) -> None:
        """Fill `query_features`. A query may be there several times, if it is judged in several splits."""
        missing = np.ones(len(self.query_ids), np.bool_)
        columns = ["query_id", schemas.VECTOR_COLUMNS[0]]
        for path in paths:
            with open_parquet(path) as file, telling(str(path)):
                for piece in file.iter_batches(_PIECE, columns=columns):
                    ids = dense(piece["query_id"])
                    rows = np.searchsorted(self.query_ids, ids).clip(max=len(missing) - 1)
                    asked = (self.query_ids[rows] == ids) & missing[rows]
                    vectors, _ = read_vectors(pa.Table.from_batches([piece]), columns[1], self.width, str(path))
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


def read_judged(
    release: Release, labels: Iterable[str] | None, split: str | None, queries: Iterable[int] | None
) -> Judged:
    wanted = None if queries is None else pa.array(sorted(queries), pa.int64())
    grades = None if labels is None else pa.array(sorted(labels), pa.string())
    tables = []
    for part, path in release.judgments:
        table = read_parquet(str(path), _JUDGMENT_SCHEMA)
        for column, values in (("esci_label", grades), ("query_id", wanted)):
            if values is not None:
                table = table.filter(pc.is_in(table[column], value_set=values))
        if len(table) and split in (None, part):
            tables.append((part, table))
    if not tables:
        raise StoreError("no judgment is left", where=release.name, fix="Loosen the filters.")
    judged = Judged(tables, release.width)
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


class Shard:
    """A parquet file, here or at a commit on the Hub; opened by whoever reads it."""

    def __init__(self, path: str, split: str, first_row: int) -> None:
        self.path, self.split, self.first_row = path, split, first_row
        self._close()
        self.metadata: pq.FileMetaData = None
        self.metadata = self._telling(lambda: self._open().metadata, path)

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
        """Before threads read: a fork must not share a connection, nor a lock that a thread it lacks holds."""
        if self._pid != os.getpid():
            self._close()

    def first_of(self, group: int) -> int:
        """The first row of a row group, counted through the files of the release."""
        return self.first_row + sum(int(self.metadata.row_group(before).num_rows) for before in range(group))

    def read(self, group: int, use: Callable[[Iterator[pa.Table]], T]) -> T:
        """What `use` makes of a row group, which comes in small pieces: decoding whole ones takes 50 MB more.

        `use` is called again from the start if the network fails; DownloadError if it keeps failing.
        """
        result: T = self._telling(lambda: self._read(group, use), f"{self.path}, row group {group}")
        return result

    def _telling(self, call: Callable[[], Any], where: str) -> Any:
        if "://" in self.path:
            return retrying(call, where)
        with telling(where):
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
            raise CorruptFileError("the row group is cut", where=self.path, expected=expected, got=f"{rows} rows")

    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            if "://" in self.path:
                from huggingface_hub import HfFileSystem

                # no cache of fsspec's: pyarrow asks for whole columns, each once
                stream = pa.PythonFile(HfFileSystem().open(self.path, "rb", cache_type="none"), mode="r")
                self._file = pq.ParquetFile(stream, metadata=self.metadata, pre_buffer=True)
            else:
                self._file = pq.ParquetFile(self.path, metadata=self.metadata, buffer_size=1 << 20, pre_buffer=False)
        return self._file


@dataclass(frozen=True)
class Release:
    name: str
    shards: tuple[Shard, ...]  # of product_features
    queries: tuple[Path, ...]
    judgments: tuple[tuple[str, Path], ...]

    @property
    def width(self) -> int:
        schema = self.shards[0].metadata.schema.to_arrow_schema()
        missing = [name for name in _COLUMNS if name not in schema.names]
        if missing or not pa.types.is_fixed_size_list(schema.field(schemas.VECTOR_COLUMNS[0]).type):
            fix = "Use EmbeddingStore.open for other files."
            raise SchemaError("not the columns of a release", where=self.shards[0].path, got=schema.names, fix=fix)
        return int(schema.field(schemas.VECTOR_COLUMNS[0]).type.list_size)


def open_release(dir_or_repo: str | Path, revision: str | None) -> Release:
    directory = Path(dir_or_repo)
    if directory.is_dir():
        if revision is not None:
            raise UsageError("revision is for Hub repos", where=directory, got=revision)
        names = sorted(path.relative_to(directory).as_posix() for path in (directory / "data").rglob("*.parquet"))
        return _release(str(directory), names, {name: str(directory / name) for name in names}, directory.joinpath)
    repo = str(dir_or_repo).removeprefix("hf://datasets/")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", repo):
        raise MissingFileError("no such directory", where=repo, expected="a directory or a Hub repo ORG/name")
    repo, _, at = repo.partition("@")
    from huggingface_hub import HfApi, hf_hub_download

    info = retrying(lambda: HfApi().dataset_info(repo, revision=revision or at or None), repo)
    names = sorted(file.rfilename for file in info.siblings)

    def download(name: str) -> Path:
        call = lambda: hf_hub_download(repo, name, repo_type="dataset", revision=info.sha)  # noqa: E731
        return Path(retrying(call, f"{repo}@{info.sha}/{name}"))

    urls = {name: f"hf://datasets/{repo}@{info.sha}/{name}" for name in names}
    return _release(f"{repo}@{info.sha}", names, urls, download)


def _release(name: str, names: list[str], urls: dict[str, str], fetch: Callable[[str], Path]) -> Release:
    parts = {
        config: fnmatch.filter(names, f"data/{config}/*.parquet")
        for config in (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS)
    }
    for config, found in parts.items():
        if not found:
            raise MissingFileError("the release lacks a part", where=name, expected=f"data/{config}/*.parquet")
    shards: list[Shard] = []
    rows = 0
    for file in parts[schemas.FEATURES]:
        shards.append(Shard(urls[file], _split(file), rows))
        rows += shards[-1].metadata.num_rows
    judgments = tuple((_split(file), fetch(file)) for file in parts[schemas.JUDGMENTS])
    return Release(name, tuple(shards), tuple(map(fetch, parts[schemas.QUERIES])), judgments)


def _split(name: str) -> str:
    shard = parse_shard_name(name)
    return shard.split if shard else Path(name).stem
