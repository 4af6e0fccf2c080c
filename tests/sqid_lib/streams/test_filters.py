"""Filters: one rule and one message for `store.pairs` and `stream_pairs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sqid_lib.errors import StoreError, UsageError
from sqid_lib.store import EmbeddingStore

Open = Callable[..., Any]


def pairs_of(stream: Any) -> list[tuple[int, int]]:
    found = [list(zip(b.query_id.tolist(), b.product_index.tolist(), strict=True)) for b in stream]
    return sorted(pair for batch in found for pair in batch)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"labels": ["Exact"]}, "labels: no judgment has this esci_label; expected C or E or I or S, got Exact"),
        ({"labels": ["E", "X", "Y"]}, "labels: no judgment has this esci_label; expected C or E or I or S, got X, Y"),
        ({"labels": "E"}, "labels: not a list of labels; expected labels in a list, such as .*, got 'E'"),
        ({"labels": 5}, "labels: not a list of labels.*got 5"),
        ({"labels": [1.0]}, r"labels: not labels; .*got 1\.0"),
        ({"labels": []}, r"labels: an empty list keeps nothing.*got \[\]"),
        ({"split": "train"}, "split: no judgment has this split; expected test, got train"),
        ({"split": ["test"]}, r"split: not a split; expected one name, such as .*, got \['test'\]"),
        ({"has_image": "yes"}, "has_image: not a filter of images; expected True or False, got 'yes'"),
        ({"has_image": 1}, "has_image: not a filter of images; expected True or False, got 1"),
        ({"queries": ["1001"]}, "queries: not query ids; expected integers in a list, .*, got '1001'"),
        ({"queries": "1001"}, "queries: not a list of queries; .*, got '1001'"),
        ({"queries": b"12"}, "queries: not a list of queries"),
        ({"queries": 1001}, "queries: not a list of queries; .*, got 1001"),
        ({"queries": float("nan")}, "queries: not a list of queries; .*, got nan"),
        ({"queries": [float("nan")]}, "queries: not query ids; .*, got nan"),
        ({"queries": [1001.0]}, r"queries: not query ids; .*, got 1001\.0"),
        ({"queries": [True]}, "queries: not query ids; .*, got True"),
        ({"queries": [None]}, "queries: not query ids; .*, got None"),
        ({"queries": [2**63]}, "queries: not query ids"),
        ({"queries": np.array(5)}, "queries: not a list of queries"),
        ({"queries": []}, "queries: an empty list keeps nothing"),
        ({"queries": iter(())}, "queries: an empty list keeps nothing"),
    ],
)
def test_wrong_filters(open_pairs: Open, filters: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_pairs(**filters)


@pytest.mark.parametrize(
    "listed",
    [
        list,
        tuple,
        set,
        iter,
        lambda ids: (query for query in ids),
        np.array,
        lambda ids: np.array(ids, np.int32),
        lambda ids: [np.uint16(query % 60000) for query in ids],
        torch.tensor,
        lambda ids: pa.array(ids).to_pylist(),
        lambda ids: [*ids, -7],  # an id that nobody judged is passed over
        lambda ids: ids * 2,
    ],
)
def test_queries_in_any_iterable(open_pairs: Open, tiny_store: EmbeddingStore, listed: Callable[[Any], Any]) -> None:
    some = [query for query in tiny_store.query_ids.tolist() if query < 60000][:3]
    expected = pairs_of(tiny_store.pairs(queries=some))
    assert len(expected) == 21
    assert pairs_of(open_pairs(queries=listed(some))) == expected


@pytest.mark.parametrize("labels", [["E", "S"], ("S", "E"), {"E": 1, "S": 2}, iter(["E", "S"]), np.array(["E", "S"])])
def test_labels_in_any_iterable(open_pairs: Open, tiny_store: EmbeddingStore, labels: Any) -> None:
    rows = np.flatnonzero([label in "ES" for label in tiny_store.judgments["esci_label"].to_pylist()])
    if not hasattr(labels, "__next__"):  # an iterator serves once
        stream = open_pairs(labels=labels)
        assert stream.units == len(rows)
        assert {round(gain, 2) for batch in stream for gain in batch.gain.tolist()} == {1.0, 0.1}
    else:
        assert open_pairs(labels=iter(["E", "S"])).units == len(rows)


@pytest.mark.parametrize("wanted", [True, False, np.True_, np.False_])
def test_has_image(open_pairs: Open, tiny_store: EmbeddingStore, wanted: Any) -> None:
    expected = int((tiny_store.has_image[tiny_store.judgment_product_index] == bool(wanted)).sum())
    stream = open_pairs(has_image=wanted)
    assert 0 < expected == sum(len(batch.gain) for batch in stream) < 84
    assert all(batch.has_image.all() == bool(wanted) for batch in stream)


@pytest.mark.parametrize("filters", [{"queries": [-1]}, {"labels": ["E"], "queries": [-1, -2]}])
def test_filters_that_leave_nothing(open_pairs: Open, filters: Any) -> None:
    with pytest.raises(StoreError, match=r"no judgment is left. Loosen the filters"):
        open_pairs(**filters)
