"""Images in rows of parquet files: row group by row group, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from builder.catalogue.image_columns import rows_at_once
from sqid_lib import sources
from sqid_lib.errors import IntegrityError
from sqid_lib.files import File
from sqid_lib.tables.reader import open_parquet, reporting

_IMAGES = 16  # in memory at once, besides the page of the file that they are in
_AGAIN = "Run the stages sample and resolve again: the products changed since."


def images_in_rows(file: File, rows: Sequence[int], column: str) -> Iterator[tuple[int, bytes | None]]:
    """The bytes in each of the rows, of a list the first ones, None where there are none; in the order of the file.

    Args:
        file: at the version that the rows are of; downloaded if it is elsewhere.
        rows: numbers from 0, distinct.
        column: binary or struct<bytes, path>, or lists of them.

    Raises:
        IntegrityError: the file changed, or has no such row or column.
        SourceError: it cannot be read.
    """
    file = sources.download(file)
    if file.local and (now := sources.find_file(file.path)).version != file.version:
        raise IntegrityError("not the file that was sampled", where=file, got=now.version, fix=_AGAIN)
    with open_parquet(file) as parquet, reporting(str(file)):
        if column not in parquet.schema_arrow.names or max(rows) >= parquet.metadata.num_rows:
            raise IntegrityError(f"no row {max(rows)} with a column {column!r}", where=file, fix=_AGAIN)
        yield from _selected(parquet, sorted(rows), column)


def _selected(parquet: pq.ParquetFile, rows: Sequence[int], column: str) -> Iterator[tuple[int, bytes | None]]:
    left = iter(rows)
    row, end = next(left, None), 0
    for group in range(parquet.num_row_groups):
        start, end = end, end + parquet.metadata.row_group(group).num_rows
        if row is None or row >= end:
            continue
        at_once = rows_at_once(parquet, column, group, _IMAGES)
        for batch in parquet.iter_batches(at_once, [group], [column], use_threads=False):
            images = batch.column(0)
            while row is not None and row < start + len(images):
                yield row, _first_bytes(images[row - start])
                row = next(left, None)
            start += len(images)
            if row is None:
                return


def _first_bytes(cell: pa.Scalar) -> bytes | None:
    images = cell if isinstance(cell, pa.ListScalar) and cell.is_valid else [cell]
    values = (image.as_py() for image in images)
    found = (value.get("bytes") if isinstance(value, dict) else value for value in values)
    return next((data for data in found if isinstance(data, bytes)), None)
