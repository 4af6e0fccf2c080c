"""The images that fetch stored, by the sha256 of their bytes: one file after another, or one image alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, IntegrityError, SchemaError
from sqid_lib.files import parse_numbered_name

DIGEST = pa.binary(32)  # a sha256
_KIND = "images"  # in the names of files
_AGAIN = "Move the file away and run the fetch stage again."
_UNKNOWN, _NOWHERE = -1, -2  # where an image lies in its file: not looked yet; not there in one piece


class StoredImages:
    """In which file of `folder` each image is; digests and places are kept in memory, 48 bytes an image.

    Raises:
        CorruptFileError, SchemaError: a file cannot be read or has other columns.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = {path: parse_numbered_name(path) for path in sorted(folder.glob("*"))}
        self._files = [path for path, name in names.items() if name and name[0] == _KIND]
        digests = [_digests(_read(path, ["sha256"])["sha256"].to_pylist()) for path in self._files]
        self._stored = pa.chunked_array(digests, DIGEST).combine_chunks()
        self._starts = np.cumsum([0, *map(len, digests)])
        self._places = np.full((len(self._stored), 2), _UNKNOWN, np.int64)  # first byte in the file, and how many

    def check(self, sha256s: Sequence[str]) -> None:
        """Raise IntegrityError unless every one of the images is stored."""
        absent = np.flatnonzero(self._numbers(sha256s) < 0)
        if len(absent):
            raise IntegrityError(
                f"{len(absent)} images that outcomes.parquet names are not stored",
                where=self._folder,
                got=sha256s[absent[0]],
                fix="Run the fetch stage again.",
            )

    def order(self, sha256s: Sequence[str]) -> list[str]:
        """The images in the order of files, so that `read` opens each file once."""
        return [sha256 for _, sha256 in sorted(zip(self._numbers(sha256s).tolist(), sha256s, strict=True))]

    def read(self, ordered: Sequence[str]) -> Iterator[bytes]:
        """The bytes of each image; at most one file is in memory.

        Raises:
            CorruptFileError: the bytes are not those that fetch stored.
        """
        current = -1
        stored: dict[str, pa.Scalar] = {}
        for sha256, number in zip(ordered, self._numbers(ordered).tolist(), strict=True):
            if number != current:
                current, stored = number, {}
                table = _read(self._files[number], schemas.IMAGES_SCHEMA.names)
                stored = dict(zip(table["sha256"].to_pylist(), table["image"], strict=True))
            image: bytes = stored[sha256].as_py()
            _check_bytes(image, sha256, self._files[number])
            yield image

    def read_few(self, sha256s: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Each of some images that is stored with its bytes, in the order of files; other row groups are not read.

        Raises:
            CorruptFileError: a file cannot be read, or the bytes are not those that fetch stored.
        """
        wanted = sorted((at, sha256) for sha256, at in zip(sha256s, self._at(sha256s).tolist(), strict=True) if at >= 0)
        for number, path in enumerate(self._files):
            start, end = int(self._starts[number]), int(self._starts[number + 1])
            here = [(at - start, sha256) for at, sha256 in wanted if start <= at < end]
            if here:
                yield from _read_rows(path, here)

    def positions(self, sha256s: Sequence[str]) -> NDArray[np.int64]:
        """The position of each image in all files, for `read_at`; −1 where none has it."""
        return self._at(sha256s)

    def read_at(self, position: int) -> bytes:
        """The bytes of one image; any thread may call it.

        The first image of a row group costs reading all of it, later ones only their own bytes: images are stored
        uncompressed, so each lies in one piece in its file. Where it does not, the row group is read each time.

        Raises:
            CorruptFileError: a file cannot be read, or the bytes are not those that fetch stored.
        """
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        path, row = self._files[number], position - int(self._starts[number])
        if self._places[position, 0] == _UNKNOWN:
            first, places = _find_places(path, row)
            first += int(self._starts[number])
            self._places[first : first + len(places)] = places
        start, size = self._places[position].tolist()
        sha256 = self._stored[position].as_py().hex()
        if start == _NOWHERE:
            return next(_read_rows(path, [(row, sha256)]))[1]
        try:
            with path.open("rb") as file:
                file.seek(start)
                image = file.read(size)
        except OSError as error:
            raise CorruptFileError(f"cannot be read: {error}", where=path, fix=_AGAIN) from error
        _check_bytes(image, sha256, path)
        return image

    def _numbers(self, sha256s: Sequence[str]) -> NDArray[np.int64]:
        """The number of the first file that has each image, −1 where none has."""
        at = self._at(sha256s)
        return np.where(at < 0, -1, np.searchsorted(self._starts, at, side="right") - 1)

    def _at(self, sha256s: Sequence[str]) -> NDArray[np.int64]:
        """The position of each image in all files, −1 where none has it."""
        at = pc.fill_null(pc.index_in(_digests(sha256s), value_set=self._stored), -1)
        positions: NDArray[np.int64] = at.to_numpy(zero_copy_only=False).astype(np.int64)
        return positions


def as_digests(data: bytes | bytearray) -> pa.FixedSizeBinaryArray:
    """Digests that lie one behind the other, as an array of `DIGEST`."""
    buffer = pa.py_buffer(data)
    return pa.FixedSizeBinaryArray.from_buffers(DIGEST, buffer.size // DIGEST.byte_width, [None, buffer])


def _check_bytes(image: bytes, sha256: str, path: Path) -> None:
    if hashlib.sha256(image).hexdigest() != sha256:
        raise CorruptFileError("an image is not that of its sha256", where=path, fix=_AGAIN)


def _digests(sha256s: Sequence[str]) -> pa.Array:
    return as_digests(bytes.fromhex("".join(sha256s)))


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        table = pq.read_table(path, columns=columns, memory_map=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptFileError(f"cannot be read: {error}", where=path, fix=_AGAIN) from error
    wanted = pa.schema([schemas.IMAGES_SCHEMA.field(name) for name in columns])
    if table.column_names != columns:
        raise SchemaError("columns are missing", where=path, expected=columns, got=table.column_names)
    return table.cast(wanted)


def _read_rows(path: Path, rows: Sequence[tuple[int, str]]) -> Iterator[tuple[str, bytes]]:
    """Images by their row in a file, ascending, and sha256; one row group at a time."""
    try:
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
            starts, current = np.cumsum([0, *sizes]), -1
            for row, sha256 in rows:
                group = int(np.searchsorted(starts, row, side="right")) - 1
                if group != current:
                    current, images = group, file.read_row_group(group, columns=["image"])["image"]
                image: bytes = images[row - int(starts[group])].as_py()
                _check_bytes(image, sha256, path)
                yield sha256, image
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise CorruptFileError(f"cannot be read: {error}", where=path, fix=_AGAIN) from error


def _find_places(path: Path, row: int) -> tuple[int, NDArray[np.int64]]:
    """The row group that has a row: its first row, and where each of its images lies in the file, [N, 2]."""
    try:
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            group = int(np.searchsorted(starts, row, side="right")) - 1
            images = file.read_row_group(group, columns=["image"])["image"].to_pylist()
            chunk = file.metadata.row_group(group).column(file.schema_arrow.get_field_index("image"))
            offset = chunk.data_page_offset
        with path.open("rb") as opened:
            opened.seek(offset)
            stored = opened.read(chunk.total_compressed_size)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise CorruptFileError(f"cannot be read: {error}", where=path, fix=_AGAIN) from error
    places = np.full((len(images), 2), _NOWHERE, np.int64)
    end = 0
    for number, image in enumerate(images):
        at = stored.find(image[:64], end) if image else -1  # at `end`, or behind the header of a page
        if at >= 0 and stored.startswith(image, at):
            places[number] = offset + at, len(image)
            end = at + len(image)
    return int(starts[group]), places
