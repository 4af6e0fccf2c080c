"""The writers of a release: names, bytes, layout, failures, and the readers in common use."""

from __future__ import annotations

import csv
import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.release import files
from builder.release.files import write_classic_features, write_shards, write_urls
from sqid_lib import schemas
from sqid_lib.errors import CountError, SchemaError
from sqid_lib.files import shard_name

WIDTH = 16
QUERIES = schemas.config_schema(schemas.QUERIES, WIDTH)


def queries(rows: int, seed: int = 0) -> pa.Table:
    vectors = np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)
    text = pa.array([f"query {i}" for i in range(rows)], pa.string())
    return pa.table([pa.array(range(rows), pa.int64()), text, text, lists], schema=QUERIES)


def write(root: Path, table: pa.Table, pieces: int = 1, **options: Any) -> list[Path]:
    cuts = np.linspace(0, table.num_rows, pieces + 1).astype(int)
    tables = (table.slice(a, b - a) for a, b in itertools.pairwise(cuts))
    return write_shards(root, schemas.QUERIES, "test", tables, QUERIES, rows=table.num_rows, **options)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_names_and_rows(tmp_path: Path) -> None:
    table = queries(10_000)
    paths = write(tmp_path, table, max_shard_bytes=300_000)
    count = len(paths)
    assert count > 1
    assert paths == [tmp_path / shard_name(schemas.QUERIES, "test", i, count) for i in range(count)]
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == paths
    assert all(path.stat().st_size <= 300_000 for path in paths)
    assert pa.concat_tables([pq.read_table(path) for path in paths]).equals(table)


@settings(max_examples=10, deadline=None)
@given(pieces=st.integers(1, 40))
def test_the_bytes_do_not_depend_on_how_the_rows_arrive(tmp_path_factory: pytest.TempPathFactory, pieces: int) -> None:
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    table = queries(5_000)
    write(whole, table, max_shard_bytes=150_000)
    write(cut, table, pieces=pieces, max_shard_bytes=150_000)
    assert digests(whole) == digests(cut)


def test_metadata_of_datasets_is_dropped(tmp_path: Path) -> None:
    table = queries(10).replace_schema_metadata({"huggingface": "{}", "pandas": "{}"})
    (path,) = write(tmp_path, table)
    assert pq.read_schema(path).metadata is None
    assert pq.read_schema(path).equals(QUERIES)


def test_layout(tmp_path: Path) -> None:
    (path,) = write(tmp_path, queries(6_000))
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [2_048, 2_048, 6_000 - 2 * 2_048]
    for i in range(metadata.num_columns):
        column = metadata.row_group(0).column(i)
        assert column.compression == "ZSTD"
        assert column.has_column_index is (not column.path_in_schema.startswith("clip")) or column.has_offset_index
    vectors = metadata.row_group(0).column(3)
    assert "BYTE_STREAM_SPLIT" in vectors.encodings


def test_the_smaller_encoding_of_vectors_is_taken(tmp_path: Path) -> None:
    table = queries(4_000)
    few = table["clip_text_features"].take(pa.array(np.random.default_rng(0).integers(0, 4, size=4_000)))
    (path,) = write(tmp_path, table.set_column(3, QUERIES.field(3), few))
    plain = pq.read_metadata(path).row_group(0).column(3)
    assert "BYTE_STREAM_SPLIT" not in plain.encodings


def test_row_groups_of_long_texts_are_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_GROUP_BYTES", 100_000)
    schema = pa.schema([("product_id", pa.string()), ("product_title", pa.string())])
    table = pa.table([[f"{i:05d}" for i in range(500)], ["x" * 1_000] * 500], schema=schema)
    (path,) = write_shards(tmp_path, schemas.SUPP, "train", [table], schema, rows=500)
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups > 1
    assert all(metadata.row_group(i).total_byte_size <= 100_000 for i in range(metadata.num_row_groups))
    assert pq.read_table(path).equals(table)


@pytest.mark.parametrize("tables", [[], [queries(0)], [queries(0), queries(0)]])
def test_no_rows_make_one_file(tmp_path: Path, tables: list[pa.Table]) -> None:
    (path,) = write_shards(tmp_path, schemas.QUERIES, "test", tables, QUERIES, rows=0)
    assert path.name == "test-00000-of-00001.parquet"
    assert pq.read_table(path).equals(QUERIES.empty_table())


def test_a_shorter_release_leaves_no_shard_of_a_longer_one(tmp_path: Path) -> None:
    write(tmp_path, queries(10_000), max_shard_bytes=300_000)
    assert [p.name for p in write(tmp_path, queries(10))] == ["test-00000-of-00001.parquet"]
    assert len(list((tmp_path / "data" / schemas.QUERIES).iterdir())) == 1


def test_another_number_of_rows_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CountError, match=r"query_features.*expected 11, got 10"):
        write_shards(tmp_path, schemas.QUERIES, "test", [queries(10)], QUERIES, rows=11)
    assert digests(tmp_path) == {}


def test_a_failure_in_the_middle_keeps_the_earlier_release(tmp_path: Path) -> None:
    write(tmp_path, queries(100))
    before = digests(tmp_path)

    def broken() -> Any:
        yield queries(3_000)
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        write_shards(tmp_path, schemas.QUERIES, "test", broken(), QUERIES, rows=3_000)
    assert digests(tmp_path) == before


def test_a_missing_column_and_a_wrong_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="columns are missing"):
        write_shards(tmp_path, schemas.QUERIES, "test", [queries(3).drop_columns(["query"])], QUERIES, rows=3)
    wrong = queries(3).set_column(0, "query_id", pa.array(["a", "b", "c"]))
    with pytest.raises(SchemaError, match="wrong type"):
        write_shards(tmp_path, schemas.QUERIES, "test", [wrong], QUERIES, rows=3)
    assert digests(tmp_path) == {}


# -- the published files ----------------------------------------------------------------------------------------------

IDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1)
URLS = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1))


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(IDS, URLS), max_size=8))
def test_urls_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | None]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / schemas.PRODUCT_URLS
    table = pa.table([[r[0] for r in rows], [r[1] for r in rows]], schema=schemas.URLS_FILE_SCHEMA)
    assert write_urls(path, [table]) == len(rows)
    with path.open(encoding="utf-8", newline="") as file:
        head, *found = csv.reader(file, strict=True)
    assert head == ["product_id", "image_url"]
    assert [(row[0], row[1] or None) for row in found] == rows


def test_urls_are_quoted_only_where_needed(tmp_path: Path) -> None:
    url = 'https://m.media-amazon.com/images/I/a%7C"b",c._AC_SX425_.jpg'
    table = pa.table([["B1", "B2", "B3"], ["https://x.example/1.jpg", None, url]], schema=schemas.URLS_FILE_SCHEMA)
    write_urls(tmp_path / "urls.csv", [table.slice(0, 1), table.slice(1)])
    quoted = '"' + url.replace('"', '""') + '"'
    expected = f"product_id,image_url\nB1,https://x.example/1.jpg\nB2,\nB3,{quoted}\n"
    assert (tmp_path / "urls.csv").read_bytes() == expected.encode()


def test_classic_features_are_variable_lists_with_nulls(tmp_path: Path) -> None:
    table = queries(5_000).select(["query_id", "clip_text_features"])
    ids = pa.array([str(i) for i in range(5_000)])
    image = pa.array([None if i % 2 else [float(i)] * WIDTH for i in range(5_000)], pa.list_(pa.float32()))
    products = pa.table(
        [ids, table["clip_text_features"], image], names=schemas.classic_features_schema("product").names
    )
    assert write_classic_features(tmp_path / "q.parquet", "query", [table]) == 5_000
    assert write_classic_features(tmp_path / "p.parquet", "product", [products.slice(0, 7), products.slice(7)]) == 5_000
    assert pq.read_schema(tmp_path / "q.parquet").equals(schemas.classic_features_schema("query"))
    back = pq.read_table(tmp_path / "p.parquet")
    assert back.schema.equals(schemas.classic_features_schema("product"))
    assert back["clip_image_features"].to_pylist() == image.to_pylist()
    assert back["clip_text_features"].to_pylist() == table["clip_text_features"].to_pylist()


def test_a_failed_classic_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    path.write_bytes(b"before")
    with pytest.raises(SchemaError):
        write_classic_features(path, "query", [queries(3).select(["query_id"])])
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


# -- readers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("readers"), queries(5_000), max_shard_bytes=150_000)


def expected_sum() -> float:
    vectors = queries(5_000)["clip_text_features"].combine_chunks().flatten().to_numpy()
    return float(vectors.astype(np.float64).sum())


@pytest.mark.compat
def test_read_by_datasets(shards: list[Path], tmp_path: Path) -> None:
    import datasets

    files = {"test": [str(path) for path in shards]}
    loaded = datasets.load_dataset("parquet", data_files=files, split="test", cache_dir=str(tmp_path))
    assert loaded.num_rows == 5_000
    assert loaded.features == schemas.config_features(schemas.QUERIES, WIDTH)
    rows = loaded.with_format("numpy")[:]["clip_text_features"]
    assert rows.dtype == np.float32
    assert float(rows.astype(np.float64).sum()) == pytest.approx(expected_sum())
    streamed = datasets.load_dataset("parquet", data_files=files, split="test", streaming=True, cache_dir=str(tmp_path))
    assert next(iter(streamed)) == loaded[0]


def test_read_by_pandas(shards: list[Path]) -> None:
    import pandas as pd

    frame = pd.concat([pd.read_parquet(path) for path in shards])
    assert list(frame.columns) == QUERIES.names
    total = np.stack(frame["clip_text_features"].to_list()).astype(np.float64).sum()
    assert float(total) == pytest.approx(expected_sum())


def test_read_by_polars(shards: list[Path]) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(shards)
    assert frame.schema["clip_text_features"] == polars.Array(polars.Float32, WIDTH)
    assert frame.height == 5_000
    assert float(frame["clip_text_features"].to_numpy().astype(np.float64).sum()) == pytest.approx(expected_sum())


def test_read_by_duckdb(shards: list[Path]) -> None:
    duckdb = pytest.importorskip("duckdb")
    names = [str(path) for path in shards]
    query = "select count(*), sum(list_sum(clip_text_features)) from read_parquet($names)"
    with duckdb.connect() as connection:
        count, total = connection.execute(query, {"names": names}).fetchone()
    assert count == 5_000
    assert total == pytest.approx(expected_sum())


def test_a_shard_of_many_row_groups_has_room_for_its_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TEXT_GROUP_ROWS", 32)
    rows = [{"product_id": f"{i:06d}", "product_locale": "us", "product_title": f"{i} " * 60} for i in range(6_000)]
    schema = schemas.config_schema(schemas.URLS)
    table = pa.Table.from_pylist(rows, schema)
    paths = write_shards(tmp_path, schemas.URLS, "test", [table], schema, rows=6_000, max_shard_bytes=300_000)
    assert all(path.stat().st_size <= 300_000 for path in paths) and len(paths) > 1
    assert all(path.stat().st_size > 200_000 for path in paths[:-1])
    assert pa.concat_tables([pq.read_table(path) for path in paths]).equals(table)
