"""Hard negatives: the same as a brute-force search, never judged, below the margin, drawn by seed, and resumable."""

from __future__ import annotations

import itertools
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_release import write_release
from torch.utils.data import DataLoader

from sqid_lib.errors import StoreError, UsageError
from sqid_lib.store import EmbeddingStore, mining


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    root = tmp_path_factory.mktemp("store")
    return EmbeddingStore.open(write_release(root / "release"), cache_dir=root / "cache", progress=False)


def cosines(queries: npt.ArrayLike, products: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """float64 [Q, P]; 0 for a zero vector."""
    q, p = np.asarray(queries, np.float64), np.asarray(products, np.float64)
    norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(p, axis=1)
    found: npt.NDArray[np.float64] = np.divide(q @ p.T, norms, out=np.zeros_like(norms), where=norms != 0)
    return found


def brute_force(
    store: EmbeddingStore, scores: npt.NDArray[np.float64], present: npt.NDArray[np.bool_], top: int
) -> dict[int, list[int]]:
    """Query row → its hard products, best first."""
    judged = set(zip(store.judgment_query_index.tolist(), store.judgment_product_index.tolist(), strict=True))
    found = {}
    for query in range(len(scores)):
        order = np.lexsort((np.arange(len(present)), -scores[query])).tolist()  # rows are sorted by product_id
        found[query] = [p for p in order if present[p] and (query, p) not in judged][:top]
    return found


def negatives_of(store: EmbeddingStore, stream: Any) -> list[tuple[int, int, tuple[int, ...]]]:
    """(query row, product row, its negatives) of every pair."""
    return [
        (store.query_index(q), p, tuple(n))
        for b in stream
        for q, p, n in zip(
            b.query_id.tolist(), b.product_index.tolist(), b.negative_product_index.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("by", ["text", "image", "arrays"])
def test_the_hard_products_are_those_of_a_brute_force_search(store: EmbeddingStore, by: str) -> None:
    rng = np.random.default_rng(1)
    present = np.ones(len(store.products), np.bool_)
    vectors: Any = by
    if by == "arrays":
        vectors = (rng.normal(size=(12, 5)), rng.normal(size=(60, 5)))
        scores = cosines(*vectors)
    elif by == "text":
        scores = cosines(store.query_features, store.text_features)
    else:
        scores, present = cosines(store.query_features, store.image_features), store.has_image
    golden = brute_force(store, scores, present, 4)
    # as many are drawn as there are: their order is random, which they are is not
    found = negatives_of(store, store.negatives(4, mined=True, by=vectors, top=4, labels=None, batch_size=5))
    assert len(found) == 84
    for query, _, negatives in found:
        assert sorted(negatives) == sorted(golden[query])


def test_features_of_a_file_are_mined_by(store: EmbeddingStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    queries, products = rng.normal(size=(12, 3)).astype(np.float32), rng.normal(size=(60, 3)).astype(np.float32)
    ids = {"query": store.queries.select(["query_id"]), "product": store.products.select(["product_id"])}
    for kind, vectors in (("query", queries), ("product", products)):
        column = pa.array(vectors.tolist(), pa.list_(pa.float32()))
        pq.write_table(ids[kind].append_column("vector", column), tmp_path / f"{kind}_features.parquet")
    by_file = store.negatives(3, mined=True, by=f"features:{tmp_path}", top=9)
    by_arrays = store.negatives(3, mined=True, by=(queries, products), top=9)
    assert negatives_of(store, by_file) == negatives_of(store, by_arrays)


@pytest.mark.parametrize("queries", [1, 5])
def test_blocks_do_not_change_what_is_mined(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, queries: int
) -> None:
    sides, rows = mining.read_sides(store, "text"), np.array([7, 2, 11, 4])
    whole = mining.mine(store, sides, rows, 10)
    monkeypatch.setattr(mining, "_QUERIES", queries)
    monkeypatch.setattr("sqid_lib.evaluation.nearest._PRODUCTS", 13)
    again = mining.mine(store, sides, rows, 10)
    assert np.array_equal(whole.products, again.products)
    assert np.array_equal(whole.scores, again.scores)
    assert whole.where[[7, 2, 11, 4]].tolist() == [0, 1, 2, 3]


def test_hard_negatives_are_never_judged_and_all_different(store: EmbeddingStore) -> None:
    judged = set(zip(store.judgment_query_index.tolist(), store.judgment_product_index.tolist(), strict=True))
    for query, _, negatives in negatives_of(store, store.negatives(6, mined=True, top=20, shuffle=True)):
        assert not judged & {(query, p) for p in negatives}
        assert len(set(negatives)) == 6


@pytest.mark.parametrize("margin", [0, 0.25, -0.1])
@pytest.mark.parametrize("by", ["text", "image"])
def test_the_margin_holds_and_pairs_without_negatives_are_left_out(
    store: EmbeddingStore, by: str, margin: float, caplog: pytest.LogCaptureFixture
) -> None:
    products = store.text_features if by == "text" else store.image_features
    scores = cosines(store.query_features, products)
    present = np.ones(60, np.bool_) if by == "text" else store.has_image
    golden = brute_force(store, scores, present, 25)
    wanted = set()
    for q, p in zip(store.judgment_query_index.tolist(), store.judgment_product_index.tolist(), strict=True):
        if sum(scores[q, n] + margin <= scores[q, p] for n in golden[q]) >= 2:
            wanted.add((q, p))
    assert 0 < len(wanted) < 84  # the case can be seen
    with caplog.at_level(logging.WARNING):
        stream = store.negatives(2, mined=True, by=by, margin=margin, top=25, labels=None, batch_size=7, shuffle=True)
    found = negatives_of(store, stream)
    assert len(found) == len(wanted)
    assert {(q, p) for q, p, _ in found} == wanted
    for q, p, negatives in found:
        assert all(scores[q, n] + margin <= scores[q, p] + 1e-6 for n in negatives)
        assert set(negatives) <= set(golden[q])
    assert f"{84 - len(wanted)} of 84 positives have fewer than 2 hard negatives" in caplog.text


def test_a_margin_of_zero_keeps_a_copy_of_the_positive(store: EmbeddingStore) -> None:
    queries, products = np.ones((12, 3)), np.tile([[1.0, 2.0, 0.5]], (60, 1))  # equal scores, whatever the rounding
    stream = store.negatives(2, mined=True, by=(queries, products), margin=0)
    assert len(negatives_of(store, stream)) == int((store.gain == 1).sum())
    with pytest.raises(StoreError, match=r"no positive has enough hard negatives.*expected 2 each.*smaller margin"):
        store.negatives(2, mined=True, by=(queries, products), margin=0.01)


def test_seed_epoch_and_batch_decide_which_are_drawn(store: EmbeddingStore) -> None:
    def drawn(epoch: int = 0, **options: Any) -> list[tuple[int, int, tuple[int, ...]]]:
        stream = store.negatives(3, mined=True, top=15, batch_size=8, **options)
        stream.set_epoch(epoch)
        return negatives_of(store, stream)

    assert drawn() == drawn()
    assert drawn() != drawn(seed=1)
    assert drawn() != drawn(epoch=1)
    assert [pair[:2] for pair in drawn()] == [pair[:2] for pair in drawn(seed=1)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_positive_once_over_all_ranks(store: EmbeddingStore, world_size: int) -> None:
    parts = [
        negatives_of(store, store.negatives(2, mined=True, shuffle=True, batch_size=4, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    at = store.gain == 1
    wanted = zip(store.judgment_query_index[at].tolist(), store.judgment_product_index[at].tolist(), strict=True)
    assert sorted(pair[:2] for pair in itertools.chain(*parts)) == sorted(wanted)


def test_resumes_at_the_exact_batch_with_the_same_negatives(store: EmbeddingStore) -> None:
    def stream(**options: Any) -> Any:
        return store.negatives(2, mined=True, margin=0, top=30, labels=None, shuffle=True, batch_size=3, **options)

    whole = negatives_of(store, stream())
    first = stream()
    begun = negatives_of(store, itertools.islice(first, 5))
    again = stream()
    again.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert begun + negatives_of(store, again) == whole
    for other in ({"margin": 0.1}, {"top": 31}, {"by": "image"}):
        with pytest.raises(StoreError, match="the state is of another stream"):
            store.negatives(
                2, labels=None, shuffle=True, batch_size=3, **({"mined": True, "margin": 0, "top": 30} | other)
            ).load_state_dict(first.state_dict())


def test_workers_of_a_loader_draw_the_same(store: EmbeddingStore) -> None:
    stream: Any = store.negatives(2, mined=True, shuffle=True, batch_size=4, texts=["product_title"])
    loaded = list(DataLoader(stream, batch_size=None, num_workers=1))
    assert negatives_of(store, loaded) == negatives_of(store, stream)
    titles = store.products["product_title"].to_pylist()
    for batch in loaded:
        for texts, products in zip(
            batch.texts["negative_product_title"], batch.negative_product_index.tolist(), strict=True
        ):
            assert texts == [titles[p] for p in products]


def test_the_search_is_made_once(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.negatives(2, mined=True, top=17)
    monkeypatch.setattr(mining, "mine", lambda *_: pytest.fail("mined again"))
    store.negatives(3, mined=True, top=17, margin=0, seed=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "title"}, "by: unknown vectors to mine by.*features:FILE"),
        ({"by": "features:"}, "by: unknown vectors to mine by"),
        ({"by": 3}, "by: unknown vectors to mine by"),
        ({"by": (np.ones((12, 2)), np.ones((60, 3)))}, "do not fit the store"),
        ({"by": (np.ones((12, 2)), np.ones((59, 2)))}, r"do not fit the store; expected \[12, D\] and \[60, D\]"),
        ({"by": (np.ones((12, 2)), np.full((60, 2), np.nan))}, "have to be finite numbers"),
        ({"margin": "0"}, "margin: bad margin"),
        ({"margin": float("nan")}, "margin: bad margin"),
        ({"top": 7}, "top: has to be a whole number of 8 or more; got 7"),
        ({"mined": False, "margin": 0.1}, "margin: needs mined=True"),
        ({"mined": False, "by": "image"}, "by: needs mined=True"),
    ],
)
def test_wrong_options(store: EmbeddingStore, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.negatives(**({"mined": True} | options))
