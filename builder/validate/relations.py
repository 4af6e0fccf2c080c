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

_SHARED = ("product_title", "image_url", "image_status")  # columns that urls and product_features both have


def check_relations(scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """References between configs; those of a config that could not be read whole are left out."""
    products = _column(scans, schemas.URLS, schemas.PRODUCT_KEY)
    features = _column(scans, schemas.FEATURES, schemas.PRODUCT_KEY)
    supp = _column(scans, schemas.SUPP, schemas.PRODUCT_KEY)
    judged = _column(scans, schemas.JUDGMENTS, schemas.PRODUCT_KEY)
    queries = _column(scans, schemas.QUERIES, ("query_id",))
    asked = _column(scans, schemas.JUDGMENTS, ("query_id",))
    yield from _within(judged, products, schemas.JUDGMENTS, "product", schemas.URLS)
    yield from _within(judged, features, schemas.JUDGMENTS, "product", schemas.FEATURES)
    yield from _within(asked, queries, schemas.JUDGMENTS, "query", schemas.QUERIES)
    yield from _within(products, judged, schemas.URLS, "product", schemas.JUDGMENTS)
    yield from _within(queries, asked, schemas.QUERIES, "query", schemas.JUDGMENTS)
    yield from _within(products, features, schemas.URLS, "product", schemas.FEATURES)
    yield from _within(features, products, schemas.FEATURES, "product", schemas.URLS)
    if supp is not None and products is not None:
        both = supp.filter(pc.is_in(supp, value_set=products))
        if len(both):
            example = f"{len(both):,} supplementary products are in {schemas.URLS} too, first {_tell(both[0])}"
            yield Problem("integrity", f"data/{schemas.SUPP}", example)
    yield from _same_products(scans, products, features)
    yield from _same_queries(scans, queries, asked)


def _column(scans: Mapping[str, Scan], config: str, key: tuple[str, ...]) -> pa.Array | None:
    """The key of each row as one text; None where the config was not read whole."""
    scan = scans.get(config)
    if scan is None or not scan.complete or not set(key) <= set(scan.kept.column_names):
        return None
    parts = [_flat(scan.kept[name].cast(pa.string())) for name in key]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\0")


def _within(some: pa.Array | None, others: pa.Array | None, config: str, what: str, other: str) -> Iterator[Problem]:
    if some is None or others is None:
        return
    lost = pc.unique(some.filter(pc.invert(pc.is_in(some, value_set=others)))).drop_null()
    if len(lost):
        message = f"{len(lost):,} times a {what} that is not in {other}, first {_tell(lost[0])}"
        yield Problem("integrity", f"data/{config}", message)


def _same_products(
    scans: Mapping[str, Scan], products: pa.Array | None, features: pa.Array | None
) -> Iterator[Problem]:
    if products is None or features is None:
        return
    index = pc.index_in(products, value_set=features)
    common = pc.is_valid(index)
    left, right = scans[schemas.URLS].kept.filter(common), scans[schemas.FEATURES].kept.take(index.filter(common))
    for name in _SHARED:
        if name in left.column_names and name in right.column_names:
            example = _flat(left["product_id"])
            yield from _different(left[name], right[name], example, f"data/{schemas.FEATURES}", name, schemas.URLS)


def _same_queries(scans: Mapping[str, Scan], queries: pa.Array | None, asked: pa.Array | None) -> Iterator[Problem]:
    if queries is None or asked is None:
        return
    index = pc.index_in(asked, value_set=queries)
    common = pc.is_valid(index)
    left = scans[schemas.JUDGMENTS].kept.filter(common)
    right = scans[schemas.QUERIES].kept.take(index.filter(common))
    if "query" in left.column_names and "query" in right.column_names:
        example = _flat(left["query_id"])
        yield from _different(
            left["query"], right["query"], example, f"data/{schemas.JUDGMENTS}", "query", schemas.QUERIES
        )


def _different(left: Any, right: Any, keys: pa.Array, where: str, name: str, other: str) -> Iterator[Problem]:
    """Rows where two columns differ; null equals null."""
    left, right = _flat(left), _flat(right)
    same = pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(pc.is_null(left), pc.is_null(right)))
    found = np.flatnonzero(~np.asarray(same.to_numpy(zero_copy_only=False), dtype=bool))
    if len(found):
        message = f"{name} differs from {other} in {len(found):,} rows, first {keys[int(found[0])].as_py()}"
        yield Problem("inconsistent", where, message)


def _flat(column: Any) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _tell(key: Any) -> str:
    return str(key.as_py()).replace("\0", " ")
