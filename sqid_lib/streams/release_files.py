"""Which files hold the parts of a release, and whether they are the files that its checksums state."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sqid_lib import schemas
from sqid_lib.cache import read_note, writable, write_note
from sqid_lib.errors import ContractError, CorruptFileError, MissingFileError
from sqid_lib.files import parse_shard_name, sha256

CONFIGS = (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS)  # what a store and a stream are made of
_DAY_S = 24 * 3600.0
_AGAIN = "Download or build the release again."


def shards(names: Iterable[str], config: str, where: object) -> tuple[tuple[str, str], ...]:
    """(split, name) of the files of a config in order; names are relative to the release.

    Hidden files, such as the `._name` that macOS leaves beside a file, are passed over.

    Raises:
        MissingFileError: numbers of shards are missing.
        ContractError: there are shards of one split for two numbers of shards.
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
    twice = [split for split, sets in Counter(split for split, _ in missing).items() if sets > 1]
    if twice:
        got = ", ".join(f"{split}-…-of-{count:05d}" for split, count in sorted(missing) if split in twice)
        raise ContractError(
            "the files of a split are there twice", where=f"{where}: data/{config}", got=got, fix=_AGAIN
        )
    return tuple(found)


def parts(names: Iterable[str], where: object, without: Iterable[str] = ()) -> dict[str, tuple[tuple[str, str], ...]]:
    """The `shards` of each of CONFIGS; none of those `without` rows that have no file.

    Raises:
        MissingFileError: a config has no file, or numbers of shards are missing.
    """
    names = list(names)
    found = {config: shards(names, config, where) for config in CONFIGS}
    for config, files in found.items():
        if not files and config not in without:
            raise MissingFileError("the release lacks a part", where=where, expected=f"data/{config}/*.parquet")
    return found


def configs_without_rows(manifest: Path) -> frozenset[str]:
    """The configs that a catalogue's release does not have, such as judgments: those its manifest counts 0 rows of.

    None where there is no manifest, where it cannot be read, or of another release: there a missing part is an error.
    """
    counts = _catalogue_counts(manifest)
    return frozenset(config for name, config in schemas.COUNTED.items() if config in CONFIGS and counts.get(name) == 0)


def is_catalogue(manifest: Path) -> bool:
    """Whether a manifest is that of a shop's own catalogue."""
    return bool(_catalogue_counts(manifest))


def _catalogue_counts(manifest: Path) -> dict[str, object]:
    """The counts of the manifest of a catalogue; none where it cannot be read, or is that of another release."""
    try:
        stated = json.loads(manifest.read_text(encoding="utf-8"))
        return dict(stated["counts"]) if isinstance(stated["recipe"]["catalogue"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


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


def check_listed(sums: Mapping[Path, str], names: Iterable[str], directory: Path) -> None:
    """Raise MissingFileError if SHA256SUMS of a release lists a file of CONFIGS that is not among `names`."""
    here = {directory / name for name in names}
    listed = (path for path in sums if path not in here)
    missing = [p for p in listed if p.parent.name in CONFIGS and p.parent.parent == directory / "data"]
    if missing:
        raise MissingFileError(
            f"{len(missing)} files of {schemas.SHA256SUMS} are missing", where=missing[0], fix=_AGAIN
        )


def check_digest(path: Path, places: Sequence[Path], stated: str) -> None:
    """Raise CorruptFileError unless a file is the one in SHA256SUMS. Its content is read once a day at most."""
    if noted_digest(path, places, _DAY_S) != stated:
        digest(path, places, stated)


def noted_digest(path: Path, places: Sequence[Path], max_age_s: float = float("inf")) -> str | None:
    """The sha256 that `digest` noted for a file of this path, size, inode and time; None if there is no whole note.

    Args:
        max_age_s: seconds for which a note counts.

    Raises:
        CorruptFileError: the file cannot be read.
    """
    for place in places:
        note = _note(place, path)
        with contextlib.suppress(OSError):
            if time.time() - note.stat().st_mtime <= max_age_s and (found := read_note(note)):
                return found
    return None


def digest(path: Path, places: Sequence[Path], stated: str | None = None) -> str:
    """sha256 of a file, in hex, of its content now; noted for `noted_digest`.

    Args:
        places: caches as `cache_places` lists them; the digest is noted in the first that can be written.
        stated: what it has to be.

    Raises:
        CorruptFileError: it is not `stated`, or the file cannot be read.
    """
    note = next((_note(place, path) for place in places if writable(place)), None)
    try:
        found = sha256(path)
    except OSError as error:
        raise CorruptFileError("the file cannot be read", where=path, got=error) from error
    if note is not None:
        with contextlib.suppress(OSError):  # without a note the next opening takes longer, nothing else
            write_note(note, found)
    if stated is not None and stated != found:
        fix = f"The file is damaged or was changed: {_AGAIN[0].lower()}{_AGAIN[1:]}"
        raise CorruptFileError(
            "the file is not the one in " + schemas.SHA256SUMS, where=path, expected=stated, got=found, fix=fix
        )
    return found


def _note(place: Path, path: Path) -> Path:
    try:
        status = path.stat()
    except OSError as error:
        raise CorruptFileError("the file cannot be read", where=path, got=error) from error
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
    return place / "digests" / hashlib.sha256(identity.encode()).hexdigest()
