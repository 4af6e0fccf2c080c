"""embed: query text, product title and product picture → vectors.

Distinct texts and pictures are encoded once, shard by shard (`WORK/embed/items/`), then put into rows
(`WORK/embed/{products,queries,supp}-*.parquet`). Every file carries the stamp of what it was made of: a killed run
loses the shard it was at, and nothing stale is reused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from builder.embed import shards
from builder.embed.assemble import Vectors
from builder.embed.encode import PICTURES, TEXTS, Backend, encode
from builder.embed.inputs import Inputs, Part, read_inputs
from builder.embed.local import Local, devices, versions
from builder.embed.shards import Shard
from builder.progress import progress
from builder.recipe import Recipe
from sqid_lib.errors import UsageError
from sqid_lib.files import numbered_name, replacing

__all__ = ["embed"]

log = logging.getLogger(__name__)

RECORD = "encoder.json"
LINEAR = ("packed", "plain", "remote")


def embed(recipe: Recipe, work: Path, engine: str = "local") -> None:
    """Make WORK/embed/{products,queries,supp}-*.parquet and encoder.json from what sample and fetch left in WORK.

    Shards already there are kept if they are readable and were made of the same inputs by the same encoder.
    Vectors are projected and not normalised, as published. The same recipe and inputs give the same bytes.

    Args:
        recipe: [encoder] chooses the model; `selection.embed_supp` adds the supplementary products.
        work: the build's work directory.
        engine: "local".

    Raises:
        UsageError: another engine.
        EncoderError: the model cannot be loaded or used, or gives a text vector that is not finite.
        SourceError, ContractError: what sample and fetch left is damaged or does not fit together.
        DiskError: no space left.
        MissingExtraError: the extra "build" is not installed.
    """
    if engine != "local":
        raise UsageError("unknown engine", where="--engine", expected="local", got=engine)
    folder = work / "embed"
    remote = recipe.encoder.backend == "replicate"
    inputs = read_inputs(recipe, work, pictures="image_url" if remote else "sha256")
    places = ["remote"] if remote else devices(recipe.encoder.device)
    backend: Backend | None = None
    record = _recorded(folder / RECORD, recipe, places)
    if record is None or _missing(_plan(folder, inputs, recipe, record)):
        # a process that has touched a GPU cannot fork: with several, each is opened by its own process
        opening = places[0] if len(places) == 1 else "cpu"
        linear = "auto" if places[0].startswith("cpu") else "plain"
        backend = _open(recipe, work, opening, record or {"revision": recipe.encoder.revision, "linear": linear})
        record = _request(recipe, places) | backend.record  # as recorded, unless another machine began this
    plan = _plan(folder, inputs, recipe, record)
    shards.remove_others([folder, folder / "items"], [shard.path for shard in plan.every])
    _write_record(folder / RECORD, record)
    missing = _missing(plan)
    if missing and backend is not None:
        items = [shard for kind in (TEXTS, PICTURES) for shard in plan.items[kind]]
        pending = [shard for shard in items if not shards.is_finished(shard)]
        if pending and len(places) == 1:
            done = sum(shard.rows for shard in items) - sum(shard.rows for shard in pending)
            _encode_here(pending, inputs, backend, record["width"], done)
        elif pending:
            _encode_on_all(pending, inputs, recipe, work, places, record)
        vectors = Vectors(plan.items, recipe.encoder.shard_rows, record["width"])
        for shard, part in missing:
            shards.write(shard, vectors.assemble(part, shard))
    log.info("embed: %d shards are complete", len(plan.rows))


def pending(recipe: Recipe, work: Path) -> str | None:
    """What `embed` would do, in words; None if nothing. Writes nothing and loads no model.

    Raises: as `embed`, if what sample and fetch left cannot be read.
    """
    folder, remote = work / "embed", recipe.encoder.backend == "replicate"
    inputs = read_inputs(recipe, work, pictures="image_url" if remote else "sha256")
    record = _recorded(folder / RECORD, recipe, ["remote"] if remote else devices(recipe.encoder.device))
    plan = _plan(folder, inputs, recipe, record or {"revision": "", "requested_revision": ""})
    if not _missing(plan):
        return None
    done = sum(shards.is_finished(shard) for shard in plan.every)
    return f"{done:,} of {len(plan.every):,} shards done"


@dataclass(frozen=True)
class _Plan:
    """All files to be: items by kind, and rows with the part they belong to."""

    items: dict[str, list[Shard]]
    rows: list[tuple[Shard, Part]]

    @property
    def every(self) -> list[Shard]:
        return [*self.items[TEXTS], *self.items[PICTURES], *(shard for shard, _ in self.rows)]


def _missing(plan: _Plan) -> list[tuple[Shard, Part]]:
    return [(shard, part) for shard, part in plan.rows if not shards.is_finished(shard)]


def _plan(folder: Path, inputs: Inputs, recipe: Recipe, record: dict[str, Any]) -> _Plan:
    """What this run is to leave behind; stamps tell what each file is made of."""
    size = recipe.encoder.shard_rows
    batches = [recipe.encoder.text_batch, recipe.encoder.image_batch, recipe.fetch.max_pixels]
    # a model in a directory is what its files are, wherever they lie
    maker = {
        key: value for key, value in record.items() if key != "model" or not record["revision"].startswith("local-")
    }
    maker.pop("requested_revision")
    items: dict[str, list[Shard]] = {}
    for kind, names in ((TEXTS, inputs.texts), (PICTURES, inputs.pictures)):
        items[kind] = [
            Shard(path, kind, start, stop, shards.stamp(maker, batches, kind, names[start:stop]))
            for path, start, stop in _cut(folder / "items", kind, len(names), size)
        ]
    rows = []
    for part in inputs.parts:
        for path, start, stop in _cut(folder, part.name, part.ids.num_rows, size):
            chosen = [(TEXTS, part.text[start:stop]), (PICTURES, part.picture[start:stop])]
            used = [items[kind][n].stamp for kind, i in chosen for n in sorted(set((i[i >= 0] // size).tolist()))]
            places = [i.tolist() for _, i in chosen]
            stamp = shards.stamp(used, places, part.ids.slice(start, stop - start))
            rows.append((Shard(path, part.name, start, stop, stamp), part))
    return _Plan(items, rows)


def _cut(folder: Path, kind: str, count: int, size: int) -> list[tuple[Path, int, int]]:
    starts = range(0, count, size)
    return [(folder / numbered_name(kind, n), start, min(start + size, count)) for n, start in enumerate(starts)]


def _names(shard: Shard, inputs: Inputs) -> Sequence[str]:
    return (inputs.texts if shard.kind == TEXTS else inputs.pictures)[shard.start : shard.stop]


def _encode_here(pending: list[Shard], inputs: Inputs, backend: Backend, width: int, done: int) -> None:
    """Encode shard after shard in this process; `done` inputs were encoded before."""
    todo = sum(shard.rows for shard in pending)
    with progress("embed", done + todo, done, unit="input") as bar:
        for shard in pending:
            encode(shard, _names(shard, inputs), backend, width, bar.update)
            log.info("embed: wrote %s", shard.path.name)


def _encode_on_all(
    pending: list[Shard], inputs: Inputs, recipe: Recipe, work: Path, places: list[str], record: dict[str, Any]
) -> None:
    """Encode with a process per device; each opens its device once, and writes its shards as it goes."""
    import datasets

    opened: dict[int, Backend] = {}

    def encode_some(batch: dict[str, list[int]], rank: int) -> dict[str, list[int]]:
        if rank not in opened:
            import torch

            torch.set_num_threads(1)  # a forked process must not use its parent's OpenMP threads
            opened[rank] = _open(recipe, work, places[rank], record)
        for number in batch["shard"]:
            encode(pending[number], _names(pending[number], inputs), opened[rank], record["width"], lambda _: None)
        return batch

    datasets.Dataset.from_dict({"shard": list(range(len(pending)))}).map(
        encode_some,
        batched=True,
        batch_size=1,
        with_rank=True,
        num_proc=min(len(places), len(pending)),
        new_fingerprint=shards.stamp([shard.stamp for shard in pending])[:32],
        desc="embed",
    )


def _request(recipe: Recipe, places: list[str]) -> dict[str, Any]:
    """What the recipe asks for, as encoder.json has it."""
    settings = recipe.encoder
    return {
        "model": settings.model,
        "requested_revision": settings.revision,
        "backend": settings.backend,
        "dtype": settings.dtype,
        "device": places[0].partition(":")[0],
    }


def _open(recipe: Recipe, work: Path, place: str, record: dict[str, Any]) -> Backend:
    if recipe.encoder.backend == "replicate":
        from builder.embed.replicate import Replicate

        return Replicate(recipe)
    return Local(recipe, work, place, record)


def _versions(recipe: Recipe) -> dict[str, str]:
    if recipe.encoder.backend == "replicate":
        from builder.embed.replicate import versions as remote_versions

        return remote_versions()
    return versions()


def _recorded(path: Path, recipe: Recipe, places: list[str]) -> dict[str, Any] | None:
    """What encoder.json says, if this run would encode the same way: then a branch that moved on is not followed."""
    from sqid_lib.encoders.loading import content_revision

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record["versions"] == _versions(recipe) and record.items() >= _request(recipe, places).items()
        model = Path(recipe.encoder.model).expanduser()
        if not same or (places != ["remote"] and model.is_dir() and content_revision(model) != record["revision"]):
            return None
        return record if record["linear"] in LINEAR and type(record["width"]) is int else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, metadata.PackageNotFoundError):
        return None


def _write_record(path: Path, record: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
