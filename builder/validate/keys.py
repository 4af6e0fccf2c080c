"""Keys of a config: unique and sorted within a split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.validate.problem import Problem
from builder.validate.vectors import Mask, mask


def check_keys(keys: pa.Table, where: str) -> Iterator[Problem]:
    """Whether each row of `keys` occurs once, and no row is smaller than the row before it."""
    if is_increasing(keys):  # so that no row can occur twice
        return
    yield from check_unique(keys, where)
    smaller, _ = _neighbours(keys)
    if smaller.any():
        message = f"rows are not sorted by {', '.join(keys.column_names)}: first at row {int(smaller.argmax()) + 1}"
        yield Problem("order", where, message)


def is_increasing(keys: pa.Table) -> bool:
    """Whether each row is greater than the row before it, and none has a null."""
    smaller, equal = _neighbours(keys)
    return not (any(column.null_count for column in keys.columns) or smaller.any() or equal.any())


def check_unique(keys: pa.Table, where: str) -> Iterator[Problem]:
    """Whether each row of `keys` occurs once."""
    counts = keys.group_by(keys.column_names, use_threads=False).aggregate([([], "count_all")])
    again = counts.filter(pc.greater(counts["count_all"], 1))
    if again.num_rows:
        first = ", ".join(str(again[name][0].as_py()) for name in keys.column_names)
        names = ", ".join(keys.column_names)
        yield Problem("duplicate-key", where, f"{again.num_rows:,} keys ({names}) occur more than once, first {first}")


def _neighbours(keys: pa.Table) -> tuple[Mask, Mask]:
    """Which rows are followed by a smaller one, and which by an equal one; a null is neither."""
    smaller, equal = (np.full(max(keys.num_rows - 1, 0), start) for start in (False, True))
    for column in keys.columns:
        before, after = column.slice(0, len(smaller)).combine_chunks(), column.slice(1).combine_chunks()
        smaller |= equal & mask(pc.less(after, before))
        equal &= mask(pc.equal(after, before))
    return smaller, equal
