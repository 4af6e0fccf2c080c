"""Some images out of many that fetch stored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError
from sqid_lib.stored_images import StoredImages

IMAGES = [f"image {n}".encode() for n in range(25)]
SHA256S = [hashlib.sha256(image).hexdigest() for image in IMAGES]


def write(folder: Path, images: list[bytes], **options: Any) -> None:
    for number, start in enumerate(range(0, len(images), 10)):
        rows = slice(start, start + 10)
        table = pa.table([SHA256S[rows], images[rows]], schema=schemas.IMAGES_SCHEMA)
        pq.write_table(table, folder / f"images-{number:05d}.parquet", **{"row_group_size": 3, **options})


def test_reads_the_row_groups_of_the_wanted_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, IMAGES)
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        groups.append(group)
        return read(self, group, **options)

    stored = StoredImages(tmp_path)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    wanted = [24, 3, 5, 11, 4]
    found = list(stored.read_few([*(SHA256S[n] for n in wanted), "00" * 32]))
    assert found == [(SHA256S[n], IMAGES[n]) for n in sorted(wanted)]
    assert groups == [1, 0, 1]


def test_other_bytes_are_damage(tmp_path: Path) -> None:
    write(tmp_path, [*IMAGES[:7], b"other", *IMAGES[8:]])
    stored = StoredImages(tmp_path)
    assert len(list(stored.read_few(SHA256S[:7]))) == 7
    with pytest.raises(CorruptFileError, match="not that of its sha256"):
        list(stored.read_few(SHA256S[7:8]))


UNCOMPRESSED: Any = {"compression": "none", "use_dictionary": False}


@pytest.mark.parametrize("options", [{}, {"data_page_size": 1, "write_batch_size": 1}])
def test_one_image_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    """A row group is read once; then each of its images is read by its bytes, also where pages separate them."""
    write(tmp_path, IMAGES, **UNCOMPRESSED, **options)
    stored, groups = StoredImages(tmp_path), []
    read = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        groups.append(group)
        return read(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    positions = stored.positions([*SHA256S, "00" * 32])
    assert positions.tolist() == [*range(25), -1]
    for number in [*np.random.default_rng(0).permutation(25), *range(25)]:
        assert stored.read_at(int(positions[number])) == IMAGES[number]
    assert len(groups) == 10  # of 3, 3, 3 and 1 rows, twice, and of 3 and 2


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"use_dictionary": True}])
def test_one_image_of_a_file_that_was_written_otherwise(tmp_path: Path, options: Any) -> None:
    write(tmp_path, [*IMAGES[:24], IMAGES[0]], **{**UNCOMPRESSED, "row_group_size": 10, **options})
    stored = StoredImages(tmp_path)
    assert [stored.read_at(n) for n in range(24)] == IMAGES[:24]


def test_one_image_that_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, [*IMAGES[:7], b"other", *IMAGES[8:]], **UNCOMPRESSED)
    stored = StoredImages(tmp_path)
    assert [stored.read_at(n) for n in (6, 8)] == [IMAGES[6], IMAGES[8]]
    with pytest.raises(CorruptFileError, match="not that of its sha256"):
        stored.read_at(7)
    (tmp_path / "images-00000.parquet").unlink()
    with pytest.raises(CorruptFileError, match="cannot be read"):
        stored.read_at(6)
