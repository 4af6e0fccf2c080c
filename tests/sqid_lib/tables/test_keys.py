"""Hashes of texts, and whether keys that come in batches are increasing."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqid_lib.tables.keys import Increasing, text_hashes

Keys = list[tuple[str | None, int]]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.sampled_from(["", "a", "b", "ä"])), max_size=8), st.integers(0, 3))
def test_hashes_are_equal_for_equal_texts(texts: list[str | None], first: int) -> None:
    hashes = text_hashes(pa.array(["x"] * first + texts, pa.string()).slice(first)).tolist()
    assert [(one == other) for one in hashes for other in hashes] == [one == other for one in texts for other in texts]
    assert all((text is None) == (number == 0) for text, number in zip(texts, hashes, strict=True))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([("a", 1), ("a", 2), ("b", 1)], True),
        ([("a", 1), ("a", 1)], False),
        ([("a", 2), ("a", 1)], False),
        ([("b", 1), ("a", 2)], False),
        ([("a", 1), (None, 2)], False),
        ([], True),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_keys_that_increase(keys: Keys, expected: bool, size: int) -> None:
    order = Increasing()
    table = pa.table(
        {"a": pa.array([a for a, _ in keys], pa.string()), "b": pa.array([b for _, b in keys], pa.int64())}
    )
    for first in range(0, max(len(keys), 1), size):
        order.add(table.slice(first, size))
    assert order.so_far == expected
