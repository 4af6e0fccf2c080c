"""Untrusted parquet and csv files to Arrow tables: checked against declared columns, each fault one line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from sqid_lib.errors import (
    CorruptFileError,
    DownloadError,
    EmptyFileError,
    HtmlPageError,
    LfsPointerError,
    MissingFileError,
    SchemaError,
    SourceError,
    first_line,
)
from sqid_lib.files import File
from sqid_lib.sources import open_ranges

_PARQUET_MAGIC = b"PAR1"
_LFS_MAGIC = b"version https://git-lfs"
Source = File | Path | str
_ANY = pa.schema([])


def open_parquet(file: Source, schema: pa.Schema = _ANY, *, dictionary: Sequence[str] = ()) -> pq.ParquetFile:
    """A parquet file whose columns can be read as those of `schema` (more columns may be there).

    Args:
        file: a local path, or a File; remote ones are read by ranges.
        schema: columns needed, default none; compatible types pass (large strings, any integer, any list of floats).
        dictionary: text columns to read as dictionaries.

    Raises:
        MissingFileError, EmptyFileError, LfsPointerError, HtmlPageError, CorruptFileError, SchemaError, DownloadError.
    """
    name = _name(file)
    stream = _open(file)
    try:
        _check_kind(stream, name, parquet=True)
        with reporting(name):
            if dictionary:  # of a dictionary column that is not there pyarrow's error names nothing
                check_columns(pq.read_schema(stream), schema, name)
                stream.seek(0)
            parquet = pq.ParquetFile(stream, read_dictionary=list(dictionary), buffer_size=1 << 20, pre_buffer=False)
        check_columns(parquet.schema_arrow, schema, name)
    except BaseException:
        stream.close()
        raise
    return parquet


def read_parquet(file: Source, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` of a whole parquet file, in exactly those types; errors as `open_parquet`."""
    with open_parquet(file, schema) as parquet, reporting(_name(file)):
        return conform(parquet.read(columns=schema.names), schema, _name(file))


def read_csv(file: Source, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` of a csv file; cells are text unless `schema` says otherwise, an empty cell is null.

    Ids that look like numbers, "nan" or "NA" stay text; a byte-order mark and CRLF line ends are accepted.

    Raises:
        MissingFileError, EmptyFileError, LfsPointerError, HtmlPageError, CorruptFileError, SchemaError, DownloadError.
    """
    name = _name(file)
    with _open(file) as stream:
        _check_kind(stream, name, parquet=False)
        stream.seek(0)
        with reporting(name):
            table = pcsv.read_csv(
                stream,
                read_options=pcsv.ReadOptions(use_threads=False),
                parse_options=pcsv.ParseOptions(newlines_in_values=True),
                convert_options=pcsv.ConvertOptions(
                    column_types=dict.fromkeys(schema.names, pa.string()),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                    null_values=[""],
                ),
            )
    check_columns(table.schema, pa.schema([(column, pa.string()) for column in schema.names]), name)
    return conform(table.select(schema.names), schema, name)


def read_table(file: Source, schema: pa.Schema) -> pa.Table:
    """`read_csv` or `read_parquet`, by the name of the file."""
    return (read_csv if _is_csv(file) else read_parquet)(file, schema)


def column_names(file: Source) -> list[str]:
    """The column names of a csv or parquet file; errors as `read_csv` and `open_parquet`."""
    name = _name(file)
    if not _is_csv(file):
        with open_parquet(file) as parquet:
            return list(parquet.schema_arrow.names)
    with _open(file) as stream:
        _check_kind(stream, name, parquet=False)
        stream.seek(0)
        with reporting(name), pcsv.open_csv(stream, read_options=pcsv.ReadOptions(use_threads=False)) as reader:
            return list(reader.schema.names)


def _name(file: Source) -> str:
    """The file in messages."""
    return str(file)


def _is_csv(file: Source) -> bool:
    """By its name: that of a download is in its URL."""
    path = urlsplit(file.url).path if isinstance(file, File) and not file.local else str(file)
    return path.lower().endswith(".csv")


def check_columns(have: pa.Schema, want: pa.Schema, where: str) -> None:
    """Raise SchemaError unless every column of `want` is in `have` with a compatible type."""
    for field in want:
        if field.name not in have.names:
            raise SchemaError(
                f"column {field.name!r} is missing",
                where=where,
                expected=", ".join(want.names),
                got=", ".join(have.names) or "no columns",
                fix="Is this the right file? Rename its columns to the official ones.",
            )
        if have.names.count(field.name) > 1:
            raise SchemaError(f"column {field.name!r} is there twice", where=where, fix="Rename or drop one of them.")
        got = have.field(field.name).type
        if not _compatible(got, field.type, field.name):
            raise SchemaError(
                f"column {field.name!r} has the wrong type",
                where=where,
                expected=_type_name(field.type),
                got=str(got),
                fix="Write it again with that type.",
            )


def conform(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The same rows with exactly the types of `schema`; text that is no number is a SchemaError."""
    columns = []
    for field in schema:
        column = table.column(field.name)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise SchemaError(
                    f"column {field.name!r} cannot be read as {_type_name(field.type)}: {first_line(error)}",
                    where=where,
                    fix="Correct the value it names.",
                ) from error
        columns.append(column)
    return pa.table(columns, schema=schema)


def _compatible(got: pa.DataType, want: pa.DataType, name: str) -> bool:
    if pa.types.is_dictionary(got):
        got = got.value_type
    if pa.types.is_null(got):
        return True
    text = pa.types.is_string(got) or pa.types.is_large_string(got)
    if pa.types.is_string(want):
        return bool(text)
    if pa.types.is_integer(want):
        return bool(pa.types.is_integer(got) or pa.types.is_boolean(got) or (name == "query_id" and text))
    if pa.types.is_list(want) or pa.types.is_fixed_size_list(want):
        lists = pa.types.is_list(got) or pa.types.is_large_list(got) or pa.types.is_fixed_size_list(got)
        return bool(lists and (pa.types.is_floating(got.value_type) or pa.types.is_null(got.value_type)))
    if pa.types.is_floating(want):
        return bool(pa.types.is_floating(got) or pa.types.is_integer(got))
    return bool(got == want)


def _type_name(dtype: pa.DataType) -> str:
    if pa.types.is_string(dtype):
        return "text"
    return "a list of float32" if pa.types.is_list(dtype) or pa.types.is_fixed_size_list(dtype) else str(dtype)


def _open(file: Source) -> Any:
    path = file.path if isinstance(file, File) else str(file)
    try:
        if path.startswith(("http://", "https://", "hf://")):
            return pa.PythonFile(open_ranges(path), mode="r")
        if os.path.isdir(path):  # noqa: PTH112 - a str
            raise SourceError("a directory stands where a file should be", where=_name(file))
        return pa.OSFile(path, "rb")
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=_name(file), fix="Check the path.") from error
    except OSError as error:
        raise DownloadError(f"cannot be opened: {first_line(error)}", where=_name(file)) from error


def _check_kind(stream: Any, where: str, *, parquet: bool) -> None:
    """Detect HTML pages, Git LFS pointers and truncated files before parsing."""
    size = stream.size()
    if not size:
        raise EmptyFileError("the file is empty", where=where, fix="Fetch it again.")
    head = bytes(stream.read(min(size, 512)))
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(_LFS_MAGIC):
        raise LfsPointerError(
            "this is a Git LFS pointer, not the file",
            where=where,
            expected="the data" + (" (parquet)" if parquet else ""),
            got=f"{size} bytes of pointer",
            fix=_lfs_remedy(where),
        )
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body", b"<!--")):
        raise HtmlPageError(
            "this is a web page, not the file",
            where=where,
            expected="parquet" if parquet else "csv",
            got=repr(head[:40].decode("utf-8", "replace")),
            fix="Open the address in a browser to see what the server says, then correct it.",
        )
    if not parquet:
        if b"\0" in head:
            raise CorruptFileError("this is not a csv file", where=where, expected="text", got=repr(head[:8]))
        return
    if not head.startswith(_PARQUET_MAGIC):
        raise CorruptFileError(
            "this is not a parquet file",
            where=where,
            expected="PAR1 at its start",
            got=repr(head[:8]),
            fix="Fetch it again.",
        )
    stream.seek(max(size - 4, 0))
    tail = bytes(stream.read(4))
    if tail != _PARQUET_MAGIC or size < 12:
        raise CorruptFileError(
            "the parquet file is truncated",
            where=where,
            expected="PAR1 at its end",
            got=f"{tail!r} after {size} bytes",
            fix="Fetch it again.",
        )
    stream.seek(0)


def _lfs_remedy(where: str) -> str:
    parts = urlsplit(where)
    if parts.hostname == "raw.githubusercontent.com":
        return f"Use https://media.githubusercontent.com/media{parts.path}"
    if "://" in where:
        return "On GitHub the data is at https://media.githubusercontent.com/media/OWNER/REPO/BRANCH/PATH."
    return "Run `git lfs pull` in that checkout, or fetch the file itself."


@contextmanager
def reporting(where: str) -> Iterator[None]:
    """Turn exceptions of pyarrow and of the network into SourceErrors; `where` names the file."""
    try:
        yield
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=where, fix="Check the path.") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, pa.ArrowKeyError, EOFError) as error:
        if "Empty CSV file" in str(error):
            raise EmptyFileError("the file has no rows", where=where, fix="Fetch it again.") from error
        raise CorruptFileError(
            f"the file is damaged: {first_line(error)}", where=where, fix="Fetch it again or mend it."
        ) from error
    except OSError as error:
        damaged = "://" not in where
        cls = CorruptFileError if damaged else DownloadError
        raise cls(
            f"the file {'is damaged' if damaged else 'cannot be read'}: {first_line(error)}",
            where=where,
            fix="Fetch it again.",
        ) from error
