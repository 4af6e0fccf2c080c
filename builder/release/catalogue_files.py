"""The data files of a catalogue's release: its products lie in one order in sample, resolve and embed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.release.artifacts import check_embedded, check_none_without, embedded_revision
from builder.release.classic import lists_or_null, with_vectors
from builder.release.configs import write_config
from builder.release.files import write_classic_features, write_urls
from sqid_lib import schemas
from sqid_lib.errors import IntegrityError, SchemaError
from sqid_lib.files import File
from sqid_lib.joined import joins
from sqid_lib.joined.image_status import is_http
from sqid_lib.joined.vector_lookup import VectorLookup
from sqid_lib.tables.reader import open_parquet, read_parquet, reporting
from sqid_lib.tables.vector_columns import present, read_vectors, vector_width

if TYPE_CHECKING:
    from builder.recipe import Recipe

_ROWS = 2_048  # at once: 12 MB of 2 × 768 float32
_TEXT_ROWS = 16_384


def write_catalogue(recipe: Recipe, work: Path, out: Path) -> str | None:
    """Write the data files of a catalogue, all its queries in the one split of its products, also those not judged.

    Returns:
        The resolved commit of the encoder's model, if it is known.

    Raises:
        SchemaError: as `read_kept`.
        MissingFileError: an earlier stage has not run.
        IntegrityError: a product or query has no text vector, or the stages have other products.
    """
    sample, scratch = work / "sample", work / ".scratch"
    products = _Products(work, read_kept(sample))
    queries = read_parquet(str(sample / "queries.parquet"), schemas.SAMPLED_QUERIES_SCHEMA)
    files = [File(str(path)) for path in sorted((work / "embed").glob("queries-*.parquet"))]
    check_embedded(work, products.embedded, *([files] if queries.num_rows else []))
    found = [("products", products.rows, products.without_text())]
    vectors = joins.open_query_vectors(files, scratch) if queries.num_rows else None
    try:
        if vectors is not None:
            found.append(("queries", queries.num_rows, joins.without_text(vectors, queries.select(["query_id"]))))
        check_none_without(found, str(work / "embed"))
        _write_configs(recipe, sample, products, queries, vectors, out)
        if recipe.release.classic_files:
            _write_classic_files(recipe, products, queries, vectors, out)
    finally:
        if vectors is not None:
            vectors.close()
    return embedded_revision(work)


def _write_configs(
    recipe: Recipe, sample: Path, products: _Products, queries: pa.Table, vectors: VectorLookup | None, out: Path
) -> None:
    write = partial(write_config, recipe, out, products.width, kept=products.kept)
    judgments = sample / "judgments.parquet"
    for split in recipe.selection.splits:
        rows = sum(table.num_rows for table in _judged(judgments, split, ["split"]))
        columns = [name for name in schemas.SAMPLED_JUDGMENTS_SCHEMA.names if name != "split"]
        write(schemas.JUDGMENTS, split, _judged(judgments, split, columns), rows)
        if vectors is not None:
            ordered = vectors.in_order(joins.find_rows(vectors, queries))
            write(schemas.QUERIES, split, joins.query_features(queries, ordered), queries.num_rows)
        for config in schemas.CARRYING:
            write(config, split, products.tables(config), products.rows)


def _judged(path: Path, split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the judgments of a split."""
    with open_parquet(str(path), schemas.SAMPLED_JUDGMENTS_SCHEMA) as file, reporting(str(path)):
        for batch in file.iter_batches(_TEXT_ROWS, columns=list(dict.fromkeys([*columns, "split"]))):
            table = pa.Table.from_batches([batch])
            yield table.filter(pc.equal(table["split"], split)).select(columns)


def _write_classic_files(
    recipe: Recipe, products: _Products, queries: pa.Table, vectors: VectorLookup | None, out: Path
) -> None:
    """Those of the four published files that have rows; see `write_classic_files`."""
    located = recipe.selection.locales != (schemas.CLASSIC_LOCALE,)
    write_urls(out / schemas.PRODUCT_URLS, products.classic_urls(), located=located)
    write_classic_features(out / schemas.PRODUCT_FEATURES, "product", products.classic_vectors(), located=located)
    if vectors is not None:
        keys = queries.select(["query_id"])
        write_classic_features(out / schemas.QUERY_FEATURES, "query", with_vectors(keys, vectors))


def read_kept(sample: Path) -> tuple[pa.Field, ...]:
    """The columns that a catalogue keeps beside the declared ones: name and type, in order.

    Raises:
        SchemaError: a kept column has the name of a declared one, or values of a type that a release has not.
    """
    path = sample / "products.parquet"
    fields = [field for field in pq.read_schema(path) if field.name not in schemas.SAMPLED_PRODUCTS_SCHEMA.names]
    declared = {name for config in schemas.CARRYING for name in schemas.DECLARED[config].names}
    for field in fields:
        if field.name in declared:
            fix = "Leave it out of catalogue.keep, or rename it in the products table."
            raise SchemaError(f"a release has a column {field.name!r} of its own", where=path, fix=fix)
        if schemas.type_name(field.type) not in schemas.KEPT_TYPES:
            raise SchemaError(
                f"column {field.name!r} cannot be kept",
                where=path,
                expected="text, numbers or booleans",
                got=str(field.type),
                fix="Leave it out of catalogue.keep.",
            )
    return tuple(pa.field(field.name, field.type) for field in fields)


class _Products:
    """The products of a catalogue with what the stages know of each, read side by side; little of it is in memory.

    Attributes:
        kept: columns that the catalogue keeps.
        rows: how many products there are.
        embedded: the files of stage embed.
    """

    def __init__(self, work: Path, kept: schemas.Kept) -> None:
        self.kept, self._work = kept, work
        self._sampled, self._resolved = work / "sample" / "products.parquet", work / "resolve" / "urls.parquet"
        self.embedded = sorted((work / "embed").glob("products-*.parquet"))
        with open_parquet(str(self._sampled)) as file:
            self.rows: int = file.metadata.num_rows

    @property
    def width(self) -> int:
        """Floats in a vector."""
        return vector_width([File(str(path)) for path in self.embedded], schemas.VECTOR_COLUMNS)

    def tables(self, config: str) -> Iterator[pa.Table]:
        """The rows of `urls` or `product_features`."""
        columns = [*schemas.text_columns(config), *(field.name for field in self.kept)]
        if config == schemas.FEATURES:
            for texts, urls, vectors in self._side_by_side(_ROWS, columns, schemas.VECTOR_COLUMNS):
                yield from joins.product_features([texts], urls, vectors, kept=self.kept)
        else:
            for texts, urls, _ in self._side_by_side(_TEXT_ROWS, columns):
                yield from joins.urls([texts], urls, config, kept=self.kept)

    def classic_urls(self) -> Iterator[pa.Table]:
        """The rows of product_image_urls.csv."""
        for keys, urls, _ in self._side_by_side(_TEXT_ROWS):
            yield keys.append_column("image_url", urls["image_url"])

    def classic_vectors(self) -> Iterator[pa.Table]:
        """The rows of product_features.parquet."""
        for keys, _, vectors in self._side_by_side(_ROWS, (), schemas.VECTOR_COLUMNS):
            for name, matrix in zip(schemas.VECTOR_COLUMNS, vectors.matrices, strict=True):
                keys = keys.append_column(name, lists_or_null(matrix))
            yield keys

    def without_text(self) -> pa.Table:
        """The keys of those without a text vector."""
        found = [
            keys.filter(pa.array(~present(vectors.matrices[0])))
            for keys, _, vectors in self._side_by_side(_ROWS, (), schemas.VECTOR_COLUMNS[:1])
        ]
        return pa.concat_tables(found)

    def _side_by_side(
        self, at_once: int, columns: Sequence[str] = (), vectors: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, pa.Table, _Vectors]]:
        """The keys and some columns of sample, URL and status, and vectors of so many rows.

        Images that are files of the shop have no URL, although WORK names them in its place.
        """
        key, width = list(schemas.PRODUCT_KEY), self.width
        sampled = _Rows([self._sampled], [*key, *columns])
        resolved = _Rows([self._resolved], [*key, "image_url", "image_status"])
        embedded = _Rows(self.embedded, [*key, "image_status", *vectors])
        for first in range(0, self.rows, at_once):
            rows, known, found = (each.take(min(at_once, self.rows - first)) for each in (sampled, resolved, embedded))
            if any(not rows[name].equals(other[name]) for name in key for other in (known, found)):
                fix = "Run the sample, resolve, fetch and embed stages again."
                raise IntegrityError("the stages have not the same products", where=self._work, fix=fix)
            http = pc.if_else(is_http(known["image_url"]), known["image_url"], None)
            status = pc.coalesce(found["image_status"], known["image_status"], schemas.MISSING)
            matrices = [read_vectors(found, name, width, str(self._work / "embed"), first)[0] for name in vectors]
            yield rows, pa.table({"image_url": http, "image_status": status}), _Vectors(width, matrices)


@dataclass(frozen=True)
class _Vectors:
    """Vectors of some products in order, [products, width] of each column."""

    width: int
    matrices: list[np.ndarray]

    def take(self, start: int, stop: int) -> list[np.ndarray]:
        """Those of some products."""
        return [matrix[start:stop] for matrix in self.matrices]


class _Rows:
    """Columns of the rows of some files, one after the other."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        self._batches = _batches(files, columns)
        self._waiting: list[pa.Table] = []

    def take(self, rows: int) -> pa.Table:
        """The next rows, fewer at the end."""
        while sum(map(len, self._waiting)) < rows and (batch := next(self._batches, None)) is not None:
            self._waiting.append(batch)
        table = pa.concat_tables(self._waiting)
        self._waiting = [table.slice(rows)]
        return table.slice(0, rows)


def _batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.Table]:
    for path in files:
        with open_parquet(str(path)) as file, reporting(str(path)):
            for batch in file.iter_batches(_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch])
