"""embed: query text, product title and product image → vectors.

Distinct texts and images are encoded once, shard by shard (`WORK/embed/items/`), then copied into rows
(`WORK/embed/{products,queries,supp}-*.parquet`). Every file carries the stamp of what it was made of: an interrupted
run loses the shards in progress, and nothing stale is used again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from builder import engines
from builder.embed import record as records
from builder.embed import shards
from builder.embed.assemble import ItemVectors
from builder.embed.encode import Backend, EncodeTask, OpenEncoder, open_backend
from builder.embed.inputs import Inputs, read_inputs
from builder.embed.local import devices
from builder.embed.plan import Plan, make_plan
from builder.engines import Job
from builder.progress import progress
from builder.recipe import Recipe

__all__ = ["embed"]

log = logging.getLogger(__name__)


def embed(recipe: Recipe, work: Path, engine: str = "local") -> None:
    """Make WORK/embed/{products,queries,supp}-*.parquet and encoder.json from what sample and fetch left in WORK.

    Finished shards are kept if they are readable and were made of the same inputs by the same encoder. Vectors are
    projected and not normalised, as published. The same recipe and inputs give the same bytes.

    Args:
        recipe: [encoder] chooses the model; `selection.embed_supp` adds the supplementary products.
        work: the build's work directory.
        engine: of `builder.engines.ENGINES`.

    Raises:
        UsageError: an unknown engine or device.
        EncoderError: the model cannot be loaded or used, or gives a text vector that is not finite.
        SourceError, ContractError: the files of sample and fetch are damaged or do not belong together.
        DiskError: no space left.
        MissingExtraError: the extra "build" is not installed.
    """
    run = engines.find(engine)
    folder = work / "embed"
    inputs, places = _inputs(recipe, work), _places(recipe)
    record, backend = records.read(folder / records.NAME, recipe, places), None
    if record is None or make_plan(folder, inputs, recipe, record).missing():
        backend = _open_first(recipe, work, places, record)
        record = records.request(recipe, places) | backend.record  # as it was, unless another machine began this
    plan = make_plan(folder, inputs, recipe, record)
    shards.remove_others([folder, folder / "items"], [shard.path for shard in plan.every])
    records.write(folder / records.NAME, record)
    missing = plan.missing()
    if missing:
        tasks, done = _pending(plan, inputs)
        rows = sum(task.shard.rows for task in tasks)
        worker = OpenEncoder(recipe, work, record, backend if len(places) == 1 else None)
        with progress("embed", done + rows, done, unit="input") as bar:
            run(Job(worker, tasks, places), bar.update)
        vectors = ItemVectors(plan.items, recipe.encoder.shard_rows, record["width"])
        for shard, part in missing:
            shards.write(shard, vectors.assemble(part, shard))
    log.info("embed: %d shards are complete", len(plan.rows))


def pending(recipe: Recipe, work: Path) -> str | None:
    """What `embed` would do, in words; None if nothing. Writes nothing and loads no model.

    Raises: as `embed`, if what sample and fetch left cannot be read.
    """
    folder = work / "embed"
    record = records.read(folder / records.NAME, recipe, _places(recipe))
    plan = make_plan(folder, _inputs(recipe, work), recipe, record or records.UNKNOWN)
    if not plan.missing():
        return None
    done = sum(shards.is_finished(shard) for shard in plan.every)
    return f"{done:,} of {len(plan.every):,} shards done"


def _inputs(recipe: Recipe, work: Path) -> Inputs:
    return read_inputs(recipe, work, image_name="image_url" if _is_remote(recipe) else "sha256")


def _places(recipe: Recipe) -> list[str]:
    return [records.REMOTE] if _is_remote(recipe) else devices(recipe.encoder.device)


def _is_remote(recipe: Recipe) -> bool:
    return recipe.encoder.backend == "replicate"


def _open_first(recipe: Recipe, work: Path, places: list[str], record: dict[str, Any] | None) -> Backend:
    """The backend on the place, or on the CPU if there are several, which are for workers in other processes."""
    linear = "auto" if places[0].startswith("cpu") else "plain"
    opening = record or {"revision": recipe.encoder.revision, "linear": linear}
    return open_backend(recipe, work, opening, places[0] if len(places) == 1 else "cpu")


def _pending(plan: Plan, inputs: Inputs) -> tuple[list[EncodeTask], int]:
    """A task for each shard of items that is not finished, and the number of items in the others."""
    every = [shard for of_kind in plan.items.values() for shard in of_kind]
    pending = [shard for shard in every if not shards.is_finished(shard)]
    done = sum(shard.rows for shard in every) - sum(shard.rows for shard in pending)
    return [EncodeTask(shard, inputs.items[shard.kind][shard.start : shard.stop]) for shard in pending], done
