"""The vectors of all products as search needs them: the text side, the image side, and half their sum."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property

import numpy as np

from sqid_lib.evaluation.arrays import Bools, Float32s, Floats, Ints, Matrix
from sqid_lib.evaluation.cosine import unit
from sqid_lib.evaluation.mapped import drop_pages

_BLOCK = 8_192  # rows of which a copy is in memory
_RECENT = 4  # queries whose dot products are kept, 4 bytes a product each
_SAFE_NORMS = (1e-15, 1e15)  # of vectors whose squares float32 can hold
_HALVES_BYTES = 1 << 30  # of memory for half the sum of both sides; 164,900 products of width 768 need 0.5 GB


class Side:
    """The text vectors or the image vectors of all products.

    Attributes:
        present: bool [P], which products have a vector; the others have cosine 0.
    """

    def __init__(self, vectors: Matrix, present: Bools) -> None:
        self._vectors, self.present = vectors, present
        self._products = _Products(self._dot_products)

    @cached_property
    def _norms(self) -> Float32s:
        """float32 [P], for which all vectors are read once, block by block."""
        norms = np.empty(len(self._vectors), np.float32)
        with np.errstate(over="ignore", under="ignore"):
            for start in range(0, len(norms), _BLOCK):
                block = np.asarray(self._vectors[start : start + _BLOCK], np.float32)
                norms[start : start + _BLOCK] = np.sqrt(np.einsum("ij,ij->i", block, block))
        drop_pages(self._vectors)
        return norms

    @cached_property
    def _safe(self) -> Bools:
        least, most = _SAFE_NORMS
        safe: Bools = (self._norms > least) & (self._norms < most)
        return safe

    @cached_property
    def unsafe(self) -> Ints:
        """Rows whose norm is too small or large for float32."""
        return np.flatnonzero(self.present & ~self._safe)

    @cached_property
    def _inverse(self) -> Float32s:
        return np.divide(1, self._norms, out=np.zeros_like(self._norms), where=self._safe & self.present)

    def approximate(self, query: Float32s) -> Float32s:
        """float32 [P]: dot products of `query` [D] with the vectors at unit length; anything for `unsafe` rows."""
        return self._products.of(query)

    def units(self, rows: slice) -> Float32s:
        """float32 [n, D]: these vectors at unit length, zeros where there is none; anything for `unsafe` rows."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            found: Float32s = np.asarray(self._vectors[rows], np.float32) * self._inverse[rows, None]
        drop_pages(self._vectors)  # all are read one after the other, and seldom again
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """[P, D]"""
        return self._vectors.shape

    def _dot_products(self, query: Float32s) -> Float32s:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            # float32 in one piece, float16 in blocks: a copy of all of it as float32 would not be small
            rows = len(self._vectors) if self._vectors.dtype == np.float32 else _BLOCK
            starts = range(0, len(self._vectors), rows)
            blocks = [np.asarray(self._vectors[start : start + rows], np.float32) @ query for start in starts]
            return np.concatenate(blocks) * self._inverse

    def cosines(self, vectors: Float32s, rows: Ints) -> Floats:
        """float64 [n]: mean cosine of unit `vectors` [m, D] with those of `rows` [n]; 0 where there is none."""
        found = np.zeros(len(rows))
        there = np.flatnonzero(self.present[rows])
        for start in range(0, len(there), _BLOCK):
            block = there[start : start + _BLOCK]
            # in float64 beforehand: a cast within einsum would make the order of a sum depend on the row
            products = unit(self._vectors[rows[block]]).astype(np.float64)
            for vector in vectors.astype(np.float64):
                found[block] += np.einsum("ij,j->i", products, vector)
        return found / len(vectors)


class Halves:
    """Half the sum of both sides at unit length, float32 [P, D] in memory: one matrix product instead of two."""

    def __init__(self, text: Side, image: Side) -> None:
        self._matrix = np.empty(text.shape, np.float32)
        self._products = _Products(lambda query: self._matrix @ query)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(self._matrix), _BLOCK):
                rows = slice(start, start + _BLOCK)
                self._matrix[rows] = np.float32(0.5) * (text.units(rows) + image.units(rows))

    def approximate(self, query: Float32s) -> Float32s:
        """float32 [P]: half the sum of what both sides give."""
        return self._products.of(query)


def halves(text: Side, image: Side) -> Halves | None:
    """None where there is nothing to add up, or too little memory is meant for it."""
    products, width = text.shape
    return Halves(text, image) if image.present.any() and 4 * products * width <= _HALVES_BYTES else None


class _Products:
    """Dot products with all rows; those of the last queries are kept, for another weight of the same query."""

    def __init__(self, multiply: Callable[[Float32s], Float32s]) -> None:
        self._multiply = multiply
        self._recent: dict[bytes, Float32s] = {}
        self._lock = threading.Lock()

    def of(self, query: Float32s) -> Float32s:
        key = query.tobytes()
        with self._lock:
            found = self._recent.get(key)
        if found is None:
            found = self._multiply(query)
            with self._lock:
                self._recent[key] = found
                for oldest in list(self._recent)[:-_RECENT]:
                    del self._recent[oldest]
        return found
