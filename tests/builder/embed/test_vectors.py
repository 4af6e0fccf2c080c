"""builder.embed.vectors: found by content, whatever file they are in."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from embed_work import flip_a_bit

from builder.embed import vectors
from builder.embed.inputs import IMAGES, TEXTS
from builder.embed.vectors import Vectors
from sqid_lib.stored_images import as_digests

LIMIT = 100
LIMITS = {"max_pixels": LIMIT, "truncated": "refuse"}


def digests(*names: str) -> pa.Array:
    return as_digests(b"".join(hashlib.sha256(name.encode()).digest() for name in names))


def write(folder: Path, kind: str, number: int, names: str, *, status: str = "ok", limit: int = LIMIT) -> Path:
    """A vector for each letter: its code, and the number of the file."""
    matrix = np.array([[ord(name), number] for name in names], np.float32)
    path = folder / f"{kind}-{number:05d}.parquet"
    vectors.write(path, digests(*names), [status] * len(names), matrix, LIMITS | {"max_pixels": limit, "batch": number})
    return path


def test_vectors_are_found_over_all_files(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, 0, "abc")
    write(tmp_path, TEXTS, 2, "de")
    write(tmp_path, IMAGES, 0, "z")
    store = Vectors(tmp_path, LIMITS)
    found = store.find(TEXTS, digests("e", "x", "a", "z", "c"))
    assert found.missing.tolist() == [False, True, False, True, False]
    statuses, matrix = store.take(TEXTS, found, 2)
    assert statuses.tolist() == ["ok"] * 5
    assert matrix.tolist() == [[101, 2], [0, 0], [97, 0], [0, 0], [99, 0]]
    _, chosen = store.take(TEXTS, found.of(np.array([4, -1, 0])), 2)
    assert chosen.tolist() == [[99, 0], [0, 0], [101, 2]]
    assert list(store.settings(TEXTS, found)) == [
        (LIMITS | {"batch": 0}, 2),
        (LIMITS | {"batch": 2}, 1),
    ]


def test_free_names_fill_the_gaps(tmp_path: Path) -> None:
    for number in (0, 2):
        write(tmp_path, TEXTS, number, "ab")
    names = [path.name for path in islice(Vectors(tmp_path, LIMITS).free_names(TEXTS), 2)]
    assert names == ["texts-00001.parquet", "texts-00003.parquet"]


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    store = Vectors(tmp_path / "absent", LIMITS)
    assert store.find(TEXTS, digests("a")).missing.all()
    assert not len(store.find(IMAGES, digests()).of(np.array([], np.int64)).file)
    write(tmp_path / "absent", TEXTS, 0, "a")
    store.refresh()
    assert not store.find(TEXTS, digests("a")).missing.any()


def test_a_damaged_file_is_not_used_and_is_made_again(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, 0, "a")
    flip_a_bit(damaged := write(tmp_path, TEXTS, 1, "b"))
    store = Vectors(tmp_path, LIMITS)
    assert store.damaged == [damaged]
    assert damaged.exists()
    assert store.remove_damaged() == ["texts-00001.parquet"]
    assert not damaged.exists()
    assert store.find(TEXTS, digests("a", "b")).missing.tolist() == [False, True]
    write(tmp_path, TEXTS, 1, "b")
    store.refresh()
    assert not store.find(TEXTS, digests("a", "b")).missing.any()


def test_a_failure_is_kept_but_not_that_of_another_limit(tmp_path: Path) -> None:
    write(tmp_path, IMAGES, 0, "a", status="corrupt", limit=5)
    write(tmp_path, IMAGES, 1, "b", status="too_many_pixels", limit=5)
    for limit, missing in ((5, [False, False]), (6, [False, True])):
        store = Vectors(tmp_path, LIMITS | {"max_pixels": limit})
        found = store.find(IMAGES, digests("a", "b"))
        assert found.missing.tolist() == missing
        statuses, matrix = store.take(IMAGES, found, 2)
        assert statuses.tolist() == ["corrupt", "ok" if missing[1] else "too_many_pixels"]
        assert not matrix.any()


def test_which_digests_a_file_holds(tmp_path: Path) -> None:
    path = write(tmp_path, TEXTS, 0, "ab")
    assert vectors.holds(path, digests("a", "b"))
    assert not vectors.holds(path, digests("a"))
    assert not vectors.holds(tmp_path / "absent", digests("a"))
    flip_a_bit(path)
    assert not vectors.holds(path, digests("a", "b"))


def test_a_truncated_image_is_tried_again_when_truncated_ones_are_kept(tmp_path: Path) -> None:
    write(tmp_path, IMAGES, 0, "a", status="truncated")
    assert not Vectors(tmp_path, LIMITS).find(IMAGES, digests("a")).missing.any()
    assert Vectors(tmp_path, LIMITS | {"truncated": "keep"}).find(IMAGES, digests("a")).missing.all()
