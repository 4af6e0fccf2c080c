"""Stage release: the joined configs, the four classic files, card, manifest and checksums, in WORK/sqid."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from builder.database import reporting_disk_errors
from builder.release import card, manifest
from builder.release.artifacts import built_artifacts, check_text_vectors, existing_artifacts, warn_of_other_products
from builder.release.catalogue_files import write_catalogue
from builder.release.classic import write_classic_files
from builder.release.configs import embeds_supp, read_keys, write_configs
from builder.release.statistics import gather_statistics
from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, ReleaseError
from sqid_lib.tables.reader import read_parquet

if TYPE_CHECKING:
    from builder.recipe import Recipe


def release(recipe: Recipe, work: Path, check: Callable[[Path], None]) -> None:
    """Write WORK/sqid from WORK/sample and from the vectors and URLs of earlier stages or of [artifacts].

    It is written beside an earlier release, checked there, and replaces the earlier one only if it is valid.

    Args:
        check: raises for a release that is not valid; that one is kept beside the earlier one, to look at, until the
            next build.

    Raises:
        MissingFileError: an earlier stage has not run.
        ReleaseError: WORK/sqid holds files that no build wrote.
        SourceError, ContractError: an input breaks its contract.
        IntegrityError: a product or query has no text vector.
        DiskError: no space left, or the disk refused; what was written is removed.
    """
    final, building = work / schemas.RELEASE_DIR, work / f".{schemas.RELEASE_DIR}.building"
    with reporting_disk_errors(building):
        _finish_swap(final)
        _check_ours(final)
        shutil.rmtree(building, ignore_errors=True)
        try:
            building.mkdir(parents=True)
            _write(recipe, work, building)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    check(building)
    with reporting_disk_errors(final):
        _swap(building, final)


def _write(recipe: Recipe, work: Path, building: Path) -> None:
    write = write_catalogue if recipe.catalogue else _write_esci
    describe(building, recipe, revision=write(recipe, work, building))


def _write_esci(recipe: Recipe, work: Path, building: Path) -> str | None:
    """Write the data files of a selection of ESCI; returns the resolved commit of the encoder's model, if known."""
    sample = work / "sample"
    artifacts = existing_artifacts(recipe, work) if recipe.artifacts else built_artifacts(recipe, work)
    try:
        products, supp = (read_keys(sample / f"{name}.parquet") for name in ("products", "supp"))
        queries = read_parquet(str(sample / "queries.parquet"), pa.schema([("query_id", pa.int64())]))
        warn_of_other_products(artifacts, products, supp)
        check_text_vectors(artifacts, pa.concat_tables([products, supp]) if embeds_supp(recipe) else products, queries)
        write_configs(recipe, sample, artifacts, building)
        if recipe.release.classic_files:
            write_classic_files(recipe, sample, artifacts, building)
    finally:
        artifacts.close()
    return artifacts.revision


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


def _finish_swap(final: Path) -> None:
    """Put the earlier release back, or remove it, after a process that was killed while it swapped."""
    old = _old(final)
    if old.exists() and not final.exists():
        old.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _swap(building: Path, final: Path) -> None:
    old = _old(final)
    if final.exists():
        final.rename(old)
    building.rename(final)
    shutil.rmtree(old, ignore_errors=True)
