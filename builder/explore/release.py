"""Open a release for the explorer: its store, and the brands that a store does not keep."""

from __future__ import annotations

import logging
import os

import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.cache import download_cache
from sqid_lib.errors import SqidError
from sqid_lib.sources import parse_address, snapshot
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.release_files import shards
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet

_BRAND = "product_brand"
_log = logging.getLogger(__name__)


def read_brands(
    store: EmbeddingStore, dir_or_repo: str | os.PathLike[str], revision: str | None, cache_dir: str | None
) -> pa.ChunkedArray | None:
    """The brand of each product of the store, string [P], from config `urls`; None where the release has none."""
    if _BRAND in store.products.column_names:
        return store.products[_BRAND]
    address = parse_address(dir_or_repo).at(revision)
    schema = pa.schema([(name, pa.string()) for name in (*schemas.PRODUCT_KEY, _BRAND)])
    try:
        folder = snapshot(
            address, [f"data/{schemas.URLS}/*.parquet"], None if address.local else download_cache(cache_dir)
        )
        names = [path.relative_to(folder).as_posix() for path in folder.glob(f"data/{schemas.URLS}/*.parquet")]
        tables = [read_parquet(str(folder / name), schema) for _, name in shards(names, schemas.URLS, address)]
    except SqidError as error:  # the page is as useful without brands
        _log.warning("no brands are shown: %s", error)
        return None
    if not tables:
        return None
    products = pa.concat_tables(tables).combine_chunks()
    at = pc.index_in(key_strings(store.products), value_set=key_strings(products))
    return products[_BRAND].take(at)
