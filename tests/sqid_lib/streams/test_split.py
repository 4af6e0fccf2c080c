"""Splits by query: by a seed, without a text on both sides, and on request without a product on both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqid_lib import fold_queries, split_queries
from sqid_lib.errors import StoreError, UsageError
from sqid_lib.store import EmbeddingStore


def store_of(texts: list[str], pairs: list[tuple[int, int]]) -> Any:
    """Queries with ids 10, 11 …, and the judgments (query row, product row)."""
    query, product = np.array(pairs, np.int64).reshape(-1, 2).T
    ids = np.arange(len(texts)) + 10
    table = pa.table({"query_id": ids, "query": texts})
    return SimpleNamespace(queries=table, query_ids=ids, judgment_query_index=query, judgment_product_index=product)


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
    assert set(split.train) | set(split.test) == judged and not set(split.train) & set(split.test)
    wanted = max(1, round(test * len(judged)))
    assert wanted / 2 <= len(split.test) <= wanted
    sides = [[pair for pair in pairs if pair[0] + 10 in ids] for ids in (split.train, split.test)]
    words = [{" ".join(texts[query].casefold().split()) for query, _ in side} for side in sides]
    assert not words[0] & words[1]
    products = [{product for _, product in side} for side in sides]
    assert split.shared_products == len(products[0] & products[1])
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


def test_folds_hold_out_each_query_once(tiny_store: EmbeddingStore) -> None:
    folds = fold_queries(tiny_store, 5, seed=3)
    assert folds == fold_queries(tiny_store, 5, seed=3) != fold_queries(tiny_store, 5, seed=4)
    assert sorted(query for fold in folds for query in fold.test) == tiny_store.query_ids.tolist()
    assert sorted(len(fold.test) for fold in folds) == [2, 2, 2, 3, 3]
    for fold in folds:
        assert sorted(fold.train + fold.test) == tiny_store.query_ids.tolist()


def test_folds_keep_equal_texts_together() -> None:
    store = store_of(["a", "b", " A", "c", "B", "not judged"], [(row, row) for row in range(5)])
    folds = fold_queries(store, 3)
    assert sorted(fold.test for fold in folds) == [[10, 12], [11, 14], [13]]
    with pytest.raises(StoreError, match="too few queries for the folds; expected 4 judged queries, got 3"):
        fold_queries(store, 4)
    with pytest.raises(UsageError, match="folds: has to be a whole number of 2 or more"):
        fold_queries(store, 1)
