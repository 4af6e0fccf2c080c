"""The products of a shop's table, sorted by id, each once: texts, kept columns, and what is said of the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue import columns
from builder.catalogue.checks import LOCAL, NO_IMAGE, check_images, warn
from builder.catalogue.duplicates import merged
from builder.catalogue.image_rows import ImageRows
from builder.catalogue.images import images_by_id, prefixed
from builder.catalogue.kept import IMAGE, IMAGE_COUNT, check_kept
from builder.catalogue.product_rows import HTML, KIND, UNTITLED, ProductRows
from builder.catalogue.tables import Tables
from sqid_lib import schemas
from sqid_lib.tables.content import CSV
from sqid_lib.tables.spool import Ints

if TYPE_CHECKING:
    from builder.recipe import CatalogueSettings


@dataclass(frozen=True)
class Products:
    """The products of a catalogue, sorted by product_id; their texts are in a temporary file.

    Attributes:
        ids: of all products.
        locale: of all of them.
        schema: of `slices`: `schemas.SAMPLED_PRODUCTS_SCHEMA`, the kept columns, and `image_count` where a product has
            several images.
        image_rows: what the references to rows among `images` count.
    """

    ids: pa.StringArray
    locale: str
    schema: pa.Schema
    image_rows: ImageRows
    _source: ProductRows
    _rows: Ints  # of each product in the source
    _image_rows: Ints  # likewise of its image
    _counts: npt.NDArray[np.int32]
    _by_id: Mapping[str, str]  # product id → an image that has it as its name

    @property
    def keys(self) -> pa.Table:
        """product_id, product_locale."""
        return pa.table([self.ids, self._locales(len(self.ids))], schemas.PRODUCT_KEY)

    def slices(self, chosen: Ints | None = None) -> Iterator[pa.Table]:
        """The rows of WORK/sample/products.parquet, n × 16,384 at once.

        Args:
            chosen: numbers of the products that are wanted, by default all.
        """
        names = [name for name in self.schema.names if name in self._source.conversions]
        for numbers, part in self._parts(self._rows, chosen, names):
            found = {name: part.column(name) for name in names}
            found |= {"product_id": self.ids.take(numbers), "product_locale": self._locales(len(numbers))}
            found[IMAGE_COUNT] = pa.array(self._counts[numbers])
            yield pa.table([found[name] for name in self.schema.names], schema=self.schema)

    def images(self, chosen: Ints | None = None) -> Iterator[pa.Table]:
        """The rows of WORK/sample/images.parquet, likewise, as `image_schema`.

        The image of a product is that of its row, otherwise the one that has its id as its name.
        """
        stems, names = (pa.array(values, pa.string()) for values in (list(self._by_id), list(self._by_id.values())))
        for numbers, part in self._parts(self._image_rows, chosen, [IMAGE]):
            ids, images = self.ids.take(numbers), part.column(IMAGE)
            if self._by_id:
                named = names.take(pc.index_in(ids, value_set=stems))
                images = pc.coalesce(images, prefixed(schemas.FILE_IMAGE, named))
            yield pa.table([ids, self._locales(len(ids)), images], schema=self.image_schema)

    def _parts(self, rows: Ints, chosen: Ints | None, names: Sequence[str]) -> Iterator[tuple[Ints, pa.Table]]:
        """Numbers of products, and columns of the rows that `rows` has for them."""
        first = 0
        for part in self._source.take(rows if chosen is None else rows[chosen], names):
            places = np.arange(first, first + part.num_rows)
            yield places if chosen is None else chosen[places], part
            first += part.num_rows

    @property
    def image_schema(self) -> pa.Schema:
        """Its metadata names the files that references to rows count."""
        return schemas.CATALOGUE_IMAGES_SCHEMA.with_metadata(self.image_rows.metadata())

    def _locales(self, rows: int) -> pa.Array:
        return pa.repeat(self.locale, rows)


def read_products(tables: Tables, settings: CatalogueSettings, scratch: Path | None = None) -> Products:
    """All products of a table. Of each the id and some numbers are in memory, and a csv file while it is read.

    Rows that are equal but for their image are one product with several images: the first is used.

    Args:
        scratch: folder of a temporary file, which holds what is read; by default that of the system.

    Raises:
        SourceError: a file is damaged; a column is missing, is there twice or holds no texts.
        RecipeError: [catalogue] keep or columns does not fit the tables; images are local, and `images` is not set.
        ContractError: an empty id, or one with a line break in it.
        DuplicateKeyError: two rows with one id that contradict each other.
        EmptyFileError: there are no rows.
        DiskError: the temporary file cannot be written.
    """
    names = columns.recognise(tables, columns.PRODUCTS, settings.columns, ("product_id", "product_title"))
    check_kept(settings.keep, tables.names)
    source, csv = ProductRows(tables, names, settings.keep, scratch), CSV in tables.kinds
    ids, rows, image_rows, counts = merged(source, tables.address)
    by_id = images_by_id(settings.images) if settings.images is not None else {}
    kinds = source.marks[KIND][image_rows]
    if by_id:
        named = pc.is_in(ids, value_set=pa.array(list(by_id), pa.string())).to_numpy(zero_copy_only=False)
        kinds[named & (kinds == NO_IMAGE)] = LOCAL
    check_images(kinds, lambda i: str(source.value(image_rows[i], IMAGE)), names, tables.address, settings)
    warn(ids, source.marks[UNTITLED][rows], source.marks[HTML][rows], tables.address, csv=csv)
    several = [pa.field(IMAGE_COUNT, pa.int32())] if counts.max(initial=0) > 1 else []
    kept = [pa.field(name, source.conversions[name].dtype) for name in settings.keep]
    schema = pa.schema([*schemas.SAMPLED_PRODUCTS_SCHEMA, *kept, *several])
    numbered = ImageRows(tables.files, names.get(IMAGE, ""))
    return Products(ids, settings.locale, schema, numbered, source, rows, image_rows, counts, by_id)
