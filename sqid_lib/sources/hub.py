"""Files of datasets on the Hub, at one commit."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqid_lib.errors import DownloadError, MissingFileError, SourceError
from sqid_lib.files import File
from sqid_lib.sources.address import Address, parse_address
from sqid_lib.sources.retry import GO_ONLINE, downloading

T = TypeVar("T")


def listing(address: Address) -> dict[str, File]:
    """The files below an address by their name, at the commit that its revision stands for now.

    A file's version is the hash of its content. Hidden files are left out.

    Raises:
        MissingFileError: no such dataset or revision.
        DownloadError: the Hub refuses or cannot be reached.
    """
    return _reaching(lambda: _listing(address), address)


def _reaching(call: Callable[[], T], address: Address) -> T:
    """`downloading`; the error for ORG/NAME also says that there is no directory of that name."""
    try:
        return downloading(call, str(address))
    except SourceError as error:
        if address.short and isinstance(error, MissingFileError):
            error.what = f"no such directory ({address.repo}), and no such dataset or revision on the Hub"
        elif address.short:
            error.fix = f"There is no directory {address.repo}, so the Hub was asked. {error.fix or ''}"
        raise


def _listing(address: Address) -> dict[str, File]:
    from huggingface_hub.hf_api import RepoFile

    api = _api()
    commit = api.dataset_info(address.repo, revision=address.revision).sha
    tree = api.list_repo_tree(address.repo, repo_type="dataset", revision=commit, recursive=True)
    prefix = f"{address.path}/" if address.path else ""
    files = {}
    for entry in tree:
        if not isinstance(entry, RepoFile) or not entry.path.startswith(prefix):
            continue
        name = entry.path.removeprefix(prefix)
        if not any(part.startswith(".") for part in name.split("/")):
            version = entry.lfs.sha256 if entry.lfs else entry.blob_id
            files[name] = File(str(Address(address.kind, entry.path, address.repo, commit)), version)
    return files


def is_whole(path: Path, version: str) -> bool:
    """Whether the content of a file in the Hub's cache is the one of its version in `listing`."""
    with path.open("rb") as stream:
        if len(version) == 64:  # sha256 of a file in LFS
            return hashlib.file_digest(stream, "sha256").hexdigest() == version
        head = b"blob %d\0" % path.stat().st_size  # any other file: the name git gives to its content
        return hashlib.sha1(head + stream.read(), usedforsecurity=False).hexdigest() == version


def download(file: File, cache_dir: Path | None = None, *, force: bool = False, offline: bool = False) -> str:
    """Local path of a file of `listing`, in the Hub's cache (or in `cache_dir`, in the same layout).

    Raises:
        MissingFileError, DownloadError: as `listing`; offline, if it is not in the cache.
        DiskError: the cache is full or cannot be written.
    """
    from huggingface_hub import hf_hub_download

    address = parse_address(file.url)
    options: dict[str, Any] = {"repo_type": "dataset", "revision": address.revision, "cache_dir": cache_dir}
    if offline:
        try:
            return str(hf_hub_download(address.repo, address.path, local_files_only=True, **options))
        except OSError as error:
            raise DownloadError(
                "not downloaded before, and offline mode is on", where=file.url, fix=GO_ONLINE
            ) from error
    api = _api()
    call = lambda: api.hf_hub_download(address.repo, address.path, force_download=force, **options)  # noqa: E731
    return str(downloading(call, file.url))


def snapshot(address: Address, patterns: list[str], cache_dir: Path | None) -> Path:
    """Local directory with the files below an address whose names match, all at one commit.

    A commit that is in the cache is used without asking the Hub.

    Raises:
        MissingFileError, DownloadError: as `listing`.
        DiskError: the cache is full or cannot be written.
    """
    from huggingface_hub import snapshot_download

    prefix = f"{address.path}/" if address.path else ""
    options: dict[str, Any] = {
        "repo_type": "dataset",
        "revision": address.revision,
        "cache_dir": cache_dir,
        "allow_patterns": [prefix + pattern for pattern in patterns],
    }
    return Path(_reaching(lambda: snapshot_download(address.repo, **options), address)) / address.path


def cached_files(directory: Path, address: Address, patterns: list[str]) -> list[File]:
    """The files of a `snapshot` whose names match, with the version that the cache names them by.

    Where a file system has no symbolic links the cache has no such names, and no file is returned.
    """
    root = Path(str(directory).removesuffix(f"/{address.path}")) if address.path else directory
    found = []
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            where = path.relative_to(root).as_posix()
            found.append(File(str(Address(address.kind, where, address.repo, root.name)), path.resolve().name))
    return found


def open_ranges(url: str, *, cache: bool = True) -> Any:
    """A file of `listing`, of which only the ranges that are read are requested.

    Args:
        cache: keep the last megabyte; without it every read is one request.

    Raises:
        MissingFileError, DownloadError: as `listing`.
    """
    from huggingface_hub import HfFileSystem

    options: dict[str, Any] = {} if cache else {"cache_type": "none"}
    files = HfFileSystem(endpoint=_endpoint())
    return downloading(lambda: files.open(url, "rb", block_size=1 << 20, **options), url)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _endpoint() -> str:
    import datasets

    return str(datasets.config.HF_ENDPOINT)
