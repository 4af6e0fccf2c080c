"""Finished pieces of the pass: parquet files that carry the stamp of all that went into them."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib.errors import DiskError
from sqid_lib.files import is_part, parse_numbered_name, replacing

_STAMP = b"sqid.stamp"


@dataclass(frozen=True)
class Shard:
    """One file to be: rows `start` to `stop` of `kind` ("texts", "pictures", "products", "queries", "supp")."""

    path: Path
    kind: str
    start: int
    stop: int
    stamp: str

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.stop - self.start


def stamp(*things: Any) -> str:
    """sha256 over tables and plain values."""
    digest = hashlib.sha256()
    for thing in things:
        if isinstance(thing, pa.Table):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, thing.schema) as writer:
                writer.write_table(thing.combine_chunks())
            digest.update(sink.getvalue())
        else:
            digest.update(json.dumps(thing, sort_keys=True).encode())
    return digest.hexdigest()


def is_finished(shard: Shard) -> bool:
    """Whether the file is there, whole, readable and made of the same things."""
    try:
        return bool(read(shard).num_rows == shard.rows)
    except (OSError, pa.ArrowException, ValueError):
        return False


def read(shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """Read a shard back.

    Raises:
        OSError, pa.ArrowException: it cannot be read, or a page does not match its checksum.
        ValueError: it is another shard.
    """
    with pq.ParquetFile(shard.path, page_checksum_verification=True) as file:
        if (file.schema_arrow.metadata or {}).get(_STAMP) != shard.stamp.encode():
            raise ValueError(f"{shard.path} was made of other things")
        return file.read(columns=columns)


def write(shard: Shard, table: pa.Table) -> None:
    """Write one shard; it appears whole or not at all.

    Raises:
        DiskError: no space left, or the disk refused.
    """
    table = table.replace_schema_metadata({_STAMP: shard.stamp.encode()})
    try:
        with replacing(shard.path) as part:
            pq.write_table(table, part, compression="none", use_dictionary=False, write_page_checksum=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DiskError(
            "the disk is full" if full else f"the disk refused: {error}",
            where=shard.path,
            expected=f"room for {table.nbytes / 1e6:.1f} MB",
            fix="Free some space and run again: finished shards are kept." if full else None,
        ) from error


def remove_others(folders: Iterable[Path], keep: Collection[Path]) -> None:
    """Remove shards of an earlier run with more rows, which readers would take for this run's, and torn ones."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_part(path) or (parse_numbered_name(path) and path not in keep):
                path.unlink()
