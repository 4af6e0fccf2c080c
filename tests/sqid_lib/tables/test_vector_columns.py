"""Vectors as every program writes them: one meaning for missing, one error for what is neither whole nor missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqid_lib import schemas
from sqid_lib.errors import ContractError, CorruptFileError, MissingExtraError, SchemaError
from sqid_lib.files import File
from sqid_lib.tables import reader
from sqid_lib.tables.vector_columns import read_pages, read_vectors, vector_width

WIDTH = 3
VECTORS: list[list[float] | None] = [[1.0, 2.0, 3.0], None, [-4.0, 0.5, 6.0], [0.25, 8.0, 9.0]]
IDS = ["0060538260", "B2", "nan", "B4"]
SCHEMA = pa.schema([("product_id", pa.string()), ("v", pa.list_(pa.float32()))])


def with_pyarrow(dtype: pa.DataType, missing: Any = None) -> Callable[[Path], None]:
    rows = [missing if vector is None else vector for vector in VECTORS]
    return lambda path: pq.write_table(
        pa.table({"product_id": IDS, "v": pa.array(rows, dtype)}), path, row_group_size=3
    )


def tensor(path: Path, shape: tuple[int, ...] = (WIDTH,)) -> None:
    storage = pa.array(VECTORS, pa.list_(pa.float32(), WIDTH))
    column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), shape), storage)
    pq.write_table(pa.table({"product_id": IDS, "v": column}), path, row_group_size=3)


def with_pandas(path: Path, missing: Any = None, nested: bool = False, index: bool = False) -> None:
    arrays = [missing if v is None else np.array(v, np.float32) for v in VECTORS]
    values = [a if a is None or not nested else [a] for a in arrays]
    frame = pd.DataFrame({"product_id": IDS, "v": values})
    (frame.set_index("product_id") if index else frame).to_parquet(path)


def with_polars(path: Path, array: bool) -> None:
    pl = pytest.importorskip("polars")
    dtype = pl.Array(pl.Float32, WIDTH) if array else pl.List(pl.Float64)
    ids = pl.Series(IDS, dtype=pl.Categorical)
    pl.DataFrame({"product_id": ids, "v": pl.Series(VECTORS, dtype=dtype)}).write_parquet(path)


def with_duckdb(path: Path, dtype: str, options: str = "") -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = ", ".join(
        f"({n}, '{i}', {'NULL' if v is None else v}::{dtype})"
        for n, (i, v) in enumerate(zip(IDS, VECTORS, strict=True))
    )
    table = f"SELECT product_id, v FROM (VALUES {rows}) AS t(n, product_id, v) ORDER BY n"
    duckdb.sql(f"COPY ({table}) TO '{path}' (FORMAT parquet{options})")


FILES: dict[str, Callable[[Path], None]] = {
    "list": with_pyarrow(pa.list_(pa.float32())),
    "large list of double": with_pyarrow(pa.large_list(pa.float64())),
    "half floats": with_pyarrow(pa.list_(pa.float16())),
    "fixed": with_pyarrow(pa.list_(pa.float32(), WIDTH)),
    "empty list": with_pyarrow(pa.list_(pa.float32()), missing=[]),
    "NaN throughout": with_pyarrow(pa.list_(pa.float32()), missing=[float("nan")] * WIDTH),
    "fixed NaN": with_pyarrow(pa.list_(pa.float64(), WIDTH), missing=[float("nan")] * WIDTH),
    "tensor": tensor,
    "tensor of one row": lambda path: tensor(path, (1, WIDTH)),
    "pandas": with_pandas,
    "pandas NaN": lambda path: with_pandas(path, np.full(WIDTH, np.nan, np.float32)),
    "pandas empty": lambda path: with_pandas(path, np.array([], np.float32)),
    "pandas (1, D)": lambda path: with_pandas(path, nested=True),
    "pandas index": lambda path: with_pandas(path, index=True),
    "polars list": lambda path: with_polars(path, array=False),
    "polars array": lambda path: with_polars(path, array=True),
    "duckdb list": lambda path: with_duckdb(path, "FLOAT[]"),
    "duckdb array": lambda path: with_duckdb(path, f"FLOAT[{WIDTH}]"),
    "duckdb double array": lambda path: with_duckdb(path, f"DOUBLE[{WIDTH}]", ", COMPRESSION zstd"),
    "duckdb uncompressed": lambda path: with_duckdb(path, f"FLOAT[{WIDTH}]", ", COMPRESSION uncompressed"),
    "duckdb version 2": lambda path: with_duckdb(path, f"FLOAT[{WIDTH}]", ", PARQUET_VERSION V2"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_writers_vectors_are_read_alike(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    FILES[name](path)
    assert vector_width([File(str(path))], ["v"]) == WIDTH
    expected = np.array([vector or [0] * WIDTH for vector in VECTORS], np.float32)
    with reader.open_parquet(str(path), SCHEMA) as parquet:
        whole = parquet.read(columns=["product_id", "v"])
        batches = pa.Table.from_batches(list(parquet.iter_batches(2, columns=["v"])))
        groups = [parquet.read_row_group(group, columns=["v"]) for group in range(parquet.num_row_groups)]
    for table in (whole, batches, pa.concat_tables(groups)):
        found, valid = read_vectors(table, "v", WIDTH, str(path))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(valid, [vector is not None for vector in VECTORS])
    ids = reader.conform(whole, pa.schema([("product_id", pa.string())]), str(path))
    assert ids.column(0).to_pylist() == IDS


@settings(max_examples=60, deadline=None)
@given(
    missing=st.lists(st.booleans(), min_size=1, max_size=3_000),
    width=st.integers(1, 9),
    distinct=st.sampled_from([1, 3, 1_000_000]),
    seed=st.integers(0, 9),
    options=st.sampled_from(
        ["", ", COMPRESSION zstd, PARQUET_VERSION V2", ", COMPRESSION gzip", ", ROW_GROUP_SIZE 2048"]
    ),
    dtype=st.sampled_from(["FLOAT", "DOUBLE"]),
)
def test_null_arrays_of_duckdb(
    tmp_path_factory: pytest.TempPathFactory,
    missing: list[bool],
    width: int,
    distinct: int,
    seed: int,
    options: str,
    dtype: str,
) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path_factory.mktemp("d") / "a.parquet"
    numbers = np.random.default_rng(seed).integers(0, distinct, (len(missing), width))
    rows = pa.table(
        {
            "n": np.arange(len(missing)),
            "v": pa.array(
                [None if m else v for m, v in zip(missing, numbers.tolist(), strict=True)], pa.list_(pa.int64())
            ),
        }
    )
    connection = duckdb.connect()
    connection.register("given", rows)
    connection.sql(
        f"COPY (SELECT v::{dtype}[{width}] AS v, n FROM given ORDER BY n) TO '{path}' (FORMAT parquet{options})"
    )
    with reader.open_parquet(str(path)) as parquet:
        table = parquet.read()
    found, valid = read_vectors(table, "v", width, "a.parquet")
    np.testing.assert_array_equal(valid, ~np.array(missing))
    np.testing.assert_array_equal(found, np.where(valid[:, None], numbers, 0).astype(np.float32))
    assert table.column("n").to_pylist() == list(range(len(missing)))


def test_a_damaged_file_of_duckdb_names_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with_duckdb(path, f"FLOAT[{WIDTH}]", ", COMPRESSION uncompressed")
    start = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"a\.parquet: the NULL arrays of DuckDB cannot be read.*got v"):
        reader.read_parquet(str(path), SCHEMA)


def test_null_arrays_without_duckdb_name_both_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    with_duckdb(path, f"FLOAT[{WIDTH}]")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match=r"in v of .*sqid\[duckdb\].*REPLACE \(v::FLOAT\[\] AS v\)"):
        reader.read_parquet(str(path), SCHEMA)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        ([1.0, NAN, 3.0], ContractError, "is not finite: NaN beside numbers.*got 1 such rows, the first is row 102"),
        (
            [1.0, INF, 3.0],
            ContractError,
            "is not finite: infinity beside numbers.*got 1 such rows, the first is row 102",
        ),
        ([-INF] * 3, ContractError, "infinity beside numbers"),
        ([NAN, NAN, INF], ContractError, "NaN beside numbers"),
        ([1.0, None, 3.0], ContractError, "a vector holds a null beside numbers.*the first is row 102"),
        ([1.0, 2.0], SchemaError, r"differ in width; expected 3, got \[2\], first in row 102"),
        ([1e300, 0.0, 0.0], ContractError, "infinity"),  # too large for float32
    ],
)
def test_a_vector_that_is_neither_whole_nor_missing_is_named(
    bad: list[float], error: type[Exception], said: str
) -> None:
    rows = [[1.0, 2.0, 3.0], None, bad, [NAN] * 3, []]
    table = pa.table({"v": pa.array(rows, pa.list_(pa.float64()))})
    with pytest.raises(error, match=rf"a\.parquet: v: .*{said}"):
        read_vectors(table, "v", 3, "a.parquet", first=100)


def test_large_numbers_are_numbers() -> None:
    found, valid = read_vectors(pa.table({"v": [[3e38, 3e38], [-3e38, -3e38]]}), "v", 2, "x")
    assert valid.all() and np.isfinite(found).all()


def test_several_vectors_in_a_row_are_an_error() -> None:
    with pytest.raises(SchemaError, match="a row holds 2 vectors"):
        read_vectors(pa.table({"v": [[[1.0, 2.0], [3.0, 4.0]]]}), "v", 2, "x")


@pytest.mark.parametrize("first", [[1.0], [1.0] * 5])
def test_a_first_vector_of_another_length_is_the_one_that_is_wrong(tmp_path: Path, first: list[float]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"v": [first, *([[1.0, 2.0, 3.0]] * 5)]}), path)
    width = vector_width([File(str(path))], ["v"])
    assert width == 3
    with pytest.raises(SchemaError, match=rf"expected 3, got \[{len(first)}\], first in row 0"):
        read_vectors(pq.read_table(path), "v", width, "a.parquet")


def test_a_column_without_any_vector(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"v": pa.nulls(3), "w": [[], [], []]}), path)
    found, valid = read_vectors(pq.read_table(path), "v", 2, "x")
    assert found.shape == (3, 2) and not valid.any()
    with pytest.raises(CorruptFileError, match="no row of the file has a vector"):
        vector_width([File(str(path))], ["v"])
    assert schemas.VECTOR_COLUMNS


def test_pages_of_vectors_are_read_as_pyarrow_reads_them_or_not_at_all(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.parquet", 40
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 16, dtype=np.float32)), 16)
    table = pa.table({"vector": lists, "list": lists.cast(pa.list_(pa.float32())), "text": ["t"] * rows})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=30)
    metadata = pq.read_metadata(path)
    assert lists.slice(30).equals(read_pages(path, metadata, 1, "vector", 10 * 16 * 4))
    assert read_pages(path, metadata, 1, "vector", 10 * 16 * 4 - 1) is None  # more bytes than the limit
    assert read_pages(path, metadata, 0, "list", 1 << 20) is None
    assert read_pages(path, metadata, 0, "text", 1 << 20) is None
    pq.write_table(table, path, compression="snappy", use_dictionary=False)
    assert read_pages(path, pq.read_metadata(path), 0, "vector", 1 << 20) is None  # pyarrow has to read those pages
