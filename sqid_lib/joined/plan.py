"""What decides the rows of a config: its files, its selection, its splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqid_lib import schemas, sources
from sqid_lib.errors import MissingFileError, NoRangesError
from sqid_lib.files import File
from sqid_lib.joined.selection import Selection
from sqid_lib.sources import Address
from sqid_lib.tables.reader import open_parquet
from sqid_lib.tables.vector_columns import vector_width

_ESCI_TABLES = ("examples", "products", "sources")
_TABLES = {
    schemas.URLS: ("examples", "products", "product_urls", "product_status"),
    schemas.FEATURES: ("examples", "products", "product_urls", "product_status", "product_features"),
    schemas.QUERIES: ("examples", "sources", "query_features"),
    schemas.SUPP: ("examples", "products", "supp_urls", "supp_status"),
    schemas.JUDGMENTS: ("examples",),
}
_URL_TABLES = ("product_urls", "supp_urls")  # without such a file every image is missing
_VECTOR_TABLES = ("product_features", "query_features")
_RANGED = ("products", "product_features")  # large: a stream reads what it needs of them by ranges


def find_files(
    config: str, esci: Address, artifacts: Address, cache_dir: str | None = None
) -> dict[str, tuple[File, ...]]:
    """The files a config needs, by table; none for image URLs, where the artifacts have other files but not these.

    Raises:
        SourceError: as `sources.find`.
    """
    found = {}
    for table in _TABLES[config]:
        base = esci if table in _ESCI_TABLES else artifacts
        try:
            found[table] = sources.find(base, table, cache_dir)
        except MissingFileError:
            if table not in _URL_TABLES or not _holds_other_tables(artifacts, table, cache_dir):
                raise
            found[table] = ()
    return found


def _holds_other_tables(artifacts: Address, but: str, cache_dir: str | None) -> bool:
    for table in (*_URL_TABLES, *_VECTOR_TABLES):
        try:
            if table != but and sources.find(artifacts, table, cache_dir):
                return True
        except MissingFileError:
            pass
    return False


@dataclass(frozen=True)
class Plan:
    """Everything that decides the rows of one split: hashable and small, so that it can be sent to worker processes.

    Attributes:
        config: one of `schemas.CONFIGS`.
        selection: of ESCI; for a main config its splits are just this one.
        files: (table, its files), in order.
        locale: locale of artifact rows that do not state one.
        scratch: directory for temporary copies of vectors.
        memory: bytes of vectors that may be in memory at once.
    """

    config: str
    selection: Selection
    files: tuple[tuple[str, tuple[File, ...]], ...]
    locale: str
    scratch: str | None
    memory: int = 0

    def of(self, table: str) -> tuple[File, ...]:
        """The files of a table."""
        return dict(self.files).get(table, ())


def download(
    files: Mapping[str, tuple[File, ...]], cache_dir: str | None, *, streaming: bool = False, force: bool = False
) -> tuple[tuple[str, tuple[File, ...]], ...]:
    """The files of a plan, downloaded; a stream reads large ones by ranges instead, where the server sends ranges."""

    def get(table: str, file: File) -> File:
        if streaming and not file.local and table in _RANGED and not sources.offline():
            try:
                open_parquet(file).close()
                return file
            except NoRangesError:
                pass
        return sources.download(file, cache_dir, force=force)

    return tuple((table, tuple(get(table, file) for file in found)) for table, found in files.items())


def width(plan: Plan) -> int:
    """Floats in a vector of the config; the published width for configs without vectors."""
    if plan.config == schemas.FEATURES:
        return vector_width(plan.of("product_features"), schemas.VECTOR_COLUMNS)
    return vector_width(plan.of("query_features")) if plan.config == schemas.QUERIES else schemas.PUBLISHED_WIDTH


def splits(config: str, chosen: Selection) -> dict[str, Selection]:
    """The splits a config has under a selection, each with the selection that makes its rows."""
    if config == schemas.SUPP:
        return {schemas.SUPP_SPLIT: chosen}
    return {split: replace(chosen, splits=(split,)) for split in chosen.splits}


def fingerprint(files: Mapping[str, tuple[File, ...]]) -> str:
    """Hash of all files a config is made of, and of the declared columns: part of its cache key."""
    return f"{sources.fingerprint([file for found in files.values() for file in found])}-{schemas.fingerprint()}"
