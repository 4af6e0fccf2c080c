"""Tables of JSON: an array of objects, or one object on each line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from sqid_lib.errors import CorruptFileError, EmptyFileError, SchemaError, first_line
from sqid_lib.tables.columns import check_columns, conform
from sqid_lib.tables.content import JSON, MAX_TEXT, Source, encoding_of, open_text

_ARRAY = "an array of objects"  # in the log
_MAX_LINE = 64_000_000  # characters; a longer line is no row of a table
_log = logging.getLogger(__name__)


def read_json(file: Source, schema: pa.Schema, optional: Sequence[str] = ()) -> pa.Table:
    """The columns of `schema` of a JSON file: an array of objects or one object on each line, perhaps compressed.

    A value that is absent, null or a blank text is null; numbers are read where `schema` has a number.

    Args:
        optional: columns of `schema` that may be absent; they are then absent from the table.

    Raises:
        MissingFileError, EmptyFileError, LfsPointerError, HtmlPageError, CorruptFileError, SchemaError, DownloadError.
    """
    where = str(file)
    rows = [row for _, row in json_objects(file)]
    names = _names(rows)
    schema = pa.schema([f for f in schema if f.name in names or f.name not in optional])
    check_columns(pa.schema([(name, pa.null()) for name in names]), schema, where)
    columns = [_column(rows, names[field.name], field, where) for field in schema]
    return conform(pa.table(columns, names=schema.names), schema, where)


def json_names(file: Source) -> list[str]:
    """The names in the objects of a JSON file, in lower case; errors as `read_json`."""
    return list(_names([row for _, row in json_objects(file)]))


def json_objects(file: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON file with their numbers, from 1: of a line, or in the array.

    Lines are read one by one, so that the file may be larger than memory; an array is read as a whole.

    Raises:
        SourceError: as `read_json`; also for a damaged line, when it is reached.
    """
    where, number, first = str(file), 0, None
    with open_text(file, JSON) as (stream, notes):
        encoding = encoding_of(stream.peek(4)[:4])
        text = io.TextIOWrapper(stream, encoding, newline="\n")
        try:
            if encoding != "utf-8-sig":
                notes.append(encoding.upper())
            for number, row in _values(text, notes, where):
                if not isinstance(row, dict):
                    raise CorruptFileError(
                        f"value {number} is no JSON object",
                        where=where,
                        expected='an array of objects such as {"product_id": …}, or one object on each line',
                        got=repr(row)[:60],
                        fix="With pandas: to_json(…, orient='records').",
                    )
                first = row if first is None else {}
                yield number, row
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"this is not JSON in UTF-8: {first_line(error)}", where=where) from error
    if first is None:
        raise EmptyFileError("the file has no rows", where=where, fix="Fetch it again.")
    if first and _ARRAY not in notes and all(isinstance(value, dict | list) for value in first.values()):
        raise CorruptFileError(
            "an object of columns",
            where=where,
            expected="an array of objects, or one object on each line",
            fix="With pandas: to_json(…, orient='records').",
        )
    if notes:
        _log.info("%s: read as JSON with %s", where, ", ".join(notes))


def _values(text: io.TextIOWrapper, notes: list[str], where: str) -> Iterator[tuple[int, Any]]:
    """The values of the array, or of the lines that are not blank, with their numbers."""
    number, any_value = 0, False
    while line := text.readline(_MAX_LINE):
        number += 1
        if not line.strip():
            continue
        if not any_value and line.lstrip().startswith("["):
            notes.append(_ARRAY)
            yield from enumerate(_array(line + text.read(MAX_TEXT), where), 1)
            return
        any_value = True
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(
                f"line {number} is not JSON: {first_line(error)}",
                where=where,
                expected="an array of objects, or one object on each line",
                fix="Correct that line, or write the file again.",
            ) from error


def _array(text: str, where: str) -> list[Any]:
    try:
        values: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"the JSON array is damaged: {first_line(error)}", where=where, fix="Fetch it again or mend it."
        ) from error
    return values


def _names(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The names of the objects in lower case, each with its spelling."""
    names: dict[str, str] = {}
    for row in rows:
        for name in row:
            if names.get(name.lower()) != name.lower():
                names[name.lower()] = name
    return names


def _column(rows: Sequence[dict[str, Any]], name: str, field: pa.Field, where: str) -> pa.Array:
    """One column as text; `conform` makes numbers of it."""
    texts = pa.types.is_string(field.type)
    values: list[str | None] = []
    padded = 0
    for number, row in enumerate(rows, 1):
        value = row.get(name)
        if value is not None and (
            not isinstance(value, str if texts else str | int | float) or isinstance(value, bool)
        ):
            raise SchemaError(
                f"{field.name} of object {number} has the wrong type",
                where=where,
                expected="text" if texts else str(field.type),
                got=repr(value)[:60],
                fix="Write ids as text: a number loses the zeros at its start." if texts else None,
            )
        text = str(value).strip() if value is not None else ""
        padded += isinstance(value, str) and text != value and bool(text)
        values.append(text or None)
        if "\n" in text or "\r" in text:
            raise CorruptFileError(f"{field.name} of object {number} has a line break in it", where=where)
    if padded:
        _log.info("%s: spaces around the values of %s are left out, in %d rows", where, name, padded)
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:
        raise CorruptFileError(f"{field.name} holds half a character", where=where) from error
