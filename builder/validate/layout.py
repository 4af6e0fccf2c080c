"""The schema of a file and the sizes of its row groups."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from builder.release.files import MAX_SHARD_BYTES
from builder.validate.problem import Problem

MAX_GROUP_BYTES = 100_000_000


def as_declared(schema: pa.Schema, expected: pa.Schema) -> list[str]:
    """Columns that are there once and have the declared type; vectors may have any width."""

    def alike(got: pa.DataType, wanted: pa.DataType) -> bool:
        if pa.types.is_fixed_size_list(wanted):
            return bool(pa.types.is_fixed_size_list(got) and got.value_type == wanted.value_type)
        return bool(got == wanted)

    once = [field for field in schema if field.name in expected.names and schema.names.count(field.name) == 1]
    return [field.name for field in once if alike(field.type, expected.field(field.name).type)]


def check_schema(schema: pa.Schema, expected: pa.Schema, name: str) -> Iterator[Problem]:
    """Columns are those declared, each once, in order and with their types."""
    for field in expected:
        if field.name not in schema.names:
            yield Problem("schema", name, f"column {field.name} is missing")
        elif schema.names.count(field.name) != 1:
            yield Problem("schema", name, f"column {field.name} occurs twice")
        elif schema.field(field.name).type != field.type:
            yield Problem("schema", name, f"column {field.name} is {schema.field(field.name).type}, not {field.type}")
    for column in schema.names:
        if column not in expected.names:
            yield Problem("schema", name, f"column {column} is not declared")
    if schema.names != expected.names and sorted(schema.names) == sorted(expected.names):
        yield Problem("schema", name, "columns are in another order than declared")
    if b"huggingface" in (schema.metadata or {}):
        yield Problem("schema", name, "holds metadata of datasets, which other generations of datasets refuse")


def check_layout(metadata: pq.FileMetaData, size: int, name: str) -> Iterator[Problem]:
    """Shards and row groups are not too large; `size` in bytes."""
    if size > MAX_SHARD_BYTES:
        yield Problem("layout", name, f"{size:,} bytes; a shard has at most {MAX_SHARD_BYTES:,}")
    for i in range(metadata.num_row_groups):
        if metadata.row_group(i).total_byte_size > MAX_GROUP_BYTES:
            found = metadata.row_group(i).total_byte_size
            yield Problem("layout", name, f"row group {i} has {found:,} bytes, more than {MAX_GROUP_BYTES:,}")
            return
