"""Images of products, to be read one by one: of a build's work directory, of a folder, or of a dataset."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sqid_lib import images, schemas
from sqid_lib.errors import EmptyFileError, MissingFileError, SchemaError
from sqid_lib.stored_images import StoredImages
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp")


class ProductImages:
    """Which product has an image, and how its bytes are read; the bytes themselves stay on disk.

    `len` of it is the number of products with an image. It pickles, and threads may share it.
    """

    def __init__(self, where: object, keys: pa.Array, by_locale: bool, read: Callable[[int], bytes]) -> None:
        """`open` and `from_dataset` are the usual ways in.

        Args:
            where: the place, for messages.
            keys: of each image its product: `key_strings` if `by_locale`, otherwise product ids of any locale.
            read: the bytes of an image by its number in `keys`.
        """
        self.where, self.read_bytes = str(where), read
        self._keys, self._by_locale = keys, by_locale

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ProductImages:
        """The images of a build's work directory, or of a folder of files named by product id.

        Args:
            path: WORK, as `sqid build --work WORK` leaves it, whose images are those of the release made there; or a
                folder with files such as B07XYZ.jpg (.jpg, .jpeg, .png, .gif, .webp), one for each product id, whatever
                its locale. Of two files for one product the first by name is taken.

        Raises:
            MissingFileError: no such folder. EmptyFileError: no image is in it.
            SourceError: the images of the work directory are damaged or not complete.
        """
        folder = Path(path)
        if not folder.is_dir():
            fix = "Name a work directory, or a folder of images named by product id."
            raise MissingFileError("no such folder", where=folder, fix=fix)
        if (folder / "fetch" / "outcomes.parquet").is_file():
            return cls._of_work(folder)
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if Path(e.name).suffix.lower() in _SUFFIXES and e.is_file())
        if not names:
            expected = f"WORK of a build, or files named PRODUCT_ID with {', '.join(_SUFFIXES)}"
            raise EmptyFileError("the folder has no images", where=folder, expected=expected)
        ids = pa.array([Path(name).stem for name in names], pa.string())
        return cls(folder, ids, False, partial(_read_file, folder, pa.array(names)))

    @classmethod
    def from_dataset(cls, dataset: Any, *, product_id: str = "product_id", image: str = "image") -> ProductImages:
        """The images of a `datasets.Dataset`, such as one of the Hub, which is memory-mapped.

        Args:
            dataset: with a column of product ids and one of type `datasets.Image`, or of bytes. Of two rows of one
                product the first is taken; a row without an image counts as a product without one.
            product_id, image: the names of the columns.

        Raises:
            SchemaError: a column is missing.
        """
        if missing := [name for name in (product_id, image) if name not in dataset.column_names]:
            raise SchemaError(f"no column {missing[0]}", where="dataset", expected=missing, got=dataset.column_names)
        from datasets import Image

        if isinstance(dataset.features[image], Image):
            dataset = dataset.cast_column(image, Image(decode=False))
        rows = (
            dataset.select_columns([product_id, image]).with_format("arrow").iter(batch_size=1000)
        )  # views, no copies
        keys = pa.concat_arrays(
            [_held_ids(table[product_id], table[image]) for table in rows] or [pa.array([], "string")]
        )
        return cls("dataset", keys, False, partial(_read_row, dataset.select_columns([image]).with_format(None), image))

    @classmethod
    def _of_work(cls, work: Path) -> ProductImages:
        names = [*schemas.PRODUCT_KEY, "image_status", "sha256"]
        schema = pa.schema([schemas.OUTCOMES_SCHEMA.field(name) for name in names])
        outcomes = read_parquet(str(work / "fetch" / "outcomes.parquet"), schema)
        held = pc.is_in(outcomes["image_status"], pa.array(schemas.EMBEDDED_STATUSES))
        outcomes = outcomes.filter(pc.and_(held, pc.is_valid(outcomes["sha256"])))
        stored, sha256s = StoredImages(work / "fetch"), outcomes["sha256"].to_pylist()
        stored.check(sha256s)
        return cls(work, key_strings(outcomes), True, partial(_read_stored, stored, stored.positions(sha256s)))

    def __len__(self) -> int:
        return len(self._keys) - int(self._keys.null_count)

    def __repr__(self) -> str:
        return f"ProductImages({len(self):,} images, {self.where!r})"

    def find(self, products: pa.Table) -> NDArray[np.int64]:
        """The number of each product's image, −1 where it has none; [P].

        Args:
            products: columns product_id and product_locale, as in `EmbeddingStore.products`.
        """
        at = pc.index_in(self._wanted(products), value_set=self._keys, skip_nulls=True)
        at = pc.fill_null(at, -1)
        numbers: NDArray[np.int64] = at.to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers

    def _wanted(self, products: pa.Table) -> pa.Array:
        keys = key_strings(products) if self._by_locale else products["product_id"].combine_chunks()
        return keys.cast(self._keys.type)

    def without(self, products: pa.Table) -> ProductImages:
        """The same images, those of some products left out: they count as products without an image.

        Args:
            products: columns product_id and product_locale, as in `EmbeddingStore.products`.
        """
        left_out = pc.is_in(self._keys, value_set=self._wanted(products))
        keys = pc.if_else(left_out, pa.scalar(None, self._keys.type), self._keys)
        return ProductImages(self.where, keys, self._by_locale, self.read_bytes)

    def decode(self, number: int) -> Image.Image:
        """An image by its number, in RGB; decoded by the rules of `sqid_lib.images.decode_for_model`.

        Raises:
            ImageError: it is no image that can be used, or one side is over 500 times as long as the other.
            SourceError: its file cannot be read, or was damaged since it was stored.
            MissingExtraError: Pillow is not installed.
        """
        return images.decode_for_model(self.read_bytes(number), keep_truncated=True)


def _read_stored(stored: StoredImages, positions: NDArray[np.int64], number: int) -> bytes:
    return stored.read_at(int(positions[number]))


def _read_file(folder: Path, names: pa.Array, number: int) -> bytes:
    path = Path(folder, names[number].as_py())
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingFileError(f"the image cannot be read: {error.strerror}", where=path) from error


def _held_ids(ids: pa.ChunkedArray, images: pa.ChunkedArray) -> pa.Array:
    """Product ids; null in rows without an image. `images` are bytes, or structs of bytes and path."""
    held = images.is_valid()
    if pa.types.is_struct(images.type):
        parts = [pc.struct_field(images, [name]).is_valid() for name in ("bytes", "path")]
        held = pc.and_(held, pc.or_(*parts))
    keys = pc.if_else(held, ids.cast(pa.string()), None)
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys


def _read_row(dataset: Any, column: str, number: int) -> bytes:
    value = dataset[number][column]
    if isinstance(value, dict):  # {"bytes", "path"}: one of the two may be None
        value = value["bytes"] if value["bytes"] is not None or not value["path"] else Path(value["path"]).read_bytes()
    found: bytes = value or b""
    return found
