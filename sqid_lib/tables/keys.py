"""Keys of rows: read without the spaces around them, one text for each, whether they are unique; and a user's."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from sqid_lib.errors import CorruptFileError, DuplicateKeyError, UsageError
from sqid_lib.files import File
from sqid_lib.schemas import PRODUCT_KEY
from sqid_lib.tables.columns import dense

# U+001F; pa.scalar would import pandas, 45 MB that a stream has better uses for
_SEPARATOR = pa.StringArray.from_buffers(1, pa.py_buffer(bytes(4) + b"\x01\0\0\0"), pa.py_buffer(b"\x1f"))[0]
_TRIMMED = (*PRODUCT_KEY, "image_url")
_log = logging.getLogger(__name__)


def trimmed(table: pa.Table, where: str) -> pa.Table:
    """The same rows with ids, locales and URLs without the spaces around them: no id has any, padded exports do.

    Raises:
        CorruptFileError: a line break within a value.
    """
    for i, name in enumerate(table.column_names):
        column = table.column(name)
        if name in _TRIMMED and column.type == pa.string() and any(map(_may_have_spaces, column.chunks)):
            without = pc.utf8_trim_whitespace(column)
            _check_one_line(without, name, where)
            if not without.equals(column):
                count = pc.sum(pc.not_equal(without, column)).as_py()
                _log.info("%s: spaces around the values of %s are left out, in %d rows", where, name, count)
                table = table.set_column(i, name, without)
    return table


def _check_one_line(column: pa.ChunkedArray, name: str, where: str) -> None:
    broken = column.filter(pc.match_substring_regex(column, r"[\r\n]"))
    if len(broken):
        raise CorruptFileError(
            f"{len(broken)} values of {name} have a line break in them, which no id or URL has",
            where=where,
            got=repr(broken[0].as_py()[:60]),
            fix="Correct them: rows of the table it was made from may be lost.",
        )


def _may_have_spaces(texts: pa.StringArray) -> bool:
    """Whether a byte is not a printing ASCII character: a look at the bytes costs far less than at the texts."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return False
    edges = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(data, np.uint8)[edges[0] : edges[-1]]
    return bool(len(letters)) and bool((letters - np.uint8(33)).max() > 93)  # "!" is 33, "~" 126; below wraps around


def key_strings(table: pa.Table) -> pa.Array:
    """One text per row for (product_id, product_locale), equal only for equal keys: the id never holds U+001F."""
    return pc.binary_join_element_wise(
        *(table.column(n).cast(pa.string()).combine_chunks() for n in PRODUCT_KEY),
        _SEPARATOR,
    )


def text_hashes(texts: pa.Array) -> npt.NDArray[np.uint64]:
    """One number for each text, the same for equal ones, and 0 for null; finds errors, not attacks."""
    values = map(xxhash.xxh3_64_intdigest, pc.fill_null(texts, "").cast(pa.binary()).to_pylist())
    hashes = np.fromiter(values, np.uint64, len(texts))
    hashes[texts.is_null().to_numpy(zero_copy_only=False)] = 0
    return hashes


class Increasing:
    """Whether each row of a key is greater than the row before it, and none has a null: then no row is there twice.

    Attributes:
        so_far: for the rows that were added.
    """

    def __init__(self) -> None:
        self.so_far = True
        self._last: pa.Table | None = None

    def add(self, keys: pa.Table) -> None:
        """Take in the next rows."""
        if not (self.so_far and keys.num_rows):
            return
        smaller, equal = neighbours(keys if self._last is None else pa.concat_tables([self._last, keys]))
        nulls = any(column.null_count for column in keys.columns)
        self.so_far = not (nulls or smaller.any() or equal.any())
        self._last = keys.slice(keys.num_rows - 1)


def neighbours(keys: pa.Table) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows are followed by a smaller one, and which by an equal one; a null is neither; [rows - 1] each."""
    smaller, equal = (np.full(max(keys.num_rows - 1, 0), start) for start in (False, True))
    for column in keys.columns:
        before, after = column.slice(0, len(smaller)), column.slice(1)
        smaller |= equal & dense(pc.fill_null(pc.less(after, before), False))
        equal &= dense(pc.fill_null(pc.equal(after, before), False))
    return smaller, equal


def check_unique(table: pa.Table, columns: Sequence[str], what: str, where: str) -> None:
    """Raise DuplicateKeyError, showing three, if `columns` are not a key of `table`."""
    counts = table.select(list(columns)).group_by(list(columns)).aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts.column("count_all"), 1))
    if doubled.num_rows:
        first = doubled.sort_by([(c, "ascending") for c in columns]).slice(0, 3).select(list(columns))
        raise duplicates(first, doubled.num_rows, what, where)


def duplicates(rows: pa.Table, count: int, what: str, where: str) -> DuplicateKeyError:
    """The error for `count` keys that occur more than once; `rows` are the first of them."""
    shown = ", ".join("(" + ", ".join(str(v) for v in row.values()) + ")" for row in rows.to_pylist())
    return DuplicateKeyError(
        f"{count} {what} {'key occurs' if count == 1 else 'keys occur'} more than once",
        where=where,
        expected=f"unique ({', '.join(rows.column_names)})",
        got=shown,
        fix="Remove the duplicates.",
    )


def check_unique_in_splits(
    tables: Sequence[pa.Table], files: Sequence[File], columns: Sequence[str], what: str
) -> None:
    """`check_unique` for a table in several files, split by split: a product may be judged in several splits.

    The split is the part of a file's name before the first "-".
    """
    names = [file.url.rpartition("/")[2].partition("-")[0] for file in files]
    for name in dict.fromkeys(names):
        chosen = [i for i, other in enumerate(names) if other == name]
        check_unique(pa.concat_tables([tables[i] for i in chosen]), columns, what, files[chosen[0]].url)


def query_ids(queries: Any) -> tuple[int, ...]:
    """The ids in a list of a user; UsageError unless they are integers, at least one."""
    expected = "integers in a list, such as [1001, 1002]"
    values = []
    for value in listed(queries, "queries", expected):
        try:
            number = None if isinstance(value, bool | np.bool_) else operator.index(value)
        except TypeError:
            number = None
        if number is None or not -(2**63) <= number < 2**63:
            raise UsageError("not query ids", where="queries", expected=expected, got=shown(value))
        values.append(number)
    return tuple(values)


def listed(values: Any, name: str, expected: str) -> list[Any]:
    """The values of an iterable of a user, which is used up; UsageError for a text, no iterable, or no values."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UsageError(f"not a list of {name}", where=name, expected=expected, got=shown(values))
    try:
        found = list(values)
    except TypeError:  # an array without dimensions says that it can be iterated
        raise UsageError(f"not a list of {name}", where=name, expected=expected, got=shown(values)) from None
    if not found:
        raise UsageError("an empty list keeps nothing", where=name, expected=expected, got=shown(values))
    return found


def shown(value: Any) -> str:
    """A value of a user in a message."""
    return repr(value)[:80]
