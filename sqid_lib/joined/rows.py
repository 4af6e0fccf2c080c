"""From files to the rows of a config, shard by shard: what sqid.py gives to datasets."""

from __future__ import annotations

import functools
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
from sqid_lib.errors import NoRangesError
from sqid_lib.files import File
from sqid_lib.joined import joins, selection
from sqid_lib.joined.selection import Selection
from sqid_lib.joined.vector_lookup import VectorLookup
from sqid_lib.sources import Address
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


def find_files(
    config: str, esci: Address, artifacts: Address, cache_dir: str | None = None
) -> dict[str, tuple[File, ...]]:
    """The files a config needs, by table; errors as `sources.find`."""
    return {
        table: sources.find(esci if table in _ESCI_TABLES else artifacts, table, cache_dir) for table in _TABLES[config]
    }


@dataclass(frozen=True)
class Plan:
    """All that makes the rows of one split: hashable and small, so that it can be sent to worker processes.

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
    """The files of a plan: downloaded, but that a stream reads large ones by ranges where the server can send them."""

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
    columns = schemas.DECLARED[plan.config].of_origin(schemas.EXAMPLES)
    return selection.read_examples(plan.of("examples")[0], plan.selection, [*columns, "split"])


def _open_vectors(plan: Plan, table: str) -> VectorLookup:
    opener = joins.open_product_vectors if table == "product_features" else joins.open_query_vectors
    return opener(plan.of(table), Path(plan.scratch) if plan.scratch else None, plan.memory)


@functools.lru_cache(maxsize=2)  # one config is often loaded after another of the same selection
def _product_keys(examples: File, chosen: Selection, part: str) -> pa.Table:
    supp = part == schemas.SUPPLEMENTARY
    columns = (*schemas.PRODUCT_KEY, "split", *(["query_id"] if supp else []))
    table = selection.read_examples(examples, chosen, columns)
    if supp:  # judgments are counted here, so none may occur twice
        check_unique(table, schemas.DECLARED[schemas.JUDGMENTS].key, "judgment", examples.url)
    return selection.product_keys(table, chosen, part)


@functools.lru_cache(maxsize=2)
def _image_urls(urls: tuple[File, ...], statuses: tuple[File, ...], locale: str) -> pa.Table:
    return joins.read_image_urls(urls, locale, statuses if statuses != urls else ())


@dataclass(frozen=True)
class _Same:
    """A table that equals only itself: a key of a cache."""

    table: pa.Table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.table is self.table

    def __hash__(self) -> int:
        return id(self.table)


@functools.lru_cache(maxsize=2)
def _positions(products: File, keys: _Same) -> np.ndarray:
    return selection.locate_products(products, keys.table)


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
        known = selection.read_sources(plan.of("sources")[0])
        self.table = selection.queries(_examples(plan), plan.selection, known)
        self.count = self.table.num_rows
        vectors = _open_vectors(plan, "query_features")
        self.vectors = vectors.in_order(joins.find_rows(vectors, self.table))
        others = joins.outside(vectors.keys, self.table)
        if others.num_rows:
            every = read_parquet(plan.of("examples")[0], pa.schema([("query_id", pa.int64())])).column(0)
            known_ids = int(pc.sum(pc.is_in(others.column(0), value_set=every.combine_chunks())).as_py())
            _warn_dropped(others.num_rows - known_ids, plan.of("query_features"))

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        yield from joins.query_features(self.table.slice(start, stop - start), self.vectors, start)


class _Urls:
    """urls and supp; the texts of a block of rows are read at once and kept while its shards are asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.columns = schemas.text_columns(plan.config)
        part = schemas.SUPPLEMENTARY if plan.config == schemas.SUPP else schemas.MAIN
        kind = "supp" if plan.config == schemas.SUPP else "product"
        urls, statuses = plan.of(f"{kind}_urls"), plan.of(f"{kind}_status")
        with ThreadPoolExecutor(1) as pool:  # neither keeps two cores busy
            image_urls = pool.submit(_image_urls, urls, statuses, plan.locale)
            self.keys = _product_keys(plan.of("examples")[0], plan.selection, part)
            self.image_urls = image_urls.result()
        self.count = self.keys.num_rows
        self._block: tuple[int, pa.Table] | None = None
        self._report_dropped(joins.outside(self.image_urls, self.keys), urls)

    def _report_dropped(self, keys: pa.Table, files: tuple[File, ...]) -> None:
        if keys.num_rows:
            _warn_dropped(keys.num_rows - selection.known_products(self.plan.of("products")[0], keys), files)

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
            products, whole = self.plan.of("products")[0], keys.num_rows == self.count
            positions = _positions(products, _Same(self.keys)) if whole else None
            texts = list(selection.product_texts(products, keys, self.columns, positions=positions))
            self._block = (block, pa.concat_tables(texts))
        return self._block[1]

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        yield from joins.urls(self.texts(start, stop), self.image_urls)


class _Features(_Urls):
    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        vectors = _open_vectors(plan, "product_features")
        self.vectors = vectors.in_order(joins.find_rows(vectors, self.keys, plan.locale))
        self._report_dropped(joins.outside(vectors.keys, self.keys, plan.locale), plan.of("product_features"))

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        texts = self.texts(start, stop)
        yield from joins.product_features(texts, self.image_urls, self.vectors, start)


def _warn_dropped(count: int, files: tuple[File, ...]) -> None:
    if count:
        message = f"{files[0]}: {count} rows are of no product or query of ESCI and were left out"
        warnings.warn(message, UserWarning, stacklevel=2)


def splits(config: str, chosen: Selection) -> dict[str, Selection]:
    """The splits a config has under a selection, each with the selection that makes its rows."""
    if config == schemas.SUPP:
        return {schemas.SUPP_SPLIT: chosen}
    return {split: replace(chosen, splits=(split,)) for split in chosen.splits}


def fingerprint(files: Mapping[str, tuple[File, ...]]) -> str:
    """Hash of all files a config is made of, and of the declared columns: part of its cache key."""
    return f"{sources.fingerprint([file for found in files.values() for file in found])}-{schemas.fingerprint()}"
