"""Files of local folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqid_lib.errors import MissingFileError
from sqid_lib.files import File


def find(folder: Path, patterns: Sequence[str]) -> tuple[File, ...]:
    """The files that match the first pattern that any file matches, sorted by name; none if no pattern has any.

    Hidden files, such as the `._name` that macOS leaves beside a file, are left out.
    """
    for pattern in patterns:
        paths = sorted(p for p in folder.glob(pattern) if not p.name.startswith(".") and p.is_file())
        if paths:
            return tuple(File(str(path.resolve()), version(path)) for path in paths)
    return ()


def version(path: Path) -> str:
    """What changes when a file is replaced or written to: size, time and inode."""
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"


def listing(folder: Path) -> dict[str, File]:
    """Every file below a folder by its relative name, without hidden ones.

    Raises:
        MissingFileError: no such folder.
    """
    check_folder(folder)
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    return {name: File(str(folder / name), version(folder / name)) for name in shown}


def check_folder(folder: Path) -> None:
    """Raise MissingFileError unless there is such a folder."""
    if not folder.is_dir():
        raise MissingFileError(
            "this is a file, not a folder" if folder.exists() else "no such folder",
            where=folder,
            expected="a folder, or a dataset on the Hub (hf://datasets/ORG/NAME)",
            fix="Check the path.",
        )
