"""The four files of the published SQID, under their names and columns, from the sample and the artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.release.artifacts import Artifacts
from builder.release.configs import embeds_supp, read_keys
from builder.release.files import write_classic_features, write_urls
from sqid_lib import schemas
from sqid_lib.joined import joins
from sqid_lib.joined.vector_lookup import VectorLookup
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet
from sqid_lib.tables.vector_columns import present

if TYPE_CHECKING:
    from builder.recipe import Recipe

_BATCH_ROWS = 4_096


def write_classic_files(recipe: Recipe, sample: Path, artifacts: Artifacts, out: Path) -> None:
    """Write the four files to `out`.

    They have a column product_locale where ids of several locales, or of another locale than us, would be ambiguous.

    Args:
        sample: the directory that stage sample wrote.
    """
    located = recipe.selection.locales != (schemas.CLASSIC_LOCALE,)
    main, supp = read_keys(sample / "products.parquet"), read_keys(sample / "supp.parquet")
    for name, keys, urls in (
        (schemas.PRODUCT_URLS, main, artifacts.urls),
        (schemas.SUPP_URLS, supp, artifacts.supp_urls),
    ):
        rows = pc.index_in(key_strings(keys), value_set=key_strings(urls))
        table = keys.append_column("image_url", urls.column("image_url").take(rows))
        write_urls(out / name, [table], located=located)

    def products() -> Iterator[pa.Table]:
        yield from with_vectors(main, artifacts.products)
        if embeds_supp(recipe):
            yield from with_vectors(supp, artifacts.products)

    write_classic_features(out / schemas.PRODUCT_FEATURES, "product", products(), located=located)
    queries = read_parquet(str(sample / "queries.parquet"), pa.schema([("query_id", pa.int64())]))
    write_classic_features(out / schemas.QUERY_FEATURES, "query", with_vectors(queries, artifacts.queries))


def with_vectors(keys: pa.Table, vectors: VectorLookup) -> Iterator[pa.Table]:
    """`keys` with their vectors, null where there is none."""
    ordered = vectors.in_order(joins.find_rows(vectors, keys))
    for begin in range(0, keys.num_rows, _BATCH_ROWS):
        part = keys.slice(begin, _BATCH_ROWS)
        taken = ordered.take(begin, begin + part.num_rows)
        for name, matrix in zip(vectors.columns, taken, strict=True):
            part = part.append_column(name, lists_or_null(matrix))
        yield part


def lists_or_null(matrix: np.ndarray) -> pa.ListArray:
    there = present(matrix)
    offsets = np.concatenate([[0], np.cumsum(there * matrix.shape[1])]).astype(np.int32)
    values = pa.array(matrix[there].reshape(-1), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~there))
