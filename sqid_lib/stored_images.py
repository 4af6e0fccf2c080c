"""The images that fetch stored, by the sha256 of their bytes: one row group after another, or one image alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, IntegrityError, SchemaError
from sqid_lib.files import numbered_name, parse_numbered_name, part_folders
from sqid_lib.object_store import ObjectFile, ObjectStore

DIGEST = pa.binary(32)  # a sha256
_KIND = "images"  # in the names of files
_AT_ONCE = 1_000  # images in memory
_AGAIN = "Move the file away and run the fetch stage again."
# on an object store, where no folder is listed: the folders of all images, and in each of them where its images are
FOLDERS, INDEX = "fetch/folders.json", "index.parquet"
INDEX_SCHEMA = pa.schema([("sha256", DIGEST), ("shard", pa.int32()), ("group", pa.int32())])
_AT_A_TIME = 8  # row groups read from an object store
_FOOTERS = 64  # of its objects that are kept
_UNKNOWN, _NOWHERE = -1, -2  # where an image lies in its file: not looked yet; not there in one piece


class StoredImages:
    """In which row group of the files below `folder` each image is.

    Digests and places are kept in memory, 48 bytes an image.

    Raises:
        CorruptFileError, SchemaError: a file cannot be read or has other columns.
    """

    def __init__(self, folder: Path) -> None:
        self._folder: Path | ObjectStore = folder
        self._groups: list[tuple[Path | ObjectFile, int]] = []  # a file, and the number of a row group in it
        digests: list[pa.Array] = []
        for path in (path for part in part_folders(folder) for path in sorted(part.glob("*"))):
            name = parse_numbered_name(path)
            if name is None or name[0] != _KIND:
                continue
            with _open(path) as file:
                for group in range(file.num_row_groups):
                    self._groups.append((path, group))
                    digests.append(_digests(_read(path, file, group, ["sha256"])["sha256"].to_pylist()))
        self._set_digests(digests)

    @classmethod
    def of_store(cls, store: ObjectStore) -> StoredImages:
        """The images of a WORK on an object store.

        Raises:
            CorruptFileError: an index cannot be read.
            DownloadError: the store fails.
        """
        images = cls.__new__(cls)
        images._folder, images._groups = store, []
        digests = []
        for folder in json.loads(store.read(FOLDERS) or b"[]"):
            name = f"{folder}/{INDEX}"
            data = store.read(name)
            try:
                index = pq.read_table(pa.BufferReader(data or b""), schema=INDEX_SCHEMA)
            except pa.ArrowInvalid as error:
                raise CorruptFileError(f"cannot be read: {error}", where=f"{store}/{name}", fix=_AGAIN) from error
            if not index.num_rows:
                continue
            places = np.stack([index["shard"].to_numpy(), index["group"].to_numpy()])
            starts: Any = np.flatnonzero(np.r_[True, np.diff(places).any(axis=0)])
            for start, stop in zip(starts, [*starts[1:], index.num_rows], strict=True):
                shard, group = places[:, start].tolist()
                images._groups.append((ObjectFile(store, f"{folder}/{numbered_name(_KIND, shard)}"), group))
                digests.append(index["sha256"].slice(start, stop - start).combine_chunks())
        images._set_digests(digests)
        return images

    def _set_digests(self, digests: Sequence[pa.Array]) -> None:
        self._footers: dict[ObjectFile, pq.FileMetaData] = {}  # of the last objects, for their many row groups
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

    def read(self, sha256s: Sequence[str]) -> Iterator[bytes]:
        """The bytes of each image; a thousand are in memory, for which each row group is read once.

        Raises:
            CorruptFileError: the bytes are not those that fetch stored.
        """
        for start in range(0, len(sha256s), _AT_ONCE):
            names = sha256s[start : start + _AT_ONCE]
            images: dict[str, bytes] = {}
            numbers = self._numbers(names)
            wanted: dict[int, set[str]] = {}
            for name, number in zip(names, numbers.tolist(), strict=True):
                wanted.setdefault(number, set()).add(name)
            for found in self._read_groups(wanted):
                images |= found
            yield from (images[name] for name in names)

    def _read_groups(self, wanted: Mapping[int, set[str]]) -> Iterator[dict[str, bytes]]:
        """Some images of each row group; those of an object store are read several groups at a time."""

        def read(number: int) -> dict[str, bytes]:
            path, group = self._groups[number]
            footer = self._footer(path) if isinstance(path, ObjectFile) else None
            return _read_images(path, group, wanted[number], footer)

        if isinstance(self._folder, Path):
            yield from map(read, sorted(wanted))
        else:
            with ThreadPoolExecutor(_AT_A_TIME) as threads:
                yield from threads.map(read, sorted(wanted))

    def _footer(self, path: ObjectFile) -> pq.FileMetaData:
        found = self._footers.get(path)
        if found is None:
            if len(self._footers) >= _FOOTERS:
                self._footers.clear()
            with _open(path) as file:
                found = self._footers[path] = file.metadata
        return found

    def read_few(self, sha256s: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Each of some images that is stored with its bytes, in the order of files; other row groups are not read.

        Raises:
            CorruptFileError: a file cannot be read, or the bytes are not those that fetch stored.
        """
        numbers = self._numbers(sha256s)
        for number in np.unique(numbers[numbers >= 0]).tolist():
            path, group = self._groups[number]
            yield from _read_images(path, group, set(sha256s)).items()

    def positions(self, sha256s: Sequence[str]) -> NDArray[np.int64]:
        """The position of each image in all files, for `read_at`; −1 where none has it."""
        at = pc.fill_null(pc.index_in(_digests(sha256s), value_set=self._stored), -1)
        positions: NDArray[np.int64] = at.to_numpy(zero_copy_only=False).astype(np.int64)
        return positions

    def read_at(self, position: int) -> bytes:
        """The bytes of one image; any thread may call it.

        The first image of a row group costs reading all of it, later ones only their own bytes: images are stored
        uncompressed, so each lies in one piece in its file. Where it does not, the row group is read each time.

        Raises:
            CorruptFileError: a file cannot be read, or the bytes are not those that fetch stored.
        """
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        (path, group), first = self._groups[number], int(self._starts[number])
        if self._places[position, 0] == _UNKNOWN:
            places = _find_places(path, group)
            self._places[first : first + len(places)] = places
        start, size = self._places[position].tolist()
        if start == _NOWHERE:
            with _open(path) as file:
                image: bytes = _read(path, file, group, ["image"])["image"][position - first].as_py()
        else:
            try:
                with path.open("rb") as opened:
                    opened.seek(start)
                    image = opened.read(size)
            except OSError as error:
                raise CorruptFileError(f"cannot be read: {error}", where=path, fix=_AGAIN) from error
        _check_bytes(image, self._stored[position].as_py().hex(), path)
        return image

    def _numbers(self, sha256s: Sequence[str]) -> NDArray[np.int64]:
        """The number of the first row group that has each image, −1 where none has."""
        at = self.positions(sha256s)
        return np.where(at < 0, -1, np.searchsorted(self._starts, at, side="right") - 1)


def as_digests(data: bytes | bytearray) -> pa.FixedSizeBinaryArray:
    """Digests that lie one behind the other, as an array of `DIGEST`."""
    buffer = pa.py_buffer(data)
    return pa.FixedSizeBinaryArray.from_buffers(DIGEST, buffer.size // DIGEST.byte_width, [None, buffer])


def _digests(sha256s: Sequence[str]) -> pa.Array:
    return as_digests(bytes.fromhex("".join(sha256s)))


def _check_bytes(image: bytes, sha256: str, path: Path | ObjectFile) -> None:
    if hashlib.sha256(image).hexdigest() != sha256:
        raise CorruptFileError("an image is not that of its sha256", where=path, fix=_fix(path))


@contextmanager
def _open(path: Path | ObjectFile, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    try:
        if isinstance(path, ObjectFile):
            with path.open() as opened, pq.ParquetFile(opened, metadata=metadata) as file:
                yield file
        else:
            with pq.ParquetFile(path, memory_map=False) as file:
                yield file
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(path, ObjectFile) and not isinstance(error, pa.ArrowInvalid):
            raise path.store.failure(path.name, error) from error
        raise CorruptFileError(f"cannot be read: {error}", where=path, fix=_fix(path)) from error


def _fix(path: Path | ObjectFile) -> str:
    return _AGAIN if isinstance(path, Path) else "Remove this object and build again: its images are fetched again."


def _read_images(
    path: Path | ObjectFile, group: int, wanted: AbstractSet[str], metadata: pq.FileMetaData | None = None
) -> dict[str, bytes]:
    """Some images of a row group, each checked."""
    with _open(path, metadata) as file:
        table = _read(path, file, group, schemas.IMAGES_SCHEMA.names)
    stored = zip(table["sha256"].to_pylist(), table["image"], strict=True)
    images = {sha256: image.as_py() for sha256, image in stored if sha256 in wanted}
    for sha256, image in images.items():
        _check_bytes(image, sha256, path)
    return images


def _read(path: Path | ObjectFile, file: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
    table = file.read_row_group(group, columns=columns)
    wanted = pa.schema([schemas.IMAGES_SCHEMA.field(name) for name in columns])
    if table.column_names != columns:
        raise SchemaError("columns are missing", where=path, expected=columns, got=table.column_names)
    return table.cast(wanted)


def _find_places(path: Path | ObjectFile, group: int) -> NDArray[np.int64]:
    """Where each image of a row group lies in its file, [N, 2]."""
    with _open(path) as file:
        images = _read(path, file, group, ["image"])["image"].to_pylist()
        chunk = file.metadata.row_group(group).column(file.schema_arrow.get_field_index("image"))
        offset = chunk.data_page_offset
        with path.open("rb") as opened:
            opened.seek(offset)
            stored = opened.read(chunk.total_compressed_size)
    places = np.full((len(images), 2), _NOWHERE, np.int64)
    end = 0
    for number, image in enumerate(images):
        at = stored.find(image[:64], end) if image else -1  # at `end`, or behind the header of a page
        if at >= 0 and stored.startswith(image, at):
            places[number] = offset + at, len(image)
            end = at + len(image)
    return places
