"""Stage sample: the products, queries and judgments of a recipe, from the official ESCI files or a shop's tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from builder.catalogue.catalogue import read_catalogue
from builder.database import reporting_disk_errors
from sqid_lib import schemas, sources
from sqid_lib.errors import CountError
from sqid_lib.files import replacing
from sqid_lib.joined import selection
from sqid_lib.joined.product_texts import locate_products, product_texts
from sqid_lib.tables.reader import conform
from sqid_lib.tables.spool import GROUP_ROWS

if TYPE_CHECKING:
    from builder.recipe import CatalogueSettings, ExpectSettings, Recipe


def esci_files(recipe: Recipe) -> dict[str, sources.File]:
    """The three official files; errors as `sources.find`."""
    return {table: sources.find(recipe.source, table)[0] for table in ("examples", "products", "sources")}


def sample(recipe: Recipe, work: Path) -> None:
    """Write WORK/sample/{products,supp,queries,judgments}.parquet, in that schema of `schemas`.

    Products are sorted by (product_id, product_locale), queries by query_id, judgments by query and product. Of a
    catalogue, products have further columns, supp has no rows, and images.parquet says what is known of each image.
    ESCI's products file is streamed: only the text of selected rows is ever in memory.

    Raises:
        SourceError, ContractError: an ESCI file is damaged or not as declared.
        IntegrityError: a judged product is not in the products file.
        CountError: a count stated in [expect] is not met, or the selection is empty; nothing is written then.
        DiskError: no space left, or the disk refused.
    """
    if recipe.catalogue is not None:
        _sample_catalogue(recipe, recipe.catalogue, work / "sample")
        return
    files = {table: sources.download(file) for table, file in esci_files(recipe).items()}
    examples = selection.read_examples(files["examples"], recipe.selection, _columns())
    judgments = selection.judgments(examples, recipe.selection)
    known = selection.read_sources(files["sources"])
    queries = selection.queries(examples, recipe.selection, known)
    parts = (schemas.MAIN, schemas.SUPPLEMENTARY)
    keys = {part: selection.product_keys(examples, recipe.selection, part) for part in parts}
    del examples
    if recipe.selection.products == selection.ALL:
        locate_products(files["products"], keys[schemas.MAIN])  # raises unless it has every judged product
        keys[schemas.MAIN] = selection.catalogue_keys(files["products"], recipe.selection.locales)
    counts = {
        "products": keys[schemas.MAIN].num_rows,
        "queries": queries.num_rows,
        "judgments": judgments.num_rows,
        "supp": keys[schemas.SUPPLEMENTARY].num_rows,
    }
    if counts["judgments"] == 0:
        fix = "Check [selection] against the examples file."
        raise CountError("the selection is empty", where=files["examples"].url, fix=fix)
    _check_counts(recipe.expect, counts, files["examples"].url, "Check [selection] and the edition of ESCI")
    folder = work / "sample"
    for name, part in zip(("products", "supp"), parts, strict=True):
        texts = product_texts(files["products"], keys[part], schemas.TEXT_COLUMNS)
        _write(folder / f"{name}.parquet", texts, schemas.SAMPLED_PRODUCTS_SCHEMA)
    _write(folder / "queries.parquet", [queries], schemas.SAMPLED_QUERIES_SCHEMA)
    _write(folder / "judgments.parquet", [judgments], schemas.SAMPLED_JUDGMENTS_SCHEMA)


def _columns() -> list[str]:
    """The columns of the examples file that some config has, and the split."""
    declared = (name for config in schemas.DECLARED.values() for name in config.of_origin(schemas.EXAMPLES))
    return [*dict.fromkeys(declared), "split"]


def _sample_catalogue(recipe: Recipe, settings: CatalogueSettings, folder: Path) -> None:
    catalogue = read_catalogue(settings, folder)
    products, queries, judgments = catalogue.products, catalogue.queries, catalogue.judgments
    counts = {
        "products": len(products.ids),
        "queries": queries.num_rows,
        "judgments": judgments.num_rows,
        "supp": 0,
    }
    _check_counts(recipe.expect, counts, settings.products, "Check the tables")
    _write(folder / "products.parquet", products.slices(), products.schema)
    _write(folder / "supp.parquet", [], schemas.SAMPLED_PRODUCTS_SCHEMA)
    _write(folder / "images.parquet", products.images(), products.image_schema)
    _write(folder / "queries.parquet", [queries], schemas.SAMPLED_QUERIES_SCHEMA)
    slices = (judgments.slice(i, GROUP_ROWS) for i in range(0, judgments.num_rows, GROUP_ROWS))
    _write(folder / "judgments.parquet", slices, schemas.SAMPLED_JUDGMENTS_SCHEMA)


def _check_counts(expect: ExpectSettings, counts: dict[str, int], where: str, advice: str) -> None:
    """Raise CountError unless the counts that [expect] states are met; `advice` is what else may be wrong."""
    wrong = [name for name, count in counts.items() if getattr(expect, name) not in (None, count)]
    if wrong:
        raise CountError(
            "the selection does not have the stated size",
            where=where,
            expected=", ".join(f"{name} = {getattr(expect, name)}" for name in wrong),
            got=", ".join(f"{name} = {counts[name]}" for name in wrong),
            fix=f"{advice}, or correct [expect].",
        )


def _write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with (
        reporting_disk_errors(path),
        replacing(path) as part,
        pq.ParquetWriter(part, schema, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(conform(table, schema, path.name), row_group_size=GROUP_ROWS)
