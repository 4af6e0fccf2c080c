"""Vectors of one batch as a matrix, and one number for each that is equal for equal vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from builder.validate.problem import Problem
from sqid_lib.tables.vector_columns import present

_MANY = 10  # inputs whose vectors cannot all be equal by chance
_MADE_OF = {"clip_text_features": ("product_title", "query"), "clip_image_features": ("image_url",)}

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Matrix = np.ndarray[Any, np.dtype[np.float32]]


def hashes(vectors: Matrix) -> pa.Array:
    """[N, D] float32 → [N] uint64, equal for equal bits and 0 for zeros; finds errors, not attacks."""
    rows = np.ascontiguousarray(vectors, np.float32)
    found = np.fromiter(map(xxhash.xxh3_64_intdigest, rows), np.uint64, len(rows))
    found[~present(rows.view(np.uint32))] = 0
    return pa.array(found)


def unusable(vectors: Matrix) -> tuple[Mask, Mask, Mask, Mask]:
    """Vectors of which no cosine can be taken: NaN or infinite, too large, too small, zeros; four times [N] bool.

    Too large or too small is one whose squares have no sum in float32, as most programs compute it.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squares = np.einsum("nd,nd->n", vectors, vectors)
    strange = np.flatnonzero(~np.isfinite(squares) | (squares == 0))
    few = vectors[strange]
    finite, zero = np.isfinite(few).all(axis=1), (few == 0).all(axis=1)
    found = (~finite, finite & ~zero & (squares[strange] != 0), ~zero & (squares[strange] == 0), zero)
    masks = tuple(np.zeros(len(vectors), dtype=bool) for _ in found)
    for whole, part in zip(masks, found, strict=True):
        whole[strange] = part
    return masks[0], masks[1], masks[2], masks[3]


def matrix(column: pa.ChunkedArray) -> tuple[Matrix, Mask]:
    """[N, D] float32, and [N] bool: which rows are null or hold a null; those are zeros."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even one chunk
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    size = array.type.list_size
    values = array.values.slice(array.offset * size, len(array) * size)
    null = mask(pc.is_null(array))
    if values.null_count:
        null |= mask(pc.is_null(values)).reshape(-1, size).any(axis=1)
        values = pc.fill_null(values, 0.0)
    vectors = values.to_numpy(zero_copy_only=False).reshape(-1, size)
    if null.any():
        vectors = np.where(null[:, None], np.float32(0), vectors)
    return vectors, null


def check_distinct(rows: pa.Table, where: str) -> Iterator[Problem]:
    """Vectors of many different inputs are not all equal, as those of a broken encoder are.

    Args:
        rows: columns `hash <vector>` and the columns that the vectors were made of.
    """
    for column, inputs in _MADE_OF.items():
        name, known = f"hash {column}", [name for name in inputs if name in rows.column_names]
        if name not in rows.column_names or not known:
            continue
        real = pc.not_equal(rows[name], pa.scalar(0, pa.uint64()))
        if pc.count_distinct(rows[name].filter(real)).as_py() != 1:
            continue
        count = pc.count_distinct(rows[known[0]].filter(real)).as_py()
        if count >= _MANY:
            message = f"{column} is the same vector for {count:,} values of {known[0]}"
            yield Problem("equal-vectors", where, message)


def mask(array: Any) -> Mask:
    """An Arrow column of bool as [N] bool; null is false."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)
