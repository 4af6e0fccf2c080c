"""The images that fetch stored, by the sha256 of their bytes, read one file after another."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, IntegrityError, SchemaError
from sqid_lib.files import parse_numbered_name

_KIND = "images"  # in the names of files


class StoredImages:
    """In which file of `folder` each image is; only hashes are kept in memory.

    Raises:
        CorruptFileError, SchemaError: a file cannot be read or has other columns.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = {path: parse_numbered_name(path) for path in sorted(folder.glob("*"))}
        self._files = [path for path, name in names.items() if name and name[0] == _KIND]
        self._place: dict[str, int] = {}  # sha256 → number of the first file that has it
        for number, path in enumerate(self._files):
            for sha256 in _read(path, ["sha256"])["sha256"].to_pylist():
                self._place.setdefault(sha256, number)

    def check(self, sha256s: Collection[str]) -> None:
        """Raise IntegrityError unless every one of the images is stored."""
        absent = [sha256 for sha256 in sha256s if sha256 not in self._place]
        if absent:
            raise IntegrityError(
                f"{len(absent)} images that outcomes.parquet names are not stored",
                where=self._folder,
                got=absent[0],
                fix="Run the fetch stage again.",
            )

    def order(self, sha256s: Collection[str]) -> list[str]:
        """The images in the order of files, so that `read` opens each file once."""
        return sorted(sha256s, key=lambda sha256: (self._place[sha256], sha256))

    def read(self, ordered: Collection[str]) -> Iterator[bytes]:
        """The bytes of each image; at most one file is in memory."""
        number = -1
        stored: dict[str, pa.Scalar] = {}
        for sha256 in ordered:
            if self._place[sha256] != number:
                number, stored = self._place[sha256], {}
                table = _read(self._files[number], schemas.IMAGES_SCHEMA.names)
                stored = dict(zip(table["sha256"].to_pylist(), table["image"], strict=True))
            yield stored[sha256].as_py()


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        table = pq.read_table(path, columns=columns, memory_map=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptFileError(
            f"cannot be read: {error}", where=path, fix="Move the file away and run the fetch stage again."
        ) from error
    wanted = pa.schema([schemas.IMAGES_SCHEMA.field(name) for name in columns])
    if table.column_names != columns:
        raise SchemaError("columns are missing", where=path, expected=columns, got=table.column_names)
    return table.cast(wanted)
