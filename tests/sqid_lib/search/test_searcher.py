"""Search against a brute-force order; the definition of the scores; ties, filters, unusual vectors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_fixtures import QueryVectors, brute_force, cosines
from tiny_release import write_release

from sqid_lib import EmbeddingStore, evaluation
from sqid_lib.errors import UsageError
from sqid_lib.evaluation import retrieval
from sqid_lib.search import sides
from sqid_lib.search.searcher import NO_IMAGES, NO_MATCH


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    root = tmp_path_factory.mktemp("search")
    return EmbeddingStore.open(write_release(root / "release", products=80, queries=20), cache_dir=root / "cache")


def changed(store: EmbeddingStore, **arrays: object) -> EmbeddingStore:
    """The same store with other matrices."""
    copy = EmbeddingStore(store.path)
    for name, value in arrays.items():
        setattr(copy, name, value)
    return copy


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_every_score_is_the_documented_one(store: EmbeddingStore, weight: float) -> None:
    rng = np.random.default_rng(5)
    query, image = rng.normal(size=(2, store.width)).astype(np.float32)
    for given_ones in ({"query": query}, {"image": image}, {"query": query, "image": image}):
        found = store.search(**given_ones, top=80, weight=weight)
        text = np.mean([cosines(store.text_features, vector) for vector in given_ones.values()], axis=0)
        pixels = np.mean([cosines(store.image_features, vector) for vector in given_ones.values()], axis=0)
        assert len(found) == 80
        for hit in found:
            row = store.product_index(hit.product_id, hit.product_locale)
            assert hit.text_score == pytest.approx(text[row], abs=1e-6)
            assert hit.image_score == pytest.approx(pixels[row], abs=1e-6)
            assert hit.score == pytest.approx(weight * text[row] + (1 - weight) * pixels[row], abs=1e-6)
            assert store.has_image[row] or hit.image_score == 0.0
            assert hit.title == f"title of {hit.product_id}"


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weight=st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]),
    earlier=st.sampled_from([None, 0.5]),
    top=st.integers(1, 90),
    kinds=st.integers(1, 6),
    with_images=st.booleans(),
    both=st.booleans(),
    half=st.booleans(),
    halves_bytes=st.sampled_from([0, sides._HALVES_BYTES]),
)
def test_the_order_is_that_of_brute_force(
    store: EmbeddingStore,
    seed: int,
    weight: float,
    earlier: float | None,
    top: int,
    kinds: int,
    with_images: bool,
    both: bool,
    half: bool,
    halves_bytes: int,
) -> None:
    """Few different vectors, so that most products tie, and some without an image; also after another search."""
    rng = np.random.default_rng(seed)
    products, dtype = store.products.num_rows, np.float16 if half else np.float32
    text = rng.normal(size=(kinds, store.width)).astype(dtype)[rng.integers(0, kinds, products)]
    image = rng.normal(size=(kinds, store.width)).astype(dtype)[rng.integers(0, kinds, products)]
    has_image = rng.random(products) > 0.3 if with_images else np.zeros(products, np.bool_)
    image[~has_image] = 0
    made = changed(store, text_features=text, image_features=image, has_image=has_image)
    vectors = rng.normal(size=(2 if both else 1, store.width)).astype(np.float32)
    with mock.patch.object(sides, "_HALVES_BYTES", halves_bytes):
        if earlier is not None:
            made.search(vectors[0], weight=earlier)
        found = made.search(vectors[0], image=vectors[1] if both else None, top=top, weight=weight)
    expected = brute_force(made, list(vectors), weight)[:top]
    assert [(hit.product_id, hit.product_locale) for hit in found] == [(p, locale) for _, p, locale in expected]
    assert [hit.score for hit in found] == pytest.approx([score for score, _, _ in expected], abs=2e-6)
    assert (NO_IMAGES in found.notes) == (not has_image.any())


def test_ties_within_the_rounding_of_float32_are_broken_by_id(store: EmbeddingStore) -> None:
    """Many equal vectors: a matrix product may give rows that are equal scores that are not."""
    products = 5_000
    rng = np.random.default_rng(0)
    row = rng.normal(size=store.width).astype(np.float32)
    table = store.products.take([0] * products)
    ids = [f"P{number:04d}" for number in rng.permutation(products)]
    table = table.set_column(table.schema.get_field_index("product_id"), "product_id", [ids])
    same = np.tile(row, (products, 1))
    made = changed(
        store, text_features=same, image_features=same, has_image=np.ones(products, np.bool_), products=table
    )
    found = made.search(row + np.float32(0.1), top=7)
    assert [hit.product_id for hit in found] == sorted(ids)[:7]
    assert len({hit.score for hit in found}) == 1


def test_a_text_search_at_weight_1_is_clip_text_of_evaluate(store: EmbeddingStore) -> None:
    ranking = evaluation.retrieve(store, ["clip_text", "clip_image"], top=100)
    ids = store.products["product_id"].to_pylist()
    encoder = QueryVectors(store)
    for method, weight in (("clip_text", 1.0), ("clip_image", 0.0)):
        run = ranking.rankings[method]
        for row, text in enumerate(store.queries["query"].to_pylist()):
            expected = [ids[product] for product in run.product[run.query == row]]
            found = store.search(text, top=100, weight=weight, encoder=encoder)
            assert [hit.product_id for hit in found] == expected[:100]


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_the_length_of_a_vector_does_not_count(store: EmbeddingStore, scale: float, weight: float) -> None:
    query = np.random.default_rng(2).normal(size=store.width).astype(np.float32)
    text = np.array(store.text_features)
    text[::3] *= np.float32(scale)
    expected = [hit.product_id for hit in store.search(query, top=10, weight=weight)]
    made = changed(store, text_features=text)
    assert [hit.product_id for hit in made.search(query, top=10, weight=weight)] == expected


def test_where_keeps_the_products_asked_for(store: EmbeddingStore) -> None:
    query = np.ones(store.width, np.float32)
    found = store.search(query, where={"has_image": False, "image_status": ["missing", "not_found"]}, top=99)
    assert len(found) == int((~store.has_image).sum()) > 0
    kept = np.flatnonzero(~store.has_image).tolist()
    assert [hit.product_id for hit in found] == [p for _, p, _ in brute_force(store, [query], 0.5, kept)]
    nothing = store.search(query, where={"product_locale": "jp"})
    assert (len(nothing), nothing.notes) == (0, (NO_MATCH,))


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), "1", True])
def test_a_wrong_weight_is_refused(store: EmbeddingStore, weight: float) -> None:
    with pytest.raises(UsageError, match="weight"):
        store.search(np.ones(store.width, np.float32), weight=weight)


@pytest.mark.parametrize("top", [0, -1, 1.5, True])
def test_a_wrong_top_is_refused(store: EmbeddingStore, top: int) -> None:
    with pytest.raises(UsageError, match="top"):
        store.search(np.ones(store.width, np.float32), top=top)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_shards_searched_elsewhere_give_the_same(
    store: EmbeddingStore, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "_SHARD", 16)
    rng, sizes = np.random.default_rng(4), []

    def elsewhere(search: Any, shards: Any) -> Any:
        sizes.append(len(shards))
        assert len(pickle.dumps(search)) < store.text_features.nbytes / 2  # names of files, not vectors
        return map(pickle.loads(pickle.dumps(search)), shards)

    for where, top in ((None, 7), (None, 200), ({"has_image": True}, 20)):
        query, image = rng.normal(size=(2, store.width)).astype(np.float32)
        for given_ones in ({"query": query}, {"query": query, "image": image}):
            here = store.search(**given_ones, top=top, where=where, weight=weight)
            assert store.search(**given_ones, top=top, where=where, weight=weight, map_shards=elsewhere) == here
    assert min(sizes) > 1


def test_a_store_that_was_searched_still_pickles(store: EmbeddingStore) -> None:
    query = np.ones(store.width, np.float32)
    before = store.search(query)
    assert pickle.loads(pickle.dumps(store)).search(query) == before


def test_a_store_without_a_product_image_says_so(store: EmbeddingStore, tmp_path: Path) -> None:
    none = changed(store, has_image=np.zeros(80, np.bool_), image_features=np.zeros((80, store.width), np.float32))
    found = none.search(np.ones(store.width, np.float32), weight=0)
    assert found.notes == (NO_IMAGES,)
    assert {hit.score for hit in found} == {0.0}
    assert [hit.product_id for hit in found] == sorted(store.products["product_id"].to_pylist())[:10]


def test_dot_products_that_are_kept_are_those_of_the_query(store: EmbeddingStore) -> None:
    again = EmbeddingStore(store.path)
    for number in (0, 1, 0, 2, 3, 4, 5, 0, 1):
        for weight in (0.2, 0.9):
            query = np.asarray(store.query_features[number])
            expected = brute_force(store, [query], weight)[:9]
            assert [hit.product_id for hit in again.search(query, top=9, weight=weight)] == [key[1] for key in expected]
