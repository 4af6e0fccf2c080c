"""Parquet files of the stage that carry a checksum of all their bytes, and are checked before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from builder.database import reporting_disk_errors
from sqid_lib.errors import CorruptFileError
from sqid_lib.files import is_part, replacing

_NAME, _BLANK = b"sqid.sha256", b"0" * 64
_MARK = _NAME + b"\x18@"  # as parquet's footer has it: the key, then a field of 64 bytes


def write(path: Path, table: pa.Table, metadata: Mapping[str, str]) -> None:
    """Write a shard with `metadata` in its schema; it appears whole or not at all. Equal tables give equal bytes.

    Raises:
        DiskError: no space left, or the disk refused.
    """
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({name.encode(): value for name, value in metadata.items()} | {_NAME: _BLANK})
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    data = bytearray(sink.getvalue())
    at = data.rindex(_MARK) + len(_MARK)
    data[at : at + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    with reporting_disk_errors(path), replacing(path) as part:
        part.write_bytes(data)


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard back; its metadata are those of the schema.

    Raises:
        CorruptFileError: it is not what `write` wrote; nothing of it was parsed.
        FileNotFoundError, OSError: it is not there or cannot be read.
    """
    data = path.read_bytes()
    if not _is_whole(data):
        raise CorruptFileError("does not match its checksum", where=path, fix="Run the embed stage again.")
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(columns=columns, use_threads=False)  # threads would keep memory, and save nothing


def _is_whole(data: bytes) -> bool:
    at = data.rfind(_MARK) + len(_MARK)
    if at < len(_MARK):
        return False
    view = memoryview(data)
    digest = hashlib.sha256(view[:at])
    digest.update(_BLANK)
    digest.update(view[at + len(_BLANK) :])
    return digest.hexdigest().encode() == data[at : at + len(_BLANK)]


def remove_damaged(paths: Iterable[Path]) -> list[str]:
    """Delete the files among some that do not match their checksum; returns their names."""
    damaged = []
    for path in paths:
        try:
            read(path, [])
        except CorruptFileError:
            path.unlink()
            damaged.append(path.name)
    return damaged


def metadata(table: pa.Table, name: str) -> str:
    """One value of the metadata of `write`; "" where there is none."""
    return str((table.schema.metadata or {}).get(name.encode(), b"").decode())


def remove_unfinished(folders: Iterable[Path]) -> None:
    """Remove the temporary files of a killed run."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_part(path):
                path.unlink()
