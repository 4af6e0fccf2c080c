"""Full-catalogue retrieval: every judged query against all products, by exact search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from sqid_lib.errors import UsageError, missing_extra
from sqid_lib.evaluation import runs
from sqid_lib.evaluation.features import read_features
from sqid_lib.evaluation.judged import Floats, Ints, Store, Vectors, product_order
from sqid_lib.evaluation.methods import SBERT, Scorer, parse_weight, sbert_vectors

Float32s = npt.NDArray[np.float32]
Top = Callable[[Float32s, Float32s, int], tuple[Float32s, Ints]]
METHODS = "clip_text, clip_image, fusion[:WEIGHT], sbert[:MODEL], features:FILE, run:FILE"
BACKENDS = ("auto", "torch", "numpy", "faiss")
_PRODUCTS, _QUERIES = 16_384, 1_024  # rows scored at once: 64 MiB of scores
_PAIRS = 8_192  # pairs scored again at once
_SPARE = 28  # products beyond `top` that are scored again
_NEAR = 1_024  # products scored again because they score as the last one does
_ROUNDING = np.float32(4e-6)  # more than two float32 dot products of unit vectors err together


@dataclass(frozen=True)
class Search:
    """Queries [n, D] of unit length for `rows` [n] of the store, and the vectors of product rows, scored by product."""

    rows: Ints
    queries: Float32s
    products: Callable[[Ints], Float32s]


def rank_all(scorer: Scorer, method: str, top: int, backend: str = "auto") -> runs.Ranking:
    """The `top` products of the whole store, of any locale, for every judged query; ties by ascending product_id.

    Args:
        scorer: the store and its judged lists; a fusion without weight takes the weights chosen there.
        method: one of METHODS; a run file is taken as it is, up to `top`.

    Raises:
        UsageError: a method that cannot search, or missing="text".
        MissingExtraError: the backend or the method's package is not installed.
    """
    store = scorer.store
    if method.startswith("run:"):
        found = runs.read_run(Path(method.partition(":")[2]), store)
        kept = found.rank < top
        return runs.Ranking(found.query[kept], found.product[kept], found.score[kept])
    if scorer.missing == "text":
        raise UsageError("retrieval scores a missing image 0 or drops it", expected="missing zero or drop", got="text")
    candidates = np.argsort(product_order(store))
    if scorer.missing == "drop":
        candidates = candidates[np.asarray(store.has_image)[candidates]]
    find = backend_top(backend)
    top = min(top, len(candidates))
    parts = []
    for search in _searches(scorer, method):
        query, place, score = search_top(search, candidates, top, find, method)
        parts.append((search.rows[query], candidates[place], score))
    query, product, score = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return runs.ranking(store, query, product, score)


def _searches(scorer: Scorer, method: str) -> list[Search]:
    store, rows = scorer.store, scorer.lists.query_index
    head, _, argument = method.partition(":")
    if head == "features" and argument:
        features = read_features(argument, store)
        return [Search(rows, unit(features.queries[rows]), lambda p: unit(features.products[p]))]
    if head == "sbert":
        everything = np.arange(store.products.num_rows)
        queries, titles = sbert_vectors(store, rows, everything, argument or SBERT)
        return [Search(rows, unit(queries), lambda p: unit(titles[p]))]
    if method == "fusion":
        scorer.scores(method)
        weights = scorer.sweeps[method].by_query
        return [_clip(store, rows[weights == w], float(w)) for w in np.unique(weights)]
    fixed = {"clip_text": 1.0, "clip_image": 0.0}
    if head == "fusion":
        fixed[method] = parse_weight(argument, method)
    if method not in fixed:
        raise UsageError("this method cannot search all products", expected=METHODS, got=repr(method))
    return [_clip(store, rows, fixed[method])]


def _clip(store: Store, rows: Ints, weight: float) -> Search:
    """a·cos(q, t) + (1-a)·cos(q, i) is q̂ · (a·t̂ + (1-a)·î): one vector a product whatever the weight."""

    def products(chosen: Ints) -> Float32s:
        mixed = np.zeros((len(chosen), store.width), np.float32)
        if weight > 0:
            mixed += np.float32(weight) * unit(store.text_features[chosen])
        if weight < 1:
            image = unit(store.image_features[chosen]) * np.asarray(store.has_image)[chosen, None]
            mixed += np.float32(1 - weight) * image
        return mixed

    return Search(rows, unit(store.query_features[rows]), products)


def unit(vectors: Vectors) -> Float32s:
    """The vectors at length 1, float32; zero vectors stay zero."""
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    norms[norms == 0] = 1
    unit_vectors: Float32s = vectors / norms
    return unit_vectors


def search_top(search: Search, candidates: Ints, top: int, find: Top, name: str = "") -> tuple[Ints, Ints, Floats]:
    """The best `top` of `candidates` for each query by dot product, block by block.

    Found in float32 with some to spare and scored again pair by pair in float64, so that equal vectors tie whatever the
    matrix product's rounding; where near-equals straddle the border, all of them are scored again.

    Args:
        candidates: product rows in the order in which ties are to stand.

    Returns:
        Query (a row of `search.queries`), place in `candidates` and score, each [Q · top], query by query, best first.
    """
    wide = min(top + _SPARE, len(candidates))
    best, place = _nearest(search, candidates, wide, find, name)
    border = best[:, top - 1]
    crowded = np.flatnonzero(best[:, -1] >= border - _ROUNDING) if wide < len(candidates) else np.empty(0, np.int64)
    near = _near_border(search, candidates, crowded, border[crowded], max(top, _NEAR))
    pairs = np.union1d(np.repeat(np.arange(len(best)), wide) * len(candidates) + place.ravel(), near)
    query, place = np.divmod(pairs, len(candidates))
    scores = np.empty(len(query))
    for start in range(0, len(query), _PAIRS):
        block = slice(start, start + _PAIRS)
        q, p = search.queries[query[block]], search.products(candidates[place[block]])
        scores[block] = np.einsum("ij,ij->i", q, p, dtype=np.float64)
    order = np.lexsort((place, -scores, query))
    rank = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    kept = order[rank < top]
    return query[kept], place[kept], scores[kept]


def _nearest(search: Search, candidates: Ints, top: int, find: Top, name: str) -> tuple[Float32s, Ints]:
    """Scores [Q, top], falling, and places in `candidates` [Q, top], in float32."""
    best = np.full((len(search.rows), top), -np.inf, np.float32)
    place = np.zeros(best.shape, np.int64)
    starts = range(0, len(candidates), _PRODUCTS)
    for start in tqdm(starts, desc=f"Searching {name}", unit="block", disable=None):
        vectors = search.products(candidates[start : start + _PRODUCTS])
        for q in range(0, len(best), _QUERIES):
            block = slice(q, q + _QUERIES)
            scores, index = find(search.queries[block], vectors, min(top, len(vectors)))
            merged = np.concatenate([best[block], scores], axis=1)
            places = np.concatenate([place[block], index + start], axis=1)
            order = np.argsort(-merged, axis=1)[:, :top]
            best[block] = np.take_along_axis(merged, order, axis=1)
            place[block] = np.take_along_axis(places, order, axis=1)
    return best, place


def _near_border(search: Search, candidates: Ints, queries: Ints, border: Float32s, most: int) -> Ints:
    """Pairs query · len(candidates) + place that score `border` [len(queries)] within rounding, `most` of each query.

    More than that are equal vectors (no picture, or the same one), of which the first are kept anyway.
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
    """How a block is searched: (queries [q, D], products [p, D], k ≤ p) → scores [q, k] and columns [q, k], any order.

    "auto" is torch where it is installed (on a GPU where there is one), else numpy.
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
    """float64 [J]: 0-based place of every judged product in a ranking, inf where it is not in it."""
    place, judgment = runs.find_judged(scorer.store, scorer.lists, found)
    ranks = np.full(len(scorer.lists.row), np.inf)
    ranks[judgment] = found.rank[place]
    return ranks
