"""The stages of a build, in order. Each is a plain function over (recipe, work); finished work is kept."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from builder import engines, packages, summary, times
from builder.mirror import Mirror, place_of
from builder.plan import pending, plan
from builder.sample import sample
from builder.stages import STAGES, check_stage, inputs_of, key_of, stages_of
from builder.stamps import STAMPED, Stamps, describe
from sqid_lib import schemas
from sqid_lib.encoders.loading import is_model_path
from sqid_lib.errors import (
    CorruptFileError,
    MissingExtraError,
    MissingFileError,
    RecipeError,
    ReleaseError,
    SqidError,
    StageError,
    UsageError,
    unknown_name,
)
from sqid_lib.files import remove_parts

if TYPE_CHECKING:
    from builder.recipe import Recipe

__all__ = ["STAGES", "build", "check_names", "plan"]

_MADE = {  # what a stage leaves in WORK, which `build` returns
    "sample": "sample",
    "resolve": "resolve/urls.parquet",
    "fetch": "fetch",
    "embed": "embed",
    "release": schemas.RELEASE_DIR,
    "validate": schemas.RELEASE_DIR,
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """One run of `build`; the fields are its arguments, and the stamps and the mirror of its work directory."""

    recipe: Recipe
    work: Path
    stamps: Stamps
    engine: str
    command: str
    say: Callable[[str], None]
    mirror: Mirror | None = None


def build(
    recipe: Recipe,
    work: str | os.PathLike[str],
    *,
    only: str | None = None,
    engine: str = "local",
    retry: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    command: str | None = None,
) -> Path:
    """Run the stages of a recipe; the release is WORK/sqid. What became of the images is in WORK/summary.json.

    Args:
        work: a directory, or the address of a folder of an object store, such as s3://bucket/prefix; the stages then
            work on a copy in the cache of this machine.
        only: run this stage alone.
        engine: what runs the tasks of a stage, a key of `engines.ENGINES`.
        retry: image statuses to fetch again; with `only="resolve"`, statuses of pages to visit again.
        say: called with one line at the start and one at the end of every stage, and with the summary's lines.
        command: what to type to run this build again, for the summary.

    Returns:
        The release; with `only`, what that stage made. Of an object store, the copy on this machine.

    Raises:
        UsageError: an unknown stage, engine or status.
        MissingExtraError: a stage that would run needs packages that are not installed; nothing was run.
        CountError: a count stated in [expect] is not met.
        StageError: another build is running in `work`.
        MissingFileError: stage embed would run, and there is no such model directory; nothing was run.
        DiskError, DownloadError: the object store fails; work finished before is kept.
        SqidError: whatever a stage finds wrong; work finished before is kept.
    """
    check_names(only=only, engine=engine, retry=retry)
    stages = stages_of(recipe, only)
    if recipe.artifacts and recipe.expect.min_images is not None:
        raise RecipeError("needs the stage fetch, which [artifacts] skips", where="expect.min_images", fix="Remove it.")
    command = command or f"sqid build {recipe.name} --work {work}"
    work, store = place_of(work)
    work.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(work, store) if store else None
    run = _Run(recipe, work, Stamps(work), engine, command, say, mirror)
    try:
        with filelock.FileLock(work / ".lock", timeout=0):
            remove_parts(work)
            if mirror:
                mirror.begin()
                mirror.pull()
            _check_packages(run, stages, retry)
            _check_model(recipe, stages)
            with _summary(run, stages):
                checked = False  # the release that this build has just written
                for stage in stages:
                    # fetch and resolve have different statuses: those of a whole build are for fetch
                    again = retry if stage == "fetch" or only == "resolve" else ()
                    if stage != "validate" or not checked:
                        checked = _build_stage(run, stage, again) and stage == "release"
    except filelock.Timeout as error:
        raise StageError(
            "another build is running here", where=work, fix="Wait until it ends, or use another --work."
        ) from error
    return work / _MADE[stages[-1]]


def check_names(*, only: str | None = None, engine: str = "local", retry: Sequence[str] = ()) -> None:
    """Raise UsageError, with the nearest name that there is, for an unknown stage, engine or status."""
    check_stage(only)
    engines.find(engine)
    if retry and only not in (None, "fetch", "resolve"):
        raise UsageError(
            "--retry belongs to the stages fetch and resolve",
            fix="Use it with --only fetch, with --only resolve, or, for images, without --only.",
        )
    kind, stage = ("page", "resolve") if only == "resolve" else ("image", "fetch")
    for status in retry:
        if status not in schemas.RETRIABLE[stage]:
            raise unknown_name(f"failure of {kind}s", status, schemas.RETRIABLE[stage], "--retry")


def _check_model(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raise MissingFileError for a model directory that is not there, before hours of fetching."""
    model = recipe.encoder.model
    if "embed" in stages and is_model_path(model) and not Path(model).expanduser().is_dir():
        raise MissingFileError(
            "no such model directory",
            where="encoder.model",
            got=model,
            fix="Relative paths are relative to the recipe.",
        )


def _check_packages(run: _Run, stages: Sequence[str], retry: Sequence[str]) -> None:
    """Raise before anything is run if a stage that would run lacks a package."""
    needs = {stage: packages.needed(stage, run.recipe, run.engine) for stage in stages}
    if all(packages.is_installed(name) for names in needs.values() for name in names):
        return
    packages.require({stage: names for stage, names in needs.items() if names and _would_run(run, stage, retry)})


def _would_run(run: _Run, stage: str, retry: Sequence[str]) -> bool:
    try:
        again = retry if stage == "fetch" else ()
        return pending(stage, run.recipe, run.work, run.stamps, again, ()) is not None
    except MissingExtraError:  # it cannot even be judged without the package
        return True


@contextlib.contextmanager
def _summary(run: _Run, stages: Sequence[str]) -> Iterator[None]:
    """Say and write at the end what became of the images, if the build came as far as that."""
    outcomes = run.work / "fetch" / "outcomes.parquet"
    before = outcomes.stat().st_mtime_ns if outcomes.exists() else None
    try:
        yield
    except SqidError:
        if outcomes.exists() and outcomes.stat().st_mtime_ns != before:
            _say_summary(run)
        raise
    if len(stages) > 1 or stages[0] == "fetch":
        _say_summary(run)


def _say_summary(run: _Run) -> None:
    found = summary.summarize(run.recipe, run.work, run.command)
    if found is None:
        return
    for line in found.lines():
        run.say(line)
    found.write(run.work, run.recipe)
    if run.mirror:
        run.mirror.push_summary()
    warning = found.warning()
    if warning:
        _log.warning("%s", warning)


def _build_stage(run: _Run, stage: str, retry: Sequence[str]) -> bool:
    """Whether there was something to do."""
    recipe, work, stamps = run.recipe, run.work, run.stamps
    _check_inputs(run, stage)
    if stage in ("embed", "release") and recipe.artifacts is None:
        summary.check_images(recipe, work, run.command)
    key, before, changed = key_of(stage, recipe, stamps), stamps.read(stage), stamps.changed(stage)
    if changed:
        run.say(f"{describe(changed)}: made again")
        stamps.remove_changed(stage)
    elif key and before and key == before.key:
        if run.mirror:
            run.mirror.push(stage)
        run.say(f"{stage}: {summary.made(stage, work)}, done before")
        return False
    run.say(f"{stage} …")
    stamps.remove(stage)
    if run.mirror:
        run.mirror.unfinish(stage)
    began = time.monotonic()
    try:
        worked = _run_stage(run, stage, retry)
    except BaseException:
        stamps.restore(stage, before)
        raise
    _check_inputs(run, stage, again=True)
    if stage in STAMPED:
        stamps.write(stage, key or "")
        worked = stamps.read(stage) != before if worked is None else worked
    if worked and stage in STAMPED:  # of validate, which always runs, the time with the release is recorded
        times.record(work, stage, time.monotonic() - began)
    if run.mirror:
        run.mirror.push(stage)
    run.say(f"{stage}: {summary.made(stage, work)}{'' if worked else ', done before'}")
    if stage == "fetch":
        summary.check_images(recipe, work, run.command)
    return bool(worked)


def _check_inputs(run: _Run, stage: str, *, again: bool = False) -> None:
    """Raise unless the earlier stages have run and their files are as they were written."""
    for earlier in inputs_of(stage, run.recipe):
        if run.stamps.read(earlier) is None:
            raise MissingFileError(
                f"stage {earlier} has not finished", where=run.work, fix=f"Run it first: --only {earlier}."
            )
        changed = run.stamps.changed(earlier, again=again)
        if changed:
            raise CorruptFileError(
                describe(changed),
                where=run.work,
                fix=f"Stage {earlier} makes it again: run the build again without --only, or with --only {earlier}.",
            )


def _run_stage(run: _Run, stage: str, retry: Sequence[str]) -> bool | None:
    """Run one stage, whose packages are imported only here; whether it had something to do, None if its files tell.

    A release is validated before it is put in place.
    """
    recipe, work = run.recipe, run.work
    store = run.mirror.store if run.mirror else None
    match stage:
        case "sample":
            sample(recipe, work)
        case "resolve":
            from builder.resolve import resolve

            resolve(recipe, work, retry)
            return None
        case "fetch":
            from builder.fetch import fetch

            return fetch(recipe, work, retry, run.engine, store) > 0
        case "embed":
            from builder.embed import embed

            embed(recipe, work, run.engine, store)
            return None
        case "release":
            from builder.release import release

            def check(building: Path) -> None:
                run.say("validate …")
                began = time.monotonic()
                _validate(building)
                times.record(work, "validate", time.monotonic() - began)
                run.say(f"validate: {summary.made('validate', work)}")

            release(recipe, work, check)
        case _:
            _validate(work / schemas.RELEASE_DIR)
    return True


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
