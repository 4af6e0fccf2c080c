"""sqid_lib.stored_images: images by their sha256, wherever fetch stored them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqid_lib import schemas, stored_images
from sqid_lib.errors import CorruptFileError, IntegrityError, SchemaError
from sqid_lib.stored_images import StoredImages

IMAGES = {hashlib.sha256(data).hexdigest(): data for data in (f"image {n}".encode() for n in range(40))}


def store(path: Path, names: list[str], schema: pa.Schema = schemas.IMAGES_SCHEMA) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"sha256": name, "image": IMAGES[name]} for name in names]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=7)


def test_images_of_one_machine_and_of_several_are_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_images, "_AT_ONCE", 9)
    names = [*IMAGES]
    store(tmp_path / "images-00000.parquet", names[:10])
    store(tmp_path / "images-00001.parquet", names[10:12])
    store(tmp_path / "part-00000" / "images-00000.parquet", names[12:30])
    store(tmp_path / "part-00003" / "images-00000.parquet", names[25:])  # some are stored twice
    (tmp_path / "part-00003" / ".images-00001.parquet.1-1.part").write_bytes(b"unfinished")
    (tmp_path / "partial").mkdir()
    stored = StoredImages(tmp_path)
    stored.check(names)
    random.Random(1).shuffle(names)
    assert [*stored.read(names)] == [IMAGES[name] for name in names]
    with pytest.raises(IntegrityError, match="1 images that outcomes"):
        stored.check([*names, "0" * 64])


def test_without_files_nothing_is_stored(tmp_path: Path) -> None:
    StoredImages(tmp_path).check([])


def test_damage_is_reported(tmp_path: Path) -> None:
    names = [*IMAGES]
    path = tmp_path / "part-00000" / "images-00000.parquet"
    store(path, names)
    stored = StoredImages(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"image 3", b"image X"))
    with pytest.raises(CorruptFileError, match="not that of its sha256"):
        list(stored.read(names))
    path.write_bytes(b"PAR1")
    with pytest.raises(CorruptFileError, match="cannot be read"):
        StoredImages(tmp_path)
    pq.write_table(pa.table({"sha256": names, "other": names}), path)
    stored = StoredImages(tmp_path)
    with pytest.raises(SchemaError, match="columns are missing"):
        list(stored.read(names[:1]))


# -- a few of many --------------------------------------------------------------------------------------------------

FEW = [f"image {n}".encode() for n in range(25)]
SHA256S = [hashlib.sha256(image).hexdigest() for image in FEW]


def write(folder: Path, images: list[bytes], **options: Any) -> None:
    for number, start in enumerate(range(0, len(images), 10)):
        rows = slice(start, start + 10)
        table = pa.table([SHA256S[rows], images[rows]], schema=schemas.IMAGES_SCHEMA)
        pq.write_table(table, folder / f"images-{number:05d}.parquet", **{"row_group_size": 3, **options})


def test_reads_the_row_groups_of_the_wanted_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FEW)
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        groups.append(group)
        return read(self, group, **options)

    stored = StoredImages(tmp_path)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    wanted = [24, 3, 5, 11, 4]
    found = list(stored.read_few([*(SHA256S[n] for n in wanted), "00" * 32]))
    assert found == [(SHA256S[n], FEW[n]) for n in sorted(wanted)]
    assert groups == [1, 0, 1]


def test_other_bytes_among_a_few_are_damage(tmp_path: Path) -> None:
    write(tmp_path, [*FEW[:7], b"other", *FEW[8:]])
    stored = StoredImages(tmp_path)
    assert len(list(stored.read_few(SHA256S[:7]))) == 7
    with pytest.raises(CorruptFileError, match="not that of its sha256"):
        list(stored.read_few(SHA256S[7:8]))


# -- one of many ------------------------------------------------------------------------------------------------------

UNCOMPRESSED: Any = {"compression": "none", "use_dictionary": False}


@pytest.mark.parametrize("options", [{}, {"data_page_size": 1, "write_batch_size": 1}])
def test_one_image_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    """A row group is read once; then each of its images is read by its bytes, also where pages separate them."""
    write(tmp_path, FEW, **UNCOMPRESSED, **options)
    stored, groups = StoredImages(tmp_path), []
    read = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        groups.append(group)
        return read(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    positions = stored.positions([*SHA256S, "00" * 32])
    assert positions.tolist() == [*range(25), -1]
    for number in [*np.random.default_rng(0).permutation(25), *range(25)]:
        assert stored.read_at(int(positions[number])) == FEW[number]
    assert len(groups) == 10  # of 3, 3, 3 and 1 rows, twice, and of 3 and 2


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"use_dictionary": True}])
def test_one_image_of_a_file_that_was_written_otherwise(tmp_path: Path, options: Any) -> None:
    write(tmp_path, [*FEW[:24], FEW[0]], **{**UNCOMPRESSED, "row_group_size": 10, **options})
    stored = StoredImages(tmp_path)
    assert [stored.read_at(n) for n in range(24)] == FEW[:24]


def test_one_image_that_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, [*FEW[:7], b"other", *FEW[8:]], **UNCOMPRESSED)
    stored = StoredImages(tmp_path)
    assert [stored.read_at(n) for n in (6, 8)] == [FEW[6], FEW[8]]
    with pytest.raises(CorruptFileError, match="not that of its sha256"):
        stored.read_at(7)
    (tmp_path / "images-00000.parquet").unlink()
    with pytest.raises(CorruptFileError, match="cannot be read"):
        stored.read_at(6)


def test_one_image_of_several_machines(tmp_path: Path) -> None:
    for number, part in enumerate(("part-00000", "part-00002")):
        (tmp_path / part).mkdir()
        table = pa.table([SHA256S[number::2], FEW[number::2]], schema=schemas.IMAGES_SCHEMA)
        pq.write_table(table, tmp_path / part / "images-00000.parquet", **{"row_group_size": 4, **UNCOMPRESSED})
    stored = StoredImages(tmp_path)
    assert [stored.read_at(position) for position in stored.positions(SHA256S).tolist()] == FEW
