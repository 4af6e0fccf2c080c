"""Columns of every kind are read as the declared ones, or refused with expected and got."""

from __future__ import annotations

import decimal
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqid_lib import schemas
from sqid_lib.errors import SchemaError
from sqid_lib.tables import reader

QUERY_ID = pa.schema([("query_id", pa.int64())])
PRODUCT_ID = pa.schema([("product_id", pa.string())])


def read(tmp_path: Path, column: pa.Array, schema: pa.Schema) -> list[object]:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({schema.names[0]: column}), path)
    table = reader.read_parquet(str(path), schema)
    assert table.schema == schema
    values: list[object] = table.column(0).to_pylist()
    return values


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["0060538260", None], pa.large_string()),
        pa.array(["0060538260", None], pa.string_view()),
        pa.array([b"0060538260", None], pa.binary()),
        pa.array([b"0060538260", None], pa.large_binary()),
        pa.array([b"0060538260", None], pa.binary_view()),
        pa.array(["0060538260", None]).dictionary_encode(),
        pa.array([b"0060538260", None]).dictionary_encode(),
    ],
)
def test_text_of_every_kind(tmp_path: Path, column: pa.Array) -> None:
    assert read(tmp_path, column, PRODUCT_ID) == ["0060538260", None]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7.0, None]),
        pa.array([7.0, float("nan")]),
        pa.array([7.0, None], pa.float32()),
        pa.array([7.0, None]).dictionary_encode(),
        pa.array([decimal.Decimal("7.00"), None]),
        pa.array([7, None], pa.uint8()),
        pa.array([" 7 ", ""]),
        pa.array(["7.0", None]),
        pa.array([b"7", None]),
        pa.array(["7", None], pa.string_view()),
    ],
)
def test_whole_numbers_of_every_kind(tmp_path: Path, column: pa.Array) -> None:
    assert read(tmp_path, column, QUERY_ID) == [7, None]


@pytest.mark.parametrize(
    ("column", "schema", "said"),
    [
        (pa.array([7.5]), QUERY_ID, "'query_id' cannot be read as int64.*7.5"),
        (pa.array([2.0**60]), QUERY_ID, "too large to be exact"),
        (pa.array([float("inf")]), QUERY_ID, "too large to be exact"),
        (pa.array([decimal.Decimal("7.5")]), QUERY_ID, "cannot be read as int64"),
        (pa.array(["7x"]), QUERY_ID, "7x"),
        (pa.array([b"\xff"]), PRODUCT_ID, "'product_id' cannot be read as text.*UTF8"),
        (pa.array([60538260]), PRODUCT_ID, "expected text, got int64"),
        (pa.array([60538260.0]), PRODUCT_ID, "expected text, got double"),
    ],
)
def test_what_would_lose_something_is_refused(tmp_path: Path, column: pa.Array, schema: pa.Schema, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        read(tmp_path, column, schema)


def test_pandas_after_a_merge(tmp_path: Path) -> None:
    left = pd.DataFrame({"key": ["a", "b"]})
    merged = left.merge(pd.DataFrame({"key": ["a"], "query_id": [7]}), how="left", on="key")
    assert merged["query_id"].dtype == np.float64
    merged.to_parquet(tmp_path / "a.parquet")
    assert reader.read_parquet(str(tmp_path / "a.parquet"), QUERY_ID).column(0).to_pylist() == [7, None]


def test_the_index_of_pandas(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame({"product_id": ["a", "b"], "image_url": ["x", None]})
    frame.set_index("product_id").to_parquet(path)
    expected = [{"product_id": "a", "image_url": "x"}, {"product_id": "b", "image_url": None}]
    assert reader.read_parquet(str(path), schemas.URLS_FILE_SCHEMA).to_pylist() == expected
    frame[frame.product_id != "c"].to_parquet(path)
    assert reader.read_parquet(str(path), schemas.URLS_FILE_SCHEMA).to_pylist() == expected
    frame.set_index("product_id").rename_axis(None).to_parquet(path)
    with pytest.raises(SchemaError, match="index of that pandas table has no name"):
        reader.read_parquet(str(path), schemas.URLS_FILE_SCHEMA)


def test_spaces_around_ids_and_urls_are_left_out_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.parquet"
    table = {"product_id": ["a  ", "\tb", "\u00a0c", "d e", None], "image_url": ["x", " y", "", "ü", None]}
    pq.write_table(pa.table(table), path)
    with caplog.at_level(logging.INFO, logger="sqid_lib"):
        found = reader.read_table(str(path), schemas.URLS_FILE_SCHEMA).to_pydict()
    assert found == {"product_id": ["a", "b", "c", "d e", None], "image_url": ["x", "y", "", "ü", None]}
    assert "spaces around the values of product_id" in caplog.text and "image_url" in caplog.text
    caplog.clear()
    pq.write_table(pa.table({"product_id": ["d e", "é"], "image_url": ["x", "y"]}), path)
    with caplog.at_level(logging.INFO, logger="sqid_lib"):
        assert reader.read_table(str(path), schemas.URLS_FILE_SCHEMA).column(0).to_pylist() == ["d e", "é"]
    assert not caplog.text


def test_parquet_is_parquet_under_any_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.csv", "a.txt", "a.json", "a"):
        pq.write_table(pa.table({"query_id": [7]}), tmp_path / name)
        with caplog.at_level(logging.INFO, logger="sqid_lib"):
            assert reader.read_table(str(tmp_path / name), QUERY_ID).column(0).to_pylist() == [7]
            assert reader.column_names(str(tmp_path / name)) == ["query_id"]
    assert "a.csv: read as parquet" in caplog.text
