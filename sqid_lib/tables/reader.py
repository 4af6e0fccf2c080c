"""Untrusted parquet, csv and json files to Arrow tables: checked against declared columns, each fault one line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib.tables.columns import check_columns, conform
from sqid_lib.tables.content import CSV, JSON, PARQUET, Source, check_parquet, is_parquet, kind_of, open_file, reporting
from sqid_lib.tables.delimited import csv_names, read_csv
from sqid_lib.tables.duckdb_arrays import as_lists, null_arrays
from sqid_lib.tables.json_rows import json_names, read_json
from sqid_lib.tables.keys import trimmed

__all__ = [
    "Source",
    "check_columns",
    "column_names",
    "conform",
    "open_parquet",
    "read_csv",
    "read_parquet",
    "read_table",
    "reporting",
    "table_kind",
]

_ANY = pa.schema([])
_log = logging.getLogger(__name__)


def open_parquet(file: Source, schema: pa.Schema = _ANY, *, dictionary: Sequence[str] = ()) -> pq.ParquetFile:
    """A parquet file whose columns can be read as those of `schema` (more columns may be there).

    Args:
        file: a local path, or a File; remote ones are read by ranges.
        schema: columns needed, default none. Types that `conform` can convert pass: text of any kind and binary text,
            any integer, whole floats, dictionaries, any list of floats, tensors.
        dictionary: text columns to read as dictionaries.

    Raises:
        MissingFileError, EmptyFileError, LfsPointerError, HtmlPageError, CorruptFileError, SchemaError, DownloadError.
    """
    where = str(file)
    stream = open_file(file)
    try:
        with reporting(where):
            check_parquet(stream, where)
            if dictionary:  # pyarrow's error for a dictionary column that is missing does not name it
                check_columns(pq.read_schema(stream), schema, where)
                stream.seek(0)
            options: dict[str, Any] = {"read_dictionary": list(dictionary), "buffer_size": 1 << 20, "pre_buffer": False}
            options["page_checksum_verification"] = True  # where a file has checksums of its pages
            parquet = pq.ParquetFile(stream, **options)
            if arrays := null_arrays(parquet):
                parquet = pq.ParquetFile(as_lists(stream, arrays, where), **options)
        check_columns(parquet.schema_arrow, schema, where)
    except BaseException:
        stream.close()
        raise
    return parquet


def read_parquet(file: Source, schema: pa.Schema, optional: Sequence[str] = ()) -> pa.Table:
    """The columns of `schema` of a whole parquet file, in exactly those types; errors as `open_parquet`."""
    with open_parquet(file) as parquet, reporting(str(file)):
        schema = pa.schema([f for f in schema if f.name in parquet.schema_arrow.names or f.name not in optional])
        check_columns(parquet.schema_arrow, schema, str(file))
        return trimmed(conform(parquet.read(columns=schema.names), schema, str(file)), str(file))


def read_table(file: Source, schema: pa.Schema, optional: Sequence[str] = ()) -> pa.Table:
    """`read_csv`, `read_json` or `read_parquet`, by the name of the file.

    Args:
        optional: columns of `schema` that may be absent; they are then absent from the table.
    """
    reader = {CSV: read_csv, JSON: read_json, PARQUET: read_parquet}[table_kind(file)]
    return reader(file, schema, optional)


def column_names(file: Source, wanted: Sequence[str] = ()) -> list[str]:
    """The column names of a csv, json or parquet file; errors as the functions that read it.

    Args:
        wanted: names that are recognised in any case in a csv file, besides the official ones.
    """
    kind = table_kind(file)
    if kind != PARQUET:
        return csv_names(file, wanted) if kind == CSV else json_names(file)
    with open_parquet(file) as parquet:
        return list(parquet.schema_arrow.names)


def table_kind(file: Source) -> str:
    """PARQUET, CSV or JSON: by the name of the file, but a parquet file under another name is one."""
    kind = kind_of(file)
    if kind != PARQUET and is_parquet(file):
        _log.info("%s: read as parquet, which it is", file)
        return PARQUET
    return kind
