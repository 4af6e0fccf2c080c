"""The files of a release, written so that equal rows give equal bytes and small changes change few bytes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.database import reporting_disk_errors
from sqid_lib import schemas
from sqid_lib.errors import CountError, SchemaError
from sqid_lib.files import parse_shard_name, replacing, shard_name, sync

VECTOR_GROUP_ROWS = 2_048  # row groups of 1 to 5 thousand vector rows read fastest
TEXT_GROUP_ROWS = 16_384
MAX_GROUP_BYTES = 64_000_000  # in memory; the Hub's viewer wants row groups under 100 MB
MAX_SHARD_BYTES = 500_000_000
_QUOTED = frozenset('",\r\n')
_NAMES = frozenset((schemas.CARD, schemas.MANIFEST, schemas.SHA256SUMS, *schemas.CLASSIC_FILES))
_LOCALE = pa.field("product_locale", pa.string())


def may_hold(name: str) -> bool:
    """Whether a release may hold a file of this name, relative to the release: what a build writes and nothing else."""
    folder, _, file = name.rpartition("/")
    config = folder.removeprefix("data/")
    shard = config in schemas.CONFIGS and folder == f"data/{config}" and not file.startswith(".")
    return name in _NAMES or (shard and parse_shard_name(file) is not None)


def write_shards(
    root: Path,
    config: str,
    split: str,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    *,
    rows: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Write one config of a release as `root/data/<config>/<split>-0000i-of-0000N.parquet`.

    Args:
        tables: the rows in their final order; how they are split into tables does not change the bytes.
        schema: columns and dtypes of the files; metadata of the tables is dropped.
        rows: how many rows there are in all.
        max_shard_bytes: a new shard starts before a file grows beyond this (a single row group always fits).

    Returns:
        The files, in order; none of them exists before all are written. No rows make one file without rows.

    Raises:
        SchemaError: a table cannot be cast to `schema`.
        CountError: the tables hold another number of rows.
        DiskError: no space left, or the disk refused.
    """
    folder = root / Path(shard_name(config, split, 0, 1)).parent
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    written = 0
    writer: _ParquetFile | None = None
    try:
        with reporting_disk_errors(folder):
            for group in _row_groups(tables, schema, where=config):
                if writer is not None and writer.full(max_shard_bytes):
                    writer.close()
                    writer = None
                if writer is None:
                    parts.append(folder / f".{split}-{len(parts):05d}.part")
                    writer = _ParquetFile(parts[-1], schema, group)
                writer.write(group)
                written += group.num_rows
            if writer is not None:
                writer.close()
            if written != rows:
                raise CountError("another number of rows than stated", where=config, expected=rows, got=written)
            return _publish(root, config, split, parts)
    except BaseException:
        if writer is not None:
            writer.abandon()
        for part in parts:
            part.unlink(missing_ok=True)
        raise


def write_classic_features(path: Path, part: str, tables: Iterable[pa.Table], *, located: bool = False) -> int:
    """Write product_features.parquet (`part` "product") or query_features.parquet ("query"); returns the rows written.

    Columns are those of `schemas.classic_features_schema(part)`; vectors may come as fixed or variable lists.
    `located` adds product_locale, without which ids of several locales would be ambiguous.

    Raises:
        SchemaError: a table cannot be cast to that schema.
    """
    schema = schemas.classic_features_schema(part)
    schema = schema.insert(1, _LOCALE) if located else schema
    rows = 0
    with reporting_disk_errors(path), replacing(path) as temporary:
        writer: _ParquetFile | None = None
        try:
            for group in _row_groups(tables, schema, where=path.name):
                writer = writer or _ParquetFile(temporary, schema, group)
                writer.write(group)
                rows += group.num_rows
            if writer is not None:
                writer.close()
        finally:
            if writer is not None:
                writer.abandon()
    return rows


def write_urls(path: Path, tables: Iterable[pa.Table], *, located: bool = False) -> int:
    """Write product_image_urls.csv or supp_product_image_urls.csv: product_id,image_url; returns the rows written.

    `located` adds product_locale, without which ids of several locales would be ambiguous.

    RFC 4180 with "\\n" line ends, quotes only where needed, an empty cell where there is no URL.
    """
    rows = 0
    with (
        reporting_disk_errors(path),
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        schema = schemas.URLS_FILE_SCHEMA.insert(1, _LOCALE) if located else schemas.URLS_FILE_SCHEMA
        file.write(",".join(schema.names) + "\n")
        for table in tables:
            plain = _cast(table, schema, path.name)
            for row in zip(*(column.to_pylist() for column in plain.columns), strict=True):
                file.write(",".join(map(_cell, row)) + "\n")
            rows += plain.num_rows
    return rows


def _cell(text: str | None) -> str:
    # not csv.writer: with "\n" line ends it does not quote a carriage return, which readers take for a line end
    return '"' + text.replace('"', '""') + '"' if text and not _QUOTED.isdisjoint(text) else text or ""


class _ParquetFile:
    """One parquet file in the making, written a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema, first: pa.Table) -> None:
        self._file, self._options = path.open("wb"), _options(schema, first)
        self._writer = pq.ParquetWriter(self._file, schema, **self._options)
        self._largest = 0  # bytes of the largest row group so far
        self._groups, self._last, self._tail = 0, first, 0
        self.path = path

    def write(self, group: pa.Table) -> None:
        if not group.num_rows:  # a row group of no rows cannot be streamed by datasets
            return
        before = self._file.tell()
        self._writer.write_table(group, row_group_size=max(1, group.num_rows))
        self._largest = max(self._largest, self._file.tell() - before)
        self._groups, self._last = self._groups + 1, group

    def full(self, limit: int) -> bool:
        """Whether another row group (they differ by less than a tenth) could exceed `limit` bytes."""
        size = self._file.tell()
        if size + self._largest * 11 // 10 > limit:
            return True
        if size > limit // 8:  # what follows the row groups at the end may be much
            self._tail = self._tail or _tail(self._last, self._options)
        return size + self._largest + (self._groups + 1) * self._tail > limit

    def close(self) -> None:
        if not self._file.closed:
            self._writer.close()
            self._file.close()
            sync(self.path)

    def abandon(self) -> None:
        """Close a file that will be removed; a full disk, which its footer would not fit on, does not matter."""
        with contextlib.suppress(OSError):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()


def _publish(root: Path, config: str, split: str, parts: list[Path]) -> list[Path]:
    """Give finished shards their names and delete the shards of an earlier, longer run."""
    paths = [root / shard_name(config, split, i, len(parts)) for i in range(len(parts))]
    for old in paths[0].parent.glob(f"{split}-*-of-*.parquet"):
        if old not in paths:
            old.unlink()
    for part, path in zip(parts, paths, strict=True):
        part.replace(path)
    sync(paths[0].parent)
    return paths


def _row_groups(tables: Iterable[pa.Table], schema: pa.Schema, *, where: str) -> Iterator[pa.Table]:
    """The same rows in tables of one row group each; at least one table, which may have no rows."""
    size = VECTOR_GROUP_ROWS if any(_is_list(field.type) for field in schema) else TEXT_GROUP_ROWS
    waiting: list[pa.Table] = []
    count = 0
    some = False
    for table in tables:
        cast = _cast(table, schema, where)
        while cast.num_rows:
            taken = cast.slice(0, size - count)
            waiting.append(taken)
            count += taken.num_rows
            cast = cast.slice(taken.num_rows)
            if count == size:
                yield from _small_enough(pa.concat_tables(waiting).combine_chunks())
                waiting, count, some = [], 0, True
    if count or not some:
        yield from _small_enough(pa.concat_tables([schema.empty_table(), *waiting]).combine_chunks())


def _small_enough(group: pa.Table) -> Iterator[pa.Table]:
    if group.nbytes <= MAX_GROUP_BYTES or group.num_rows <= 1:
        yield group
    else:
        half = group.num_rows // 2
        yield from _small_enough(group.slice(0, half))
        yield from _small_enough(group.slice(half))


def _cast(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise SchemaError("columns are missing", where=where, expected=schema.names, got=table.column_names)
    try:
        return table.select(schema.names).replace_schema_metadata(None).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"a column has the wrong type: {error}", where=where, expected=dict(_types(schema))
        ) from error


def _types(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    for field in schema:
        yield field.name, str(field.type)


def _is_list(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(dtype) or pa.types.is_list(dtype))


def _options(schema: pa.Schema, sample: pa.Table) -> dict[str, Any]:
    """Settings of the parquet writer; the encoding of each vector column is the one that makes `sample` smaller."""
    split = []
    for field in schema:
        if _is_list(field.type) and sample.num_rows:
            leaf = f"{field.name}.list.element"
            column = sample.select([field.name])
            if _size(column, use_byte_stream_split=[leaf]) < _size(column):
                split.append(leaf)
    return {
        "compression": "zstd",
        "use_dictionary": [field.name for field in schema if not _is_list(field.type)],
        "use_byte_stream_split": split,
        "use_content_defined_chunking": True,  # equal rows give equal pages: an upload sends only what changed
        "write_page_index": True,
        "data_page_version": "1.0",
        "version": "2.6",
    }


def _tail(group: pa.Table, options: Mapping[str, Any]) -> int:
    """Bytes of a file of one row group after its data: indexes of pages, and the footer with its statistics."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, group.schema, **options) as writer:
        writer.write_table(group, row_group_size=max(1, group.num_rows))
    columns = pq.read_metadata(sink).row_group(0)
    data = sum(columns.column(i).total_compressed_size for i in range(columns.num_columns))
    return int(sink.tell() - data)


def _size(table: pa.Table, **options: Any) -> int:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, **options)
    return sink.tell()
