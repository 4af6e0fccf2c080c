"""What each stage wrote, by content, in WORK/.stamps: damaged files are found before they are used."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sqid_lib import schemas
from sqid_lib.files import checksum, is_part, text_checksum, write_text

FOLDER = ".stamps"
# the files of a stage, as patterns; images and SQLite records of fetch and resolve carry checksums of their own
_OUTPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sample": tuple(f"sample/{name}.parquet" for name in ("products", "supp", "queries", "judgments", "images")),
        "resolve": ("resolve/urls.parquet",),
        "fetch": ("fetch/outcomes.parquet",),
        "embed": ("embed/*.parquet", "embed/encoder.json"),
        "release": (f"{schemas.RELEASE_DIR}/**/*",),
    }
)
STAMPED = tuple(_OUTPUTS)  # the stages with a stamp


@dataclass(frozen=True)
class Stamp:
    """What a finished stage left.

    Attributes:
        key: of all that it was made of; empty for a stage that keeps its own record of finished work.
        files: path within WORK → checksum.
    """

    key: str
    files: Mapping[str, str]


class Stamps:
    """The stamps of one work directory, during one run.

    A file is read once, when it is first used or after it was written; what is not written again keeps the checksum
    that was found then, so damage that comes later is never taken for the file.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._known: dict[str, tuple[tuple[int, int, int], str]] = {}  # path → size, time and inode; checksum

    def read(self, stage: str) -> Stamp | None:
        """The stamp of a stage; None if the stage has not finished, or its stamp is damaged."""
        try:
            return parse_stamp(self.path(stage).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, stage: str, key: str) -> None:
        """Record the files of a stage that has just finished."""
        found = {path for pattern in _OUTPUTS[stage] for path in self._work.glob(pattern) if path.is_file()}
        names = sorted(str(path.relative_to(self._work)) for path in found if not is_part(path))
        self._write(stage, Stamp(key, {name: self._checksum(name) for name in names}))

    def restore(self, stage: str, stamp: Stamp | None) -> None:
        """Put back the stamp that a failed run removed, if the run left its files as they were."""
        if stamp is not None and not self._changed(stamp, again=False):
            self._write(stage, stamp)

    def _write(self, stage: str, stamp: Stamp) -> None:
        body = json.dumps({"key": stamp.key, "files": stamp.files}, indent=1)
        write_text(self.path(stage), f"{body}\n{text_checksum(body)}\n")

    def remove(self, stage: str) -> None:
        """Before a stage writes: from now on its files are not those of the stamp."""
        self.path(stage).unlink(missing_ok=True)

    def changed(self, stage: str, *, again: bool = False) -> dict[str, str]:
        """Files that are not as the stage wrote them: path within WORK → "is missing" or "is damaged".

        Args:
            again: read files again that this run has read before.

        Raises:
            OSError: a file must not be read, for example.
        """
        stamp = self.read(stage)
        return self._changed(stamp, again=again) if stamp else {}

    def _changed(self, stamp: Stamp, *, again: bool) -> dict[str, str]:
        found = {}
        for name, written in stamp.files.items():
            try:
                if self._checksum(name, again=again) != written:
                    found[name] = "is damaged"
            except (FileNotFoundError, NotADirectoryError):
                found[name] = "is missing"
            except OSError as error:
                if error.errno != errno.EIO:  # not the file's fault: permissions, or too many open files
                    raise
                found[name] = "cannot be read"
        return found

    def remove_changed(self, stage: str) -> None:
        """Remove what is damaged, so that the stage makes it again; of a release, every file that the stamp lists.

        The manifest says which files of a release are ours. Without it the rest would be taken for a user's.
        """
        stamp = self.read(stage)
        files = stamp.files if stamp and stage == "release" else self.changed(stage)
        for name in files:
            (self._work / name).unlink(missing_ok=True)

    def _checksum(self, name: str, *, again: bool = False) -> str:
        path = self._work / name
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        known = self._known.get(name)
        if again or known is None or known[0] != state:
            known = self._known[name] = state, checksum(path)
        return known[1]

    def path(self, stage: str) -> Path:
        """Where the stamp of a stage is."""
        return self._work / FOLDER / stage


def parse_stamp(text: str) -> Stamp | None:
    """What the text of a stamp says; None if it is damaged."""
    body, _, check = text.rstrip("\n").rpartition("\n")
    try:
        content = json.loads(body)
        return Stamp(content["key"], content["files"]) if check == text_checksum(body) else None
    except (ValueError, KeyError, TypeError):
        return None


def describe(changed: Mapping[str, str]) -> str:
    """ "sample/supp.parquet is damaged", and how many others are."""
    first, *others = changed
    more = f" (and {len(others)} more {'file' if len(others) == 1 else 'files'} of this stage)" if others else ""
    return f"{first} {changed[first]}{more}"
