"""Finished pieces of the pass: parquet files that carry the stamp of all that went into them."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.atomic import replacing
from sqid_lib.errors import DiskError

PRODUCTS, SUPP, QUERIES = "products", "supp", "queries"
_NAME = re.compile(rf"({PRODUCTS}|{SUPP}|{QUERIES})-\d{{5}}\.parquet")
_STAMP = b"sqid.stamp"


def shard_schema(part: str, width: int) -> pa.Schema:
    """Columns of WORK/embed/<part>-*.parquet: ids, final image_status, vectors float32[width] (image: null if none)."""
    vector = pa.list_(pa.float32(), width)
    if part == QUERIES:
        return pa.schema([("query_id", pa.int64()), ("clip_text_features", vector)])
    return pa.schema(
        [
            *((name, pa.string()) for name in ("product_locale", "product_id", "image_status")),
            ("clip_text_features", vector),
            ("clip_image_features", vector),
        ]
    )


def stamp(identity: dict[str, Any], inputs: pa.Table) -> str:
    """sha256 over what makes the vectors and what they are made of."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, inputs.schema) as writer:
        writer.write_table(inputs.combine_chunks())
    digest.update(sink.getvalue())
    return digest.hexdigest()


def is_finished(path: Path, stamp: str, rows: int) -> bool:
    """Whether the file is whole, readable and made of the same things."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            return metadata.get(_STAMP) == stamp.encode() and file.read().num_rows == rows
    except (OSError, pa.ArrowException):
        return False


def write(path: Path, table: pa.Table, stamp: str) -> None:
    """Write one shard; it appears whole or not at all.

    Raises:
        DiskError: no space left, or the disk refused.
    """
    table = table.replace_schema_metadata({_STAMP: stamp.encode()})
    try:
        with replacing(path) as part:
            pq.write_table(table, part, compression="none", use_dictionary=False, write_page_checksum=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DiskError(
            "the disk is full" if full else f"the disk refused: {error}",
            where=path,
            expected=f"room for {table.nbytes / 1e6:.0f} MB",
            fix="Free some space and run again: finished shards are kept." if full else None,
        ) from error


def remove_others(folder: Path, keep: Collection[Path]) -> None:
    """Remove shards of an earlier run with more rows, which readers would take for this run's."""
    for path in folder.glob("*.parquet"):
        if _NAME.fullmatch(path.name) and path not in keep:
            path.unlink()
