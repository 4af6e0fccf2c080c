"""Columns of untrusted files: which types are read as which, the conversion to exactly the declared ones, to numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib.errors import SchemaError, first_line

_EXACT = 2.0**53  # whole numbers up to here are exact as float64
_TEXT = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),  # Spark's text
)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_LIST_VIEWS = (pa.types.is_list_view, pa.types.is_large_list_view)


def check_columns(have: pa.Schema, want: pa.Schema, where: str) -> None:
    """Raise SchemaError unless every column of `want` is in `have` with a type that can be read as the wanted one."""
    for field in want:
        if field.name not in have.names:
            unnamed = any(name.startswith("__index_level_") for name in have.names)
            raise SchemaError(
                f"column {field.name!r} is missing",
                where=where,
                expected=", ".join(want.names),
                got=", ".join(have.names) or "no columns",
                fix="The index of that pandas table has no name: give it one, or call reset_index() before writing."
                if unnamed
                else "Is this the right file? Rename its columns to the official ones.",
            )
        if have.names.count(field.name) > 1:
            raise SchemaError(f"column {field.name!r} is there twice", where=where, fix="Rename or drop one of them.")
        got = have.field(field.name).type
        if not _compatible(plain_type(got), field.type, field.name):
            raise SchemaError(
                f"column {field.name!r} has the wrong type",
                where=where,
                expected=_type_name(field.type),
                got=str(got),
                fix="Write it again with that type.",
            )


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary, or of what an extension type is stored as."""
    while True:
        if pa.types.is_dictionary(dtype):
            dtype = dtype.value_type
        elif isinstance(dtype, pa.BaseExtensionType):
            dtype = dtype.storage_type
        else:
            return dtype


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values without a dictionary or an extension type."""
    while column.type != plain_type(column.type):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        else:
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def is_text(dtype: pa.DataType) -> bool:
    """Whether values of the type are read as text."""
    return any(is_type(plain_type(dtype)) for is_type in _TEXT)


def is_list(dtype: pa.DataType) -> bool:
    """Whether the type is a list of any kind."""
    return any(is_type(dtype) for is_type in (*_LISTS, *_LIST_VIEWS))


def conform(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The same rows with exactly the columns and types of `schema`.

    Whole floats become integers, as pandas makes floats of integers with gaps; NaN is null then.

    Raises:
        SchemaError: text that is no number, a fraction, or bytes that are no UTF-8.
    """
    columns = []
    for field in schema:
        column = table.column(field.name)
        if column.type != field.type:
            try:
                column = _cast(plain(column), field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise SchemaError(
                    f"column {field.name!r} cannot be read as {_type_name(field.type)}: {first_line(error)}",
                    where=where,
                    fix="Correct the value it names.",
                ) from error
        columns.append(column)
    return pa.table(columns, schema=schema)


def filterable(batch: pa.RecordBatch) -> pa.Table:
    """The same rows as a table that can be filtered, which Arrow cannot do with views."""
    columns = [
        column.cast(pa.string())
        if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type)
        else column
        for column in batch.columns
    ]
    return pa.table(columns, names=batch.schema.names)


def _cast(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_integer(dtype):
        if is_text(column.type):
            return _integers(column.cast(pa.string()), dtype)
        if pa.types.is_floating(column.type):
            return _whole(column, dtype)
    return column.cast(dtype)


def _integers(texts: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """Numbers as text; "7.0" is 7, and a blank cell is null."""
    texts = pc.utf8_trim_whitespace(texts)
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    try:
        return texts.cast(dtype)
    except pa.ArrowInvalid:
        if not pc.all(pc.match_substring_regex(texts, r"^[+-]?\d+(?:\.0*)?$")).as_py():
            raise
        return _whole(texts.cast(pa.float64()), dtype)


def _whole(numbers: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    numbers = pc.if_else(pc.is_nan(numbers), None, numbers.cast(pa.float64()))
    largest = pc.max(pc.abs(numbers)).as_py()
    if largest is not None and largest > _EXACT:
        raise pa.ArrowInvalid(f"{largest:.0f} is too large to be exact as a float")
    return numbers.cast(dtype)


def _compatible(got: pa.DataType, want: pa.DataType, name: str) -> bool:
    if pa.types.is_null(got):
        return True
    text = is_text(got)
    number = pa.types.is_integer(got) or pa.types.is_floating(got) or pa.types.is_decimal(got)
    if pa.types.is_string(want):
        return text
    if pa.types.is_integer(want):
        return bool(number or pa.types.is_boolean(got) or (name == "query_id" and text))
    if is_list(want):
        return _holds_floats(got)
    return bool(number) if pa.types.is_floating(want) else bool(got == want)


def _holds_floats(dtype: pa.DataType) -> bool:
    """Whether it is a list of floats, or a list of such lists: one vector may be stored as a matrix of one row."""
    if not is_list(dtype):
        return False
    value = plain_type(dtype.value_type)
    return bool(pa.types.is_floating(value) or pa.types.is_null(value) or _holds_floats(value))


def _type_name(dtype: pa.DataType) -> str:
    if pa.types.is_string(dtype):
        return "text"
    return "a list of float32" if is_list(dtype) else str(dtype)


def one_piece(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The same values without chunks, and without the copy that `combine_chunks` makes even of one chunk."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def dense(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Numbers or booleans without a null, read-only; pyarrow's own `to_numpy` imports pandas, which takes 45 MB."""
    values = one_piece(column)
    if pa.types.is_boolean(values.type):  # bits in arrow, bytes in numpy
        return np.from_dlpack(values.cast(pa.uint8())).view(np.bool_)
    return np.from_dlpack(values)
