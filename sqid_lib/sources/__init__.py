"""Where the ESCI and SQID files are: local directories, https, or hf://, each file with what tells its content."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import posixpath
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqid_lib import schemas
from sqid_lib.errors import DiskError, DownloadError, MissingFileError, SourceError, SqidError, first_line
from sqid_lib.sources import http

ESCI_URL = "https://media.githubusercontent.com/media/amazon-science/esci-data/main/shopping_queries_dataset"
SQID_URL = "hf://datasets/crossingminds/shopping-queries-image-dataset"

_PUBLISHED_STEMS = {
    "product_urls": "product_image_urls",
    "product_features": "product_features",
    "query_features": "query_features",
    "supp_urls": "supp_product_image_urls",
}
# what a table is called in the three layouts: the four files, the Hub dataset's data/, a release of ours
_LAYOUTS: dict[str, tuple[str, ...]] = {
    "examples": (schemas.ESCI_EXAMPLES,),
    "products": (schemas.ESCI_PRODUCTS,),
    "sources": (schemas.ESCI_SOURCES,),
    "product_urls": (schemas.PRODUCT_URLS, "data/{stem}.parquet", "data/{stem}-*.parquet", "data/urls/*.parquet"),
    "product_features": (
        schemas.PRODUCT_FEATURES,
        "data/{stem}.parquet",
        "data/{stem}-*.parquet",
        "data/product_features/*.parquet",
    ),
    "query_features": (
        schemas.QUERY_FEATURES,
        "data/{stem}.parquet",
        "data/{stem}-*.parquet",
        "data/query_features/*.parquet",
    ),
    "supp_urls": (schemas.SUPP_URLS, "data/{stem}.parquet", "data/{stem}-*.parquet", "data/supp/*.parquet"),
    # only releases say how a download failed
    "product_status": ("data/urls/*.parquet",),
    "supp_status": ("data/supp/*.parquet",),
}
_OPTIONAL = ("product_status", "supp_status")
_ATTEMPTS = 4
_UNKNOWN = "unknown-"


@dataclass(frozen=True)
class File:
    """One file: `url` (a local path, https, or hf:// at a commit) and `version`, which changes with its content."""

    url: str
    version: str

    @property
    def local(self) -> bool:
        return "://" not in self.url


def find(base: str | os.PathLike[str], table: str, cache_dir: str | None = None) -> tuple[File, ...]:
    """The files of a table below `base`, in order; empty for an optional table that is not there.

    Args:
        base: directory, https url or hf://datasets/ORG/NAME[@REVISION][/PATH].
        table: a key of the layouts above, such as "examples" or "product_features".
        cache_dir: where the finds of earlier calls are remembered for offline mode.

    Raises:
        MissingFileError: none of the table's names is there.
        DownloadError: the server cannot be reached, or offline mode is on and nothing is remembered.
    """
    base = os.fspath(base)
    patterns = [p.format(stem=_PUBLISHED_STEMS.get(table, "")) for p in _LAYOUTS[table]]
    if "://" not in base:
        found = _find_local(Path(base), patterns)
    else:
        found = _find_remote(base.rstrip("/"), patterns, cache_dir)
    if not found and table not in _OPTIONAL:
        raise MissingFileError(
            f"the {table.replace('_', ' ')} file is missing",
            where=base,
            expected=" or ".join(patterns[:2]),
            fix="Check the directory or url."
            if "://" in base or Path(base).is_dir()
            else "There is no such directory; a Hub dataset is hf://datasets/ORG/NAME.",
        )
    return found


def fingerprint(files: Sequence[File]) -> str:
    """Hash of the urls and versions of `files`: the same only if none of them changed."""
    return hashlib.sha256(json.dumps([(f.url, f.version) for f in files]).encode()).hexdigest()[:32]


def download(file: File, cache_dir: str | None = None, download_config: Any = None) -> str:
    """Local path of a file, through datasets' download manager: cached under its version, with a progress bar.

    A download over https that broke goes on where it stopped, now or when the same version is asked for again.

    Raises:
        MissingFileError, DownloadError: after retries with backoff; offline, at once. The file changed meanwhile.
        DiskError: no space in the cache.
    """
    if file.local:
        return file.url
    import datasets

    config = download_config.copy() if download_config else datasets.DownloadConfig()
    config.cache_dir = config.cache_dir or (os.path.join(cache_dir, "downloads") if cache_dir else None)  # noqa: PTH118
    config.use_etag = False  # the version is part of the address instead, so that offline mode finds the file again
    url = file.url
    if not url.startswith("hf://"):
        url += "#" + urllib.parse.quote(file.version, safe="")
        if not offline():
            _fetch(file, url, config)
            config.force_download = False
    elif offline():
        return _cached_hub_file(url)
    return str(retrying(lambda: datasets.DownloadManager(download_config=config).download(url), file.url))


def _fetch(file: File, key: str, config: Any) -> None:
    """Put a file where the download manager looks for `key`."""
    import datasets
    from datasets.utils.file_utils import hash_url_to_filename

    cached = Path(config.cache_dir or datasets.config.DOWNLOADED_DATASETS_PATH) / hash_url_to_filename(key)
    if config.force_download:
        cached.unlink(missing_ok=True)
    if cached.exists():
        return
    retrying(lambda: http.fetch(file.url, cached), file.url)
    if file.version.startswith(_UNKNOWN):
        return
    now = retrying(lambda: _head(file.url), file.url)
    if now is None or now.version != file.version:
        cached.unlink(missing_ok=True)
        raise DownloadError("the file changed while it was downloaded", where=file.url, fix="Load it again.")


def offline() -> bool:
    """Whether datasets' or the Hub's offline mode is on."""
    import datasets

    return bool(datasets.config.HF_HUB_OFFLINE)


def _find_local(base: Path, patterns: Sequence[str]) -> tuple[File, ...]:
    for pattern in patterns:
        paths = sorted(base.glob(pattern))
        if paths:
            stats = [(p, p.stat()) for p in paths]
            return tuple(File(str(p.resolve()), f"{s.st_size}-{s.st_mtime_ns}-{s.st_ino}") for p, s in stats)
    return ()


def _find_remote(base: str, patterns: Sequence[str], cache_dir: str | None) -> tuple[File, ...]:
    memory = _Memory(base, patterns, cache_dir)
    if offline():
        return memory.recall()
    if base.startswith("hf://"):
        found: tuple[File, ...] = retrying(lambda: _find_hub(base, patterns), base)
    else:
        found = _find_http(base, patterns)
    memory.keep(found)
    return found


def _find_hub(base: str, patterns: Sequence[str]) -> tuple[File, ...]:
    from huggingface_hub import HfApi

    repo, revision, folder = split_hub_url(base)
    sha, blobs = _hub_listing(HfApi(endpoint=_endpoint()), repo, revision)
    for pattern in patterns:
        wanted = posixpath.join(folder, pattern)
        names = sorted(name for name in blobs if fnmatch.fnmatchcase(name, wanted))
        if names:
            return tuple(File(f"hf://datasets/{repo}@{sha}/{name}", blobs[name]) for name in names)
    return ()


def _hub_listing(api: Any, repo: str, revision: str | None) -> tuple[str, dict[str, str]]:
    """The commit a revision stands for, and the content hash of each of its files."""
    from huggingface_hub.hf_api import RepoFile

    sha = api.dataset_info(repo, revision=revision).sha
    tree = api.list_repo_tree(repo, repo_type="dataset", revision=sha, recursive=True)
    return sha, {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in tree if isinstance(e, RepoFile)}


def split_hub_url(url: str) -> tuple[str, str | None, str]:
    """hf://datasets/ORG/NAME[@REVISION][/PATH] → ("ORG/NAME", revision, path).

    Raises:
        SourceError: the url is not of that form.
    """
    parts = url.removeprefix("hf://").strip("/").split("/")
    if len(parts) < 3 or parts[0] != "datasets":
        raise SourceError("not a dataset's address", where=url, expected="hf://datasets/ORG/NAME[@REVISION][/PATH]")
    name, _, revision = parts[2].partition("@")
    return f"{parts[1]}/{name}", urllib.parse.unquote(revision) or None, "/".join(parts[3:])


def _find_http(base: str, patterns: Sequence[str]) -> tuple[File, ...]:
    names: list[str] | None = None
    for pattern in patterns:
        if "*" not in pattern:
            candidates = [pattern]
        else:  # https has no listing: the manifest of a release is one
            names = _manifest_files(base) if names is None else names
            candidates = sorted(fnmatch.filter(names, pattern))
        urls = [_github(base, name) for name in candidates]
        found = [retrying(lambda url=url: _head(url), url) for url in urls]
        if found and all(found):
            return tuple(f for f in found if f)
    return ()


def _github(base: str, name: str) -> str:
    """GitHub serves what is in LFS from its media host and the rest, our csv files, from its raw host."""
    raw = base.replace("://media.githubusercontent.com/media/", "://raw.githubusercontent.com/", 1)
    return f"{raw if name.endswith('.csv') else base}/{name}"


def _head(url: str) -> File | None:
    """The file at an url, None for 404; no ETag, no date and no size means a new version at every look."""
    from datasets.utils.file_utils import fsspec_head

    try:
        info = fsspec_head(url, storage_options=_http_options())
    except FileNotFoundError as error:  # fsspec says this of every failure; the cause knows better
        if error.__cause__ is None or getattr(error.__cause__, "status", None) in (404, 410):
            return None
        raise error.__cause__ from None
    parts = [str(info[k]) for k in ("ETag", "Last-Modified") if info.get(k)]
    return File(url, "-".join([*parts, str(info.get("size"))]) if parts else f"{_UNKNOWN}{time.time_ns()}")


def _http_options() -> dict[str, Any]:
    # trust_env: what a person's own proxies are is theirs to say
    return {"client_kwargs": {"trust_env": True}, "headers": {"Accept-Encoding": "identity"}}


def _manifest_files(base: str) -> list[str]:
    import fsspec

    try:
        with fsspec.open(f"{base}/{schemas.MANIFEST}", "rb", **_http_options()) as stream:
            files = json.loads(stream.read()).get("files", {})
    except (FileNotFoundError, ValueError, AttributeError):
        return []
    names = files if isinstance(files, dict) else [f.get("path") for f in files if isinstance(f, dict)]
    return [n for n in names if isinstance(n, str) and ".." not in n and not n.startswith("/")]


def _cached_hub_file(url: str) -> str:
    from huggingface_hub import hf_hub_download

    repo, revision, path = split_hub_url(url)
    try:
        return hf_hub_download(repo, path, repo_type="dataset", revision=revision, local_files_only=True)
    except OSError as error:
        raise DownloadError("not downloaded before, and offline mode is on", where=url, fix=_GO_ONLINE) from error


def _endpoint() -> str:
    import datasets

    return str(datasets.config.HF_ENDPOINT)


_GO_ONLINE = "Unset HF_HUB_OFFLINE / HF_DATASETS_OFFLINE and load it once."


def retrying(call: Any, where: str) -> Any:
    """What `call` returns, asked again with backoff while the network may recover; else a SourceError."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except SqidError:
            raise
        except Exception as error:  # three http libraries lie below, each with its own tree
            told, again = _tell(error, where)
            if not again or attempt == _ATTEMPTS:
                raise told from error
            time.sleep(0.25 * 2**attempt)
    raise AssertionError("unreachable")


def _tell(error: Exception, where: str) -> tuple[SqidError, bool]:
    """The error to show, and whether another attempt may help."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or "the cache"
        return DiskError(f"no space for {where}", where=place, fix="Free some space, or name another cache_dir."), False
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError) or status == 404 or "NotFound" in kind:
        return MissingFileError("no such file, repository or revision", where=where, fix="Check the address."), False
    if status in (401, 403) or "Gated" in kind:
        fix = "Log in with `hf auth login`, or check the address."
        return DownloadError(f"access refused (HTTP {status})", where=where, fix=fix), False
    if "Offline" in kind:
        return DownloadError("offline mode is on", where=where, fix=_GO_ONLINE), False
    said = f"HTTP {status}" if status else f"{kind}: {first_line(error)}"
    fix = "Check the network and try again; HF_HUB_OFFLINE=1 uses what was loaded before."
    hopeless = "Redirect" in kind or "InvalidURL" in kind or (status and 400 <= status < 429)
    return DownloadError(f"cannot be reached ({said})", where=where, fix=fix), not hopeless


class _Memory:
    """What a look at a remote place found, kept in the cache for offline mode."""

    def __init__(self, base: str, patterns: Sequence[str], cache_dir: str | None) -> None:
        import datasets

        key = hashlib.sha256("\n".join([base, *patterns]).encode()).hexdigest()[:32]
        self.base = base
        self.path = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "sqid-sources" / f"{key}.json"

    def keep(self, files: tuple[File, ...]) -> None:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs offline mode, nothing else
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as stream:
                json.dump([[f.url, f.version] for f in files], stream)
            os.replace(stream.name, self.path)  # noqa: PTH105

    def recall(self) -> tuple[File, ...]:
        try:
            return tuple(File(*pair) for pair in json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DownloadError("not loaded before, and offline mode is on", where=self.base, fix=_GO_ONLINE) from error
