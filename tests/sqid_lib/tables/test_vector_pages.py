"""Vectors page by page: the same bits as pyarrow's, or UnusualPages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqid_lib.tables.vector_pages import UnusualPages, fill_vectors

NAME, ROWS = "clip_text_features", 300


def write(path: Path, width: int = 64, nullable: bool = True, **options: Any) -> np.ndarray:
    """A column of vectors as a release has them, in row groups of 200; returns the vectors."""
    matrix = np.random.default_rng(0).standard_normal((ROWS, width), np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), width)
    field = pa.field(NAME, pa.list_(pa.field("element", pa.float32(), nullable), width), nullable)
    table = pa.table([pa.array(range(ROWS)), lists.cast(field.type)], schema=pa.schema([("id", pa.int64()), field]))
    settings = {"compression": "zstd", "use_dictionary": False, "row_group_size": 200, **options}
    pq.write_table(table, path, **settings)
    return matrix


def read(path: Path, width: int = 64, every: int = 1, dtype: str = "float32") -> np.ndarray:
    """The vectors of every `every`-th row."""
    metadata, parts = pq.ParquetFile(path).metadata, []
    for group in range(metadata.num_row_groups):
        rows = np.arange(0, metadata.row_group(group).num_rows, every)
        parts.append(np.full((len(rows), width), 7, dtype))
        fill_vectors(path, metadata, group, NAME, rows, parts[-1])
    return np.concatenate(parts)


@pytest.mark.parametrize("encoding", ["split", "plain"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "none"},
        {"data_page_size": 5_000},
        {"use_content_defined_chunking": True, "write_page_checksum": True},
        {"nullable": False},
        {"width": 16},
        {"width": 768},
    ],
    ids=str,
)
def test_the_same_bits(tmp_path: Path, options: dict[str, Any], encoding: str) -> None:
    path, split = tmp_path / "a.parquet", f"{NAME}.list.element"
    matrix = write(path, **options, use_byte_stream_split=[split] if encoding == "split" else False)
    assert read(path, options.get("width", 64)).tobytes() == matrix.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("every", [1, 2, 150, 199])
def test_some_rows(tmp_path: Path, every: int, dtype: str) -> None:
    matrix = write(tmp_path / "a.parquet", data_page_size=5_000)
    chosen = np.concatenate([matrix[:200:every], matrix[200::every]]).astype(dtype)
    assert read(tmp_path / "a.parquet", 64, every, dtype).tobytes() == chosen.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_a_value_that_is_not_finite_is_left_to_pyarrow(tmp_path: Path, value: float) -> None:
    """Also in a row that is not asked for: a store finds it as well."""
    matrix = np.ones((9, 64), np.float32)
    matrix[3, 5] = value
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 64)
    pq.write_table(pa.table({NAME: lists}), tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    with pytest.raises(UnusualPages):
        read(tmp_path / "a.parquet", 64, 2, "float16")
    if value == 1e5:
        assert read(tmp_path / "a.parquet").tobytes() == matrix.tobytes()


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({"use_dictionary": True}, 64),
        ({"data_page_version": "2.0"}, 64),
        ({"compression": "snappy"}, 64),
        ({"width": 20}, 20),
        ({"width": 8}, 8),
        ({}, 32),
    ],
    ids=str,
)
def test_other_pages_are_left_to_pyarrow(tmp_path: Path, options: dict[str, Any], width: int) -> None:
    write(tmp_path / "a.parquet", **options)
    with pytest.raises(UnusualPages):
        read(tmp_path / "a.parquet", width)


@pytest.mark.parametrize("missing", ["list", "float", "short"])
def test_a_null_or_another_length_is_left_to_pyarrow(tmp_path: Path, missing: str) -> None:
    rows: list[Any] = [[1.0] * 64 for _ in range(90)]
    rows[70] = None if missing == "list" else [None, *rows[70][1:]] if missing == "float" else rows[70][1:]
    rows[71] = [1.0] * 65 if missing == "short" else rows[71]  # as many floats as there should be
    table = pa.table({NAME: pa.array(rows, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    with pytest.raises(UnusualPages):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("at", [0, 1, 5, 40, 3_000, -1])
def test_damage_is_left_to_pyarrow(tmp_path: Path, at: int) -> None:
    """Any change of a page: its header, its levels, or floats under a checksum."""
    path = tmp_path / "a.parquet"
    write(path, use_byte_stream_split=False, write_page_checksum=True)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset + (at if at >= 0 else chunk.total_compressed_size + at)
    data[start] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UnusualPages):
        read(path)


@pytest.mark.parametrize(
    "header",
    [b"\x1c" * 4096, b"\x15\x00\x15\x80\x80\x80\x80\x40\x15\x10\x51\x00", b"\xff" * 4096, b"\x80" * 4096],
    ids=["deep", "a flag for a page", "an unknown type", "a number without an end"],
)
def test_made_up_headers_are_left_to_pyarrow(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.parquet"
    write(path, compression="none")
    metadata = pq.ParquetFile(path).metadata
    data = bytearray(path.read_bytes())
    start = metadata.row_group(0).column(1).data_page_offset
    data[start : start + len(header)] = header
    path.write_bytes(data)
    with pytest.raises(UnusualPages):
        fill_vectors(path, metadata, 0, NAME, np.arange(70), np.empty((70, 64), np.float32))
