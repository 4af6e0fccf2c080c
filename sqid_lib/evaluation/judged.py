"""The judged lists: every judged query with its judged products, ready to be ranked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import EvaluationError, UsageError

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

GAINS = {"esci": schemas.GAINS, "esci-repo-swapped": schemas.GAINS_ESCI_REPO_SWAPPED}
MISSING = ("zero", "text", "drop")
RELEVANT = ("E", "ES", "ESC")


class Store(Protocol):
    """What is read of a `sqid_lib.EmbeddingStore`."""

    @property
    def width(self) -> int: ...
    @property
    def text_features(self) -> Vectors: ...
    @property
    def image_features(self) -> Vectors: ...
    @property
    def has_image(self) -> Bools: ...
    @property
    def query_features(self) -> Vectors: ...
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
        starts: int64 [Q], where each list begins in the [J] arrays.
        row: int64 [J], row in `store.judgments`.
        query: int64 [J], 0 … Q-1.
        product: int64 [J], row in `store.products`.
        gain: float64 [J].
        relevant: bool [J], for the binary measures.
    """

    query_index: Ints
    starts: Ints
    row: Ints
    query: Ints
    product: Ints
    gain: Floats
    relevant: Bools

    @cached_property
    def lengths(self) -> Ints:
        """int64 [Q]: judged products of each query."""
        return np.diff(self.starts, append=len(self.row))

    @cached_property
    def position(self) -> Ints:
        """int64 [J]: 0-based place within the list."""
        return np.arange(len(self.row)) - self.starts[self.query]

    @cached_property
    def ideal_gain(self) -> Floats:
        """float64 [J]: the gains of each list, best first."""
        return self.gain[self.order(self.gain)]

    def order(self, scores: Floats) -> Ints:
        """int64 [J]: the rows list by list, best score first, ties by ascending product_id."""
        return np.lexsort((-scores, self.query))

    def sums(self, values: Floats) -> Floats:
        """float64 [Q]: the sum of `values` [J] over each list."""
        return np.add.reduceat(values, self.starts)


def judged_lists(store: Store, gains: str = "esci", missing: str = "zero", relevant: str = "E") -> JudgedLists:
    """Group the store's judgments.

    Args:
        gains: a key of `GAINS`.
        missing: "drop" leaves out judgments of products without an image (from the ideal ranking too).
        relevant: labels that count as relevant for the binary measures: "E", "ES" or "ESC".

    Raises:
        UsageError: an unknown `gains`, `missing` or `relevant`.
        EvaluationError: no judgments, an unknown label, or a product judged twice for one query.
    """
    for name, value, known in (
        ("gains", gains, GAINS),
        ("missing", missing, MISSING),
        ("relevant", relevant, RELEVANT),
    ):
        if value not in known:
            raise UsageError(f"unknown {name}", expected=" or ".join(known), got=value)
    label, gain = _label_gains(store.judgments, GAINS[gains])
    query, product = np.asarray(store.judgment_query_index), np.asarray(store.judgment_product_index)
    row = np.lexsort((product_order(store)[product], query))
    if missing == "drop":
        row = row[np.asarray(store.has_image)[product[row]]]
    if not len(row):
        raise EvaluationError(
            "nothing to judge",
            expected="at least one judgment",
            got=f"none with missing={missing}",
            fix="Open a release with judgments; the classic files alone have none.",
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
        relevant=np.isin(label[row], list(relevant)),
    )


def product_order(store: Store) -> Ints:
    """int64 [P]: the place of each product by ascending (product_id, product_locale)."""
    keys = [("product_id", "ascending"), ("product_locale", "ascending")]
    by_id = pc.sort_indices(store.products.select([name for name, _ in keys]), sort_keys=keys).to_numpy()
    place = np.empty(len(by_id), np.int64)
    place[by_id] = np.arange(len(by_id))
    return place


def _label_gains(judgments: pa.Table, gains: dict[str, float]) -> tuple[npt.NDArray[np.str_], Floats]:
    names = list(gains)
    code = pc.index_in(judgments["esci_label"].cast(pa.string()), value_set=pa.array(names))
    if code.null_count:
        bad = int(np.flatnonzero(code.is_null().to_numpy(zero_copy_only=False))[0])
        got = judgments["esci_label"][bad].as_py()
        raise EvaluationError("unknown label", where=f"judgment {bad}", expected=" or ".join(names), got=repr(got))
    index = code.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.array(names)[index], np.array(list(gains.values()))[index]
