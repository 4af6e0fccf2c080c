"""A release's parquet files, turned once into flat matrices that can be memory-mapped.

A converted directory holds flat matrices, Arrow tables and store.json, which is written last. Its name is a digest of
the contents of the source files, so equal releases share one conversion wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from sqid_lib import schemas
from sqid_lib.cache import MOVE_IT, writable_place
from sqid_lib.errors import DiskError, EmptyFileError, SchemaError, StoreError, first_line
from sqid_lib.files import sync
from sqid_lib.store import checksums
from sqid_lib.store.checksums import Converted, Statement
from sqid_lib.store.source import Rows, Source
from sqid_lib.streams.checks import check_keys, checked_gains, checked_images, checked_texts, find_rows
from sqid_lib.streams.release_files import digest, noted_digest
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import check_columns, conform

MATRICES = {
    "text_features": (schemas.FEATURES, "clip_text_features"),
    "image_features": (schemas.FEATURES, "clip_image_features"),
    "query_features": (schemas.QUERIES, "clip_text_features"),
}
DISK_MARGIN = 64 << 20  # bytes left free beside the conversion
_GROUPS_AHEAD = 4  # row groups whose vectors wait to be read
_SYNC_BYTES = 64 << 20  # of a file, that the disk gets at once

_log = logging.getLogger(__name__)


def convert(
    source: Source, places: Sequence[Path], dtype: str = "float32", progress: bool = True, verify: bool = False
) -> Converted:
    """The converted directory for `source`, made now if it is not there yet and whole.

    Args:
        places: folders that may hold it; it is made in the first that can be written.
        verify: compare the large files of an earlier conversion with their checksums too.

    Raises:
        CorruptFileError: a file is truncated, or is not what SHA256SUMS says.
        SchemaError, ContractError: the files cannot make a store.
        DiskError: there is not room for the matrices, or no place that can be written.
    """
    noted = {path: noted_digest(path, places) for path in source.files}
    known = {path: found for path, found in noted.items() if found and source.files[path] in (None, found)}
    likely = _key(source, known, dtype) if len(known) == len(noted) else ""
    if likely and (found := _find(likely, places, verify)):
        return found
    # a conversion is made of what the files hold now, whatever was noted
    with ThreadPoolExecutor() as pool:
        found_now = pool.map(lambda path: digest(path, places, source.files[path]), source.files)
        key = _key(source, dict(zip(source.files, found_now, strict=True)), dtype)
    if key != likely and (found := _find(key, places, verify)):
        return found
    return _make(source, writable_place(places), key, np.dtype(dtype), progress)


def _key(source: Source, digests: Mapping[Path, str], dtype: str) -> str:
    contents = [(path.name, digests[path]) for path in source.files]
    made_of = [checksums.FORMAT, schemas.fingerprint(), dtype, source.settings, contents]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


def _find(key: str, places: Sequence[Path], verify: bool, level: int = logging.WARNING) -> Converted | None:
    """An earlier conversion; one that is damaged is logged and left out."""
    for place in places:
        if (place / key).exists():
            try:
                return checksums.check(place / key, verify)
            except StoreError as error:
                error.fix = "It is made again from the release."
                _log.log(level, "%s", error)
    return None


def _make(source: Source, cache: Path, key: str, dtype: np.dtype[Any], progress: bool) -> Converted:
    target = cache / key
    try:
        with FileLock(cache / f"{key}.lock"):
            if found := _find(key, (cache,), False, logging.DEBUG):  # another process made it meanwhile
                return found
            for stale in (target, *cache.glob(f".{key}-*")):  # leftovers of an interrupted run; we hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache))
            try:
                stated = _write(source, partial, dtype, progress)
                partial.replace(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        what = f"the converted store cannot be written: {error.strerror or first_line(error)}"
        raise DiskError(what, where=error.filename or target, fix=MOVE_IT) from error
    return Converted(target, stated)


# -- the conversion itself ------------------------------------------------------------------------------------------


def _write(source: Source, directory: Path, dtype: np.dtype[Any], progress: bool) -> Statement:
    width = source.width()
    rows = {config: source.rows(config) for config in (schemas.FEATURES, schemas.QUERIES)}
    _check_disk(directory, (2 * rows[schemas.FEATURES] + rows[schemas.QUERIES]) * width * dtype.itemsize)
    quiet = None if progress else True  # None: quiet unless on a terminal
    sums: dict[str, str] = {}
    with tqdm(total=sum(rows.values()) or None, unit="row", desc="Converting to a store", disable=quiet) as bar:
        products, queries = (_write_part(source, directory, config, width, dtype, bar.update, sums) for config in rows)
    judgments = _read_judgments(source)
    _write_judgments(directory, judgments, products, queries)
    for name, table in (("products", products), ("queries", queries), ("judgments", judgments)):
        with pa.OSFile(str(directory / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    stated = checksums.state(directory, dtype.name, width, sums)
    for path in directory.iterdir():
        sync(path)
    stated.write(directory)
    return stated


def _write_part(
    source: Source,
    directory: Path,
    config: str,
    width: int,
    dtype: np.dtype[Any],
    advance: Callable[[int], object],
    sums: dict[str, str],
) -> pa.Table:
    """Append the vectors of one config to flat files, row group by row group; return its other columns.

    Each file has a thread, which reads, checks and writes its vectors. `sums` gets the checksum of each file, by name.
    """
    columns = {name: column for name, (part, column) in MATRICES.items() if part == config}
    rest, has_image, kept = [], [], source.kept()
    writing: deque[dict[str, Future[NDArray[np.bool_]]]] = deque()

    def finish(left: int) -> None:
        while len(writing) > left:
            shown = {name: task.result() for name, task in writing.popleft().items()}
            has_image.append(shown.get("image_features", np.zeros(0, np.bool_)))
            advance(len(next(iter(shown.values()))))

    with ExitStack() as stack:
        files = {name: stack.enter_context(_MatrixFile(directory / f"{name}.bin")) for name in columns}
        threads = {name: stack.enter_context(ThreadPoolExecutor(1)) for name in columns}
        for rows, fresh in _new_rows(source, config):
            tasks = {name: (files[name], rows, fresh, column, width, dtype) for name, column in columns.items()}
            writing.append({name: threads[name].submit(_write_vectors, *task) for name, task in tasks.items()})
            rest.append(_tidy(rows.table if fresh is None else rows.table.filter(fresh), config, rows.where, kept))
            finish(_GROUPS_AHEAD)
        finish(0)
        sums.update({f"{name}.bin": file.checksum for name, file in files.items()})
    if not rest and config == schemas.QUERIES and source.lacks(config):
        return _kept_columns(config).empty_table()
    if not rest:
        raise EmptyFileError(f"{config} has no rows", where=next(iter(source.files)))
    if config == schemas.FEATURES:
        np.save(directory / "has_image.npy", np.concatenate(has_image))
    return pa.concat_tables(rest).combine_chunks()


def _write_vectors(
    file: _MatrixFile, rows: Rows, fresh: pa.Array | None, column: str, width: int, dtype: np.dtype[Any]
) -> NDArray[np.bool_]:
    """Append the vectors of a column, those of `fresh` rows alone; whether each row has an image, or else true."""
    table = rows.with_vectors(column)
    if fresh is not None:
        table = table.filter(fresh)
    if column == MATRICES["image_features"][1]:
        vectors, shown = checked_images(table, column, width, dtype, rows.where)
    else:
        vectors = checked_texts(table, column, width, dtype, rows.where)
        shown = np.ones(len(table), np.bool_)
    file.write(vectors)
    return shown


class _MatrixFile:
    """A flat file of vectors, checksummed as it is written. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file, self._digest, self._unsynced = path.open("wb"), xxhash.xxh3_128(), 0
        self._disk = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._disk.shutdown()
        self._file.close()
        if self._syncing is not None and kind is None:  # the system reports a failure of the disk once
            self._syncing.result()

    @property
    def checksum(self) -> str:
        """As `files.checksum` gives it."""
        return self._digest.hexdigest()

    def write(self, vectors: NDArray[Any]) -> None:
        """Append the rows; the disk gets them meanwhile, and not all at the end."""
        self._digest.update(vectors.data)
        self._file.write(vectors.data)
        self._unsynced += vectors.nbytes
        if self._unsynced >= _SYNC_BYTES:
            if self._syncing is not None:
                self._syncing.result()
            self._file.flush()
            self._syncing, self._unsynced = self._disk.submit(os.fsync, self._file.fileno()), 0


def _new_rows(source: Source, config: str) -> Iterator[tuple[Rows, pa.Array | None]]:
    """The rows of a config, and which of them no earlier split had: a product may be judged in both; None for all."""
    now, before = "", pa.array([], pa.int64() if config == schemas.QUERIES else pa.string())
    these: list[pa.Array] = []
    for rows in source.tables(config):
        if rows.split != now:
            before, now, these = pa.concat_arrays([before, *these]), rows.split, []
        keys = _keys(rows.table, config, rows.where)
        these.append(keys)
        fresh = pc.invert(pc.is_in(keys, value_set=before)) if len(before) else None
        if len(keys) if fresh is None else pc.any(fresh).as_py():
            yield rows, fresh


def _keys(table: pa.Table, config: str, where: str) -> pa.Array:
    """What must be unique in a row: a query_id, or the key of a product."""
    names = [name for name in schemas.DECLARED[config].key if name != "product_locale" or name in table.column_names]
    key = _typed(table, pa.schema([schemas.config_schema(config).field(name) for name in names]), where)
    if config == schemas.QUERIES:
        return check_keys(key["query_id"].combine_chunks(), where)
    if "product_locale" not in names:
        key = key.append_column("product_locale", pa.repeat(schemas.CLASSIC_LOCALE, len(key)).cast(pa.string()))
    return check_keys(key_strings(key), where)


def _typed(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The columns of `schema`, in those types; SchemaError where that cannot be."""
    check_columns(table.schema, schema, where)
    return conform(table, schema, where)


def _kept_columns(config: str, kept: schemas.Kept = ()) -> pa.Schema:
    """The columns that a store keeps as a table: the declared ones, and those that a catalogue keeps.

    Left out are those that become matrices and arrays, and what a judgment repeats of its query.
    """
    elsewhere = {"has_image", *schemas.VECTOR_COLUMNS, *schemas.shared_columns(config, schemas.QUERIES)}
    return pa.schema([field for field in schemas.config_schema(config, kept=kept) if field.name not in elsewhere])


def _tidy(table: pa.Table, config: str, where: str, kept: schemas.Kept = ()) -> pa.Table:
    """The columns that are not vectors, in the declared types.

    The classic files hold a key and vectors alone: their other columns become null, and their locale the default.
    """
    schema, rows = _kept_columns(config, kept), table.num_rows
    present = [field for field in schema if field.name in table.column_names]
    columns = _typed(table, pa.schema(present), where)
    for at, field in enumerate(schema):
        if field in present:
            continue
        if field.name == "product_locale" and config == schemas.FEATURES:
            column = pa.repeat(schemas.CLASSIC_LOCALE, rows).cast(pa.string())
        elif config == schemas.JUDGMENTS or field.name in schemas.DECLARED[config].key:
            raise SchemaError("a column is missing", where=where, expected=field.name, got=table.column_names)
        else:
            column = pa.nulls(rows, field.type)
        columns = columns.add_column(at, field, column)
    return columns


# -- judgments ------------------------------------------------------------------------------------------------------


def _read_judgments(source: Source) -> pa.Table:
    schema = _kept_columns(schemas.JUDGMENTS).append(pa.field("split", pa.string()))
    tables = [schema.empty_table()]
    for rows in source.tables(schemas.JUDGMENTS):
        tidy = _tidy(rows.table, schemas.JUDGMENTS, rows.where)
        tables.append(tidy.append_column("split", pa.repeat(rows.split, len(tidy)).cast(pa.string())))
    return pa.concat_tables(tables).combine_chunks()


def _write_judgments(directory: Path, judgments: pa.Table, products: pa.Table, queries: pa.Table) -> None:
    """Write the row of each judgment's query and product, and its gain, as plain arrays."""
    where = schemas.JUDGMENTS
    gain = checked_gains(judgments, where)
    rows = {
        name: find_rows(_keys(judgments, config, where), _keys(known, config, config), column)
        for name, config, known, column in (
            ("query", schemas.QUERIES, queries, "query_id"),
            ("product", schemas.FEATURES, products, "product"),
        )
    }
    for name, index in rows.items():
        np.save(directory / f"judgment_{name}_index.npy", index)
    np.save(directory / "gain.npy", gain)


def _check_disk(directory: Path, matrices: int) -> None:
    need, free = matrices + DISK_MARGIN, shutil.disk_usage(directory).free
    if free < need:
        fix = "Free some space, or pass another cache_dir."
        raise DiskError(
            "not enough space for the converted store",
            where=directory.parent,
            expected=f"{need:,} bytes",
            got=f"{free:,} free",
            fix=fix,
        )
