"""ESCI joined with SQID, the only join code: the builder's release and the loader both call it.

ESCI decides which rows there are. A product without a SQID row stays: image_status "missing", has_image false.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.files import File
from sqid_lib.joined.image_status import clean_urls, image_status, is_http
from sqid_lib.joined.vector_lookup import OrderedVectors, VectorLookup
from sqid_lib.tables.keys import check_unique_in_splits, key_strings
from sqid_lib.tables.reader import conform, read_table
from sqid_lib.tables.vector_columns import fixed_lists, present

_VECTOR_ROWS = 2_048  # 12 MB of 2 × 768 float32

_URL_COLUMNS = ["image_url", "image_status"]
IMAGE_URLS_SCHEMA = pa.schema([(name, pa.string()) for name in (*schemas.PRODUCT_KEY, *_URL_COLUMNS)])


def read_image_urls(
    files: Sequence[File], locale: str = schemas.CLASSIC_LOCALE, statuses: Sequence[File] = ()
) -> pa.Table:
    """The URL and status of every product in the files.

    Args:
        files: csv, json or parquet files with product_id, image_url and perhaps product_locale and image_status; there
            may be none.
        locale: the locale of rows that do not state one.
        statuses: files of a release's `urls` or `supp`, which state how a download failed.

    Returns:
        Table of `IMAGE_URLS_SCHEMA`; rows without a status get that of `image_status`.

    Raises:
        DuplicateKeyError: a key occurs twice.
        SourceError: as `tables.read_table`.
    """
    table = _read_image_urls(files, locale)
    if not statuses:
        return table
    known = _read_image_urls(statuses, locale)
    rows = pc.index_in(key_strings(table), value_set=key_strings(known))
    same = pc.equal(known.column("image_url").take(rows), table.column("image_url"))
    status = pc.if_else(
        pc.fill_null(same, False), known.column("image_status").take(rows), table.column("image_status")
    )
    return table.set_column(3, IMAGE_URLS_SCHEMA.field("image_status"), status)


def _read_image_urls(files: Sequence[File], locale: str) -> pa.Table:
    if not files:
        return IMAGE_URLS_SCHEMA.empty_table()
    tables = []
    for file in files:
        table = read_table(file, IMAGE_URLS_SCHEMA, optional=("product_locale", "image_status"))
        url = clean_urls(table.column("image_url"), str(file))
        table = table.set_column(table.column_names.index("image_url"), "image_url", url)
        if "product_locale" not in table.column_names:
            table = table.append_column("product_locale", pa.repeat(locale, table.num_rows).cast(pa.string()))
        if "image_status" not in table.column_names:
            http = pc.fill_null(is_http(url), True)
            table = table.append_column("image_status", pc.if_else(http, image_status(url), schemas.BAD_URL))
        tables.append(table.select(IMAGE_URLS_SCHEMA.names).cast(IMAGE_URLS_SCHEMA))
    check_unique_in_splits(tables, files, schemas.PRODUCT_KEY, "product")
    table = pa.concat_tables(tables).combine_chunks()
    keys = key_strings(table)
    first = pc.index_in(keys, value_set=keys).to_numpy(zero_copy_only=False) == np.arange(len(keys))
    return table.filter(pa.array(first)).combine_chunks()  # a product may be judged in several splits


def urls_in_order(image_urls: pa.Table, keys: pa.Table) -> pa.Table:
    """image_url and image_status of each of `keys` (product_id, product_locale), in order; null and `missing` for none.

    Args:
        image_urls: table of `IMAGE_URLS_SCHEMA`.
    """
    rows = pc.index_in(key_strings(keys), value_set=key_strings(image_urls))
    found = image_urls.select(_URL_COLUMNS).take(rows)
    return found.set_column(1, found.field(1), pc.fill_null(found.column(1), schemas.MISSING))


def urls(
    texts: Iterable[pa.Table], ordered: pa.Table, config: str = schemas.URLS, at: int = 0, kept: schemas.Kept = ()
) -> Iterator[pa.Table]:
    """The `urls` and `supp` configs: texts (product_id, product_locale, text columns, kept) with URL and status.

    Args:
        ordered: the result of `urls_in_order` for all products.
        at: the row of `ordered` for the first of `texts`.
    """
    schema = schemas.config_schema(config, kept=kept)
    for table in texts:
        yield conform(_with_urls(table, ordered, at), schema, config)
        at += table.num_rows


class Vectors(Protocol):
    """Vectors in the order in which they are wanted, as `OrderedVectors`."""

    @property
    def width(self) -> int: ...

    def take(self, start: int, stop: int) -> list[np.ndarray]: ...


def product_features(
    texts: Iterable[pa.Table], ordered: pa.Table, vectors: Vectors, at: int = 0, kept: schemas.Kept = ()
) -> Iterator[pa.Table]:
    """The `product_features` config, at most 2,048 rows a table.

    Args:
        texts: the product key, `schemas.text_columns` of the config and `kept`, in order.
        ordered: the result of `urls_in_order` for all products.
        vectors: text and image vectors (`schemas.VECTOR_COLUMNS`) of every product, in order.
        at: the row of `ordered` and `vectors` for the first of `texts`.
        kept: further columns of a catalogue.
    """
    schema = schemas.config_schema(schemas.FEATURES, vectors.width, kept)
    for table in texts:
        joined = _with_urls(table, ordered, at)
        for begin in range(0, joined.num_rows, _VECTOR_ROWS):
            part = joined.slice(begin, _VECTOR_ROWS)
            text, image = vectors.take(at, at + part.num_rows)
            at += part.num_rows
            part = part.append_column("has_image", pa.array(present(image)))
            for name, matrix in zip(schemas.VECTOR_COLUMNS, (text, image), strict=True):
                part = part.append_column(name, fixed_lists(matrix))
            yield conform(part, schema, schemas.FEATURES)


def query_features(queries: pa.Table, vectors: OrderedVectors, at: int = 0) -> Iterator[pa.Table]:
    """The `query_features` config; `at` as in `product_features`, a query without a vector gets zeros."""
    schema = schemas.config_schema(schemas.QUERIES, vectors.width)
    for begin in range(0, queries.num_rows, _VECTOR_ROWS):
        part = queries.slice(begin, _VECTOR_ROWS)
        (text,) = vectors.take(at + begin, at + begin + part.num_rows)
        yield conform(part.append_column("clip_text_features", fixed_lists(text)), schema, schemas.QUERIES)


def open_product_vectors(files: Sequence[File], scratch: Path | None = None, memory: int = 0) -> VectorLookup:
    """Product vectors of the published files, a release or a build."""
    key = pa.schema([(name, pa.string()) for name in schemas.PRODUCT_KEY])
    return VectorLookup(files, key, schemas.VECTOR_COLUMNS, scratch, memory)


def open_query_vectors(files: Sequence[File], scratch: Path | None = None, memory: int = 0) -> VectorLookup:
    """Query vectors, likewise; query_id may be text or any integer."""
    return VectorLookup(files, pa.schema([("query_id", pa.int64())]), schemas.VECTOR_COLUMNS[:1], scratch, memory)


def find_rows(vectors: VectorLookup, keys: pa.Table, locale: str = schemas.CLASSIC_LOCALE) -> np.ndarray:
    """The row of `vectors` for each of `keys`: int64, -1 for none; `locale` is that of files without locales."""
    if "query_id" in vectors.keys.column_names:
        found = pc.index_in(keys.column("query_id"), value_set=vectors.keys.column("query_id").combine_chunks())
    else:
        found = pc.index_in(key_strings(keys), value_set=key_strings(_with_locale(vectors.keys, locale)))
    rows: np.ndarray = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def without_text(vectors: VectorLookup, keys: pa.Table) -> pa.Table:
    """Those of `keys` that have no text vector, or one of zeros."""
    rows = find_rows(vectors, keys)
    there = np.append(vectors.present(schemas.VECTOR_COLUMNS[0]), False)  # row -1 is none
    return keys.filter(pa.array(~there[rows]))


def outside(known: pa.Table, keys: pa.Table, locale: str = schemas.CLASSIC_LOCALE) -> pa.Table:
    """The keys (product_id, product_locale or query_id) of SQID rows that are not among `keys`."""
    if "query_id" in keys.column_names:
        known = known.select(["query_id"])
        return known.filter(pc.invert(pc.is_in(known.column(0), value_set=keys.column("query_id").combine_chunks())))
    known = _with_locale(known, locale).select(list(schemas.PRODUCT_KEY))
    return known.filter(pc.invert(pc.is_in(key_strings(known), value_set=key_strings(keys))))


def _with_locale(keys: pa.Table, locale: str) -> pa.Table:
    if "product_locale" in keys.column_names:
        return keys
    return keys.append_column("product_locale", pa.repeat(locale, keys.num_rows).cast(pa.string()))


def _with_urls(table: pa.Table, ordered: pa.Table, at: int) -> pa.Table:
    part = ordered.slice(at, table.num_rows)
    for name in _URL_COLUMNS:
        table = table.append_column(name, part.column(name))
    return table
