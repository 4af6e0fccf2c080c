"""The images that a build stored in its work directory, found by product and read one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, SourceError
from sqid_lib.images import sniff
from sqid_lib.stored_images import StoredImages
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet

_OUTCOMES = pa.schema([schemas.OUTCOMES_SCHEMA.field(name) for name in (*schemas.PRODUCT_KEY, "sha256")])
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}


class WorkImages:
    """Which products of a store have a stored image; the bytes stay on disk.

    Attributes:
        present: bool [P], whether `read` has an image.
    """

    def __init__(self, work: Path, products: pa.Table) -> None:
        """Read WORK/fetch/outcomes.parquet, and the sha256 column of the stored images.

        Args:
            products: of the store, with the columns of the key.

        Raises:
            SourceError: `work` has no fetched images, or a file cannot be read.
        """
        folder = work / "fetch"
        if not (folder / "outcomes.parquet").is_file():
            fix = "Give the work directory of a build."
            raise MissingFileError("no fetched images", where=work, expected="fetch/outcomes.parquet", fix=fix)
        outcomes = read_parquet(str(folder / "outcomes.parquet"), _OUTCOMES)
        at = pc.index_in(key_strings(products), value_set=key_strings(outcomes))
        self._sha256 = outcomes["sha256"].combine_chunks().take(at)  # of each product; null where none is stored
        self._stored = StoredImages(folder)
        self._at = np.full(len(products), -1, np.int64)
        held = np.flatnonzero(self._sha256.is_valid())
        self._at[held] = self._stored.positions(self._sha256.drop_null().to_pylist())
        self.present = self._at >= 0

    def read(self, product: int) -> tuple[bytes, str, str] | None:
        """The bytes of a product's image, its media type and its sha256; None where it has none, or it is damaged."""
        if not self.present[product]:
            return None
        try:
            image = self._stored.read_at(int(self._at[product]))
        except SourceError:
            return None
        kind = sniff(image)
        return None if kind is None else (image, MEDIA_TYPES[kind], self._sha256[product].as_py())
