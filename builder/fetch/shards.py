"""The distinct images as parquet shards, in the order of the first product: the same bytes whatever came first."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.fetch.decoders import cpus
from builder.fetch.ledger import Ledger
from sqid_lib import schemas
from sqid_lib.files import is_part, numbered_name, parse_numbered_name, replacing, sync

KIND = "images"  # in the names of the shards
_NEW = ".new"
_GROUP_BYTES = 8 << 20  # of images in one row group
_GROUP_ROWS = 128
_THREADS = 2  # that write shards: more wait for each other, and each has some row groups in memory
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)
_log = logging.getLogger(__name__)


class DamagedError(Exception):
    """Stored bytes that do not match their sha256; `sha256s` names them."""

    def __init__(self, sha256s: Sequence[str]) -> None:
        super().__init__(f"{len(sha256s)} images are damaged")
        self.sha256s = sha256s


def recover(folder: Path, ledger: Ledger) -> None:
    """Finish or undo what an interrupted run left, then forget the images that were damaged or deleted since."""
    shards = ledger.swapping()
    if shards is not None:
        _put_in_place(folder, shards)
    for path in folder.iterdir():
        if is_part(path) or path.suffix == _NEW:
            path.unlink()
    held = {sha256 for path in shards_of(folder).values() for sha256 in _repair(path)}
    if shards is not None:
        ledger.end_swap(held)
    ledger.forget_images(ledger.sharded() - held)


def assemble(folder: Path, ledger: Ledger, sha256s: Sequence[str], shard_rows: int) -> None:
    """Make folder/images-00000.parquet … hold exactly these images, `shard_rows` each, in this order.

    Disk: until the end, images of shards that change are stored twice, in the old and the new shard or in the spool.

    Raises:
        DamagedError: stored bytes do not match their sha256; nothing was changed.
    """
    plan = {i // shard_rows: list(sha256s[i : i + shard_rows]) for i in range(0, len(sha256s), shard_rows)}
    old = shards_of(folder)
    contents = {number: _sha256s(path) for number, path in old.items()}
    if contents == plan and not ledger.spooled:
        return
    with _StoredBytes(ledger, old) as stored, ThreadPoolExecutor(min(_THREADS, cpus())) as threads:

        def write(number: int) -> None:
            with replacing(_new(folder, number)) as path:
                _write(path, plan[number], stored)

        for _ in threads.map(write, [number for number, rows in plan.items() if contents.get(number) != rows]):
            pass  # raises what a thread raised, and ends the others
    if stored.damaged:
        raise DamagedError(stored.damaged)  # recover() removes what was written
    ledger.begin_swap(len(plan))
    _put_in_place(folder, len(plan))
    ledger.end_swap(sha256s)


def shards_of(folder: Path) -> dict[int, Path]:
    """The shards in a folder by their numbers."""
    names = {path: parse_numbered_name(path) for path in sorted(folder.iterdir())}
    return {name[1]: path for path, name in names.items() if name and name[0] == KIND}


def _new(folder: Path, number: int) -> Path:
    return folder / f"{numbered_name(KIND, number)}{_NEW}"


def _put_in_place(folder: Path, shards: int) -> None:
    for path in folder.glob(f"*{_NEW}"):
        path.replace(path.with_suffix(""))
    for number, path in shards_of(folder).items():
        if number >= shards:
            path.unlink()
    sync(folder)


def damaged_images(folder: Path) -> dict[Path, str]:
    """Shards with images that do not match their sha256, or that cannot be read: path → what is damaged."""
    found = {}
    for path in shards_of(folder).values() if folder.is_dir() else ():
        harmed = sum(damaged for _, damaged in _checked_groups(path))
        if harmed:
            found[path] = f"has {harmed} damaged {'image' if harmed == 1 else 'images'}"
    return found


def _repair(path: Path) -> list[str]:
    """The images in a shard, after those that do not match their sha256 were removed from it."""
    sha256s, damaged = [], 0
    for sound, harmed in _checked_groups(path):
        sha256s += [sha256 for sha256, _ in sound]
        damaged += harmed
    if damaged:
        _log.warning("%s holds damaged images: they are downloaded again", path)
        with replacing(path) as part, _open_writer(part) as writer:
            group = _Group()
            for sound, _ in _checked_groups(path):
                for row in sound:
                    group.add(*row)
                if sound:
                    group.write(writer)
    return sha256s


def _checked_groups(path: Path) -> Iterator[tuple[list[tuple[str, bytes]], int]]:
    """For each row group, the images that match their sha256, and how many do not (1 if it cannot be read)."""
    try:
        file = pq.ParquetFile(path)
    except _UNREADABLE as error:
        _raise_if_not_damage(error)
        yield [], 1
        return
    with file:
        for number in range(file.num_row_groups):
            try:
                table = file.read_row_group(number, schemas.IMAGES_SCHEMA.names)
                rows = list(zip(table["sha256"].to_pylist(), table["image"].to_pylist(), strict=True))
            except _UNREADABLE as error:
                _raise_if_not_damage(error)
                yield [], 1
                continue
            sound = [row for row in rows if row[1] is not None and hashlib.sha256(row[1]).hexdigest() == row[0]]
            yield sound, len(rows) - len(sound)


def _sha256s(path: Path) -> list[str]:
    """The images in a shard, unchecked; none if it cannot be read."""
    try:
        sha256s: list[str] = pq.read_table(path, columns=["sha256"])["sha256"].to_pylist()
    except _UNREADABLE as error:
        _raise_if_not_damage(error)
        return []
    return sha256s


def _raise_if_not_damage(error: Exception) -> None:
    """Too many open files or a missing permission must not cost images: pyarrow's own errors have no number."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        raise error


def _write(path: Path, sha256s: Sequence[str], stored: _StoredBytes) -> None:
    with _open_writer(path) as writer:
        group = _Group()
        for sha256 in sha256s:
            image = stored.read(sha256)
            if image is not None:
                group.add(sha256, image)
            if group.size >= _GROUP_BYTES or len(group.sha256s) >= _GROUP_ROWS:
                group.write(writer)
        if group.sha256s:
            group.write(writer)


class _Group:
    """The images of one row group after another, in memory that is used again: new memory costs as much as to write."""

    def __init__(self) -> None:
        self.sha256s: list[str] = []
        self._ends = [0]  # of the images in the data
        self._data = io.BytesIO()

    @property
    def size(self) -> int:
        """Bytes of the images."""
        return self._ends[-1]

    def add(self, sha256: str, image: bytes) -> None:
        self.sha256s.append(sha256)
        self._ends.append(self.size + self._data.write(image))

    def write(self, writer: pq.ParquetWriter) -> None:
        """Write the row group, and begin the next one."""
        buffers = [None, pa.py_buffer(np.array(self._ends, np.int32)), pa.py_buffer(self._data.getbuffer())]
        images = pa.Array.from_buffers(pa.binary(), len(self.sha256s), buffers)
        writer.write_table(pa.table([pa.array(self.sha256s), images], schema=schemas.IMAGES_SCHEMA))
        self.sha256s, self._ends = [], [0]
        self._data.seek(0)


def _open_writer(path: Path) -> pq.ParquetWriter:
    # images are compressed already; statistics and dictionaries of them would only cost space
    return pq.ParquetWriter(
        path, schemas.IMAGES_SCHEMA, compression="none", use_dictionary=False, write_statistics=["sha256"]
    )


class _StoredBytes:
    """Images read back from the spool and from shards, each checked; for several threads.

    `damaged` lists those that fail.
    """

    def __init__(self, ledger: Ledger, shards: dict[int, Path]) -> None:
        self.damaged: list[str] = []
        self._spool, self._spooled = ledger.spool, ledger.places()
        self._files = {number: pq.ParquetFile(path) for number, path in shards.items() if _sha256s(path)}
        self._places = {
            sha256: (number, group, row)
            for number, file in self._files.items()
            for group in range(file.num_row_groups)
            for row, sha256 in enumerate(file.read_row_group(group, ["sha256"])["sha256"].to_pylist())
        }
        self._lock, self._loaded = threading.Lock(), threading.local()  # each thread has a row group loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def read(self, sha256: str) -> bytes | None:
        try:
            image = self._from_spool(sha256) or self._from_shard(sha256)
        except _UNREADABLE as error:
            _raise_if_not_damage(error)
            image = None
        if image is None or hashlib.sha256(image).hexdigest() != sha256:
            self.damaged.append(sha256)
            return None
        return image

    def _from_spool(self, sha256: str) -> bytes | None:
        place = self._spooled.get(sha256)
        return os.pread(self._spool, *place) if place else None

    def _from_shard(self, sha256: str) -> bytes | None:
        if sha256 not in self._places:
            return None
        number, group, row = self._places[sha256]
        if getattr(self._loaded, "group", None) != (number, group):
            with self._lock:
                self._loaded.images = self._files[number].read_row_group(group, ["image"])["image"]
            self._loaded.group = number, group
        image: bytes = self._loaded.images[row].as_py()
        return image
