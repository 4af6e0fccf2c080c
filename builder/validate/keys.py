"""Keys of a config: unique and sorted within a split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.validate.problem import Problem
from builder.validate.vectors import mask


def check_unique(keys: pa.Table, where: str) -> Iterator[Problem]:
    """Whether each row of `keys` occurs once."""
    counts = keys.group_by(keys.column_names, use_threads=False).aggregate([([], "count_all")])
    again = counts.filter(pc.greater(counts["count_all"], 1))
    if again.num_rows:
        first = ", ".join(str(again[name][0].as_py()) for name in keys.column_names)
        names = ", ".join(keys.column_names)
        yield Problem("duplicate-key", where, f"{again.num_rows:,} keys ({names}) occur more than once, first {first}")


def check_sorted(keys: pa.Table, where: str) -> Iterator[Problem]:
    """Whether no row of `keys` is smaller than the row before it."""
    wrong = _descents(keys)
    if len(wrong):
        message = f"rows are not sorted by {', '.join(keys.column_names)}: first at row {int(wrong[0]) + 1}"
        yield Problem("order", where, message)


def _descents(keys: pa.Table) -> np.ndarray[Any, Any]:
    """Rows that are followed by a smaller one."""
    if keys.num_rows < 2:
        return np.array([], int)
    smaller = np.zeros(keys.num_rows - 1, bool)
    equal = np.ones(keys.num_rows - 1, bool)
    for column in keys.columns:
        before, after = column.slice(0, keys.num_rows - 1).combine_chunks(), column.slice(1).combine_chunks()
        smaller |= equal & mask(pc.less(after, before))
        equal &= mask(pc.equal(after, before))
    return np.flatnonzero(smaller)
