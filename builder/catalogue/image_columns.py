"""Columns of parquet files that hold the bytes of images: bytes alone, an Image column of a Hub dataset, or lists."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.tables.columns import is_list, plain, plain_type

_IMAGES = 64  # at once, where it is not known without reading them whether they are there
_ROWS = 65_536  # of paths at once
_HEAD = 512  # bytes that tell an image from a text


def is_image_column(parquet: pq.ParquetFile, column: str) -> bool:
    """Whether a column holds images or lists of them.

    An image is struct<bytes, path>, as datasets writes it, or binary with something else than text.
    """
    if column not in parquet.schema_arrow.names:
        return False
    dtype = _image_type(parquet, column)
    if pa.types.is_struct(dtype):
        names = [field.name for field in dtype]
        return "bytes" in names and _is_binary(dtype.field("bytes").type)
    return _is_binary(dtype) and _first_is_no_text(parquet, column)


def row_references(file: int, first: int, rows: int) -> pa.Array:
    """ "row:FILE:ROW" for so many rows of a file from row `first` on; numbers from 0."""
    numbers = pa.array(np.arange(first, first + rows)).cast(pa.string())
    prefix = pa.array([f"{schemas.ROW_IMAGE}{file}:"]).take(pa.array(np.zeros(rows, np.int64)))
    return pc.binary_join_element_wise(prefix, numbers, "")


def image_references(
    parquet: pq.ParquetFile, column: str, group: int, file: int, first: int
) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The reference of each row of a row group, and how many images the row has, [rows].

    A row with bytes has a reference to it, any other one its first path, or null. Images are counted that have bytes,
    and the paths of those without, each once. Bytes are read only where the file does not state how many there are,
    or where some images have none.

    Args:
        file: number of the file.
        first: number of the group's first row in the file.
    """
    rows = parquet.metadata.row_group(group).num_rows
    references = row_references(file, first, rows)
    if not rows or (not _is_listed(parquet, column) and _null_count(parquet, _leaf(parquet, column), group) == 0):
        return references, np.ones(rows, np.int32)
    places, there, paths = _images(parquet, column, group)
    counts = np.bincount(places[there], minlength=rows)
    alone = ~there & paths.is_valid().to_numpy(zero_copy_only=False)
    named = pa.table([places[alone], paths.filter(pa.array(alone))], ["row", "path"])
    named = named.group_by(["row", "path"], use_threads=False).aggregate([]).combine_chunks()
    places = named.column("row").to_numpy()
    with_paths, firsts = np.unique(places, return_index=True)
    numbers = pa.array(firsts).take(pc.index_in(pa.array(np.arange(rows)), value_set=pa.array(with_paths)))
    first_paths = named.column("path").take(numbers).combine_chunks()
    found = pc.if_else(pa.array(counts > 0), references, first_paths)
    return found, (counts + np.bincount(places, minlength=rows)).astype(np.int32)


def rows_at_once(parquet: pq.ParquetFile, column: str, group: int, images: int) -> int:
    """How many rows of a row group have about so many images together; 1 at least."""
    meta = parquet.metadata.row_group(group)
    values = int(meta.column(_leaf(parquet, column)).num_values)
    return max(1, images * int(meta.num_rows) // max(1, values))


def _images(
    parquet: pq.ParquetFile, column: str, group: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], pa.Array]:
    """Of each image of a row group its row there, whether it has bytes, and its path, null where it is blank."""
    leaf = _leaf(parquet, column)
    nulls = _null_count(parquet, leaf, group)
    if not _has_paths(parquet, column):
        if nulls == parquet.metadata.row_group(group).column(leaf).num_values:
            return np.empty(0, np.int64), np.empty(0, np.bool_), pa.array([], pa.string())
        places, there = _there(parquet, column, group)
        return places, there, pa.nulls(len(places), pa.string())
    path_leaf = _leaf(parquet, column, "path")
    places, paths = _read(parquet, path_leaf, group, _ROWS, lambda values: values.cast(pa.string()))
    stated = _null_count(parquet, path_leaf, group)
    # Whether a writer counts empty lists as nulls differs: the paths, which are read, show how many it counts.
    without = None if nulls is None or stated is None else nulls - (stated - paths.null_count)
    if without in (0, len(paths)):
        there = np.full(len(paths), without == 0)
    else:
        places, there = _there(parquet, column, group)
    paths = pc.utf8_trim_whitespace(paths)
    return places, there, pc.if_else(pc.equal(paths, ""), None, paths)


def _there(parquet: pq.ParquetFile, column: str, group: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Of each image of a row group its row there, and whether it has bytes, which are read."""
    rows = rows_at_once(parquet, column, group, _IMAGES)
    places, there = _read(parquet, _leaf(parquet, column), group, rows, pc.is_valid)
    return places, there.to_numpy(zero_copy_only=False)


def _read(
    parquet: pq.ParquetFile, leaf: int, group: int, rows: int, of: Callable[[pa.Array], pa.Array]
) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Of each image of a row group its row there, and what `of` makes of a leaf; so many rows are read at once."""
    path, first = parquet.schema.column(leaf).path, 0
    places, found = [], []
    for batch in parquet.iter_batches(rows, [group], [path]):
        within, values = _flat(batch.column(0))
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, path.rpartition(".")[2])
        places.append(first + within)
        found.append(of(values))
        first += len(batch)
    return np.concatenate(places), pa.concat_arrays(found)


def _flat(cells: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """The images in cells: of each the number of its cell, and its value."""
    cells = plain(pa.chunked_array([cells])).chunk(0)
    if not is_list(cells.type):
        return np.arange(len(cells)), cells
    values = plain(pa.chunked_array([pc.list_flatten(cells)])).chunk(0)
    return pc.list_parent_indices(cells).to_numpy().astype(np.int64), values


def _is_listed(parquet: pq.ParquetFile, column: str) -> bool:
    return is_list(plain_type(parquet.schema_arrow.field(column).type))


def _image_type(parquet: pq.ParquetFile, column: str) -> pa.DataType:
    """The type of one image."""
    dtype = plain_type(parquet.schema_arrow.field(column).type)
    return plain_type(dtype.value_type) if is_list(dtype) else dtype


def _has_paths(parquet: pq.ParquetFile, column: str) -> bool:
    dtype = _image_type(parquet, column)
    return pa.types.is_struct(dtype) and "path" in [field.name for field in dtype]


def _leaf(parquet: pq.ParquetFile, column: str, name: str = "bytes") -> int:
    """The number of the leaf column with the bytes of images, or with their paths.

    Within a list its name has more parts, which depend on the writer, such as "image.list.element.bytes".
    """
    suffix = f".{name}" if pa.types.is_struct(_image_type(parquet, column)) else ""
    leaves = [(parquet.schema.column(i), i) for i in range(parquet.metadata.num_columns)]
    if not _is_listed(parquet, column):
        return next(i for leaf, i in leaves if leaf.path == f"{column}{suffix}")
    inside = [
        (len(leaf.path), i)
        for leaf, i in leaves
        if leaf.max_repetition_level and leaf.path.startswith(f"{column}.") and leaf.path.endswith(suffix)
    ]
    return min(inside)[1]


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
    for group in range(parquet.num_row_groups):
        for batch in parquet.iter_batches(rows_at_once(parquet, column, group, _IMAGES), [group], [column]):
            values = _flat(batch.column(0))[1].drop_null()
            if len(values):
                head = values[0].as_py()[:_HEAD]
                return b"\0" in head or b"\xff" in head or head.startswith(b"\x89PNG")
    return False


def _null_count(parquet: pq.ParquetFile, leaf: int, group: int) -> int | None:
    """How many values of a leaf are null, if the file states it."""
    column = parquet.metadata.row_group(group).column(leaf)
    return int(column.statistics.null_count) if column.is_stats_set and column.statistics.has_null_count else None
