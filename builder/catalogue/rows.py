"""A whole table of queries or judgments as texts, with the place of each row for messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.catalogue.cells import ids, texts
from builder.catalogue.tables import Tables
from sqid_lib.errors import EmptyFileError
from sqid_lib.tables.columns import one_piece

Numbers = npt.NDArray[np.int32]  # of rows, queries, products or pairs


@dataclass(frozen=True)
class Rows:
    """A table whose columns have our names and hold texts, perhaps as dictionaries, null where a cell is blank.

    Attributes:
        name: the address of the table, for messages about the whole.
        place: the file and line of a row (from 0), for messages about it.
    """

    name: str
    table: pa.Table
    place: Callable[[int], str]

    def column(self, name: str) -> pa.Array:
        """One column in one piece."""
        return one_piece(self.table.column(name))

    def values(self, name: str) -> list[str | None]:
        """One column as a list."""
        values: list[str | None] = self.table.column(name).to_pylist()
        return values

    def only(self, kept: npt.NDArray[np.bool_]) -> Rows:
        """The rows of a mask [rows], which keep their places."""
        rows = np.flatnonzero(kept)
        return Rows(self.name, self.table.filter(pa.array(kept)), lambda row: self.place(int(rows[row])))


def read_rows(tables: Tables, columns: Mapping[str, str]) -> Rows:
    """Some columns of a table, all rows of it in memory; `product_id` as an id, the others as dictionaries.

    Args:
        columns: our column → the table's.

    Raises:
        SourceError: a file is damaged, or a column holds no texts.
        ContractError: an id is empty.
        EmptyFileError: there are no rows.
    """
    parts: list[pa.Table] = []
    starts: list[tuple[int, int, int]] = []  # of each batch: its first row in all, its file, its first row there
    count = 0
    for batch in tables.read(list(dict.fromkeys(columns.values()))):
        found = {
            ours: ids(batch, theirs) if ours == "product_id" else texts(batch, theirs).dictionary_encode()
            for ours, theirs in columns.items()
        }
        parts.append(pa.table(found))
        starts.append((count, batch.file, batch.first))
        count += batch.table.num_rows
    if not count:
        raise EmptyFileError("the table has no rows", where=tables.address, fix="Check the address.")
    return Rows(tables.address, pa.concat_tables(parts), places(tables, starts))


def places(tables: Tables, starts: Sequence[tuple[int, int, int]]) -> Callable[[int], str]:
    """Where a row is, for messages; `starts`: of each batch its first row in all, its file, its first row there."""

    def place(row: int) -> str:
        start, file, first = next(entry for entry in reversed(starts) if entry[0] <= row)
        return tables.where(file, first + row - start)

    return place
