"""The stages of a build, in order. Each is a plain function over (recipe, work); finished work is kept."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from builder.engines import ENGINES
from builder.sample import esci_files, sample
from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, ReleaseError, StageError, UsageError, without_secrets
from sqid_lib.files import write_text

if TYPE_CHECKING:
    from builder.recipe import Recipe

STAGES = ("sample", "resolve", "fetch", "embed", "release", "validate")
_FROM_ARTIFACTS = ("sample", "release", "validate")
_SAMPLED = tuple(f"sample/{name}.parquet" for name in ("products", "supp", "queries", "judgments"))
_SEALED = f"{schemas.RELEASE_DIR}/{schemas.SHA256SUMS}"
_OUTPUTS = {"sample": _SAMPLED, "release": (_SEALED,)}  # of the stages with a stamp
_INPUTS = {  # what a stage needs from the one before it
    "resolve": _SAMPLED,
    "fetch": ("resolve/urls.parquet",),
    "embed": ("fetch/outcomes.parquet",),
    "validate": (_SEALED,),
}
_SMALL = 64_000_000  # bytes; a larger file is identified by size and time, not by content


def build(
    recipe: Recipe,
    work: Path,
    *,
    only: str | None = None,
    engine: str = "local",
    retry: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Run the stages of a recipe; the release is WORK/sqid.

    Args:
        only: run this stage alone.
        engine: what runs the tasks of a stage, a key of `engines.ENGINES`.
        retry: image statuses to fetch again; with `only="resolve"`, statuses of pages to visit again.
        say: called with one line at the start of every stage.

    Returns:
        The release.

    Raises:
        UsageError: an unknown stage or engine.
        StageError: another build is running in `work`.
        SqidError: whatever a stage finds wrong; work finished before is kept.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}", where="--engine", expected=" or ".join(ENGINES))
    stages = _stages(recipe, only)
    work.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(work / ".lock", timeout=0):
            for stage in stages:
                # fetch and resolve have different statuses: those of a whole build are for fetch
                again = retry if stage == "fetch" or only == "resolve" else ()
                _build_stage(stage, recipe, work, engine, again, say)
    except filelock.Timeout as error:
        raise StageError(
            "another build is running here", where=work, fix="Wait until it ends, or use another --work."
        ) from error
    return work / schemas.RELEASE_DIR


def plan(recipe: Recipe, work: Path, *, only: str | None = None, retry: Sequence[str] = ()) -> dict[str, str]:
    """What `build` would do, stage → words. Writes nothing and uses no network.

    Stages are judged by what is in `work` now. Arguments and errors are those of `build`.
    """
    words: dict[str, str] = {}
    for stage in _stages(recipe, only):
        again = retry if stage == "fetch" or only == "resolve" else ()
        unfinished = [earlier for earlier, word in words.items() if word != "done before"]
        words[stage] = _pending(stage, recipe, work, again, unfinished) or "done before"
    return words


def _stages(recipe: Recipe, only: str | None) -> Sequence[str]:
    if only is not None and only not in STAGES:
        raise UsageError(f"unknown stage {only!r}", expected=" or ".join(STAGES))
    stages = STAGES if recipe.artifacts is None else _FROM_ARTIFACTS
    if only is not None and only not in stages:
        raise UsageError(f"stage {only!r} is not part of a recipe with [artifacts]", expected=" or ".join(stages))
    return stages if only is None else (only,)


def _build_stage(
    stage: str, recipe: Recipe, work: Path, engine: str, retry: Sequence[str], say: Callable[[str], None]
) -> None:
    if stage not in ("sample", "validate"):
        _check_sampled(work)
    key = _key(stage, recipe, work)
    if key and _is_done(stage, work, key):
        return say(f"{stage}: done before")
    say(stage)
    _run(stage, recipe, work, engine, retry)
    if key:
        write_text(_stamp(stage, work), key)
    return None


def _run(stage: str, recipe: Recipe, work: Path, engine: str, retry: Sequence[str]) -> None:
    """Run one stage; its packages are imported only here."""
    match stage:
        case "sample":
            sample(recipe, work)
        case "resolve":
            from builder.resolve import resolve

            resolve(recipe, work, retry)
        case "fetch":
            from builder.fetch import fetch

            fetch(recipe, work, retry, engine)
        case "embed":
            from builder.embed import embed

            embed(recipe, work, engine)
        case "release":
            from builder.release import release

            release(recipe, work)
        case _:
            _validate(work / schemas.RELEASE_DIR)


def _pending(stage: str, recipe: Recipe, work: Path, retry: Sequence[str], unfinished: Sequence[str]) -> str | None:
    """What a stage would do, None if nothing; `unfinished` are the stages before it that would do something."""
    if not all((work / name).exists() for name in _INPUTS.get(stage, ())):
        return "would run"
    match stage:
        case "sample" | "release":
            return _pending_stamp(stage, recipe, work, unfinished)
        case "resolve":
            from builder.resolve.stage import pending as pending_resolve

            return pending_resolve(recipe, work, retry)
        case "fetch":
            from builder.fetch.stage import pending as pending_fetch

            return pending_fetch(recipe, work, retry)
        case "embed":
            from builder.embed.stage import pending as pending_embed

            return pending_embed(recipe, work)
        case _:
            return "would check the release"


def _pending_stamp(stage: str, recipe: Recipe, work: Path, unfinished: Sequence[str]) -> str | None:
    if not all((work / name).exists() for name in (*_OUTPUTS[stage], f".stamps/{stage}")):
        return "would run"
    source = recipe.esci if stage == "sample" else recipe.artifacts
    if source and not Path(source.path).is_absolute():
        return f"would run again if the recipe or a file at {without_secrets(source.path)} changed"
    if not _is_done(stage, work, _key(stage, recipe, work) or ""):
        return "would run again: the recipe or its inputs changed"
    return f"would run again if {' or '.join(unfinished)} changes its inputs" if unfinished else None


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


# -- stamps: sample and release are skipped while the hash of all they are made of stays the same ------------------


def _check_sampled(work: Path) -> None:
    if not _stamp("sample", work).exists():
        raise MissingFileError("stage sample has not run", where=work, fix="Run it first: --only sample.")


def _key(stage: str, recipe: Recipe, work: Path) -> str | None:
    """The stamp of a stage that has one; resolve, fetch and embed record their finished work themselves."""
    settings = recipe.to_dict()
    if stage == "sample":
        files = {table: (file.url, file.version) for table, file in esci_files(recipe).items()}
        return _hash(files, settings["selection"], settings["expect"], schemas.fingerprint())
    if stage == "release":
        settings = {key: value for key, value in settings.items() if key not in ("resolve", "fetch")}
        return _hash(settings, _contents(work), _artifacts(recipe), schemas.fingerprint())
    return None


def _contents(work: Path) -> list[tuple[str, str]]:
    """Every file of WORK that a release is made from, with what identifies its content."""
    files = []
    for pattern in ("sample/*.parquet", "resolve/urls.parquet", "embed/*.parquet", "embed/encoder.json"):
        for path in sorted(work.glob(pattern)):
            stat = path.stat()
            small = stat.st_size < _SMALL
            content = hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{stat.st_size} {stat.st_mtime_ns}"
            files.append((str(path.relative_to(work)), content))
    return files


def _artifacts(recipe: Recipe) -> list[tuple[str, str]]:
    if recipe.artifacts is None:
        return []
    from builder.release.artifacts import artifact_files

    return [(file.url, file.version) for found in artifact_files(recipe).values() for file in found]


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _is_done(stage: str, work: Path, key: str) -> bool:
    stamp = _stamp(stage, work)
    there = all((work / name).exists() for name in _OUTPUTS[stage])
    return there and stamp.exists() and stamp.read_text(encoding="utf-8") == key


def _stamp(stage: str, work: Path) -> Path:
    return work / ".stamps" / stage
