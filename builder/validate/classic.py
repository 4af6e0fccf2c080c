"""The four published files against the joined configs: the same products, urls and vectors."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.release import manifest
from builder.validate.problem import Problem
from builder.validate.rows import Scan, hashes
from sqid_lib import schemas
from sqid_lib.errors import SourceError

_CONFIG = {
    schemas.PRODUCT_URLS: schemas.URLS,
    schemas.SUPP_URLS: schemas.SUPP,
    schemas.PRODUCT_FEATURES: schemas.FEATURES,
    schemas.QUERY_FEATURES: schemas.QUERIES,
}
_LOCALE = "product_locale"  # a second column where ids of several locales would be ambiguous
_BATCH_ROWS = 8_192


def check_classic(release: Path, name: str, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """One published file; it may be absent where the recipe says so."""
    if not (release / name).is_file():
        if _wanted(release):
            yield Problem("missing-file", name, "the recipe says classic_files = true")
        return
    scan = scans.get(_CONFIG[name])
    try:
        said = _read_csv(release / name) if name.endswith(".csv") else _read_features(release / name)
    except (csv.Error, pa.ArrowException, OSError, UnicodeDecodeError, ValueError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        yield Problem("classic", name, f"cannot be read ({reason})")
        return
    expected = _expected(scan) if scan is not None and scan.complete else None
    if expected is not None:
        yield from _compare(name, said, expected)


Row = tuple[Any, tuple[Any, ...]]  # a query id, or product id and locale; the url, or hashes of vectors
Rows = dict[Any, tuple[Any, ...]]


def _wanted(release: Path) -> bool:
    try:
        section = manifest.read(release).recipe.get("release")
    except SourceError:
        return False
    return isinstance(section, dict) and section.get("classic_files") is True


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        head = next(reader, [])
        located = head[1:2] == [_LOCALE]
        if head[:1] + head[1 + located :] != schemas.URLS_FILE_SCHEMA.names:
            raise ValueError(f"the header is {','.join(head)[:100]!r}")
        rows: list[Row] = []
        for row in reader:
            if len(row) != len(head):
                raise ValueError(f"line {reader.line_num} has {len(row)} cells")
            rows.append(((row[0], row[1] if located else schemas.CLASSIC_LOCALE), (row[-1] or None,)))
        return rows


def _read_features(path: Path) -> list[Row]:
    product = path.name == schemas.PRODUCT_FEATURES
    schema = schemas.classic_features_schema("product" if product else "query")
    rows: list[Row] = []
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        got = file.schema_arrow.remove_metadata()
        if product and _LOCALE in got.names:
            schema = schema.insert(1, pa.field(_LOCALE, pa.string()))
        if not got.equals(schema):
            raise ValueError(f"columns are {_told(got)}, not {_told(schema)}")
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            keys = batch.column(0).to_pylist()
            if product:
                located = _LOCALE in schema.names
                locales = batch.column(1).to_pylist() if located else [schemas.CLASSIC_LOCALE] * len(keys)
                keys = list(zip(keys, locales, strict=True))
            columns = [_hashes(batch.column(name), name) for name in schema.names if name in schemas.VECTOR_COLUMNS]
            rows += zip(keys, zip(*columns, strict=True), strict=True)
    return rows


def _told(schema: pa.Schema) -> str:
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


_COMPARED = {
    schemas.URLS: ("image_url",),
    schemas.SUPP: ("image_url",),
    schemas.FEATURES: ("hash clip_text_features", "hash clip_image_features"),
    schemas.QUERIES: ("hash clip_text_features",),
}


def _expected(scan: Scan) -> Rows | None:
    """The same rows from a joined config, None if it lacks a column."""
    key = ("query_id",) if scan.config == schemas.QUERIES else ("product_id", _LOCALE)
    seen = ("has_image",) if scan.config == schemas.FEATURES else ()
    if not {*key, *_COMPARED[scan.config], *seen} <= set(scan.kept.column_names):
        return None
    columns = {name: column.to_pylist() for name, column in zip(scan.kept.column_names, scan.kept.columns, strict=True)}
    values = [_real(columns[name]) if name.startswith("hash ") else columns[name] for name in _COMPARED[scan.config]]
    if seen:  # zeros here are null there
        values[-1] = [value if there else None for value, there in zip(values[-1], columns["has_image"], strict=True)]
    keys = columns["query_id"] if len(key) == 1 else zip(*(columns[name] for name in key), strict=True)
    return dict(zip(keys, zip(*values, strict=True), strict=True))


def _real(found: list[int | None]) -> list[int | None]:
    """Hashes with None for that of zeros, which is 0: null there is zeros here."""
    return [value or None for value in found]


def _compare(name: str, said: list[Row], expected: Rows) -> Iterator[Problem]:
    config = _CONFIG[name]
    found = dict(said)
    if len(found) != len(said):
        yield Problem("classic", name, f"{len(said) - len(found):,} ids occur more than once")
    for some, others, message in (
        (expected, found, f"lacks {{}} rows of {config}"),
        (found, expected, f"has {{}} rows that are not in {config}"),
    ):
        lost = [key for key in some if key not in others]
        if lost:
            yield Problem("classic", name, f"{message.format(f'{len(lost):,}')}, first {lost[0]}")
    different = [key for key, value in expected.items() if key in found and found[key] != value]
    if different:
        yield Problem("classic", name, f"{len(different):,} rows differ from {config}, first {different[0]}")
