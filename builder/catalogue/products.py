"""The products of a shop's table, sorted by id, each once: texts, kept columns, and what is said of the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue import columns
from builder.catalogue.cells import ids, texts
from builder.catalogue.checks import check_images, warn
from builder.catalogue.duplicates import merged
from builder.catalogue.image_rows import ImageRows
from builder.catalogue.images import image_cells, images_by_id, prefixed
from builder.catalogue.kept import FILE, IMAGE, IMAGE_COUNT, ROW, check_kept, kept_cells, one_type
from builder.catalogue.tables import Batch, Tables
from sqid_lib import schemas
from sqid_lib.errors import EmptyFileError
from sqid_lib.tables.content import CSV

if TYPE_CHECKING:
    from builder.recipe import CatalogueSettings

_SLICE_ROWS = 16_384


@dataclass(frozen=True)
class Products:
    """The products of a catalogue, sorted by product_id.

    Attributes:
        table: product_id, the text columns of `schemas.TEXT_COLUMNS`, the kept columns, and `image_count` where a
            product has several images.
        images: the reference of each product's image, null where there is none, string [products].
        locale: of all of them.
        image_rows: what the references to rows among `images` count.
    """

    table: pa.Table
    images: pa.Array
    locale: str
    image_rows: ImageRows

    @property
    def schema(self) -> pa.Schema:
        """Of `slices`: `schemas.SAMPLED_PRODUCTS_SCHEMA` and the further columns."""
        others = [f for f in self.table.schema if f.name not in schemas.SAMPLED_PRODUCTS_SCHEMA.names]
        return pa.schema([*schemas.SAMPLED_PRODUCTS_SCHEMA, *(pa.field(f.name, _small(f.type)) for f in others)])

    @property
    def keys(self) -> pa.Table:
        """product_id, product_locale."""
        ids = self.table.column("product_id").cast(pa.string())
        return pa.table([ids, self._locales(len(ids))], schemas.PRODUCT_KEY)

    def slices(self) -> Iterator[pa.Table]:
        """The rows of WORK/sample/products.parquet."""
        for first in range(0, self.table.num_rows, _SLICE_ROWS):
            part = self.table.slice(first, _SLICE_ROWS)
            part = part.append_column("product_locale", self._locales(part.num_rows))
            yield part.select(self.schema.names).cast(self.schema)

    def image_table(self) -> pa.Table:
        """The rows of WORK/sample/images.parquet, whose metadata names the files that references to rows count."""
        schema = schemas.CATALOGUE_IMAGES_SCHEMA.with_metadata(self.image_rows.metadata())
        return self.keys.append_column("image", self.images).cast(schema)

    def _locales(self, rows: int) -> pa.Array:
        return pa.array([self.locale]).take(pa.array(np.zeros(rows, np.int64)))


def read_products(tables: Tables, settings: CatalogueSettings) -> Products:
    """All products of a table. The texts of all of them are in memory at once, twice while a column is sorted.

    Rows that are equal but for their image are one product with several images: the first is used.

    Raises:
        SourceError: a file is damaged; a column is missing, is there twice or holds no texts.
        RecipeError: [catalogue] keep or columns does not fit the tables; images are local, and `images` is not set.
        ContractError: an empty id, or one with a line break in it.
        DuplicateKeyError: two rows with one id that contradict each other.
        EmptyFileError: there are no rows.
    """
    names = columns.recognise(tables, columns.PRODUCTS, settings.columns, ("product_id", "product_title"))
    check_kept(settings.keep, tables.names)
    parts = _read(tables, names, settings.keep)
    csv = CSV in tables.kinds
    table = _sorted(parts, settings.keep, numbers=csv)
    table = merged(table, tables)
    images, table = table.column(IMAGE).combine_chunks(), table.drop_columns([IMAGE, FILE, ROW])
    ids = table.column("product_id").cast(pa.string()).combine_chunks()
    if settings.images is not None:
        images = _by_id(images, ids, settings.images)
    check_images(images, names, tables.address, settings)
    warn(table, tables.address, csv=csv)
    counts = table.column(IMAGE_COUNT)
    if not len(counts) or pc.max(counts).as_py() < 2:
        table = table.drop_columns([IMAGE_COUNT])
    return Products(table, images, settings.locale, ImageRows(tables.files, names.get("image", "")))


def _read(tables: Tables, names: Mapping[str, str], keep: tuple[str, ...]) -> dict[str, list[pa.Array]]:
    """The columns of the table in parts: ours, the kept ones, `image`, `image_count`, and the place of each row."""
    parts: dict[str, list[pa.Array]] = {}
    wanted = list(dict.fromkeys([*names.values(), *keep]))
    for batch in tables.read(wanted, image=names.get("image")):
        rows = batch.table.num_rows
        found: dict[str, pa.Array] = {"product_id": ids(batch, names["product_id"])}
        for ours in schemas.TEXT_COLUMNS:
            found[ours] = texts(batch, names[ours]) if ours in names else pa.nulls(rows, pa.string())
        for name in keep:
            found[name] = kept_cells(batch, name)
        found[IMAGE], counts = _images(batch, names.get("image"))
        found[IMAGE_COUNT] = pa.array(counts)
        found[FILE] = pa.array(np.full(rows, batch.file, np.int32))
        found[ROW] = pa.array(np.arange(batch.first, batch.first + rows))
        for name, part in found.items():
            parts.setdefault(name, []).append(part)
    if not parts or not any(map(len, parts["product_id"])):
        raise EmptyFileError("the table has no rows", where=tables.address, fix="Check the address.")
    return parts


def _images(batch: Batch, column: str | None) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    if column is None:
        return pa.nulls(batch.table.num_rows, pa.string()), np.zeros(batch.table.num_rows, np.int32)
    return image_cells(batch, column)


def _sorted(parts: dict[str, list[pa.Array]], keep: tuple[str, ...], *, numbers: bool) -> pa.Table:
    """The rows by product_id, rows of one id in the order of the files; the parts are emptied on the way."""
    order = pc.sort_indices(pa.chunked_array(parts["product_id"]))
    table: dict[str, pa.Array] = {}
    for name in list(parts):
        found = parts.pop(name)
        column = one_type(found, name, numbers=numbers) if name in keep else pa.chunked_array(found)
        del found
        if column.type == pa.string():  # more than 2 GiB do not fit into one array of string
            column = column.cast(pa.large_string())
        table[name] = column.combine_chunks().take(order)
    return pa.table(table)


def _by_id(images: pa.Array, ids: pa.Array, folder: str) -> pa.Array:
    """Where a product has no image, that of `folder` which has its id as its name."""
    files = images_by_id(folder)
    stems = pa.array(list(files), pa.string())
    found = pa.array(list(files.values()), pa.string()).take(pc.index_in(ids, value_set=stems))
    if pc.all(pc.is_null(found)).as_py():
        return images
    return pc.coalesce(images.cast(pa.string()), prefixed(schemas.FILE_IMAGE, found))


def _small(dtype: pa.DataType) -> pa.DataType:
    return pa.string() if dtype == pa.large_string() else dtype
