"""What is already done, kept so that a kill at any moment loses only the requests in flight."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqid_lib.errors import CorruptFileError, DiskError

LOCK_SECONDS = 10.0  # how long a start waits for another build to end

_TABLES = """
CREATE TABLE IF NOT EXISTS outcomes (
    url TEXT PRIMARY KEY, status TEXT NOT NULL, http_status INTEGER, bytes INTEGER, sha256 TEXT,
    width INTEGER, height INTEGER, detail TEXT
) WITHOUT ROWID;
-- a picture waits in the spool at an offset, or lies in a shard (null)
CREATE TABLE IF NOT EXISTS pictures (sha256 TEXT PRIMARY KEY, offset INTEGER, length INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS swap (shards INTEGER PRIMARY KEY);
"""


@dataclass(frozen=True)
class Outcome:
    """How one url ended: "ok", or a failure of `schemas.IMAGE_STATUS`. Sizes in bytes and pixels."""

    url: str
    status: str
    http_status: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    detail: str | None = None


class Ledger:
    """Outcomes by url, and the bytes of pictures that are in no shard yet. A context manager.

    Every record is committed at once: the write-ahead log needs no sync to survive the death of this process, only a
    power cut can take the last records, and what it leaves is checked by sha256 when shards are written.

    Args:
        folder: holds ledger.sqlite and spool.bin.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.spool = folder / "spool.bin"
        path = folder / "ledger.sqlite"
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_SECONDS)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two builds in one directory would spoil each other
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise CorruptFileError(
                f"the ledger of downloads cannot be read: {error}",
                where=path,
                fix="Is another build using this directory? Otherwise delete the file to fetch everything again.",
            ) from error
        self._write = os.open(self.spool, os.O_RDWR | os.O_CREAT, 0o644)
        self._end = self._query("SELECT coalesce(max(offset + length), 0) FROM pictures")[0][0]
        os.ftruncate(self._write, self._end)  # what a kill cut off; a file too short grows zeros that the sha256 finds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)
        if not self._end:
            self.spool.unlink()
        self._db.close()

    def __contains__(self, url: str) -> bool:
        return bool(self._query("SELECT 1 FROM outcomes WHERE url = ?", url))

    def __getitem__(self, url: str) -> Outcome:
        return Outcome(*self._query("SELECT * FROM outcomes WHERE url = ?", url)[0])

    def record(self, outcome: Outcome, picture: bytes | None = None) -> None:
        """Keep an outcome, and its picture unless an equal one is kept already.

        Raises:
            DiskError: no space left.
        """
        with _telling_disk(self.spool), self._transaction():
            if picture is not None and not self._query("SELECT 1 FROM pictures WHERE sha256 = ?", outcome.sha256):
                _write_all(self._write, picture, self._end)
                self._db.execute("INSERT INTO pictures VALUES (?, ?, ?)", (outcome.sha256, self._end, len(picture)))
                self._end += len(picture)
            self._db.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", astuple(outcome))

    def forget(self, statuses: Iterable[str]) -> int:
        """Drop the outcomes of these statuses, so that their urls are tried again; says how many."""
        with self._transaction():
            return sum(self._db.execute("DELETE FROM outcomes WHERE status = ?", (s,)).rowcount for s in statuses)

    def forget_pictures(self, sha256s: Iterable[str]) -> None:
        """Drop pictures that turned out damaged or gone, with the outcomes that rely on them."""
        rows = [(sha256,) for sha256 in sha256s]
        with self._transaction():
            self._db.executemany("DELETE FROM outcomes WHERE sha256 = ?", rows)
            self._db.executemany("DELETE FROM pictures WHERE sha256 = ?", rows)

    def spooled(self) -> dict[str, tuple[int, int]]:
        """Offset and length of every picture in the spool."""
        rows = self._query("SELECT sha256, offset, length FROM pictures WHERE offset IS NOT NULL")
        return {sha256: (offset, length) for sha256, offset, length in rows}

    def sharded(self) -> set[str]:
        """The pictures that lie in a shard."""
        return {sha256 for (sha256,) in self._query("SELECT sha256 FROM pictures WHERE offset IS NULL")}

    def swapping(self) -> int | None:
        """How many shards there will be, if a complete set of new ones waits to replace the old."""
        rows = self._query("SELECT shards FROM swap")
        return rows[0][0] if rows else None

    def begin_swap(self, shards: int) -> None:
        """Every new shard is written and synced."""
        self._db.execute("INSERT INTO swap VALUES (?)", (shards,))

    def end_swap(self, kept: Iterable[str]) -> None:
        """The new shards are in place and hold exactly the pictures `kept`: empty the spool, forget all others."""
        with self._transaction():
            self._db.execute("CREATE TEMP TABLE kept (sha256 TEXT PRIMARY KEY)")
            self._db.executemany("INSERT INTO kept VALUES (?)", ((sha256,) for sha256 in kept))
            self._db.execute("DELETE FROM outcomes WHERE sha256 NOT IN (SELECT sha256 FROM kept)")
            self._db.execute("DELETE FROM pictures WHERE sha256 NOT IN (SELECT sha256 FROM kept)")
            self._db.execute("UPDATE pictures SET offset = NULL")
            self._db.execute("DELETE FROM swap")
            self._db.execute("DROP TABLE kept")
        self._end = 0
        os.ftruncate(self._write, 0)

    def _query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def _telling_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error)
        raise DiskError(
            "no space left" if full else f"cannot be written: {error}",
            where=path,
            fix="Make room and run the build again; what was fetched is kept.",
        ) from error
