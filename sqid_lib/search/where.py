"""The filter of a search: values of the columns that a store keeps of its products.

{"product_locale": "us", "image_status": ["ok", "generic"], "has_image": True}

keeps the products whose value is the given one, or one of those given, in every column named; None is a missing value.
A text is read as a number or a boolean where the column holds those, as on a command line.
"""

from __future__ import annotations

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
    expected = '{"column": value or list of values}'
    if not isinstance(where, Mapping):
        raise UsageError("not a filter of products", where="where", expected=expected, got=type(where).__name__)
    known = [*products.column_names, HAS_IMAGE]
    for name, wanted in where.items():
        if name not in known:
            fix = did_you_mean(str(name), known)
            raise UsageError("unknown column", where="where", expected=" or ".join(known), got=repr(name), fix=fix)
        column = pa.chunked_array([pa.array(has_image)]) if name == HAS_IMAGE else products[name]
        values = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        value_set = _typed(name, values, column.type)
        kept &= pc.is_in(column, value_set=value_set).to_numpy(zero_copy_only=False)
    return kept


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
