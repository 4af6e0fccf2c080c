"""Vectors in parquet files, read row group by row group.

A vector is missing where its list is null or empty, or holds nothing but NaN or null, as pandas writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.errors import ContractError, CorruptFileError, SchemaError
from sqid_lib.files import File
from sqid_lib.tables.columns import dense, is_list, one_piece, plain, plain_type
from sqid_lib.tables.reader import Source, open_parquet, reporting
from sqid_lib.tables.vector_pages import UnusualPages, fill_vectors

MAX_WIDTH = 1 << 16
_HEAD_ROWS = 64  # whose most frequent length is the width


def row_groups(files: Iterable[Source], columns: Iterable[str]) -> Iterator[tuple[pa.Table, str]]:
    """(table, name in messages) of each row group, with those of `columns` that the file has."""
    columns = tuple(columns)
    for file in files:
        with open_parquet(file) as parquet:
            wanted = [name for name in columns if name in parquet.schema_arrow.names]
            for group in range(parquet.num_row_groups):
                where = f"{file}, row group {group}"
                with reporting(where):
                    table = parquet.read_row_group(group, columns=wanted)
                yield table, where


def read_pages(path: Path, metadata: pq.FileMetaData, group: int, column: str, limit: int) -> pa.Array | None:
    """A column of fixed lists of one row group of a local file; None where pyarrow has to read it, or to report on it.

    Threads may call it at the same time: each opens the file itself.

    Args:
        metadata: that of the file.
        limit: bytes of vectors; more are not read.
    """
    dtype, rows = metadata.schema.to_arrow_schema().field(column).type, metadata.row_group(group).num_rows
    if not pa.types.is_fixed_size_list(dtype) or dtype.value_type != pa.float32() or rows * dtype.list_size * 4 > limit:
        return None
    matrix = np.empty((rows, dtype.list_size), np.float32)
    try:
        fill_vectors(path, metadata, group, column, np.arange(rows), matrix)
    except UnusualPages:
        return None
    return fixed_lists(matrix)


def vector_width(files: Sequence[File], columns: Sequence[str] = schemas.VECTOR_COLUMNS[:1]) -> int:
    """Length of the vectors of feature files: the declared one, else the most frequent one among the first.

    Args:
        columns: the vector columns.

    Raises:
        SourceError: as `open_parquet`; CorruptFileError where no row has a vector.
    """
    wanted = pa.schema([(name, pa.list_(pa.float32())) for name in columns])
    for file in files:
        with open_parquet(file, wanted) as parquet, reporting(file.url):
            for name in columns:
                if (declared := _declared_width(parquet.schema_arrow.field(name).type)) is not None:
                    return check_width(declared, file)
            for batch in parquet.iter_batches(_HEAD_ROWS, columns=list(columns)):
                lengths: Counter[int] = Counter()
                for name in columns:
                    lists = _innermost(pa.chunked_array([batch.column(name)]), f"{file}: {name}")
                    if is_list(lists.type):
                        lengths.update(length for length in pc.list_value_length(lists).to_pylist() if length)
                if lengths:
                    return check_width(lengths.most_common(1)[0][0], file)
    raise CorruptFileError("no row of the file has a vector", where=files[0].url, fix="Fetch it again.")


def check_width(width: int, file: Source) -> int:
    """The width again; SchemaError if no vectors are that wide: memory is reserved by it."""
    if not 0 < width <= MAX_WIDTH:
        raise SchemaError("no vectors have this width", where=file, expected=f"1 to {MAX_WIDTH:,}", got=f"{width:,}")
    return width


def _declared_width(dtype: pa.DataType) -> int | None:
    """Length of the innermost lists, where their type states it."""
    dtype = plain_type(dtype)
    while is_list(dtype) and is_list(inner := plain_type(dtype.value_type)):
        dtype = inner
    return int(dtype.list_size) if pa.types.is_fixed_size_list(dtype) else None


def read_vectors(
    table: pa.Table, column: str, width: int, where: str, first: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """[N, width] float32 with zeros where the vector is missing, and [N] bool that is false there.

    Args:
        first: number of the table's first row in the file or row group that `where` names, for messages.

    Raises:
        SchemaError: no such column, it holds no lists, or a list is not `width` numbers long.
        ContractError: a list holds infinity, or NaN or null beside numbers.
    """
    if column not in table.column_names:
        raise SchemaError("a column is missing", where=where, expected=column, got=table.column_names)
    lists = _innermost(table[column], f"{where}: {column}")
    if pa.types.is_null(lists.type):  # not one vector in the file
        return np.zeros((len(lists), width), np.float32), np.zeros(len(lists), np.bool_)
    if not is_list(lists.type):
        raise SchemaError(
            "not a column of lists", where=f"{where}: {column}", expected="lists of float", got=lists.type
        )
    lengths = pc.list_value_length(lists)
    wrong = [length for length in pc.unique(lengths.drop_null()).to_pylist() if length not in (width, 0)]
    if wrong:
        rows = np.array([length in wrong for length in lengths.to_pylist()])
        got = f"{wrong[:3]}, first in row {first + rows.argmax()}"
        raise SchemaError("vectors differ in width", where=f"{where}: {column}", expected=width, got=got)
    values = lists.flatten().cast(pa.float32())
    valid = dense(lists.is_valid())
    if len(values) < width * np.count_nonzero(valid):  # there are empty lists
        valid = np.array([bool(length) for length in lengths.to_pylist()])
    nan = "is not finite: NaN"
    if values.null_count:  # pandas writes the NaN of an array as null
        values, nan = pc.fill_null(values, np.nan), "holds a null"
    flat = dense(values).reshape(-1, width)
    if not np.isfinite(flat).all():
        flat, valid = _without_nan(flat, valid, nan, f"{where}: {column}", first)
    if valid.all():
        return flat, valid
    vectors = np.zeros((len(valid), width), dtype=np.float32)
    vectors[valid] = flat
    return vectors, valid


def _without_nan(
    flat: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], nan: str, where: str, first: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The vectors that are not NaN throughout, and `valid` without those; flat[i] is the i-th valid row.

    Args:
        nan: what is wrong with a vector that holds NaN, for the message.
    """
    missing = np.isnan(flat).all(axis=1)
    wrong = np.flatnonzero(~np.isfinite(flat).all(axis=1) & ~missing)
    rows = np.flatnonzero(valid)
    if len(wrong):
        fault = nan if np.isnan(flat[wrong[0]]).any() else "is not finite: infinity"
        raise ContractError(
            f"a vector {fault} beside numbers",
            where=where,
            expected="numbers throughout, or NaN (or null) throughout for a missing vector",
            got=f"{len(wrong)} such rows, the first is row {first + rows[wrong[0]]}",
            fix="Compute those vectors again, or leave them out.",
        )
    valid = valid.copy()
    valid[rows[missing]] = False
    return flat[~missing], valid


def _innermost(column: pa.Array | pa.ChunkedArray, where: str) -> pa.Array:
    """The column in one chunk, a list per row: a tensor or a matrix of one row is taken for the vector it holds."""
    lists = one_piece(plain(column) if isinstance(column, pa.ChunkedArray) else column)
    while is_list(lists.type) and is_list(plain_type(lists.type.value_type)):
        lengths = pc.list_value_length(lists)
        several = pc.unique(pc.filter(lengths, pc.greater(lengths, 1))).to_pylist()
        if several:
            raise SchemaError(f"a row holds {several[0]} vectors", where=where, expected="one vector a row")
        there = pc.equal(lengths, 1)
        inner = one_piece(plain(pa.chunked_array([lists.flatten()])))
        position = pc.subtract(pc.cumulative_sum(pc.fill_null(there, False).cast(pa.int64())), 1)
        lists = inner.take(pc.if_else(pc.fill_null(there, False), position, None))
    return lists


def fixed_lists(matrix: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """A float32 matrix [n, width] as n fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def present(matrix: np.ndarray) -> np.ndarray:
    """Which of the vectors [n, width] are not all zeros: bool [n]."""
    found: np.ndarray = matrix[:, 0] != 0
    doubtful = np.flatnonzero(~found)
    found[doubtful] = matrix[doubtful].any(axis=1)
    return found
