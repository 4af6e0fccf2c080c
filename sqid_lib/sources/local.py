"""Files of local directories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqid_lib.errors import MissingFileError
from sqid_lib.files import File


def find(directory: Path, patterns: Sequence[str]) -> tuple[File, ...]:
    """The files that match the first pattern that any file matches, sorted by name; none if no pattern has any.

    Hidden files, such as the `._name` that macOS leaves beside a file, are left out.
    """
    for pattern in patterns:
        paths = sorted(p for p in directory.glob(pattern) if not p.name.startswith(".") and p.is_file())
        if paths:
            return tuple(File(str(path.resolve()), version(path)) for path in paths)
    return ()


def version(path: Path) -> str:
    """What changes when a file is replaced or written to: size, time and inode."""
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"


def listing(directory: Path) -> dict[str, File]:
    """Every file below a directory by its relative name, without hidden ones.

    Raises:
        MissingFileError: no such directory.
    """
    check_directory(directory)
    names = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    shown = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    return {name: File(str(directory / name), version(directory / name)) for name in shown}


def check_directory(directory: Path) -> None:
    """Raise MissingFileError unless there is such a directory."""
    if not directory.is_dir():
        raise MissingFileError(
            "this is a file, not a directory" if directory.exists() else "no such directory",
            where=directory,
            expected="a directory or a dataset on the Hub (ORG/NAME)",
            fix="Check the path.",
        )
