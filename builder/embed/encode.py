"""One task of embed: a shard of distinct texts or images → their vectors, with a batched `Dataset.map`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.embed import shards
from builder.embed.inputs import TEXTS
from builder.embed.local import Local
from builder.embed.shards import Shard
from builder.engines import Tick, Work
from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.encoders.batching import Floats, VectorBatches
from sqid_lib.errors import EncoderError
from sqid_lib.tables.vector_columns import fixed_lists

log = logging.getLogger(__name__)

_FINITE = 'Set encoder.dtype = "float32", or check the weights.'


class Backend(Protocol):
    """What turns texts and images into vectors: `local.Local`, or `replicate.Replicate`."""

    @property
    def record(self) -> dict[str, Any]:
        """revision, width, linear, versions: what the vectors depend on."""

    def texts(self, texts: Sequence[str]) -> VectorBatches:
        """The texts in the batches that suit them."""

    def images(self, names: Sequence[str]) -> tuple[VectorBatches, dict[str, str]]:
        """The images in batches, rows of NaN where there is no vector, and a dict that gets the status of each such
        image, if it has one, before its vectors come.
        """


@dataclass(frozen=True)
class EncodeTask:
    """A shard to write, and its texts or the names of its images."""

    shard: Shard
    items: Sequence[str]


def open_backend(recipe: Recipe, work: Path, record: dict[str, Any], place: str) -> Backend:
    """The recipe's backend on a device.

    Args:
        record: revision and linear to use, of a recipe or of an earlier `Backend.record`.
    """
    if recipe.encoder.backend == "replicate":
        from builder.embed.replicate import Replicate

        return Replicate(recipe)
    return Local(recipe, work, place, record)


@dataclass(frozen=True)
class OpenEncoder:
    """Opens the worker of embed at a place: a model on a device. Arguments as for `open_backend`.

    Attributes:
        backend: one that is open in this process already; a pickled copy opens its own.
    """

    recipe: Recipe
    work: Path
    record: dict[str, Any]
    backend: Backend | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "backend": None}

    @contextmanager
    def __call__(self, place: str) -> Iterator[Work[EncodeTask]]:
        backend = self.backend or open_backend(self.recipe, self.work, self.record, place)

        def complete(task: EncodeTask, tick: Tick) -> None:
            if shards.is_finished(task.shard):
                tick(task.shard.rows)
            else:
                encode(task.shard, task.items, backend, self.record["width"], tick)
                log.info("embed: wrote %s", task.shard.path.name)

        yield complete


def encode(shard: Shard, items: Sequence[str], backend: Backend, width: int, tick: Tick) -> None:
    """Encode one shard of distinct texts or images, and write it: status, and vector (null unless ok).

    Raises:
        EncoderError: the model fails, gives another width, or a text vector is not finite.
        DiskError: no space left.
    """
    failed: dict[str, str] = {}
    if shard.kind == TEXTS:
        batches = backend.texts(items)
    else:
        batches, failed = backend.images(items)
    matrix = _map(batches, len(items), width, shard.stamp, tick)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(matrix).all(axis=1))
    if shard.kind == TEXTS and not finite.all():
        bad = items[int(np.argmin(finite))]
        raise EncoderError("the vector of a text is not finite", where=shard.path, got=repr(bad[:80]), fix=_FINITE)
    status = [schemas.OK if ok else failed.get(item, "non_finite") for ok, item in zip(finite, items, strict=True)]
    matrix[~finite] = 0
    columns = {"status": pa.array(status, pa.string()), "vector": fixed_lists(matrix, null=~finite)}
    shards.write(shard, pa.table(columns))


def _map(batches: VectorBatches, items: int, width: int, fingerprint: str, tick: Tick) -> Floats:
    """float32 [items, width] through a `Dataset` with one row for each batch, which is sized and sorted already."""
    import datasets

    def encode_batch(_: dict[str, list[list[int]]]) -> pa.Table:
        vectors = next(batches.vectors)  # of this batch: the encoder works one batch ahead
        tick(len(vectors))
        return pa.table({"vector": fixed_lists(vectors)})  # python lists would be written 20 times slower

    fixed_list = getattr(datasets, "List", None) or datasets.Sequence  # datasets 3.x has no List
    with _quiet_datasets():
        mapped = datasets.Dataset.from_dict({"rows": batches.rows}).map(
            encode_batch,
            batched=True,
            batch_size=1,
            remove_columns=["rows"],
            features=datasets.Features({"vector": fixed_list(datasets.Value("float32"), length=width)}),
            new_fingerprint=fingerprint[:32],  # hashing a function that holds the model takes seconds
            keep_in_memory=True,  # the result is the shard
        )
    assert next(batches.vectors, None) is None, "more vectors than batches"
    vectors = np.empty((items, width), np.float32)
    flat = mapped.data.column("vector").combine_chunks().flatten()
    vectors[np.concatenate(batches.rows)] = np.asarray(flat).reshape(items, width)
    return vectors


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No progress bar of `datasets` within ours."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()
