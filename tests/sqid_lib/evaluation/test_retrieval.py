from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fixtures import MemoryStore, memory_store, random_store

from sqid_lib import evaluation
from sqid_lib.errors import UsageError
from sqid_lib.evaluation import nearest, retrieval
from sqid_lib.evaluation.clip import StoreVectors
from sqid_lib.evaluation.cosine import unit
from sqid_lib.evaluation.search import Search

BACKENDS = ("numpy", "torch", "faiss")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_PRODUCTS", 37)
    monkeypatch.setattr(nearest, "_QUERIES", 5)
    monkeypatch.setattr(nearest, "_FIRST", 16)


def brute_force(store: MemoryStore, weight: float) -> np.ndarray[Any, Any]:
    """Scores [Q, P] in float64, straight from the definition."""

    def unit(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        norms = np.linalg.norm(x.astype(float), axis=1, keepdims=True)
        return x / np.where(norms == 0, 1, norms)

    query = unit(store.query_features)
    image = (query @ unit(store.image_features).T) * store.has_image
    return np.asarray(weight * (query @ unit(store.text_features).T) + (1 - weight) * image)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "weight"), [("clip_text", 1), ("clip_image", 0), ("fusion:0.3", 0.3)])
def test_retrieval_equals_brute_force(backend: str, method: str, weight: float) -> None:
    store = random_store(1, queries=13, products=200, without_image=tuple(range(0, 200, 9)), shuffle=True)
    found = evaluation.retrieve(store, [method], top=30, metrics="ndcg@10", backend=backend, resamples=100)
    scores = brute_force(store, weight)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :30]
    assert found.rankings[method].query.tolist() == np.repeat(np.arange(13), 30).tolist()
    np.testing.assert_array_equal(found.rankings[method].product.reshape(13, 30), expected)
    np.testing.assert_allclose(
        found.rankings[method].score.reshape(13, 30), np.take_along_axis(scores, expected, axis=1), atol=1e-6
    )


@pytest.mark.parametrize("backend", ("numpy", "torch"))
@pytest.mark.parametrize("top", [1, 7, 36, 37, 38, 100, 150])
def test_ties_go_to_the_smaller_product_id_across_blocks_and_the_border(backend: str, top: int) -> None:
    rng = np.random.default_rng(top)
    store = random_store(2, queries=11, products=100)
    few = rng.normal(size=(4, store.width)).astype(np.float32)
    store.text_features = few[rng.integers(4, size=100)]  # four vectors only, so nearly all is tied
    found = evaluation.retrieve(store, ["clip_text"], top=top, metrics="ndcg", backend=backend, resamples=100)
    expected = np.argsort(-np.round(brute_force(store, 1), 6), axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(found.rankings["clip_text"].product.reshape(11, -1), expected)


@pytest.mark.parametrize("near", [3, 1_024])
def test_many_equal_vectors_at_the_border_are_bounded_and_in_order(monkeypatch: pytest.MonkeyPatch, near: int) -> None:
    monkeypatch.setattr(nearest, "_NEAR", near)
    monkeypatch.setattr(nearest, "_SPARE", 1)
    store = random_store(7, queries=8, products=150, without_image=tuple(range(10, 150)))
    found = evaluation.retrieve(store, ["clip_image"], top=12, metrics="ndcg", resamples=100)
    scores = brute_force(store, 0)
    for q, products in enumerate(found.rankings["clip_image"].product.reshape(8, 12)):
        positive = np.flatnonzero(scores[q] > 0)
        expected = [*positive[np.argsort(-scores[q][positive])], *range(10, 150)]  # then the zeros, by product_id
        assert products.tolist() == expected[:12]


def test_queries_with_many_scores_above_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SPARE", 0)
    store = random_store(12, queries=6, products=300)
    store.query_features[3] = 1
    better = np.arange(1, 301)[:, None] / 300  # every product scores more than all before it, for one query
    store.text_features[:] = better + (1 - better) * store.text_features
    found = evaluation.retrieve(store, ["clip_text"], top=5, metrics="ndcg@5", backend="numpy", resamples=100)
    expected = np.argsort(-brute_force(store, 1), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(found.rankings["clip_text"].product.reshape(6, 5), expected)


def mapped(store: MemoryStore, folder: Path) -> MemoryStore:
    """The store with its product vectors in mapped files, as a converted release has them."""
    for name in ("text_features", "image_features"):
        getattr(store, name).tofile(folder / name)
        mapping = np.memmap(folder / name, np.float32, "r")
        setattr(store, name, np.asarray(mapping).reshape(-1, store.width))
    return store


@pytest.mark.parametrize(
    "size", [pytest.param(1, marks=pytest.mark.slow), 9, pytest.param(50, marks=pytest.mark.slow), 99, 1_000]
)
@pytest.mark.parametrize("missing", ["zero", "drop"])
def test_shards_do_not_change_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, missing: str
) -> None:
    store = random_store(10, queries=7, products=100, without_image=tuple(range(0, 100, 3)))
    store.text_features[5::2] = store.text_features[0]  # ties, as the zeros of products without an image are
    store = mapped(store, tmp_path)
    monkeypatch.setattr(retrieval, "_SHARD", size)
    shards: list[str] = []

    def in_shards(function: Any, values: Any) -> Iterator[Any]:
        for value in values:
            shards.append(str(value))
            yield pickle.loads(pickle.dumps(function))(value)

    options: dict[str, Any] = {"top": 20, "metrics": "ndcg@20", "resamples": 100, "missing": missing}
    methods = ["clip_text", "clip_image", "fusion", "rrf"]
    whole = evaluation.retrieve(store, methods, **options)
    parts = evaluation.retrieve(store, methods, **options, map_shards=in_shards)
    last = int(np.count_nonzero(store.has_image)) if missing == "drop" else 100
    assert shards[0] == f"products 0 to {min(size, last) - 1}"
    for method in methods:
        for name in ("query", "product", "score"):
            one, other = (getattr(found.rankings[method], name) for found in (whole, parts))
            np.testing.assert_array_equal(one, other, err_msg=f"{method} {name}")


def test_there_are_at_most_so_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = mapped(random_store(11, queries=3, products=100), tmp_path)
    monkeypatch.setattr(retrieval, "_SHARD", 1)
    monkeypatch.setattr(retrieval, "_SHARDS", 7)
    counts: list[int] = []

    def in_shards(function: Any, values: Any) -> Iterator[Any]:
        counts.append(len(values))
        return map(function, values)

    evaluation.retrieve(store, ["clip_text"], top=20, metrics="ndcg@20", resamples=100, map_shards=in_shards)
    assert counts == [7]


def test_memory_does_not_grow_with_the_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_PRODUCTS", 512)
    monkeypatch.setattr(nearest, "_AGAIN", 64)
    (tmp_path / "vectors").write_bytes(np.random.default_rng(0).normal(size=(20_000, 128)).astype(np.float16).tobytes())
    vectors = np.asarray(np.memmap(tmp_path / "vectors", np.float16, "r")).reshape(-1, 128)
    products = StoreVectors(vectors, vectors, np.ones(20_000, np.bool_), 1.0)
    search = Search(np.arange(4), unit(vectors[:4]), products)
    tracemalloc.start()
    try:
        query, index, score = nearest.search_top(search, np.arange(20_000), 10, nearest.find_backend("numpy"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index[::10].tolist() == query[::10].tolist() == [0, 1, 2, 3]  # each is nearest to itself
    np.testing.assert_allclose(score[::10], 1, atol=1e-6)
    assert vectors.nbytes / 2 > peak  # 5 MB of vectors, 10 in float32


def test_vectors_in_memory_are_searched_here() -> None:
    store = random_store(11, queries=3, products=100)
    evaluation.retrieve(store, ["clip_text"], resamples=100, map_shards=lambda *_: pytest.fail("sent away"))


def test_ties_follow_the_product_id_and_not_the_row() -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 4)
    store.products = store.products.set_column(0, "product_id", [["D", "B", "C", "A"]])
    store.text_features[:] = 1
    found = evaluation.retrieve(store, ["clip_text"], top=2, metrics="ndcg", resamples=100)
    assert found.rankings["clip_text"].product.tolist() == [3, 1]


def test_a_product_not_judged_has_a_rank_and_gain_0() -> None:
    store = memory_store([[(2, "E"), (0, "S")]], 3, width=2)
    store.query_features[:] = [[1, 0]]
    store.text_features[:] = [[0.2, 1], [1, 0], [1, 0.5]]  # order: 1 (not judged), 2, 0
    result = evaluation.retrieve(store, ["clip_text"], metrics="ndcg@1 ndcg@2 recall@1 recall@2 mrr", resamples=100)
    row = result.rows[0]
    assert row["ndcg_at_1"] == row["recall_at_1"] == 0
    assert row["recall_at_2"] == 1
    assert row["mrr"] == 0.5
    assert row["ndcg_at_2"] == pytest.approx((1 / np.log2(3)) / (1 + 0.1 / np.log2(3)))


def test_top_truncates_the_ranking() -> None:
    store = random_store(3, queries=6, products=80)
    shallow, deep = (
        evaluation.retrieve(store, ["clip_text"], top=top, metrics="recall@5", resamples=100) for top in (5, 60)
    )
    assert len(shallow.rankings["clip_text"].product) == 30
    np.testing.assert_array_equal(shallow.per_query["clip_text"][:, 1], deep.per_query["clip_text"][:, 1])


def test_fusion_searches_with_the_weights_chosen_on_other_queries() -> None:
    store = random_store(4, queries=20, products=90)
    result = evaluation.retrieve(store, ["fusion"], resamples=100, folds=4)
    weights = result.sweeps["fusion"].by_query
    assert len(set(weights)) > 1
    for weight in set(weights):
        fixed = evaluation.retrieve(store, [f"fusion:{weight}"], resamples=100)
        chosen = weights == weight
        np.testing.assert_array_equal(result.per_query["fusion"][chosen], fixed.per_query[f"fusion:{weight}"][chosen])


@pytest.mark.parametrize("top", [5, 100])
def test_rank_fusion_of_the_best_of_both_rankings(monkeypatch: pytest.MonkeyPatch, top: int) -> None:
    monkeypatch.setattr(retrieval, "RRF_DEPTH", 20)
    store = random_store(8, queries=9, products=60, without_image=tuple(range(0, 60, 7)))
    result = evaluation.retrieve(store, ["rrf"], top=top, metrics="ndcg", resamples=100)
    found, depth = result.rankings["rrf"], max(top, 20)
    for q in range(9):
        scores = np.zeros(60)
        for weight in (1, 0):
            best = np.argsort(-brute_force(store, weight)[q], kind="stable")[:depth]
            scores[best] += 1 / (60 + np.arange(1, len(best) + 1))
        expected = np.argsort(-scores, kind="stable")[: min(top, int((scores > 0).sum()))]
        assert found.product[found.query == q].tolist() == expected.tolist()
        np.testing.assert_allclose(found.score[found.query == q], scores[expected], rtol=1e-12)
    assert f"rrf: fuses the best {depth} products of clip_text and of clip_image" in result.notes


def test_the_depth_of_rank_fusion_is_at_least_100() -> None:
    store = random_store(8, queries=4, products=300)
    short, long = (evaluation.retrieve(store, ["rrf"], top=top, metrics="ndcg", resamples=100) for top in (7, 100))
    assert short.rankings["rrf"].product.tolist() == [
        int(p) for p, rank in zip(long.rankings["rrf"].product, long.rankings["rrf"].rank, strict=True) if rank < 7
    ]


def test_average_precision_over_the_catalogue() -> None:
    store = memory_store([[(2, "E"), (0, "E"), (3, "E")]], 4, width=2)
    store.query_features[:] = [[1, 0]]
    store.text_features[:] = [[0.2, 1], [1, 0], [1, 0.5], [-1, 0]]  # order: 1 (not judged), 2, 0, 3
    row = evaluation.retrieve(store, ["clip_text"], metrics="ap ap@2", resamples=100).rows[0]
    assert row["ap"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    assert row["ap_at_2"] == pytest.approx(1 / 2 / 3)


def test_very_large_and_small_vectors_are_searched() -> None:
    store = random_store(9, products=30)
    plain = evaluation.retrieve(store, ["clip_text"], resamples=100)
    store.text_features *= np.float32(1e25)
    store.query_features *= np.float32(1e-25)
    scaled = evaluation.retrieve(store, ["clip_text"], resamples=100)
    np.testing.assert_array_equal(plain.rankings["clip_text"].product, scaled.rankings["clip_text"].product)


def test_dropped_products_are_not_retrieved() -> None:
    store = random_store(5, queries=10, products=60, without_image=tuple(range(0, 60, 2)))
    result = evaluation.retrieve(store, ["clip_text"], missing="drop", top=100, resamples=100)
    assert (result.rankings["clip_text"].product % 2 == 1).all()
    assert len(result.rankings["clip_text"].product) == 30 * len(result.query_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["random_draw"]}, "cannot search all products"),
        ({"methods": ["clip_txt"]}, r"Did you mean clip_text\?"),
        ({"slices": ["lenght"]}, r"unknown slice.*Did you mean length\?"),
        ({"methods": ["random"]}, "cannot search all products"),
        ({"methods": ["cross-encoder"]}, "cannot search all products"),
        ({"methods": ["fusion:2"]}, "bad fusion weight"),
        ({"methods": []}, "no method"),
        ({"missing": "text"}, "no text score for a missing image"),
        ({"backend": "gpu"}, "unknown backend"),
        ({"top": 50}, "needs longer rankings"),
        ({"top": 0, "metrics": "ndcg"}, "needs longer rankings"),
    ],
)
def test_wrong_usage(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluation.retrieve(random_store(6), **options)
