"""Rows of one product id: several images of one product, or a contradiction."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue.kept import FILE, IMAGE, IMAGE_COUNT, ROW
from builder.catalogue.tables import Tables
from sqid_lib.errors import DuplicateKeyError

_log = logging.getLogger(__name__)


def merged(table: pa.Table, tables: Tables) -> pa.Table:
    """One row for each id: the first, with its first image and the number of different images of all of them."""
    ids = table.column("product_id")
    same = pc.equal(ids.slice(0, len(ids) - 1), ids.slice(1)).to_numpy()
    again = np.flatnonzero(same) + 1  # rows with the id of the row before
    if not len(again):
        return table
    _check_same(table, again, tables)
    starts = np.flatnonzero(~np.concatenate([[False], same]))
    images, counts = table.column(IMAGE).to_pylist(), table.column(IMAGE_COUNT).to_numpy().copy()
    several = 0
    for start in np.unique(starts[np.searchsorted(starts, again, "right") - 1]).tolist():
        stop = start + 1
        while stop < len(ids) and same[stop - 1]:
            stop += 1
        different: dict[str, int] = {}
        for row in range(start, stop):
            if image := images[row]:
                different.setdefault(image, int(counts[row]))
        if different:
            images[start], counts[start] = next(iter(different)), sum(different.values())
            several += len(different) > 1
    _log.warning(
        "%s: rows that repeat the product of another row: %d, such as %r; products with several images: %d",
        *(tables.address, len(again), ids[again[0]].as_py(), several),
    )
    table = table.set_column(table.column_names.index(IMAGE), IMAGE, pa.array(images, pa.large_string()))
    table = table.set_column(table.column_names.index(IMAGE_COUNT), IMAGE_COUNT, pa.array(counts))
    return table.take(pa.array(starts))


def _check_same(table: pa.Table, again: npt.NDArray[np.int64], tables: Tables) -> None:
    """Raise DuplicateKeyError unless each of the rows equals the row before it in all but its image."""
    for name in table.column_names:
        if name in ("product_id", IMAGE, IMAGE_COUNT, FILE, ROW):
            continue
        these, before = (table.column(name).take(pa.array(rows)) for rows in (again, again - 1))
        equal = pc.fill_null(pc.equal(these, before), False)
        equal = pc.or_(equal, pc.and_(pc.is_null(these), pc.is_null(before)))
        differ = np.flatnonzero(~equal.to_numpy())
        if len(differ):
            row = int(again[differ[0]])
            first, second = (
                tables.where(table.column(FILE)[r].as_py(), table.column(ROW)[r].as_py()) for r in (row - 1, row)
            )
            raise DuplicateKeyError(
                f"two rows have the product id {table.column('product_id')[row].as_py()!r} and contradict each other",
                where=second,
                expected=f"{name} {str(before[differ[0]].as_py())[:60]!r}, as in {first}",
                got=repr(str(these[differ[0]].as_py())[:60]),
                fix=f"Keep one of them; {len(differ)} ids are there with such rows."
                if len(differ) > 1
                else "Keep one.",
            )
