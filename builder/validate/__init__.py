"""Every check on a release: all problems are listed, none stops the others, and no file can crash them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from builder.release import manifest
from builder.validate.card_claims import check_card
from builder.validate.classic import CONFIG_OF, check_classic
from builder.validate.files import check_files, check_kinds
from builder.validate.loading import check_loading
from builder.validate.manifest_claims import check_manifest
from builder.validate.problem import Problem
from builder.validate.relations import check_relations
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.errors import SourceError, first_line
from sqid_lib.joined.selection import ALL

__all__ = ["Problem", "validate"]

Check = tuple[str, Callable[[], Iterable[Problem]]]  # the file or config, and what finds its problems


def validate(release: Path) -> list[Problem]:
    """All problems of a release, none if it may be published; reads every file once or twice, in little memory.

    The files are untrusted: whatever is in them, this returns.
    """
    if not release.is_dir():
        return [Problem("no-release", str(release), "no such directory")]
    if problems := _found((str(release), lambda: check_kinds(release))):
        return problems
    stated = _manifest(release)
    scans = _scans(release, stated)
    across: list[Check] = [
        ("data", lambda: check_relations(scans, unjudged=_unjudged(stated))),
        (schemas.MANIFEST, lambda: check_manifest(release, stated, scans)),
        (schemas.CARD, lambda: check_card(release, stated, scans)),
        *((name, partial(check_classic, release, name, stated, scans)) for name in schemas.CLASSIC_FILES),
    ]
    largest_first = sorted(scans, key=lambda config: config != schemas.FEATURES)
    with ThreadPoolExecutor(2) as pool:  # files are hashed beside the checks that use one core
        of_rows = {config: pool.submit(_found, (f"data/{config}", scans[config].problems)) for config in largest_first}
        of_files = pool.submit(_found, (str(release), lambda: check_files(release, stated)))
        wait(of_rows.values())
        of_all = list(pool.map(_found, across))
        problems = sum([*(of_rows[config].result() for config in scans), *of_all], start=of_files.result())
    if not problems:  # datasets is given only what is known to be harmless
        problems += _found(("data", lambda: check_loading(release, scans)))
    return list(dict.fromkeys(problems))


def _scans(release: Path, stated: manifest.Manifest | None) -> dict[str, Scan]:
    options: dict[str, Any] = {
        "made_here": stated is None or stated.made_here,
        "partial": stated is not None and stated.partial,
        "gains": stated.gains if stated else schemas.GAINS,
        "of_catalogue": stated is not None and stated.of_catalogue,
        "kept": stated.kept_fields if stated else (),
        "sources": schemas.ESCI_QUERY_SOURCES if stated and stated.of_esci else None,
    }
    published = {config for name, config in CONFIG_OF.items() if (release / name).is_file()}
    return {config: Scan(release, config, **options, with_classic=config in published) for config in schemas.CONFIGS}


def _manifest(release: Path) -> manifest.Manifest | None:
    try:
        return manifest.read(release)
    except SourceError:  # reported by check_files
        return None


def _unjudged(stated: manifest.Manifest | None) -> list[tuple[str, ...]]:
    """The keys whose rows may be without a judgment: of products, and in a catalogue also of queries."""
    selection = stated.recipe.get("selection") if stated else None
    every = isinstance(selection, dict) and selection.get("products") == ALL
    products: list[tuple[str, ...]] = [schemas.PRODUCT_KEY] if every else []
    return [*products, schemas.DECLARED[schemas.QUERIES].key] if stated and stated.of_catalogue else products


def _found(check: Check) -> list[Problem]:
    where, run = check
    problems: list[Problem] = []
    try:
        problems.extend(run())
    except Exception as error:  # a damaged file that the checks did not foresee: a problem of the file
        reason = f"{type(error).__name__}: {first_line(error)}"
        problems.append(Problem("unreadable", where, f"cannot be checked ({reason})"))
    return problems
