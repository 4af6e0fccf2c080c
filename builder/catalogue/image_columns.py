"""Columns of parquet files that hold the bytes of images: bytes alone, or an Image column of a Hub dataset."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.tables.columns import plain, plain_type

_ROWS = 64  # of images at once, where it is not known without reading them whether there is one
_HEAD = 512  # bytes that tell an image from a text


def is_image_column(parquet: pq.ParquetFile, column: str) -> bool:
    """Whether a column is struct<bytes, path>, as datasets writes images, or binary with something else than text."""
    if column not in parquet.schema_arrow.names:
        return False
    dtype = plain_type(parquet.schema_arrow.field(column).type)
    if pa.types.is_struct(dtype):
        names = [field.name for field in dtype]
        return "bytes" in names and _is_binary(dtype.field("bytes").type)
    return _is_binary(dtype) and _first_is_no_text(parquet, column)


def row_references(file: int, first: int, rows: int) -> pa.Array:
    """ "row:FILE:ROW" for so many rows of a file from row `first` on; numbers from 0."""
    numbers = pa.array(np.arange(first, first + rows)).cast(pa.string())
    prefix = pa.array([f"{schemas.ROW_IMAGE}{file}:"]).take(pa.array(np.zeros(rows, np.int64)))
    return pc.binary_join_element_wise(prefix, numbers, "")


def image_references(parquet: pq.ParquetFile, column: str, group: int, file: int, first: int) -> pa.Array:
    """For each row of a row group its reference where it has bytes; otherwise its path, or null.

    The bytes are read only where the file does not state how many there are, or where some rows have none.

    Args:
        file: number of the file.
        first: number of the group's first row in the file.
    """
    rows = parquet.metadata.row_group(group).num_rows
    struct = pa.types.is_struct(plain_type(parquet.schema_arrow.field(column).type))
    leaf = f"{column}.bytes" if struct else column
    references = row_references(file, first, rows)
    nulls = _null_count(parquet, leaf, group)
    if nulls == 0:
        return references
    there = _are_there(parquet, leaf, group) if nulls != rows else pa.array(np.zeros(rows, np.bool_))
    return pc.if_else(there, references, _paths(parquet, column, group, rows))


def _is_binary(dtype: pa.DataType) -> bool:
    dtype = plain_type(dtype)
    return bool(
        pa.types.is_binary(dtype)
        or pa.types.is_large_binary(dtype)
        or pa.types.is_binary_view(dtype)
        or pa.types.is_fixed_size_binary(dtype)
    )


def _first_is_no_text(parquet: pq.ParquetFile, column: str) -> bool:
    """Whether the first value that is there is no text; a column without values is one of text."""
    for batch in parquet.iter_batches(_ROWS, columns=[column]):
        values = plain(pa.chunked_array([batch.column(0)])).drop_null()
        if len(values):
            head = values[0].as_py()[:_HEAD]
            return b"\0" in head or b"\xff" in head or head.startswith(b"\x89PNG")
    return False


def _null_count(parquet: pq.ParquetFile, leaf: str, group: int) -> int | None:
    """How many rows have no value, if the file states it."""
    meta = parquet.metadata.row_group(group)
    for i in range(meta.num_columns):
        column = meta.column(i)
        if column.path_in_schema == leaf:
            known = column.is_stats_set and column.statistics.has_null_count
            return int(column.statistics.null_count) if known else None
    return None


def _are_there(parquet: pq.ParquetFile, leaf: str, group: int) -> pa.Array:
    parts = []
    for batch in parquet.iter_batches(_ROWS, [group], [leaf]):
        values = plain(pa.chunked_array([batch.column(0)])).combine_chunks()
        parts.append(pc.is_valid(pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values))
    return pa.concat_arrays(parts)


def _paths(parquet: pq.ParquetFile, column: str, group: int, rows: int) -> pa.Array:
    dtype = plain_type(parquet.schema_arrow.field(column).type)
    if not pa.types.is_struct(dtype) or "path" not in [field.name for field in dtype]:
        return pa.nulls(rows, pa.string())
    parts = [
        pc.struct_field(plain(pa.chunked_array([batch.column(0)])).combine_chunks(), "path").cast(pa.string())
        for batch in parquet.iter_batches(65_536, [group], [f"{column}.path"])
    ]
    return pa.concat_arrays(parts)
