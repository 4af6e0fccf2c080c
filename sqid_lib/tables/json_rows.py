"""Tables of JSON: an array of objects, or one object on each line."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sqid_lib.errors import CorruptFileError, EmptyFileError, SchemaError, first_line
from sqid_lib.tables.columns import check_columns, conform
from sqid_lib.tables.content import JSON, Source, read_text

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
    rows, notes = _rows(file, where)
    names = _names(rows)
    if notes:
        _log.info("%s: read as JSON with %s", where, ", ".join(notes))
    schema = pa.schema([f for f in schema if f.name in names or f.name not in optional])
    check_columns(pa.schema([(name, pa.null()) for name in names]), schema, where)
    columns = [_column(rows, names[field.name], field, where) for field in schema]
    return conform(pa.table(columns, names=schema.names), schema, where)


def json_names(file: Source) -> list[str]:
    """The names in the objects of a JSON file, in lower case; errors as `read_json`."""
    return list(_names(_rows(file, str(file))[0]))


def _rows(file: Source, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects, and what the log should say."""
    data, notes = read_text(file, JSON)
    try:
        text = data.decode()
        rows = json.loads(text) if text.lstrip().startswith("[") else _lines(text, where)
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"this is not JSON in UTF-8: {first_line(error)}", where=where) from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"the JSON array is damaged: {first_line(error)}", where=where, fix="Fetch it again or mend it."
        ) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise CorruptFileError(
                f"value {number} is no JSON object",
                where=where,
                expected='an array of objects such as {"product_id": …}, or one object on each line',
                got=repr(row)[:60],
                fix="With pandas: to_json(…, orient='records').",
            )
    if not rows:
        raise EmptyFileError("the file has no rows", where=where, fix="Fetch it again.")
    if text.lstrip().startswith("["):
        notes.append("an array of objects")
    return rows, notes


def _lines(text: str, where: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise CorruptFileError(
                    f"line {number} is not JSON: {first_line(error)}",
                    where=where,
                    expected="an array of objects, or one object on each line",
                    fix="Correct that line, or write the file again.",
                ) from error
    if len(rows) == 1 and isinstance(rows[0], dict) and all(isinstance(v, dict | list) for v in rows[0].values()):
        raise CorruptFileError(
            "an object of columns",
            where=where,
            expected="an array of objects, or one object on each line",
            fix="With pandas: to_json(…, orient='records').",
        )
    return rows


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
        values.append(text or None)
        if "\n" in text or "\r" in text:
            raise CorruptFileError(f"{field.name} of object {number} has a line break in it", where=where)
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:
        raise CorruptFileError(f"{field.name} holds half a character", where=where) from error
