"""What is already done, kept so that a kill at any moment loses only the requests in flight."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from builder.database import open_ledger, telling_disk, transaction

_TABLES = """
CREATE TABLE IF NOT EXISTS outcomes (
    url TEXT PRIMARY KEY, status TEXT NOT NULL, http_status INTEGER, bytes INTEGER, sha256 TEXT,
    width INTEGER, height INTEGER, detail TEXT
) WITHOUT ROWID;
-- a picture waits in the spool at an offset, or lies in a shard (null)
CREATE TABLE IF NOT EXISTS pictures (sha256 TEXT PRIMARY KEY, offset INTEGER, length INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS swap (shards INTEGER PRIMARY KEY);
"""


class Outcome(NamedTuple):
    """How one url ended: "ok", or a failure of `schemas.IMAGE_STATUS`. Sizes in bytes and pixels."""

    url: str
    status: str
    http_status: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    detail: str | None = None


_AT_ONCE = 512  # buffers in one call; systems allow 1,024


class Ledger:
    """Outcomes by url, and the bytes of pictures that are in no shard yet. A context manager.

    Every record is committed at once. What a power cut takes from the spool is found by sha256 when shards are written.

    Args:
        folder: holds ledger.sqlite and spool.bin.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.spool = folder / "spool.bin"
        self._db = open_ledger(folder / "ledger.sqlite", _TABLES)
        self._write = os.open(self.spool, os.O_RDWR | os.O_CREAT, 0o644)
        self._end = self._query("SELECT coalesce(max(offset + length), 0) FROM pictures")[0][0]
        if os.fstat(self._write).st_size != self._end:  # else ext4 would write the file out as it is closed
            os.ftruncate(self._write, self._end)  # what a kill cut off; zeros that grow are found by the sha256

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)
        if not self._end:
            self.spool.unlink()
        self._db.close()

    def look_up(self, urls: Sequence[str]) -> dict[str, Outcome]:
        """The outcomes of those urls that have one; a few thousand urls at most."""
        rows = self._query(f"SELECT * FROM outcomes WHERE url IN ({', '.join('?' * len(urls))})", *urls)
        return {row[0]: Outcome(*row) for row in rows}

    def record(self, results: Sequence[tuple[Outcome, bytes | memoryview | None]]) -> None:
        """Keep outcomes, with the sha256 of their pictures, and each picture unless an equal one is kept already.

        Raises:
            DiskError: no space left.
        """
        sha256s = [hashlib.sha256(data).hexdigest() if data else None for _, data in results]
        outcomes = [outcome._replace(sha256=sha256) for (outcome, _), sha256 in zip(results, sha256s, strict=True)]
        pictures = {sha256: data for (_, data), sha256 in zip(results, sha256s, strict=True) if sha256 and data}
        with telling_disk(self.spool), transaction(self._db):
            marks = ", ".join("?" * len(pictures))
            for (kept,) in self._query(f"SELECT sha256 FROM pictures WHERE sha256 IN ({marks})", *pictures):
                del pictures[kept]
            ends = list(itertools.accumulate(map(len, pictures.values()), initial=self._end))
            _write_all(self._write, list(pictures.values()), self._end)
            rows = ((sha256, end, len(data)) for (sha256, data), end in zip(pictures.items(), ends, strict=False))
            self._db.executemany("INSERT INTO pictures VALUES (?, ?, ?)", rows)
            self._db.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", outcomes)
        self._end = ends[-1]

    def forget(self, statuses: Iterable[str]) -> int:
        """Drop the outcomes of these statuses, so that their urls are tried again; says how many."""
        with transaction(self._db):
            return sum(self._db.execute("DELETE FROM outcomes WHERE status = ?", (s,)).rowcount for s in statuses)

    def forget_pictures(self, sha256s: Iterable[str]) -> None:
        """Drop pictures that turned out damaged or gone, with the outcomes that rely on them."""
        rows = [(sha256,) for sha256 in sha256s]
        with transaction(self._db):
            self._db.executemany("DELETE FROM outcomes WHERE sha256 = ?", rows)
            self._db.executemany("DELETE FROM pictures WHERE sha256 = ?", rows)

    def place(self, sha256: str) -> tuple[int, int] | None:
        """Offset and length of a picture in the spool; None if it is not there."""
        rows = self._query("SELECT offset, length FROM pictures WHERE sha256 = ? AND offset IS NOT NULL", sha256)
        return rows[0] if rows else None

    @property
    def spooled(self) -> int:
        """How many pictures are in the spool."""
        count: int = self._query("SELECT count(*) FROM pictures WHERE offset IS NOT NULL")[0][0]
        return count

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
        with transaction(self._db):
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


def _write_all(descriptor: int, pictures: list[bytes | memoryview], offset: int) -> None:
    for start in range(0, len(pictures), _AT_ONCE):
        some = pictures[start : start + _AT_ONCE]
        end = offset + sum(map(len, some))
        offset += os.pwritev(descriptor, some, offset)
        while offset < end:  # a disk that fills takes a part first
            offset += os.pwrite(descriptor, b"".join(some)[offset - end :], offset)
