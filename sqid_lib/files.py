"""Input files, names of shards, and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

from sqid_lib.errors import without_secrets

_SHARD = re.compile(r"(?P<split>[A-Za-z0-9_.]+)-(?P<shard>\d{5})-of-(?P<shards>\d{5})\.parquet")
_NUMBERED = re.compile(r"(?P<kind>[a-z]+)-(?P<number>\d{5})\.parquet")
_FOLDER = re.compile(r"part-\d{5}")
_PART = re.compile(r"\..+\.(?P<process>\d+)-\d+\.part")
_BLOCK = 1 << 20  # bytes read at once: they stay in the processor's cache while they are hashed


@dataclass(frozen=True)
class File:
    """One input file.

    Attributes:
        url: its name in messages: a local path, an http(s) URL, or hf:// at a commit.
        version: changes with its content.
        path: where it is read: a local path, or the URL again, of which ranges are read.
    """

    url: str
    version: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            object.__setattr__(self, "path", self.url)

    @property
    def local(self) -> bool:
        """Whether it lies on a disk of this machine, and was not downloaded."""
        return "://" not in self.url

    def __str__(self) -> str:
        return without_secrets(self.url)


class ShardName(NamedTuple):
    """What the file name of a shard of a release says: shard `shard` of `shards`, from 0."""

    split: str
    shard: int
    shards: int


def shard_name(config: str, split: str, shard: int, shards: int) -> str:
    """Path of one parquet file of a release, relative to the release."""
    return f"data/{config}/{split}-{shard:05d}-of-{shards:05d}.parquet"


def parse_shard_name(path: str | Path) -> ShardName | None:
    """The reverse of `shard_name`, for a path or a file name; None for any other name."""
    match = _SHARD.fullmatch(Path(path).name)
    return ShardName(match["split"], int(match["shard"]), int(match["shards"])) if match else None


def numbered_name(kind: str, number: int) -> str:
    """File name of one shard of a stage, such as "images-00000.parquet"."""
    return f"{kind}-{number:05d}.parquet"


def parse_numbered_name(path: str | Path) -> tuple[str, int] | None:
    """The reverse of `numbered_name`; None for any other name."""
    match = _NUMBERED.fullmatch(Path(path).name)
    return (match["kind"], int(match["number"])) if match else None


def part_folder(folder: Path, number: int) -> Path:
    """Where a stage keeps what one of several machines made."""
    return folder / f"part-{number:05d}"


def part_folders(folder: Path) -> list[Path]:
    """The folder of a stage, which holds what was made on one machine, and those of `part_folder` in it."""
    return [folder, *sorted(path for path in folder.glob("part-*") if _FOLDER.fullmatch(path.name) and path.is_dir())]


def is_part(path: Path) -> bool:
    """Whether the name is that of a temporary file of `replacing`, left by a killed process if nobody writes it."""
    return _PART.fullmatch(path.name) is not None


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of `replacing` that killed processes left in a folder and below it.

    Those of a process that still runs are kept; no other file is touched.
    """
    for path in folder.rglob(".*.part"):
        match = _PART.fullmatch(path.name)
        if match and not _runs(int(match["process"])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether another process of this number runs; our own starts now and has no temporary file yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True


def checksum(path: Path) -> str:
    """xxh3_128 of a file's bytes in hex, 32 digits: finds any damage, at some 10 GB/s; no protection from forgery.

    Raises:
        OSError: it cannot be read.
    """
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:  # not mapped: pages that are mapped count as memory of the process
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def text_checksum(text: str) -> str:
    """xxh3_128 of a text in hex, for small files that carry their own checksum."""
    return xxhash.xxh3_128_hexdigest(text.encode())


def sha256(path: Path) -> str:
    """sha256 of a file's bytes in hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes its place, otherwise it is removed.

    A device or pipe, such as /dev/stdout, is written to as it is.
    """
    # /dev/stdout may be a regular file at its end
    if is_stream(path) or (path.is_symlink() and path.readlink().is_relative_to("/proc")):
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:64]}.{os.getpid()}-{threading.get_native_id()}.part")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def is_stream(path: Path) -> bool:
    """Whether it is there and neither a file nor a directory: a device or a pipe."""
    return path.exists() and not (path.is_file() or path.is_dir())


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file so that a reader sees all of it or none."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def sync(path: Path) -> None:
    """fsync of a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
