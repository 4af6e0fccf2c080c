"""What the configs say of each other: every reference exists, and the same thing is told the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.validate.problem import Problem
from builder.validate.rows import Scan
from sqid_lib import schemas

_MAIN = (schemas.URLS, schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS)


def check_relations(scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """References between configs, split by split; those of a config that could not be read whole are left out."""
    whole = {config: scan for config, scan in scans.items() if scan.complete}
    splits = {split for config, scan in whole.items() if config in _MAIN for split in scan.splits} - {
        schemas.SUPP_VECTORS_SPLIT
    }
    for split in sorted(splits):
        yield from _split(_Side(whole, split))
    features, supp = _Side(whole, schemas.SUPP_VECTORS_SPLIT), _Side(whole, schemas.SUPP_SPLIT)
    yield from _within(features.products(schemas.FEATURES), supp.products(schemas.SUPP), schemas.FEATURES, schemas.SUPP)
    yield from _same(features, schemas.FEATURES, schemas.SUPP, supp)
    extra, main = _Side(whole).products(schemas.SUPP), _Side(whole).products(schemas.URLS)
    if extra is not None and main is not None:
        both = extra.filter(pc.is_in(extra, value_set=main))
        if len(both):
            message = f"{len(both):,} supplementary products are in {schemas.URLS} too, first {_tell(both[0])}"
            yield Problem("integrity", f"data/{schemas.SUPP}", message)


class _Side:
    """The rows of one split (None: all) of each config."""

    def __init__(self, scans: Mapping[str, Scan], split: str | None = None) -> None:
        self._scans, self._split = scans, split

    def rows(self, config: str) -> pa.Table | None:
        if config not in self._scans:
            return None
        kept = self._scans[config].kept
        if self._split is None or "split" not in kept.column_names:
            return kept
        return kept.filter(pc.equal(kept["split"], self._split))

    def products(self, config: str) -> pa.Array | None:
        return self.key(config, schemas.PRODUCT_KEY)

    def queries(self, config: str) -> pa.Array | None:
        return self.key(config, ("query_id",))

    def key(self, config: str, names: tuple[str, ...]) -> pa.Array | None:
        """The key of each row as one text."""
        rows = self.rows(config)
        if rows is None or not set(names) <= set(rows.column_names):
            return None
        parts = [_flat(rows[name].cast(pa.string())) for name in names]
        return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\0")


def _split(side: _Side) -> Iterator[Problem]:
    products = {config: side.products(config) for config in (schemas.URLS, schemas.FEATURES, schemas.JUDGMENTS)}
    for some in products:
        for other in products:
            if some != other and (some, other) != (schemas.FEATURES, schemas.JUDGMENTS):
                yield from _within(products[some], products[other], some, other)
    queries, asked = side.queries(schemas.QUERIES), side.queries(schemas.JUDGMENTS)
    yield from _within(asked, queries, schemas.JUDGMENTS, schemas.QUERIES)
    yield from _within(queries, asked, schemas.QUERIES, schemas.JUDGMENTS)
    yield from _same(side, schemas.FEATURES, schemas.URLS)
    yield from _same(side, schemas.JUDGMENTS, schemas.QUERIES)


def _within(some: pa.Array | None, others: pa.Array | None, config: str, other: str) -> Iterator[Problem]:
    if some is None or others is None:
        return
    lost = pc.unique(some.filter(pc.invert(pc.is_in(some, value_set=others)))).drop_null()
    if len(lost):
        things = "queries" if schemas.QUERIES in (config, other) else "products"
        message = f"{len(lost):,} {things} are not in {other}, first {_tell(lost[0])}"
        yield Problem("integrity", f"data/{config}", message)


def _same(side: _Side, config: str, other: str, there: _Side | None = None) -> Iterator[Problem]:
    """The shared columns of two configs agree where the key does; null equals null; `there` has the rows of `other`."""
    names, columns = schemas.shared_columns(config, other), schemas.DECLARED[other].key
    there = there or side
    left, right = side.rows(config), there.rows(other)
    key, known = side.key(config, columns), there.key(other, columns)
    if left is None or right is None or key is None or known is None:
        return
    index = pc.index_in(key, value_set=known)
    common = pc.is_valid(index)
    left, right, key = left.filter(common), right.take(index.filter(common)), key.filter(common)
    for name in names:
        if name in left.column_names and name in right.column_names:
            yield from _different(_flat(left[name]), _flat(right[name]), key, f"data/{config}", name, other)


def _different(left: pa.Array, right: pa.Array, keys: pa.Array, where: str, name: str, other: str) -> Iterator[Problem]:
    same = pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(pc.is_null(left), pc.is_null(right)))
    found = np.flatnonzero(~np.asarray(same.to_numpy(zero_copy_only=False), dtype=bool))
    if len(found):
        message = f"{name} differs from {other} in {len(found):,} rows, first {_tell(keys[int(found[0])])}"
        yield Problem("inconsistent", where, message)


def _flat(column: Any) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _tell(key: Any) -> str:
    return str(key.as_py()).replace("\0", " ")
