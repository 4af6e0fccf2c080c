"""Images of a work directory, by product."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_work import STORED, make_work

from builder.explore.work_images import WorkImages
from sqid_lib.errors import CorruptFileError, MissingFileError


def products(*keys: str) -> pa.Table:
    return pa.table({"product_id": list(keys), "product_locale": ["us"] * len(keys)})


def test_each_product_has_its_own_image(tmp_path: Path) -> None:
    rows = [10, 3, 0, 9, 2, 1, 7]
    images = WorkImages(make_work(tmp_path), products(*(f"P{row:03d}" for row in rows), "other"))
    assert images.present.tolist() == [True] * 5 + [False] * 3
    found = [images.read(at) for at in range(8)]
    assert [image and image[0] for image in found] == [*(STORED[row][1] for row in rows), None]
    assert [image and image[1] for image in found[:5]] == [f"image/{x}" for x in ("webp", "png", "png", "gif", "jpeg")]


def test_a_product_of_another_locale_has_none(tmp_path: Path) -> None:
    table = products("P000").set_column(1, "product_locale", pa.array(["jp"]))
    assert not WorkImages(make_work(tmp_path), table).present.any()


def test_images_that_several_machines_fetched_are_found(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    part = work / "fetch" / "part-00001"
    part.mkdir()
    for path in (work / "fetch").glob("images-*.parquet"):
        path.rename(part / path.name)
    images = WorkImages(work, products("P000", "P003"))
    found = [images.read(at) for at in range(2)]
    assert [image and image[0] for image in found] == [STORED[0][1], STORED[3][1]]


def test_damage(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"outcomes\.parquet"):
        WorkImages(tmp_path, products("P000"))
    work = make_work(tmp_path)
    path = work / "fetch/images-00000.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(1, "image", pa.array([b"<html>"] * len(rows), pa.binary())), path)
    assert WorkImages(work, products("P000")).read(0) is None
    path.write_bytes(b"PAR1 harm")
    with pytest.raises(CorruptFileError, match="images-00000"):
        WorkImages(work, products("P000"))
