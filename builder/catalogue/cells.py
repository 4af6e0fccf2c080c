"""Cells of a shop's tables as texts and ids, whatever type they have in the file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue.tables import Batch
from sqid_lib import schemas
from sqid_lib.errors import ContractError, SchemaError, TextLengthError, first_line
from sqid_lib.tables.columns import is_list, is_text, one_piece, plain

_EXACT = 2.0**53  # whole numbers up to here are exact as float64
_CONTROL = r"[\x00-\x1f\x7f]"


def texts(batch: Batch, column: str, *, longest: int | None = schemas.MAX_TEXT_BYTES) -> pa.Array:
    """Cells as texts without the spaces around them, null where nothing is left; a list of texts as its lines.

    Args:
        longest: bytes that a text may have; None for any number.

    Raises:
        SchemaError: bytes that are no UTF-8, or values that are no texts, such as objects.
        TextLengthError: a text is longer.
    """
    found = pc.utf8_trim_whitespace(_as_text(batch, column))
    if longest is not None and (row := _first(pc.greater(pc.binary_length(found), longest))) is not None:
        raise TextLengthError(
            f"a text is too long (column {column!r})",
            where=batch.where(row),
            expected=f"at most {longest:,} bytes",
            got=f"{pc.binary_length(found)[row].as_py():,} bytes",
            fix="Shorten it, or leave the row out.",
        )
    return pc.if_else(pc.equal(found, ""), None, found)


def ids(batch: Batch, column: str) -> pa.Array:
    """Cells as ids: texts without the spaces around them, never null; whole numbers as their digits.

    Raises:
        ContractError: an id is empty, or has a line break or another control character in it.
        SchemaError: as `texts`; or a number is no whole one, or too large to be exact.
    """
    values = plain(batch.table.column(column))
    if pa.types.is_boolean(values.type) or is_list(values.type):
        raise SchemaError(f"column {column!r} holds no ids", where=batch.where(0), got=str(values.type))
    if (row := _first(_inexact(values))) is not None:
        raise SchemaError(
            f"an id that is a number, but not a whole and exact one (column {column!r})",
            where=batch.where(row),
            got=values[row].as_py(),
            fix="Write ids as text.",
        )
    found = texts(batch, column)
    if (row := _first(pc.is_null(found))) is not None:
        raise ContractError(f"the id is empty (column {column!r})", where=batch.where(row), fix="Fill it in.")
    if (row := _first(pc.match_substring_regex(found, _CONTROL))) is not None:
        raise ContractError(
            f"an id with a line break or control character in it (column {column!r})",
            where=batch.where(row),
            got=repr(found[row].as_py()[:60]),
            fix="Correct it; in a csv file look for a quote too many.",
        )
    return found


def _inexact(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which numbers cannot be ids: fractions, and floats too large to be exact; NaN is an empty cell."""
    if pa.types.is_decimal(values.type):
        return pc.not_equal(values, pc.floor(values))
    if not pa.types.is_floating(values.type):
        return pa.chunked_array([pa.nulls(len(values), pa.bool_())])
    fraction = pc.not_equal(values, pc.floor(values))
    return pc.and_(pc.or_(fraction, pc.greater(pc.abs(values), _EXACT)), pc.invert(pc.is_nan(values)))


def _first(mask: pa.Array | pa.ChunkedArray) -> int | None:
    """The first row that is true."""
    row = pc.index(mask, True).as_py()
    return None if row < 0 else row


def _as_text(batch: Batch, column: str) -> pa.Array:
    values = one_piece(plain(batch.table.column(column)))
    dtype = values.type
    try:
        if is_list(dtype) and (is_text(dtype.value_type) or pa.types.is_null(dtype.value_type)):
            values = values.cast(pa.list_(pa.string()))  # bytes are text, too
            lines = ["\n".join(item for item in row if item) if row is not None else None for row in values.to_pylist()]
            return pa.array(lines, pa.string())
        if pa.types.is_floating(dtype):
            values = pc.if_else(pc.is_nan(values), None, values)
            if _all_whole(values):
                return values.cast(pa.int64()).cast(pa.string())
        if pa.types.is_decimal(dtype):
            return pc.replace_substring_regex(values.cast(pa.string()), r"\.0*$", "")
        if not pa.types.is_nested(dtype):
            return values.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise SchemaError(
            f"column {column!r} cannot be read as text: {first_line(error)}", where=batch.tables.files[batch.file]
        ) from error
    raise SchemaError(
        f"column {column!r} holds no texts",
        where=batch.tables.files[batch.file],
        got=str(dtype)[:80],
        fix="Name another column in [catalogue.columns].",
    )


def _all_whole(values: pa.Array) -> bool:
    whole = pc.and_(pc.equal(values, pc.floor(values)), pc.less_equal(pc.abs(values), _EXACT))
    return bool(pc.all(pc.fill_null(whole, True)).as_py())
