"""The stages of a build: their order, what each reads, and what decides whether sample and release are finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from builder.catalogue.catalogue import catalogue_state
from builder.sample import esci_files
from builder.stamps import Stamps
from sqid_lib import schemas
from sqid_lib.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from builder.recipe import Recipe

STAGES = ("sample", "resolve", "fetch", "embed", "release", "validate")
_FROM_ARTIFACTS = ("sample", "release", "validate")
_INPUTS: Mapping[str, tuple[str, ...]] = {  # the stages whose files a stage reads
    "resolve": ("sample",),
    "fetch": ("resolve",),
    "embed": ("sample", "fetch"),
    "release": ("sample", "resolve", "embed"),
}


def check_stage(only: str | None) -> None:
    """Raise UsageError, with the nearest name that there is, for an unknown stage."""
    if only is not None and only not in STAGES:
        raise unknown_name("stage", only, STAGES, "--only")


def stages_of(recipe: Recipe, only: str | None = None) -> Sequence[str]:
    """The stages that a recipe needs, or the one that is asked for.

    Raises:
        UsageError: no such stage, or one that a recipe with [artifacts] has not.
    """
    check_stage(only)
    stages = STAGES if recipe.artifacts is None else _FROM_ARTIFACTS
    if only is not None and only not in stages:
        raise UsageError(f"stage {only!r} is not part of a recipe with [artifacts]", expected=" or ".join(stages))
    return stages if only is None else (only,)


def inputs_of(stage: str, recipe: Recipe) -> list[str]:
    """The earlier stages whose files a stage reads; the release itself is checked by validate."""
    return [earlier for earlier in _INPUTS.get(stage, ()) if earlier in stages_of(recipe)]


def key_of(stage: str, recipe: Recipe, stamps: Stamps) -> str | None:
    """The hash of all that sample or release is made of; the other stages record their finished work themselves."""
    settings = recipe.to_dict()
    if stage == "sample":
        expected = {name: count for name, count in settings["expect"].items() if name != "min_images"}  # fetch's
        if recipe.catalogue is not None:
            return _hash(catalogue_state(recipe.catalogue), settings["catalogue"], expected, schemas.fingerprint())
        files = {table: (file.url, file.version) for table, file in esci_files(recipe).items()}
        return _hash(files, settings["selection"], expected, schemas.fingerprint())
    if stage == "release":
        settings = {key: value for key, value in settings.items() if key not in ("resolve", "fetch", "engine")}
        made = {name: stamp.files for name in inputs_of(stage, recipe) if (stamp := stamps.read(name))}
        return _hash(settings, made, _artifacts(recipe), schemas.fingerprint())
    return None


def _artifacts(recipe: Recipe) -> list[tuple[str, str]]:
    if recipe.artifacts is None:
        return []
    from builder.release.artifacts import artifact_files

    return [(file.url, file.version) for found in artifact_files(recipe).values() for file in found]


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
