"""What ledgers of finished work share: a SQLite file that survives kill -9 and belongs to one build at a time."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqid_lib.errors import CorruptFileError, DiskError

LOCK_SECONDS = 10.0  # how long a start waits for another build to end


def open_ledger(path: Path, tables: str) -> sqlite3.Connection:
    """A connection in autocommit mode, with the tables of the script `tables`; one thread at a time may use it.

    Every commit is in the write-ahead log before it returns, which needs no sync to survive the death of the process;
    only a power cut can take the last ones.

    Raises:
        CorruptFileError: no database, damaged, or in use by another build.
    """
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_SECONDS, check_same_thread=False)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two builds in one directory would spoil each other
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=10000")  # pages; each checkpoint waits for the disk
        db.executescript(tables)
    except sqlite3.DatabaseError as error:
        raise CorruptFileError(
            f"the ledger cannot be read: {error}",
            where=path,
            fix="Is another build using this directory? Otherwise delete the file to start this stage over.",
        ) from error
    return db


def query_copy(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of a query on a copy of a ledger, so that nothing beside the ledger is written; none if there is no ledger.

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
            raise CorruptFileError(f"the ledger cannot be read: {error}", where=path) from error


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
def telling_disk(path: Path) -> Iterator[None]:
    """Turns what a full disk raises into DiskError; `path` is what is being written."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error)
        raise DiskError(
            "no space left" if full else f"cannot be written: {error}",
            where=path,
            fix="Make room and run the build again; what is done is kept.",
        ) from error
