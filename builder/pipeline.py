"""The stages of a build, in order. Each is a plain function over (recipe, work); finished work is kept."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import filelock

from builder.recipe import Recipe
from builder.sample import esci_files, sample
from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, ReleaseError, StageError, UsageError
from sqid_lib.files import replacing

STAGES = ("sample", "resolve", "fetch", "embed", "release", "validate")
_FROM_ARTIFACTS = ("sample", "release", "validate")
_SMALL = 64_000_000  # bytes; larger files count by size and time, not by content


def build(
    recipe: Recipe,
    work: Path,
    *,
    only: str | None = None,
    engine: str = "local",
    retry: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> Path:
    """Run the stages of a recipe; the release is WORK/sqid.

    Args:
        only: run this stage alone.
        engine: what runs the embed stage; "local".
        retry: image statuses to fetch once more; with `only="resolve"`, statuses of pages to visit once more.
        say: told the start of every stage, a line each.

    Returns:
        The release.

    Raises:
        UsageError: an unknown stage or engine.
        StageError: another build is at work here.
        SqidError: whatever a stage finds wrong; work finished before is kept.
    """
    if engine != "local":
        raise UsageError(f"unknown engine {engine!r}", where="--engine", expected="local")
    if only is not None and only not in STAGES:
        raise UsageError(f"unknown stage {only!r}", expected=" or ".join(STAGES))
    stages = STAGES if recipe.artifacts is None else _FROM_ARTIFACTS
    if only is not None and only not in stages:
        raise UsageError(f"stage {only!r} is not part of a recipe with [artifacts]", expected=" or ".join(stages))
    work.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(work / ".lock", timeout=0):
            for stage in stages if only is None else (only,):
                # the two stages know different statuses: a whole build means pictures
                again = retry if stage == "fetch" or only == "resolve" else ()
                _run(stage, recipe, work, engine, again, say or (lambda _: None))
    except filelock.Timeout as error:
        raise StageError(
            "another build is at work here", where=work, fix="Wait for it, or use another --work."
        ) from error
    return work / schemas.RELEASE_DIR


def _run(stage: str, recipe: Recipe, work: Path, engine: str, retry: Sequence[str], say: Callable[[str], None]) -> None:
    if stage == "sample":
        key = _sample_key(recipe)
        names = [work / "sample" / f"{name}.parquet" for name in ("products", "supp", "queries", "judgments")]
        if _stamped(work, stage, key) and all(path.exists() for path in names):
            return say("sample: done before")
        say("sample")
        sample(recipe, work)
        _stamp(work, stage, key)
    elif stage == "release":
        _needs(work, "sample")
        key = _release_key(recipe, work)
        if _stamped(work, stage, key) and (work / schemas.RELEASE_DIR / schemas.SHA256SUMS).exists():
            return say("release: done before")
        say("release")
        from builder.release import release

        release(recipe, work)
        _stamp(work, stage, key)
    elif stage == "validate":
        say("validate")
        _validate(work / schemas.RELEASE_DIR)
    else:
        _needs(work, "sample")
        say(stage)
        _run_picture_stage(stage, recipe, work, engine, retry)
    return None


def _run_picture_stage(stage: str, recipe: Recipe, work: Path, engine: str, retry: Sequence[str]) -> None:
    """resolve, fetch and embed keep account of their own finished work; their packages are needed only here."""
    if stage == "resolve":
        from builder.resolve import resolve

        resolve(recipe, work, retry)
    elif stage == "fetch":
        from builder.fetch import fetch

        fetch(recipe, work, retry)
    else:
        from builder.embed import embed

        embed(recipe, work, engine)


def _validate(release: Path) -> None:
    from builder.validate import validate

    problems = validate(release)
    if problems:
        for problem in problems:
            sys.stderr.write(f"{problem}\n")
        raise ReleaseError(
            f"the release has {len(problems)} {'problem' if len(problems) == 1 else 'problems'}",
            where=release,
            fix="They are listed above.",
        )


def _needs(work: Path, stage: str) -> None:
    if not (work / ".stamps" / stage).exists():
        raise MissingFileError(f"stage {stage} has not run", where=work, fix=f"Run it first: --only {stage}.")


def _sample_key(recipe: Recipe) -> str:
    files = {table: (file.url, file.version) for table, file in esci_files(recipe).items()}
    return _hash(files, recipe.to_dict()["selection"], recipe.to_dict()["expect"])


def _release_key(recipe: Recipe, work: Path) -> str:
    """Changes with the recipe and with every file the release is made of."""
    files = []
    for pattern in ("sample/*.parquet", "resolve/urls.parquet", "embed/*.parquet", "embed/encoder.json"):
        for path in sorted(work.glob(pattern)):
            stat = path.stat()
            small = stat.st_size < _SMALL
            known = hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{stat.st_size} {stat.st_mtime_ns}"
            files.append((str(path.relative_to(work)), known))
    artifacts: list[object] = []
    if recipe.artifacts:
        from builder.release.stage import artifact_files

        artifacts = [(f.url, f.version) for found in artifact_files(recipe).values() for f in found]
    settings = {k: v for k, v in recipe.to_dict().items() if k not in ("resolve", "fetch")}
    return _hash(settings, files, artifacts)


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _stamped(work: Path, stage: str, key: str) -> bool:
    path = work / ".stamps" / stage
    return path.exists() and path.read_text() == key


def _stamp(work: Path, stage: str, key: str) -> None:
    with replacing(work / ".stamps" / stage) as part:
        part.write_text(key)
