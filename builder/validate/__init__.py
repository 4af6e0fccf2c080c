"""Every check on a release: all problems are listed, none stops the others, and no file can crash them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from builder.release import manifest
from builder.validate.claims import check_card, check_manifest
from builder.validate.classic import check_classic
from builder.validate.files import check_files, check_kinds
from builder.validate.problem import Problem
from builder.validate.relations import check_relations
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.errors import SourceError

__all__ = ["Problem", "validate"]


def validate(release: Path) -> list[Problem]:
    """All problems of a release, none if it may be published; reads every file once or twice, in little memory.

    The data may come from anybody: whatever is in the files, this returns.
    """
    if not release.is_dir():
        return [Problem("no-release", str(release), "no such directory")]
    problems: list[Problem] = []
    _run(problems, str(release), lambda: check_kinds(release))
    if problems:
        return problems
    _run(problems, str(release), lambda: check_files(release))
    scans: dict[str, Scan] = {}
    made_here = _made_here(release)
    for config in schemas.CONFIGS:
        scans[config] = Scan(release, config, made_here=made_here)
        _run(problems, f"data/{config}", scans[config].problems)
    _run(problems, "data", lambda: check_relations(scans))
    _run(problems, schemas.MANIFEST, lambda: check_manifest(release, scans))
    _run(problems, schemas.CARD, lambda: check_card(release, scans))
    for name in schemas.CLASSIC_FILES:
        _run(problems, name, partial(check_classic, release, name, scans))
    return list(dict.fromkeys(problems))


def _made_here(release: Path) -> bool:
    try:
        return manifest.read(release).recipe.get("artifacts") is None
    except SourceError:  # told by check_manifest
        return True


def _run(problems: list[Problem], where: str, check: Callable[[], Iterable[Problem]]) -> None:
    try:
        problems.extend(check())
    except Exception as error:  # a hostile file found a way around the checks: that is a problem of the file
        reason = (str(error).splitlines() or [""])[0][:200]
        problems.append(Problem("unreadable", where, f"cannot be checked ({type(error).__name__}: {reason})"))
