"""builder.database: files that survive a kill, and errors of the disk."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from builder.database import is_damaged, open_database, query_copy, reporting_disk_errors, transaction
from sqid_lib.errors import DiskError, StageError

TABLES = "CREATE TABLE IF NOT EXISTS words (word TEXT PRIMARY KEY) WITHOUT ROWID;"
CHECKED = "CREATE TABLE IF NOT EXISTS words (word TEXT PRIMARY KEY, number INTEGER, checksum INTEGER) WITHOUT ROWID;"


def test_a_transaction_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    db = open_database(tmp_path / "words.sqlite", TABLES)
    with transaction(db):
        db.execute("INSERT INTO words VALUES ('kept')")
    with pytest.raises(KeyError), transaction(db):
        db.execute("INSERT INTO words VALUES ('dropped')")
        raise KeyError
    db.close()
    assert query_copy(tmp_path / "words.sqlite", "SELECT word FROM words") == [("kept",)]


def filled(path: Path, rows: int) -> bytes:
    with closing(open_database(path, CHECKED)) as db:
        for start in range(0, rows, 100):
            with transaction(db):
                values = [(f"word {i:05}" * 3, i) for i in range(start, min(start + 100, rows))]
                db.executemany("INSERT INTO words VALUES (?1, ?2, row_checksum(?1, ?2))", values)
    return path.read_bytes()


def rows(path: Path) -> dict[str, int]:
    with closing(open_database(path, CHECKED, check=True)) as db:
        return dict(db.execute("SELECT word, number FROM words"))


def test_a_file_that_is_not_a_database_is_replaced_by_an_empty_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "words.sqlite").write_bytes(b"no database" * 100)
    open_database(tmp_path / "words.sqlite", TABLES).close()
    assert query_copy(tmp_path / "words.sqlite", "SELECT word FROM words") == []
    assert "words.sqlite was damaged: 0 finished rows are kept" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_flipped_bit_gives_another_row(tmp_path: Path) -> None:
    """Flips all over the file: what is read is what was written, and only a page with damage loses its rows."""
    path = tmp_path / "words.sqlite"
    data = filled(path, 400)
    written = rows(path)
    for position in range(3, len(data), 131):
        path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
        kept = rows(path)
        assert kept.items() <= written.items(), position
        assert len(kept) >= 200 or position < 4096 * 2, position
        assert rows(path) == kept


def test_a_truncated_file_keeps_its_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    data = filled(path, 400)
    written = rows(path)
    path.write_bytes(data[: len(data) * 3 // 4])
    assert is_damaged(path, CHECKED)
    assert rows(path).items() <= written.items()
    assert not is_damaged(path, CHECKED)


def test_a_file_from_before_there_were_checksums_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE words (word TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        db.execute("INSERT INTO words VALUES ('old', 1)")
    assert rows(path) == {"old": 1}


def test_a_file_that_another_build_uses_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.database.LOCK_SECONDS", 0.1)
    data = filled(tmp_path / "words.sqlite", 1)
    with closing(sqlite3.connect(tmp_path / "words.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StageError, match="another build is using this file"):
            open_database(tmp_path / "words.sqlite", CHECKED, check=True)
    assert (tmp_path / "words.sqlite").read_bytes() == data


def test_no_room_for_a_new_file_is_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(DiskError, match=r"words\.sqlite: .*free space.*finished work is kept"):
            open_database(tmp_path / "words.sqlite", CHECKED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
