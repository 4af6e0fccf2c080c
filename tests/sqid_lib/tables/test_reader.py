"""Untrusted tables: each way a file can be wrong has its own clear error."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqid_lib import schemas
from sqid_lib.errors import (
    CorruptFileError,
    DiskError,
    EmptyFileError,
    HtmlPageError,
    LfsPointerError,
    MissingFileError,
    SchemaError,
    SourceError,
)
from sqid_lib.files import File
from sqid_lib.tables import reader
from sqid_lib.tables.content import reporting

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
URLS = schemas.URLS_FILE_SCHEMA


def parquet(path: Path) -> bytes:
    rows = [{"product_id": f"B{i}", "image_url": f"https://x.example/{i}.jpg"} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows, URLS), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (POINTER, LfsPointerError, "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", HtmlPageError, "web page"),
        (b"\n <HTML>\n", HtmlPageError, "web page"),
        (b"", EmptyFileError, "empty"),
        (b"PK\x03\x04\0\0\0\0 a zip archive", CorruptFileError, "Excel workbook or another archive"),
    ],
)
def test_a_file_that_is_no_table_is_named_for_what_it_is(
    tmp_path: Path, name: str, data: bytes, error: type[SourceError], said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(error) as raised:
        reader.read_table(str(path), URLS)
    assert said in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_pointer_from_githubs_raw_host_names_the_media_address(tmp_path: Path) -> None:
    path = tmp_path / "download"
    path.write_bytes(POINTER)
    url = "https://raw.githubusercontent.com/O/R/main/a.parquet"
    with pytest.raises(LfsPointerError, match=r"https://media\.githubusercontent\.com/media/O/R/main/a\.parquet"):
        reader.read_parquet(File(url, path=str(path)), URLS)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        reader.read_table(str(tmp_path / "nowhere.parquet"), URLS)
    with pytest.raises(SourceError, match="directory"):
        reader.read_parquet(str(tmp_path), URLS)


@pytest.mark.parametrize("kept", [5, 13, 700, -1, -5])
def test_a_truncated_parquet(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(path)[:kept])
    with pytest.raises(CorruptFileError, match="truncated"):
        reader.read_parquet(str(path), URLS)


def test_a_parquet_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    data = bytearray(parquet(path))
    data[20 : len(data) - 400] = b"\xff" * (len(data) - 420)
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="damaged"):
        reader.read_parquet(str(path), URLS)


def test_a_parquet_whose_writer_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    data = parquet(path)
    path.write_bytes(data.replace(b"parquet-cpp-arrow", b"\x80arquet-cpp-arrow"))
    with pytest.raises(CorruptFileError, match=r"a\.parquet.*damaged"):
        reader.read_parquet(str(path), URLS)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("product_id", pa.array([60538260]), "text"),
        ("query_id", pa.array(["12a"]), "int64"),
        ("query_id", pa.array([1.5]), "int64"),
        ("clip_text_features", pa.array(["0.1 0.2"]), "list of float32"),
        ("clip_text_features", pa.array([[1, 2]]), "list of float32"),
    ],
)
def test_a_wrong_type_reports_expected_and_got(tmp_path: Path, column: str, values: pa.Array, said: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({column: values}), path)
    types = {"product_id": pa.string(), "query_id": pa.int64(), "clip_text_features": pa.list_(pa.float32())}
    with pytest.raises(SchemaError) as raised:
        reader.read_parquet(str(path), pa.schema([(column, types[column])]))
    assert column in str(raised.value) and said in str(raised.value)


def test_a_missing_column_reports_the_columns_there_are(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        path = tmp_path / name
        if name == "a.csv":
            path.write_text("asin,image_url\nB1,x\n")
        else:
            pq.write_table(pa.table({"asin": ["B1"], "image_url": ["x"]}), path)
        with pytest.raises(SchemaError, match=r"'product_id' is missing.*got asin, image_url"):
            reader.read_table(str(path), URLS)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([7, 8], pa.int32()),
        pa.array([7, 8], pa.uint64()),
        pa.array(["7", "8"]),
        pa.array(["7", "8"], pa.large_string()),
        pa.array([7, 8]).dictionary_encode(),
    ],
)
def test_query_ids_of_many_types_are_read_as_int64(tmp_path: Path, values: pa.Array) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query_id": values}), path)
    table = reader.read_parquet(str(path), pa.schema([("query_id", pa.int64())]))
    assert table.column(0).type == pa.int64() and table.column(0).to_pylist() == [7, 8]


def test_csv_cells_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbfproduct_id,image_url\r\n0060538260,\r\nnan,http://x/1\r\nNA,""\r\n1e5,"http://x/a,b"\r\nnull,None\r\n'
    )
    table = reader.read_csv(str(path), URLS)
    assert table.column("product_id").to_pylist() == ["0060538260", "nan", "NA", "1e5", "null"]
    assert table.column("image_url").to_pylist() == [None, "http://x/1", None, "http://x/a,b", "None"]
    assert reader.column_names(str(path)) == ["product_id", "image_url"]


def test_a_csv_with_a_broken_row_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("product_id,image_url\nB1,http://x\nB2,http://x,more\n")
    with pytest.raises(CorruptFileError, match="Expected 2 columns, got 3"):
        reader.read_csv(str(path), URLS)


def test_latin1_is_reported_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"product_id,image_url\nB\xe9,http://x\n")
    with pytest.raises(CorruptFileError, match=r"(?i)utf"):
        reader.read_csv(str(path), URLS)


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), DiskError, "cannot be read.*Too many open files.*ulimit -n"),
        (OSError(errno.EACCES, "Permission denied"), DiskError, "cannot be read.*permissions"),
        (OSError(errno.EIO, "Input/output error"), CorruptFileError, "damaged"),
        (pa.ArrowInvalid("Expected all lists to be of size=8 but"), SchemaError, "Install pyarrow 26"),
    ],
)
def test_a_fault_of_the_machine_is_not_damage(error: Exception, raised: type[Exception], words: str) -> None:
    with pytest.raises(raised, match=words), reporting("table.parquet"):
        raise error
