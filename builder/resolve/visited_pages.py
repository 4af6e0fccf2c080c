"""Product pages visited so far, kept so that a killed run repeats only the page in flight."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from builder.database import open_database, reporting_disk_errors, transaction

NAME = "pages.sqlite"
_VALUES = "?1, ?2, ?3, ?4, ?5"  # of a Page
_RECORD = f"INSERT OR REPLACE INTO pages VALUES ({_VALUES}, row_checksum({_VALUES}))"
TABLES = """
CREATE TABLE IF NOT EXISTS pages (
    url TEXT PRIMARY KEY, status TEXT NOT NULL, image_url TEXT, http_status INTEGER, detail TEXT,
    checksum INTEGER
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Page:
    """Result of a visit: ok, placeholder or generic with an image URL; missing, blocked or error without one."""

    url: str
    status: str
    image_url: str | None = None
    http_status: int | None = None
    detail: str | None = None


class VisitedPages:
    """Pages by URL, committed one by one. A context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._db = open_database(path, TABLES, check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def get(self, url: str) -> Page | None:
        row = self._db.execute("SELECT * FROM pages WHERE url = ?", (url,)).fetchone()
        return Page(*row[:-1]) if row else None

    def record(self, page: Page) -> None:
        with reporting_disk_errors(self.path), transaction(self._db):
            self._db.execute(
                f"INSERT OR REPLACE INTO pages VALUES ({_VALUES}, row_checksum({_VALUES}))", dataclasses.astuple(page)
            )

    def forget(self, urls: Sequence[str]) -> None:
        with transaction(self._db):
            self._db.executemany("DELETE FROM pages WHERE url = ?", ((url,) for url in urls))

    def forget_statuses(self, statuses: Sequence[str]) -> None:
        with transaction(self._db):
            self._db.executemany("DELETE FROM pages WHERE status = ?", ((status,) for status in statuses))
