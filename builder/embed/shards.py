"""Finished parts of the work: parquet files that carry a stamp, the hash of everything they were made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.database import reporting_disk_errors
from sqid_lib.files import is_part, parse_numbered_name, replacing

_STAMP = b"sqid.stamp"


@dataclass(frozen=True)
class Shard:
    """A file to make: rows `start` to `stop` of `kind` ("texts", "images", "products", "queries", "supp")."""

    path: Path
    kind: str
    start: int
    stop: int
    stamp: str

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.stop - self.start


def stamp(*values: Any) -> str:
    """sha256 over tables and plain values."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, pa.Table):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, value.schema) as writer:
                writer.write_table(value.combine_chunks())
            digest.update(sink.getvalue())
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()


def is_finished(shard: Shard) -> bool:
    """Whether the file exists, is whole and readable, and has the same stamp."""
    try:
        return bool(read(shard).num_rows == shard.rows)
    except (OSError, pa.ArrowException, ValueError):
        return False


def read(shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """Read a shard back.

    Raises:
        OSError, pa.ArrowException: it cannot be read, or a page does not match its checksum.
        ValueError: its stamp is another one.
    """
    with pq.ParquetFile(shard.path, page_checksum_verification=True) as file:
        if (file.schema_arrow.metadata or {}).get(_STAMP) != shard.stamp.encode():
            raise ValueError(f"{shard.path} has another stamp")
        return file.read(columns=columns)


def write(shard: Shard, table: pa.Table) -> None:
    """Write one shard; it appears whole or not at all.

    Raises:
        DiskError: no space left, or the disk refused.
    """
    table = table.replace_schema_metadata({_STAMP: shard.stamp.encode()})
    with reporting_disk_errors(shard.path), replacing(shard.path) as part:
        pq.write_table(table, part, compression="none", use_dictionary=False, write_page_checksum=True)


def remove_others(folders: Iterable[Path], keep: Collection[Path]) -> None:
    """Remove shards that are not in `keep`, which readers would take for this run's, and unfinished ones."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_part(path) or (parse_numbered_name(path) and path not in keep):
                path.unlink()
