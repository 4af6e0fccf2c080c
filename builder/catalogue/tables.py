"""Tables of a shop at any address: csv, JSON and parquet files, one or a folder of them, read in batches."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.catalogue.image_columns import image_references, is_image_column
from sqid_lib import sources
from sqid_lib.errors import CorruptFileError, MissingFileError, SchemaError, without_secrets
from sqid_lib.files import File
from sqid_lib.sources.address import HTTP, LOCAL
from sqid_lib.tables.columns import plain
from sqid_lib.tables.content import CSV, JSON, PARQUET, kind_of
from sqid_lib.tables.delimited import csv_header, csv_line, read_csv_texts
from sqid_lib.tables.json_rows import json_objects
from sqid_lib.tables.reader import open_parquet, reporting, table_kind

BATCH_ROWS = 65_536
_JSON_ROWS = 16_384
_PARQUET_NAMES = (".parquet", ".pq")
_LINES = re.compile(r"\.(?:jsonl|ndjson)\b", re.IGNORECASE)  # rather than an array
_NOT_TABLES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of datasets
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Some rows of one file.

    Attributes:
        table: the columns that were asked for. Cells of csv are text, null where they are blank; values of JSON and
            parquet have the type that they have there, which may differ between batches.
        file: number of the file, from 0.
        first: number of the first row in its file, from 0.
        image_counts: how many images each row has, [rows], where the column of images holds bytes: then it has their
            references here; otherwise None.
    """

    tables: Tables
    table: pa.Table
    file: int
    first: int
    image_counts: npt.NDArray[np.int32] | None = None

    def where(self, row: int) -> str:
        """Where a row of the batch (from 0) is, for messages: "FILE, line N"."""
        return self.tables.where(self.file, self.first + row)


@dataclass(frozen=True)
class Tables:
    """The files of one table, which have the same columns.

    Attributes:
        address: where they are from, without secrets.
        files: with their local paths.
        hints: names that columns may have, which tell the delimiter of a csv file.
    """

    address: str
    files: tuple[File, ...]
    hints: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns, as the files spell them, in the order of the first file; the columns of JSON are of all files.

        Raises:
            SourceError: a file is damaged, or is no table.
            SchemaError: two columns have one name, or two files have other columns.
        """
        found = {file: self._names(file, kind) for file, kind in zip(self.files, self.kinds, strict=True)}
        first, names = next(iter(found.items()))
        for file, others in found.items():
            twice = sorted({name for name in others if others.count(name) > 1})
            if twice:
                places = [str(i) for i, name in enumerate(others, 1) if name == twice[0]]
                raise SchemaError(
                    f"two columns have the name {twice[0]!r}",
                    where=file,
                    got=f"columns {' and '.join(places)} of {len(others)}",
                    fix="Rename or drop one of them.",
                )
            if set(others) != set(names) and JSON not in self.kinds:
                differ = sorted(set(others) ^ set(names))
                raise SchemaError(
                    f"the files of {self.address} have not the same columns",
                    where=file,
                    expected=f"the columns of {first}: {', '.join(names)}",
                    got=f"{', '.join(others)}; they differ in {', '.join(differ)}",
                    fix="Name one file, or a folder that holds the files of this table alone.",
                )
        return tuple(dict.fromkeys(name for others in found.values() for name in others))

    def read(self, columns: Sequence[str], *, image: str | None = None) -> Iterator[Batch]:
        """The rows in the order of the files; a csv file is parsed as a whole, JSON and parquet batch by batch.

        Args:
            columns: some of `names`, at least one, none twice.
            image: the one of them that names images. Where it holds the bytes of images, or lists of them, they are not
                read: the batch has "row:FILE:ROW" (numbers from 0) as text, or a path, null where there are none.

        Raises:
            SourceError: a file is damaged, when it is reached.
        """
        readers = {CSV: self._read_csv, JSON: self._read_json, PARQUET: self._read_parquet}
        for number, kind in enumerate(self.kinds):
            yield from readers[kind](number, list(columns), image)

    def where(self, file: int, row: int) -> str:
        """Where a row (from 0) of a file (from 0) is, for messages; the file is read again for it."""
        name, kind = self.files[file], self.kinds[file]
        if kind == CSV:
            return f"{name}, line {csv_line(name, row, self.hints)}"
        if kind == JSON:
            what = "line" if _LINES.search(str(name)) else "object"
            return f"{name}, {what} {next(islice(json_objects(name), row, None))[0]}"
        return f"{name}, row {row + 1}"

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """CSV, JSON or PARQUET of each file."""
        return tuple(table_kind(file) for file in self.files)

    def _names(self, file: File, kind: str) -> list[str]:
        if kind == CSV:
            return [name for name in csv_header(file, self.hints) if name]  # Excel leaves columns without a name
        if kind == JSON:
            return list(dict.fromkeys(name for _, row in json_objects(file) for name in row))
        with open_parquet(file) as parquet:
            return [name for name in parquet.schema_arrow.names if not name.startswith("__index_level_")]

    def _read_csv(self, number: int, columns: list[str], image: str | None) -> Iterator[Batch]:  # noqa: ARG002
        table = read_csv_texts(self.files[number], columns, self.hints)
        for first in range(0, table.num_rows, BATCH_ROWS):
            yield Batch(self, table.slice(first, BATCH_ROWS), number, first)

    def _read_json(self, number: int, columns: list[str], image: str | None) -> Iterator[Batch]:  # noqa: ARG002
        objects, first = json_objects(self.files[number]), 0
        while rows := [row for _, row in islice(objects, _JSON_ROWS)]:
            arrays = [_array([row.get(name) for row in rows], name, self.files[number]) for name in columns]
            yield Batch(self, pa.table(arrays, columns), number, first)
            first += len(rows)

    def _read_parquet(self, number: int, columns: list[str], image: str | None) -> Iterator[Batch]:
        file, first = self.files[number], 0
        with open_parquet(file) as parquet, reporting(str(file)):
            bytes_in = image if image is not None and is_image_column(parquet, image) else None
            others = [name for name in columns if name != bytes_in]
            for group in range(parquet.num_row_groups):
                rows, start = parquet.metadata.row_group(group).num_rows, first
                if bytes_in:
                    references, counts = image_references(parquet, bytes_in, group, number, first)
                for batch in parquet.iter_batches(BATCH_ROWS, [group], others) if others else _no_columns(rows):
                    table = pa.Table.from_batches([batch])
                    table = pa.table([plain(column) for column in table.columns], table.column_names)
                    images = None
                    if bytes_in:
                        part = references.slice(start - first, batch.num_rows)
                        table = table.append_column(bytes_in, part) if others else pa.table({bytes_in: part})
                        images = counts[start - first :][: batch.num_rows]
                    yield Batch(self, table.select(columns), number, start, images)
                    start += batch.num_rows
                first += rows


def open_tables(address: str, hints: Sequence[str] = ()) -> Tables:
    """The table at an address, downloaded if it is elsewhere.

    Args:
        address: a file or a folder on this machine, a file at https://, a file, a folder or a dataset at hf://.
        hints: names that columns may have, which tell the delimiter of a csv file.

    Raises:
        SourceError: as `find_tables` and `sources.download`.
    """
    return Tables(
        without_secrets(address), tuple(sources.download(file) for file in find_tables(address)), tuple(hints)
    )


def find_tables(address: str) -> tuple[File, ...]:
    """The files of the table at an address, at the versions they have now: a folder's parquet files, or its others.

    Raises:
        MissingFileError: there is no such file, or no table in the folder.
        DownloadError: the server or the Hub cannot be reached.
        SourceError: not an address.
    """
    place = sources.parse_address(address, file=True)
    if place.kind == HTTP:
        return (sources.find_file(address),)
    if place.local is not None and not place.local.is_dir():
        return (sources.find_file(address),)
    if place.kind == LOCAL:
        files = sources.listing(place)
        direct = {name: file for name, file in files.items() if "/" not in name and _is_table(name)}
        files = direct or files  # a folder below may hold anything, such as a model
    else:
        folder, _, name = place.path.rpartition("/")
        files = sources.listing(replace(place, path=folder))
        if name and name in files:
            return (files[name],)
        files = {path: file for path, file in files.items() if not name or path.startswith(f"{name}/")}
    return _tables_among(files, address)


def _tables_among(files: Mapping[str, File], address: str) -> tuple[File, ...]:
    names = [name for name in files if _is_table(name)]
    chosen = sorted([name for name in names if name.lower().endswith(_PARQUET_NAMES)] or names)
    if not chosen:
        raise MissingFileError(
            "there is no table in this folder",
            where=address,
            expected="files that end in .parquet, .csv, .tsv, .json, .jsonl or .ndjson (.gz, .bz2, .zst)",
            got=f"{', '.join(sorted(files)[:5])}{' …' if len(files) > 5 else ''}" or "no files",
            fix="Check the address.",
        )
    if left := sorted(set(names) - set(chosen)):
        _log.warning("%s: only its parquet files are read, and not %s …", address, ", ".join(left[:3]))
    if len(chosen) > 1:
        _log.info("%s: %d files are read as one table: %s …", address, len(chosen), ", ".join(chosen[:3]))
    return tuple(files[name] for name in chosen)


def _is_table(name: str) -> bool:
    lower, file = name.lower(), name.rpartition("/")[2]
    text = kind_of(name) != PARQUET and ".txt" not in lower
    return file not in _NOT_TABLES and (text or lower.endswith(_PARQUET_NAMES))


def _array(values: list[Any], name: str, file: File) -> pa.Array:
    """Values of JSON as Arrow has them; as text where they are of several types, a list of texts as its lines."""
    try:
        return pa.array(values)
    except UnicodeEncodeError as error:
        raise CorruptFileError(f"a value of {name} holds half a character", where=file) from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as a column of numbers alone is read
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _no_columns(rows: int) -> Iterator[pa.RecordBatch]:
    """One batch of so many rows and one column that nobody reads."""
    yield pa.record_batch([pa.nulls(rows)], [""])
