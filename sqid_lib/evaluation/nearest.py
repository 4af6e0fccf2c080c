"""Exact search by dot product: the best products of each query, read and scored block by block."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from sqid_lib.errors import UsageError, missing_extra
from sqid_lib.evaluation.arrays import Float32s, Floats, Ints
from sqid_lib.evaluation.search import Search

BACKENDS = ("auto", "torch", "numpy", "faiss")
Pairs = tuple[Ints, Ints, Float32s]  # row of the query, ascending, column of the product, and score: each [n]
BlockTop = Callable[[Float32s, int, Float32s], Pairs]
Backend = Callable[[Float32s], BlockTop]
_PRODUCTS, _QUERIES = 16_384, 1_024  # rows scored at once: 64 MiB of scores
_FIRST = 1_024  # rows of the first block: it only gives scores that the next ones have to exceed
_AGAIN = 2_048  # products read at once by a thread that scores pairs again
_PAIRS = 256  # pairs scored again at once: they fit into the cache of a core
_SPARE = 28  # products beyond `top` that are kept, to be scored again where they are near the last one
_NEAR = 1_024  # products scored again because their score is that of the last one
_ROUNDING = np.float32(4e-6)  # more than the rounding of two float32 dot products of unit vectors


def search_top(
    search: Search, candidates: Ints, top: int, backend: Backend, name: str = ""
) -> tuple[Ints, Ints, Floats]:
    """The best `top` of `candidates` for each query by dot product, block by block.

    What may be among the best `top`, whatever the rounding of the matrix product, is found in float32 and scored again
    pair by pair in float64, so that equal vectors tie; if many scores near the last one are equal within rounding, the
    first ones are scored again. Memory: a block of products, its scores, and the result.

    Args:
        candidates: product rows; ties keep this order.
        top: at most len(candidates).
        backend: of `find_backend`.

    Returns:
        Query (a row of `search.queries`), index in `candidates` and score, each [Q · top], query by query, best first.
    """
    wide = min(top + _SPARE, len(candidates))
    best, index = _nearest(search, candidates, wide, backend, name)
    border = best[:, top - 1] - _ROUNDING
    crowded = np.flatnonzero(best[:, -1] >= border) if wide < len(candidates) else np.empty(0, np.int64)
    near = _near_border(search, candidates, crowded, best[crowded, top - 1], max(top, _NEAR))
    query, column = np.nonzero(best >= border[:, None])
    pairs = np.union1d(query * len(candidates) + index[query, column], near)
    query, index = np.divmod(pairs, len(candidates))
    scores = _scored_again(search, candidates, query, index)
    order = np.lexsort((index, -scores, query))
    rank = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    kept = order[rank < top]
    return query[kept], index[kept], scores[kept]


def _blocks(rows: int) -> Iterator[slice]:
    """Slices of `rows` rows; the first ones are small, and each is at most as long as all before it."""
    start = 0
    while start < rows:
        size = min(_PRODUCTS, max(start, _FIRST))
        yield slice(start, min(start + size, rows))
        start += size


def _nearest(search: Search, candidates: Ints, top: int, backend: Backend, name: str) -> tuple[Float32s, Ints]:
    """Scores [Q, top], descending, and indices in `candidates` [Q, top], in float32."""
    best = np.full((len(search.rows), top), -np.inf, np.float32)
    index = np.zeros(best.shape, np.int64)
    with tqdm(total=len(candidates), desc=f"Searching {name}", unit="product", disable=None) as bar:
        for products in _blocks(len(candidates)):
            block_top = backend(search.products(candidates[products]))
            for q in range(0, len(best), _QUERIES):
                block = slice(q, q + _QUERIES)
                row, column, score = block_top(search.queries[block], top, best[block, -1])
                _merge(best[block], index[block], row, column + products.start, score)
            bar.update(products.stop - products.start)
    return best, index


def _merge(best: Float32s, index: Ints, row: Ints, new_index: Ints, score: Float32s) -> None:
    """Merge pairs, ordered by row, into `best` [q, top], descending, and `index` [q, top], in place."""
    if not len(row):
        return
    counts = np.bincount(row, minlength=len(best))
    place = best.shape[1] + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = len(best), best.shape[1] + int(counts.max())
    scores, indices = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int64)
    scores[:, : best.shape[1]], indices[:, : best.shape[1]] = best, index
    scores[row, place], indices[row, place] = score, new_index
    order = np.argsort(-scores, axis=1)[:, : best.shape[1]]
    best[:], index[:] = np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _near_border(search: Search, candidates: Ints, queries: Ints, border: Float32s, most: int) -> Ints:
    """Pairs query · len(candidates) + index that score `border` [len(queries)] within rounding, `most` of each query.

    If there are more, their vectors are equal (no image, or the same one), and the first ones are right.
    """
    found, taken = [np.empty(0, np.int64)], np.zeros(len(queries), np.int64)
    for start in range(0, len(candidates) if len(queries) else 0, _PRODUCTS):
        vectors = search.products(candidates[start : start + _PRODUCTS])
        for q in range(0, len(queries), _QUERIES):
            block = slice(q, q + _QUERIES)
            distance = np.abs(search.queries[queries[block]] @ vectors.T - border[block, None])
            row, column = np.nonzero(distance <= _ROUNDING)
            wanted = taken[block][row] + np.arange(len(row)) - np.searchsorted(row, row) < most
            taken[block] += np.bincount(row[wanted], minlength=len(distance))
            found.append(queries[block][row[wanted]] * len(candidates) + column[wanted] + start)
    return np.concatenate(found)


def _scored_again(search: Search, candidates: Ints, query: Ints, index: Ints) -> Floats:
    """float64 [n]: the dot product of each pair; every product is read once, in the order of `candidates`."""
    scores = np.empty(len(query))
    products, place = np.unique(index, return_inverse=True)
    by_product = np.argsort(place, kind="stable")
    starts = range(0, len(products), _AGAIN)
    pairs_of_block = np.split(by_product, np.searchsorted(place[by_product], starts[1:]))

    def score(start: int, pairs: Ints) -> None:
        vectors = search.products(candidates[products[start : start + _AGAIN]])
        for first in range(0, len(pairs), _PAIRS):
            some = pairs[first : first + _PAIRS]
            q, p = search.queries[query[some]], vectors[place[some] - start]
            scores[some] = np.einsum("ij,ij->i", q.astype(np.float64), p.astype(np.float64))

    with ThreadPoolExecutor(_threads()) as pool:
        for _ in pool.map(score, starts, pairs_of_block):
            pass  # raises what a thread raised
    return scores


def _threads() -> int:
    """Threads of this process: as many as its matrix products use, where that is limited; at most 8."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(8, int(limit) if limit.isdigit() and int(limit) else os.cpu_count() or 1)


def find_backend(name: str) -> Backend:
    """What searches one block: products [p, D] → (queries [q, D], k, above [q]) → pairs.

    The pairs hold the best k products of each query among those that score more than `above`, and maybe others of them.

    Args:
        name: one of `BACKENDS`; "auto" is torch if it is installed, on a GPU if there is one, otherwise numpy.

    Raises:
        UsageError: an unknown backend.
        MissingExtraError: its package is not installed.
    """
    if name not in BACKENDS:
        raise UsageError("unknown backend", expected=" or ".join(BACKENDS), got=repr(name))
    if name == "numpy":
        return _numpy_backend
    if name == "faiss":
        return _faiss_backend()
    try:
        return _torch_backend()
    except ImportError:
        if name == "auto":
            return _numpy_backend
        raise missing_extra("torch", "train", "to search with torch") from None


def _numpy_backend(products: Float32s) -> BlockTop:
    return lambda queries, k, above: _pairs_above(queries @ products.T, k, above)


def _pairs_above(scores: Float32s, k: int, above: Float32s) -> Pairs:
    """The few scores above; of a query with many, the best k. A threshold is much cheaper than a selection."""
    chosen = scores > above[:, None]
    place = np.flatnonzero(chosen)
    many = np.flatnonzero(np.bincount(place // scores.shape[1], minlength=len(scores)) > 4 * k)
    if len(many):
        best = np.argpartition(scores[many], -k, axis=1)[:, -k:]
        chosen[many] = False
        chosen[many[:, None], best] = True
        place = np.flatnonzero(chosen)
    row, column = np.divmod(place, scores.shape[1])
    return row, column, scores.ravel()[place]


def _pairs_of_best(best: Float32s, column: Ints, above: Float32s) -> Pairs:
    """Of the best scores [q, k] and their columns those above."""
    row, place = np.nonzero(best > above[:, None])
    return row, column[row, place], best[row, place]


def _torch_backend() -> Backend:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def backend(products: Float32s) -> BlockTop:
        vectors = torch.from_numpy(products).to(device)

        def block_top(queries: Float32s, k: int, above: Float32s) -> Pairs:
            with torch.inference_mode():
                scores = torch.from_numpy(queries).to(device) @ vectors.T
                if device == "cpu":
                    return _pairs_above(scores.numpy(), k, above)
                best, column = scores.topk(min(k, scores.shape[1]), dim=1, sorted=False)
            return _pairs_of_best(best.cpu().numpy(), column.cpu().numpy(), above)

        return block_top

    return backend


def _faiss_backend() -> Backend:
    try:
        import faiss
    except ImportError:
        raise missing_extra("faiss-cpu", "eval", "to search with faiss") from None

    def backend(products: Float32s) -> BlockTop:
        def block_top(queries: Float32s, k: int, above: Float32s) -> Pairs:
            k = min(k, len(products))
            best, column = faiss.knn(queries, products, k, metric=faiss.METRIC_INNER_PRODUCT)
            return _pairs_of_best(best, column.astype(np.int64), above)

        return block_top

    return backend
