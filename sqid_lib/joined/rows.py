"""From files to the rows of a config, shard by shard; what sqid.py hands to datasets."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas, sources
from sqid_lib.errors import SourceError
from sqid_lib.joined import joins, selection
from sqid_lib.joined.selection import Selection
from sqid_lib.joined.vector_lookup import Vectors
from sqid_lib.sources import File
from sqid_lib.tables.keys import check_unique
from sqid_lib.tables.reader import open_parquet, read_parquet
from sqid_lib.tables.vector_columns import vector_width

SHARDS = 16  # what DataLoader workers and nodes share out
MEMORY = 1_200_000_000  # the published vectors, 1.0 GB, fit; a stream takes none

_ESCI_TABLES = ("examples", "products", "sources")
_TABLES = {
    schemas.URLS: ("examples", "products", "product_urls", "product_status"),
    schemas.FEATURES: ("examples", "products", "product_urls", "product_status", "product_features"),
    schemas.QUERIES: ("examples", "sources", "query_features"),
    schemas.SUPP: ("examples", "products", "supp_urls", "supp_status"),
    schemas.JUDGMENTS: ("examples",),
}
_RANGED = ("products", "product_features")  # large: a stream reads what it needs of them by ranges

Paths = tuple[tuple[str, str], ...]  # (where to read, name in messages)


def find_files(config: str, esci: str, artifacts: str, cache_dir: str | None) -> dict[str, tuple[File, ...]]:
    """The files a config needs, by table; errors as `sources.find`."""
    return {
        table: sources.find(esci if table in _ESCI_TABLES else artifacts, table, cache_dir) for table in _TABLES[config]
    }


@dataclass(frozen=True)
class Plan:
    """All that makes the rows of one split: hashable and small, so that it travels to worker processes.

    Attributes:
        config: one of `schemas.CONFIGS`.
        selection: the cut; for a main config its splits are just this one.
        files: table → paths, as items.
        locale: locale of artifact rows that do not say theirs.
        scratch: directory for temporary copies of vectors.
        memory: bytes of vectors that may be in memory at once.
        version: fingerprint of the files.
    """

    config: str
    selection: Selection
    files: tuple[tuple[str, Paths], ...]
    locale: str
    scratch: str | None
    memory: int = 0
    version: str = ""

    def paths(self, table: str) -> Paths:
        return dict(self.files).get(table, ())


def local_paths(
    files: Mapping[str, tuple[File, ...]], cache_dir: str | None, download_config: object, *, streaming: bool
) -> tuple[tuple[str, Paths], ...]:
    """Download what must be here; in a stream, large remote files stay where they are if ranges of them can be read."""

    def path(table: str, file: File) -> str:
        if streaming and not file.local and table in _RANGED and not sources.offline() and _ranges(file.url):
            return file.url
        return sources.download(file, cache_dir, download_config)

    return tuple((table, tuple((path(table, f), f.url) for f in found)) for table, found in files.items())


def _ranges(url: str) -> bool:
    try:
        open_parquet(url, pa.schema([])).close()
    except SourceError:
        raise
    except Exception:  # a server without ranges: fsspec and its http library say so in several ways
        return False
    return True


def width(plan: Plan) -> int:
    """Floats in a vector of the config; the published width for configs without vectors."""
    if plan.config == schemas.FEATURES:
        return vector_width(plan.paths("product_features"), schemas.VECTOR_COLUMNS)
    return vector_width(plan.paths("query_features")) if plan.config == schemas.QUERIES else schemas.PUBLISHED_WIDTH


def tables(plan: Plan, shards: Sequence[int]) -> Iterator[pa.Table]:
    """The rows of some of the SHARDS shards of a config, in order, as tables of its schema."""
    rows = _joined(plan)
    for first, last in _runs(sorted(shards)):
        yield from _ahead(rows.between(rows.count * first // SHARDS, rows.count * (last + 1) // SHARDS))
    if SHARDS - 1 in shards:
        _joined.cache_clear()  # the end: give the memory back


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, the next one in the making while the last is written."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, tables, None)
        while (table := future.result()) is not None:
            future = pool.submit(next, tables, None)
            yield table


def _runs(shards: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring shards as (first, last)."""
    start = 0
    for i in range(1, len(shards) + 1):
        if i == len(shards) or shards[i] != shards[i - 1] + 1:
            yield shards[start], shards[i - 1]
            start = i


@functools.lru_cache(maxsize=1)
def _joined(plan: Plan) -> _Rows:
    special: dict[str, type[_Rows]] = {
        schemas.JUDGMENTS: _Judgments,
        schemas.QUERIES: _Queries,
        schemas.FEATURES: _Features,
    }
    return special.get(plan.config, _Urls)(plan)


def _examples(plan: Plan) -> pa.Table:
    """The columns of the examples that the config needs."""
    path, where = plan.paths("examples")[0]
    columns = schemas.DECLARED[plan.config].of_origin(schemas.EXAMPLES)
    return selection.read_examples(path, plan.selection, [*columns, "split"], where=where)


def _open_vectors(plan: Plan, table: str) -> Vectors:
    opener = joins.open_product_vectors if table == "product_features" else joins.open_query_vectors
    return opener(plan.paths(table), Path(plan.scratch) if plan.scratch else None, plan.memory)


Stamped = tuple[str, str, str]  # (path, name in messages, what changes with the content)


def _stamped(plan: Plan, table: str) -> tuple[Stamped, ...]:
    def stamp(path: str) -> str:
        stat = os.stat(path) if "://" not in path else None  # noqa: PTH116 - a str may also be an url
        return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}" if stat else plan.version

    return tuple((path, where, stamp(path)) for path, where in plan.paths(table))


@functools.lru_cache(maxsize=2)  # who loads one config mostly loads another of the same cut
def _product_keys(examples: Stamped, cut: Selection, part: str) -> pa.Table:
    supp = part == schemas.SUPPLEMENTARY
    columns = (*schemas.PRODUCT_KEY, "split", *(["query_id"] if supp else []))
    table = selection.read_examples(examples[0], cut, columns, where=examples[1])
    if supp:  # judgments are counted here, so none may stand twice
        check_unique(table, schemas.DECLARED[schemas.JUDGMENTS].key, "judgment", examples[1])
    return selection.product_keys(table, cut, part)


@functools.lru_cache(maxsize=2)
def _image_urls(urls: tuple[Stamped, ...], statuses: tuple[Stamped, ...], locale: str) -> pa.Table:
    statuses = statuses if statuses != urls else ()
    return joins.read_image_urls([s[:2] for s in urls], locale, [s[:2] for s in statuses])


@dataclass(frozen=True)
class _Same:
    """A table that equals only itself: a key of a cache."""

    table: pa.Table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.table is self.table

    def __hash__(self) -> int:
        return id(self.table)


@functools.lru_cache(maxsize=2)
def _positions(products: Stamped, keys: _Same) -> np.ndarray:
    return selection.locate_products(products[0], keys.table, where=products[1])


class _Rows(Protocol):
    """The rows of a config; `between` gives a range of them."""

    count: int

    def __init__(self, plan: Plan) -> None: ...

    def between(self, start: int, stop: int) -> Iterator[pa.Table]: ...


class _Judgments:
    def __init__(self, plan: Plan) -> None:
        self.table = selection.judgments(_examples(plan), plan.selection).drop_columns(["split"])
        self.count = self.table.num_rows

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        yield self.table.slice(start, stop - start)


class _Queries:
    def __init__(self, plan: Plan) -> None:
        known = selection.read_sources(*plan.paths("sources")[0][:1], where=plan.paths("sources")[0][1])
        self.table = selection.queries(_examples(plan), plan.selection, known)
        self.count = self.table.num_rows
        vectors = _open_vectors(plan, "query_features")
        self.vectors = vectors.in_order(joins.find_rows(vectors, self.table))
        strange = joins.outside(vectors.keys, self.table)
        if strange.num_rows:
            path, where = plan.paths("examples")[0]
            every = read_parquet(path, pa.schema([("query_id", pa.int64())]), where=where).column(0)
            known_ids = int(pc.sum(pc.is_in(strange.column(0), value_set=every.combine_chunks())).as_py())
            _warn_dropped(strange.num_rows - known_ids, plan.paths("query_features"))

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        yield from joins.query_features(self.table.slice(start, stop - start), self.vectors, start)


class _Urls:
    """urls and supp; the texts of a block of rows are read at once and kept while its shards are asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.columns = schemas.text_columns(plan.config)
        part = schemas.SUPPLEMENTARY if plan.config == schemas.SUPP else schemas.MAIN
        kind = "supp" if plan.config == schemas.SUPP else "product"
        urls = plan.paths(f"{kind}_urls")
        with ThreadPoolExecutor(1) as pool:  # neither keeps two cores busy
            found = [_stamped(plan, f"{kind}_{table}") for table in ("urls", "status")]
            image_urls = pool.submit(_image_urls, *found, plan.locale)
            self.keys = _product_keys(_stamped(plan, "examples")[0], plan.selection, part)
            self.image_urls = image_urls.result()
        self.count = self.keys.num_rows
        self._block: tuple[int, pa.Table] | None = None
        self._count_strangers(joins.outside(self.image_urls, self.keys), urls)

    def _count_strangers(self, keys: pa.Table, paths: Paths) -> None:
        if keys.num_rows:
            path, where = self.plan.paths("products")[0]
            _warn_dropped(keys.num_rows - selection.known_products(path, keys, where=where), paths)

    def texts(self, start: int, stop: int) -> Iterator[pa.Table]:
        while start < stop:
            block, offset = divmod(start, selection.TEXT_ROWS_AT_ONCE)
            table = self._texts_of(block).slice(offset, stop - start)
            yield table
            start += table.num_rows

    def _texts_of(self, block: int) -> pa.Table:
        if self._block is None or self._block[0] != block:
            self._block = None  # the old block goes before the new one comes
            keys = self.keys.slice(block * selection.TEXT_ROWS_AT_ONCE, selection.TEXT_ROWS_AT_ONCE)
            path, where = self.plan.paths("products")[0]
            whole = keys.num_rows == self.count
            positions = _positions(_stamped(self.plan, "products")[0], _Same(self.keys)) if whole else None
            texts = list(selection.product_texts(path, keys, self.columns, where=where, positions=positions))
            self._block = (block, pa.concat_tables(texts))
        return self._block[1]

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        yield from joins.urls(self.texts(start, stop), self.image_urls)


class _Features(_Urls):
    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        vectors = _open_vectors(plan, "product_features")
        self.vectors = vectors.in_order(joins.find_rows(vectors, self.keys, plan.locale))
        self._count_strangers(joins.outside(vectors.keys, self.keys, plan.locale), plan.paths("product_features"))

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        texts = self.texts(start, stop)
        yield from joins.product_features(texts, self.image_urls, self.vectors, start)


def _warn_dropped(count: int, paths: Paths) -> None:
    if count:
        message = f"{paths[0][1]}: {count} rows are of no product or query of ESCI and were left out"
        warnings.warn(message, UserWarning, stacklevel=2)


def splits(config: str, cut: Selection) -> dict[str, Selection]:
    """The splits a config has under a cut, each with the selection that makes its rows."""
    if config == schemas.SUPP:
        return {schemas.SUPP_SPLIT: cut}
    return {split: replace(cut, splits=(split,)) for split in cut.splits}


def fingerprint(files: Mapping[str, tuple[File, ...]]) -> str:
    """Hash of all files a config is made of, and of the declared columns: part of its cache key."""
    return f"{sources.fingerprint([file for found in files.values() for file in found])}-{schemas.fingerprint()}"
