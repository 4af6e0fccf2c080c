"""Where converted stores and digests are kept, and what happens where that place cannot be written."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqid_lib.errors import DiskError, UsageError
from sqid_lib.files import checksum, text_checksum, write_text

MOVE_IT = "Set SQID_CACHE or HF_HOME to a folder that can be written, or pass cache_dir."

_log = logging.getLogger(__name__)


def default_cache() -> Path:
    """$SQID_CACHE, else sqid/ in $HF_HOME, else in $XDG_CACHE_HOME or ~/.cache."""
    if "SQID_CACHE" in os.environ:
        return Path(os.environ["SQID_CACHE"])
    home = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sqid"


def cache_places(cache_dir: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Folders that may hold a conversion, the preferred one first.

    A place that the user named, as `cache_dir` or in $SQID_CACHE, is the only one. Otherwise a temporary folder of this
    user comes after the default place.

    Raises:
        UsageError: a file stands where the folder should be.
    """
    named = cache_dir is not None or "SQID_CACHE" in os.environ
    first = Path(cache_dir) if cache_dir is not None else default_cache()
    if first.exists() and not first.is_dir():
        name = "cache_dir" if cache_dir is not None else "the cache"
        raise UsageError(f"{name} is a file", where=first, expected="a folder", fix=MOVE_IT)
    return (first,) if named or not _private(temporary_cache()) else (first, temporary_cache())


def temporary_cache() -> Path:
    """A folder of this user alone among the temporary files; it need not exist."""
    user = os.getuid() if hasattr(os, "getuid") else "user"  # Windows keeps the temporary files of users apart
    return Path(tempfile.gettempdir()) / f"sqid-{user}"


def writable_place(places: Sequence[Path]) -> Path:
    """The first of some folders that can be written, made now; a warning is logged if it is not the first of all.

    Raises:
        DiskError: none of them can be written.
    """
    for place in places:
        if writable(place):
            if place != places[0]:
                _log.warning("%s cannot be written: %s is used instead. %s", places[0], place, MOVE_IT)
            return place
    raise DiskError("the cache cannot be written", where=places[0], fix=MOVE_IT)


def writable(folder: Path) -> bool:
    """Whether a folder is there, or can be made, and can be written by this user."""
    try:
        if folder == temporary_cache():
            folder.mkdir(mode=0o700, exist_ok=True)
            if not _private(folder):
                return False
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _private(folder: Path) -> bool:
    """Whether a folder among the temporary files is not there yet, or is this user's own: anyone can make one there."""
    try:
        status = folder.lstat()
    except OSError:
        return True
    return stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())


def download_cache(cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Where files of the Hub and of web servers are kept; None for the caches of huggingface_hub and datasets.

    A temporary folder where those caches cannot be written, unless offline mode is on: then all is there already.
    """
    if cache_dir is not None:
        return Path(cache_dir) / "hub"
    import datasets
    from huggingface_hub import constants

    theirs = (Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))
    if datasets.config.HF_HUB_OFFLINE or all(writable(place) for place in theirs):
        return None
    return writable_place((theirs[0], temporary_cache())) / "hub"


def write_note(path: Path, text: str) -> None:
    """Write a small text with its checksum, for `read_note`."""
    write_text(path, f"{text_checksum(text)}\n{text}")


def read_note(path: Path) -> str | None:
    """The text of `write_note`; None where there is none, or where it is damaged, which is logged: it is made again."""
    try:
        stated, _, text = path.read_bytes().decode("utf-8", "replace").partition("\n")
    except OSError:
        return None
    if stated == text_checksum(text):
        return text
    _log.warning("%s: a note in the cache is damaged; it is made again", path)
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def note_files(note: Path, paths: Iterable[Path]) -> None:
    """Note what some files of a folder hold now, for `damaged_files`; without the note they are only not compared."""
    with contextlib.suppress(OSError):
        write_note(note, json.dumps({path.name: (_state(path), checksum(path)) for path in paths}))


def damaged_files(note: Path) -> list[Path]:
    """The noted files beside `note` that are gone or hold something else; content is read where size or time differ."""
    damaged = []
    for name, (state, noted) in json.loads(read_note(note) or "{}").items():
        path = note.parent / name
        try:
            if _state(path) != state and checksum(path) != noted:
                damaged.append(path)
        except OSError:
            damaged.append(path)
    return damaged


def _state(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
