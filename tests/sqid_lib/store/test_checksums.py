"""Checksums of a conversion: a flipped bit in any of its files is reported and the file made again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_release import write_release

from sqid_lib import schemas
from sqid_lib.errors import StoreError
from sqid_lib.files import shard_name
from sqid_lib.store import EmbeddingStore, checksums
from sqid_lib.store.checksums import STORE

MATRICES = ("text_features.bin", "image_features.bin")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release")


def open_store(release: Path, **options: Any) -> EmbeddingStore:
    return EmbeddingStore.open(release, cache_dir=release.parent / "cache", progress=False, **options)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_a_flipped_bit_in_any_file(release: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = open_store(release).path
    whole = contents(path)
    assert len(whole) == 11
    rng = np.random.default_rng(0)
    for name, data in whole.items():
        for bit in (0, *rng.integers(0, 8 * len(data), 3).tolist(), 8 * len(data) - 1):
            flip(path / name, bit)
            caplog.clear()
            with pytest.raises(StoreError, match="converted"):
                EmbeddingStore(path)
            assert open_store(release).path == path
            (message,) = (record.getMessage() for record in caplog.records)
            assert str(path) in message and "It is made again from the release." in message and "\n" not in message
            assert contents(path) == whole, (name, bit)


@pytest.fixture
def large(release: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingStore:
    """A store whose matrices are too large to be compared at opening."""
    monkeypatch.setattr(checksums, "LARGE", 1500)
    return open_store(release)


@pytest.mark.parametrize("name", MATRICES)
def test_a_damaged_matrix_ends_the_epoch_with_an_error(
    release: Path, large: EmbeddingStore, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = contents(large.path)
    flip(large.path / name, 77)
    store = open_store(release)
    batches = 0
    with pytest.raises(StoreError, match=rf"{name}: not a whole converted store"):
        for _ in store.pairs(batch_size=10, format="numpy"):
            batches += 1
    assert batches == 9
    with pytest.raises(StoreError, match=name):
        store.verify()
    (message,) = (record.getMessage() for record in caplog.records)
    assert name in message and "Open the release it was made from again" in message
    again = open_store(release)
    again.verify()
    assert contents(again.path) == whole


def test_asked_to_verify_it_makes_a_damaged_matrix_again(release: Path, large: EmbeddingStore) -> None:
    whole = contents(large.path)
    flip(large.path / MATRICES[0], 77)
    store = open_store(release, verify=True)
    store.verify()
    assert contents(store.path) == whole


def test_a_forked_process_compares_for_itself(release: Path, large: EmbeddingStore) -> None:
    store = EmbeddingStore(large.path)
    store.verify()
    flip(large.path / MATRICES[1], 77)
    store.verify()  # compared before, when it was whole
    watch = checksums.Watch.__new__(checksums.Watch)
    watch.__dict__.update(store._watch.__dict__, _whole=False, _pid=os.getpid() + 1)  # as a fork sees it
    with pytest.raises(StoreError, match=MATRICES[1]):
        watch.wait()
    assert not (large.path / STORE).exists()


def test_a_release_that_changes_within_size_and_time(release: Path) -> None:
    """Known by SHA256SUMS: the same size, time and inode with other checksums is another release."""
    path = release / shard_name(schemas.QUERIES, "test", 0, 2)
    sums = release / schemas.SHA256SUMS

    def put(first: str) -> None:
        old, time = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
        texts = pa.array([first, *table["query"].to_pylist()[1:]])
        pq.write_table(table.set_column(1, "query", texts), path, compression="none", write_statistics=False)
        os.utime(path, ns=(time, time))
        sums.write_text(sums.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest()))

    table = pq.read_table(path)
    put("query number A")
    before, first = path.stat(), open_store(release)
    put("query number B")
    after, second = path.stat(), open_store(release)
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
    assert [store.queries["query"][0].as_py()[-1] for store in (first, second)] == ["A", "B"]
    assert open_store(release).path == second.path


def test_a_damaged_note_of_a_digest_is_made_again(release: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = open_store(release).path
    notes = sorted((release.parent / "cache" / "digests").iterdir())
    assert len(notes) == 6
    whole = [note.read_bytes() for note in notes]
    for note in notes:
        flip(note, 400)
    assert open_store(release).path == path
    assert [note.read_bytes() for note in notes] == whole
    assert len(caplog.records) == 6
    assert all("a note in the cache is damaged; it is made again" in record.getMessage() for record in caplog.records)
