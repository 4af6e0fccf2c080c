"""SQLite files that record finished work: they survive kill -9 and belong to one build at a time."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqid_lib.errors import CorruptFileError, DiskError, write_error

LOCK_SECONDS = 10.0  # how long a build waits for another one to close the file


def open_database(path: Path, tables: str) -> sqlite3.Connection:
    """A connection in autocommit mode, with the tables of the script `tables`; one thread at a time may use it.

    Every commit is in the write-ahead log before it returns, so it survives the death of the process without a sync;
    only a power failure can lose the last commits.

    Raises:
        CorruptFileError: not a database, damaged, or in use by another build.
    """
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_SECONDS, check_same_thread=False)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two builds in one directory would damage each other's work
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=10000")  # pages; each checkpoint waits for the disk
        db.executescript(tables)
    except sqlite3.DatabaseError as error:
        raise CorruptFileError(
            f"the record of finished work cannot be read: {error}",
            where=path,
            fix="Is another build using this directory? Otherwise delete the file to start this stage over.",
        ) from error
    return db


def query_copy(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of a query on a copy of a database, so that nothing beside it is written; none if it does not exist.

    Raises:
        CorruptFileError: it cannot be read.
    """
    if not path.exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        for file in (path, path.with_name(f"{path.name}-wal")):  # the newest commits may be in the write-ahead log only
            if file.exists():
                shutil.copyfile(file, Path(folder) / file.name)
        try:
            with closing(sqlite3.connect(Path(folder) / path.name)) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise CorruptFileError(f"the record of finished work cannot be read: {error}", where=path) from error


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
    except OSError as error:
        raise write_error(error, path) from error
    except sqlite3.OperationalError as error:
        full = "full" in str(error)
        raise DiskError(
            "no space left" if full else f"cannot be written: {error}",
            where=path,
            fix="Make room and run the build again; finished work is kept.",
        ) from error
