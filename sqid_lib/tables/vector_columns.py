"""Vectors in parquet files, read row group by row group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import ContractError, CorruptFileError, SchemaError
from sqid_lib.files import File
from sqid_lib.tables.reader import Source, open_parquet, reporting


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


def vector_width(files: Sequence[File], columns: Sequence[str] = schemas.VECTOR_COLUMNS[:1]) -> int:
    """Length of the vectors of feature files: the declared one, else that of the first vector.

    Args:
        columns: the vector columns.

    Raises:
        SourceError: as `open_parquet`; CorruptFileError where no row has a vector.
    """
    wanted = pa.schema([(name, pa.list_(pa.float32())) for name in columns])
    for file in files:
        with open_parquet(file, wanted) as parquet, reporting(file.url):
            for name in columns:
                dtype = parquet.schema_arrow.field(name).type
                if pa.types.is_fixed_size_list(dtype):
                    return int(dtype.list_size)
            for batch in parquet.iter_batches(64, columns=list(columns)):
                for column in batch.columns:
                    if column.null_count < len(column):
                        return int(pc.list_value_length(pc.drop_null(column))[0].as_py())
    raise CorruptFileError("no row of the file has a vector", where=files[0].url, fix="Fetch it again.")


def read_vectors(
    table: pa.Table, column: str, width: int, where: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """[N, width] float32 with zeros where the list is null, and [N] bool that is false there.

    Raises:
        SchemaError: no such column, or its lists are not `width` numbers long.
        ContractError: a list holds a null.
    """
    if column not in table.column_names:
        raise SchemaError("a column is missing", where=where, expected=column, got=table.column_names)
    lists = _one_chunk(table[column])
    if pa.types.is_null(lists.type):  # not one vector in the file
        return np.zeros((len(lists), width), np.float32), np.zeros(len(lists), np.bool_)
    if (
        not pa.types.is_fixed_size_list(lists.type)
        and not pa.types.is_list(lists.type)
        and not pa.types.is_large_list(lists.type)
    ):
        raise SchemaError(
            "not a column of lists", where=f"{where}: {column}", expected="lists of float", got=lists.type
        )
    lengths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    if any(length != width for length in lengths):
        raise SchemaError("vectors differ in width", where=f"{where}: {column}", expected=width, got=lengths)
    values = lists.flatten().cast(pa.float32())
    if values.null_count:
        raise ContractError("a vector holds a null", where=f"{where}: {column}")
    valid = dense(lists.is_valid())
    flat = dense(values).reshape(-1, width)
    if valid.all():
        return flat, valid
    vectors = np.zeros((len(valid), width), dtype=np.float32)
    vectors[valid] = flat
    return vectors, valid


def dense(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Numbers or booleans without a null, read-only; pyarrow's own `to_numpy` imports pandas, which takes 45 MB."""
    values = _one_chunk(column)
    if pa.types.is_boolean(values.type):  # bits in arrow, bytes in numpy
        return np.from_dlpack(values.cast(pa.uint8())).view(np.bool_)
    return np.from_dlpack(values)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Without the copy that `combine_chunks` makes even of one chunk."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def fixed_lists(matrix: npt.NDArray[Any], null: npt.NDArray[np.bool_] | None = None) -> pa.FixedSizeListArray:
    """A float32 matrix [n, width] as n fixed-size lists; null where `null` [n] is true."""
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    mask = None if null is None else pa.array(null)
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1], mask=mask)


def present(matrix: np.ndarray) -> np.ndarray:
    """Which of the vectors [n, width] are not all zeros: bool [n]."""
    found: np.ndarray = matrix[:, 0] != 0
    doubtful = np.flatnonzero(~found)
    found[doubtful] = matrix[doubtful].any(axis=1)
    return found
