"""Every file of a work directory against its checksum; nothing is changed and no stage runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from builder import database
from builder.embed import shards as vectors
from builder.fetch import ledger, shards
from builder.resolve import visited_pages
from builder.stamps import STAMPED, Stamps
from sqid_lib.errors import CorruptFileError, MissingFileError, StageError
from sqid_lib.files import part_folders


@dataclass
class WorkFiles:
    """What a check found.

    Attributes:
        sound: stage → how many files are as they were written.
        damaged: path within WORK → what is wrong with it.
    """

    sound: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    def add(self, stage: str, name: str, words: str | None) -> None:
        """Count a file of a stage; `words` say what is wrong with it."""
        if words:
            self.damaged[name] = words
        else:
            self.sound[stage] = self.sound.get(stage, 0) + 1


def check_work(work: Path) -> WorkFiles:
    """Read every file that a build left in `work` and compare it with its checksum.

    Raises:
        MissingFileError: no build has run there.
        StageError: a build is running there.
        OSError: a file must not be read.
    """
    stamps, found = Stamps(work), WorkFiles()
    if not (work / ".lock").exists():
        raise MissingFileError("no build has run here", where=work, fix="Check --work.")
    with _locked(work):
        for stage in STAMPED:
            stamp, changed = stamps.read(stage), stamps.changed(stage)
            for name in stamp.files if stamp else ():
                found.add(stage, name, changed.get(name))
            if stamp is None and stamps.path(stage).exists():
                found.add(stage, str(stamps.path(stage).relative_to(work)), "is damaged")
        _check_records(work, found)
        _check_shards(work, found)
    return found


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    try:
        with filelock.FileLock(work / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise StageError("a build is running here", where=work, fix="Wait until it ends.") from error


def _check_records(work: Path, found: WorkFiles) -> None:
    """The SQLite files of resolve and fetch, whose rows have checksums."""
    records = [(work / "resolve" / visited_pages.NAME, visited_pages.TABLES)]
    records += [(folder / ledger.NAME, ledger.TABLES) for folder in part_folders(work / "fetch")]
    for path, tables in records:
        if path.exists():
            name = path.relative_to(work)
            found.add(name.parts[0], str(name), "is damaged" if database.is_damaged(path, tables) else None)


def _check_shards(work: Path, found: WorkFiles) -> None:
    """Images, by the sha256 of each, and what embed keeps for later runs."""
    for folder in part_folders(work / "fetch"):
        damaged = shards.damaged_images(folder)
        for path in sorted(folder.glob("images-*.parquet")):
            found.add("fetch", str(path.relative_to(work)), damaged.get(path))
    for path in sorted((work / "embed" / "vectors").rglob("*.parquet")):
        found.add("embed", str(path.relative_to(work)), None if _is_whole(path) else "is damaged")


def _is_whole(path: Path) -> bool:
    try:
        vectors.read(path, [])
    except CorruptFileError:
        return False
    return True
