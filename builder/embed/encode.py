"""Encoding: distinct texts and pictures → vectors, a batched `Dataset.map` per shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.embed import shards
from builder.embed.local import Floats, Tick
from builder.embed.shards import Shard
from sqid_lib import schemas
from sqid_lib.errors import EncoderError
from sqid_lib.tables.vector_columns import fixed_lists

TEXTS, PICTURES = "texts", "pictures"


class Backend(Protocol):
    """What turns texts and pictures into vectors: `local.Local`, or `replicate_backend.Replicate`."""

    @property
    def record(self) -> dict[str, Any]:
        """revision, width, linear, versions: what makes the vectors what they are."""

    def texts(self, texts: Sequence[str], tick: Tick) -> Floats:
        """float32 [N, D]; `tick` is called with the number of texts done."""

    def pictures(self, names: Sequence[str], tick: Tick) -> tuple[Floats, dict[str, str]]:
        """float32 [N, D] with NaN where there is no vector, and the status of pictures that failed."""


def encode(shard: Shard, items: Sequence[str], backend: Backend, width: int, tick: Tick) -> None:
    """Encode one shard of distinct texts or pictures, and write it: status, and vector (null unless ok).

    Raises:
        EncoderError: the model fails, gives another width, or a text vector is not finite.
        DiskError: no space left.
    """
    failed: dict[str, str] = {}

    def vectors(batch: Sequence[str]) -> Floats:
        if shard.kind == TEXTS:
            return backend.texts(batch, tick)
        found, statuses = backend.pictures(batch, tick)
        failed.update(statuses)
        return found

    matrix = _map(vectors, items, width, shard.stamp)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(matrix).all(axis=1))
    if shard.kind == TEXTS and not finite.all():
        bad = items[int(np.argmin(finite))]
        raise EncoderError("the vector of a text is not finite", where=shard.path, got=repr(bad[:80]), fix=_FINITE)
    status = [schemas.OK if ok else failed.get(item, "non_finite") for ok, item in zip(finite, items, strict=True)]
    matrix[~finite] = 0
    columns = {"status": pa.array(status, pa.string()), "vector": fixed_lists(matrix, null=~finite)}
    shards.write(shard, pa.table(columns))


_FINITE = 'Set encoder.dtype = "float32", or check the weights.'


def _map(vectors: Callable[[Sequence[str]], Floats], items: Sequence[str], width: int, fingerprint: str) -> Floats:
    """float32 [N, width] of items, through `datasets`."""
    import datasets

    def batch_vectors(batch: dict[str, list[str]]) -> pa.Table:
        # as python lists they would be written 20 times slower
        return pa.table({"vector": fixed_lists(vectors(batch["item"]))})

    fixed_list = getattr(datasets, "List", None) or datasets.Sequence  # datasets 3.x has no List
    with _quiet_datasets():
        mapped = datasets.Dataset.from_dict(
            {"item": list(items)}
        ).map(
            batch_vectors,
            batched=True,
            batch_size=len(items),  # the encoder makes its own batches, by length, and reads ahead through all of them
            remove_columns=["item"],
            features=datasets.Features({"vector": fixed_list(datasets.Value("float32"), length=width)}),
            new_fingerprint=fingerprint[:32],  # hashing a function that holds the model takes seconds
            keep_in_memory=True,  # what lasts is the shard
        )
    flat = mapped.data.column("vector").combine_chunks().flatten()
    return np.array(flat, np.float32).reshape(len(items), width)


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No bar of `datasets` within ours."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()
