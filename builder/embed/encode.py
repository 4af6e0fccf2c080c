"""One task of embed: some texts or images → a file of their vectors, with a batched `Dataset.map`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.embed import vectors
from builder.embed.inputs import TEXTS
from builder.embed.items import Items, Numbers
from builder.embed.local import Local
from builder.embed.vector_store import VectorStore
from builder.engines import MapAhead, Tick, Work
from builder.progress import note
from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.encoders.batching import Floats, VectorBatches
from sqid_lib.errors import EncoderError
from sqid_lib.object_store import ObjectStore
from sqid_lib.stored_images import as_digests
from sqid_lib.tables.vector_columns import fixed_lists

log = logging.getLogger(__name__)

_GIVEN_UP = "error"
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
    """A file of vectors to make.

    Attributes:
        kind: "texts" or "images".
        items: the texts, or the names of the images.
        digests: of the items, one behind the other, 32 bytes each.
        settings: to be kept with the vectors.
        given_up: items that end their workers.
        trial: whether the vectors are thrown away.
    """

    path: Path
    kind: str
    items: Sequence[str]
    digests: bytes
    settings: Mapping[str, Any]
    given_up: frozenset[str] = frozenset()
    trial: bool = False

    def __str__(self) -> str:
        return self.path.name

    def only(self, trial: range) -> Self:
        """As `builder.engines.Divisible`."""
        return replace(self, items=self.items[trial.start : trial.stop], digests=b"", trial=True)

    def without(self, given_up: Sequence[int]) -> Self:
        """As `builder.engines.Divisible`: these images get the status "error"."""
        return replace(self, given_up=frozenset(self.items[number] for number in given_up))


class EncodeTasks(Sequence[EncodeTask]):
    """A task for every `size` items that have no vector yet, made when it is asked for: the items of all do not fit.

    Args:
        paths: names of files that do not exist.
        blocks: ascending; the items of one block are sorted, so that batches, and the last bits of vectors with them,
            do not depend on where images are stored.
    """

    def __init__(
        self, kind: str, missing: Items, size: int, paths: Iterator[Path], settings: Mapping[str, Any], blocks: Numbers
    ) -> None:
        self._kind, self._items, self._size, self._settings, self._blocks = kind, missing, size, settings, blocks
        self._paths = [next(paths) for _ in range(0, len(missing.values), size)]

    @property
    def paths(self) -> Sequence[Path]:
        """The file of each task."""
        return self._paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, number: int) -> EncodeTask: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[EncodeTask]: ...
    def __getitem__(self, number: int | slice) -> EncodeTask | Sequence[EncodeTask]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        path, start = self._paths[number], range(len(self))[number] * self._size
        values = self._items.values.slice(start, self._size)
        digests = self._items.digests.slice(start, self._size).to_pylist()
        blocks = self._blocks[start : start + self._size].tolist()
        ordered = sorted(zip(blocks, values, digests, strict=True))
        digests = b"".join(digest for _, _, digest in ordered)
        return EncodeTask(path, self._kind, [value for _, value, _ in ordered], digests, self._settings)


def open_backend(
    recipe: Recipe,
    work: Path,
    record: dict[str, Any],
    place: str,
    store: ObjectStore | None = None,
    map_ahead: MapAhead | None = None,
) -> Backend:
    """The recipe's backend on a device.

    Args:
        store: where the images are, if that is not `work`.
        map_ahead: what decodes images, if not threads of this process.
        record: revision and linear to use, of a recipe or of an earlier `Backend.record`.
    """
    if recipe.encoder.backend == "replicate":
        from builder.embed.replicate import Replicate

        note(f"embed: asking Replicate for {recipe.encoder.model}")
        return Replicate(recipe)
    revision = "" if Path(recipe.encoder.model).is_dir() else f" (revision {record['revision']})"
    note(f"embed: loading {recipe.encoder.model}{revision} on {place}")
    return Local(recipe, work, place, record, store, map_ahead)


@dataclass(frozen=True)
class OpenEncoder:
    """Opens the worker of embed at a place: a model on a device. Arguments as for `open_backend`.

    Attributes:
        backend: one that is open in this process already; a pickled copy opens its own.
        store: where images are read and vectors are kept, if that is not `work`.
        map_ahead: as of the engine.
    """

    recipe: Recipe
    work: Path
    record: dict[str, Any]
    backend: Backend | None = None
    store: VectorStore | None = None
    map_ahead: MapAhead | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "backend": None}

    @contextmanager
    def __call__(self, place: str) -> Iterator[Work[EncodeTask]]:
        images = self.store.store if self.store else None
        backend = self.backend
        if backend is None:
            backend = open_backend(self.recipe, self.work, self.record, place, images, self.map_ahead)

        def complete(task: EncodeTask, tick: Tick) -> None:
            if task.trial:
                encode(task, backend, self.record["width"], lambda *_: None)
            elif self.store is None:
                make(task, tick)
            else:
                with self.store.placed(task.path) as path:
                    make(replace(task, path=path), tick)

        def make(task: EncodeTask, tick: Tick) -> None:
            if vectors.holds(task.path, as_digests(task.digests)):
                tick(len(task.items))
            else:
                encode(task, backend, self.record["width"], tick)
                log.info("embed: wrote %s", task)

        yield complete


def encode(task: EncodeTask, backend: Backend, width: int, tick: Tick) -> None:
    """Encode the items of a task and write the file, unless it is a trial.

    Raises:
        EncoderError: the model fails, gives another width, or a text vector is not finite, or a text is given up.
        DiskError: no space left.
    """
    items = [item for item in task.items if item not in task.given_up]
    if task.kind == TEXTS:
        _refuse(task, "a text ends the workers that encode it", task.given_up, "The cause is in Ray's log.")
        batches, failed = backend.texts(items), dict[str, str]()
    else:
        batches, failed = backend.images(items)
    fingerprint = hashlib.sha256(task.digests or "".join(items).encode()).hexdigest()
    matrix = _map(batches, len(items), width, fingerprint, tick)
    if task.trial:
        return
    if task.given_up:
        of_items, matrix = matrix, np.full((len(task.items), width), np.nan, np.float32)
        matrix[[item not in task.given_up for item in task.items]] = of_items
        failed |= dict.fromkeys(task.given_up, _GIVEN_UP)
        tick(len(task.given_up))
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(matrix).all(axis=1))
    if task.kind == TEXTS:
        infinite = [task.items[row] for row in np.flatnonzero(~finite)[:1]]
        _refuse(task, "the vector of a text is not finite", infinite, _FINITE)
    statuses = [
        schemas.OK if ok else failed.get(item, "non_finite") for ok, item in zip(finite, task.items, strict=True)
    ]
    vectors.write(task.path, as_digests(task.digests), statuses, matrix, task.settings)


def _refuse(task: EncodeTask, what: str, texts: Iterable[str], fix: str) -> None:
    """Raise EncoderError if there is such a text: each needs a vector."""
    for text in texts:
        raise EncoderError(what, where=task.path, got=repr(text[:80]), fix=fix)


def _map(batches: VectorBatches, items: int, width: int, fingerprint: str, tick: Tick) -> Floats:
    """float32 [items, width] through a `Dataset` with one row for each batch, which is sized and sorted already."""
    import datasets

    def encode_batch(_: dict[str, list[list[int]]]) -> pa.Table:
        batch = next(batches.vectors)  # of this batch: the encoder works one batch ahead
        tick(len(batch))
        return pa.table({"vector": fixed_lists(batch)})  # python lists would be written 20 times slower

    fixed_list = getattr(datasets, "List", None) or datasets.Sequence  # datasets 3.x has no List
    if not items:
        return np.empty((0, width), np.float32)
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
    matrix = np.empty((items, width), np.float32)
    flat = mapped.data.column("vector").combine_chunks().flatten()
    matrix[np.concatenate(batches.rows)] = np.asarray(flat).reshape(items, width)
    return matrix


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
