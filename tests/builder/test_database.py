"""builder.database: files that survive a kill, and errors of the disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from builder.database import open_database, query_copy, reporting_disk_errors, transaction
from sqid_lib.errors import CorruptFileError, DiskError

TABLES = "CREATE TABLE IF NOT EXISTS words (word TEXT PRIMARY KEY) WITHOUT ROWID;"


def test_a_transaction_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    db = open_database(tmp_path / "words.sqlite", TABLES)
    with transaction(db):
        db.execute("INSERT INTO words VALUES ('kept')")
    with pytest.raises(KeyError), transaction(db):
        db.execute("INSERT INTO words VALUES ('dropped')")
        raise KeyError
    db.close()
    assert query_copy(tmp_path / "words.sqlite", "SELECT word FROM words") == [("kept",)]


def test_a_file_that_is_not_a_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "words.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(CorruptFileError, match=r"words\.sqlite: .*cannot be read.*delete the file"):
        open_database(tmp_path / "words.sqlite", TABLES)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "no space left"),
        (sqlite3.OperationalError("database or disk is full"), "no space left"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "cannot be written: Too many open files. Raise the limit"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/runs/full/x"), "cannot be written: .*Input/output error"),
        (sqlite3.OperationalError("disk I/O error"), "cannot be written: disk I/O error"),
    ],
)
def test_errors_of_the_disk_name_the_file(tmp_path: Path, error: Exception, message: str) -> None:
    with pytest.raises(DiskError, match=f"x: {message}.*finished work is kept"), reporting_disk_errors(tmp_path / "x"):
        raise error
