"""A release on an object store → a copy in the cache, which is read like any other local directory."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

from sqid_lib import schemas
from sqid_lib.cache import default_cache
from sqid_lib.errors import CorruptFileError, MissingFileError, UsageError
from sqid_lib.files import sha256, write_text
from sqid_lib.object_store import ObjectStore, for_each, is_object_store

_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})  (?P<name>\S.*)")


def release_directory(release: str) -> Path:
    """The local directory of a release: a path as it is, a checked copy of what an object store has.

    Raises:
        UsageError: no text.
        SourceError: as `local_copy`.
    """
    if not release:
        raise UsageError("an empty address", expected="the directory of a release, or its s3:// or gs:// address")
    return local_copy(release) if is_object_store(release) else Path(release)


def local_copy(url: str) -> Path:
    """Copy what is new of a release to $SQID_CACHE/releases, each file checked, and return the copy.

    SHA256SUMS says which objects there are. In offline mode an earlier copy is used.

    Raises:
        MissingFileError: no release is there, or an object of it is missing.
        CorruptFileError: an object is not that of its checksum.
        DownloadError: the store fails.
    """
    import datasets

    store = ObjectStore(url)
    folder = default_cache() / "releases" / hashlib.sha256(store.url.encode()).hexdigest()[:32]
    sums = folder / schemas.SHA256SUMS
    if datasets.config.HF_HUB_OFFLINE and sums.exists():
        return folder
    data = store.read(schemas.SHA256SUMS)
    if data is None:
        fix = "Only a release can be read from an object store; copy other files to a disk."
        raise MissingFileError("no release here", where=store, expected=schemas.SHA256SUMS, fix=fix)
    text = data.decode("utf-8", "replace")
    if sums.exists() and sums.read_text(encoding="utf-8") == text:
        return folder
    wanted = _parse(text, store)
    sums.unlink(missing_ok=True)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
    for_each(lambda name: _copy(store, name, folder / name, wanted[name]), wanted)
    write_text(sums, text)
    return folder


def _parse(text: str, store: ObjectStore) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        path = PurePosixPath(match["name"]) if match else PurePosixPath("..")
        if match is None or path.is_absolute() or ".." in path.parts or "\\" in match["name"]:
            raise CorruptFileError("is damaged", where=f"{store}/{schemas.SHA256SUMS}", got=repr(line[:80]))
        found[match["name"]] = match["sha256"]
    return found


def _copy(store: ObjectStore, name: str, path: Path, digest: str) -> None:
    if path.is_file() and sha256(path) == digest:
        return
    if not store.get(name, path):
        raise MissingFileError("an object of the release is missing", where=f"{store}/{name}")
    if sha256(path) != digest:
        path.unlink()
        fix = "Build the release again, or wait until a build that runs there has ended."
        raise CorruptFileError(f"differs from {schemas.SHA256SUMS}", where=f"{store}/{name}", fix=fix)
