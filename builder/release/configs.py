"""The data files of a release: the sample joined with the artifacts, as parquet files of each config and split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.release.artifacts import Artifacts
from builder.release.files import write_shards
from sqid_lib import schemas
from sqid_lib.files import File
from sqid_lib.joined import joins, selection
from sqid_lib.joined.product_texts import product_texts
from sqid_lib.tables.reader import read_parquet

if TYPE_CHECKING:
    from builder.recipe import Recipe


def write_configs(recipe: Recipe, sample: Path, artifacts: Artifacts, out: Path) -> None:
    """Write `out`/data: every config of every split, and the supplementary products.

    Args:
        sample: the directory that stage sample wrote.
    """
    judgments = read_parquet(str(sample / "judgments.parquet"), schemas.SAMPLED_JUDGMENTS_SCHEMA)
    queries = read_parquet(str(sample / "queries.parquet"), schemas.SAMPLED_QUERIES_SCHEMA)
    write = partial(write_config, recipe, out, artifacts.products.width)

    def write_products(config: str, split: str, name: str, keys: pa.Table, urls: pa.Table) -> None:
        texts = _texts(sample / f"{name}.parquet", keys, schemas.text_columns(config))
        urls = joins.urls_in_order(urls, keys)
        if config == schemas.FEATURES:
            vectors = artifacts.products.in_order(joins.find_rows(artifacts.products, keys))
            write(config, split, joins.product_features(texts, urls, vectors), keys.num_rows)
        else:
            write(config, split, joins.urls(texts, urls, config), keys.num_rows)

    for split in recipe.selection.splits:
        judged = judgments.filter(pc.equal(judgments.column("split"), split)).drop_columns(["split"])
        write(schemas.JUDGMENTS, split, [judged], judged.num_rows)
        known = pc.is_in(queries.column("query_id"), value_set=pc.unique(judged.column("query_id")))
        asked = queries.filter(known)
        vectors = artifacts.queries.in_order(joins.find_rows(artifacts.queries, asked))
        write(schemas.QUERIES, split, joins.query_features(asked, vectors), asked.num_rows)
        every = recipe.selection.products == selection.ALL
        keys = read_keys(sample / "products.parquet") if every else _distinct_products(judged)
        for config in (schemas.URLS, schemas.FEATURES):
            write_products(config, split, "products", keys, artifacts.urls)
    supp = read_keys(sample / "supp.parquet")
    write_products(schemas.SUPP, schemas.SUPP_SPLIT, "supp", supp, artifacts.supp_urls)
    if embeds_supp(recipe):
        write_products(schemas.FEATURES, schemas.SUPP_VECTORS_SPLIT, "supp", supp, artifacts.supp_urls)


def write_config(
    recipe: Recipe,
    out: Path,
    width: int,
    config: str,
    split: str,
    tables: Iterable[pa.Table],
    rows: int,
    *,
    kept: schemas.Kept = (),
) -> None:
    """Write a split of a config below `out`/data; one without rows is left out, which `datasets` could not load.

    Args:
        width: floats in a vector.
        kept: columns that a catalogue keeps.
    """
    if rows:
        schema, limit = schemas.config_schema(config, width, kept), recipe.release.max_shard_bytes
        write_shards(out, config, split, tables, schema, rows=rows, max_shard_bytes=limit)


def embeds_supp(recipe: Recipe) -> bool:
    """Whether the release has vectors of supplementary products; existing files have none."""
    chosen = recipe.selection
    return chosen.embed_supp and chosen.products != selection.ALL and not recipe.artifacts


def read_keys(path: Path) -> pa.Table:
    """The product keys of a file of the sample, in its order."""
    return pq.read_table(path, columns=list(schemas.PRODUCT_KEY)).combine_chunks()


def _texts(path: Path, keys: pa.Table, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    return product_texts(File(str(path)), keys, columns) if keys.num_rows else iter(())


def _distinct_products(judgments: pa.Table) -> pa.Table:
    names = list(schemas.PRODUCT_KEY)
    return judgments.group_by(names).aggregate([]).sort_by([(n, "ascending") for n in names]).combine_chunks()
