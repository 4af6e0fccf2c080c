"""The images that a build stored in its work directory, found by product and read one at a time."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.errors import MissingFileError
from sqid_lib.files import parse_numbered_name
from sqid_lib.images import sniff
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import open_parquet, read_parquet, reporting

_KIND = "images"  # in the names of files
_GROUPS = 8  # row groups of images kept in memory, some megabytes each
_OUTCOMES = pa.schema([schemas.OUTCOMES_SCHEMA.field(name) for name in (*schemas.PRODUCT_KEY, "sha256")])
_SHA256 = pa.schema([schemas.IMAGES_SCHEMA.field("sha256")])
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}


class WorkImages:
    """Which products of a store have a stored image; the bytes stay on disk.

    Attributes:
        present: bool [P], whether `read` has an image.
    """

    def __init__(self, work: Path, products: pa.Table) -> None:
        """Read WORK/fetch/outcomes.parquet, and the sha256 column of WORK/fetch/images-*.parquet.

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
        self._files = [p for p in sorted(folder.glob("*")) if (parse_numbered_name(p) or ("",))[0] == _KIND]
        stored, self._places = self._find()
        index = pc.index_in(self._sha256, value_set=stored, skip_nulls=True)
        self._at = pc.fill_null(index, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        self.present = self._at >= 0
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()

    def _find(self) -> tuple[pa.Array, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
        """The sha256 of every stored image, and for each the number of its file, its row group and its row there."""
        digests, places = [], [np.empty((0, 3), np.int64)]
        for number, path in enumerate(self._files):
            with open_parquet(str(path), _SHA256) as file, reporting(str(path)):
                for group in range(file.num_row_groups):
                    column = file.read_row_group(group, ["sha256"])["sha256"].cast(pa.string())
                    digests += column.chunks
                    rows = np.arange(len(column))
                    places.append(np.stack([np.full_like(rows, number), np.full_like(rows, group), rows], axis=1))
        return pa.chunked_array(digests, pa.string()).combine_chunks(), np.concatenate(places)

    def read(self, product: int) -> tuple[bytes, str, str] | None:
        """The bytes of a product's image, its media type and its sha256; None where it has none, or it is damaged."""
        if not self.present[product]:
            return None
        number, group, row = self._places[self._at[product]].tolist()
        image: bytes = self._group(number, group)[row].as_py()
        kind, sha256 = sniff(image), self._sha256[product].as_py()
        if kind is None or hashlib.sha256(image).hexdigest() != sha256:
            return None
        return image, MEDIA_TYPES[kind], sha256

    def _group(self, number: int, group: int) -> pa.Array:
        with self._lock:
            key = (number, group)
            if key not in self._groups:
                path = str(self._files[number])
                with reporting(path), pq.ParquetFile(path) as file:
                    self._groups[key] = file.read_row_group(group, ["image"])["image"].combine_chunks()
                while len(self._groups) > _GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]
