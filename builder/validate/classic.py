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

from builder import manifest
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


Rows = dict[Any, tuple[Any, ...]]


def _wanted(release: Path) -> bool:
    try:
        section = manifest.read(release).recipe.get("release")
    except SourceError:
        return False
    return isinstance(section, dict) and section.get("classic_files") is True


def _read_csv(path: Path) -> list[tuple[Any, tuple[Any, ...]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        head = next(reader, [])
        if head != schemas.URLS_FILE_SCHEMA.names:
            raise ValueError(f"the header is {','.join(head)[:100]!r}")
        rows = []
        for row in reader:
            if len(row) != 2:
                raise ValueError(f"line {reader.line_num} has {len(row)} cells")
            rows.append((row[0], (row[1] or None,)))
        return rows


def _read_features(path: Path) -> list[tuple[Any, tuple[Any, ...]]]:
    part = "product" if path.name == schemas.PRODUCT_FEATURES else "query"
    schema = schemas.classic_features_schema(part)
    rows: list[tuple[Any, tuple[Any, ...]]] = []
    with pq.ParquetFile(path) as file:
        got = file.schema_arrow.remove_metadata()
        if not got.equals(schema):
            raise ValueError(f"columns are {_told(got)}, not {_told(schema)}")
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            keys = batch.column(0).to_pylist()
            columns = [_hashes(batch.column(i), schema.names[i]) for i in range(1, len(schema))]
            rows += zip(keys, zip(*columns, strict=True), strict=True)
    return rows


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _hashes(column: pa.Array, name: str) -> list[int | None]:
    """A hash of each list of floats, None where it is null."""
    lists = column.drop_null()
    if len(lists) == 0:
        return [None] * len(column)
    lengths = pc.list_value_length(lists).unique()
    values = lists.flatten()
    if len(lengths) > 1 or values.null_count:
        raise ValueError(f"{name} holds lists of different lengths, or null numbers")
    vectors = values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    out = np.full(len(column), None, dtype=object)
    out[np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)] = hashes(vectors).to_pylist()
    return list(out)


_COMPARED = {
    schemas.URLS: ("product_id", "image_url"),
    schemas.SUPP: ("product_id", "image_url"),
    schemas.FEATURES: ("product_id", "hash clip_text_features", "hash clip_image_features"),
    schemas.QUERIES: ("query_id", "hash clip_text_features"),
}


def _expected(scan: Scan) -> Rows | None:
    """The same rows from a joined config, None if it lacks a column; the published files speak of one locale."""
    kept, names = scan.kept, _COMPARED[scan.config]
    declared = set(schemas.config_schema(scan.config).names)
    if not {*names, *({"product_locale", "has_image"} & declared)} <= set(kept.column_names):
        return None
    if "product_locale" in kept.column_names:
        kept = kept.filter(pc.equal(kept["product_locale"], schemas.CLASSIC_LOCALE))
    keys, *values = (kept[name].to_pylist() for name in names)
    if scan.config == schemas.FEATURES:  # zeros here are null there
        there = kept["has_image"].to_pylist()
        values[-1] = [value if seen else None for value, seen in zip(values[-1], there, strict=True)]
    return dict(zip(keys, zip(*values, strict=True), strict=True))


def _compare(name: str, said: list[tuple[Any, tuple[Any, ...]]], expected: Rows) -> Iterator[Problem]:
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
