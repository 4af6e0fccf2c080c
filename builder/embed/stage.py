"""embed: query text, product title and product image → vectors.

Vectors are kept by encoder and by content (`WORK/embed/vectors/`): what was encoded once is not encoded again. The rows
for the release (`WORK/embed/{products,queries,supp}-*.parquet`) are copied from them. Every file is checked before it
is used; an interrupted run loses the files in progress.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder import engines
from builder.embed import record as records
from builder.embed import rows, shards
from builder.embed.encode import Backend, EncodeTasks, OpenEncoder, open_backend
from builder.embed.inputs import IMAGES, TEXTS, Inputs, read_inputs
from builder.embed.items import Items
from builder.embed.local import devices
from builder.embed.vector_store import VectorStore
from builder.embed.vectors import Found, Vectors
from builder.engines import Job
from builder.progress import note, progress
from builder.recipe import Recipe
from sqid_lib.object_store import ObjectStore

__all__ = ["embed"]

log = logging.getLogger(__name__)

_VECTORS = "vectors"
_EARLIER = "items"  # vectors of an earlier layout, by their place in a shard
_EXACT = ("max_pixels", "truncated")  # settings that change no vector


def embed(recipe: Recipe, work: Path, engine: str = "local", store: ObjectStore | None = None) -> None:
    """Make WORK/embed/{products,queries,supp}-*.parquet and encoder.json from what sample and fetch left in WORK.

    Vectors that are there for the same encoder and content are reused, also those made with other sizes of batches or
    on another device, which differ in their last bits; that is reported. From an empty WORK/embed, the same recipe and
    inputs give the same bytes on one machine. Vectors are projected and not normalised, as published.

    Args:
        recipe: [encoder] chooses the model; `selection.embed_supp` adds the supplementary products.
        work: the build's work directory.
        engine: of `builder.engines.ENGINES`.
        store: where images are read and vectors are kept; `work` is then the copy of this machine.

    Raises:
        UsageError: an unknown engine or device.
        EncoderError: the model cannot be loaded or used, or gives a text vector that is not finite.
        SourceError, ContractError: the files of sample and fetch are damaged or do not belong together.
        DiskError: no space left.
        MissingExtraError: the extra "build" is not installed.
    """
    engines.find(engine)
    work = work.absolute()  # workers may have another working directory
    folder = work / "embed"
    inputs, places = _inputs(recipe, work, folder), _places(recipe, engine)
    shards.remove_unfinished([folder, *(folder / _VECTORS).glob("*")])
    stored = VectorStore(store, work, scratch=engine != "local") if store else None
    if stored is not None:
        stored.pull_records()
    record, backend = records.find(folder / _VECTORS, recipe, places), None
    if record is None:
        backend = _open_first(recipe, work, places, None, engine, stored)
        record = records.request(recipe, places) | backend.record
    planned = _plan(folder, inputs, recipe, record)
    unfinished, damaged = rows.unfinished(planned)
    if backend is not None:  # no vectors of this encoder: the rows, if there are any, are not kept without them
        unfinished = planned
    key = records.key(record)
    home = folder / _VECTORS / key
    idle = (path for path in (folder / _VECTORS).glob("*/*.parquet") if not unfinished or path.parent != home)
    if removed := shards.remove_damaged(idle):  # nothing that is made now needs them
        note(f"embed: damaged, and made again when they are needed: {', '.join(removed[:3])} in {folder}")
    if unfinished:
        if stored is not None:
            stored.pull(key)
        vectors = Vectors(home, records.limits(recipe))
        _report_damaged([path.name for path in damaged] + (lost := vectors.remove_damaged()), folder)
        if stored is not None:
            stored.remove(lost, key)
        found = {kind: vectors.find(kind, items.digests) for kind, items in inputs.items.items()}
        _report_reuse(recipe, record, places, engines.threads(engine, recipe.engine), vectors, found)
        if backend is not None:
            records.write(home / records.NAME, record)
        _Encoding(engine, recipe, work, places, record, backend, stored).run(vectors, inputs, found)
        found = {kind: vectors.find(kind, items.digests) for kind, items in inputs.items.items()}
        for shard in unfinished:
            rows.write(shard, vectors, found, record["width"])
    rows.remove_others(folder, planned)
    records.write(folder / records.NAME, record)
    log.info("embed: %d shards are complete", len(planned))


def pending(recipe: Recipe, work: Path) -> str | None:
    """What `embed` would do, in words; None if nothing. Writes nothing and loads no model.

    Raises: as `embed`, if what sample and fetch left cannot be read.
    """
    folder = work / "embed"
    inputs = _inputs(recipe, work)
    record = records.find(folder / _VECTORS, recipe, _places(recipe, "local"))
    if record is None:
        return _counts({kind: len(items.values) for kind, items in inputs.items.items()}, 0)
    if not rows.unfinished(_plan(folder, inputs, recipe, record))[0]:
        return None
    vectors = Vectors(folder / _VECTORS / records.key(record), records.limits(recipe))
    found = {kind: vectors.find(kind, items.digests) for kind, items in inputs.items.items()}
    missing, reused = _count(found)
    return _counts(missing, reused)


@dataclass(frozen=True)
class _Encoding:
    """How this run encodes: by the engine of that name, with which encoder; `backend` if one is open.

    `stored` is where images are read and vectors kept, if that is not `work`.
    """

    engine: str
    recipe: Recipe
    work: Path
    places: list[str]
    record: dict[str, Any]
    backend: Backend | None
    stored: VectorStore | None

    def run(self, vectors: Vectors, inputs: Inputs, found: dict[str, Found]) -> None:
        """Encode what was not found, texts first."""
        kinds = [kind for kind in (TEXTS, IMAGES) if found[kind].missing.any()]
        if not kinds:
            return
        backend, here = self.backend, _in_this_process(self.places, self.engine)
        if here and backend is None:
            backend = _open_first(self.recipe, self.work, self.places, self.record, self.engine, self.stored)
        threads = engines.threads(self.engine, self.recipe.engine)
        with engines.find(self.engine)(self.recipe.engine) as engine:
            ours = backend if here else None
            worker = OpenEncoder(self.recipe, self.work, self.record, ours, self.stored, engine.map_ahead)
            for kind in kinds:
                wanted = _select(inputs.items[kind], found[kind].missing)
                numbers = np.flatnonzero(found[kind].missing).astype(np.int32)
                if kind == IMAGES and self.places[0] != records.REMOTE:
                    numbers //= self.recipe.fetch.shard_rows  # as fetch stores them on one machine
                settings = records.settings(self.recipe, self.record, self.places, kind, threads)
                size = self.recipe.encoder.shard_rows
                tasks = EncodeTasks(kind, wanted, size, vectors.free_names(kind), settings, numbers)
                if self.stored is not None:
                    self.stored.announce(records.key(self.record), tasks.paths)
                with progress("embed", len(wanted.values), unit=kind.removesuffix("s")) as bar:
                    engine.run(Job(worker, tasks, self.places), bar.update)
        if self.stored is not None:
            self.stored.pull(records.key(self.record))
        vectors.refresh()


def _select(items: Items, chosen: np.ndarray) -> Items:
    if chosen.all():
        return items  # and no copy of all
    return Items(items.values.filter(chosen), items.digests.filter(pa.array(chosen)))


def _plan(folder: Path, inputs: Inputs, recipe: Recipe, record: dict[str, Any]) -> list[rows.Shard]:
    return rows.plan(folder, inputs, recipe.encoder.shard_rows, records.key(record), records.limits(recipe))


def _inputs(recipe: Recipe, work: Path, scratch: Path | None = None) -> Inputs:
    name = "image_url" if _is_remote(recipe) else "sha256"
    return read_inputs(recipe, work, image_name=name, scratch=scratch)


def _places(recipe: Recipe, engine: str) -> list[str]:
    if _is_remote(recipe):
        return [records.REMOTE]
    if engine == "local":
        return devices(recipe.encoder.device)
    return ["cuda:0" if recipe.engine.num_gpus else "cpu"]  # a worker sees its own GPU as the first one


def _in_this_process(places: list[str], engine: str) -> bool:
    return engine == "local" and len(places) == 1


def _is_remote(recipe: Recipe) -> bool:
    return recipe.encoder.backend == "replicate"


def _open_first(
    recipe: Recipe,
    work: Path,
    places: list[str],
    record: dict[str, Any] | None,
    engine: str,
    stored: VectorStore | None,
) -> Backend:
    """The backend in this process: on the place, or on the CPU if the places are for workers in other processes."""
    linear = "auto" if places[0].startswith("cpu") else "plain"
    opening = record or {"revision": recipe.encoder.revision, "linear": linear}
    here = _in_this_process(places, engine) or places[0] == records.REMOTE
    return open_backend(recipe, work, opening, places[0] if here else "cpu", stored.store if stored else None)


# -- what is reported -----------------------------------------------------------------------------------------------


def _count(found: dict[str, Found]) -> tuple[dict[str, int], int]:
    """Kind → items to encode, and how many vectors are there."""
    missing = {kind: int(of_kind.missing.sum()) for kind, of_kind in found.items()}
    return missing, sum(len(of_kind.file) for of_kind in found.values()) - sum(missing.values())


def _counts(missing: dict[str, int], reused: int) -> str:
    wanted = (f"{missing[kind]:,} {kind if missing[kind] != 1 else kind[:-1]}" for kind in (IMAGES, TEXTS))
    return f"{', '.join(wanted)} to encode; {reused:,} reused"


def _report_damaged(names: list[str], folder: Path) -> None:
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        note(f"embed: damaged or of an earlier version, made again: {shown} in {folder}")
    if (folder / _EARLIER).is_dir():
        note(f"embed: {folder / _EARLIER} holds vectors of an earlier version, which are not used; you may delete it")


def _report_reuse(
    recipe: Recipe,
    record: dict[str, Any],
    places: list[str],
    threads: int | None,
    vectors: Vectors,
    found: dict[str, Found],
) -> None:
    missing, reused = _count(found)
    note(f"embed: {_counts(missing, reused)}")
    other: Counter[str] = Counter()
    differing = 0
    for kind, of_kind in found.items():
        now = records.settings(recipe, record, places, kind, threads)
        for made, count in vectors.settings(kind, of_kind):
            names = [name for name in made.keys() | now.keys() if made.get(name) != now.get(name)]
            names = [name for name in names if name not in _EXACT]
            other.update(f"{name} {made.get(name)} instead of {now.get(name)}" for name in names)
            differing += count if names else 0
    if other:
        note(
            f"embed: {differing:,} of the reused vectors were made with {', '.join(sorted(other))}: they may differ "
            f"from new ones in their last bits; delete {vectors.folder} to make all again"
        )
    if missing[TEXTS] + missing[IMAGES] and (names := records.of_other_versions(vectors.folder.parent, record)):
        note(f"embed: vectors of other versions of its packages are kept and not used: {', '.join(names)}")
