"""encoder.json: what the vectors of a run depend on, so that the next run can go on with exactly the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from builder.embed.local import versions
from builder.recipe import Recipe
from sqid_lib import files

NAME = "encoder.json"
REMOTE = "remote"  # in place of a device, where the model is hosted
UNKNOWN = {"revision": "", "requested_revision": ""}  # in place of a record, where no run has left one
_LINEAR = ("packed", "plain", REMOTE)


def request(recipe: Recipe, places: Sequence[str]) -> dict[str, Any]:
    """What the recipe asks for, with the keys of encoder.json."""
    settings = recipe.encoder
    return {
        "model": settings.model,
        "requested_revision": settings.revision,
        "backend": settings.backend,
        "dtype": settings.dtype,
        "device": places[0].partition(":")[0],
    }


def read(path: Path, recipe: Recipe, places: Sequence[str]) -> dict[str, Any] | None:
    """The record, if this run would encode the same way: then a branch that moved since is not followed."""
    from sqid_lib.encoders.loading import content_revision

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record["versions"] == _versions(recipe) and record.items() >= request(recipe, places).items()
        model = Path(recipe.encoder.model).expanduser()
        if not same or (places[0] != REMOTE and model.is_dir() and content_revision(model) != record["revision"]):
            return None
        return record if record["linear"] in _LINEAR and type(record["width"]) is int else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, metadata.PackageNotFoundError):
        return None


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record; it appears whole or not at all."""
    files.write_text(path, json.dumps(record, indent=2, sort_keys=True) + "\n")


def _versions(recipe: Recipe) -> dict[str, str]:
    if recipe.encoder.backend == "replicate":
        from builder.embed.replicate import versions as remote_versions

        return remote_versions()
    return versions()
