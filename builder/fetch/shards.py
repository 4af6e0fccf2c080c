"""The distinct pictures as parquet shards, in the order of the first product: the same bytes whatever came first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from builder.fetch.ledger import Ledger
from sqid_lib import schemas
from sqid_lib.files import replacing, sync

_GROUP_BYTES = 8 << 20  # of pictures in one row group
_GROUP_ROWS = 128


class DamagedError(Exception):
    """Kept bytes that are no longer what their sha256 says; `sha256s` names them."""

    def __init__(self, sha256s: Sequence[str]) -> None:
        super().__init__(f"{len(sha256s)} pictures are damaged")
        self.sha256s = sha256s


def recover(folder: Path, ledger: Ledger) -> None:
    """Finish or undo what a kill interrupted, then forget pictures whose shard somebody deleted."""
    shards = ledger.swapping()
    if shards is not None:
        _put_in_place(folder, shards)
    for leftover in (*folder.glob("images-*.parquet.new"), *folder.glob(".images-*.part")):
        leftover.unlink()
    held = {sha256 for path in _shards(folder).values() for sha256 in _sha256s(path)}
    if shards is not None:
        ledger.end_swap(held)
    ledger.forget_pictures(ledger.sharded() - held)


def assemble(folder: Path, ledger: Ledger, sha256s: Sequence[str], shard_rows: int) -> None:
    """Make folder/images-00000.parquet … hold exactly these pictures, `shard_rows` each, in this order.

    Disk: until the end, the shards that change are there twice, or once and in the spool.

    Raises:
        DamagedError: kept bytes do not have their sha256; nothing was changed.
    """
    plan = {i // shard_rows: list(sha256s[i : i + shard_rows]) for i in range(0, len(sha256s), shard_rows)}
    old = _shards(folder)
    contents = {number: _sha256s(path) for number, path in old.items()}
    if contents == plan and not ledger.spooled:
        return
    with _Pictures(ledger, old) as pictures:
        for number, rows in plan.items():
            if contents.get(number) != rows:
                with replacing(_new(folder, number)) as path:
                    _write(path, rows, pictures)
    if pictures.damaged:
        raise DamagedError(pictures.damaged)  # recover() removes what was written
    ledger.begin_swap(len(plan))
    _put_in_place(folder, len(plan))
    ledger.end_swap(sha256s)


def _shards(folder: Path) -> dict[int, Path]:
    return {int(path.stem.removeprefix("images-")): path for path in sorted(folder.glob("images-[0-9]*.parquet"))}


def _new(folder: Path, number: int) -> Path:
    return folder / f"images-{number:05d}.parquet.new"


def _put_in_place(folder: Path, shards: int) -> None:
    for number in range(shards):
        if _new(folder, number).exists():
            _new(folder, number).replace(_new(folder, number).with_suffix(""))
    for number, path in _shards(folder).items():
        if number >= shards:
            path.unlink()
    sync(folder)


def _sha256s(path: Path) -> list[str]:
    """The pictures in a shard; none if it cannot be read."""
    try:
        sha256s: list[str] = pq.read_table(path, columns=["sha256"])["sha256"].to_pylist()
    except (pa.ArrowException, OSError):
        return []
    return sha256s


def _write(path: Path, sha256s: Sequence[str], pictures: _Pictures) -> None:
    # pictures are compressed already; statistics and dictionaries of them would only cost space
    with pq.ParquetWriter(
        path, schemas.IMAGES_SCHEMA, compression="none", use_dictionary=False, write_statistics=["sha256"]
    ) as writer:
        group: list[tuple[str, bytes]] = []
        size = 0
        for sha256 in sha256s:
            picture = pictures.read(sha256)
            if picture is not None:
                group.append((sha256, picture))
                size += len(picture)
            if size >= _GROUP_BYTES or len(group) >= _GROUP_ROWS:
                _write_group(writer, group)
                group, size = [], 0
        if group:
            _write_group(writer, group)


def _write_group(writer: pq.ParquetWriter, group: list[tuple[str, bytes]]) -> None:
    sha256s, pictures = zip(*group, strict=True)
    writer.write_table(pa.table([pa.array(sha256s), pa.array(pictures)], schema=schemas.IMAGES_SCHEMA))


class _Pictures:
    """Pictures read back from the spool and from shards, each checked. `damaged` lists those that fail."""

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
        self._descriptor = os.open(self._ledger.spool, os.O_RDONLY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        for file in self._files.values():
            file.close()

    def read(self, sha256: str) -> bytes | None:
        try:
            picture = self._find(sha256)
        except (pa.ArrowException, OSError):
            picture = None
        if picture is None or hashlib.sha256(picture).hexdigest() != sha256:
            self.damaged.append(sha256)
            return None
        return picture

    def _find(self, sha256: str) -> bytes | None:
        if place := self._ledger.place(sha256):
            offset, length = place
            return os.pread(self._descriptor, length, offset)
        if sha256 not in self._places:
            return None
        number, group, row = self._places[sha256]
        if self._loaded is None or self._loaded[0] != (number, group):
            self._loaded = (number, group), self._files[number].read_row_group(group, ["image"])["image"]
        picture: bytes = self._loaded[1][row].as_py()
        return picture
