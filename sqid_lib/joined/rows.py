"""From files to the rows of a config, shard by shard: what sqid.py gives to datasets."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.files import File
from sqid_lib.joined import joins, product_texts, selection
from sqid_lib.joined.matches import Match, warn, warn_of_mismatches
from sqid_lib.joined.plan import Plan, download, find_files, fingerprint, splits, width
from sqid_lib.joined.product_texts import ProductTexts
from sqid_lib.joined.selection import Selection
from sqid_lib.joined.vector_lookup import VectorLookup
from sqid_lib.tables.keys import check_unique
from sqid_lib.tables.reader import read_parquet

__all__ = ["MEMORY", "SHARDS", "Plan", "download", "find_files", "fingerprint", "splits", "tables", "width"]

SHARDS = 16  # DataLoader workers and nodes divide them among themselves
_TEXT_ROWS = 16_000  # of a table with texts; datasets writes batches of 1,000
_VECTOR_TEXT_ROWS = 16_384  # of texts beside vectors, which come 2,048 at a time
MEMORY = 1_200_000_000  # the published vectors, 1.0 GB, fit; a stream uses none


def tables(plan: Plan, shards: Sequence[int]) -> Iterator[pa.Table]:
    """The rows of some of the SHARDS shards of a config, in order, as tables of its schema."""
    rows = _joined(plan)
    for first, last in _runs(sorted(shards)):
        yield from _ahead(rows.between(rows.count * first // SHARDS, rows.count * (last + 1) // SHARDS))
    if SHARDS - 1 in shards:  # that was the last shard: free the memory
        _joined.cache_clear()
        del rows
        pa.default_memory_pool().release_unused()  # Arrow would keep what the texts took beside the next config's


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; while one is written, the next one is made."""
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
    rows = special.get(plan.config, _Urls)(plan)
    if not rows.count:
        warn(_why_empty(plan))
    return rows


def _why_empty(plan: Plan) -> str:
    chosen, examples = plan.selection, plan.of("examples")[0]
    locales = f"locale {' or '.join(chosen.locales)}"
    if plan.config == schemas.SUPP:
        return (
            f"supp is empty: {examples} has no product of {locales} outside split {' or '.join(chosen.splits)} "
            f"with at least {chosen.supp_min_judgments} judgments of version {chosen.version}"
        )
    found = pc.unique(selection.read_examples(examples, chosen, ["split"]).column(0)).to_pylist()
    there = f"there are some of split {', '.join(sorted(found))}" if found else "there are none of any split"
    return (
        f"{plan.config} is empty: {examples} has no judgments of split {' or '.join(chosen.splits)}, {locales}, "
        f"version {chosen.version}; {there}"
    )


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
    """A table that is equal only to itself, so that it can be the key of a cache."""

    table: pa.Table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.table is self.table

    def __hash__(self) -> int:
        return id(self.table)


@functools.lru_cache(maxsize=2)
def _positions(products: File, keys: _Same) -> np.ndarray:
    return product_texts.locate_products(products, keys.table)


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
        self.plan = plan
        known = selection.read_sources(plan.of("sources")[0])
        self.table = selection.queries(_examples(plan), plan.selection, known)
        self.count = self.table.num_rows
        vectors = _open_vectors(plan, "query_features")
        self.vectors = vectors.in_order(joins.find_rows(vectors, self.table))
        outside = joins.outside(vectors.keys, self.table)
        match = Match("vectors", plan.of("query_features"), vectors.keys.num_rows, outside, self.table)
        warn_of_mismatches([match], self._are_known, f"queries of {_split_in_words(plan)}")

    def _are_known(self, keys: pa.Table) -> pa.Array:
        schema = pa.schema([("query_id", pa.int64())])
        every = read_parquet(self.plan.of("examples")[0], schema).column(0).combine_chunks()
        return pc.is_in(keys.column(0).combine_chunks(), value_set=every)

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        yield from joins.query_features(self.table.slice(start, stop - start), self.vectors, start)


class _Urls:
    """urls and supp."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.columns = schemas.text_columns(plan.config)
        part = schemas.SUPPLEMENTARY if plan.config == schemas.SUPP else schemas.MAIN
        kind = "supp" if plan.config == schemas.SUPP else "product"
        urls, statuses = plan.of(f"{kind}_urls"), plan.of(f"{kind}_status")
        with ThreadPoolExecutor(1) as pool:  # neither keeps two cores busy
            image_urls = pool.submit(_image_urls, urls, statuses, plan.locale)
            if part == schemas.MAIN and plan.selection.products == selection.ALL:
                self.keys = selection.catalogue_keys(plan.of("products")[0], plan.selection.locales)
            else:
                self.keys = _product_keys(plan.of("examples")[0], plan.selection, part)
            self.count = self.keys.num_rows
            found = image_urls.result()
            self._located = pool.submit(self._locate)
            self.image_urls = joins.urls_in_order(found, self.keys)
            outside = joins.outside(found, self.keys)
        self._texts: ProductTexts | None = None
        matches = [Match("image URLs", urls, found.num_rows, outside, self.keys), *self._other_matches()]
        words = "supplementary products" if plan.config == schemas.SUPP else f"products of {_split_in_words(plan)}"
        warn_of_mismatches(matches, self._are_known, words)

    def _locate(self) -> np.ndarray | None:
        return _positions(self.plan.of("products")[0], _Same(self.keys)) if self.count else None

    def _other_matches(self) -> list[Match]:
        """How vectors match, where the config has any."""
        return []

    def _are_known(self, keys: pa.Table) -> pa.Array:
        return product_texts.are_known(self.plan.of("products")[0], keys)

    def texts(self, start: int, stop: int, rows: int) -> Iterator[pa.Table]:
        """The texts of a range of rows, at most `rows` a table."""
        if self._texts is None:
            products, positions = self.plan.of("products")[0], self._located.result()
            self._texts = ProductTexts(products, self.keys, self.columns, positions=positions)
        return self._texts.between(start, stop, rows)

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        texts = self.texts(start, stop, _TEXT_ROWS)
        yield from joins.urls(texts, self.image_urls, self.plan.config, start)


class _Features(_Urls):
    def _other_matches(self) -> list[Match]:
        files, locale = self.plan.of("product_features"), self.plan.locale
        vectors = _open_vectors(self.plan, "product_features")
        self.vectors = vectors.in_order(joins.find_rows(vectors, self.keys, locale))
        outside = joins.outside(vectors.keys, self.keys, locale)
        return [Match("vectors", files, vectors.keys.num_rows, outside, self.keys)]

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        texts = self.texts(start, stop, _VECTOR_TEXT_ROWS)
        yield from joins.product_features(texts, self.image_urls, self.vectors, start)


def _split_in_words(plan: Plan) -> str:
    return f"split {' or '.join(plan.selection.splits)}, locale {' or '.join(plan.selection.locales)}"
