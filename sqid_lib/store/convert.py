"""A release's parquet files, turned once into flat matrices that can be memory-mapped.

A converted directory holds flat matrices, Arrow tables and store.json, which is written last. Its name is a digest of
the contents of the source files, so equal releases share one conversion wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from tqdm import tqdm

from sqid_lib import schemas
from sqid_lib.errors import (
    ContractError,
    CorruptFileError,
    DiskError,
    DuplicateKeyError,
    EmptyFileError,
    IntegrityError,
    LabelError,
    SchemaError,
)
from sqid_lib.files import write_text
from sqid_lib.store.source import Source
from sqid_lib.tables.vector_columns import read_vectors

FORMAT = 1  # of a converted directory; a change makes every older conversion stale
STORE = "store.json"
MATRICES = {
    "text_features": (schemas.FEATURES, "clip_text_features"),
    "image_features": (schemas.FEATURES, "clip_image_features"),
    "query_features": (schemas.QUERIES, "clip_text_features"),
}
DISK_MARGIN = 64 << 20  # bytes left free beside the conversion


def convert(source: Source, cache: Path, dtype: str = "float32", progress: bool = True) -> Path:
    """The converted directory for `source` under `cache`, made now if it is not there yet and whole.

    Raises:
        CorruptFileError: a file is truncated, or is not what SHA256SUMS says.
        SchemaError, ContractError: the files cannot make a store.
        DiskError: there is not room for the matrices.
    """
    cache.mkdir(parents=True, exist_ok=True)
    digests = [(path.name, _digest(path, cache / "digests", stated)) for path, stated in source.files.items()]
    made_of = [FORMAT, schemas.fingerprint(), dtype, source.settings, digests]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    target = cache / key
    if is_whole(target):
        return target
    with FileLock(cache / f"{key}.lock"):
        if is_whole(target):
            return target
        for stale in (target, *cache.glob(f".{key}-*")):  # half or damaged work of ours; the lock says nobody is at it
            shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache))
        try:
            _write(source, partial, np.dtype(dtype), progress)
            partial.replace(target)
        except OSError as error:
            raise DiskError("the converted store cannot be written", where=partial, got=error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def is_whole(directory: Path) -> bool:
    """Whether `directory` is a finished conversion whose files have the sizes they were written with."""
    try:
        stated = json.loads((directory / STORE).read_text())
        return bool(stated["format"] == FORMAT) and all(
            (directory / name).stat().st_size == size for name, size in stated["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _digest(path: Path, memory: Path, stated: str | None) -> str:
    """sha256 of a file, remembered by path, size, inode and time, so that opening again need not read it."""
    status = path.stat()
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
    note = memory / hashlib.sha256(identity.encode()).hexdigest()
    try:
        digest = note.read_text()
    except OSError:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        memory.mkdir(exist_ok=True)
        write_text(note, digest)
    if stated is not None and stated != digest:
        fix = "The file is damaged or was changed: download or build the release again."
        raise CorruptFileError(
            "the file is not the one in " + schemas.SHA256SUMS, where=path, expected=stated, got=digest, fix=fix
        )
    return digest


# -- the conversion itself ------------------------------------------------------------------------------------------


def _write(source: Source, directory: Path, dtype: np.dtype[Any], progress: bool) -> None:
    width = source.width()
    rows = {config: source.rows(config) for config in (schemas.FEATURES, schemas.QUERIES)}
    _check_disk(directory, (2 * rows[schemas.FEATURES] + rows[schemas.QUERIES]) * width * dtype.itemsize)
    # on a terminal only, unless it is asked for silence
    quiet = None if progress else True
    with tqdm(total=sum(rows.values()) or None, unit="row", desc="Converting to a store", disable=quiet) as bar:
        products, queries = (_write_part(source, directory, config, width, dtype, bar.update) for config in rows)
    judgments = _read_judgments(source)
    _write_judgments(directory, judgments, products, queries)
    for name, table in (("products", products), ("queries", queries), ("judgments", judgments)):
        with pa.OSFile(str(directory / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    _finish(directory, dtype, width)


def _finish(directory: Path, dtype: np.dtype[Any], width: int) -> None:
    files = sorted(directory.iterdir())
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sizes = {path.name: path.stat().st_size for path in files}
    stated = {"format": FORMAT, "dtype": dtype.name, "width": width, "files": sizes}  # the flat files have no header
    write_text(directory / STORE, json.dumps(stated, indent=1))


def _write_part(
    source: Source,
    directory: Path,
    config: str,
    width: int,
    dtype: np.dtype[Any],
    advance: Callable[[int], object],
) -> pa.Table:
    """Append the vectors of one config to flat files, row group by row group; return its other columns."""
    columns = {name: column for name, (part, column) in MATRICES.items() if part == config}
    rest, has_image = [], []
    with ExitStack() as stack:
        files = {name: stack.enter_context((directory / f"{name}.bin").open("wb")) for name in columns}
        for table, where in _new_rows(source, config):
            shown = np.ones(len(table), dtype=np.bool_)
            if "has_image" in table.column_names:
                shown &= table["has_image"].to_numpy()
            for name, column in columns.items():
                vectors, valid = read_vectors(table, column, width, where)
                if name == "image_features":
                    shown &= valid
                elif not valid.all():
                    raise ContractError("a row has no vector", where=f"{where}: {column}", got=f"row {valid.argmin()}")
                with np.errstate(over="ignore"):  # told below
                    vectors = np.ascontiguousarray(vectors, dtype=dtype)
                if not np.isfinite(vectors).all():
                    raise ContractError(f"a value is not finite in {dtype}", where=f"{where}: {column}")
                files[name].write(vectors.data)
            has_image.append(shown)
            rest.append(_tidy(table, config, where))
            advance(len(table))
    if not rest:
        raise EmptyFileError(f"{config} has no rows", where=next(iter(source.files)))
    if config == schemas.FEATURES:
        np.save(directory / "has_image.npy", np.concatenate(has_image))
    return pa.concat_tables(rest).combine_chunks()


def _new_rows(source: Source, config: str) -> Iterator[tuple[pa.Table, str]]:
    """The tables of a config without the rows that an earlier split had: a product may be judged in both."""
    now, before = "", pa.array([], pa.string())
    these: list[pa.Array] = []
    for split, table, where in source.tables(config):
        if split != now:
            before, now, these = pa.concat_arrays([before, *these]), split, []
        keys = _keys(table, config)
        these.append(keys)
        fresh = table.filter(pc.invert(pc.is_in(keys, value_set=before))) if len(before) else table
        if len(fresh):
            yield fresh, where


def _keys(table: pa.Table, config: str) -> pa.Array:
    """One string per row for what must be unique: a query_id, or locale and product_id."""
    if config == schemas.QUERIES:
        return table["query_id"].cast(pa.string()).combine_chunks()
    if "product_locale" not in table.column_names:
        return pc.binary_join_element_wise(schemas.CLASSIC_LOCALE, table["product_id"], "/").combine_chunks()
    return pc.binary_join_element_wise(table["product_locale"], table["product_id"], "/").combine_chunks()


def _kept_columns(config: str) -> pa.Schema:
    """The declared columns that a store keeps as a table.

    Left out are those that become matrices and arrays, and what a judgment repeats of its query.
    """
    elsewhere = {"has_image", *schemas.VECTOR_COLUMNS, *schemas.shared_columns(config, schemas.QUERIES)}
    return pa.schema([field for field in schemas.config_schema(config) if field.name not in elsewhere])


def _tidy(table: pa.Table, config: str, where: str) -> pa.Table:
    """The columns that are not vectors, in the declared types.

    The classic files hold a key and vectors alone: their other columns become null, and their locale the default.
    """
    columns = {}
    for field in _kept_columns(config):
        if field.name in table.column_names:
            columns[field.name] = table[field.name].cast(field.type)
        elif field.name == "product_locale" and config == schemas.FEATURES:
            columns[field.name] = pa.repeat(schemas.CLASSIC_LOCALE, table.num_rows).cast(pa.string())
        elif config == schemas.JUDGMENTS or field.name in schemas.DECLARED[config].key:
            raise SchemaError("a column is missing", where=where, expected=field.name, got=table.column_names)
        else:
            columns[field.name] = pa.nulls(table.num_rows, field.type)
    return pa.table(columns)


# -- judgments ------------------------------------------------------------------------------------------------------


def _read_judgments(source: Source) -> pa.Table:
    schema = _kept_columns(schemas.JUDGMENTS).append(pa.field("split", pa.string()))
    tables = [schema.empty_table()]
    for split, table, where in source.tables(schemas.JUDGMENTS):
        tidy = _tidy(table, schemas.JUDGMENTS, where)
        tables.append(tidy.append_column("split", pa.repeat(split, len(table)).cast(pa.string())))
    return pa.concat_tables(tables).combine_chunks()


def _write_judgments(directory: Path, judgments: pa.Table, products: pa.Table, queries: pa.Table) -> None:
    """Write the row of each judgment's query and product, and its gain, as plain arrays."""
    if judgments["esci_label"].null_count:
        raise LabelError(
            "a judgment has no label", where=schemas.JUDGMENTS, expected="a label in every row", got="null"
        )
    rows = {
        "query": _find(_keys(judgments, schemas.QUERIES), _keys(queries, schemas.QUERIES), "query_id"),
        "product": _find(_keys(judgments, schemas.FEATURES), _keys(products, schemas.FEATURES), "product"),
    }
    for name, index in rows.items():
        np.save(directory / f"judgment_{name}_index.npy", index)
    np.save(directory / "gain.npy", judgments["gain"].to_numpy().astype(np.float32))


def _find(wanted: pa.Array, known: pa.Array, name: str) -> npt.NDArray[np.int64]:
    if len(pc.unique(known)) < len(known):
        counts = pc.value_counts(known)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
        raise DuplicateKeyError("a key occurs twice", where=name, got=twice)
    index = pc.index_in(wanted, value_set=known)
    if index.null_count:
        lost = pc.filter(wanted, pc.is_null(index))
        raise IntegrityError("judged, and not in the release", where=name, got=f"{len(lost)} rows, first {lost[0]}")
    return np.asarray(index.to_numpy(), dtype=np.int64)


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
