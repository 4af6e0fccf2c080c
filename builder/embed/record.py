"""encoder.json: which encoder made the vectors beside it, so that a later run uses them and goes on with the same one.

WORK/embed/vectors/<encoder>/encoder.json says it of that folder, WORK/embed/encoder.json of the rows for the release.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from builder.embed.inputs import IMAGES, TEXTS
from builder.embed.local import versions
from builder.recipe import Recipe
from sqid_lib import files, schemas

NAME = "encoder.json"
REMOTE = "remote"  # in place of a device, where the model is hosted
_LINEAR = ("packed", "plain", REMOTE)
# packages whose versions may change more than the last bits
_DECISIVE = (
    *("transformers", "tokenizers", "pillow"),
    *("open_clip_torch", "torchvision", "timm", "ftfy", "sentence-transformers"),
)


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


def key(record: dict[str, Any]) -> str:
    """Name of the encoder's folder, from what decides its vectors: not from devices, kernels or sizes of batches."""
    decisive = {name: record[name] for name in ("backend", "revision", "dtype", "width")}
    decisive["versions"] = {name: v for name, v in record["versions"].items() if name in _DECISIVE}
    if not record["revision"].startswith(schemas.LOCAL_REVISION):
        decisive["model"] = record["model"]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def find(folder: Path, recipe: Recipe, places: Sequence[str]) -> dict[str, Any] | None:
    """The record in a folder of `folder` whose vectors this run can use: a branch that moved since is not followed."""
    from sqid_lib.encoders.loading import content_revision

    wanted, model = request(recipe, places), Path(recipe.encoder.model).expanduser()
    revision = content_revision(model, recipe.encoder.backend) if places[0] != REMOTE and model.is_dir() else None
    for record in _every(folder):
        if revision:
            same = record["revision"] == revision
        else:
            asked = (record["requested_revision"], record["revision"])
            same = record["model"] == wanted["model"] and wanted["requested_revision"] in asked
        same = same and all(record[name] == wanted[name] for name in ("backend", "dtype"))
        try:
            if same and key(record) == key(record | {"versions": _versions(recipe)}):
                return record
        except metadata.PackageNotFoundError:
            return None
    return None


def of_other_versions(folder: Path, record: dict[str, Any]) -> list[str]:
    """The folders with vectors of the same model that other versions of its packages made."""
    others = [other for other in _every(folder) if other["revision"] == record["revision"]]
    return [
        key(other)
        for other in others
        if key(other) != key(record) and key(other | {"versions": record["versions"]}) == key(record)
    ]


def settings(
    recipe: Recipe, record: dict[str, Any], places: Sequence[str], kind: str, threads: int | None = None
) -> dict[str, Any]:
    """What vectors may depend on in their last bits, and the limits of images.

    Args:
        threads: of each worker on a CPU, where they are not those of this process or of one beside it.
    """
    chosen = recipe.encoder
    made: dict[str, Any] = {"shard_rows": chosen.shard_rows}
    made |= {"text_batch": chosen.text_batch} if kind == TEXTS else {"image_batch": chosen.image_batch}
    if kind == IMAGES:
        made |= limits(recipe)
    if places[0] == REMOTE:
        return made
    made |= {"device": places[0].partition(":")[0], "linear": record["linear"]}
    made |= {name: version for name, version in versions(chosen.backend).items() if name not in _DECISIVE}
    if made["device"] == "cpu":
        made["threads"] = threads or _threads(places)
    return made


def limits(recipe: Recipe) -> dict[str, Any]:
    """The settings of [fetch] that decide whether an image is decoded; they change no vector."""
    return {"max_pixels": recipe.fetch.max_pixels, "truncated": recipe.fetch.truncated}


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record; it appears whole or not at all."""
    files.write_text(path, json.dumps(record, indent=2, sort_keys=True) + "\n")


def _every(folder: Path) -> Iterator[dict[str, Any]]:
    """The records in the folders of `folder` that are as they were written."""
    for path in sorted(folder.glob(f"*/{NAME}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            known = record["linear"] in _LINEAR and {"device", "requested_revision", "model"} <= record.keys()
            if known and key(record) == path.parent.name:
                yield record
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # damaged: made again when the model is opened


def _threads(places: Sequence[str]) -> int:
    import torch

    # processes for several devices have one thread each, unless the user set it otherwise
    return torch.get_num_threads() if len(places) == 1 or "OMP_NUM_THREADS" in os.environ else 1


def _versions(recipe: Recipe) -> dict[str, str]:
    if recipe.encoder.backend == "replicate":
        from builder.embed.replicate import versions as remote_versions

        return remote_versions()
    return versions(recipe.encoder.backend)
