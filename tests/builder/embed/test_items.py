"""Distinct texts and images: numbered in order of first appearance, and found by their digests."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.embed.items import Collected, words
from builder.embed.vectors import _positions
from sqid_lib.stored_images import as_digests

VALUES = st.lists(st.one_of(st.none(), st.sampled_from(["", "a", "b", "ä", "a b"])), max_size=12)


def sha256(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()


def digests(values: list[str]) -> pa.FixedSizeBinaryArray:
    return as_digests(b"".join(map(sha256, values)))


@settings(deadline=None, max_examples=50)
@given(VALUES, VALUES, st.integers(0, 12))
def test_values_are_numbered_in_order_of_first_appearance(
    one: list[str | None], other: list[str | None], cut: int
) -> None:
    made = Collected(sha256, None)
    made.add("one", pa.chunked_array([one[:cut], one[cut:]], pa.string()))
    made.add("other", pa.chunked_array([other], pa.large_string()))
    items, numbers = made.distinct()
    expected = list(dict.fromkeys(value for value in [*one, *other] if value is not None))
    assert items.values.slice(0, len(expected)) == expected and len(items.values) == len(expected)
    assert items.digests.to_pylist() == list(map(sha256, expected))
    for part, values in (("one", one), ("other", other)):
        assert numbers[part].tolist() == [-1 if value is None else expected.index(value) for value in values]
    some = np.arange(len(expected)) % 2 == 0
    assert items.values.filter(some).slice(0, 12) == expected[::2]


def test_values_of_many_rows_are_read_in_parts(tmp_path: Path) -> None:
    made = Collected(sha256, tmp_path)
    for first in range(0, 100, 10):
        made.add("rows", pa.chunked_array([[f"text {i % 70}" for i in range(first, first + 10)]]))
    items, numbers = made.distinct()
    assert items.values.slice(65, 10) == [f"text {i}" for i in range(65, 70)]
    assert numbers["rows"].tolist() == [i % 70 for i in range(100)]
    chosen = items.values.filter(np.arange(70) % 2 == 0)
    elsewhere = pickle.loads(pickle.dumps(chosen))  # on another machine, which has no such file
    assert elsewhere.slice(20, 20) == chosen.slice(20, 20) == [f"text {i}" for i in range(40, 70, 2)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcdef"), max_size=8), st.lists(st.sampled_from("abcdef"), max_size=8))
def test_digests_are_found_at_their_first_place(wanted: list[str], known: list[str]) -> None:
    ours, theirs = words(digests(wanted)), words(digests(known))
    order = np.argsort(theirs[0], kind="stable").astype(np.int32)
    for parts in ([ours], [ours[:, :3], ours[:, 3:]]):
        found = [place for part in _positions(parts, theirs, order) for place in part.tolist()]
        assert found == [known.index(value) if value in known else -1 for value in wanted]


def test_words_of_a_slice() -> None:
    whole = digests(["a", "b", "c"])
    assert np.array_equal(words(whole.slice(1, 1)), words(digests(["b"])))
