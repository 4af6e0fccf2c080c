"""The stages of a build, in order. Each is a plain function over (recipe, work); finished work is kept."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from builder.engines import ENGINES
from builder.sample import esci_files, sample
from builder.stamps import STAMPED, Stamps, describe
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError, ReleaseError, StageError, UsageError
from sqid_lib.files import remove_parts

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
            remove_parts(work)
            stamps = Stamps(work)
            for stage in stages:
                # fetch and resolve have different statuses: those of a whole build are for fetch
                again = retry if stage == "fetch" or only == "resolve" else ()
                _build_stage(stage, recipe, work, stamps, engine, again, say)
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
    stamps = Stamps(work)
    for stage in _stages(recipe, only):
        again = retry if stage == "fetch" or only == "resolve" else ()
        unfinished = [earlier for earlier, word in words.items() if word != "done before"]
        words[stage] = _pending(stage, recipe, work, stamps, again, unfinished) or "done before"
    return words


def _stages(recipe: Recipe, only: str | None) -> Sequence[str]:
    if only is not None and only not in STAGES:
        raise UsageError(f"unknown stage {only!r}", expected=" or ".join(STAGES))
    stages = STAGES if recipe.artifacts is None else _FROM_ARTIFACTS
    if only is not None and only not in stages:
        raise UsageError(f"stage {only!r} is not part of a recipe with [artifacts]", expected=" or ".join(stages))
    return stages if only is None else (only,)


def _inputs(stage: str, recipe: Recipe) -> list[str]:
    """The earlier stages whose files a stage reads; the release itself is checked by validate."""
    return [earlier for earlier in _INPUTS.get(stage, ()) if earlier in _stages(recipe, None)]


def _build_stage(
    stage: str,
    recipe: Recipe,
    work: Path,
    stamps: Stamps,
    engine: str,
    retry: Sequence[str],
    say: Callable[[str], None],
) -> None:
    _check_inputs(stage, recipe, work, stamps)
    key = _key(stage, recipe, stamps)
    changed = stamps.changed(stage)
    if changed:
        say(f"{describe(changed)}: made again")
        stamps.remove_changed(stage)
    elif key and key == _stamped_key(stage, stamps):
        return say(f"{stage}: done before")
    say(stage)
    stamps.remove(stage)
    _run(stage, recipe, work, engine, retry)
    _check_inputs(stage, recipe, work, stamps, again=True)
    if stage in STAMPED:
        stamps.write(stage, key or "")
    return None


def _check_inputs(stage: str, recipe: Recipe, work: Path, stamps: Stamps, *, again: bool = False) -> None:
    """Raise unless the earlier stages have run and their files are as they were written."""
    for earlier in _inputs(stage, recipe):
        if stamps.read(earlier) is None:
            raise MissingFileError(
                f"stage {earlier} has not finished", where=work, fix=f"Run it first: --only {earlier}."
            )
        changed = stamps.changed(earlier, again=again)
        if changed:
            raise CorruptFileError(
                describe(changed),
                where=work,
                fix=f"Stage {earlier} makes it again: run the build again without --only, or with --only {earlier}.",
            )


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


def _pending(
    stage: str, recipe: Recipe, work: Path, stamps: Stamps, retry: Sequence[str], unfinished: Sequence[str]
) -> str | None:
    """What a stage would do, None if nothing; `unfinished` are the stages before it that would do something."""
    needed = {name: stamps.changed(name) for name in _inputs(stage, recipe)}
    if any(changed or stamps.read(name) is None for name, changed in needed.items()):
        return "would run"
    words = _pending_words(stage, recipe, work, stamps, retry, unfinished)
    changed = stamps.changed(stage) if words is None else {}
    return f"would run again: {describe(changed)}" if changed else words


def _pending_words(
    stage: str, recipe: Recipe, work: Path, stamps: Stamps, retry: Sequence[str], unfinished: Sequence[str]
) -> str | None:
    match stage:
        case "sample" | "release":
            return _pending_stamp(stage, recipe, stamps, unfinished)
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
            finished = stamps.read("release") and not stamps.changed("release")
            return "would check the release" if finished else "would run"


def _pending_stamp(stage: str, recipe: Recipe, stamps: Stamps, unfinished: Sequence[str]) -> str | None:
    stamped, changed = _stamped_key(stage, stamps), stamps.changed(stage)
    if stamped is None:
        return "would run"
    if changed:
        return f"would run again: {describe(changed)}"
    source = recipe.esci if stage == "sample" else recipe.artifacts
    if source and not Path(source.path).is_absolute():
        return f"would run again if the recipe or a file at {source.path} changed"
    if stamped != _key(stage, recipe, stamps):
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


# -- sample and release are skipped while the hash of all they are made of stays the same --------------------------


def _key(stage: str, recipe: Recipe, stamps: Stamps) -> str | None:
    """The hash for such a stage; resolve, fetch and embed record their finished work themselves."""
    settings = recipe.to_dict()
    if stage == "sample":
        files = {table: (file.url, file.version) for table, file in esci_files(recipe).items()}
        return _hash(files, settings["selection"], settings["expect"], schemas.fingerprint())
    if stage == "release":
        settings = {key: value for key, value in settings.items() if key not in ("resolve", "fetch")}
        made = {name: stamp.files for name in _inputs(stage, recipe) if (stamp := stamps.read(name))}
        return _hash(settings, made, _artifacts(recipe), schemas.fingerprint())
    return None


def _stamped_key(stage: str, stamps: Stamps) -> str | None:
    stamp = stamps.read(stage)
    return stamp.key if stamp else None


def _artifacts(recipe: Recipe) -> list[tuple[str, str]]:
    if recipe.artifacts is None:
        return []
    from builder.release.artifacts import artifact_files

    return [(file.url, file.version) for found in artifact_files(recipe).values() for file in found]


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
