"""The four published files against the joined configs: the same products, URLs and vectors."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.release.manifest import Manifest
from builder.validate.problem import Problem
from builder.validate.rows import Scan
from builder.validate.vectors import hashes
from sqid_lib import schemas
from sqid_lib.errors import first_line

CONFIG_OF = {
    schemas.PRODUCT_URLS: schemas.URLS,
    schemas.SUPP_URLS: schemas.SUPP,
    schemas.PRODUCT_FEATURES: schemas.FEATURES,
    schemas.QUERY_FEATURES: schemas.QUERIES,
}
_COMPARED = {
    schemas.URLS: ("image_url",),
    schemas.SUPP: ("image_url",),
    schemas.FEATURES: ("hash clip_text_features", "hash clip_image_features"),
    schemas.QUERIES: ("hash clip_text_features",),
}
_LOCALE = "product_locale"  # a second column where ids of several locales would be ambiguous
_BATCH_ROWS = 8_192

Row = tuple[Any, tuple[Any, ...]]  # a query id, or product id and locale; the URL, or hashes of vectors
Rows = dict[Any, tuple[Any, ...]]


def check_classic(release: Path, name: str, stated: Manifest | None, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """One published file; it may be absent unless the recipe in the manifest asks for it, and has rows for it."""
    if not (release / name).is_file():
        if stated and stated.of_catalogue and not scans[CONFIG_OF[name]].present:
            return
        section = stated.recipe.get("release") if stated else None
        if isinstance(section, dict) and section.get("classic_files") is True:
            yield Problem("missing-file", name, "the recipe states classic_files = true")
        return
    scan = scans[CONFIG_OF[name]]
    try:
        rows = _read_csv(release / name) if name.endswith(".csv") else _read_features(release / name)
    except (csv.Error, pa.ArrowException, OSError, UnicodeDecodeError, ValueError, MemoryError) as error:
        yield Problem("classic", name, f"cannot be read ({first_line(error)})")
        return
    expected = _expected(scan) if scan.complete else None
    if expected is not None:
        yield from _compare(name, rows, expected)


def _read_csv(path: Path) -> list[Row]:
    """Rows of a file of URLs; an empty cell is None."""
    with path.open(encoding="utf-8", newline="") as file:
        if any("\r" in line for line in file):
            raise ValueError("it has carriage returns; lines end with a line feed")
        file.seek(0)
        reader = csv.reader(file, strict=True)
        head = next(reader, [])
        located = head[1:2] == [_LOCALE]
        if head[:1] + head[1 + located :] != schemas.URLS_FILE_SCHEMA.names:
            raise ValueError(f"the header is {','.join(head)[:100]!r}")
        rows: list[Row] = []
        line = 1
        for row in reader:
            if reader.line_num > line + 1:
                raise ValueError(f"line {line + 1} has a line break in a cell")
            line = reader.line_num
            if len(row) != len(head):
                raise ValueError(f"line {reader.line_num} has {len(row)} cells")
            rows.append(((row[0], row[1] if located else schemas.CLASSIC_LOCALE), (row[-1] or None,)))
        return rows


def _read_features(path: Path) -> list[Row]:
    """Rows of a file of vectors; null and zeros are None."""
    product = path.name == schemas.PRODUCT_FEATURES
    schema = schemas.classic_features_schema("product" if product else "query")
    rows: list[Row] = []
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        got = file.schema_arrow.remove_metadata()
        if product and _LOCALE in got.names:
            schema = schema.insert(1, pa.field(_LOCALE, pa.string()))
        if not got.equals(schema):
            raise ValueError(f"columns are {_types(got)}, not {_types(schema)}")
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            keys = batch.column(0).to_pylist()
            if product:
                located = _LOCALE in schema.names
                locales = batch.column(1).to_pylist() if located else [schemas.CLASSIC_LOCALE] * len(keys)
                keys = list(zip(keys, locales, strict=True))
            columns = [_hashes(batch.column(name), name) for name in schema.names if name in schemas.VECTOR_COLUMNS]
            rows += zip(keys, zip(*columns, strict=True), strict=True)
    return rows


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _hashes(column: pa.Array, name: str) -> list[int | None]:
    """A hash of each list of floats, None where it is null or zeros."""
    lists = column.drop_null()
    if len(lists) == 0:
        return [None] * len(column)
    lengths = pc.list_value_length(lists).unique()
    values = lists.flatten()
    if len(lengths) > 1 or values.null_count:
        raise ValueError(f"{name} holds lists of different lengths, or null numbers")
    vectors = values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    out = np.full(len(column), None, dtype=object)
    out[np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)] = _real(hashes(vectors).to_pylist())
    return list(out)


def _expected(scan: Scan) -> Rows | None:
    """The same rows from a joined config, None if it lacks a column."""
    key = ("query_id",) if scan.config == schemas.QUERIES else ("product_id", _LOCALE)
    masked = ("has_image",) if scan.config == schemas.FEATURES else ()
    if not {*key, *_COMPARED[scan.config], *masked} <= set(scan.classic.column_names):
        return None
    columns = {
        name: column.to_pylist() for name, column in zip(scan.classic.column_names, scan.classic.columns, strict=True)
    }
    values = [_real(columns[name]) if name.startswith("hash ") else columns[name] for name in _COMPARED[scan.config]]
    if masked:  # what is zeros in the config is null in the published file
        values[-1] = [value if there else None for value, there in zip(values[-1], columns["has_image"], strict=True)]
    keys = columns["query_id"] if len(key) == 1 else zip(*(columns[name] for name in key), strict=True)
    return dict(zip(keys, zip(*values, strict=True), strict=True))


def _real(found: list[int | None]) -> list[int | None]:
    """Hashes with None for zeros, whose hash is 0: what is null in one file is zeros in the other."""
    return [value or None for value in found]


def _compare(name: str, rows: list[Row], expected: Rows) -> Iterator[Problem]:
    """The rows of a published file are exactly those of its config."""
    config = CONFIG_OF[name]
    found = dict(rows)
    if len(found) != len(rows):
        yield Problem("classic", name, f"{len(rows) - len(found):,} ids occur more than once")
    absent = [key for key in expected if key not in found]
    if absent:
        yield Problem("classic", name, f"lacks {len(absent):,} rows of {config}, first {absent[0]}")
    extra = [key for key in found if key not in expected]
    if extra:
        yield Problem("classic", name, f"has {len(extra):,} rows that are not in {config}, first {extra[0]}")
    different = [key for key, value in expected.items() if key in found and found[key] != value]
    if different:
        yield Problem("classic", name, f"{len(different):,} rows differ from {config}, first {different[0]}")
