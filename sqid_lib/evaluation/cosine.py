"""Cosine similarity of judged pairs, and vectors of length 1."""

from __future__ import annotations

import numpy as np

from sqid_lib.evaluation.arrays import Float32s, Floats, Ints, Matrix
from sqid_lib.evaluation.judged import JudgedLists
from sqid_lib.evaluation.mapped import drop_pages

_BLOCK = 8_192  # pairs at once
_MAPPED = 4 * _BLOCK  # pairs whose vectors stay in memory, where they are mapped from files
_ROWS = 256  # vectors at once: they fit into the cache of a core


def unit(vectors: Matrix) -> Float32s:
    """The vectors scaled to length 1, float32; zero vectors stay zero."""
    out = np.empty(vectors.shape, np.float32)
    for start in range(0, len(out), _ROWS):
        block = np.asarray(vectors[start : start + _ROWS], np.float32)
        largest = np.maximum(block.max(axis=1, keepdims=True), -block.min(axis=1, keepdims=True))
        largest[largest == 0] = 1
        scaled = block / largest  # squares of very large or small numbers do not fit float32
        norms = np.linalg.norm(scaled, axis=1, keepdims=True)
        norms[norms == 0] = 1
        np.divide(scaled, norms, out=out[start : start + _ROWS])
    return out


def judged_cosine(lists: JudgedLists, queries: Matrix, products: Matrix) -> Floats:
    """Cosine of every judged pair, in float64; a zero vector has cosine 0.

    Args:
        queries: float32 [queries of the store, D].
        products: float32 [products of the store, D].

    Returns:
        float64 [J].
    """
    return cosine(queries, products, lists.query_index[lists.query], lists.product)


def cosine(queries: Matrix, products: Matrix, query_rows: Ints, product_rows: Ints) -> Floats:
    """Cosine of queries[query_rows] and products[product_rows], pair by pair, float64 [N]; 0 for a zero vector."""
    out = np.empty(len(query_rows))
    for start in range(0, len(out), _BLOCK):
        block = slice(start, start + _BLOCK)
        q = np.asarray(queries[query_rows[block]], np.float64)
        p = np.asarray(products[product_rows[block]], np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", q, q) * np.einsum("ij,ij->i", p, p))
        dots = np.einsum("ij,ij->i", q, p)
        out[block] = np.divide(dots, norms, out=np.zeros_like(dots), where=norms != 0)
        if start + _BLOCK >= len(out) or (start + _BLOCK) % _MAPPED == 0:
            drop_pages(queries, products)
    return out
