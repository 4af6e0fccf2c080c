"""Tables of image URLs as people have them: every layout and kind of column is read, what does not match is said."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import FileServer

from builder.resolve.tables import image_urls
from sqid_lib.errors import CorruptFileError, DuplicateKeyError, MissingFileError, SchemaError

KEYS = [("0060538260", "us"), ("B1", "us"), ("B1", "es"), ("B2", "us")]
PRODUCTS = pa.table(list(zip(*KEYS, strict=True)), names=["product_id", "product_locale"])
URLS = ["https://x.example/a,b.jpg", "https://x.example/1.jpg", "https://x.example/1.jpg", None]
PLAIN = 'product_id,image_url\n0060538260,"https://x.example/a,b.jpg"\nB1,https://x.example/1.jpg\nB2,\n'
TABS = "product_id\timage_url\r\n0060538260\thttps://x.example/a,b.jpg\r\nB1\thttps://x.example/1.jpg\r\nB2\t\r\n"
OBJECTS: list[dict[str, Any]] = [
    {"product_id": "0060538260", "image_url": "https://x.example/a,b.jpg"},
    {"product_id": " B1", "image_url": "https://x.example/1.jpg "},
    {"product_id": "B2", "image_url": None},
]


def found(path: Path | str) -> list[str | None]:
    urls: list[str | None] = image_urls(str(path), PRODUCTS).to_pylist()
    return urls


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.tsv", TABS.encode(), "tab"),
        ("a.csv", TABS.replace("\t", ";").encode(), "semicolon"),
        ("a.txt", TABS.encode("utf-16"), "UTF-16"),
        ("a.csv", TABS.replace("\r\n", "\té\r\n").replace("url\té", "url\tnote").encode("cp1252"), "1252"),
        ("a.csv", PLAIN.replace("product_id,image_url", "PRODUCT_ID, Image_URL").encode(), "another case"),
        ("a.csv", TABS.replace("product_id\timage_url", "ASIN\tImage").encode(), "another case"),
        ("a.csv", PLAIN.replace(",", ", ").replace("a, b", "a,b").encode(), "spaces around cells (2)"),
        ("a.csv", ("# made by hand\n" + PLAIN).encode(), "comment"),
        ("a.csv.gz", gzip.compress(PLAIN.encode(), mtime=0), "gzip"),
        ("a.tsv.bz2", bz2.compress(TABS.encode()), "bz2, tab"),
        ("a.csv.zst", pa.Codec("zstd").compress(PLAIN.encode(), asbytes=True), "zstd"),
        ("a.json", json.dumps(OBJECTS, indent=1).encode(), "an array of objects"),
        ("a.json", json.dumps(OBJECTS).replace("product_id", "Product_ID").encode(), "an array of objects"),
        ("a.jsonl", "\n".join(map(json.dumps, OBJECTS)).encode("utf-16"), "UTF-16"),
    ],
)
def test_layouts_are_read_and_the_log_says_how(
    tmp_path: Path, name: str, data: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(data)
    with caplog.at_level(logging.INFO, logger="sqid_lib"):
        assert found(tmp_path / name) == URLS
    assert said in caplog.text


def columns(kind: Any) -> pa.Table:
    ids = pa.array(["0060538260", "B1 ", "B2"])
    urls = pa.array([URLS[0], URLS[1], None])
    return pa.table({"product_id": kind(ids), "image_url": kind(urls)})


@pytest.mark.parametrize(
    "kind",
    [
        lambda a: a.cast(pa.large_string()),
        lambda a: a.cast(pa.string_view()),
        lambda a: a.cast(pa.binary()),  # Spark
        lambda a: a.cast(pa.binary_view()),
        lambda a: a.dictionary_encode(),
    ],
)
def test_parquet_text_of_every_kind(tmp_path: Path, kind: Any) -> None:
    table = columns(kind)
    pq.write_table(table, tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet") == URLS
    crawl = table.rename_columns(["asin", "image"])
    pq.write_table(crawl, tmp_path / "b.parquet")
    assert found(tmp_path / "b.parquet") == URLS


def test_parquet_of_pandas_and_duckdb(tmp_path: Path) -> None:
    frame = columns(lambda a: a).to_pandas()
    frame.set_index("product_id").to_parquet(tmp_path / "index.parquet")
    frame[frame.product_id != "gone"].to_parquet(tmp_path / "filtered.parquet")  # has __index_level_0__
    frame.astype({"product_id": "category"}).to_parquet(tmp_path / "category.parquet")
    duckdb.sql(f"COPY (SELECT * FROM frame) TO '{tmp_path / 'duckdb.parquet'}' (FORMAT parquet)")
    for name in ("index", "filtered", "category", "duckdb"):
        assert found(tmp_path / f"{name}.parquet") == URLS
    frame.set_index("product_id").rename_axis(None).to_parquet(tmp_path / "unnamed.parquet")
    with pytest.raises(SchemaError, match=r"unnamed\.parquet.*got the columns image_url, __index_level_0__"):
        found(tmp_path / "unnamed.parquet")


IMAGES: list[dict[str, Any]] = [
    {"variant": "PT01", "hi_res": "p", "large": "p", "thumb": "p"},
    {"variant": "MAIN", "hi_res": None, "large": "large", "thumb": "thumb"},
]
REVIEWS: list[dict[str, Any]] = [
    {"parent_asin": "B1", "title": "t", "images": IMAGES},
    {"parent_asin": "0060538260", "title": "t", "images": []},
    {"parent_asin": "B2", "title": "t", "images": None},
]
EXPECTED = [None, "large", "large", None]


def test_amazon_reviews_as_parquet_of_objects_or_of_lists(tmp_path: Path) -> None:
    lists = [{**row, "images": {key: [i[key] for i in row["images"] or ()] for key in IMAGES[0]}} for row in REVIEWS]
    pq.write_table(pa.Table.from_pylist(REVIEWS), tmp_path / "objects.parquet")
    pq.write_table(pa.Table.from_pylist(lists), tmp_path / "lists.parquet")  # as on the Hub
    pd.DataFrame(REVIEWS).to_parquet(tmp_path / "pandas.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, REVIEWS)))
    duckdb.sql(
        f"COPY (SELECT * FROM read_json('{tmp_path / 'a.jsonl'}')) TO '{tmp_path / 'duckdb.parquet'}' (FORMAT parquet)"
    )
    rows = pd.DataFrame([{**row, "images": json.dumps(row["images"])} for row in REVIEWS])
    rows.to_csv(tmp_path / "cells.csv", index=False)
    for name in ("objects.parquet", "lists.parquet", "pandas.parquet", "duckdb.parquet", "a.jsonl", "cells.csv"):
        assert found(tmp_path / name) == EXPECTED, name


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_of_a_crawl_the_first_url_of_a_product_counts_in_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    rows = [
        {"type": "error", "asin": "B2", "locale": "us", "image": None},
        {"type": "product", "asin": "B1", "locale": "us", "image": "https://x.example/images/W/A_1-T1/images/I/1.jpg"},
        {"type": "product", "asin": "B1", "locale": "us", "image": "again"},
        {"type": "product", "asin": "B1", "locale": "es", "image": "es"},
        {"type": "product", "asin": "0060538260", "locale": None, "image": "any locale"},
    ]
    frame, path = pd.DataFrame(rows), tmp_path / f"esci-s.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    assert found(path) == ["any locale", "https://x.example/images/I/1.jpg", "es", None]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_table_that_contradicts_itself_is_refused(tmp_path: Path, name: str) -> None:
    frame, path = pd.DataFrame([("B1", "one"), ("B1", "two")], columns=["product_id", "image_url"]), tmp_path / name
    writers: dict[str, Any] = {
        "a.csv": lambda: frame.to_csv(path, index=False),
        "a.jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "a.parquet": lambda: frame.to_parquet(path),
    }
    writers[name]()
    with pytest.raises(DuplicateKeyError, match="'B1' with one and two"):
        found(path)


def test_urls_escaped_for_html_are_read_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("product_id,image_url\nB1,https://x.example/i?a=1&amp;b=2\nB2,u\n0060538260,v\n")
    with caplog.at_level(logging.INFO, logger="sqid_lib"):
        assert found(tmp_path / "a.csv")[1] == "https://x.example/i?a=1&b=2"
    assert "&amp; is read as & in 1 URLs" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [("X-B1", None, "u"), ("X-B2", None, "u"), ("X-0060538260", None, "u"), ("X-4", None, "u")],
            r"of 4 rows with an id, 0 are of the 4 products of this build\. In that file: 'X-B1', 'X-B2', "
            r"'X-0060538260'; in ESCI: such as '0060538260' \(us\), 'B1' \(us\), 'B1' \(es\)",
        ),
        (
            [("B2", None, "u"), ("b1", None, "u"), ("60538260", None, "u"), ("b9", None, "u")],
            "of 4 rows with an id, 1 are of the 4 products.*In that file: 'b1', '60538260', 'b9'; in ESCI",
        ),
        (
            [("B1", "US", "u"), ("B2", "US", "u"), ("0060538260", "US", "u")],
            r"0 are of the 4 products.*In that file: 'B1' \(US\), 'B2' \(US\), '0060538260' \(US\); in ESCI: such as",
        ),
        ([("B1", None, " "), ("B2", None, None)], "3 products of this build are in it, and none of them has an image"),
    ],
)
def test_a_table_that_hardly_matches_is_warned_of_with_examples_of_both_sides(
    tmp_path: Path, kind: str, rows: list[tuple[str, str | None, str | None]], said: str
) -> None:
    frame, path = pd.DataFrame(rows, columns=["product_id", "product_locale", "image_url"]), tmp_path / f"a.{kind}"
    frame = frame.dropna(axis="columns", how="all")
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    with pytest.warns(UserWarning, match=said):
        found(path)


def test_a_part_of_the_products_or_much_more_than_them_is_no_mismatch(tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("product_id,image_url\nB2,u\n")
    assert found(tmp_path / "few.csv") == [None, None, None, "u"]
    others = "".join(f"X{n},u\n" for n in range(1000))
    (tmp_path / "many.csv").write_text(f"product_id,image_url\nB2,u\n0060538260,v\n{others}")
    assert found(tmp_path / "many.csv") == ["v", None, None, "u"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", 'product_id,image_url\nB1,"u\nB2,v\nB3,w"\n', r"a\.csv, line 2: a cell with a line break"),
        ("a.csv", 'product_id,image_url\nB1,u\nB2,"v\nB3,w\n', "the quote that opens in line 3 is never closed"),
        ("a.jsonl", '{"product_id": "B1", "image_url": "u\\nv"}\n', "1 values of image_url have a line break"),
        ("a.jsonl", '{"product_id": "B1", "image_url": "\\ud800"}\n', "half a character"),
    ],
)
def test_a_line_break_within_a_cell_is_refused(tmp_path: Path, name: str, data: str, said: str) -> None:
    (tmp_path / name).write_text(data)
    with pytest.raises(CorruptFileError, match=said):
        found(tmp_path / name)


def test_a_line_break_within_a_value_of_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"product_id": ["B1", "B\n2"], "image_url": ["u", "v"]}), tmp_path / "a.parquet")
    with pytest.raises(CorruptFileError, match=r"1 values of product_id have a line break.*got 'B\\n2'"):
        found(tmp_path / "a.parquet")


def test_ids_as_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"product_id": 60538260, "image_url": "u"}\n')
    with pytest.raises(SchemaError, match=r"product_id of object 1 is not text; got 60538260\. Write ids as text"):
        found(tmp_path / "a.jsonl")
    pq.write_table(pa.table({"product_id": [60538260], "image_url": ["u"]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match="expected text, got int64"):
        found(tmp_path / "a.parquet")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_tables_over_http_need_no_further_package(
    tmp_path: Path, name: str, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for package in ("aiohttp", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, OBJECTS)))
    (tmp_path / "a.csv").write_text(PLAIN)
    pq.write_table(columns(lambda a: a), tmp_path / "a.parquet")
    with FileServer(tmp_path) as server:
        server.ranges = ranges
        assert found(f"{server.url}/{name}?X-Amz-Signature=s3cret") == URLS
        with pytest.raises(MissingFileError, match=r"127\.0\.0\.1.*gone"):
            found(f"{server.url}/gone-{name}")
