"""Full-catalogue retrieval: every judged query against all products, by exact search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from sqid_lib.errors import UsageError, missing_extra
from sqid_lib.evaluation import runs
from sqid_lib.evaluation.arrays import Float32s, Floats, Ints
from sqid_lib.evaluation.fusion import reciprocal_rank
from sqid_lib.evaluation.judged import product_order
from sqid_lib.evaluation.scorer import Method, Scorer, find_method
from sqid_lib.evaluation.search import RankFusion, Scan, Search

Top = Callable[[Float32s, Float32s, int], tuple[Float32s, Ints]]
BACKENDS = ("auto", "torch", "numpy", "faiss")
RRF_DEPTH = 100  # of the rankings that are fused, at least
_PRODUCTS, _QUERIES = 16_384, 1_024  # rows scored at once: 64 MiB of scores
_PAIRS = 8_192  # pairs scored again at once
_SPARE = 28  # products beyond `top` that are scored again
_NEAR = 1_024  # products scored again because their score is that of the last one
_ROUNDING = np.float32(4e-6)  # more than the rounding of two float32 dot products of unit vectors


def searching_method(methods: Mapping[str, Method], name: str) -> tuple[Method, str]:
    """The method and its argument; raises UsageError for one that cannot search the whole catalogue."""
    searching = {key: method for key, method in methods.items() if method.searches is not None}
    return find_method(searching, name, "this method cannot search all products")


def rank_all(scorer: Scorer, name: str, top: int, find: Top) -> runs.Ranking:
    """The `top` products of the whole store, of any locale, for every judged query; ties by ascending product_id.

    Args:
        scorer: the store, its judged lists and the methods; a fusion without a weight takes the weights chosen there.
        name: of a method that can search; a run file is used as it is, up to `top`.
        find: one of `backend_top`.

    Raises:
        UsageError: a method that cannot search.
        MissingExtraError: the method's package is not installed.
    """
    method, argument = searching_method(scorer.methods, name)
    assert method.searches is not None
    found = method.searches(scorer, argument)
    if isinstance(found, runs.Ranking):
        return _best(found, top)
    if isinstance(found, RankFusion):
        depth = max(top, RRF_DEPTH)
        scorer.notes.append(f"{name}: fuses the best {depth} products of {' and of '.join(found.methods)}")
        return _best(fuse_ranks(scorer, [rank_all(scorer, other, depth, find) for other in found.methods]), top)
    candidates = np.argsort(product_order(scorer.store))
    if scorer.missing == "drop":
        candidates = candidates[np.asarray(scorer.store.has_image)[candidates]]
    if isinstance(found, Scan):
        return scan_top(scorer, found, candidates, top, name)
    top = min(top, len(candidates))
    parts = []
    for search in found:
        query, index, score = search_top(search, candidates, top, find, name)
        parts.append((search.rows[query], candidates[index], score))
    query, product, score = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return runs.ranking(scorer.store, query, product, score)


def _best(found: runs.Ranking, top: int) -> runs.Ranking:
    kept = found.rank < top
    return runs.Ranking(found.query[kept], found.product[kept], found.score[kept])


def fuse_ranks(scorer: Scorer, rankings: Sequence[runs.Ranking]) -> runs.Ranking:
    """Reciprocal rank fusion: the sum of 1/(60 + rank) over the rankings; a product missing in one adds nothing."""
    products = scorer.store.products.num_rows
    pairs = np.concatenate([found.query * products + found.product for found in rankings])
    pairs, place = np.unique(pairs, return_inverse=True)
    addends = np.concatenate([reciprocal_rank(found.rank) for found in rankings])
    scores = np.bincount(place, addends, len(pairs)).astype(np.float64)
    query, product = np.divmod(pairs, products)
    return runs.ranking(scorer.store, query, product, scores)


def scan_top(scorer: Scorer, scan: Scan, candidates: Ints, top: int, name: str = "") -> runs.Ranking:
    """The best `top` of `candidates` for each query; ties keep the order of `candidates`."""
    position = np.full(scorer.store.products.num_rows, -1)
    position[candidates] = np.arange(len(candidates))
    parts = []
    for row in tqdm(scan.rows.tolist(), desc=f"Searching {name}", unit="query", disable=None):
        scores = scan.scores(row)
        product = np.flatnonzero((scores > -np.inf) & (position >= 0))
        scores = scores[product]
        if len(product) > top:
            kept = scores >= np.partition(scores, -top)[-top]
            product, scores = product[kept], scores[kept]
        best = np.lexsort((position[product], -scores))[:top]
        parts.append((np.full(len(best), row), product[best], scores[best]))
    query, product, score = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return runs.ranking(scorer.store, query, product, score)


def search_top(search: Search, candidates: Ints, top: int, find: Top, name: str = "") -> tuple[Ints, Ints, Floats]:
    """The best `top` of `candidates` for each query by dot product, block by block.

    A few more than `top` are found in float32 and scored again pair by pair in float64, so that equal vectors tie
    whatever the rounding of the matrix product; if scores near the last one are equal within rounding, all products
    with such a score are scored again.

    Args:
        candidates: product rows; ties keep this order.

    Returns:
        Query (a row of `search.queries`), index in `candidates` and score, each [Q · top], query by query, best first.
    """
    wide = min(top + _SPARE, len(candidates))
    best, index = _nearest(search, candidates, wide, find, name)
    border = best[:, top - 1]
    crowded = np.flatnonzero(best[:, -1] >= border - _ROUNDING) if wide < len(candidates) else np.empty(0, np.int64)
    near = _near_border(search, candidates, crowded, border[crowded], max(top, _NEAR))
    pairs = np.union1d(np.repeat(np.arange(len(best)), wide) * len(candidates) + index.ravel(), near)
    query, index = np.divmod(pairs, len(candidates))
    scores = np.empty(len(query))
    for start in range(0, len(query), _PAIRS):
        block = slice(start, start + _PAIRS)
        q, p = search.queries[query[block]], search.products(candidates[index[block]])
        scores[block] = np.einsum("ij,ij->i", q, p, dtype=np.float64)
    order = np.lexsort((index, -scores, query))
    rank = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    kept = order[rank < top]
    return query[kept], index[kept], scores[kept]


def _nearest(search: Search, candidates: Ints, top: int, find: Top, name: str) -> tuple[Float32s, Ints]:
    """Scores [Q, top], descending, and indices in `candidates` [Q, top], in float32."""
    best = np.full((len(search.rows), top), -np.inf, np.float32)
    index = np.zeros(best.shape, np.int64)
    starts = range(0, len(candidates), _PRODUCTS)
    for start in tqdm(starts, desc=f"Searching {name}", unit="block", disable=None):
        vectors = search.products(candidates[start : start + _PRODUCTS])
        for q in range(0, len(best), _QUERIES):
            block = slice(q, q + _QUERIES)
            scores, column = find(search.queries[block], vectors, min(top, len(vectors)))
            merged = np.concatenate([best[block], scores], axis=1)
            indices = np.concatenate([index[block], column + start], axis=1)
            order = np.argsort(-merged, axis=1)[:, :top]
            best[block] = np.take_along_axis(merged, order, axis=1)
            index[block] = np.take_along_axis(indices, order, axis=1)
    return best, index


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


def backend_top(backend: str) -> Top:
    """The search of one block: (queries [q, D], products [p, D], k ≤ p) → scores and columns, [q, k], in any order.

    Args:
        backend: one of `BACKENDS`; "auto" is torch if it is installed, on a GPU if there is one, otherwise numpy.

    Raises:
        UsageError: an unknown backend.
        MissingExtraError: its package is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError("unknown backend", expected=" or ".join(BACKENDS), got=repr(backend))
    if backend == "numpy":
        return _numpy_top
    if backend == "faiss":
        return _faiss_top()
    try:
        return _torch_top()
    except ImportError:
        if backend == "auto":
            return _numpy_top
        raise missing_extra("torch", "train", "to search with torch") from None


def _numpy_top(queries: Float32s, products: Float32s, k: int) -> tuple[Float32s, Ints]:
    scores = queries @ products.T
    index = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.take_along_axis(scores, index, axis=1), index


def _torch_top() -> Top:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def top(queries: Float32s, products: Float32s, k: int) -> tuple[Float32s, Ints]:
        with torch.inference_mode():
            scores = torch.from_numpy(queries).to(device) @ torch.from_numpy(products).to(device).T
            best, index = scores.topk(k, dim=1, sorted=False)
        return best.cpu().numpy(), index.cpu().numpy()

    return top


def _faiss_top() -> Top:
    try:
        import faiss
    except ImportError:
        raise missing_extra("faiss-cpu", "eval", "to search with faiss") from None

    def top(queries: Float32s, products: Float32s, k: int) -> tuple[Float32s, Ints]:
        best, index = faiss.knn(queries, products, k, metric=faiss.METRIC_INNER_PRODUCT)
        return best, index.astype(np.int64)

    return top


def ranks_of_judged(scorer: Scorer, found: runs.Ranking) -> Floats:
    """float64 [J]: 0-based rank of every judged product in a ranking, inf where it is not retrieved."""
    index, judgment = runs.find_judged(scorer.store, scorer.lists, found)
    ranks = np.full(len(scorer.lists.row), np.inf)
    ranks[judgment] = found.rank[index]
    return ranks
