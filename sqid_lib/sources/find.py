"""Which files of an address hold a table: ESCI's, the published SQID files, or those of a release."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sqid_lib import schemas
from sqid_lib.cache import read_note, write_note
from sqid_lib.errors import DownloadError, MissingFileError, SourceError
from sqid_lib.files import File, is_stream
from sqid_lib.sources import http, hub, local
from sqid_lib.sources.address import HTTP, HUB, LOCAL, Address, parse_address
from sqid_lib.sources.read import offline, sources_cache
from sqid_lib.sources.retry import GO_ONLINE

ESCI_URL = "https://media.githubusercontent.com/media/amazon-science/esci-data/main/shopping_queries_dataset"
SQID_URL = "hf://datasets/crossingminds/shopping-queries-image-dataset"
_FORMATS = tuple(
    f"{kind}{codec}"
    for kind in (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")
    for codec in ("", ".gz", ".bz2", ".zst")
)


def _layouts(file: str, config: str) -> tuple[str, ...]:
    """Names of one published file: itself, the Hub dataset's data/, a release; of a csv also its other formats."""
    stem, _, kind = file.partition(".")
    others = (*_FORMATS, ".parquet") if kind == "csv" else ()
    layouts = (file, f"data/{stem}.parquet", f"data/{stem}-*.parquet", f"data/{config}/*.parquet")
    return (*layouts, *(f"{stem}{other}" for other in others))


_TABLES: dict[str, tuple[str, ...]] = {
    "examples": (schemas.ESCI_EXAMPLES,),
    "products": (schemas.ESCI_PRODUCTS,),
    "sources": (
        schemas.ESCI_SOURCES,
        *(schemas.ESCI_SOURCES.removesuffix(".csv") + kind for kind in (*_FORMATS, ".parquet")),
    ),
    "product_urls": _layouts(schemas.PRODUCT_URLS, schemas.URLS),
    "product_features": _layouts(schemas.PRODUCT_FEATURES, schemas.FEATURES),
    "query_features": _layouts(schemas.QUERY_FEATURES, schemas.QUERIES),
    "supp_urls": _layouts(schemas.SUPP_URLS, schemas.SUPP),
    # only a release states how a download failed
    "product_status": (f"data/{schemas.URLS}/*.parquet",),
    "supp_status": (f"data/{schemas.SUPP}/*.parquet",),
}
_OPTIONAL = ("product_status", "supp_status")
_OVER_HTTP = 4  # names that are tried over http, where each costs a request: the published layouts


def find(
    base: str | os.PathLike[str] | Address, table: str, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[File, ...]:
    """The files of a table below an address, in order; none for an optional table that is not there.

    Args:
        base: an address as `parse_address` reads it.
        table: a key of the table above, such as "examples" or "product_features".
        cache_dir: where the results of earlier calls are remembered for offline mode.

    Raises:
        MissingFileError: none of the table's names is there.
        DownloadError: the server cannot be reached, or offline mode is on and nothing is remembered.
        SourceError: not an address.
    """
    address = base if isinstance(base, Address) else parse_address(base)
    patterns = _TABLES[table]
    found = _find(address, patterns, cache_dir)
    if not found and table not in _OPTIONAL:
        raise MissingFileError(
            f"the {table.replace('_', ' ')} file is missing",
            where=address,
            expected=" or ".join(list(dict.fromkeys(patterns))[:2]),
            fix="Check the address.",
        )
    return found


def find_file(text: str | os.PathLike[str]) -> File:
    """The one file at an address, at the version it has now.

    Raises:
        MissingFileError: there is no such file.
        DownloadError: the server or the Hub cannot be reached.
        SourceError: not an address, or a pipe or device.
    """
    address = parse_address(text, file=True)
    found: File | None = None
    if address.kind == LOCAL:
        path = Path(address.path)
        if is_stream(path):
            raise SourceError("a pipe or a device, not a file", where=path, fix="Write what it gives to a file first.")
        found = File(address.path, local.version(path)) if path.exists() else None
    elif address.kind == HTTP:
        found = http.look(address.path)
    else:
        folder, _, name = address.path.rpartition("/")
        found = hub.listing(replace(address, path=folder)).get(name)
    if found is None:
        raise MissingFileError("no such file", where=address, fix="Check the address.")
    return found


def fingerprint(files: Sequence[File]) -> str:
    """Hash of the URLs and versions of `files`: the same only if none of them changed."""
    return hashlib.sha256(json.dumps([(f.url, f.version) for f in files]).encode()).hexdigest()[:32]


def listing(address: Address) -> dict[str, File]:
    """All files below an address by their name relative to it; over http, those that the manifest of a release lists.

    Raises:
        MissingFileError: no such directory, dataset or revision, or over http no manifest.
        DownloadError: the server or the Hub cannot be reached.
    """
    if address.kind == HUB:
        return hub.listing(address)
    if address.kind == LOCAL:
        return local.listing(Path(address.path))
    files = http.listing(address.path)
    if not files:
        raise MissingFileError("no release at this URL", where=address, expected=schemas.MANIFEST)
    return files


def _find(address: Address, patterns: Sequence[str], cache_dir: str | os.PathLike[str] | None) -> tuple[File, ...]:
    if address.kind == LOCAL:
        local.check_directory(Path(address.path))
        return local.find(Path(address.path), patterns)
    memory = _Memory(address, patterns, cache_dir)
    if offline():
        return memory.recall()
    found = _find_on_hub(address, patterns) if address.kind == HUB else _find_over_http(address.path, patterns)
    memory.keep(found)
    return tuple(found.values())


def _find_on_hub(address: Address, patterns: Sequence[str]) -> dict[str, File]:
    files = hub.listing(address)
    for pattern in patterns:
        names = sorted(name for name in files if fnmatch.fnmatchcase(name, pattern))
        if names:
            return {name: files[name] for name in names}
    return {}


def _find_over_http(base: str, patterns: Sequence[str]) -> dict[str, File]:
    names: Iterable[str] | None = None
    for pattern in patterns[:_OVER_HTTP]:
        if "*" not in pattern:
            candidates = [pattern]
        else:  # http cannot list a directory: the manifest of a release does
            names = http.listing(base) if names is None else names
            candidates = sorted(fnmatch.filter(names, pattern))
        found = {name: file for name in candidates if (file := http.look(url_of(base, name)))}
        if found and len(found) == len(candidates):
            return found
    return {}


def url_of(base: str, name: str) -> str:
    """URL of a file below `base`.

    GitHub serves what is in Git LFS from its media host, and other files, such as csv, from its raw host.
    """
    raw = base.replace("://media.githubusercontent.com/media/", "://raw.githubusercontent.com/", 1)
    return http.below(raw if name.endswith(".csv") else base, name)


class _Memory:
    """What was found at a remote address, kept in the cache for offline mode; URLs of http, which may hold a password,
    are not written."""

    def __init__(self, address: Address, patterns: Sequence[str], cache_dir: str | os.PathLike[str] | None) -> None:
        key = hashlib.sha256("\n".join(["names", str(address), *patterns]).encode()).hexdigest()[:32]
        self._address = address
        self._path = sources_cache(cache_dir) / f"{key}.json"

    def keep(self, found: dict[str, File]) -> None:
        by_name = self._address.kind == HTTP
        rows = [[name if by_name else file.url, file.version] for name, file in found.items()]
        with contextlib.suppress(OSError):  # a cache that cannot be written costs offline mode, nothing else
            write_note(self._path, json.dumps(rows))

    def recall(self) -> tuple[File, ...]:
        try:
            rows = [(str(name), str(version)) for name, version in json.loads(read_note(self._path) or "")]
        except (ValueError, TypeError) as error:
            raise DownloadError(
                "not loaded before, and offline mode is on", where=self._address, fix=GO_ONLINE
            ) from error
        if self._address.kind == HTTP:
            rows = [(url_of(self._address.path, name), version) for name, version in rows]
        return tuple(File(url, version) for url, version in rows)
