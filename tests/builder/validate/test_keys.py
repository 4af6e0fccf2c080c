"""Keys of a config: what is reported of rows that are equal, unsorted or null."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest

from builder.validate.keys import check_keys

Key = tuple[str | None, str]


@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        ([], []),
        ([("a", "us")], []),
        ([("a", "jp"), ("a", "us"), ("b", "es")], []),
        ([("a", "us"), ("a", "jp")], ["order"]),
        ([("a", "us"), ("a", "us"), ("b", "us")], ["duplicate-key"]),
        ([("a", "us"), ("b", "us"), ("a", "us")], ["duplicate-key", "order"]),
        ([("a", "us"), (None, "us"), (None, "us")], ["duplicate-key"]),
    ],
)
def test_keys_are_unique_and_sorted(rows: Sequence[Key], codes: list[str]) -> None:
    columns = [pa.array([row[i] for row in rows], pa.string()) for i in range(2)]
    table = pa.table(columns, names=["product_id", "product_locale"])
    assert [problem.code for problem in check_keys(table, "data/urls")] == codes
