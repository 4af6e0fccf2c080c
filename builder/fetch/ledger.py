"""The record of finished downloads: a kill at any moment loses only the requests in flight."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from builder.database import open_database, reporting_disk_errors, transaction
from sqid_lib.errors import write_error

_VALUES = "?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9"  # of an Outcome
_RECORD = f"INSERT OR REPLACE INTO outcomes VALUES ({_VALUES}, row_checksum({_VALUES}))"
NAME = "ledger.sqlite"
TABLES = """
CREATE TABLE IF NOT EXISTS outcomes (
    url TEXT PRIMARY KEY, status TEXT NOT NULL, http_status INTEGER, bytes INTEGER, sha256 TEXT,
    width INTEGER, height INTEGER, detail TEXT, rules TEXT, checksum INTEGER
) WITHOUT ROWID;
-- an image is in the spool at an offset, or in a shard (null)
CREATE TABLE IF NOT EXISTS images (sha256 TEXT PRIMARY KEY, offset INTEGER, length INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS swap (shards INTEGER PRIMARY KEY);
"""


class Outcome(NamedTuple):
    """How one URL ended: "ok", or a failure of `schemas.IMAGE_STATUS`. Sizes in bytes and pixels.

    `rules` identifies the settings that a failure depends on (`failures.rules_of`); None where they are not known.
    """

    url: str
    status: str
    http_status: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    detail: str | None = None
    rules: str | None = None


Recorded = Callable[["Ledger", Sequence[tuple[Outcome, int | None]]], None]


class Ledger:
    """Outcomes by URL, and where in the spool the images are that are in no shard yet. A context manager.

    An image is written to the spool first and recorded then, so bytes of the spool that no record names are of no use.
    What a power failure takes from the spool is found by its sha256 when shards are written.

    Args:
        folder: holds ledger.sqlite and spool.bin.
        check: compare every outcome with its checksum; damaged ones are dropped, and their URLs are requested again.
        recorded: called with the ledger and what `record` has just committed.

    Attributes:
        spool: the spool's descriptor, for those who read it.
        spool_path: its path, for messages.
    """

    def __init__(self, folder: Path, *, check: bool = False, recorded: Recorded | None = None) -> None:
        self._recorded = recorded
        folder.mkdir(parents=True, exist_ok=True)
        self.spool_path = folder / "spool.bin"
        self._db = open_database(folder / NAME, TABLES, check=check)
        self.spool = os.open(self.spool_path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self.spool, fcntl.LOCK_EX)  # waits for processes that a killed build left behind
        self._end = self._query("SELECT coalesce(max(offset + length), 0) FROM images")[0][0]
        if os.fstat(self.spool).st_size != self._end:  # else ext4 would write the file out when it is closed
            os.ftruncate(self.spool, self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.spooled:
            self.spool_path.unlink()
        os.close(self.spool)
        self._db.close()

    def look_up(self, urls: Sequence[str]) -> dict[str, Outcome]:
        """The outcomes of those URLs that have one; a few thousand URLs at most."""
        columns, places = ", ".join(Outcome._fields), ", ".join("?" * len(urls))
        rows = self._query(f"SELECT {columns} FROM outcomes WHERE url IN ({places})", *urls)
        return {row[0]: Outcome._make(row) for row in rows}

    def reserve(self, length: int) -> int:
        """An offset of the spool where so many bytes may be written; no other caller gets any of them."""
        offset: int = self._end
        self._end += length
        return offset

    def write(self, data: bytes) -> int:
        """Write an image to the spool; its offset there. Until it is recorded, its bytes are of no use.

        Raises:
            DiskError: no space left.
        """
        start = offset = self.reserve(len(data))
        left = memoryview(data)
        try:
            while left:  # a disk that is nearly full takes only a part
                written = os.pwrite(self.spool, left, offset)
                left, offset = left[written:], offset + written
        except OSError as error:
            raise write_error(error, self.spool_path) from error
        return start

    def record(self, results: Sequence[tuple[Outcome, int | None]]) -> None:
        """Commit outcomes, each with the offset of its image if it has one; an image already recorded stays as it is.

        Raises:
            DiskError: no space left.
        """
        outcomes = [outcome for outcome, _ in results]
        images = [(outcome.sha256, offset, outcome.bytes) for outcome, offset in results if outcome.sha256]
        with reporting_disk_errors(self.spool_path), transaction(self._db):
            self._db.executemany("INSERT OR IGNORE INTO images VALUES (?, ?, ?)", images)
            self._db.executemany(_RECORD, outcomes)
        if self._recorded is not None:
            self._recorded(self, results)

    def forget(self, statuses: Iterable[str]) -> None:
        """Drop the outcomes of these statuses, so that their URLs are tried again."""
        with transaction(self._db):
            self._db.executemany("DELETE FROM outcomes WHERE status = ?", ((status,) for status in statuses))

    def forget_urls(self, urls: Iterable[str]) -> None:
        """Drop the outcomes of these URLs, so that they are tried again."""
        with transaction(self._db):
            self._db.executemany("DELETE FROM outcomes WHERE url = ?", ((url,) for url in urls))

    def forget_images(self, sha256s: Iterable[str]) -> None:
        """Drop images that are damaged or gone, with the outcomes that rely on them."""
        rows = [(sha256,) for sha256 in sha256s]
        with transaction(self._db):
            self._db.executemany("DELETE FROM outcomes WHERE sha256 = ?", rows)
            self._db.executemany("DELETE FROM images WHERE sha256 = ?", rows)

    def places(self) -> dict[str, tuple[int, int]]:
        """Of the images in the spool: sha256 → length and offset. Their bytes are unchecked."""
        rows = self._query("SELECT sha256, length, offset FROM images WHERE offset IS NOT NULL")
        return {sha256: (length, offset) for sha256, length, offset in rows}

    @property
    def spooled(self) -> int:
        """How many images are in the spool."""
        count: int = self._query("SELECT count(*) FROM images WHERE offset IS NOT NULL")[0][0]
        return count

    def sharded(self) -> set[str]:
        """The images that are in a shard."""
        return {sha256 for (sha256,) in self._query("SELECT sha256 FROM images WHERE offset IS NULL")}

    def swapping(self) -> int | None:
        """How many shards there will be, if a complete set of new ones is about to replace the old."""
        rows = self._query("SELECT shards FROM swap")
        return rows[0][0] if rows else None

    def begin_swap(self, shards: int) -> None:
        """Every new shard is written and synced."""
        self._db.execute("INSERT INTO swap VALUES (?)", (shards,))

    def end_swap(self, kept: Iterable[str]) -> None:
        """The new shards are in place and hold exactly the images `kept`: empty the spool, forget all others."""
        with transaction(self._db):
            self._db.execute("CREATE TEMP TABLE kept (sha256 TEXT PRIMARY KEY)")
            self._db.executemany("INSERT INTO kept VALUES (?)", ((sha256,) for sha256 in kept))
            self._db.execute("DELETE FROM outcomes WHERE sha256 NOTNULL AND sha256 NOT IN (SELECT sha256 FROM kept)")
            self._db.execute("DELETE FROM images WHERE sha256 NOT IN (SELECT sha256 FROM kept)")
            self._db.execute("UPDATE images SET offset = NULL")
            self._db.execute("DELETE FROM swap")
            self._db.execute("DROP TABLE kept")
        self._end = 0
        os.ftruncate(self.spool, 0)

    def _query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, values).fetchall()
