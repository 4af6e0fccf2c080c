"""Some images out of many that fetch stored."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError
from sqid_lib.stored_images import StoredImages

IMAGES = [f"image {n}".encode() for n in range(25)]
SHA256S = [hashlib.sha256(image).hexdigest() for image in IMAGES]


def write(folder: Path, images: list[bytes]) -> None:
    for number, start in enumerate(range(0, len(images), 10)):
        rows = slice(start, start + 10)
        table = pa.table([SHA256S[rows], images[rows]], schema=schemas.IMAGES_SCHEMA)
        pq.write_table(table, folder / f"images-{number:05d}.parquet", row_group_size=3)


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
