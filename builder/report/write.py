"""The report of a work directory or of a release, as one file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from builder import times
from builder.report import page, projection
from builder.report.release import Release, read_release
from builder.report.work import read_work
from builder.stamps import STAMPED, Stamps
from sqid_lib import schemas
from sqid_lib.cache import download_cache
from sqid_lib.errors import UsageError
from sqid_lib.files import text_checksum, write_text
from sqid_lib.sources import Address, parse_address

FILE = "report.html"
LIMIT = 10_000_000  # bytes of a report; what is sampled and cut keeps it far below
_FORMAT = 2  # raised when the report of the same release becomes another
_MADE_OF = re.compile(r'<meta name="made-of" content="([0-9a-f]*)">')
_CHECKSUM = "<!-- checksum "  # begins the last line
_HEAD = 4_096  # characters that hold `_MADE_OF`


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        seconds: how long it took; 0 where it was there already.
    """

    path: Path
    seconds: float


def report(
    dataset: str | os.PathLike[str],
    out: Path | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    method: str | None = None,
) -> Report:
    """Write the report of a work directory or of a release.

    Args:
        dataset: the work directory of a build, or the address of a release: a directory, ORG/NAME, hf:// or https://.
        out: the file; default report.html in the work directory, or here for a release.
        revision: of a dataset on the Hub.
        cache_dir: where a remote release is downloaded to.
        method: of the map, "pca" or "umap"; default UMAP where it is installed.

    Raises:
        UsageError: `out` is a directory, or in a release, which holds no other files.
        MissingExtraError: UMAP is asked for and not installed.
        MissingFileError: there is no release.
        SqidError: the release cannot be read.
        OSError: the report cannot be written.
    """
    began = time.monotonic()
    address = parse_address(dataset).at(revision)
    work = _work(address)
    method = method or (projection.UMAP if projection.has_umap() else projection.PCA)
    if method == projection.UMAP:
        projection.require_umap()
    path = out or ((work or Path()) / FILE)
    _check(path)
    downloads = None if address.local else download_cache(cache_dir)
    place = parse_address(work / schemas.RELEASE_DIR) if work else address
    release = read_release(place, downloads=downloads)
    _write(path, release, work, address, "", method)
    return Report(path, time.monotonic() - began)


def report_of_build(work: Path) -> Report:
    """Write the report of a finished build to WORK/report.html, with PCA; nothing is done if it is there already.

    Raises: as `report`.
    """
    began = time.monotonic()
    path, key = work / FILE, _key(work)
    if _made_of(path) == key:
        return Report(path, 0.0)
    address = parse_address(work.resolve() / schemas.RELEASE_DIR)
    release = read_release(address, temporary=work)
    _write(path, release, work, address, key, projection.PCA)
    return Report(path, time.monotonic() - began)


def _work(address: Address) -> Path | None:
    """The work directory at an address, if it is one."""
    local = address.local
    if local is None or not (local / schemas.RELEASE_DIR / "data").is_dir():
        return None
    return local


def _check(path: Path) -> None:
    if path.is_dir():
        raise UsageError("a directory stands where the report should be", where=path, expected="--out FILE")
    if any((folder / schemas.MANIFEST).is_file() for folder in path.resolve().parents):
        raise UsageError(
            "a release holds no other files than its own", where=path, expected="--out FILE outside of the release"
        )


def _write(path: Path, release: Release, work: Path | None, address: Address, key: str, method: str) -> None:
    found = read_work(work, release) if work else None
    name = address.repo or (work or Path(address.path)).name
    content = page.render(release, found, name, key, method)
    write_text(path, f"{content}{_CHECKSUM}{text_checksum(content)} -->\n")


def _key(work: Path) -> str:
    """A digest of what the report of a build is made of."""
    stamps = Stamps(work)
    made = {stage: stamp.files for stage in STAMPED if (stamp := stamps.read(stage))}
    return hashlib.sha256(json.dumps([_FORMAT, made, times.read(work)], sort_keys=True).encode()).hexdigest()


def _made_of(path: Path) -> str | None:
    """The key of a report that is whole; None for any other file."""
    try:
        content, _, end = path.read_text(encoding="utf-8").rpartition(_CHECKSUM)
    except (OSError, ValueError):
        return None
    match = _MADE_OF.search(content, 0, _HEAD)
    return match[1] if match and end == f"{text_checksum(content)} -->\n" else None
