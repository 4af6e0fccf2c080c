"""What validation keeps of rows in place of the rows: equal for equal rows, however they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.validate.split_rows import Checksum, SplitRows, row_hashes, shared_key
from sqid_lib import schemas


def checksum(*columns: pa.Array) -> Checksum:
    made = Checksum()
    for column in columns:
        made.add(pa.chunked_array([column]))
    return made


@pytest.mark.parametrize(
    "other",
    [["a", "bc", None, ""], ["ab", "c", "", None], ["ab", "c", None], ["ab", "C", None, ""], ["ab", None, "c", ""]],
)
def test_other_texts_have_another_checksum(other: list[str | None]) -> None:
    assert checksum(pa.array(["ab", "c", None, ""])) != checksum(pa.array(other))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.text()), max_size=12), st.integers(0, 12), st.integers(0, 3))
def test_a_checksum_does_not_depend_on_batches(values: list[str | None], cut: int, before: int) -> None:
    whole, padded = pa.array(values, pa.string()), pa.array(["x"] * before + values, pa.string())
    assert checksum(whole) == checksum(whole.slice(0, cut), whole.slice(cut)) == checksum(padded.slice(before))


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, None], [1, 0]), ([1, 2], [2, 1]), ([True, False], [True, True]), ([0.5, 1.0], [0.5, None])],
)
def test_other_numbers_have_another_checksum(one: list[Any], other: list[Any]) -> None:
    assert checksum(pa.array(one)) != checksum(pa.array(other))
    assert checksum(pa.array(one)) == checksum(pa.array(one).slice(0, 1), pa.array(one).slice(1))


def test_hashes_differ_where_rows_differ() -> None:
    table = pa.table({"product_id": ["a", "b", "a", "a"], "product_locale": ["us", "us", "de", "us"]})
    hashes = row_hashes(table)
    assert hashes[0] == hashes[3] and len(set(hashes.tolist())) == 3
    for numbers in ([-1, 0, 2**62], [0.1, 0.2, 1e300], [True, False]):
        rows = pa.table({"number": numbers, "query": ["a"] * len(numbers)})
        assert len(set(row_hashes(rows).tolist())) == len(numbers)


def test_keys_are_increasing_over_batches() -> None:
    def rows(*ids: str) -> pa.Table:
        texts = (pa.array(values, pa.string()) for values in (ids, ["us"] * len(ids)))
        return pa.table(list(texts), schemas.PRODUCT_KEY)

    for batches, expected in (
        ([rows("a", "b"), rows(), rows("c")], True),
        ([rows("a", "b"), rows("b")], False),
        ([rows("b"), rows("a")], False),
        ([rows("a").drop_columns(["product_locale"])], False),
    ):
        made = SplitRows(schemas.URLS, ())
        for batch in batches:
            made.add(batch)
        made.end()
        assert made.increasing == expected


def test_rows_that_others_refer_to_are_distinct_and_sorted() -> None:
    made = SplitRows(schemas.JUDGMENTS, ())
    for ids in ([3, 3, 1], [1]):
        made.add(pa.table({"query_id": ids, "query": [f"q{i}" for i in ids]}))
    made.end()
    hashes = made.hashes[shared_key(schemas.JUDGMENTS, schemas.QUERIES, ())]
    assert len(hashes) == 2 and (np.diff(hashes.astype(np.float64)) > 0).all()
    assert not len(made.hashes[schemas.PRODUCT_KEY])  # a column of it is missing
