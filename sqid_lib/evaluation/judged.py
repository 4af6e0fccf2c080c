"""The judged lists: every judged query with its judged products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.evaluation.arrays import Bools, Floats, Ints, Matrix
from sqid_lib.evaluation.labels import RELEASE, Labels, read_labels
from sqid_lib.tables.keys import query_ids

MISSING = ("zero", "text", "drop")


class Store(Protocol):
    """What is read of a `sqid_lib.EmbeddingStore`.

    Of `judgments` columns esci_label and, for the release's own gains, gain are read. An attribute of_catalogue that is
    true says that the labels are the release's own, whatever their names.
    """

    @property
    def width(self) -> int: ...
    @property
    def text_features(self) -> Matrix: ...
    @property
    def image_features(self) -> Matrix: ...
    @property
    def has_image(self) -> Bools: ...
    @property
    def query_features(self) -> Matrix: ...
    @property
    def products(self) -> pa.Table: ...
    @property
    def queries(self) -> pa.Table: ...
    @property
    def judgments(self) -> pa.Table: ...
    @property
    def judgment_query_index(self) -> Ints: ...
    @property
    def judgment_product_index(self) -> Ints: ...


@dataclass(frozen=True)
class JudgedLists:
    """Judgments grouped by query; within a query by ascending product_id, so that stable sorts break ties that way.

    Attributes:
        query_index: int64 [Q], row of each judged query in `store.queries`.
        starts: int64 [Q], first index of each list in the [J] arrays.
        row: int64 [J], row in `store.judgments`.
        query: int64 [J], 0 … Q-1.
        product: int64 [J], row in `store.products`.
        gain: float64 [J].
        relevant: bool [J], for the binary measures.
        labels: where gain and relevant are from.
    """

    query_index: Ints
    starts: Ints
    row: Ints
    query: Ints
    product: Ints
    gain: Floats
    relevant: Bools
    labels: Labels

    @cached_property
    def lengths(self) -> Ints:
        """int64 [Q]: judged products of each query."""
        return np.diff(self.starts, append=len(self.row))

    @cached_property
    def position(self) -> Ints:
        """int64 [J]: 0-based position within the list."""
        return np.arange(len(self.row)) - self.starts[self.query]

    @cached_property
    def ideal_gain(self) -> Floats:
        """float64 [J]: the gains of each list, best first."""
        return self.gain[self.order(self.gain)]

    def order(self, scores: Floats) -> Ints:
        """int64 [J]: indices that sort each list, best score first, ties by ascending product_id."""
        return np.lexsort((-scores, self.query))

    def sums(self, values: Floats) -> Floats:
        """float64 [Q]: the sum of `values` [J] over each list."""
        return np.add.reduceat(values, self.starts)


def judged_lists(
    store: Store,
    gains: str | None = None,
    missing: str = "zero",
    relevant: str | Sequence[str] | None = None,
    queries: Iterable[int] | None = None,
) -> JudgedLists:
    """Group the store's judgments by query.

    Args:
        gains, relevant: see `labels.read_labels`.
        missing: "drop" leaves out judgments of products without an image, also from the ideal ranking.
        queries: ids of the queries to keep; None keeps all.

    Raises:
        UsageError: unknown `gains`, `missing` or `relevant`, ESCI's gains for other labels, or `queries` are no ids.
        EvaluationError: no judgments, labels or gains that cannot be used, or a product judged twice for one query.
    """
    if missing not in MISSING:
        raise UsageError("unknown missing", expected=" or ".join(MISSING), got=missing)
    wanted = None if queries is None else query_ids(queries)
    if not store.judgments.num_rows:
        raise EvaluationError(
            "nothing to judge",
            expected="at least one judgment",
            got="a release without judgments",
            fix="Open a release with judgments; the classic files alone, and some catalogues, have none.",
        )
    if gains is None and getattr(store, "of_catalogue", False):
        gains = RELEASE
    labels, gain, is_relevant = read_labels(store.judgments, gains, relevant)
    query, product = np.asarray(store.judgment_query_index), np.asarray(store.judgment_product_index)
    row = np.lexsort((product_order(store)[product], query))
    if missing == "drop":
        row = row[np.asarray(store.has_image)[product[row]]]
    if wanted is not None:
        row = row[np.isin(store.queries["query_id"].to_numpy()[query[row]], wanted)]
    if not len(row):
        raise EvaluationError(
            "nothing to judge",
            expected="at least one judgment",
            got="none of the queries asked for" if wanted is not None else f"none with missing={missing}",
            fix="Use missing=zero if no judged product has an image, and ids of judged queries.",
        )
    query, product = query[row], product[row]
    twice = np.flatnonzero((np.diff(query) == 0) & (np.diff(product) == 0))
    if len(twice):
        where = f"query_id {store.queries['query_id'][int(query[twice[0]])]}"
        product_id = store.products["product_id"][int(product[twice[0]])]
        raise EvaluationError("a product is judged twice for one query", where=where, got=str(product_id))
    query_index, starts, dense = np.unique(query, return_index=True, return_inverse=True)
    return JudgedLists(
        query_index=query_index,
        starts=starts.astype(np.int64),
        row=row,
        query=dense.astype(np.int64),
        product=product,
        gain=gain[row],
        relevant=is_relevant[row],
        labels=labels,
    )


def product_order(store: Store) -> Ints:
    """int64 [P]: the position of each product by ascending (product_id, product_locale)."""
    keys = [("product_id", "ascending"), ("product_locale", "ascending")]
    by_id = pc.sort_indices(store.products.select([name for name, _ in keys]), sort_keys=keys).to_numpy()
    position = np.empty(len(by_id), np.int64)
    position[by_id] = np.arange(len(by_id))
    return position
