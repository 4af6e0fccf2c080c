"""Which queries to train on and which to hold out, drawn by a seed, and what the two have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sqid_lib.errors import StoreError, UsageError
from sqid_lib.streams.batches import Rows
from sqid_lib.streams.gather import JudgedStore
from sqid_lib.streams.order import whole_number


@dataclass(frozen=True)
class QuerySplit:
    """Query ids to train on, and those held out; `str` says what they have in common.

    Attributes:
        train, test: ids, ascending; together all queries with judgments.
        shared_products: how many products of the test lists are judged for a training query too.
        test_products: how many products the test lists have.
    """

    train: list[int]
    test: list[int]
    shared_products: int
    test_products: int

    def __str__(self) -> str:
        return (
            f"{len(self.train):,} queries to train on, {len(self.test):,} held out; no query text is in both; "
            f"{self.shared_products:,} of {self.test_products:,} held-out products are judged in training too"
        )


def split_queries(
    store: JudgedStore, *, test: float = 0.25, seed: int = 0, disjoint_products: bool = False
) -> QuerySplit:
    """Divide the judged queries at random. Queries of one text, whatever their case and spaces, stay together.

    Args:
        store: an EmbeddingStore.
        test: share of the queries to hold out, between 0 and 1.
        seed: the same seed and release give the same split.
        disjoint_products: hold out products too: queries that share a judged product stay together.

    Raises:
        StoreError: fewer than two queries have judgments; or nearly all queries share products with each other, so that
            less than half of `test` can be held out.
        UsageError: an option has a wrong value.
    """
    if not isinstance(test, int | float) or not 0 < test < 1:
        raise UsageError("not a share of the queries", where="test", expected="a number between 0 and 1", got=test)
    judged, number = _groups(store, disjoint_products)
    if len(judged) < 2:
        raise StoreError("too few queries to hold some out", expected="2 judged queries", got=len(judged))
    sizes = np.bincount(number)
    wanted, held_out = max(1, round(test * len(judged))), np.zeros(len(sizes), np.bool_)
    for one in _shuffled(len(sizes), seed):
        if sizes[held_out].sum() + sizes[one] <= wanted:
            held_out[one] = True
    found = int(sizes[held_out].sum())
    if not found or found < wanted / 2:
        what = "the queries cannot be divided: those that share a text or product stay together"
        got = f"{found} of {len(judged)}; the largest group has {sizes.max()}"
        raise StoreError(what, expected=f"{wanted} queries held out", got=got, fix="Use disjoint_products=False.")
    return _described(store, judged, held_out[number])


def fold_queries(store: JudgedStore, folds: int = 5, *, seed: int = 0) -> list[QuerySplit]:
    """Splits for cross-validation: each judged query is held out by one of them.

    Queries of one text, whatever their case and spaces, stay together; else the folds differ by one query at most.

    Args:
        store: an EmbeddingStore.
        folds: how many splits, at least 2.
        seed: the same seed and release give the same splits.

    Raises:
        StoreError: fewer different query texts have judgments than there are folds.
        UsageError: an option has a wrong value.
    """
    whole_number("folds", folds, 2)
    judged, number = _groups(store)
    sizes = np.bincount(number)
    if len(sizes) < folds:
        raise StoreError("too few queries for the folds", expected=f"{folds} judged queries", got=len(sizes))
    fold, filled = np.empty(len(sizes), np.int64), np.zeros(folds, np.int64)
    for one in _shuffled(len(sizes), seed):
        fold[one] = filled.argmin()
        filled[fold[one]] += sizes[one]
    return [_described(store, judged, fold[number] == one) for one in range(folds)]


def _groups(store: JudgedStore, disjoint_products: bool = False) -> tuple[Rows, Rows]:
    """Indices of the queries with judgments, and the number of each one's group, whose queries stay together."""
    judged, group = np.unique(store.judgment_query_index), _same_text(store)
    if disjoint_products:
        group = _joined_by_products(group, store.judgment_query_index, store.judgment_product_index)
    return judged, np.unique(group[judged], return_inverse=True)[1]


def _shuffled(count: int, seed: int) -> Rows:
    return np.random.default_rng([whole_number("seed", seed)]).permutation(count)


def _described(store: JudgedStore, judged: Rows, held_out: npt.NDArray[np.bool_]) -> QuerySplit:
    ids = store.query_ids
    in_test = np.isin(store.judgment_query_index, judged[held_out])
    products = np.unique(store.judgment_product_index[in_test])
    shared = np.intersect1d(products, store.judgment_product_index[~in_test])
    train, test = (np.sort(ids[judged[chosen]]).tolist() for chosen in (~held_out, held_out))
    return QuerySplit(train, test, len(shared), len(products))


def _same_text(store: JudgedStore) -> Rows:
    """[Q]: a number for each query, equal for equal texts."""
    texts = [" ".join((text or "").casefold().split()) for text in store.queries["query"].to_pylist()]
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)


def _joined_by_products(group: Rows, queries: Rows, products: Rows) -> Rows:
    """[Q]: the numbers of `group`, made equal for queries that share a product, directly or through others."""
    label = group.copy()
    while True:  # the least number spreads from query to product to query
        before = label
        least = np.full(int(products.max()) + 1, len(label))
        np.minimum.at(least, products, label[queries])
        label = label.copy()
        np.minimum.at(label, queries, least[products])
        by_group = np.full(int(group.max()) + 1, len(label))
        np.minimum.at(by_group, group, label)
        label = by_group[group]
        if np.array_equal(label, before):
            return label
