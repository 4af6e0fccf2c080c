"""The rows for the release, WORK/embed/{products,queries,supp}-*.parquet: a row per product or query."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from builder.embed import shards
from builder.embed.inputs import IMAGES, QUERIES, TEXTS, Inputs, Part
from builder.embed.items import Items, Numbers
from builder.embed.vectors import Found, Vectors
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError
from sqid_lib.files import numbered_name, parse_numbered_name
from sqid_lib.tables.vector_columns import fixed_lists

_STAMP = "sqid.stamp"


def shard_schema(part: str, width: int) -> pa.Schema:
    """Columns of WORK/embed/<part>-*.parquet: ids, final image_status, vectors float32[width] (image: null if none).

    Null is in a list of variable length: pyarrow before 26 cannot read it back from one of fixed length.
    """
    vector = pa.list_(pa.float32(), width)
    if part == QUERIES:
        return pa.schema([("query_id", pa.int64()), ("clip_text_features", vector)])
    return pa.schema(
        [
            *((name, pa.string()) for name in (*schemas.PRODUCT_KEY, "image_status")),
            ("clip_text_features", vector),
            ("clip_image_features", pa.list_(pa.float32())),
        ]
    )


@dataclass(frozen=True)
class Shard:
    """A file to make: rows `start` to `stop` of a part.

    Attributes:
        stamp: hash of everything it is made of.
    """

    path: Path
    part: Part
    start: int
    stop: int
    stamp: str

    @property
    def span(self) -> slice:
        """Its rows."""
        return slice(self.start, self.stop)


def plan(folder: Path, inputs: Inputs, size: int, encoder: str, limits: Mapping[str, Any]) -> list[Shard]:
    """All shards of rows.

    Args:
        size: rows of each but the last one of a part.
        encoder: the key of the encoder's folder.
        limits: which images are decoded, as of `record.limits`.
    """
    planned = []
    for part in inputs.parts:
        for number, start in enumerate(range(0, part.ids.num_rows, size)):
            span = slice(start, min(start + size, part.ids.num_rows))
            ids = part.ids.slice(span.start, span.stop - span.start)
            stamp = _stamp(f"{encoder} {sorted(limits.items())}", ids, *_contents(part, span, inputs.items))
            planned.append(Shard(folder / numbered_name(part.name, number), part, span.start, span.stop, stamp))
    return planned


def unfinished(planned: list[Shard]) -> tuple[list[Shard], list[Path]]:
    """The shards that are not there or made of something else, and the files among them that are damaged."""
    missing, damaged = [], []
    for shard in planned:
        try:
            if shards.metadata(shards.read(shard.path), _STAMP) == shard.stamp:
                continue
        except FileNotFoundError:
            pass
        except CorruptFileError:
            damaged.append(shard.path)
        missing.append(shard)
    return missing, damaged


def remove_others(folder: Path, planned: list[Shard]) -> None:
    """Remove shards of rows that are not planned, which the release would take for this run's."""
    keep = {shard.path for shard in planned}
    for path in folder.glob("*.parquet"):
        if parse_numbered_name(path) and path not in keep:
            path.unlink()


def write(shard: Shard, vectors: Vectors, found: dict[str, Found], width: int) -> None:
    """Write one shard.

    Args:
        found: kind → where the vectors of all its items are.

    Raises: as `shards.write`.
    """
    part, span = shard.part, shard.span

    def take(kind: str, numbers: Numbers) -> Any:
        return vectors.take(kind, found[kind].of(numbers), width)

    _, texts = take(TEXTS, part.text[span])
    ids = part.ids.slice(shard.start, shard.stop - shard.start)
    columns: dict[str, Any] = {name: ids[name] for name in ids.column_names}
    columns["clip_text_features"] = fixed_lists(texts)
    if part.name != QUERIES:
        statuses, images = take(IMAGES, part.image[span])
        failed = statuses != schemas.OK
        columns["image_status"] = pc.if_else(pa.array(failed), pa.array(statuses, pa.string()), ids["image_status"])
        missing = pa.array((part.image[span] < 0) | failed)
        lists = fixed_lists(images).cast(pa.list_(pa.float32()))
        columns["clip_image_features"] = pc.if_else(missing, pa.scalar(None, lists.type), lists)
    schema = shard_schema(part.name, width)
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    shards.write(shard.path, table, {_STAMP: shard.stamp})


def _contents(part: Part, span: slice, items: dict[str, Items]) -> Iterator[Any]:
    """What the vectors of some rows are made of: which rows have a text or an image, and the digests of these."""
    for kind, numbers in ((TEXTS, part.text[span]), (IMAGES, part.image[span])):
        yield (numbers >= 0).tobytes()
        yield pa.table({"digest": items[kind].digests.take(pa.array(numbers[numbers >= 0]))})


def _stamp(encoder: str, *values: pa.Table | bytes) -> str:
    digest = hashlib.sha256(encoder.encode())
    for value in values:
        if isinstance(value, pa.Table):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, value.schema) as writer:
                writer.write_table(value.combine_chunks())
            value = sink.getvalue()
        digest.update(value)
    return digest.hexdigest()
