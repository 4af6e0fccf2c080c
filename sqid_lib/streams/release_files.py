"""Which files hold the parts of a release, and whether they are the files that its checksums state."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqid_lib import schemas
from sqid_lib.cache import writable
from sqid_lib.errors import CorruptFileError, MissingFileError
from sqid_lib.files import parse_shard_name, write_text

CONFIGS = (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS)  # what a store and a stream are made of
_AGAIN = "Download or build the release again."


def shards(names: Iterable[str], config: str, where: object) -> tuple[tuple[str, str], ...]:
    """(split, name) of the files of a config in order; names are relative to the release.

    Hidden files, such as the `._name` that macOS leaves beside a file, are passed over.

    Raises:
        MissingFileError: numbers of shards are missing.
    """
    found: list[tuple[str, str]] = []
    missing: dict[tuple[str, int], set[int]] = {}
    for name in sorted(fnmatch.filter(names, f"data/{config}/*.parquet")):
        if Path(name).name.startswith("."):
            continue
        if shard := parse_shard_name(name):
            numbers = missing.setdefault((shard.split, shard.shards), set(range(shard.shards)))
            numbers.discard(shard.shard)
        found.append((shard.split if shard else Path(name).stem, name))
    gaps = {f"{split} (of {count})": sorted(numbers) for (split, count), numbers in missing.items() if numbers}
    if gaps:
        raise MissingFileError("shards are missing", where=f"{where}: data/{config}", got=f"no {gaps}", fix=_AGAIN)
    return tuple(found)


def parts(names: Iterable[str], where: object) -> dict[str, tuple[tuple[str, str], ...]]:
    """The `shards` of each of CONFIGS.

    Raises:
        MissingFileError: a config has no file, or numbers of shards are missing.
    """
    names = list(names)
    found = {config: shards(names, config, where) for config in CONFIGS}
    for config, files in found.items():
        if not files:
            raise MissingFileError("the release lacks a part", where=where, expected=f"data/{config}/*.parquet")
    return found


def stated_digests(directory: Path) -> dict[Path, str]:
    """The sha256 that SHA256SUMS of a directory states for each file; none where there is no SHA256SUMS.

    Raises:
        CorruptFileError: it is not a list of checksums.
    """
    path = directory / schemas.SHA256SUMS
    if not path.is_file():
        return {}
    try:
        pairs = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {directory / name.strip().removeprefix("*"): digest for digest, name in pairs}
    except ValueError as error:  # UnicodeDecodeError too
        raise CorruptFileError(
            "not a list of checksums", where=path, expected="lines of sha256 and path, in UTF-8", fix=_AGAIN
        ) from error


def digest(path: Path, places: Sequence[Path], stated: str | None = None) -> str:
    """sha256 of a file, in hex; remembered by path, size, inode and time, so that the file is read once.

    Args:
        places: caches as `cache_places` lists them; the digest is noted in the first that can be written.
        stated: what it has to be.

    Raises:
        CorruptFileError: it is not `stated`, or the file cannot be read.
    """
    try:
        status = path.stat()
        identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
        key = hashlib.sha256(identity.encode()).hexdigest()
        noted = (_remembered(place / "digests" / key) for place in places)
        found = next(filter(None, noted), None) or _hash(path, places, key)
    except OSError as error:
        raise CorruptFileError("the file cannot be read", where=path, got=error) from error
    if stated is not None and stated != found:
        fix = f"The file is damaged or was changed: {_AGAIN[0].lower()}{_AGAIN[1:]}"
        raise CorruptFileError(
            "the file is not the one in " + schemas.SHA256SUMS, where=path, expected=stated, got=found, fix=fix
        )
    return found


def _remembered(note: Path) -> str | None:
    try:
        return note.read_text()
    except OSError:
        return None


def _hash(path: Path, places: Sequence[Path], key: str) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    place = next(filter(writable, places), None)
    if place is not None:
        with contextlib.suppress(OSError):  # without a note the next opening takes longer, nothing else
            write_text(place / "digests" / key, found)
    return found
