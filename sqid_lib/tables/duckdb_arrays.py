"""Fixed-size arrays with NULLs as DuckDB writes them to parquet, which pyarrow refuses.

DuckDB writes a NULL FLOAT[768] as 768 entries without a value where the format has one; pyarrow then reports "Length
spanned by list offsets larger than values array". This module reads the pages of such columns itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib.errors import CorruptFileError
from sqid_lib.tables.columns import is_list

_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY, _BYTE_STREAM_SPLIT = 0, 2, 8, 9
_TYPES: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype("<f4"), "DOUBLE": np.dtype("<f8")}
_MAX_HEADER = 1 << 16


def open_arrays(stream: Any, parquet: pq.ParquetFile) -> pq.ParquetFile:
    """`parquet` itself, or for a file of DuckDB with NULL arrays one that reads them; `stream` is what it reads."""
    if not str(parquet.metadata.created_by).startswith("DuckDB"):
        return parquet
    columns = _with_nulls(parquet)
    return _ArrayFile(stream, columns) if columns else parquet


def _with_nulls(parquet: pq.ParquetFile) -> dict[str, int]:
    """Columns that are lists of floats with missing values: name → number of the leaf column."""
    found = {}
    for leaf in range(len(parquet.schema)):
        column = parquet.schema.column(leaf)
        name, _, rest = column.path.partition(".")
        if not rest or column.physical_type not in _TYPES or column.max_repetition_level != 1:
            continue
        chunks = [parquet.metadata.row_group(g).column(leaf) for g in range(parquet.num_row_groups)]
        nulls = any(not chunk.is_stats_set or chunk.statistics.null_count for chunk in chunks)
        if nulls and is_list(parquet.schema_arrow.field(name).type):
            found[name] = leaf
    return found


class _ArrayFile(pq.ParquetFile):  # type: ignore[misc]
    """A parquet file whose `arrays` (name → leaf column) are read here; the rest by pyarrow."""

    def __init__(self, stream: Any, arrays: dict[str, int]) -> None:
        stream.seek(0)
        super().__init__(stream)
        self._stream, self._arrays = stream, arrays

    def read_row_group(self, group: int, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        names = list(columns) if columns is not None else self.schema_arrow.names
        others = [name for name in names if name not in self._arrays]
        table = super().read_row_group(group, columns=others, **options)
        read = {name: self._read(group, name) for name in names if name in self._arrays}
        return pa.table([read[name] if name in read else table.column(name) for name in names], names=names)

    def read(self, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        groups = range(self.num_row_groups)
        return pa.concat_tables([self.read_row_group(group, columns, **options) for group in groups])

    def iter_batches(
        self,
        batch_size: int = 65_536,
        row_groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        **options: Any,
    ) -> Iterator[pa.RecordBatch]:
        for group in range(self.num_row_groups) if row_groups is None else row_groups:
            yield from self.read_row_group(group, columns, **options).to_batches(batch_size)

    def _read(self, group: int, name: str) -> pa.Array:
        chunk = self.metadata.row_group(group).column(self._arrays[name])
        nullable = self.schema_arrow.field(name).nullable
        levels = self.schema.column(self._arrays[name]).max_definition_level
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        self._stream.seek(start)
        data = bytes(self._stream.read(chunk.total_compressed_size))
        try:
            pages = list(_pages(data, chunk.compression, _TYPES[chunk.physical_type], levels))
            repetitions, definitions, values = (np.concatenate(part) for part in zip(*pages, strict=True))
            return _lists(repetitions, definitions, values, levels, nullable)
        except (IndexError, ValueError, KeyError, pa.ArrowInvalid, OSError) as error:
            raise CorruptFileError(
                f"the NULL arrays of column {name!r}, as DuckDB writes them, cannot be read: {error}",
                where=f"row group {group}",
                fix=f"Write them as lists: SELECT {name}::FLOAT[] AS {name}.",
            ) from error


def _lists(
    repetitions: np.ndarray, definitions: np.ndarray, values: np.ndarray, levels: int, nullable: bool
) -> pa.ListArray:
    """Lists from their levels; a null list counts as one, however many entries were written for it."""
    starts = np.flatnonzero(repetitions == 0)
    null = nullable & (definitions[starts] == 0)
    held = definitions >= levels - 1  # entries of a list, null or not
    lengths = np.add.reduceat(held, starts, dtype=np.int64) if len(starts) else np.zeros(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    entries = np.zeros(int(offsets[-1]), values.dtype)
    there = definitions[held] == levels
    entries[there] = values
    items = pa.array(entries, mask=~there if not there.all() else None)
    return pa.ListArray.from_arrays(pa.array(offsets), items, mask=pa.array(null) if null.any() else None)


def _pages(
    data: bytes, compression: str, dtype: np.dtype[Any], levels: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(repetition levels, definition levels, values) of each data page of a column chunk."""
    codec = None if compression == "UNCOMPRESSED" else pa.Codec(compression.lower())
    dictionary: np.ndarray | None = None
    at = 0
    while at < len(data):
        header, at = _struct(memoryview(data)[: at + _MAX_HEADER], at)
        kind, size, stored = header[1], header[2], header[3]
        body = data[at : at + stored]
        at += stored
        page = codec.decompress(body, size).to_pybytes() if codec and stored else body
        if kind == _DICTIONARY_PAGE:
            dictionary = np.frombuffer(page, dtype)
            continue
        if kind != _DATA_PAGE:
            raise ValueError(f"pages of kind {kind}")
        count, encoding = header[5][1], header[5][2]
        repetitions, rest = _sized_levels(page, 1, count)
        definitions, rest = _sized_levels(rest, levels.bit_length(), count)
        present = int((definitions == levels).sum())
        yield repetitions, definitions, _values(rest, encoding, dtype, present, dictionary)


def _values(
    data: bytes, encoding: int, dtype: np.dtype[Any], count: int, dictionary: np.ndarray | None
) -> npt.NDArray[Any]:
    if encoding == _PLAIN:
        return np.frombuffer(data, dtype, count)
    if encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY) and dictionary is not None:
        return dictionary[_runs(data[1:], data[0], count)] if count else dictionary[:0]
    if encoding == _BYTE_STREAM_SPLIT:
        split = np.frombuffer(data, np.uint8, count * dtype.itemsize).reshape(dtype.itemsize, count)
        return np.ascontiguousarray(split.T).reshape(-1).view(dtype)
    raise ValueError(f"encoding {encoding}")


def _sized_levels(data: bytes, width: int, count: int) -> tuple[np.ndarray, bytes]:
    size = int.from_bytes(data[:4], "little")
    return _runs(data[4 : 4 + size], width, count), data[4 + size :]


def _runs(data: bytes, width: int, count: int) -> np.ndarray:
    """`count` integers of `width` bits in parquet's hybrid of runs and packed bits."""
    parts, found, at = [np.zeros(0, np.int64)], 0, 0
    while found < count:
        header, at = _varint(data, at)
        if header & 1:
            size = (header >> 1) * width
            bits = np.unpackbits(np.frombuffer(data, np.uint8, size, at), bitorder="little")
            part = (
                bits.reshape(-1, width).astype(np.int64) @ (1 << np.arange(width)) if width else np.zeros(0, np.int64)
            )
        else:
            size = -(-width // 8)
            part = np.full(min(header >> 1, count - found), int.from_bytes(data[at : at + size], "little"), np.int64)
        if not len(part):
            raise ValueError("a run of nothing")
        at += size
        parts.append(part)
        found += len(part)
    return np.concatenate(parts)[:count]


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 70:
            raise ValueError("a number of more than 64 bits")


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol, as a page header is: field number → value."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head = data[at]
        at += 1
        if not head:
            return fields, at
        kind = head & 0x0F
        if head >> 4:
            number += head >> 4
        else:
            value, at = _varint(data, at)
            number = (value >> 1) ^ -(value & 1)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            value, at = _varint(data, at)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:
            size, at = _varint(data, at)
            at += size
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"a page header with a field of kind {kind}")
