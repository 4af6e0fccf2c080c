"""Images in a folder of this machine, by paths from an untrusted table: nothing outside the folder is opened."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, first_line, write_error

ABSENT, FORBIDDEN = "absent", "forbidden"  # versions of files that cannot be looked at
_NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a symbolic link that leads nowhere"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe must not be waited for


@dataclass(frozen=True)
class LocalImage:
    """What was found for a reference to a local image.

    Attributes:
        version: differs when something else may be found: size and time of a file, version of a table.
        data: the bytes; None unless the status is ok.
        status: of `schemas.IMAGE_STATUS`.
        detail: one line that explains it.
    """

    version: str
    data: bytes | None = None
    status: str = schemas.OK
    detail: str | None = None


class ImageFolder:
    """A folder, and the real paths of the folders in it that were asked for.

    Links are followed as long as they stay in the folder. Who can write into it while a build runs is trusted.

    Raises:
        MissingFileError: there is no such folder.
    """

    def __init__(self, folder: str) -> None:
        self._root = os.path.realpath(folder)
        if not os.path.isdir(self._root):  # noqa: PTH112 - all paths here are text, which is quicker
            raise MissingFileError(
                "the folder of the images does not exist",
                where=folder,
                fix="Check catalogue.images.",
            )
        self._inside = self._root.rstrip("/") + "/"
        self._real: dict[str, str] = {}

    def version(self, path: str) -> str:
        """The version that `read` would give; the file is not opened.

        Raises:
            DiskError: as `read`.
        """
        return self._find(path)[1].version

    def read(self, path: str, max_bytes: int) -> LocalImage:
        """The file at a path, relative to the folder or absolute. Larger files are not read.

        Raises:
            DiskError: the disk fails, or too many files are open: nothing that the image is to blame for.
        """
        place, found = self._find(path)
        if found.status != schemas.OK:
            return found
        try:
            file = os.open(place, _FLAGS)
            try:
                state = os.fstat(file)
                if not stat.S_ISREG(state.st_mode):  # it was replaced just now
                    return _irregular(state)
                data = _read(file, state.st_size, max_bytes) if state.st_size <= max_bytes else None
            finally:
                os.close(file)
        except OSError as error:
            return _failure(error, place)
        version = _version(state)
        if data is None or len(data) > max_bytes:
            return LocalImage(version, None, "too_large", f"more than {max_bytes} bytes")
        return LocalImage(version, data)

    def _find(self, path: str) -> tuple[str, LocalImage]:
        """The real path, and what can be said of it before it is opened: its version, or why it is not opened."""
        missing = "", LocalImage(ABSENT, None, "not_found", "no such file")
        for spelling in _spellings(path):
            place, found = self._look(spelling)
            if found.status != "not_found":
                return place, found
            if spelling == path:
                missing = place, found
        return missing

    def _look(self, path: str) -> tuple[str, LocalImage]:
        place = path
        try:
            place, state = self._place(path)
            if not f"{place}/".startswith(self._inside):
                detail = "outside the folder of the images"
                return place, LocalImage(f"outside {self._root}", None, "refused", detail)
            state = state or os.lstat(place)
            if not stat.S_ISREG(state.st_mode):
                return place, _irregular(state)
            if not os.access(place, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return place, LocalImage(_version(state))
        except ValueError as error:  # a null character, or one that no file name of this machine can have
            return place, LocalImage("bad", None, schemas.BAD_URL, f"not a path: {first_line(error)}")
        except OSError as error:
            return place, _failure(error, place)

    def _place(self, path: str) -> tuple[str, os.stat_result | None]:
        """The real path, of a link that leads nowhere or in a circle as far as it is known; and its state, if known."""
        start = path.rfind("/") + 1  # of the name
        folder, name = path[:start], path[start:]
        if folder not in self._real:
            real = os.path.realpath(os.path.join(self._root, folder))  # noqa: PTH118
            self._real[folder] = real.rstrip("/") + "/"
        place = self._real[folder] + name
        if name in ("", ".", ".."):
            return os.path.realpath(place), None
        try:
            state = os.lstat(place)
        except (OSError, ValueError):
            return place, None
        return (os.path.realpath(place), None) if stat.S_ISLNK(state.st_mode) else (place, state)


def _spellings(path: str) -> Iterator[str]:
    """The path as it is written; then as macOS and others store its characters, and with the slashes of Windows."""
    yield path
    others = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")] if not path.isascii() else []
    if "\\" in path:
        others.append(path.replace("\\", "/"))
    yield from (other for other in others if other != path)


def _read(file: int, size: int, most: int) -> bytes:
    """A file of about that size; of one that grows, a byte more than `most`."""
    pieces, left = [], most + 1
    while left and (piece := os.read(file, min(size + 1, left))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _version(state: os.stat_result) -> str:
    return f"{state.st_size}-{state.st_mtime_ns}"


def _irregular(state: os.stat_result) -> LocalImage:
    kind = next((name for is_kind, name in _KINDS if is_kind(state.st_mode)), "a device")
    return LocalImage(kind, None, "not_image", f"{kind}, not a file")


def _failure(error: OSError, place: str) -> LocalImage:
    """What a failure says of the image; raises if this machine is to blame for it."""
    if error.errno in _NOT_FOUND:
        return LocalImage(ABSENT, None, "not_found", "no such file")
    if error.errno in _FORBIDDEN:
        return LocalImage(FORBIDDEN, None, "blocked", "the file must not be read: permission denied")
    raise write_error(error, place, doing="read") from error
