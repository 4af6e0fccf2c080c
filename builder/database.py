"""SQLite files that record finished work: they survive kill -9 and belong to one build at a time."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqid_lib.errors import CorruptFileError, DiskError, SqidError, StageError, write_error
from sqid_lib.files import replacing

_log = logging.getLogger(__name__)

LOCK_SECONDS = 10.0  # how long a build waits for another one to close the file
_CHECKSUM = "checksum"  # name of a last column
# primary codes of damage; ERROR because our own SQL is right, so a name in it must be damaged in the file
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT)


def open_database(path: Path, tables: str, *, check: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, with the tables of the script `tables`; one thread at a time may use it.

    Every commit is in the write-ahead log before it returns, so it survives the death of the process without a sync;
    only a power failure can lose the last commits. A damaged file is replaced by one with its sound rows, and a warning
    is logged. A table whose last column is `checksum` is written with `row_checksum(…)` of the others.

    Args:
        check: read the whole file, and compare every row with its checksum.

    Raises:
        StageError: it is in use by another build.
        DiskError: no space left, or it cannot be opened or written.
    """
    try:
        return _connect(path, tables, check=check)
    except sqlite3.DatabaseError as error:
        if _code(error) not in _DAMAGED:
            raise _explain(error, path) from error
    with reporting_disk_errors(path):
        kept = _rescue(path, tables)
        _log.warning("%s was damaged: %d finished rows are kept, the others are done again", path, kept)
        return _connect(path, tables, check=False)


def is_damaged(path: Path, tables: str) -> bool:
    """Whether `open_database` with `check` would find damage; writes nothing beside it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with closing(_connect(_copy(path, Path(folder)), tables, check=True)):
                return False
        except sqlite3.DatabaseError as error:
            if _code(error) not in _DAMAGED:
                raise _explain(error, path) from error
            return True


def _connect(path: Path, tables: str, *, check: bool) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_SECONDS, check_same_thread=False)
    try:
        db.create_function("row_checksum", -1, _row_checksum, deterministic=True)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two builds in one directory would damage each other's work
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=10000")  # pages; each checkpoint waits for the disk
        db.executescript(tables)
        _check_columns(db, tables)
        if check:
            _check_rows(db)
    except BaseException:
        db.close()
        raise
    return db


def _row_checksum(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


def _columns(db: sqlite3.Connection) -> dict[str, list[str]]:
    """The tables, each with the names of its columns."""
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return {table: [row[1] for row in db.execute(f'PRAGMA table_info("{table}")')] for table in tables}


def _declared_columns(tables: str) -> dict[str, list[str]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(tables)
        return _columns(db)


def _check_columns(db: sqlite3.Connection, tables: str) -> None:
    declared = _declared_columns(tables)
    for table, columns in _columns(db).items():
        wanted = declared.get(table, [])
        if columns == wanted[: len(columns)]:  # an earlier version had fewer
            for column in wanted[len(columns) :]:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    if _columns(db) != declared:
        raise _damage("other tables or columns")


def _check_rows(db: sqlite3.Connection) -> None:
    if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise _damage("a page is damaged")
    for table, columns in _columns(db).items():
        if columns[-1] == _CHECKSUM:
            differs = f"checksum <> row_checksum({', '.join(columns[:-1])})"
            if db.execute(f"SELECT 1 FROM {table} WHERE {differs} LIMIT 1").fetchone():
                raise _damage("a row is damaged")


def _damage(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code of an error."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _explain(error: sqlite3.DatabaseError, path: Path) -> SqidError:
    if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StageError(
            "another build is using this file", where=path, fix="Wait until it ends, or use another --work."
        )
    return _disk_error(error, path)


def _rescue(path: Path, tables: str) -> int:
    """Replace a damaged database by one with the rows that can be read and match their checksum; how many those are."""
    kept = 0
    with replacing(path) as part:
        with closing(sqlite3.connect(part, isolation_level=None)) as new:
            new.execute("PRAGMA synchronous=OFF")  # `replacing` syncs
            new.executescript(tables)
            with transaction(new):
                for table, columns in _columns(new).items():
                    for row in _readable_rows(path, table, len(columns)):
                        if columns[-1] != _CHECKSUM or row[-1] in (None, _row_checksum(*row[:-1])):
                            places = ", ".join("?" * len(columns))
                            kept += new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", row).rowcount
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)  # they belong to the damaged file
    return kept


def _readable_rows(path: Path, table: str, columns: int) -> Iterator[tuple[Any, ...]]:
    """Rows from the first on, up to a damaged page, and from the last one back to it."""
    for order in ("ASC", "DESC"):
        with closing(sqlite3.connect(path, isolation_level=None)) as db, contextlib.suppress(sqlite3.DatabaseError):
            db.text_factory = partial(str, encoding="utf-8", errors="replace")
            rows = db.execute(f"SELECT * FROM {table} ORDER BY 1 {order}")
            if len(rows.description) == columns:
                yield from rows


def query_copy(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of a query on a copy of a database, so that nothing beside it is written; none if it does not exist.

    Raises:
        CorruptFileError: it cannot be read.
    """
    if not path.exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        try:
            with closing(sqlite3.connect(_copy(path, Path(folder)))) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise CorruptFileError(f"the record of finished work cannot be read: {error}", where=path) from error


def _copy(path: Path, folder: Path) -> Path:
    for file in (path, path.with_name(f"{path.name}-wal")):  # the newest commits may be in the write-ahead log only
        if file.exists():
            shutil.copyfile(file, folder / file.name)
    return folder / path.name


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block's changes, or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def reporting_disk_errors(path: Path) -> Iterator[None]:
    """Raise DiskError for a full disk and for any other error of writing `path`."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise _disk_error(error, path) from error


def _disk_error(error: OSError | sqlite3.DatabaseError, path: Path) -> DiskError:
    if isinstance(error, OSError):
        return write_error(error, path)
    full = "full" in str(error)
    room = "Make room" if full else "Check the disk, its free space and the permissions,"
    return DiskError(
        "no space left" if full else f"cannot be written: {error}",
        where=path,
        fix=f"{room} and run the build again; finished work is kept.",
    )
