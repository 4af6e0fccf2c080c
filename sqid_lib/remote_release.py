"""A release read where it lies: its judgments and queries in memory, its products row group by row group."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.batches import Rows
from sqid_lib.errors import CorruptFileError, IntegrityError, MissingFileError, SchemaError, StoreError, UsageError
from sqid_lib.parquet import read_vectors, row_groups
from sqid_lib.selection import key_strings
from sqid_lib.sources import retrying
from sqid_lib.tables import read_parquet, telling

_COLUMNS = ["product_id", "product_locale", "has_image", *schemas.VECTOR_COLUMNS]
_SPLIT = re.compile(r"(?P<split>.+?)(-\d{5}-of-\d{5})?\.parquet$")


class Judged:
    """The judgments that the filters keep, and the queries, in memory."""

    def __init__(self, tables: list[tuple[str, pa.Table]], queries: pa.Table, width: int) -> None:
        self.width = width
        self.query_features, _ = read_vectors(queries, schemas.VECTOR_COLUMNS[0], width, schemas.QUERIES)
        self.query_ids: Rows = queries["query_id"].to_numpy()
        table = pa.concat_tables(table for _, table in tables)
        self.gain: npt.NDArray[np.float32] = table["gain"].to_numpy()
        rows = pc.index_in(table["query_id"], value_set=queries["query_id"])
        if rows.null_count:
            raise IntegrityError("a judged query is not in the release", where=schemas.JUDGMENTS)
        self.query_rows = rows.to_numpy().astype(np.int64)
        self.digest = hashlib.sha256(self.query_rows.tobytes() + self.gain.tobytes()).hexdigest()[:16]
        self._by_split: dict[str, tuple[pa.Array, Rows, Rows]] = {}
        splits = np.repeat([split for split, _ in tables], [len(table) for _, table in tables])
        for split in dict.fromkeys(split for split, _ in tables):
            mine = np.flatnonzero(splits == split)
            encoded = key_strings(table.take(mine)).dictionary_encode()
            codes = encoded.indices.to_numpy()
            order = np.argsort(codes, kind="stable")
            starts = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
            self._by_split[split] = (encoded.dictionary, starts, mine[order])

    def of(self, keys: pa.Array, split: str) -> tuple[Rows, Rows]:
        """The pairs of some products: their position in `keys`, and the judgment."""
        if split not in self._by_split:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        known, starts, judgments = self._by_split[split]
        found = pc.fill_null(pc.index_in(keys, value_set=known), -1).to_numpy().astype(np.int64)
        rows = np.flatnonzero(found >= 0)
        first, counts = starts[found[rows]], np.diff(starts)[found[rows]]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(rows, counts), judgments[np.repeat(first, counts) + within]


def read_judged(
    release: Release, labels: Iterable[str] | None, split: str | None, queries: Iterable[int] | None
) -> Judged:
    read = [table for table, _ in row_groups(release.queries, ("query_id", schemas.VECTOR_COLUMNS[0]))]
    query_table = pa.concat_tables(read)
    # a query may be judged in several splits
    _, first = np.unique(query_table["query_id"].to_numpy(), return_index=True)
    if len(first) < len(query_table):
        query_table = query_table.take(np.sort(first))
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
    judged = Judged(tables, query_table, release.width)
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
        self._file: pq.ParquetFile | None = None
        self._lock = threading.Lock()  # two threads that read ahead in one ParquetFile can wait for each other forever
        self.metadata: pq.FileMetaData = None
        self.metadata = self._telling(lambda: self._open().metadata, path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._lock = threading.Lock()

    def first_of(self, group: int) -> int:
        """The first row of a row group, counted through the files of the release."""
        return self.first_row + sum(int(self.metadata.row_group(before).num_rows) for before in range(group))

    def read(self, group: int) -> pa.Table:
        """One row group, asked for again if the network fails; DownloadError if it keeps failing."""
        table: pa.Table = self._telling(lambda: self._read(group), f"{self.path}, row group {group}")
        return table

    def _telling(self, call: Callable[[], Any], where: str) -> Any:
        if "://" in self.path:
            return retrying(call, where)
        with telling(where):
            return call()

    def _read(self, group: int) -> pa.Table:
        try:
            with self._lock:
                table = self._open().read_row_group(group, columns=_COLUMNS)
        except BaseException:
            self._file = None  # a broken connection is not asked again
            raise
        if table.num_rows != self.metadata.row_group(group).num_rows:
            raise CorruptFileError("the row group is cut", where=self.path, got=f"{table.num_rows} rows")
        return table

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
    match = _SPLIT.match(name.rsplit("/", 1)[1])
    return match["split"] if match else ""
