"""Which queries to train on and which to hold out, drawn by a seed, and what the two have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sqid_lib.errors import StoreError, UsageError
from sqid_lib.streams.batches import Rows
from sqid_lib.streams.gather import JudgedStore
from sqid_lib.streams.order import whole_number


@dataclass(frozen=True)
class QuerySplit:
    """Query ids to train on, and those held out; `str` says what they have in common.

    Attributes:
        train, test: ids, ascending, of queries with judgments.
        shared_products: how many products of the test lists are judged for a training query too.
        test_products: how many products the test lists have.
        shared_texts: how many test queries have the text of a training query, whatever its case and spaces.
        shared_titles: how many of the other products of the test lists have the title of a product of the training
            lists, such as another colour or an offer of another seller.
    """

    train: list[int]
    test: list[int]
    shared_products: int
    test_products: int
    shared_texts: int = 0
    shared_titles: int = 0

    def __str__(self) -> str:
        texts = f"the texts of {self.shared_texts:,} held-out queries are" if self.shared_texts else "no query text is"
        return (
            f"{len(self.train):,} queries to train on, {len(self.test):,} held out; {texts} in both; "
            f"{self.shared_products:,} of {self.test_products:,} held-out products are judged in training too, "
            f"{self.shared_titles:,} more have a title of those"
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
    judged, number = _groups(store, 2, disjoint_products)
    sizes = np.bincount(number)
    wanted = min(max(1, round(test * len(judged))), len(judged) - 1)  # something is left to train on
    held_out = np.zeros(len(sizes), np.bool_)
    for one in np.random.default_rng([whole_number("seed", seed)]).permutation(len(sizes)):
        if sizes[held_out].sum() + sizes[one] <= wanted:
            held_out[one] = True
    found = int(sizes[held_out].sum())
    if not found or found < wanted / 2:
        raise _cannot_divide(f"{wanted} queries held out", f"{found} of {len(judged)}", int(sizes.max()))
    return _described(store, judged[~held_out[number]], judged[held_out[number]])


def fold_queries(
    store: JudgedStore, folds: int = 5, *, seed: int = 0, disjoint_products: bool = False
) -> list[QuerySplit]:
    """Divide the judged queries at random into folds, for cross-validation: each split holds out one of them.

    Every query is held out once. What stays together is as in `split_queries`, and so are the other arguments.

    Args:
        folds: how many, at least 2.

    Raises:
        StoreError: fewer judged queries than folds; or queries that stay together leave a fold with less than half of
            its share.
        UsageError: an option has a wrong value.
    """
    folds = whole_number("folds", folds, 2)
    judged, number = _groups(store, folds, disjoint_products)
    sizes = np.bincount(number)
    order = np.random.default_rng([whole_number("seed", seed)]).permutation(len(sizes))
    fold, filled = np.empty(len(sizes), np.int64), np.zeros(folds, np.int64)
    for one in order[np.argsort(-sizes[order], kind="stable")]:  # the largest groups first
        fold[one] = filled.argmin()
        filled[fold[one]] += sizes[one]
    if filled.min() < len(judged) / folds / 2:
        raise _cannot_divide(f"{folds} folds of about {len(judged) // folds}", filled.tolist(), int(sizes.max()))
    of_query = fold[number]
    return [_described(store, judged[of_query != one], judged[of_query == one]) for one in range(folds)]


def check_split(store: JudgedStore, train: Iterable[int], test: Iterable[int]) -> QuerySplit:
    """Your own split with what its two sides have in common: texts of queries, products, titles.

    Args:
        train, test: query ids; those without judgments are passed over.

    Raises:
        UsageError: a query is on both sides, or a side has no judged query.
    """
    train, test = {*train}, {*test}
    if both := train & test:
        got = f"{len(both):,}, such as query_id {min(both)}"
        raise UsageError("queries are both to train on and held out", where="test", expected="other queries", got=got)
    judged = np.unique(store.judgment_query_index)
    ids = store.query_ids[judged]
    sides = [judged[np.isin(ids, np.array([*side], np.int64))] for side in (train, test)]
    for name, side in zip(("train", "test"), sides, strict=True):
        if not len(side):
            raise UsageError("no judged query", where=name, expected="ids of judged queries", got="none of those")
    return _described(store, *sides)


def _groups(store: JudgedStore, least: int, disjoint_products: bool) -> tuple[Rows, Rows]:
    """The judged queries, and the number of the group of each: those of one group stay together."""
    judged = np.unique(store.judgment_query_index)
    if len(judged) < least:
        raise StoreError("too few queries to hold some out", expected=f"{least} judged queries", got=len(judged))
    group = _numbered(store.queries["query"])
    if disjoint_products:
        group = _joined_by_products(group, store.judgment_query_index, store.judgment_product_index)
    return judged, np.unique(group[judged], return_inverse=True)[1]


def _cannot_divide(expected: str, found: object, largest: int) -> StoreError:
    what = "the queries cannot be divided: those that share a text or product stay together"
    got = f"{found}; the largest group has {largest}"
    return StoreError(what, expected=expected, got=got, fix="Use disjoint_products=False.")


def _described(store: JudgedStore, train: Rows, test: Rows) -> QuerySplit:
    """The split of two sides, which are rows of queries."""
    texts = _numbered(store.queries["query"])
    known, held_out = (
        np.unique(store.judgment_product_index[np.isin(store.judgment_query_index, side)]) for side in (train, test)
    )
    others = np.setdiff1d(held_out, known)
    titles = store.products["product_title"]
    known_titles = {*_plain(titles.take(known))} - {""}
    return QuerySplit(
        train=np.sort(store.query_ids[train]).tolist(),
        test=np.sort(store.query_ids[test]).tolist(),
        shared_products=len(held_out) - len(others),
        test_products=len(held_out),
        shared_texts=int(np.isin(texts[test], texts[train]).sum()),
        shared_titles=sum(title in known_titles for title in _plain(titles.take(others))),
    )


def _numbered(texts: pa.ChunkedArray) -> Rows:
    """A number for each text, equal for equal ones."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in _plain(texts)], np.int64)


def _plain(texts: pa.ChunkedArray) -> list[str]:
    """The texts without the difference of case and spaces; null is ""."""
    return [" ".join((text or "").casefold().split()) for text in texts.to_pylist()]


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
