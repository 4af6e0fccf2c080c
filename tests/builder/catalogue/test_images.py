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


def cells(tmp_path: Path, values: pa.Array, **written: Any) -> tuple[list[Any], list[int]]:
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet", **written)
    batches = open_tables(str(tmp_path / "a.parquet")).read(["image"], image="image")
    parts = [image_cells(batch, "image") for batch in batches]
    return [i for images, _ in parts for i in images.to_pylist()], [n for _, counts in parts for n in counts.tolist()]


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


BYTES, OTHER = {"bytes": b"\xff\xd8", "path": "same.jpg"}, {"bytes": b"\xff\xd9", "path": "same.jpg"}
NAMED, NOTHING = {"bytes": None, "path": "a|b.jpg"}, {"bytes": None, "path": " "}
LISTS: list[tuple[list[Any] | None, str | None, int]] = [  # cell, image, number of images; "row" for bytes
    *(([BYTES, OTHER], "row", 2), ([], None, 0), (None, None, 0), ([None, BYTES], "row", 1)),
    *(([NAMED, BYTES], "row", 2), ([NOTHING, NAMED, NAMED], "file:a|b.jpg", 1), ([None, NOTHING], None, 0)),
]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("group", [1, 3, 100])
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_lists_of_images(tmp_path: Path, kind: Any, group: int, statistics: bool) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = pa.array([cell for cell, _, _ in LISTS], kind(struct))
    images, counts = cells(tmp_path, values, row_group_size=group, write_statistics=statistics)
    assert images == [f"row:0:{row}" if image == "row" else image for row, (_, image, _) in enumerate(LISTS)]
    assert counts == [count for _, _, count in LISTS]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    "dtype", [pa.list_(pa.binary()), pa.large_list(pa.large_binary()), pa.list_(pa.struct([("bytes", pa.binary())]))]
)
def test_lists_of_bytes(tmp_path: Path, dtype: pa.DataType, statistics: bool) -> None:
    image: Any = {"bytes": b"\xff"} if pa.types.is_struct(dtype.value_type) else b"\xff"
    values = pa.array([[image] * 3, None, [], [None, image], [None], *[[image]] * 100, None], dtype)
    images, counts = cells(tmp_path, values, write_statistics=statistics)
    assert images == ["row:0:0", None, None, "row:0:3", None, *(f"row:0:{n}" for n in range(5, 105)), None]
    assert counts == [3, 0, 0, 1, 0, *[1] * 100, 0]


def test_lists_of_one_length(tmp_path: Path) -> None:
    images, counts = cells(tmp_path, pa.array([[b"\xff", b"\xff"], None, [None, b"\xff"]], pa.list_(pa.binary(), 2)))
    assert images == ["row:0:0", None, "row:0:2"] and counts == [2, 0, 1]


def test_lists_of_bytes_without_an_image_or_with_names_are_texts(tmp_path: Path) -> None:
    values = pa.array([[], None, [None]], pa.list_(pa.binary()))
    assert cells(tmp_path, values) == ([None] * 3, [0] * 3)
    assert cells(tmp_path, pa.array([[b"a.jpg", b"b.jpg"]], pa.large_list(pa.binary()))) == (["file:a.jpg"], [2])


def test_what_is_neither_text_nor_an_image(tmp_path: Path) -> None:
    for objects in ([{"url": "a"}], [[b"\xff"]], [{"bytes": "text"}]):
        with pytest.raises(SchemaError, match=r"lists of objects that are no images.*list"):
            cells(tmp_path, pa.array([objects]))
    with pytest.raises(SchemaError, match=r"holds no texts.*struct"):
        cells(tmp_path, pa.array([{"url": "a"}]))


def test_files_named_by_product_id(tmp_path: Path) -> None:
    for name in ("A1.png", "A1.jpg", "B.2.JPEG", "C3.webp", "C3.gif", ".A4.jpg", "A5.txt", "A6"):
        (tmp_path / name).touch()
    assert images_by_id(str(tmp_path)) == {"A1": "A1.jpg", "B.2": "B.2.JPEG", "C3": "C3.webp"}
    with pytest.raises(MissingFileError, match="no folder of images"):
        images_by_id(str(tmp_path / "none"))
