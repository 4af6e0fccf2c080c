"""No epoch of stream_pairs is short or wrong in silence: missing shards, short row groups, flipped bits."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_release import write_release

from sqid_lib import schemas
from sqid_lib.errors import ContractError, CorruptFileError, MissingFileError
from sqid_lib.files import shard_name
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams import release, release_files
from sqid_lib.streams.open import stream_pairs

CONFIGS = (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQID_CACHE", str(tmp_path / "cache"))
    return write_release(tmp_path / "release")


def both(path: Path) -> list[Any]:
    """The two ways to read a release."""
    return [lambda: EmbeddingStore.open(path, progress=False), lambda: list(stream_pairs(path, format="numpy"))]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("sums", [True, False])
def test_a_missing_shard(path: Path, config: str, sums: bool) -> None:
    (path / shard_name(config, "test", 0, 2)).unlink()
    if not sums:
        (path / schemas.SHA256SUMS).unlink()
    for call in both(path):
        with pytest.raises(MissingFileError, match=rf"{config}: shards are missing; got no .*test.*of 2.*\[0\]"):
            call()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_missing_split_that_the_checksums_list(path: Path, config: str) -> None:
    lost = shard_name(config, "train", 0, 1)
    sums = path / schemas.SHA256SUMS
    sums.write_text(sums.read_text() + f"{'0' * 64}  {lost}\n")
    for call in both(path):
        with pytest.raises(MissingFileError, match=rf"{lost}: 1 files of SHA256SUMS are missing"):
            call()


def test_a_split_that_was_divided_twice(path: Path) -> None:
    rows = pq.read_table(path / "data" / schemas.JUDGMENTS)
    pq.write_table(rows, path / shard_name(schemas.JUDGMENTS, "test", 0, 1))
    for call in both(path):
        with pytest.raises(ContractError, match=r"there twice; got test-…-of-00001, test-…-of-00002"):
            call()


def test_a_pipe_in_the_place_of_a_shard_is_a_missing_shard(path: Path) -> None:
    shard = path / shard_name(schemas.FEATURES, "test", 1, 2)
    shard.unlink()
    os.mkfifo(shard)
    for call in both(path):
        with pytest.raises(MissingFileError, match="shards are missing"):
            call()


@pytest.mark.parametrize("drop_last", [True, False])
def test_pairs_are_counted_at_the_end_of_an_epoch(path: Path, drop_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(self: Any, block: Any, *arguments: Any) -> Any:
        whole = read(self, block, *arguments)
        return whole if block[0].group else whole.only(np.arange(1, len(whole.pairs)))[0]

    read = release.ReleaseStream._read
    monkeypatch.setattr(release.ReleaseStream, "_read", short)
    stream = stream_pairs(path, batch_size=8, buffer=5, format="numpy", drop_last=drop_last)
    expected = 80 if drop_last else 84
    with pytest.raises(CorruptFileError, match=rf"early; expected {expected} pairs, got {expected - 1}\."):
        list(stream)


def test_a_flipped_bit_is_found_by_the_checksums_of_pages(path: Path, tmp_path: Path) -> None:
    """Where a file has them: no other check can see another bit of a vector in a file without known digest."""
    (path / schemas.SHA256SUMS).unlink()
    shard = path / shard_name(schemas.FEATURES, "test", 0, 2)
    table = pq.read_table(shard)
    for checksums in (False, True):
        pq.write_table(table, shard, compression="none", use_dictionary=False, write_page_checksum=checksums)
        number = table.column_names.index("clip_text_features")
        column = pq.ParquetFile(shard).metadata.row_group(0).column(number)
        data = bytearray(shard.read_bytes())
        data[column.data_page_offset + column.total_compressed_size - 9] ^= 4
        shard.write_bytes(data)
        for call in both(path):
            if checksums:
                with pytest.raises(CorruptFileError, match=r"test-00000-of-00002\.parquet, row.*CRC checksum"):
                    call()
            else:
                call()


def test_a_file_is_held_against_its_checksum_once_a_day(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    plain = release_files.digest

    def noted(path: Path, *arguments: Any) -> str:
        read.append(path)
        return plain(path, *arguments)

    monkeypatch.setattr(release_files, "digest", noted)
    stream_pairs(path)
    assert len(read) == 6
    stream_pairs(path)
    assert len(read) == 6
    shard = path / shard_name(schemas.FEATURES, "test", 0, 2)
    status, data = shard.stat(), bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)  # as a bit that rots: the times of the file stay
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    with pytest.raises(CorruptFileError, match="not the one in SHA256SUMS"):
        stream_pairs(path)
