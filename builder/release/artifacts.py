"""The SQID side of a release: image URLs, statuses and vectors, made by earlier stages or read from existing files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas, sources
from sqid_lib.errors import IntegrityError, MissingFileError, SchemaError, without_secrets
from sqid_lib.files import File
from sqid_lib.joined import joins
from sqid_lib.joined.matches import both_sides, examples
from sqid_lib.joined.vector_lookup import VectorLookup
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet

if TYPE_CHECKING:
    from builder.recipe import Recipe


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifacts:
    """Image URLs and vectors of a release.

    Attributes:
        urls, supp_urls: tables of `joins.IMAGE_URLS_SCHEMA`, of the judged and of the supplementary products.
        products, queries: their vectors.
        revision: resolved commit of the model, if known.
        where: where they are from, for messages.
        partial: whether text vectors may be missing.
    """

    urls: pa.Table
    supp_urls: pa.Table
    products: VectorLookup
    queries: VectorLookup
    revision: str | None
    where: str
    partial: bool = False

    def close(self) -> None:
        """Close the files of the vectors."""
        self.products.close()
        self.queries.close()


def artifact_files(recipe: Recipe) -> dict[str, tuple[sources.File, ...]]:
    """The SQID files that [artifacts] names, by table; raises as `sources.find`."""
    assert recipe.artifacts
    tables = ("product_urls", "product_status", "product_features", "query_features", "supp_urls", "supp_status")
    return {table: sources.find(recipe.artifacts.path, table) for table in tables}


def existing_artifacts(recipe: Recipe, work: Path) -> Artifacts:
    """Those of a recipe with [artifacts]; remote files are downloaded.

    Raises:
        SchemaError: the vectors of products and of queries differ in width.
        SourceError: a file is missing or damaged.
    """
    assert recipe.artifacts
    files = {table: [sources.download(file) for file in found] for table, found in artifact_files(recipe).items()}

    def read_urls(part: str) -> pa.Table:
        urls, statuses = files[f"{part}_urls"], files[f"{part}_status"]
        return joins.read_image_urls(urls, statuses=statuses if statuses != urls else ())

    scratch = work / ".scratch"
    products = joins.open_product_vectors(files["product_features"], scratch)
    queries = joins.open_query_vectors(files["query_features"], scratch)
    if products.width != queries.width:
        products.close()
        queries.close()
        raise SchemaError(
            "the vectors of products and of queries differ in width",
            where=without_secrets(recipe.artifacts.path),
            expected=f"{products.width}, as those of the products have",
            got=str(queries.width),
            fix="Make both with one encoder.",
        )
    return Artifacts(
        urls=read_urls("product"),
        supp_urls=read_urls("supp"),
        products=products,
        queries=queries,
        revision=None,
        where=without_secrets(recipe.artifacts.path),
        partial=recipe.artifacts.partial,
    )


def built_artifacts(recipe: Recipe, work: Path) -> Artifacts:
    """Those that the stages resolve, fetch and embed left in WORK.

    Raises:
        MissingFileError: stage resolve or embed has not run.
    """
    resolved = read_parquet(str(work / "resolve" / "urls.parquet"), schemas.RESOLVED_SCHEMA)
    embedded = {name: sorted((work / "embed").glob(f"{name}-*.parquet")) for name in ("products", "supp", "queries")}
    check_embedded(work, embedded["products"], embedded["queries"])
    parts = {schemas.MAIN: embedded["products"]}
    if recipe.selection.embed_supp:
        parts[schemas.SUPPLEMENTARY] = embedded["supp"]
    urls = {}
    for part in (schemas.MAIN, schemas.SUPPLEMENTARY):
        rows = resolved.filter(pc.equal(resolved.column("part"), part))
        urls[part] = rows.select(joins.IMAGE_URLS_SCHEMA.names).cast(joins.IMAGE_URLS_SCHEMA).combine_chunks()
    for part, paths in parts.items():
        urls[part] = _with_final_status(urls[part], paths)
    product_files = [File(str(path)) for paths in parts.values() for path in paths]
    query_files = [File(str(path)) for path in embedded["queries"]]
    return Artifacts(
        urls=urls[schemas.MAIN],
        supp_urls=urls[schemas.SUPPLEMENTARY],
        products=joins.open_product_vectors(product_files, work / ".scratch"),
        queries=joins.open_query_vectors(query_files, work / ".scratch"),
        revision=embedded_revision(work),
        where=str(work / "embed"),
    )


def check_embedded(work: Path, *files: Sequence[object]) -> None:
    """Raise MissingFileError unless stage embed has run and left files of each kind."""
    if not (all(files) and (work / "embed" / "encoder.json").exists()):
        raise MissingFileError("stage embed has not run", where=work / "embed", fix="Run it first: --only embed.")


def embedded_revision(work: Path) -> str | None:
    """The resolved commit of the model that stage embed used, if it is known."""
    revision: str | None = json.loads((work / "embed" / "encoder.json").read_text())["revision"]
    return revision


def warn_of_other_products(artifacts: Artifacts, products: pa.Table, supp: pa.Table) -> None:
    """Warn, in the log, of image URLs of which under half, or none, are of products of the release.

    Args:
        products, supp: the keys of the judged and of the supplementary products.
    """
    for urls, keys, name in ((artifacts.urls, products, "products"), (artifacts.supp_urls, supp, "supp products")):
        outside = joins.outside(urls, keys)
        found = urls.num_rows - outside.num_rows
        if 2 * found < min(urls.num_rows, keys.num_rows):
            message = "%s: of %d rows of image URLs, %d are of the %d %s of this build. %s"
            sides = both_sides(outside, keys)
            _log.warning(message, artifacts.where, urls.num_rows, found, keys.num_rows, name, sides)


def check_text_vectors(artifacts: Artifacts, products: pa.Table, queries: pa.Table) -> None:
    """Raise unless every product and query has a text vector; zeros stand for missing images only.

    With partial artifacts they are counted in a warning of the log.

    Args:
        products: product_id, product_locale of those that get vectors.
        queries: query_id.

    Raises:
        IntegrityError: there are some without, each named by count and three examples.
    """
    found = [("products", products.num_rows, joins.without_text(artifacts.products, products))]
    found.append(("queries", queries.num_rows, joins.without_text(artifacts.queries, queries)))
    check_none_without(found, artifacts.where, partial=artifacts.partial)


def check_none_without(found: Iterable[tuple[str, int, pa.Table]], where: str, *, partial: bool = False) -> None:
    """As `check_text_vectors`.

    Args:
        found: what has vectors, how many there are, and the keys of those without one.
    """
    missing = [
        f"{without.num_rows:,} of {every:,} {name}, such as {examples(without)}"
        for name, every, without in found
        if without.num_rows
    ]
    if missing and partial:
        _log.warning("%s: no text vector for %s: they get zeros", where, " and for ".join(missing))
    elif missing:
        raise IntegrityError(
            "text vectors are missing",
            where=where,
            expected="one for every product and query",
            got=f"none for {' and none for '.join(missing)}",
            fix="Complete the files, narrow [selection], or set artifacts.partial = true to give zeros to these.",
        )


def _with_final_status(urls: pa.Table, paths: Iterable[Path]) -> pa.Table:
    """`urls` with the status that embed ended with, which says how fetching or decoding failed."""
    schema = pa.schema([(n, pa.string()) for n in (*schemas.PRODUCT_KEY, "image_status")])
    final = pa.concat_tables([schema.empty_table(), *(read_parquet(str(path), schema) for path in paths)])
    rows = pc.index_in(key_strings(urls), value_set=key_strings(final))
    status = pc.coalesce(final.column("image_status").take(rows), urls.column("image_status"))
    return urls.set_column(urls.column_names.index("image_status"), "image_status", status)
