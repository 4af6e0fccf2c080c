"""Tables of text with a delimiter, as programs really write them: csv, tsv, Excel's exports.

What can only mean one thing is read, and the log says how. Anything else is an error that names the line.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from sqid_lib.errors import CorruptFileError
from sqid_lib.tables.columns import check_columns, conform
from sqid_lib.tables.content import CSV, Source, read_text, reporting
from sqid_lib.tables.csv_layout import Layout, as_utf8, find_layout, line_of, not_utf8, place_of, row_starts

_LINE_ENDS = re.compile(rb"[\r\n]*")
_HEAD = 1 << 20  # bytes in which the header is looked for
_MAX_BLOCK = 1 << 30  # bytes that pyarrow parses at once: a row must fit

_log = logging.getLogger(__name__)


def read_csv(file: Source, schema: pa.Schema, optional: Sequence[str] = ()) -> pa.Table:
    """The columns of `schema` of a csv file; cells are text unless `schema` says otherwise, a blank cell is null.

    Ids that look like numbers, "nan" or "NA" stay text. Read without being asked: UTF-8 with or without a byte-order
    mark, UTF-16 with one, Windows-1252 where that is certain; comma, tab, semicolon or vertical bar; gzip, bz2, zstd;
    any line ends; names of columns in any case; spaces around cells; comment lines that begin with "#".

    Args:
        optional: columns of `schema` that may be absent; they are then absent from the table.

    Raises:
        MissingFileError, EmptyFileError, LfsPointerError, HtmlPageError, CorruptFileError, SchemaError, DownloadError.
    """
    where = str(file)
    data, notes = read_text(file, CSV)
    data, windows = as_utf8(data, where)
    layout = find_layout(data, schema.names, notes, where)
    if layout.names != layout.given:
        notes.append("names of columns in another case")
    schema = pa.schema([f for f in schema if f.name in layout.names or f.name not in optional])
    check_columns(pa.schema([(name, pa.string()) for name in layout.names]), _as_text(schema), where)
    return conform(_read(data, layout, schema.names, windows, notes, where), schema, where)


def read_csv_texts(file: Source, columns: Sequence[str], hints: Sequence[str] = ()) -> pa.Table:
    """Columns of a csv file by the names that the file has, as text; cells may hold line breaks, a blank one is null.

    Args:
        columns: names of `csv_header`.
        hints: names that some columns may have; the delimiter is the one that finds most of them.

    Raises:
        SourceError: as `read_csv`.
    """
    where = str(file)
    data, notes = read_text(file, CSV)
    data, windows = as_utf8(data, where)
    layout = find_layout(data, hints, notes, where)
    layout = replace(layout, names=layout.given)
    return _read(data, layout, columns, windows, notes, where, one_line=False)


def csv_header(file: Source, hints: Sequence[str] = ()) -> list[str]:
    """The column names as a csv file spells them; arguments and errors as `read_csv_texts`."""
    data, notes = read_text(file, CSV, _HEAD)
    return find_layout(as_utf8(data, str(file), head=True)[0], hints, notes, str(file)).given


def csv_line(file: Source, row: int, hints: Sequence[str] = ()) -> int:
    """The line (from 1) on which a row (from 0) of `read_csv_texts` begins; the file is read again for it."""
    data, notes = read_text(file, CSV)
    data, _ = as_utf8(data, str(file))
    layout = find_layout(data, hints, notes, str(file))
    starts = row_starts(data, layout)
    return line_of(data, next(islice(starts, row, None), len(data)))


def _read(
    data: bytes,
    layout: Layout,
    columns: Sequence[str],
    windows: bool,
    notes: list[str],
    where: str,
    *,
    one_line: bool = True,
) -> pa.Table:
    """The columns as text: quotes mended, cells cleaned, Windows-1252 confirmed; what was done is logged."""
    data = _mend_quotes(data, layout, notes, where)
    table = _parse(data, layout, columns, notes, where)
    if windows:
        _check_windows(table, data, layout, notes, where)
    table = _clean(table, data, notes, where, one_line=one_line)
    if not one_line:
        _warn_of_swallowed_rows(table, data, layout, where)
    if notes:
        _log.info("%s: read as csv with %s", where, ", ".join(notes))
    return table


def csv_names(file: Source, wanted: Sequence[str] = ()) -> list[str]:
    """The column names of a csv file; errors as `read_csv`.

    Args:
        wanted: names that are recognised in any case, as those of the official files always are.
    """
    where = str(file)
    data, notes = read_text(file, CSV, _HEAD)
    return find_layout(data, wanted, notes, where).names


def _as_text(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in schema.names])


def _check_windows(table: pa.Table, data: bytes, layout: Layout, notes: list[str], where: str) -> None:
    """Confirm Windows-1252: either no cell that is wanted depends on it, or the header ends as lines of Windows do.

    Further lines do not count: Excel writes a line break within a cell as one character.
    """
    for column in table.columns:
        strange = column.filter(pc.fill_null(pc.invert(pc.string_is_ascii(column)), False))
        if len(strange) and not data[: layout.start].endswith(b"\r\n"):
            raise not_utf8(line_of(data, place_of(data, strange[0].as_py())), where)
    notes.append("Windows-1252 text")


def _mend_quotes(data: bytes, layout: Layout, notes: list[str], where: str) -> bytes:
    """The same text with spaces before an opening quote removed, which pyarrow takes for part of the cell.

    Raises:
        CorruptFileError: a quote that opens a cell is not closed at the end of a cell, so that rows would be lost.
    """
    delimiter = layout.delimiter.encode()
    ends = {b"", delimiter, b"\n", b"\r"}
    kept: list[bytes] = []
    done, at = 0, data.find(b'"', layout.start)
    while at >= 0:
        start = at
        while data[start - 1 : start] == b" ":
            start -= 1
        if start > layout.start and data[start - 1 : start] not in ends:
            at = data.find(b'"', at + 1)  # within a cell, where it is a letter like any other
            continue
        close = data.find(b'"', at + 1)
        while close >= 0 and data[close + 1 : close + 2] == b'"':
            close = data.find(b'"', close + 2)
        after = close + 1
        while data[after : after + 1] == b" ":
            after += 1
        if close < 0 or data[after : after + 1] not in ends:
            raise CorruptFileError(
                f"the quote that opens in line {line_of(data, at)} "
                + ("is never closed" if close < 0 else f"ends within a cell in line {line_of(data, close)}"),
                where=where,
                expected='"…" around the whole cell, and "" for a quote in it',
                fix="Correct that line: rows would be lost.",
            )
        if start < at:
            kept.append(data[done:start])
            done = at
        at = data.find(b'"', close + 1)
    if not kept:
        return data
    notes.append("spaces before quotes")
    return b"".join([*kept, data[done:]])


def _parse(data: bytes, layout: Layout, wanted: Sequence[str], notes: list[str], where: str) -> pa.Table:
    """The wanted columns as text, cells as they are."""
    wrong: list[str] = []
    comments = 0

    def other_width(row: pcsv.InvalidRow) -> str:
        nonlocal comments
        if row.text.startswith("#"):
            comments += 1
            return "skip"
        wrong.append(f"Expected {row.expected_columns} columns, got {row.actual_columns}: {row.text[:200]}")
        wrong.append(row.text)
        return "error"

    numbers = [str(number) for number in range(len(layout.names))]
    chosen = [str(layout.names.index(name)) for name in wanted]
    if _LINE_ENDS.fullmatch(data, layout.start):
        return pa.table([pa.array([], pa.string()) for _ in wanted], names=list(wanted))
    rows = pa.py_buffer(data).slice(layout.start)
    try:
        with reporting(where):
            table = pcsv.read_csv(
                pa.BufferReader(rows),
                read_options=pcsv.ReadOptions(
                    use_threads=False, column_names=numbers, block_size=min(rows.size + 1, _MAX_BLOCK)
                ),
                parse_options=pcsv.ParseOptions(
                    delimiter=layout.delimiter, newlines_in_values=True, invalid_row_handler=other_width
                ),
                convert_options=pcsv.ConvertOptions(
                    column_types=dict.fromkeys(chosen, pa.string()), include_columns=chosen, strings_can_be_null=False
                ),
            )
    except CorruptFileError as error:
        if wrong:
            line = line_of(data, place_of(data, wrong[1]))
            error.what = f"line {line} has another number of columns than the header: {wrong[0]}"
            error.fix = f'Put quotes ("…") around a cell that holds the delimiter, {layout.delimiter!r}.'
        raise
    if comments:
        notes.append(f"{comments} comment lines between the rows")
    return table.rename_columns(list(wanted))


def _clean(table: pa.Table, data: bytes, notes: list[str], where: str, *, one_line: bool) -> pa.Table:
    """Cells without the spaces around them, null where nothing is left.

    Raises:
        CorruptFileError: with `one_line`, a line break within a cell: a stray quote has swallowed rows.
    """
    columns, padded = [], 0
    for column in table.columns:
        broken = column.filter(pc.match_substring_regex(column, r"[\r\n]"))
        if one_line and len(broken):
            cell = broken[0].as_py()
            raise CorruptFileError(
                "a cell with a line break in it, which no id, URL or source has",
                where=f"{where}, line {line_of(data, place_of(data, cell))}",
                got=repr(cell[:60]),
                fix="Look for a quote too many in that line.",
            )
        trimmed = pc.utf8_trim_whitespace(column)
        if not trimmed.equals(column):
            padded += pc.sum(pc.not_equal(trimmed, column)).as_py()
        columns.append(pc.if_else(pc.equal(trimmed, ""), None, trimmed))
    if padded:
        notes.append(f"spaces around cells ({padded})")
    return pa.table(columns, names=table.column_names)


def _warn_of_swallowed_rows(table: pa.Table, data: bytes, layout: Layout, where: str) -> None:
    """Warn of a cell that holds lines with as many delimiters as a row: a stray quote may have swallowed rows."""
    delimiter, count = re.escape(layout.delimiter), len(layout.names) - 1
    line = rf"(?:[^{delimiter}\r\n]*{delimiter}){{{count}}}[^{delimiter}\r\n]*\r?\n"
    lines = line if count > 2 else f"(?:{line}){{2}}"  # a line of prose has a comma, too
    for column in table.columns if 0 < count < 200 else ():
        cells = column.filter(pc.fill_null(pc.match_substring(column, "\n"), False))
        found = cells.filter(pc.match_substring_regex(cells, rf"\n{lines}"))
        if len(found):
            text = found[0].as_py()
            _log.warning(
                "%s, line %d: a cell of %d lines, some of which look like rows: is there a quote too many? %r",
                *(where, line_of(data, place_of(data, text)), text.count("\n") + 1, text[:60]),
            )
