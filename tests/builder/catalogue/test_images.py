"""What a table says of images: several in a cell, references to local ones, files named by product id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.catalogue.images import image_cells, images_by_id, split_images
from builder.catalogue.tables import open_tables
from sqid_lib.errors import MissingFileError, SchemaError

URL = "https://x.example/I/{}.jpg"


@pytest.mark.parametrize(
    ("cell", "images"),
    [
        ("a.jpg|b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg, b.PNG", ["a.jpg", "b.PNG"]),
        ("a.jpg;a.jpg; ;b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg\nb.jpg", ["a.jpg", "b.jpg"]),
        ('["a.jpg", "b.jpg", null]', ["a.jpg", "b.jpg"]),
        ("['a.jpg', 'b.jpg']", ["a.jpg", "b.jpg"]),  # pandas
        ("[]", []),
        (f"{URL.format(1)},{URL.format(2)}", [URL.format(1), URL.format(2)]),
        (URL.format("31,2|3"), [URL.format("31,2|3")]),  # one URL
        ("https://x.example/a,b.jpg", ["https://x.example/a,b.jpg"]),
        ("photos/red, small.jpg", ["photos/red, small.jpg"]),  # one name
        ("[draft].jpg", ["[draft].jpg"]),
        ("https://x.example/1|https://x.example/2", ["https://x.example/1", "https://x.example/2"]),
    ],
)
def test_several_images_in_a_cell(cell: str, images: list[str]) -> None:
    assert split_images(cell) == images


def cells(tmp_path: Path, values: pa.Array) -> tuple[list[Any], list[int]]:
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet")
    batch = next(open_tables(str(tmp_path / "a.parquet")).read(["image"], image="image"))
    images, counts = image_cells(batch, "image")
    return images.to_pylist(), counts.tolist()


def test_references(tmp_path: Path) -> None:
    values = [
        *(URL.format(1), "//x.example/2.jpg", "ftp://x.example/3", "photos/4.jpg", "/abs/5.jpg", "file:///abs/6.jpg"),
        *("C:\\7.jpg", " 8.jpg ", "", None, "9.jpg|10.jpg", "[]", "data:image/png;base64,AA==", "row:0:13"),
    ]
    images, counts = cells(tmp_path, pa.array(values))
    assert images == [
        *(URL.format(1), "https://x.example/2.jpg", "ftp://x.example/3", "file:photos/4.jpg", "file:/abs/5.jpg"),
        *("file:/abs/6.jpg", "file:C:\\7.jpg", "file:8.jpg", None, None, "file:9.jpg", None),
        *("data:image/png;base64,AA==", "file:row:0:13"),  # a text is no reference to a row
    ]
    assert counts == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 2, 0, 1, 1]


def test_a_column_of_lists(tmp_path: Path) -> None:
    images, counts = cells(tmp_path, pa.array([["a.jpg", "b.jpg"], [], None, [None, "c.jpg"]]))
    assert images == ["file:a.jpg", None, None, "file:c.jpg"] and counts == [2, 0, 0, 1]


def test_bytes(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    first = {"bytes": b"\xff\xd8", "path": "a.jpg"}
    others = [{"bytes": None, "path": "b.jpg"}, None, {"bytes": None, "path": "row:7:0"}]
    images = ["row:0:0", "file:b.jpg", None, "file:row:7:0"]
    assert cells(tmp_path, pa.array([first, *others], struct)) == (images, [1, 1, 0, 1])


def test_what_is_neither_text_nor_an_image(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"lists of images or objects.*list"):
        cells(tmp_path, pa.array([[{"bytes": b"1"}]]))
    with pytest.raises(SchemaError, match=r"holds no texts.*struct"):
        cells(tmp_path, pa.array([{"url": "a"}]))


def test_files_named_by_product_id(tmp_path: Path) -> None:
    for name in ("A1.png", "A1.jpg", "B.2.JPEG", "C3.webp", "C3.gif", ".A4.jpg", "A5.txt", "A6"):
        (tmp_path / name).touch()
    assert images_by_id(str(tmp_path)) == {"A1": "A1.jpg", "B.2": "B.2.JPEG", "C3": "C3.webp"}
    with pytest.raises(MissingFileError, match="no folder of images"):
        images_by_id(str(tmp_path / "none"))
