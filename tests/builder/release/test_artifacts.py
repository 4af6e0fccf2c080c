"""Builds from files as pandas, Spark and DuckDB write them give the same bytes; lost rows are refused."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_esci
from builds import FROM_ARTIFACTS, write_recipe
from tiny_esci import WIDTH, write_csv

from builder import pipeline, recipe
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, SchemaError

ESCI, FEATURES = (schemas.ESCI_EXAMPLES, schemas.ESCI_PRODUCTS), (schemas.PRODUCT_FEATURES, schemas.QUERY_FEATURES)
Rewrite = Callable[[Path], Any]


def build(root: Path) -> dict[str, bytes]:
    """The data files of a release."""
    release = pipeline.build(recipe.load(write_recipe(root, FROM_ARTIFACTS)), root / "work", only="sample")
    release = pipeline.build(recipe.load(write_recipe(root, FROM_ARTIFACTS)), root / "work", only="release")
    return {path.relative_to(release).as_posix(): path.read_bytes() for path in release.rglob("*.parquet")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("plain")
    tiny_esci.write_esci(root / "esci")
    tiny_esci.write_artifacts(root / "artifacts")
    return build(root)


def columns(change: Callable[[str, pa.Array], pa.Array]) -> Rewrite:
    """Rewrite a file with `change` of each column."""

    def rewrite(path: Path) -> None:
        table = pq.read_table(path)
        changed = {name: change(name, table[name].combine_chunks()) for name in table.column_names}
        pq.write_table(pa.table(changed), path)

    return rewrite


def texts(dtype: pa.DataType) -> Rewrite:
    return columns(lambda _, column: column.cast(dtype) if pa.types.is_string(column.type) else column)


def vectors(change: Callable[[list[Any]], pa.Array]) -> Rewrite:
    return columns(lambda name, column: change(column.to_pylist()) if "features" in name else column)


def tensors(rows: list[Any]) -> pa.Array:
    flat = np.array([row or [np.nan] * WIDTH for row in rows], np.float32)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(flat)


def pandas_index(path: Path) -> None:
    frame = pd.read_parquet(path)
    frame.set_index(frame.columns[0]).to_parquet(path)


def pandas_filtered(path: Path) -> None:  # __index_level_0__
    frame = pd.read_parquet(path)
    frame[frame.iloc[:, 0].notna()].iloc[::-1].to_parquet(path)


def with_duckdb(path: Path) -> None:
    names = [name for name in pq.read_schema(path).names if "features" in name]
    replaced = f"REPLACE ({', '.join(f'{name}::FLOAT[{WIDTH}] AS {name}' for name in names)})" if names else ""
    new = path.with_suffix(".new")
    duckdb.sql(f"COPY (SELECT * {replaced} FROM read_parquet('{path}')) TO '{new}' (FORMAT parquet)")
    new.replace(path)


@pytest.mark.parametrize(
    ("rewrite", "files"),
    [
        (texts(pa.string_view()), ESCI + FEATURES),
        (texts(pa.binary()), ESCI + FEATURES),  # Spark
        (texts(pa.dictionary(pa.int32(), pa.large_string())), ESCI + FEATURES),
        (columns(lambda _, c: c.cast(pa.float64()) if pa.types.is_integer(c.type) else c), ESCI + FEATURES),
        (pandas_index, ESCI + FEATURES),
        (pandas_filtered, ESCI + FEATURES),
        (with_duckdb, ESCI + FEATURES),
        (vectors(tensors), FEATURES),
        (vectors(lambda rows: pa.array([row and [row] for row in rows], pa.list_(pa.list_(pa.float32())))), FEATURES),
        (vectors(lambda rows: pa.array([row or [] for row in rows], pa.list_(pa.float64()))), FEATURES),
    ],
    ids=["view", "binary", "dictionary", "float ids", "index", "filtered", "DuckDB", "tensor", "1 x D", "empty"],
)
def test_the_same_rows_in_other_columns_give_the_same_release(
    tmp_path: Path, esci: Path, artifacts: Path, expected: dict[str, bytes], rewrite: Rewrite, files: tuple[str, ...]
) -> None:
    for name in files:
        rewrite((esci if name in ESCI else artifacts) / name)
    assert build(tmp_path) == expected


def test_the_same_rows_in_other_text_files_give_the_same_release(
    tmp_path: Path, esci: Path, artifacts: Path, expected: dict[str, bytes]
) -> None:
    path = esci / schemas.ESCI_SOURCES
    rows = path.read_text().replace("query_id,source", "# of ESCI\nQuery_ID;Source").replace(",", "; ")
    path.write_bytes(rows.replace("\n", "\r\n").encode("utf-16"))
    assert build(tmp_path) == expected
    frame = pd.read_csv(path, comment="#", sep=";", encoding="utf-16", skipinitialspace=True)
    frame.rename(columns=str.lower).to_parquet(path.with_suffix(".parquet"))
    path.unlink()
    path = artifacts / schemas.PRODUCT_URLS
    pd.read_csv(path, dtype=str, keep_default_na=False).to_csv(path.with_suffix(".tsv"), sep="\t", index=False)
    path.unlink()
    path = artifacts / schemas.SUPP_URLS
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    assert build(tmp_path) == expected


@pytest.mark.parametrize("name", [schemas.ESCI_SOURCES, schemas.PRODUCT_URLS])
def test_a_stray_quote_never_swallows_rows(tmp_path: Path, esci: Path, artifacts: Path, name: str) -> None:
    path = (esci if name == schemas.ESCI_SOURCES else artifacts) / name
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(",", ',"', 1)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptFileError, match=f"{name}: the quote that opens in line 3 .*rows would be lost"):
        build(tmp_path)
    path.write_text("\n".join([*lines[:4], lines[4] + '"', *lines[5:]]) + "\n")
    with pytest.raises(CorruptFileError, match=rf"{name}, line 3: a cell with a line break.*a quote too many"):
        build(tmp_path)


def test_image_urls_of_other_products_are_warned_of_with_examples_of_both_sides(
    tmp_path: Path, esci: Path, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_csv(artifacts / schemas.PRODUCT_URLS, {f"X-{i}": u for i, u in tiny_esci.image_urls().items()})
    build(tmp_path)
    assert "artifacts: of 35 rows of image URLs, 0 are of the 36 products of this build" in caplog.text
    assert "In that file: 'X-0060538260' (us), 'X-007' (us), 'X-B000000001' (us); in ESCI: such as" in caplog.text
    assert "supp products" not in caplog.text


def test_an_index_without_a_name_says_what_to_do(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    frame = pd.read_parquet(artifacts / schemas.QUERY_FEATURES).set_index("query_id").rename_axis(None)
    frame.to_parquet(artifacts / schemas.QUERY_FEATURES)
    with pytest.raises(SchemaError, match=r"'query_id' is missing.*reset_index\(\) before writing"):
        build(tmp_path)


def test_queries_of_another_encoder_are_refused(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    vectors(lambda rows: pa.array([row[:3] for row in rows]))(artifacts / schemas.QUERY_FEATURES)
    with pytest.raises(SchemaError, match=f"products and of queries differ in width; expected {WIDTH}, .* got 3. Make"):
        build(tmp_path)
