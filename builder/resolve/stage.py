"""The sources of a recipe, tried in its order, and the table they give."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.catalogue.image_rows import read_image_rows
from builder.database import query_copy
from builder.progress import progress
from builder.recipe import Recipe
from builder.resolve.tables import image_urls
from sqid_lib import schemas
from sqid_lib.errors import IntegrityError, UsageError
from sqid_lib.files import replacing
from sqid_lib.joined.image_status import clean_urls, image_status, is_http
from sqid_lib.tables.reader import read_parquet, reporting

_KEY = pa.schema([("product_id", pa.string()), ("product_locale", pa.string())])


def resolve(recipe: Recipe, work: Path, retry: Sequence[str] = ()) -> None:
    """Find the image URL of every sampled product and write WORK/resolve/urls.parquet.

    The first source that has a URL for a product wins: a catalogue's own products, whose local images are references
    (`schemas.CATALOGUE_IMAGES_SCHEMA`) in place of URLs; the tables in the recipe's order; then, if `[resolve.pages]`
    states a permission, the products' pages. A product that no source has is `missing`, with a null URL; a page that
    could not be read leaves `blocked` or `error`. Visited pages are kept: a killed run that is started again requests
    only the page in flight again.

    Args:
        recipe: `[resolve]` names the sources; see `builder.resolve.tables` for the files that can be read. Pages are
            visited under the hosts, ports and times of `[fetch]`.
        work: reads sample/products.parquet, sample/supp.parquet and, of a catalogue, sample/images.parquet; writes
            resolve/urls.parquet (`schemas.RESOLVED_SCHEMA`, main rows then supp rows, each in the order of sample).
        retry: statuses of pages to visit again, of `schemas.RETRIABLE["resolve"]`.

    Raises:
        SourceError: a table does not exist, is not a table, or lacks a column.
        DuplicateKeyError: a table gives a product two URLs.
        IntegrityError: sample/images.parquet has other products than sample/products.parquet.
        UsageError: a status in `retry` is not a failure of a page.
        FetchError: visiting the pages had to stop.
    """
    known = schemas.RETRIABLE["resolve"]
    unknown = [status for status in retry if status not in known]
    if unknown:
        raise UsageError("not a failure of a page", where="--retry", expected=", ".join(known), got=", ".join(unknown))
    products = _sampled(work)
    urls = pa.nulls(len(products), pa.string())
    sources = pa.nulls(len(products), pa.string())
    for table, found in _tables(recipe, work, products):
        new = pc.and_(pc.is_null(urls), pc.is_valid(found))
        urls = pc.if_else(new, found, urls)
        sources = pc.if_else(new, _name(table), sources)
    status = image_status(urls)
    if recipe.resolve.pages.permission:
        urls, status, sources = _from_pages(recipe, work, retry, products, urls, status, sources)
    unfetched = pc.equal(products["part"], schemas.SUPPLEMENTARY)  # of the others stage fetch reports bad URLs
    bad = pc.fill_null(pc.and_(unfetched, pc.invert(is_http(urls))), False)
    status = pc.if_else(bad, schemas.BAD_URL, status)
    columns = [products["part"], products["product_locale"], products["product_id"], urls, status, sources]
    with replacing(work / "resolve" / "urls.parquet") as path:
        pq.write_table(pa.table(columns, schema=schemas.RESOLVED_SCHEMA.with_metadata(_metadata(recipe, work))), path)


def _tables(recipe: Recipe, work: Path, products: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    """Address of each table, and the URL that it gives for each product."""
    if recipe.catalogue is not None:
        yield recipe.catalogue.products, _of_catalogue(work, products)
    for table in recipe.resolve.tables:
        yield table, image_urls(table, products)


def _of_catalogue(work: Path, products: pa.Table) -> pa.Array:
    """What the products table says of the image of each product: a URL, a reference to a local image, or null."""
    path = str(work / "sample" / "images.parquet")
    table = read_parquet(path, schemas.CATALOGUE_IMAGES_SCHEMA)
    mains = products.filter(pc.equal(products["part"], schemas.MAIN))
    if any(not table[name].equals(mains[name]) for name in schemas.PRODUCT_KEY):
        fix = "Run the sample stage again."
        raise IntegrityError("the products are not those of sample/products.parquet", where=path, fix=fix)
    images = table["image"]
    local = pc.or_(*(pc.starts_with(images, kind) for kind in (schemas.FILE_IMAGE, schemas.ROW_IMAGE)))
    cleaned = pc.if_else(local, images, clean_urls(pc.if_else(local, None, images), path))
    others = pa.nulls(len(products) - len(mains), pa.string())
    return pa.concat_arrays([*cleaned.cast(pa.string()).chunks, others])


def _metadata(recipe: Recipe, work: Path) -> Mapping[bytes, bytes] | None:
    """What a catalogue's references to rows count: see `builder.catalogue.image_rows`."""
    if recipe.catalogue is None:
        return None
    path = str(work / "sample" / "images.parquet")
    with reporting(path):
        rows = read_image_rows(pq.read_schema(path).metadata, recipe.catalogue.products, path)
    return rows.metadata()


def _name(table: str) -> str:
    """The file name of a table; of a URL without the query, which may be a signature."""
    path = urlsplit(table).path if "://" in table else table
    return path.rstrip("/").rpartition("/")[2]


def describe_tables(recipe: Recipe) -> str:
    """Where `resolve` looks before it visits pages, in words."""
    count = len(recipe.resolve.tables)
    tables = f"{count} table{'' if count == 1 else 's'}"
    if recipe.catalogue is None:
        return tables
    return f"the products table and {tables}" if count else "the products table"


def pending(recipe: Recipe, work: Path, retry: Sequence[str] = ()) -> str:
    """What `resolve` would do, in words: it always reads its tables again. Writes nothing."""
    words = f"would look for the image URLs of {len(_sampled(work)):,} products in {describe_tables(recipe)}"
    if not recipe.resolve.pages.permission:
        return words
    statuses = query_copy(work / "resolve" / "pages.sqlite", "SELECT status FROM pages")
    visited = sum(status not in retry for (status,) in statuses)
    return f"{words}, then on product pages, of which {visited:,} were visited before"


def _from_pages(
    recipe: Recipe,
    work: Path,
    retry: Sequence[str],
    products: pa.Table,
    urls: pa.Array,
    status: pa.Array,
    sources: pa.Array,
) -> tuple[pa.Array, pa.Array, pa.Array]:
    """The three columns, completed from the pages of products without a URL."""
    from builder.resolve.pages import SOURCE, page_url, visit  # needs pycurl, which tables do not
    from builder.resolve.visited_pages import VisitedPages

    settings = recipe.resolve.pages
    keys = zip(products["product_id"].to_pylist(), products["product_locale"].to_pylist(), strict=True)
    wanted = [
        page_url(settings, product, locale) if url is None else None
        for (product, locale), url in zip(keys, urls.to_pylist(), strict=True)
    ]
    with VisitedPages(work / "resolve" / "pages.sqlite") as visited:
        visited.forget_statuses(retry)
        pages = list(dict.fromkeys(url for url in wanted if url))
        todo = [url for url in pages if visited.get(url) is None]
        if todo:
            with progress("pages", len(pages), len(pages) - len(todo), unit="page") as bar:
                asyncio.run(visit(todo, settings, recipe.fetch, visited, bar.update))
        shown = [visited.get(url) if url else None for url in wanted]
    found = pa.array([page and page.image_url for page in shown], pa.string())
    page_status = pa.array([page and page.status for page in shown], pa.string())
    from_page = pa.array([SOURCE if page and page.image_url else None for page in shown], pa.string())
    return pc.coalesce(found, urls), pc.coalesce(page_status, status), pc.coalesce(from_page, sources)


def _sampled(work: Path) -> pa.Table:
    """Keys of the sampled products: part, product_id, product_locale."""
    parts = []
    for part, name in ((schemas.MAIN, "products.parquet"), (schemas.SUPPLEMENTARY, "supp.parquet")):
        keys = read_parquet(str(work / "sample" / name), _KEY)
        parts.append(keys.append_column("part", pa.repeat(pa.scalar(part), len(keys))))
    return pa.concat_tables(parts).combine_chunks()
