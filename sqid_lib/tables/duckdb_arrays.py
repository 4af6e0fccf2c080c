"""Fixed-size arrays with NULLs as DuckDB writes them to parquet: pyarrow refuses them, so DuckDB rewrites the file.

DuckDB writes a NULL FLOAT[768] as 768 entries without a value where the format has one; pyarrow then reports "Length
spanned by list offsets larger than values array".
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib.errors import CorruptFileError, first_line, missing_extra
from sqid_lib.tables.columns import is_list


def null_arrays(parquet: pq.ParquetFile) -> list[str]:
    """Columns that pyarrow cannot read: lists of numbers with missing values, in a file that DuckDB wrote."""
    if not str(parquet.metadata.created_by).startswith("DuckDB"):
        return []
    found = []
    for leaf in range(len(parquet.schema)):
        name, _, rest = parquet.schema.column(leaf).path.partition(".")
        dtype = parquet.schema_arrow.field(name).type
        if rest and is_list(dtype) and (pa.types.is_floating(dtype.value_type) or is_list(dtype.value_type)):
            chunks = [parquet.metadata.row_group(g).column(leaf) for g in range(parquet.num_row_groups)]
            if any(not chunk.is_stats_set or chunk.statistics.null_count for chunk in chunks):
                found.append(name)
    return found


def as_lists(stream: Any, columns: list[str], where: str) -> Any:
    """A stream of the same file with those columns as lists of any length; a temporary copy, gone with the stream.

    Raises:
        MissingExtraError: DuckDB is not installed.
        CorruptFileError: DuckDB cannot read the file either.
    """
    try:
        import duckdb
    except ImportError:
        arrays = ", ".join(columns)
        error = missing_extra("duckdb", "duckdb", f"to read the NULL arrays of DuckDB in {arrays} of {where}")
        error.fix = f"{error.fix}; or write lists: SELECT * REPLACE ({columns[0]}::FLOAT[] AS {columns[0]})."
        raise error from None
    folder = Path(tempfile.mkdtemp(prefix="sqid-"))
    try:
        source, target = folder / "given.parquet", folder / "lists.parquet"
        stream.seek(0)
        with source.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
        stream.close()
        replaced = ", ".join(f'"{name}"::FLOAT[] AS "{name}"' for name in columns)
        with duckdb.connect() as connection:
            connection.execute("SET preserve_insertion_order = true")
            connection.execute(
                f"COPY (SELECT * REPLACE ({replaced}) FROM read_parquet('{source}')) TO '{target}' (FORMAT parquet)"
            )
        return pa.OSFile(str(target), "rb")
    except duckdb.Error as error:
        raise CorruptFileError(
            f"the NULL arrays of DuckDB cannot be read: {first_line(error)}", where=where, got=", ".join(columns)
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # an open file stays readable
