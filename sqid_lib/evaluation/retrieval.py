"""Full-catalogue retrieval: every judged query against all products, by exact search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from sqid_lib.evaluation import runs
from sqid_lib.evaluation.arrays import Floats, Ints
from sqid_lib.evaluation.fusion import reciprocal_rank
from sqid_lib.evaluation.judged import product_order
from sqid_lib.evaluation.nearest import find_backend, search_top
from sqid_lib.evaluation.scorer import Method, Scorer, find_method
from sqid_lib.evaluation.search import RankFusion, Scan, Search

RRF_DEPTH = 100  # of the rankings that are fused, at least
_SHARD = 131_072  # products of a shard, at least
_SHARDS = 256  # at most: each has a result of its own

Found = tuple[Ints, Floats]


@dataclass(frozen=True)
class Shard:
    """Some of the products, for one of several searches.

    Attributes:
        search: which one.
        start: index of the first product among all that are searched.
        candidates: rows of the store.
    """

    search: int
    start: int
    candidates: Ints

    def __str__(self) -> str:
        return f"products {self.start:,} to {self.start + len(self.candidates) - 1:,}"


Map = Callable[[Callable[[Shard], Found], Sequence[Shard]], Iterable[Found]]


def searching_method(methods: Mapping[str, Method], name: str) -> tuple[Method, str]:
    """The method and its argument; raises UsageError for one that cannot search the whole catalogue."""
    searching = {key: method for key, method in methods.items() if method.searches is not None}
    return find_method(searching, name, "this method cannot search all products")


def rank_all(scorer: Scorer, name: str, top: int, backend: str, map_shards: Map | None = None) -> runs.Ranking:
    """The `top` products of the whole store, of any locale, for every judged query; ties by ascending product_id.

    Args:
        scorer: the store, its judged lists and the methods; a fusion without a weight takes the weights chosen there.
        name: of a method that can search; a run file is used as it is, up to `top`.
        backend: one of `nearest.BACKENDS`.
        map_shards: as the built-in `map`, in other processes; searches the vectors of a store that is mapped from
            files. None: everything is searched here.

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
        return _best(
            fuse_ranks(scorer, [rank_all(scorer, other, depth, backend, map_shards) for other in found.methods]), top
        )
    candidates = np.argsort(product_order(scorer.store))
    if scorer.missing == "drop":
        candidates = candidates[np.asarray(scorer.store.has_image)[candidates]]
    if isinstance(found, Scan):
        return scan_top(scorer, found, candidates, top, name)
    top = min(top, len(candidates))
    best = search_shards(found, candidates, top, backend, map_shards, name)
    query = np.concatenate([np.repeat(search.rows, top) for search in found])
    product, score = (np.concatenate([part.ravel() for part in parts]) for parts in zip(*best, strict=True))
    return runs.ranking(scorer.store, query, candidates[product], score)


def search_shards(
    searches: Sequence[Search], candidates: Ints, top: int, backend: str, map_shards: Map | None = None, name: str = ""
) -> list[Found]:
    """The best `top` of `candidates` for each query; the same whatever the shards are.

    Args:
        map_shards: as of `rank_all`; it searches shards if all searches are portable.

    Returns:
        For each search indices in `candidates`, int64 [Q, top], and scores, float64 [Q, top], best first; ties by
        ascending index.
    """
    run = map_shards if map_shards is not None and all(search.is_portable for search in searches) else map
    size = len(candidates) if run is map else max(_SHARD, -(-len(candidates) // _SHARDS))
    starts = range(0, len(candidates), size)
    shards = [
        Shard(number, start, candidates[start : start + size]) for number in range(len(searches)) for start in starts
    ]
    best = [(np.empty((len(search.rows), 0), np.int64), np.empty((len(search.rows), 0))) for search in searches]
    found = run(partial(_search_shard, searches, top, backend, name), shards)
    for shard, part in zip(shards, found, strict=True):
        best[shard.search] = _merge(best[shard.search], part, top)
    return best


def _merge(best: Found, found: Found, top: int) -> Found:
    """The best `top` of both, for each query; the products of `best` come before those of `found`."""
    index, score = (np.concatenate(both, axis=1) for both in zip(best, found, strict=True))
    order = np.argsort(-score, axis=1, kind="stable")[:, :top]  # stable: ties stay in the order of products
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(score, order, axis=1)


def _search_shard(searches: Sequence[Search], top: int, backend: str, name: str, shard: Shard) -> Found:
    top, search = min(top, len(shard.candidates)), searches[shard.search]
    _, index, score = search_top(search, shard.candidates, top, find_backend(backend), name)
    return index.reshape(-1, top) + shard.start, score.reshape(-1, top)


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


def ranks_of_judged(scorer: Scorer, found: runs.Ranking) -> Floats:
    """float64 [J]: 0-based rank of every judged product in a ranking, inf where it is not retrieved."""
    index, judgment = runs.find_judged(scorer.store, scorer.lists, found)
    ranks = np.full(len(scorer.lists.row), np.inf)
    ranks[judgment] = found.rank[index]
    return ranks
