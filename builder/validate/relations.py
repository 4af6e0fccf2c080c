"""Configs against each other: every reference exists, and shared columns have the same values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.validate.problem import Problem
from builder.validate.rows import Scan
from builder.validate.vectors import mask
from sqid_lib import schemas

Rows = Mapping[str, pa.Table]  # config → its compared columns
Unjudged = Collection[tuple[str, ...]]


def check_relations(scans: Mapping[str, Scan], *, unjudged: Unjudged = ()) -> Iterator[Problem]:
    """Compare all configs of each part of the release; those that could not be read whole are left out.

    Args:
        unjudged: keys whose rows may be without a judgment: of products, of queries.
    """
    whole = {config: scan for config, scan in scans.items() if scan.complete}
    kept = next((scan.carried for scan in scans.values()), ())
    for part in _parts(whole):
        for other, config in combinations(part, 2):
            if set(schemas.DECLARED[other].key) <= set(schemas.DECLARED[config].names):
                yield from _compare(part, config, other, kept, unjudged)
            elif set(schemas.DECLARED[config].key) <= set(schemas.DECLARED[other].names):
                yield from _compare(part, other, config, kept, unjudged)
    rows = {config: scan.kept for config, scan in whole.items()}
    supp, main = (_keys(rows.get(config), schemas.PRODUCT_KEY) for config in (schemas.SUPP, schemas.URLS))
    if supp is not None and main is not None:
        both = supp.filter(pc.is_in(supp, value_set=main))
        if len(both):
            message = f"{len(both):,} supplementary products are in {schemas.URLS} too, first {_shown(both[0])}"
            yield Problem("integrity", f"data/{schemas.SUPP}", message)


def _parts(scans: Mapping[str, Scan]) -> Iterator[Rows]:
    """The rows that belong together: those of each split, and those of the supplementary products."""
    main = {config: scan for config, scan in scans.items() if config != schemas.SUPP}
    splits = {split for scan in main.values() for split in scan.splits} - {schemas.SUPP_VECTORS_SPLIT}
    for split in sorted(splits):
        yield {config: _of_split(scan, split) for config, scan in main.items()}
    with_vectors = [scan for scan in main.values() if schemas.SUPP_VECTORS_SPLIT in scan.splits]
    if schemas.SUPP in scans:
        yield {
            schemas.SUPP: scans[schemas.SUPP].kept,
            **{scan.config: _of_split(scan, schemas.SUPP_VECTORS_SPLIT) for scan in with_vectors},
        }


def _of_split(scan: Scan, split: str) -> pa.Table:
    kept = scan.kept
    if "split" not in kept.column_names or list(scan.splits) == [split]:
        return kept
    return kept.filter(pc.equal(kept["split"], split))


def _compare(part: Rows, config: str, other: str, kept: schemas.Kept, unjudged: Unjudged) -> Iterator[Problem]:
    """Both configs have the same keys of `other`, and equal values in the columns they share; null equals null."""
    names = schemas.DECLARED[other].key
    left, right = part[config], part[other]
    keys, known = _keys(left, names), _keys(right, names)
    if keys is None or known is None:
        return
    things = next((n for n, counted in schemas.COUNTED.items() if schemas.DECLARED[counted].key == names), "keys")
    shared = [name for name in schemas.shared_columns(config, other, kept) if name in left.column_names]
    shared = [name for name in shared if name in right.column_names]
    if not keys.equals(known):  # else the rows need not be copied to be compared
        yield from _within(keys, known, things, config, other)
        if not (config == schemas.JUDGMENTS and names in unjudged):
            yield from _within(known, keys, things, other, config)
        index = pc.index_in(keys, value_set=known)
        common = pc.is_valid(index)
        left, right = left.select(shared).filter(common), right.select(shared).take(index.filter(common))
        keys = keys.filter(common)
    for name in shared:
        if left[name].equals(right[name]):  # far quicker than row by row
            continue
        different = ~_equal(left[name], right[name])
        if different.any():
            first = _shown(keys[int(np.flatnonzero(different)[0])])
            message = f"{name} differs from {other} in {int(different.sum()):,} rows, first {first}"
            yield Problem("inconsistent", f"data/{config}", message)


def _within(keys: pa.Array, others: pa.Array, things: str, config: str, other: str) -> Iterator[Problem]:
    absent = pc.unique(keys.filter(pc.invert(pc.is_in(keys, value_set=others)))).drop_null()
    if len(absent):
        message = f"{len(absent):,} {things} are not in {other}, first {_shown(absent[0])}"
        yield Problem("integrity", f"data/{config}", message)


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[N] bool; null equals null, NaN equals NaN."""
    same = pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(pc.is_null(left), pc.is_null(right)))
    if pa.types.is_floating(left.type):
        same = pc.or_(same, pc.fill_null(pc.and_(pc.is_nan(left), pc.is_nan(right)), False))
    return mask(same)


def _keys(rows: pa.Table | None, names: tuple[str, ...]) -> pa.Array | None:
    """The key of each row as one text; None where a column of it is missing."""
    if rows is None or not set(names) <= set(rows.column_names):
        return None
    parts = [_array(rows[name].cast(pa.string())) for name in names]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\0")


def _array(column: Any) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _shown(key: Any) -> str:
    return str(key.as_py()).replace("\0", " ")
