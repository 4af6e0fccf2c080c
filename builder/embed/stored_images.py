"""The bytes that fetch stored, by content hash, a file at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, IntegrityError, SchemaError


class Pictures:
    """Where each picture of `folder/images-*.parquet` lies; only hashes are kept in memory.

    Raises:
        CorruptFileError, SchemaError: a file cannot be read or has other columns.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("images-*.parquet"))
        self._place: dict[str, int] = {}  # sha256 → number of the file that holds it first
        for number, path in enumerate(self._files):
            for digest in _read(path, ["sha256"])["sha256"].to_pylist():
                self._place.setdefault(digest, number)

    def check(self, digests: Collection[str]) -> None:
        """Raise IntegrityError unless every picture of `digests` is stored."""
        absent = [digest for digest in digests if digest not in self._place]
        if absent:
            raise IntegrityError(
                f"{len(absent)} pictures that outcomes.parquet names are not stored",
                where=self._files[0].parent if self._files else "fetch",
                got=absent[0],
                fix="Run the fetch stage again.",
            )

    def order(self, digests: Collection[str]) -> list[str]:
        """The digests in the order of files, so that `read` opens each file once."""
        return sorted(digests, key=lambda digest: (self._place[digest], digest))

    def read(self, ordered: Collection[str]) -> Iterator[bytes]:
        """The bytes of each digest; at most one file is in memory."""
        number = -1
        stored: dict[str, pa.Scalar] = {}
        for digest in ordered:
            if self._place[digest] != number:
                number, stored = self._place[digest], {}
                table = _read(self._files[number], schemas.IMAGES_SCHEMA.names)
                stored = dict(zip(table["sha256"].to_pylist(), table["image"], strict=True))
            yield stored[digest].as_py()


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
