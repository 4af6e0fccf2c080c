"""A release read in place: which files it has, its product keys, and its products row group by row group."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import schemas, sources
from sqid_lib.cache import cache_places, download_cache
from sqid_lib.errors import CorruptFileError, EmptyFileError, SchemaError
from sqid_lib.files import File
from sqid_lib.sources import Address, open_ranges
from sqid_lib.sources.local import version
from sqid_lib.sources.retry import downloading
from sqid_lib.streams.batches import Arrays, Rows
from sqid_lib.streams.release_files import (
    check_digest,
    check_listed,
    configs_without_rows,
    parts,
    shards,
    stated_digests,
)
from sqid_lib.streams.texts import check_texts
from sqid_lib.tables.reader import check_columns, reporting
from sqid_lib.tables.vector_columns import check_width
from sqid_lib.tables.vector_pages import UnusualPages, fill_vectors

T = TypeVar("T")
PIECE = 256  # rows decoded at once; 1.5 MB at width 768
_AT_ONCE = 8  # requests for keys
_GROUPS = 8  # row groups whose keys one connection asks for
_FEATURES = schemas.config_schema(schemas.FEATURES)
_CHECKED = {"page_checksum_verification": True}  # where a file has checksums of its pages


class FeatureFile:
    """A parquet file of product_features, here or elsewhere; every process that reads it opens it itself."""

    def __init__(self, file: File, split: str) -> None:
        self.file, self.split = file, split
        self._close()
        self.metadata: pq.FileMetaData = None
        self.metadata = self._reporting(self._read_footer, file.url)

    def _close(self) -> None:
        self._idle: list[pq.ParquetFile] = []  # one a thread: two in one ParquetFile can wait for each other forever
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._close()

    def enter_process(self) -> None:
        """To call before threads read: a forked process must not use its parent's connections."""
        if self._pid != os.getpid():
            self._close()

    def group_rows(self) -> list[int]:
        """Rows of each row group."""
        return [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]

    def width(self, texts: tuple[str, ...]) -> int:
        """Floats in a vector; SchemaError unless the file has the columns of a release.

        Raises:
            UsageError: it lacks one of `texts`.
        """
        schema = self.metadata.schema.to_arrow_schema()
        check_texts(texts, schemas.kept_columns(schemas.FEATURES, schema))
        fix = "Use EmbeddingStore.open for other files."
        vectors = [schema.field(name).type for name in schemas.VECTOR_COLUMNS if name in schema.names]
        if len(vectors) < len(schemas.VECTOR_COLUMNS) or not all(map(pa.types.is_fixed_size_list, vectors)):
            expected = f"{', '.join(schemas.VECTOR_COLUMNS)} as fixed-size lists"
            raise SchemaError(
                "not the columns of a release", where=self.file, expected=expected, got=schema.names, fix=fix
            )
        kept = {field.name: field for field in schemas.kept_columns(schemas.FEATURES, schema)}
        wanted = (*schemas.PRODUCT_KEY, "has_image", *(name for name in texts if name not in kept))
        check_columns(schema, pa.schema([_FEATURES.field(name) for name in wanted]), str(self.file))
        return check_width(int(vectors[0].list_size), self.file)

    def content(self, stated: str | None) -> str:
        """What identifies the content: its sha256 where that is known, else a hash of the parquet footer.

        The footer, as this pyarrow writes it, has the layout, sizes and statistics of all row groups.

        Args:
            stated: the sha256 in SHA256SUMS; a local file is held against it.
        """
        if self.file.local:
            if stated is not None:
                check_digest(Path(self.file.path), cache_places(), stated)
                return stated
        elif not self.file.version.startswith(sources.http.UNKNOWN):
            return self.file.version.removeprefix(sources.http.SHA256)
        sink = pa.BufferOutputStream()
        self.metadata.write_metadata_file(sink)
        return hashlib.sha256(sink.getvalue()).hexdigest()

    def key_reads(self, columns: list[str]) -> list[Callable[[], pa.Table]]:
        """Calls that together read some small columns of all rows, in order; several may run at once."""
        groups = list(range(self.metadata.num_row_groups))
        size = max(1, len(groups)) if self.file.local else _GROUPS
        return [self._key_read(groups[start : start + size], columns) for start in range(0, len(groups), size)]

    def _key_read(self, groups: list[int], columns: list[str]) -> Callable[[], pa.Table]:
        def read() -> pa.Table:
            with self._new() as file:  # its own: requests of one file wait for each other
                return file.read_row_groups(groups, columns=columns, use_threads=False)

        return lambda: self._reporting(read, f"{self.file}, row groups {groups[0]} to {groups[-1]}")

    def read(self, group: int, stop: int, use: Callable[[Iterator[pa.Table]], T], columns: list[str]) -> T:
        """What `use` makes of the rows of a row group before `stop`, at least; they come in pieces of PIECE rows.

        Decoding whole row groups takes 50 MB more. `use` is called again from the start if the network fails;
        DownloadError if it keeps failing.
        """
        result: T = self._reporting(lambda: self._read(group, stop, use, columns), f"{self.file}, row group {group}")
        return result

    def fill(self, group: int, rows: Rows, out: Arrays) -> bool:
        """Write the vectors in some rows of a row group into `out`, by column; False where `read` has to read them."""
        if not self.file.local:
            return False
        self._check_unchanged()
        try:
            for column, vectors in out.items():
                fill_vectors(Path(self.file.path), self.metadata, group, column, rows, vectors)
        except UnusualPages:
            return False
        return True

    def _reporting(self, call: Callable[[], Any], where: str) -> Any:
        if not self.file.local:
            return downloading(call, where)
        with reporting(where):
            return call()

    def _read_footer(self) -> pq.FileMetaData:
        self._idle.append(self._new())
        return self._idle[0].metadata

    def _read(self, group: int, stop: int, use: Callable[[Iterator[pa.Table]], T], columns: list[str]) -> T:
        try:
            file = self._idle.pop()
        except IndexError:
            file = self._new()
        threads = schemas.VECTOR_COLUMNS[0] in columns  # without vectors there is too little to decode
        batches = file.iter_batches(PIECE, row_groups=[group], columns=columns, use_threads=threads)
        result = use(self._until(stop, (pa.Table.from_batches([batch]) for batch in batches)))
        self._idle.append(file)  # not after an error: a broken connection is not asked again
        return result

    def _until(self, stop: int, pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
        rows = 0
        for piece in pieces:
            rows += len(piece)
            yield piece
            if rows >= stop:
                return
        raise CorruptFileError("the row group is cut", where=self.file, expected=f"{stop} rows", got=rows)

    def _new(self) -> pq.ParquetFile:
        if not self.file.local:
            # without a cache: pyarrow asks for whole columns, each once
            stream = pa.PythonFile(open_ranges(self.file.url, cache=False), mode="r")
            return pq.ParquetFile(stream, metadata=self.metadata, pre_buffer=True, **_CHECKED)
        self._check_unchanged()
        options = {"metadata": self.metadata, "buffer_size": 1 << 20, "pre_buffer": False, **_CHECKED}
        return pq.ParquetFile(self.file.path, **options)

    def _check_unchanged(self) -> None:
        if _size_and_time(version(Path(self.file.path))) != _size_and_time(self.file.version):
            raise CorruptFileError("the file changed while it was streamed", where=self.file, fix="Open it again.")


def _size_and_time(version: str) -> str:
    return version.rpartition("-")[0]  # without the inode, which some network file systems number anew


@dataclass(frozen=True)
class Release:
    """The files of a release that pairs are made of.

    Attributes:
        name: its address, for messages.
        queries, judgments: (split, file); none where a catalogue has none.
        width: floats in a vector.
        content: identifies the content of the feature files, and how they are divided into row groups.
    """

    name: str
    features: tuple[FeatureFile, ...]
    queries: tuple[tuple[str, File], ...]
    judgments: tuple[tuple[str, File], ...]
    width: int
    content: str

    def read_keys(self, columns: list[str]) -> list[tuple[str, pa.Table]]:
        """(split, table) with some small columns of all products, in order."""
        reads = [(file.split, read) for file in self.features for read in file.key_reads(columns)]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sqid-keys") as pool:
            tables = list(pool.map(lambda read: read[1](), reads))
        return [(split, table) for (split, _), table in zip(reads, tables, strict=True)]

    def groups(self) -> tuple[list[tuple[FeatureFile, int]], Rows]:
        """The row groups of all files, and [groups + 1] the first row of each, counted through the files."""
        groups = [(file, group) for file in self.features for group in range(file.metadata.num_row_groups)]
        rows = [rows for file in self.features for rows in file.group_rows()]
        return groups, np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)


def open_release(address: Address, texts: tuple[str, ...] = ()) -> Release:
    """The release at an address, on the Hub at the commit its revision stands for now; errors as `stream_pairs`.

    Args:
        texts: further columns of product_features that will be read.
    """
    files = sources.listing(address)
    found = parts(files, address, _without_rows(files, address))
    features = tuple(FeatureFile(files[name], split) for split, name in found[schemas.FEATURES])
    if not any(file.metadata.num_rows for file in features):
        raise EmptyFileError(f"{schemas.FEATURES} has no rows", where=features[0].file)
    widths = {file.width(texts) for file in features}
    if len(widths) > 1:
        raise SchemaError(
            "files differ in the width of vectors", where=address, expected="one width", got=sorted(widths)
        )
    stated = stated_digests(Path(address.path)) if address.local else {}
    check_listed(stated, files, Path(address.path))
    contents = [file.content(stated.get(Path(file.file.path))) for file in features]
    here = {
        config: tuple((split, _local(files[name], stated)) for split, name in found[config])
        for config in (schemas.QUERIES, schemas.JUDGMENTS)
    }
    name = features[0].file.url.removesuffix(found[schemas.FEATURES][0][1]).rstrip("/")
    content = hashlib.sha256("\n".join(contents).encode()).hexdigest()
    return Release(name, features, here[schemas.QUERIES], here[schemas.JUDGMENTS], widths.pop(), content)


def _without_rows(files: dict[str, File], address: Address) -> Iterable[str]:
    """The configs that the release has no rows of; its manifest is read only if one has no files."""
    manifest = files.get(schemas.MANIFEST)
    if manifest is None or all(shards(files, config, address) for config in (schemas.QUERIES, schemas.JUDGMENTS)):
        return ()
    return configs_without_rows(Path(_local(manifest, {}).path))


def _local(file: File, stated: dict[Path, str]) -> File:
    """A small file that is read whole: downloaded, or held against its checksum where it is local."""
    if file.local:
        if sha256 := stated.get(Path(file.path)):
            check_digest(Path(file.path), cache_places(), sha256)
        return file
    moved = download_cache(None)
    return sources.download(file, moved, hub_cache=moved)
