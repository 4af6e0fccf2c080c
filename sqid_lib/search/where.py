"""The filter of a search: values of the columns that a store keeps of its products.

{"product_locale": "us", "image_status": ["ok", "generic"], "has_image": True}

keeps the products whose value is the given one, or one of those given, in every column named; None is a missing value.
In a column of numbers a pair (low, high) stands for all numbers from low to high, None for no limit on that side:

{"price": (10, 50)}, {"price": (None, 50)}, {"stock": [(1, None), None]}

A text is read as a number, a range "low..high" or a boolean where the column holds those, as on a command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib.errors import UsageError, did_you_mean
from sqid_lib.evaluation.arrays import Bools

HAS_IMAGE = "has_image"
Where = Mapping[str, Any]
_BOOLEANS = {"true": True, "false": False}


def matching(where: Where | None, products: pa.Table, has_image: Bools) -> Bools:
    """bool [P]: the products that `where` keeps; all of them if it is None.

    Raises:
        UsageError: not a mapping, an unknown column, or values of another type than the column's.
    """
    kept = np.ones(products.num_rows, np.bool_)
    if where is None:
        return kept
    expected = '{"column": value, list of values or (low, high)}'
    if not isinstance(where, Mapping):
        raise UsageError("not a filter of products", where="where", expected=expected, got=type(where).__name__)
    known = [*products.column_names, HAS_IMAGE]
    for name, wanted in where.items():
        if name not in known:
            fix = did_you_mean(str(name), known)
            raise UsageError("unknown column", where="where", expected=" or ".join(known), got=repr(name), fix=fix)
        column = pa.chunked_array([pa.array(has_image)]) if name == HAS_IMAGE else products[name]
        kept &= _among(name, column, wanted).to_numpy(zero_copy_only=False)
    return kept


def _among(name: str, column: pa.ChunkedArray, wanted: Any) -> pa.ChunkedArray:
    """Whether each value is the wanted one, or one of those wanted."""
    ranged = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    lists = list | set | frozenset if ranged else list | tuple | set | frozenset
    values = list(wanted) if isinstance(wanted, lists) else [wanted]
    ranges = [found for value in values if (found := _range(name, value)) is not None] if ranged else []
    values = [value for value in values if not ranged or _range(name, value) is None]
    kept = pc.is_in(column, value_set=_typed(name, values, column.type)) if values or not ranges else None
    for low, high in ranges:
        numbers = column.cast(pa.float64(), safe=False)
        inside = pc.fill_null(pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high)), False)
        kept = inside if kept is None else pc.or_(kept, inside)
    return kept


def _range(name: str, value: Any) -> tuple[float, float] | None:
    """A pair of numbers or None, or a text "low..high", as two limits; None for any other value."""
    if isinstance(value, str) and ".." in value:
        first, _, last = value.partition("..")
        value = (first.strip() or None, last.strip() or None)
    if not isinstance(value, tuple):
        return None
    try:
        low, high = (
            none if limit is None else float(limit) for limit, none in zip(value, (-math.inf, math.inf), strict=True)
        )
    except (TypeError, ValueError):
        low = high = math.nan
    if math.isnan(low) or math.isnan(high):
        raise UsageError(
            "not a range", where=f"where {name}", expected="(low, high), numbers or None", got=repr(value)[:80]
        )
    return low, high


def _typed(name: str, values: list[Any], dtype: pa.DataType) -> pa.Array:
    try:
        if pa.types.is_string(dtype):
            if not all(isinstance(value, str | None) for value in values):
                raise TypeError
            return pa.array(values, dtype)
        if pa.types.is_boolean(dtype):
            return pa.array([_BOOLEANS[v.lower()] if isinstance(v, str) else v for v in values], dtype)
        return pa.array([float(v) if isinstance(v, str) else v for v in values]).cast(dtype)
    except (pa.ArrowException, TypeError, ValueError, KeyError, OverflowError):
        raise UsageError(
            "not a value of the column", where=f"where {name}", expected=dtype, got=repr(values)[:80]
        ) from None
