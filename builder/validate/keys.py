"""Keys of a config: unique and sorted within a split."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from builder.validate.problem import Problem
from sqid_lib.tables.keys import Increasing, neighbours


def check_keys(keys: pa.Table, where: str) -> Iterator[Problem]:
    """Whether each row of `keys` occurs once, and no row is smaller than the row before it."""
    order = Increasing()
    order.add(keys)
    if order.so_far:  # so that no row can occur twice
        return
    yield from check_unique(keys, where)
    smaller, _ = neighbours(keys)
    if smaller.any():
        message = f"rows are not sorted by {', '.join(keys.column_names)}: first at row {int(smaller.argmax()) + 1}"
        yield Problem("order", where, message)


def check_unique(keys: pa.Table, where: str) -> Iterator[Problem]:
    """Whether each row of `keys` occurs once."""
    counts = keys.group_by(keys.column_names, use_threads=False).aggregate([([], "count_all")])
    again = counts.filter(pc.greater(counts["count_all"], 1))
    if again.num_rows:
        first = ", ".join(str(again[name][0].as_py()) for name in keys.column_names)
        names = ", ".join(keys.column_names)
        yield Problem("duplicate-key", where, f"{again.num_rows:,} keys ({names}) occur more than once, first {first}")
