"""Stage release: the joined configs, the four classic files, card, manifest and checksums, in WORK/sqid."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from builder.release import card, manifest
from builder.release.artifacts import built_artifacts, existing_artifacts
from builder.release.classic import write_classic_files
from builder.release.configs import write_configs
from builder.release.statistics import gather_statistics
from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, ReleaseError

if TYPE_CHECKING:
    from builder.recipe import Recipe


def release(recipe: Recipe, work: Path) -> None:
    """Write WORK/sqid from WORK/sample and from the vectors and URLs of earlier stages or of [artifacts].

    It is written beside an earlier release and replaces it when it is complete.

    Raises:
        MissingFileError: an earlier stage has not run.
        ReleaseError: WORK/sqid holds files that no build wrote.
        SourceError, ContractError: an input breaks its contract.
    """
    final, building = work / schemas.RELEASE_DIR, work / f".{schemas.RELEASE_DIR}.building"
    _check_ours(final)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    artifacts = existing_artifacts(recipe, work) if recipe.artifacts else built_artifacts(recipe, work)
    try:
        write_configs(recipe, work / "sample", artifacts, building)
        if recipe.release.classic_files:
            write_classic_files(recipe, work / "sample", artifacts, building)
    finally:
        artifacts.close()
    describe(building, recipe, revision=artifacts.revision)
    _swap(building, final)


def describe(release: Path, recipe: Recipe, *, revision: str | None) -> None:
    """Write the card, the manifest and the checksums for the data files now in `release`.

    Args:
        revision: resolved commit of the encoder's model.

    Raises:
        CorruptFileError, MissingFileError: a parquet file cannot be read, or a config has none.
    """
    statistics = gather_statistics(release)
    card.write_card(release, recipe, statistics, revision=revision)
    manifest.write(release, recipe, statistics, revision=revision)


def _check_ours(final: Path) -> None:
    """Raise unless every file of an earlier release was listed by the build that wrote it."""
    if not final.exists():
        return
    try:
        written = {*manifest.read(final).files, schemas.MANIFEST, schemas.SHA256SUMS}
    except MissingFileError:
        written = set()
    foreign = [name for name in manifest.listing(final) if name not in written]
    if foreign:
        raise ReleaseError(
            "the directory holds files that no build wrote",
            where=final,
            got=", ".join(foreign[:3]),
            fix="Move them to another place.",
        )


def _swap(building: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    building.rename(final)
    shutil.rmtree(old, ignore_errors=True)
