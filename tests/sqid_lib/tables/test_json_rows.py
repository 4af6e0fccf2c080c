"""JSON tables: arrays of objects and one object a line; what is neither is refused by line or object."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, EmptyFileError, HtmlPageError, SchemaError, SourceError
from sqid_lib.tables import reader
from sqid_lib.tables.json_rows import json_objects

URLS = schemas.URLS_FILE_SCHEMA
ROWS: list[dict[str, Any]] = [
    {"product_id": "007", "image_url": "https://x.example/ü.jpg", "rank": 1},
    {"product_id": " B2 ", "image_url": " "},
    {"product_id": "B3", "image_url": None},
]
EXPECTED = [("007", "https://x.example/ü.jpg"), ("B2", None), ("B3", None)]
LINES = "\r\n".join(json.dumps(row) for row in ROWS)
CAPITALS = LINES.replace("product_id", "PRODUCT_ID")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS, ensure_ascii=False).encode()),
        ("a.jsonl", LINES.encode()),
        ("a.ndjson", b"\n" + LINES.encode() + b"\n\n"),
        ("a.json", LINES.encode()),
        ("a.JSON", CAPITALS.encode()),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("a.json", json.dumps(ROWS).encode("utf-16")),
    ],
)
def test_arrays_and_lines_of_objects(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    table = reader.read_table(str(path), URLS)
    assert table.schema == URLS
    assert list(zip(*(column.to_pylist() for column in table.columns), strict=True)) == EXPECTED
    assert set(reader.column_names(str(path))) == {"product_id", "image_url", "rank"}


def test_what_pandas_writes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"query_id": [7.0, None], "source": ["other", None]})
    table.to_json(tmp_path / "a.json", orient="records")
    table.to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    with caplog.at_level(logging.INFO, logger="sqid_lib"):
        for name in ("a.json", "b.jsonl"):
            found = reader.read_table(str(tmp_path / name), schemas.SOURCES_SCHEMA)
            assert found.to_pylist() == [{"query_id": 7, "source": "other"}, {"query_id": None, "source": None}]
    assert "an array of objects" in caplog.text
    table.to_json(tmp_path / "c.json")
    with pytest.raises(CorruptFileError, match=r"an object of columns.*orient='records'"):
        reader.read_table(str(tmp_path / "c.json"), schemas.SOURCES_SCHEMA)


def test_lines_are_read_one_by_one_and_damage_is_named_when_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(b'{"product_id": "a"}\n\n{"product_id": "b"}\n{"product', mtime=0)
    )
    objects = json_objects(str(tmp_path / "a.jsonl.gz"))
    assert [next(objects), next(objects)] == [(1, {"product_id": "a"}), (3, {"product_id": "b"})]
    with pytest.raises(CorruptFileError, match="line 4 is not JSON"):
        next(objects)
    (tmp_path / "b.jsonl").write_bytes(b'{"product_id": "a"}\n{"product_id": "\xff"}\n')
    with pytest.raises(CorruptFileError, match="not JSON in UTF-8"):
        list(json_objects(str(tmp_path / "b.jsonl")))


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ('{"product_id": "a", "image_url": "b"}\n{"product_id": ', CorruptFileError, "line 2 is not JSON"),
        ('[{"product_id": "a"', CorruptFileError, "array is damaged"),
        ('[["a", "b"]]', CorruptFileError, "value 1 is no JSON object"),
        ('{"product_id": "a", "image_url": "b"}\n17\n', CorruptFileError, "value 2 is no JSON object"),
        ('{"product_id": 60538260, "image_url": "b"}', SchemaError, "product_id of object 1.*60538260.*zeros"),
        ('{"product_id": "a", "image_url": ["b"]}', SchemaError, "image_url of object 1"),
        ('{"product_id": "a\\nb", "image_url": "b"}', CorruptFileError, "product_id of object 1 has a line break"),
        ('{"product_id": "\\ud800", "image_url": "b"}', CorruptFileError, "half a character"),
        ('{"asin": "a", "image": "b"}', SchemaError, "'product_id' is missing.*got asin, image"),
        ("[" * 100_000, CorruptFileError, "damaged"),
        ("[]", EmptyFileError, "no rows"),
        ("<!doctype html>", HtmlPageError, "web page"),
        ("", EmptyFileError, "empty"),
    ],
)
def test_the_rest_is_refused_with_its_reason(tmp_path: Path, data: str, error: type[SourceError], said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(data)
    with pytest.raises(error, match=said) as raised:
        reader.read_table(str(path), URLS)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
