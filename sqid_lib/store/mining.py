"""Hard negatives: for each query the products that score best and are not judged for it, found by exact search."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sqid_lib.errors import StoreError, UsageError
from sqid_lib.evaluation import features, judged
from sqid_lib.evaluation.arrays import Bools, Floats, Matrix
from sqid_lib.evaluation.cosine import unit
from sqid_lib.evaluation.nearest import find_backend, search_top
from sqid_lib.evaluation.search import Search
from sqid_lib.streams.batches import Rows
from sqid_lib.streams.gather import HardProducts, JudgedProducts

By = str | tuple[npt.ArrayLike, npt.ArrayLike]
_QUERIES = 4_096  # queries searched at once
_PAIRS = 8_192  # pairs scored at once
_BLOCK = 65_536  # rows of a matrix hashed or checked at once
_EXPECTED = '"text", "image", "features:FILE", or two arrays: vectors of the queries and of the products'

_log = logging.getLogger(__name__)


class Store(judged.Store, Protocol):
    """What is read of an EmbeddingStore."""

    @property
    def judged(self) -> JudgedProducts: ...


@dataclass(frozen=True)
class Sides:
    """Vectors to mine by.

    Attributes:
        queries, products: [Q, D] and [P, D].
        present: bool [P], the products that may be negatives.
        name: identifies the vectors within their release.
    """

    queries: Matrix
    products: Matrix
    present: Bools
    name: str


def read_margin(margin: Any) -> float | None:
    """The margin as a float; UsageError for anything but a finite number or None."""
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float | np.number) or not math.isfinite(margin):
        raise UsageError(
            "bad margin", where="margin", expected="a number, such as 0.05, or None", got=repr(margin)[:80]
        )
    return float(margin)


def read_sides(store: Store, by: By) -> Sides:
    """The vectors that `by` names.

    Raises:
        UsageError: an unknown name, or arrays that do not fit the store.
        MissingFileError, SourceError, EvaluationError: a features file cannot be used.
    """
    every = np.ones(len(store.text_features), np.bool_)
    if isinstance(by, str):
        if by == "text":
            return Sides(store.query_features, store.text_features, every, by)
        if by == "image":
            return Sides(store.query_features, store.image_features, np.asarray(store.has_image), by)
        kind, _, source = by.partition(":")
        if kind != "features" or not source:
            raise UsageError("unknown vectors to mine by", where="by", expected=_EXPECTED, got=repr(by)[:80])
        found = features.read_features(source, store)
        return Sides(found.queries, found.products, found.present, _digest(found.queries, found.products))
    if not isinstance(by, tuple | list) or len(by) != 2:
        raise UsageError("unknown vectors to mine by", where="by", expected=_EXPECTED, got=type(by).__name__)
    queries, products = (np.asarray(vectors) for vectors in by)
    rows = (len(store.query_features), len(store.text_features))
    shapes = (queries.shape, products.shape)
    if (
        any(len(shape) != 2 for shape in shapes)
        or rows != (len(queries), len(products))
        or shapes[0][1] != shapes[1][1]
    ):
        expected = f"[{rows[0]}, D] and [{rows[1]}, D]"
        raise UsageError("the vectors do not fit the store", where="by", expected=expected, got=str(shapes))
    for vectors in (queries, products):
        if vectors.dtype.kind not in "fiu" or not all(
            np.isfinite(vectors[start : start + _BLOCK]).all() for start in range(0, len(vectors), _BLOCK)
        ):
            raise UsageError("the vectors have to be finite numbers", where="by", got=str(vectors.dtype))
    return Sides(queries, products, every, _digest(queries, products))


def mine(store: Store, sides: Sides, queries: Rows, top: int) -> HardProducts:
    """The `top` products with the highest cosine for each query, without those that are judged for it.

    Equal scores are in the order of product_id. Memory: some blocks of products and of their scores, and the result.

    Args:
        queries: rows of the store, each once.
    """
    products = np.full((len(queries), top), -1, np.int64)
    scores = np.full((len(queries), top), -np.inf, np.float32)
    candidates = np.argsort(judged.product_order(store))
    candidates = candidates[sides.present[candidates]]
    backend = find_backend("auto")
    counts = np.diff(store.judged.starts)[queries]
    by_count = np.argsort(counts, kind="stable")  # queries with as many judged products are searched as deep
    for start in range(0, len(queries), _QUERIES) if len(candidates) else ():
        rows = by_count[start : start + _QUERIES]
        wide = min(top + int(counts[rows].max()), len(candidates))
        search = Search(queries[rows], unit(sides.queries[queries[rows]]), lambda found: unit(sides.products[found]))
        query, index, score = search_top(search, candidates, wide, backend, "hard negatives")
        product = candidates[index]
        kept = ~store.judged.has(queries[rows][query], product)
        query, product, score = query[kept], product[kept], score[kept]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        best = rank < top
        place = (rows[query[best]], rank[best])
        products[place], scores[place] = product[best], score[best]
    where = np.full(len(store.query_features), -1)
    where[queries] = np.arange(len(queries))
    return HardProducts(where, products, scores)


def hard_pairs(
    store: Store, sides: Sides, hard: HardProducts, judgments: Rows, count: int, margin: float | None
) -> tuple[Rows, npt.NDArray[np.float32] | None]:
    """The judgments that have `count` negatives, and the highest score that a negative of each may have.

    The margin is `absolute_margin` of sentence-transformers' `mine_hard_negatives`: a negative's score plus the margin
    is at most the positive's score. Pairs with too few negatives are left out, as there.

    Raises:
        StoreError: no pair is left.
    """
    queries = store.judgment_query_index[judgments]
    most = None
    if margin is not None:
        positive = _scores(sides, queries, store.judgment_product_index[judgments])
        most = (positive - margin).astype(np.float32)
    enough = np.empty(len(judgments), np.bool_)
    for start in range(0, len(judgments), _BLOCK):
        block = slice(start, start + _BLOCK)
        allowed = hard.allowed(queries[block], None if most is None else most[block])
        enough[block] = allowed.sum(axis=1) >= count
    left_out = len(enough) - int(enough.sum())
    if left_out == len(enough):
        fix = "Use a smaller margin or count, or a larger top."
        raise StoreError("no positive has enough hard negatives", where="negatives", expected=f"{count} each", fix=fix)
    if left_out:
        _log.warning(
            "%d of %d positives have fewer than %d hard negatives, and are left out", left_out, len(enough), count
        )
    return judgments[enough], None if most is None else most[enough]


def _scores(sides: Sides, queries: Rows, products: Rows) -> Floats:
    """float64 [n]: the cosine of each pair, rounded as in `search_top`; 0 where the product has no vector."""
    out = np.empty(len(queries))
    for start in range(0, len(out), _PAIRS):
        block = slice(start, start + _PAIRS)
        q, p = unit(sides.queries[queries[block]]), unit(sides.products[products[block]])
        out[block] = np.einsum("ij,ij->i", q, p, dtype=np.float64)
    return out


def _digest(*matrices: Matrix) -> str:
    """Identifies the content of matrices."""
    digest = hashlib.sha256()
    for matrix in matrices:
        digest.update(f"{matrix.dtype} {matrix.shape}".encode())
        for start in range(0, len(matrix), _BLOCK):
            digest.update(np.ascontiguousarray(matrix[start : start + _BLOCK]).tobytes())
    return digest.hexdigest()[:16]
