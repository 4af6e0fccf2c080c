"""Filters of judgments, the same for `store.pairs`, `store.lists`, `store.negatives` and `stream_pairs`.

labels     an iterable of labels that occur, such as ["E", "S"]; not empty
split      one split that occurs
has_image  true or false: products with, or without, an image
queries    an iterable of query ids, which are integers; not empty. Ids that nobody judged are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib.errors import StoreError, UsageError
from sqid_lib.streams.batches import Rows
from sqid_lib.tables.columns import dense
from sqid_lib.tables.keys import listed, query_ids, shown

_LISTED = 12  # labels in a message: a click log has one for each pair of counts


@dataclass(frozen=True)
class Filters:
    """Which judgments to keep; None keeps all."""

    labels: tuple[str, ...] | None = None
    split: str | None = None
    has_image: bool | None = None
    queries: tuple[int, ...] | None = None

    def keep(self, judgments: pa.Table, where: object, has_image: npt.NDArray[np.bool_] | None = None) -> Rows:
        """Rows of the judgments that are kept.

        Args:
            judgments: columns query_id, esci_label, split.
            where: the store or release, for messages.
            has_image: [J], of each judgment's product; needed where this filter is set.

        Raises:
            UsageError: a label or split does not occur.
            StoreError: there are no judgments, or none is left.
        """
        if not len(judgments):
            raise no_judgments(where)
        kept = np.ones(len(judgments), dtype=np.bool_)
        split = None if self.split is None else (self.split,)
        for name, column, wanted in (("labels", "esci_label", self.labels), ("split", "split", split)):
            if wanted is not None:
                kept &= _among(judgments[column], wanted, name, column)
        if self.has_image is not None and has_image is not None:
            kept &= has_image == self.has_image
        if self.queries is not None:
            kept &= np.isin(dense(judgments["query_id"]), np.array(self.queries, dtype=np.int64))
        if not kept.any():
            raise StoreError("no judgment is left", where=where, fix="Loosen the filters.")
        return np.flatnonzero(kept)


def no_judgments(where: object) -> StoreError:
    """The error of a stream of a store or release without judgments."""
    fix = "Open a release with judgments; or pass esci= with the classic files."
    return StoreError("there are no judgments", where=where, fix=fix)


def read_filters(
    labels: Iterable[str] | None = None,
    split: str | None = None,
    has_image: bool | None = None,
    queries: Iterable[int] | None = None,
) -> Filters:
    """The filters as a user gives them; an iterator is used up.

    Raises:
        UsageError: a filter has a wrong type or is empty.
    """
    if split is not None and not isinstance(split, str):
        raise UsageError("not a split", where="split", expected='one name, such as "test"', got=shown(split))
    if has_image is not None and not isinstance(has_image, bool | np.bool_):
        raise UsageError("not a filter of images", where="has_image", expected="True or False", got=shown(has_image))
    return Filters(
        None if labels is None else _labels(labels),
        split,
        None if has_image is None else bool(has_image),
        None if queries is None else query_ids(queries),
    )


def _labels(labels: Any) -> tuple[str, ...]:
    expected = 'labels in a list, such as ["E", "S"]'
    values = listed(labels, "labels", expected)
    if wrong := [value for value in values if not isinstance(value, str)]:
        raise UsageError("not labels", where="labels", expected=expected, got=shown(wrong[0]))
    return tuple(values)


def _among(column: pa.ChunkedArray, wanted: tuple[str, ...], name: str, column_name: str) -> npt.NDArray[np.bool_]:
    known = sorted(pc.unique(column).to_pylist())
    if unknown := [value for value in wanted if value not in known]:
        expected = " or ".join(known[:_LISTED]) + (" or …" if len(known) > _LISTED else "")
        raise UsageError(f"no judgment has this {column_name}", where=name, expected=expected, got=", ".join(unknown))
    kept: npt.NDArray[np.bool_] = dense(pc.is_in(column, value_set=pa.array(wanted, pa.string())))
    return kept
