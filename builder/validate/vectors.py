"""Vectors of one batch as a matrix, and one number for each that is equal for equal vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Matrix = np.ndarray[Any, np.dtype[np.float32]]


def hashes(vectors: Matrix) -> pa.Array:
    """[N, D] float32 → [N] uint64, equal for equal bits and 0 for zeros; finds errors, not attacks."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    random = np.random.default_rng(0)
    weights = np.asarray(random.integers(0, 2**64, size=bits.shape[1], dtype=np.uint64), np.uint64) | 1
    total = np.zeros(len(bits), np.uint64)
    for column in range(bits.shape[1]):
        total += bits[:, column] * weights[column]  # the overflow is intended
    return pa.array(total)


def matrix(column: pa.ChunkedArray) -> tuple[Matrix, Mask]:
    """[N, D] float32, and [N] bool: which rows are null or hold a null; those are zeros."""
    array = column.combine_chunks()
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


def mask(array: Any) -> Mask:
    """An Arrow column of bool as [N] bool; null is false."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)
