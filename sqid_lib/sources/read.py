"""Bytes of files: downloaded into a cache, each version once, or read in ranges from where they are."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqid_lib.cache import damaged_files, note_files
from sqid_lib.errors import CorruptFileError, DownloadError, MissingFileError
from sqid_lib.files import File, sha256, write_text
from sqid_lib.sources import http, hub, local
from sqid_lib.sources.address import HTTP, LOCAL, Address
from sqid_lib.sources.retry import GO_ONLINE

_AT_ONCE = 8  # downloads of a snapshot

_log = logging.getLogger(__name__)


def download(
    file: File,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    hub_cache: Path | None = None,
) -> File:
    """The file with its local path: downloaded once for each version, with a bar on a terminal.

    A download over http that stopped halfway is continued, now or when the same version is asked for again. A damaged
    file in a cache is downloaded again where its version states the content, as it does on the Hub.

    Args:
        cache_dir: for http; default: that of datasets.
        force: download it again.
        hub_cache: for the Hub; default: the Hub's own cache.

    Raises:
        MissingFileError, DownloadError: after retries; offline, at once. The file changed meanwhile.
        DiskError: the cache is full or cannot be written.
    """
    if file.local:
        return file
    if file.url.startswith("hf://"):
        return replace(file, path=_download_from_hub(file, cache_dir, force, hub_cache))
    name = hashlib.sha256(f"{file.url}\n{file.version}".encode()).hexdigest()[:40]
    suffix = Path(urlsplit(file.url).path).suffix[:16]
    target = datasets_cache(cache_dir) / "downloads" / f"sqid-{name}{suffix}"
    note = target.with_name(f"{target.name}.note")
    damaged = target.exists() and bool(damaged_files(note))
    if damaged:
        _log.warning("%s: the download in the cache is damaged; it is made again", target)
    if offline():
        if damaged:
            raise CorruptFileError("the download in the cache is damaged", where=target, fix=GO_ONLINE)
        if not target.exists():
            raise DownloadError("not downloaded before, and offline mode is on", where=file.url, fix=GO_ONLINE)
        return replace(file, path=str(target))
    if force or damaged:
        target.unlink(missing_ok=True)
    if not target.exists():
        http.download(file, target)
        _check(file, target)
        note_files(note, [target])
    return replace(file, path=str(target))


def _download_from_hub(
    file: File, cache_dir: str | os.PathLike[str] | None, force: bool, hub_cache: Path | None
) -> str:
    """Path in the Hub's cache; a damaged file is downloaded again."""
    path = Path(hub.download(file, hub_cache, force=force, offline=offline()))
    if not _is_whole(path, file.version, cache_dir):
        _log.warning("%s: the file in the Hub's cache is damaged; it is downloaded again", path)
        if offline():
            raise CorruptFileError("the file in the Hub's cache is damaged", where=path, fix=GO_ONLINE)
        path = Path(hub.download(file, hub_cache, force=True))
        if not _is_whole(path, file.version, cache_dir):
            raise DownloadError("the file is not the one that the Hub lists", where=file.url, fix="Load it again.")
    return str(path)


def _is_whole(path: Path, version: str, cache_dir: str | os.PathLike[str] | None) -> bool:
    """Whether a download is the stated version. Its content is read once, then that is remembered."""
    state = hashlib.sha256(f"{path.resolve()} {local.version(path)} {version}".encode()).hexdigest()
    checked = sources_cache(cache_dir) / f"{state[:32]}.whole"
    if checked.exists():
        return True
    if version.startswith(http.SHA256):
        whole = sha256(path) == version.removeprefix(http.SHA256)
    else:
        whole = hub.is_whole(path, version)
    if whole:
        with contextlib.suppress(OSError):  # without the note it is checked again
            write_text(checked, "")
    return whole


def _check(file: File, target: Path) -> None:
    """Remove what was downloaded and raise unless it is the version of `file`."""
    if file.version.startswith(http.SHA256):
        same = sha256(target) == file.version.removeprefix(http.SHA256)
        reason = "the file is not the one that the manifest lists"
    else:
        same = file.version.startswith(http.UNKNOWN) or http.look(file.url) == file
        reason = "the file changed while it was downloaded"
    if not same:
        target.unlink(missing_ok=True)
        raise DownloadError(reason, where=file.url, fix="Load it again.")


def open_ranges(url: str, *, cache: bool = True) -> Any:
    """A file at an http(s) or hf:// URL as a binary stream, of which only the ranges that are read are requested.

    Args:
        cache: keep the last megabyte; without it every read is one request.

    Raises:
        MissingFileError, DownloadError: it is not there, or cannot be reached; NoRangesError
            if the server sends whole files only.
    """
    return (hub if url.startswith("hf://") else http).open_ranges(url, cache=cache)


def snapshot(address: Address, patterns: list[str], cache_dir: Path | None = None) -> Path:
    """A local directory with the files below an address whose names match `patterns`, all at one version.

    Raises:
        MissingFileError: there is no such directory, dataset or revision.
        DownloadError: the server or the Hub cannot be reached.
        DiskError: the cache is full or cannot be written.
    """
    if address.kind == LOCAL:
        local.check_directory(Path(address.path))
        return Path(address.path)
    if address.kind != HTTP:
        directory = hub.snapshot(address, patterns, cache_dir)
        for file in hub.cached_files(directory, address, patterns):
            download(file, cache_dir, hub_cache=cache_dir)
        return directory
    listed = http.listing(address.path)
    files = {name: file for name, file in listed.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    if not files:
        raise MissingFileError("no release at this URL", where=address, expected="manifest.json and the files it lists")
    state = hashlib.sha256(repr(sorted((f.url, f.version) for f in files.values())).encode()).hexdigest()[:32]
    root = (cache_dir or datasets_cache(None) / "downloads") / "http" / state

    def get(name: str) -> None:
        file, path = files[name], root / name
        if path.exists() and file.version.startswith(http.SHA256) and not _is_whole(path, file.version, cache_dir):
            _log.warning("%s: the download is damaged; it is made again", path)
            path.unlink()
        if not path.exists():
            http.download(file, path)
            _check(file, path)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for task in [pool.submit(get, name) for name in sorted(files)]:
            task.result()
    return root


def offline() -> bool:
    """Whether datasets' or the Hub's offline mode is on."""
    import datasets

    return bool(datasets.config.HF_HUB_OFFLINE)


def datasets_cache(cache_dir: str | os.PathLike[str] | None) -> Path:
    """`cache_dir`, or the cache of datasets."""
    import datasets

    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE)


def sources_cache(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Directory of small notes about remote files: which there are, and which downloads were checked."""
    return datasets_cache(cache_dir) / "sqid-sources"
