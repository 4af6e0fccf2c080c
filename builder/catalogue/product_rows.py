"""The rows of a products table as they are read: ids and some marks in memory, the rest in a temporary file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue.cells import ids, texts
from builder.catalogue.checks import has_html, image_kinds
from builder.catalogue.images import image_cells
from builder.catalogue.kept import IMAGE, Conversion, OneType, kept_cells
from builder.catalogue.rows import places
from builder.catalogue.tables import Batch, Tables
from sqid_lib import schemas
from sqid_lib.errors import EmptyFileError
from sqid_lib.tables.content import CSV
from sqid_lib.tables.spool import Ints, Spool

KIND, COUNT, UNTITLED, HTML = "kind", "count", "untitled", "html"  # marks of a row


class ProductRows:
    """All rows of a table, in the order of its files.

    Args:
        names: our column → the table's.
        keep: columns of the table that are kept under their names.
        scratch: folder of the temporary file; by default that of the system.

    Attributes:
        conversions: column → how each part of it gets the type of the whole.
        marks: of each row: the KIND (of `checks.image_kinds`) and COUNT of its images, whether it is UNTITLED, whether
            a text has HTML; [rows] each.

    Raises:
        as `read_products`.
    """

    def __init__(self, tables: Tables, names: Mapping[str, str], keep: Sequence[str], scratch: Path | None) -> None:
        self._spool = Spool(scratch)
        kept = {name: OneType(name, numbers=CSV in tables.kinds) for name in keep}
        self._ids: list[pa.Array] = []
        marks: dict[str, list[npt.NDArray[Any]]] = {}
        starts = []  # of each batch: its first row in all, its file, its first row there
        count = 0
        for batch in tables.read(list(dict.fromkeys([*names.values(), *keep])), image=names.get(IMAGE)):
            rows = batch.table.num_rows
            if not rows:
                continue
            self._ids.append(ids(batch, names["product_id"]))
            columns, found = _cells(batch, names)
            for name, column in kept.items():
                columns[name] = kept_cells(batch, name)
                column.add(columns[name])
            self._spool.append(pa.table(columns))
            for name, mark in found.items():
                marks.setdefault(name, []).append(mark)
            starts.append((count, batch.file, batch.first))
            count += rows
        if not count:
            raise EmptyFileError("the table has no rows", where=tables.address, fix="Check the address.")
        self.marks = {name: np.concatenate(parts) for name, parts in marks.items()}
        self.place = places(tables, starts)
        self.conversions = {name: Conversion(pa.string()) for name in (*schemas.TEXT_COLUMNS, IMAGE)}
        self.conversions |= {name: column.conversion() for name, column in kept.items()}

    def sorted_ids(self) -> tuple[pa.StringArray, Ints]:
        """All ids in order, and the row of each; rows of one id in the order of the files. Can be called once."""
        ids = pa.concat_arrays(self._ids)
        self._ids.clear()
        if pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1)), min_count=0).as_py():
            return ids, np.arange(len(ids))
        rows = pc.sort_indices(ids)
        return ids.take(rows), rows.to_numpy().astype(np.int64)

    def take(self, rows: Ints, names: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of some rows, as `Spool.take`: text columns, the kept ones, and `image`."""

        def convert(table: pa.Table) -> pa.Table:
            return pa.table([self.conversions[name](table.column(name)) for name in names], list(names))

        return self._spool.take(rows, convert)

    def value(self, row: int, name: str) -> Any:
        """One value."""
        return next(self.take(np.array([row]), [name])).column(0)[0].as_py()


def _cells(batch: Batch, names: Mapping[str, str]) -> tuple[dict[str, pa.Array], dict[str, npt.NDArray[Any]]]:
    """The text columns and the image of some rows, and their marks."""
    none = pa.nulls(batch.table.num_rows, pa.string())
    columns = {name: texts(batch, names[name]) if name in names else none for name in schemas.TEXT_COLUMNS}
    counts = np.zeros(len(none), np.int32)
    html, columns[IMAGE] = has_html(list(columns.values())), none
    if IMAGE in names:
        columns[IMAGE], counts = image_cells(batch, names[IMAGE])
    untitled = columns["product_title"].is_null().to_numpy(zero_copy_only=False)
    return columns, {KIND: image_kinds(columns[IMAGE]), COUNT: counts, UNTITLED: untitled, HTML: html}
