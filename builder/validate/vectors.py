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


class EqualVectors:
    """Finds vectors of many different inputs that are all equal, as those of a broken encoder are.

    Args:
        column: of the vectors.
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self._first: np.ndarray[Any, np.dtype[np.uint32]] | None = None
        self._inputs: list[pa.ChunkedArray] = []  # of the vectors so far, while all are equal
        self._name, self._differ = "", False

    def add(self, vectors: Matrix, rows: pa.Table) -> None:
        """Take in a batch: [N, D], and the columns that the vectors were made of."""
        self._name = next((name for name in _MADE_OF.get(self._column, ()) if name in rows.column_names), "")
        if self._differ or not self._name:
            return
        bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
        real = present(bits)
        if self._first is None and real.any():
            self._first = bits[real.argmax()].copy()
        self._differ = bool((bits[real] != self._first).any())
        self._inputs = [] if self._differ else [*self._inputs, rows[self._name].filter(pa.array(real))]

    def problems(self, where: str) -> Iterator[Problem]:
        """At most one, when all rows were taken in."""
        inputs = [chunk for column in self._inputs for chunk in column.chunks]
        count = pc.count_distinct(pa.chunked_array(inputs)).as_py() if inputs else 0
        if count >= _MANY:
            message = f"{self._column} is the same vector for {count:,} values of {self._name}"
            yield Problem("equal-vectors", where, message)


def mask(array: Any) -> Mask:
    """An Arrow column of bool as [N] bool; null is false."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)
