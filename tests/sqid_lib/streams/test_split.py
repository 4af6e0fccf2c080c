"""Splits by query: by a seed, without a text on both sides, and on request without a product on both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqid_lib import check_split, fold_queries, split_queries
from sqid_lib.errors import StoreError, UsageError
from sqid_lib.store import EmbeddingStore


def store_of(texts: list[str], pairs: list[tuple[int, int]], titles: list[str | None] | None = None) -> Any:
    """Queries with ids 10, 11 …, the judgments (query row, product row), and titles of the products."""
    query, product = np.array(pairs, np.int64).reshape(-1, 2).T
    ids = np.arange(len(texts)) + 10
    table = pa.table({"query_id": ids, "query": texts})
    products = pa.table({"product_title": titles or [f"title {n}" for n in range(20)]})
    judgments = {"judgment_query_index": query, "judgment_product_index": product}
    return SimpleNamespace(queries=table, query_ids=ids, products=products, **judgments)


def test_every_judged_query_is_on_one_side(tiny_store: EmbeddingStore) -> None:
    splits = [split_queries(tiny_store, test=0.25, seed=seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    for split in splits:
        assert sorted(split.train + split.test) == tiny_store.query_ids.tolist()
        assert len(split.test) == 3
        products = [
            {pair for ids in side for batch in tiny_store.pairs(queries=[ids]) for pair in batch.product_index.tolist()}
            for side in (split.train, split.test)
        ]
        assert (split.test_products, split.shared_products) == (len(products[1]), len(products[0] & products[1]))
    assert str(splits[0]).startswith("9 queries to train on, 3 held out; no query text is in both; ")


@given(data=st.data(), disjoint=st.booleans(), seed=st.integers(0, 5), test=st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_nothing_that_stays_together_is_divided(data: st.DataObject, disjoint: bool, seed: int, test: float) -> None:
    count = data.draw(st.integers(2, 12))
    texts = data.draw(
        st.lists(st.sampled_from(["a", " A", "b", "c d", "C  d", "e", "f", "g"]), min_size=count, max_size=count)
    )
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, 15)), min_size=1, max_size=20))
    store = store_of(texts, pairs)
    try:
        split = split_queries(store, test=test, seed=seed, disjoint_products=disjoint)
    except StoreError:
        return
    judged = {query + 10 for query, _ in pairs}
    assert split.train and set(split.train) | set(split.test) == judged and not set(split.train) & set(split.test)
    wanted = min(max(1, round(test * len(judged))), len(judged) - 1)
    assert wanted / 2 <= len(split.test) <= wanted
    sides = [[pair for pair in pairs if pair[0] + 10 in ids] for ids in (split.train, split.test)]
    words = [{" ".join(texts[query].casefold().split()) for query, _ in side} for side in sides]
    assert not words[0] & words[1]
    products = [{product for _, product in side} for side in sides]
    assert split.shared_products == len(products[0] & products[1])
    assert check_split(store, split.train, split.test) == split
    if disjoint:
        assert split.shared_products == 0


def test_disjoint_products_hold_out_as_much_as_there_is() -> None:
    chain = store_of(list("abcdefgh"), [(0, 0), (1, 0), (1, 1), (2, 1), (3, 5), (4, 6), (5, 6), (6, 7), (7, 8)])
    split = split_queries(chain, test=0.5, disjoint_products=True)
    assert {10, 11, 12} <= set(split.train) or {10, 11, 12} <= set(split.test)
    assert ({14, 15} <= set(split.train)) or ({14, 15} <= set(split.test))
    assert len(split.test) == 4


def test_what_cannot_be_divided() -> None:
    one = store_of(list("abcd"), [(0, 0), (1, 0), (2, 0), (3, 0)])
    assert len(split_queries(one, test=0.5).test) == 2
    with pytest.raises(StoreError, match=r"cannot be divided: .* got 0 of 4; the largest group has 4\. Use disjoint"):
        split_queries(one, test=0.5, disjoint_products=True)
    with pytest.raises(StoreError, match="too few queries to hold some out"):
        split_queries(store_of(["a", "b"], [(0, 0)]))
    for test in (0, 1, 1.5, "half"):
        with pytest.raises(UsageError, match="test: not a share of the queries"):
            split_queries(one, test=test)  # type: ignore[arg-type]


@given(data=st.data(), disjoint=st.booleans(), seed=st.integers(0, 5), folds=st.integers(2, 4))
def test_folds_hold_each_query_out_once(data: st.DataObject, disjoint: bool, seed: int, folds: int) -> None:
    count = data.draw(st.integers(4, 12))
    texts = data.draw(st.lists(st.sampled_from(list("aAbcdefgh")), min_size=count, max_size=count))
    products = data.draw(st.lists(st.integers(0, 19), min_size=count, max_size=count))
    store = store_of(texts, list(enumerate(products)))
    try:
        splits = fold_queries(store, folds=folds, seed=seed, disjoint_products=disjoint)
    except StoreError:
        return
    assert splits == fold_queries(store, folds=folds, seed=seed, disjoint_products=disjoint)
    assert sorted(query for split in splits for query in split.test) == store.query_ids.tolist()
    for split in splits:
        assert sorted(split.train + split.test) == store.query_ids.tolist()
        assert len(split.test) >= count / folds / 2
        assert split == check_split(store, split.train, split.test)
        assert split.shared_texts == 0
        assert not (disjoint and split.shared_products)


def test_folds_are_of_one_size_and_follow_the_seed(tiny_store: EmbeddingStore) -> None:
    folds = [fold_queries(tiny_store, folds=5, seed=seed) for seed in (0, 1)]
    assert folds[0] != folds[1]
    assert sorted(len(split.test) for split in folds[0]) == [2, 2, 2, 3, 3]


def test_what_two_sides_share_is_counted() -> None:
    titles = ["Red Mug", "red  mug", "Lamp", None, None, "Mat"]
    store = store_of(["mug", " MUG", "lamp", "mat"], [(0, 0), (0, 3), (1, 1), (1, 4), (2, 2), (3, 2), (3, 5)], titles)
    split = check_split(store, [10, 12, 99], [11, 13])
    assert (split.train, split.test) == ([10, 12], [11, 13])
    assert (split.shared_texts, split.shared_products, split.test_products, split.shared_titles) == (1, 1, 4, 1)
    assert str(split) == (
        "2 queries to train on, 2 held out; the texts of 1 held-out queries are in both; "
        "1 of 4 held-out products are judged in training too, 1 more have a title of those"
    )


def test_a_split_that_is_none() -> None:
    store = store_of(list("abc"), [(0, 0), (1, 0), (2, 0)])
    with pytest.raises(UsageError, match=r"test: queries are both .* got 1, such as query_id 11"):
        check_split(store, [10, 11], [11, 12])
    with pytest.raises(UsageError, match="test: no judged query"):
        check_split(store, [10, 11], [13])
    with pytest.raises(UsageError, match="folds: has to be a whole number of 2 or more"):
        fold_queries(store, folds=1)
    with pytest.raises(StoreError, match="too few queries to hold some out"):
        fold_queries(store, folds=4)
    with pytest.raises(StoreError, match=r"cannot be divided: .* got \[3, 0\]; the largest group has 3\. Use disjoint"):
        fold_queries(store, folds=2, disjoint_products=True)
