"""Where images of products are found, and what is refused; tests/sqid_lib/streams/test_pixels.py has their pixels."""

from __future__ import annotations

import pickle
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from embed_work import STORED, make_work
from encoder_fixtures import encoded, make_image

from sqid_lib import schemas
from sqid_lib.errors import EmptyFileError, IntegrityError, MissingFileError, SchemaError
from sqid_lib.images import ImageError
from sqid_lib.product_images import ProductImages


def products(*ids: str, locale: str = "us") -> pa.Table:
    return pa.table({"product_id": list(ids), "product_locale": [locale] * len(ids)})


def test_of_a_work_directory(tmp_path: Path) -> None:
    images = ProductImages.open(make_work(tmp_path / "work"))
    rows = [f"P{row:03d}" for row in range(len(STORED))]
    has = [status in schemas.EMBEDDED_STATUSES for status, _ in STORED]
    found = images.find(products(*rows, "P999"))
    assert [number >= 0 for number in found] == [*has, False]
    assert len(images) == sum(has)
    for number, (_, data) in zip(found.tolist(), STORED, strict=False):
        if number >= 0:
            assert images.read_bytes(number) == data
    assert (images.find(products(*rows, locale="jp")) == -1).all()  # another product
    with pytest.raises(ImageError):
        images.decode(int(found[5]))  # damaged, and fetch did not notice
    rest = images.without(products(rows[2], rows[0], "P999"))
    assert rest.find(products(*rows)).tolist() == [-1, found[1], -1, *found[3 : len(rows)]]
    assert len(rest) == len(images) - int((found[[0, 2]] >= 0).sum())
    assert images.without(products(*rows, locale="jp")).find(products(*rows)).tolist() == found[: len(rows)].tolist()
    again = pickle.loads(pickle.dumps(images))
    assert again.read_bytes(int(found[2])) == STORED[2][1]


def test_of_a_work_directory_without_its_images(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work")
    for path in (work / "fetch").glob("images-*"):
        path.unlink()
    with pytest.raises(IntegrityError, match=r"images that outcomes\.parquet names are not stored"):
        ProductImages.open(work)


def test_of_a_folder(tmp_path: Path) -> None:
    png, jpeg = encoded(make_image(1)), encoded(make_image(2), "JPEG")
    for name, data in {"A1.png": png, "B 2.JPG": jpeg, "A1.webp": jpeg, "notes.txt": b"x", "1.5.jpeg": jpeg}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "D.png").mkdir()
    images = ProductImages.open(tmp_path)
    found = images.find(products("B 2", "A1", "1.5", "notes", "D", locale="jp")).tolist()
    assert [number < 0 for number in found] == [False, False, False, True, True]
    assert [images.read_bytes(number) for number in found[:3]] == [jpeg, png, jpeg]
    assert repr(images) == f"ProductImages(4 images, {str(tmp_path)!r})"


def test_of_a_dataset(tmp_path: Path) -> None:
    png = encoded(make_image(1))
    (tmp_path / "a.png").write_bytes(png)
    rows = {
        "product_id": ["A", "B", "C", "A"],
        "image": [{"bytes": png, "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")}, None, None],
    }
    features = datasets.Features({"product_id": datasets.Value("string"), "image": datasets.Image()})
    dataset = datasets.Dataset.from_dict(rows, features)
    for chosen in (dataset, dataset.select([2, 0, 1]), dataset.with_format("numpy"), dataset.shuffle(seed=1)):
        images = ProductImages.from_dataset(chosen)
        a, b, c, none = images.find(products("A", "B", "C", "X")).tolist()
        assert none == -1
        assert images.read_bytes(b) == png and images.decode(b).size == (40, 30)
        assert c < 0
        assert images.without(products("A")).find(products("A", "B")).tolist() == [-1, b]
        assert images.read_bytes(a) == png and len(images) == 2
    binary = datasets.Dataset.from_dict({"product_id": [7], "image": [png]})
    images = ProductImages.from_dataset(binary)
    assert images.read_bytes(int(images.find(products("7"))[0])) == png
    with pytest.raises(SchemaError, match="no column photo"):
        ProductImages.from_dataset(dataset, image="photo")


def test_what_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        ProductImages.open(tmp_path / "no")
    (tmp_path / "a.txt").touch()
    with pytest.raises(EmptyFileError, match="the folder has no images; expected WORK of a build, or files named"):
        ProductImages.open(tmp_path)
