"""WORK on an object store: stages work on a local copy, and what a stage finished is copied to the store.

The store is the truth. The stamp of a stage names its files and their checksums; it is written after them, and marked
as unfinished before one of them changes. So a driver with an empty disk finds what is finished, and lists nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from pathlib import Path

from builder import times
from builder.stamps import FOLDER, STAMPED, Stamp, parse_stamp
from sqid_lib import schemas
from sqid_lib.cache import default_cache
from sqid_lib.files import checksum, write_text
from sqid_lib.object_store import ObjectStore, for_each

_UNFINISHED = "unfinished\n"  # before the stamp of a stage that is being made again
_DRIVER = "driver.txt"
# written whenever something changes, in no stamp, and of no use but to people; and the pages that resolve visited
_KEPT = (times.FILE, "summary.json", "report.html")
_VISITED = "resolve/pages.sqlite"


def place_of(work: str | os.PathLike[str]) -> tuple[Path, ObjectStore | None]:
    """The local folder of a WORK, and its store if WORK is the address of one.

    Raises:
        UsageError: not an address of an object store that can be used.
    """
    if not isinstance(work, str) or "://" not in work:
        return Path(work), None
    store = ObjectStore(work)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", store.url.partition("://")[2])[-64:]
    return default_cache() / "work" / f"{name}-{hashlib.sha256(store.url.encode()).hexdigest()[:12]}", store


class Mirror:
    """The local copy of a WORK on an object store, during one run.

    Args:
        work: the local folder.
    """

    def __init__(self, work: Path, store: ObjectStore) -> None:
        self.work, self.store = work, store
        self._stored: dict[str, str] = {}  # name → checksum of what the finished stamps of the store name
        self._named: dict[str, set[str]] = {}  # stage → all that its stamp on the store names, finished or not

    def begin(self) -> None:
        """Fail now, not after hours, where the store cannot be written."""
        who = f"{socket.gethostname()} {os.getpid()} {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n"
        self.store.write(_DRIVER, who.encode())

    def pull(self) -> None:
        """Take over what other drivers finished; what only this one finished stays."""
        for stage in STAMPED:
            name = f"{FOLDER}/{stage}"
            text = (self.store.read(name) or b"").decode("utf-8", "replace")
            stamp = parse_stamp(text.removeprefix(_UNFINISHED))
            self._named[stage] = set(stamp.files) if stamp else set()
            if stamp and not text.startswith(_UNFINISHED):
                self._stored |= stamp.files
                self._take_over(stage, stamp)
                write_text(self.work / name, text)
        for name in (*_KEPT, _VISITED):
            if not (self.work / name).exists():
                self.store.get(name, self.work / name)

    def _take_over(self, stage: str, stamp: Stamp) -> None:
        if stage == "release":
            for path in (self.work / schemas.RELEASE_DIR).rglob("*"):
                if path.is_file() and path.relative_to(self.work).as_posix() not in stamp.files:
                    path.unlink()
        for_each(lambda name: self._get(name, stamp.files[name]), stamp.files)

    def _get(self, name: str, written: str) -> None:
        path = self.work / name
        if not path.is_file() or checksum(path) != written:
            path.unlink(missing_ok=True)
            if not self.store.get(name, path) or checksum(path) != written:
                self._stored.pop(name, None)  # found by its checksum before it is used, and made again

    def unfinish(self, stage: str) -> None:
        """Before a stage writes: from now on its objects are not those of the stamp."""
        name = f"{FOLDER}/{stage}"
        if stage in STAMPED and (text := self.store.read(name)) and not text.startswith(_UNFINISHED.encode()):
            self.store.write(name, _UNFINISHED.encode() + text)

    def push(self, stage: str) -> None:
        """Copy the files of a finished stage that the store has not, and then its stamp."""
        name = f"{FOLDER}/{stage}"
        path = self.work / name
        stamp = parse_stamp(path.read_text(encoding="utf-8")) if path.exists() else None
        if stamp is None:
            return
        text = path.read_bytes()
        if self.store.read(name) != text or any(for_each(lambda name: self._is_lost(name), stamp.files)):
            self.unfinish(stage)
            for_each(lambda name: self._put(name, stamp.files[name]), stamp.files)
            self.store.write(name, text)
            for_each(self.store.remove, self._named.get(stage, set()) - stamp.files.keys())
            self._named[stage] = set(stamp.files)
            self._stored |= stamp.files
        if stage == "resolve" and (self.work / _VISITED).exists():
            self.store.put(self.work / _VISITED, _VISITED)

    def _put(self, name: str, written: str) -> None:
        if self._stored.get(name) != written or self._is_lost(name):
            self.store.put(self.work / name, name)

    def _is_lost(self, name: str) -> bool:
        return self.store.size(name) != (self.work / name).stat().st_size

    def push_summary(self) -> None:
        """Copy what people read: summary, report and times."""
        for name in _KEPT:
            if (self.work / name).exists():
                self.store.put(self.work / name, name)
