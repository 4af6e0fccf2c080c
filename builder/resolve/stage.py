"""The sources of a recipe, tried in its order, and the table they give."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.atomic import replacing
from builder.recipe import Recipe
from builder.resolve.tables import image_urls
from sqid_lib import schemas
from sqid_lib.image_status import image_status
from sqid_lib.tables import read_parquet

_KEY = pa.schema([("product_id", pa.string()), ("product_locale", pa.string())])


def resolve(recipe: Recipe, work: Path) -> None:
    """Find the image url of every sampled product and write WORK/resolve/urls.parquet.

    The first source that knows an url for a product wins; what no source knows is `missing`, with a null url.

    Args:
        recipe: `[resolve]` names the sources; see `builder.resolve.tables` for the files that can be read.
        work: reads sample/products.parquet and sample/supp.parquet, writes resolve/urls.parquet
            (`schemas.RESOLVED_SCHEMA`, main rows then supp rows, each in the order of sample).

    Raises:
        SourceError: a table is missing, no table at all, or lacks a column.
        DuplicateKeyError: a table gives a product two urls.
    """
    products = _sampled(work)
    urls = pa.nulls(len(products), pa.string())
    sources = pa.nulls(len(products), pa.string())
    for table in recipe.resolve.tables:
        found = image_urls(table, products["product_locale"], products["product_id"])
        new = pc.and_(pc.is_null(urls), pc.is_valid(found))
        urls = pc.if_else(new, found, urls)
        sources = pc.if_else(new, table.rstrip("/").rpartition("/")[2], sources)
    columns = [products["part"], products["product_locale"], products["product_id"], urls, image_status(urls), sources]
    with replacing(work / "resolve" / "urls.parquet") as path:
        pq.write_table(pa.table(columns, schema=schemas.RESOLVED_SCHEMA), path)


def _sampled(work: Path) -> pa.Table:
    """Keys of the sampled products: part, product_id, product_locale."""
    parts = []
    for part, name in ((schemas.MAIN, "products.parquet"), (schemas.SUPPLEMENTARY, "supp.parquet")):
        keys = read_parquet(str(work / "sample" / name), _KEY)
        parts.append(keys.append_column("part", pa.repeat(pa.scalar(part), len(keys))))
    return pa.concat_tables(parts).combine_chunks()
