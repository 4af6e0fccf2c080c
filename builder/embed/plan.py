"""The files that a run leaves: shards of items and of rows, each with the stamp of what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.embed import shards
from builder.embed.inputs import IMAGES, TEXTS, Inputs, Part
from builder.embed.shards import Shard
from builder.recipe import Recipe
from sqid_lib.files import numbered_name


@dataclass(frozen=True)
class Plan:
    """All files to make: shards of items by kind, and shards of rows with the part they belong to."""

    items: dict[str, list[Shard]]
    rows: list[tuple[Shard, Part]]

    @property
    def every(self) -> list[Shard]:
        """All of them."""
        return [*self.items[TEXTS], *self.items[IMAGES], *(shard for shard, _ in self.rows)]

    def missing(self) -> list[tuple[Shard, Part]]:
        """The shards of rows that are not finished."""
        return [(shard, part) for shard, part in self.rows if not shards.is_finished(shard)]


def make_plan(folder: Path, inputs: Inputs, recipe: Recipe, record: dict[str, Any]) -> Plan:
    """The plan for `folder`; `record` is that of encoder.json."""
    size = recipe.encoder.shard_rows
    batches = [recipe.encoder.text_batch, recipe.encoder.image_batch, recipe.fetch.max_pixels]
    encoder = {key: value for key, value in record.items() if key != "requested_revision"}
    if record["revision"].startswith("local-"):
        del encoder["model"]  # a local model is identified by its content, not its path
    items: dict[str, list[Shard]] = {}
    for kind, names in inputs.items.items():
        items[kind] = [
            Shard(path, kind, start, stop, shards.stamp(encoder, batches, kind, names[start:stop]))
            for path, start, stop in _shards(folder / "items", kind, len(names), size)
        ]
    rows = []
    for part in inputs.parts:
        for path, start, stop in _shards(folder, part.name, part.ids.num_rows, size):
            chosen = [(TEXTS, part.text[start:stop]), (IMAGES, part.image[start:stop])]
            used = [items[kind][n].stamp for kind, i in chosen for n in sorted(set((i[i >= 0] // size).tolist()))]
            places = [i.tolist() for _, i in chosen]
            stamp = shards.stamp(used, places, part.ids.slice(start, stop - start))
            rows.append((Shard(path, part.name, start, stop, stamp), part))
    return Plan(items, rows)


def _shards(folder: Path, kind: str, count: int, size: int) -> list[tuple[Path, int, int]]:
    """Path, first row and end of each shard."""
    starts = range(0, count, size)
    return [(folder / numbered_name(kind, n), start, min(start + size, count)) for n, start in enumerate(starts)]
