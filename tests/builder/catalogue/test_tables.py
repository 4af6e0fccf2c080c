"""Tables of a shop at any address: which files, which columns, rows in batches, and the place of each row."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import FileServer
from loopback_hub import LoopbackHub

from builder.catalogue import tables as tables_module
from builder.catalogue.tables import Tables, find_tables, open_tables
from sqid_lib.errors import (
    CorruptFileError,
    EmptyFileError,
    HtmlPageError,
    MissingFileError,
    SchemaError,
    SqidError,
)

ROWS = [{"sku": "001", "title": "Schuh, rot"}, {"sku": "1e5", "title": "靴"}]
CSV = 'sku,title\n001,"Schuh, rot"\n1e5,靴\n'
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read(tables: Tables, *columns: str, image: str | None = None) -> list[dict[str, Any]]:
    batches = list(tables.read(columns or tables.names, image=image))
    return [row for batch in batches for row in batch.table.to_pylist()]


def places(tables: Tables) -> list[str]:
    return [
        batch.where(row).rpartition("/")[2]
        for batch in tables.read(tables.names[:1])
        for row in range(batch.table.num_rows)
    ]


FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "csv": ("a.csv", CSV.encode(), ["a.csv, line 2", "a.csv, line 3"]),
    "tsv.gz": (
        "a.tsv.gz",
        gzip.compress("sku\ttitle\n001\tSchuh, rot\n1e5\t靴\n".encode(), mtime=0),
        ["line 2", "line 3"],
    ),
    "jsonl": ("a.jsonl", ("\n" + LINES).encode(), ["line 2", "line 3"]),
    "jsonl.bz2": ("a.jsonl.bz2", bz2.compress(LINES.encode()), ["line 1", "line 2"]),
    "ndjson.zst": ("a.ndjson.zst", bytes(pa.Codec("zstd").compress(LINES.encode())), ["line 1", "line 2"]),
    "array": ("a.json", json.dumps(ROWS).encode(), ["object 1", "object 2"]),
    "parquet": ("a.parquet", b"", ["row 1", "row 2"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_kinds_of_files(tmp_path: Path, kind: str) -> None:
    name, data, expected = FILES[kind]
    if data:
        (tmp_path / name).write_bytes(data)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name, row_group_size=1)
    tables = open_tables(str(tmp_path / name))
    assert tables.names == ("sku", "title")
    assert read(tables) == ROWS and read(tables, "title") == [{"title": row["title"]} for row in ROWS]
    assert all(found.endswith(place) for found, place in zip(places(tables), expected, strict=True))


def test_batches_say_where_they_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "BATCH_ROWS", 2)
    monkeypatch.setattr(tables_module, "_JSON_ROWS", 2)
    table = pa.table({"sku": [str(i) for i in range(5)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    (tmp_path / "b.csv").write_text("sku\n" + "".join(f"{i}\n" for i in range(5)))
    (tmp_path / "c.jsonl").write_text("".join(f'{{"sku": "{i}"}}\n' for i in range(5)))
    for name, last in (("a.parquet", "row 5"), ("b.csv", "line 6"), ("c.jsonl", "line 5")):
        tables = open_tables(str(tmp_path / name))
        batches = list(tables.read(["sku"]))
        assert [row for batch in batches for row in batch.table["sku"].to_pylist()] == [str(i) for i in range(5)]
        assert all(batch.table["sku"][0].as_py() == str(batch.first) for batch in batches) and len(batches) > 2
        assert batches[-1].where(batches[-1].table.num_rows - 1).endswith(last)


def test_a_folder_of_parquet_files_is_one_table_and_other_files_in_it_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, rows in (("data/b.parquet", ROWS[1:]), ("data/a.parquet", ROWS[:1])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    (tmp_path / "data" / "notes.csv").write_text("a,b\n")
    (tmp_path / "README.md").write_text("x")
    tables = open_tables(str(tmp_path))
    assert [Path(file.path).name for file in tables.files] == ["a.parquet", "b.parquet"]
    assert read(tables) == ROWS and places(tables) == ["a.parquet, row 1", "b.parquet, row 1"]
    assert "only its parquet files are read, and not " in caplog.text


def test_a_folder_with_tables_in_it_is_not_searched_further(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    (tmp_path / "model" / "more.csv").write_text("other\n1\n")
    (tmp_path / "a.csv").write_text("sku,title\n1,a\n")
    assert [Path(file.path).name for file in find_tables(str(tmp_path))] == ["a.csv"]
    (tmp_path / "a.csv").unlink()
    (tmp_path / "model" / "config.json").unlink()
    assert [Path(file.path).name for file in find_tables(str(tmp_path))] == ["more.csv"]


def test_a_folder_of_csv_files_may_have_its_columns_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("sku,title\n1,a\n")
    (tmp_path / "2.tsv").write_text("title\tsku\nb\t2\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert read(open_tables(str(tmp_path))) == [{"sku": "1", "title": "a"}, {"sku": "2", "title": "b"}]


def test_objects_may_lack_keys(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"sku": 1}\n{"sku": 2, "title": "b"}\n')
    (tmp_path / "2.jsonl").write_text('{"sku": "x", "price": 1.5}\n')
    tables = open_tables(str(tmp_path))
    assert tables.names == ("sku", "title", "price")
    assert [tuple(row.values()) for row in read(tables)] == [(1, None, None), (2, "b", None), ("x", None, 1.5)]


def test_values_of_several_types_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": "x"}\n{"a": ["p", "q"]}\n{"a": true}\n{"a": null}\n{"a": 3.0}\n')
    values = ("1", "x", "p\nq", "true", None, "3")
    assert read(open_tables(str(tmp_path / "a.jsonl"))) == [{"a": value} for value in values]


def test_columns_that_excel_leaves_without_a_name_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,title,,\n1,a,,\n")
    assert read(open_tables(str(tmp_path / "a.csv"))) == [{"sku": "1", "title": "a"}]


BAD: dict[str, tuple[dict[str, str], type[SqidError], str]] = {
    "no bytes": ({"a.csv": ""}, EmptyFileError, "a.csv: the file is empty"),
    "a workbook": ({"a.xlsx.csv": "PK\3\4"}, CorruptFileError, "Excel workbook or another archive.*CSV UTF-8"),
    "a web page": ({"a.csv": "<!DOCTYPE html><p>"}, HtmlPageError, "a web page"),
    "one name twice": ({"a.csv": "sku,title,sku\n1,2,3\n"}, SchemaError, "two columns have the name 'sku'.*1 and 3"),
    "other columns": (
        {"a.csv": "sku,title\n1,a\n", "b.csv": "sku,name\n1,a\n"},
        SchemaError,
        "b.csv: the files of .* have not the same columns.*a.csv: sku, title, got sku, name; .* name, title",
    ),
    "no table": ({"a.pdf": "x", "b.txt": "x"}, MissingFileError, "no table in this folder.*a.pdf, b.txt"),
    "a folder without files": ({}, MissingFileError, "no table in this folder.*got no files"),
    "damaged": ({"a.parquet": "PAR1 nothing"}, CorruptFileError, "a.parquet"),
    "a line that is no object": ({"a.jsonl": '{"sku": 1}\n[]\n'}, CorruptFileError, "value 2 is no JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    files, error, message = BAD[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        read(open_tables(str(tmp_path)))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        open_tables(str(tmp_path / "a.csv"))


def columns_read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The columns that are read of parquet files from now on, of each reading."""
    wanted: list[Any] = []
    of_file = pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, rows: int, groups: Any = None, columns: Any = None) -> Any:
        wanted.append(columns)
        return of_file(self, rows, groups, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    return wanted


def test_bytes_of_images_become_references_and_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [{"bytes": b"\xff\xd8 1", "path": "a.jpg"}, {"bytes": b"\xff\xd8 2", "path": None}]
    table = pa.table({"sku": ["1", "2"], "image": pa.array(images, IMAGE)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    wanted = columns_read(monkeypatch)
    tables = open_tables(str(tmp_path / "a.parquet"))
    assert read(tables, "image", "sku", image="image") == [
        {"image": "row:0:0", "sku": "1"},
        {"image": "row:0:1", "sku": "2"},
    ]
    assert wanted == [["sku"], ["sku"]]
    assert read(tables, "image", image="image") == [{"image": "row:0:0"}, {"image": "row:0:1"}]


def test_lists_of_images_are_counted_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [[{"bytes": b"\xff\xd8", "path": None}] * 2, [], None, [{"bytes": b"\xff\xd8", "path": "a.jpg"}]]
    bare = [[{"bytes": None, "path": "a.jpg"}], [], None, [None]]
    table = pa.table({"image": pa.array([*images, *bare], pa.list_(IMAGE))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    wanted = columns_read(monkeypatch)
    batches = list(open_tables(str(tmp_path / "a.parquet")).read(["image"], image="image"))
    assert wanted == [["image.list.element.path"]] * 2
    found = [image for batch in batches for image in batch.table["image"].to_pylist()]
    assert found == ["row:0:0", None, None, "row:0:3", "a.jpg", None, None, None]
    assert [batch.image_counts.tolist() for batch in batches if batch.image_counts is not None] == [
        *([2, 0, 0, 1], [1, 0, 0, 0])
    ]


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_without_bytes_have_the_path_or_nothing(tmp_path: Path, statistics: bool) -> None:
    images = [{"bytes": b"\xff", "path": "a"}, None, {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": None}]
    plain = [b"\xff\xd8", None, b"GIF89a\0", None]
    table = pa.table({"image": pa.array(images, IMAGE), "plain": pa.array(plain, pa.large_binary())})
    for number in range(2):
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=3, write_statistics=statistics)
    tables = open_tables(str(tmp_path))
    found = [row["image"] for row in read(tables, "image", image="image")]
    assert found == ["row:0:0", None, "b.jpg", None, "row:1:0", None, "b.jpg", None]
    found = [row["plain"] for row in read(tables, "plain", image="plain")]
    assert found == ["row:0:0", None, "row:0:2", None, "row:1:0", None, "row:1:2", None]


def test_urls_in_a_binary_column_are_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [None, b"https://x.example/1.jpg"]}), tmp_path / "a.parquet")
    tables = open_tables(str(tmp_path / "a.parquet"))
    assert read(tables, image="image") == [{"image": None}, {"image": b"https://x.example/1.jpg"}]


def test_a_file_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "a.csv").write_text(CSV, encoding="utf-8")
    with FileServer(tmp_path / "shop") as server:
        tables = open_tables(f"{server.url}/a.csv")
        assert read(tables) == ROWS and tables.files == open_tables(f"{server.url}/a.csv").files
        assert places(tables)[0] == "a.csv, line 2"
        secret = server.url.replace("://", "://me:geheim@")
        assert open_tables(f"{secret}/a.csv").address == f"{server.url}/a.csv"
        before = find_tables(f"{server.url}/a.csv")
        (tmp_path / "shop" / "a.csv").write_text(CSV + "3,c\n", encoding="utf-8")
        assert find_tables(f"{server.url}/a.csv") != before
        with pytest.raises(MissingFileError):
            find_tables(f"{server.url}/b.csv")


ON_THE_HUB = """
import sys
from builder.catalogue.tables import find_tables, open_tables
for address in sys.argv[1:]:
    tables = open_tables(address)
    found = [row for batch in tables.read(tables.names, image="image") for row in batch.table.to_pylist()]
    print([file.url.rpartition("/")[2] for file in tables.files], found)
"""


def test_a_dataset_on_the_hub(tmp_path: Path) -> None:
    data = tmp_path / "repo" / "data"
    data.mkdir(parents=True)
    image = pa.array([{"bytes": b"\xff\xd8", "path": "1.jpg"}], IMAGE)
    for number in range(2):
        table = pa.table({"sku": [str(number)], "image": image})
        pq.write_table(table, data / f"train-0000{number}-of-00002.parquet")
    (tmp_path / "repo" / "old.csv").write_text("sku,image\n9,x.jpg\n")
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/shop", tmp_path / "repo")
        addresses = [f"hf://datasets/ORG/shop{path}" for path in ("", "/data", "@main/old.csv")]
        whole, folder, csv = hub.run(ON_THE_HUB, *addresses).splitlines()
    assert (
        whole
        == folder
        == (
            "['train-00000-of-00002.parquet', 'train-00001-of-00002.parquet'] "
            "[{'sku': '0', 'image': 'row:0:0'}, {'sku': '1', 'image': 'row:1:0'}]"
        )
    )
    assert csv == "['old.csv'] [{'sku': '9', 'image': 'x.jpg'}]"
