"""Reading the files of WORK that a summary counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.tables.reader import reporting

WITHOUT_URL = (schemas.MISSING, schemas.PLACEHOLDER)  # a placeholder's URL is that of no product's image
LOCAL = {schemas.FILE_IMAGE: "local files", schemas.ROW_IMAGE: "rows of the products"}  # kinds of local images


def is_local(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each is a reference to a local image; false for null."""
    return pc.fill_null(pc.or_(*(pc.starts_with(urls, prefix) for prefix in LOCAL)), False)


def is_in(rows: pa.Table, statuses: Sequence[str]) -> pa.ChunkedArray:
    """Whether image_status is one of these."""
    return pc.is_in(rows["image_status"], pa.array(statuses))


def read(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a file of WORK, which may have been damaged since it was checked."""
    with reporting(str(path)):
        return pq.read_table(path, columns=columns)


def count_rows(paths: Iterable[Path]) -> int:
    """Rows of parquet files together."""
    return sum(map(_rows_of, paths))


def _rows_of(path: Path) -> int:
    with reporting(str(path)):
        rows: int = pq.read_metadata(path).num_rows
    return rows
