"""Rows of one product id: several images of one product, or a contradiction."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue.kept import IMAGE
from builder.catalogue.product_rows import COUNT, ProductRows
from sqid_lib.errors import DuplicateKeyError
from sqid_lib.tables.spool import Ints

_log = logging.getLogger(__name__)


def merged(source: ProductRows, where: str) -> tuple[pa.StringArray, Ints, Ints, npt.NDArray[np.int32]]:
    """Each id once, in order; the first row that has it, the row of its first image, and how many images it has.

    Raises:
        DuplicateKeyError: two rows with one id differ in more than their images.
    """
    ids, rows = source.sorted_ids()
    same = pc.equal(ids.slice(0, len(ids) - 1), ids.slice(1)).to_numpy(zero_copy_only=False)
    again = np.flatnonzero(same) + 1  # places with the id of the place before
    if not len(again):
        return ids, rows, rows, source.marks[COUNT][rows]
    _check_same(ids, rows, again, source)
    starts = np.flatnonzero(~np.concatenate([[False], same]))
    first_images, counts = rows[starts], source.marks[COUNT][rows[starts]]
    several = 0
    for product, images in _images(rows, starts, source):
        first_images[product] = next(iter(images.values()))
        counts[product] = source.marks[COUNT][list(images.values())].sum()
        several += len(images) > 1
    _log.warning(
        "%s: rows that repeat the product of another row: %d, such as %r; products with several images: %d",
        *(where, len(again), ids[again[0]].as_py(), several),
    )
    return ids.take(pa.array(starts)), rows[starts], first_images, counts


def _images(rows: Ints, starts: Ints, source: ProductRows) -> Iterator[tuple[int, dict[str, int]]]:
    """Of each product with several rows that has images: its number, and image → the first row with it."""
    sizes = np.diff([*starts, len(rows)])
    products = np.repeat(np.arange(len(starts)), sizes)
    chosen = np.flatnonzero(sizes[products] > 1)
    tables = source.take(rows[chosen], [IMAGE])
    values = (image for table in tables for image in table.column(IMAGE).to_pylist())
    of_rows = zip(products[chosen].tolist(), rows[chosen].tolist(), values, strict=True)
    for product, group in groupby(of_rows, lambda row: row[0]):
        images: dict[str, int] = {}
        for _, row, image in group:
            if image:
                images.setdefault(image, row)
        if images:
            yield product, images


def _check_same(ids: pa.Array, rows: Ints, again: Ints, source: ProductRows) -> None:
    """Raise DuplicateKeyError unless each of the rows equals the row before it in all but its image."""
    names = [name for name in source.conversions if name != IMAGE]
    differ: dict[str, list[Ints]] = {name: [] for name in names}
    pairs = rows[np.column_stack([again, again - 1]).reshape(-1)]
    first = 0
    for table in source.take(pairs, names):
        these, before = (table.take(pa.array(np.arange(start, table.num_rows, 2))) for start in (0, 1))
        for name in names:
            equal = pc.fill_null(pc.equal(these[name], before[name]), False)
            equal = pc.or_(equal, pc.and_(pc.is_null(these[name]), pc.is_null(before[name])))
            differ[name].append(first + np.flatnonzero(~equal.to_numpy()))
        first += these.num_rows
    for name in names:
        places = again[np.concatenate(differ[name])]
        if len(places):
            row, earlier = int(rows[places[0]]), int(rows[places[0] - 1])
            raise DuplicateKeyError(
                f"two rows have the product id {ids[int(places[0])].as_py()!r} and contradict each other",
                where=source.place(row),
                expected=f"{name} {str(source.value(earlier, name))[:60]!r}, as in {source.place(earlier)}",
                got=repr(str(source.value(row, name))[:60]),
                fix=f"Keep one of them; {len(places)} ids are there with such rows."
                if len(places) > 1
                else "Keep one.",
            )
