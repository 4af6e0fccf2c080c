"""The distinct images as parquet shards, in the order of the first product: the same bytes whatever came first."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from builder.fetch.ledger import Ledger
from sqid_lib import schemas
from sqid_lib.files import is_part, numbered_name, parse_numbered_name, replacing, sync

KIND = "images"  # in the names of the shards
_NEW = ".new"
_GROUP_BYTES = 8 << 20  # of images in one row group
_GROUP_ROWS = 128


class DamagedError(Exception):
    """Stored bytes that do not match their sha256; `sha256s` names them."""

    def __init__(self, sha256s: Sequence[str]) -> None:
        super().__init__(f"{len(sha256s)} images are damaged")
        self.sha256s = sha256s


def recover(folder: Path, ledger: Ledger) -> None:
    """Finish or undo what an interrupted run left, then forget the images of shards that were deleted since."""
    shards = ledger.swapping()
    if shards is not None:
        _put_in_place(folder, shards)
    for path in folder.iterdir():
        if is_part(path) or path.suffix == _NEW:
            path.unlink()
    held = {sha256 for path in _shards(folder).values() for sha256 in _sha256s(path)}
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
    old = _shards(folder)
    contents = {number: _sha256s(path) for number, path in old.items()}
    if contents == plan and not ledger.spooled:
        return
    with _StoredBytes(ledger, old) as stored:
        for number, rows in plan.items():
            if contents.get(number) != rows:
                with replacing(_new(folder, number)) as path:
                    _write(path, rows, stored)
    if stored.damaged:
        raise DamagedError(stored.damaged)  # recover() removes what was written
    ledger.begin_swap(len(plan))
    _put_in_place(folder, len(plan))
    ledger.end_swap(sha256s)


def _shards(folder: Path) -> dict[int, Path]:
    names = {path: parse_numbered_name(path) for path in sorted(folder.iterdir())}
    return {name[1]: path for path, name in names.items() if name and name[0] == KIND}


def _new(folder: Path, number: int) -> Path:
    return folder / f"{numbered_name(KIND, number)}{_NEW}"


def _put_in_place(folder: Path, shards: int) -> None:
    for number in range(shards):
        if _new(folder, number).exists():
            _new(folder, number).replace(_new(folder, number).with_suffix(""))
    for number, path in _shards(folder).items():
        if number >= shards:
            path.unlink()
    sync(folder)


def _sha256s(path: Path) -> list[str]:
    """The images in a shard; none if it cannot be read."""
    try:
        sha256s: list[str] = pq.read_table(path, columns=["sha256"])["sha256"].to_pylist()
    except (pa.ArrowException, OSError):
        return []
    return sha256s


def _write(path: Path, sha256s: Sequence[str], stored: _StoredBytes) -> None:
    # images are compressed already; statistics and dictionaries of them would only cost space
    with pq.ParquetWriter(
        path, schemas.IMAGES_SCHEMA, compression="none", use_dictionary=False, write_statistics=["sha256"]
    ) as writer:
        group: list[tuple[str, bytes]] = []
        size = 0
        for sha256 in sha256s:
            image = stored.read(sha256)
            if image is not None:
                group.append((sha256, image))
                size += len(image)
            if size >= _GROUP_BYTES or len(group) >= _GROUP_ROWS:
                _write_group(writer, group)
                group, size = [], 0
        if group:
            _write_group(writer, group)


def _write_group(writer: pq.ParquetWriter, group: list[tuple[str, bytes]]) -> None:
    sha256s, images = zip(*group, strict=True)
    writer.write_table(pa.table([pa.array(sha256s), pa.array(images)], schema=schemas.IMAGES_SCHEMA))


class _StoredBytes:
    """Images read back from the spool and from shards, each checked. `damaged` lists those that fail."""

    def __init__(self, ledger: Ledger, shards: dict[int, Path]) -> None:
        self.damaged: list[str] = []
        self._ledger = ledger
        self._files = {number: pq.ParquetFile(path) for number, path in shards.items() if _sha256s(path)}
        self._places = {
            sha256: (number, group, row)
            for number, file in self._files.items()
            for group in range(file.num_row_groups)
            for row, sha256 in enumerate(file.read_row_group(group, ["sha256"])["sha256"].to_pylist())
        }
        self._loaded: tuple[tuple[int, int], pa.ChunkedArray] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def read(self, sha256: str) -> bytes | None:
        try:
            image = self._ledger.read(sha256) or self._from_shard(sha256)
        except (pa.ArrowException, OSError):
            image = None
        if image is None or hashlib.sha256(image).hexdigest() != sha256:
            self.damaged.append(sha256)
            return None
        return image

    def _from_shard(self, sha256: str) -> bytes | None:
        if sha256 not in self._places:
            return None
        number, group, row = self._places[sha256]
        if self._loaded is None or self._loaded[0] != (number, group):
            self._loaded = (number, group), self._files[number].read_row_group(group, ["image"])["image"]
        image: bytes = self._loaded[1][row].as_py()
        return image
