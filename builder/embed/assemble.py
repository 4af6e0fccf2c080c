"""Vectors of distinct texts and images → a row per product and query, in the order of sample."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.embed import shards
from builder.embed.inputs import IMAGES, QUERIES, TEXTS, Items, Part
from builder.embed.shards import Shard
from sqid_lib import schemas
from sqid_lib.encoders.batching import Floats
from sqid_lib.tables.vector_columns import fixed_lists

_KEPT = 64  # item shards in memory at once: 64 × 2,000 vectors of 768 floats are 0.4 GB


def shard_schema(part: str, width: int) -> pa.Schema:
    """Columns of WORK/embed/<part>-*.parquet: ids, final image_status, vectors float32[width] (image: null if none)."""
    vector = pa.list_(pa.float32(), width)
    if part == QUERIES:
        return pa.schema([("query_id", pa.int64()), ("clip_text_features", vector)])
    return pa.schema(
        [
            *((name, pa.string()) for name in (*schemas.PRODUCT_KEY, "image_status")),
            ("clip_text_features", vector),
            ("clip_image_features", vector),
        ]
    )


class ItemVectors:
    """The finished item shards, read as they are needed.

    Args:
        items: kind ("texts", "images") → its shards, in order.
        shard_rows: rows of every shard but the last of its kind.
        width: D.
    """

    def __init__(self, items: dict[str, list[Shard]], shard_rows: int, width: int) -> None:
        self._items, self._rows, self._width = items, shard_rows, width
        self._load = lru_cache(maxsize=_KEPT)(self._read)

    def assemble(self, part: Part, shard: Shard) -> pa.Table:
        """The rows of one shard of a part."""
        span = slice(shard.start, shard.stop)
        _, texts = self._take(TEXTS, part.text[span])
        ids = part.ids.slice(shard.start, shard.rows)
        columns: dict[str, Any] = {name: ids[name] for name in ids.column_names}
        columns["clip_text_features"] = fixed_lists(texts)
        if part.name != QUERIES:
            statuses, images = self._take(IMAGES, part.image[span])
            failed = pa.array(statuses != schemas.OK)
            columns["image_status"] = pc.if_else(failed, pa.array(statuses, pa.string()), ids["image_status"])
            none = (part.image[span] < 0) | (statuses != schemas.OK)
            columns["clip_image_features"] = fixed_lists(images, null=none)
        schema = shard_schema(part.name, self._width)
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _take(self, kind: str, items: Items) -> tuple[np.ndarray, Floats]:
        """Status ("ok" where item is −1) and vector (zeros where there is none) of each item."""
        statuses = np.full(len(items), schemas.OK, object)
        vectors = np.zeros((len(items), self._width), np.float32)
        owner = np.where(items < 0, -1, items // self._rows)
        for number in np.unique(owner[owner >= 0]):
            rows = np.flatnonzero(owner == number)
            status, matrix = self._load(kind, int(number))
            statuses[rows], vectors[rows] = status[items[rows] % self._rows], matrix[items[rows] % self._rows]
        return statuses, vectors

    def _read(self, kind: str, number: int) -> tuple[np.ndarray, Floats]:
        shard = self._items[kind][number]
        table = shards.read(shard)
        flat = pc.fill_null(table["vector"].combine_chunks().values, 0.0)
        return np.array(table["status"].to_pylist(), object), np.asarray(flat, np.float32).reshape(shard.rows, -1)
