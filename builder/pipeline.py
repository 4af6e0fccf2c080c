"""The stages of a build, in order. Each is a plain function over (recipe, work); finished work is kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from builder import engines, packages, summary
from builder.sample import esci_files, sample
from sqid_lib import schemas
from sqid_lib.errors import (
    MissingExtraError,
    MissingFileError,
    RecipeError,
    ReleaseError,
    SqidError,
    StageError,
    UsageError,
    unknown_name,
    without_secrets,
)
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
_MADE = {  # what a stage leaves in WORK, which `build` returns
    "sample": "sample",
    "resolve": "resolve/urls.parquet",
    "fetch": "fetch",
    "embed": "embed",
    "release": schemas.RELEASE_DIR,
    "validate": schemas.RELEASE_DIR,
}
_WOULD_CHECK = "would check the release"
_log = logging.getLogger(__name__)
_SMALL = 64_000_000  # bytes; a larger file is identified by size and time, not by content


def build(
    recipe: Recipe,
    work: Path,
    *,
    only: str | None = None,
    engine: str = "local",
    retry: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    command: str | None = None,
) -> Path:
    """Run the stages of a recipe; the release is WORK/sqid. What became of the images is in WORK/summary.json.

    Args:
        only: run this stage alone.
        engine: what runs the tasks of a stage, a key of `engines.ENGINES`.
        retry: image statuses to fetch again; with `only="resolve"`, statuses of pages to visit again.
        say: called with one line at the start and one at the end of every stage, and with the summary's lines.
        command: what to type to run this build again, for the summary.

    Returns:
        The release; with `only`, what that stage made.

    Raises:
        UsageError: an unknown stage, engine or status.
        MissingExtraError: a stage that would run needs packages that are not installed; nothing was run.
        CountError: a count stated in [expect] is not met.
        StageError: another build is running in `work`.
        SqidError: whatever a stage finds wrong; work finished before is kept.
    """
    check_names(only=only, engine=engine, retry=retry)
    stages = _stages(recipe, only)
    command = command or f"sqid build {recipe.name} --work {work}"
    if recipe.artifacts and recipe.expect.min_images is not None:
        raise RecipeError("needs the stage fetch, which [artifacts] skips", where="expect.min_images", fix="Remove it.")
    work.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(work / ".lock", timeout=0):
            _check_packages(stages, recipe, work, retry)
            with _summary(stages, recipe, work, command, say):
                checked = False  # the release that this build has just written
                for stage in stages:
                    # fetch and resolve have different statuses: those of a whole build are for fetch
                    again = retry if stage == "fetch" or only == "resolve" else ()
                    if stage != "validate" or not checked:
                        worked = _build_stage(stage, recipe, work, engine, again, command, say)
                        checked = worked and stage == "release"
    except filelock.Timeout as error:
        raise StageError(
            "another build is running here", where=work, fix="Wait until it ends, or use another --work."
        ) from error
    return work / _MADE[stages[-1]]


def plan(recipe: Recipe, work: Path, *, only: str | None = None, retry: Sequence[str] = ()) -> dict[str, str]:
    """What `build` would do, stage → words. Writes nothing and uses no network.

    Stages are judged by what is in `work` now. Arguments and errors are those of `build`.
    """
    check_names(only=only, retry=retry)
    words: dict[str, str] = {}
    for stage in _stages(recipe, only):
        again = retry if stage == "fetch" or only == "resolve" else ()
        unfinished = [earlier for earlier, word in words.items() if word != "done before"]
        words[stage] = _pending(stage, recipe, work, again, unfinished) or "done before"
    return words


def _stages(recipe: Recipe, only: str | None) -> Sequence[str]:
    stages = STAGES if recipe.artifacts is None else _FROM_ARTIFACTS
    if only is not None and only not in stages:
        raise UsageError(f"stage {only!r} is not part of a recipe with [artifacts]", expected=" or ".join(stages))
    return stages if only is None else (only,)


def check_names(*, only: str | None = None, engine: str = "local", retry: Sequence[str] = ()) -> None:
    """Raise UsageError, with the nearest name that there is, for an unknown stage, engine or status."""
    if only is not None and only not in STAGES:
        raise unknown_name("stage", only, STAGES, "--only")
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


def _check_packages(stages: Sequence[str], recipe: Recipe, work: Path, retry: Sequence[str]) -> None:
    """Raise before anything is run if a stage that would run lacks a package."""
    needs = {stage: packages.needed(stage, recipe) for stage in stages}
    if all(packages.is_installed(name) for names in needs.values() for name in names):
        return
    packages.require(
        {stage: names for stage, names in needs.items() if names and _would_run(stage, recipe, work, retry)}
    )


def _would_run(stage: str, recipe: Recipe, work: Path, retry: Sequence[str]) -> bool:
    try:
        return _pending(stage, recipe, work, retry if stage == "fetch" else (), ()) is not None
    except MissingExtraError:  # it cannot even be judged without the package
        return True


@contextlib.contextmanager
def _summary(
    stages: Sequence[str], recipe: Recipe, work: Path, command: str, say: Callable[[str], None]
) -> Iterator[None]:
    """Say and write at the end what became of the images, if the build came as far as that."""
    outcomes = work / "fetch" / "outcomes.parquet"
    before = outcomes.stat().st_mtime_ns if outcomes.exists() else None
    try:
        yield
    except SqidError:
        if outcomes.exists() and outcomes.stat().st_mtime_ns != before:
            _say_summary(recipe, work, command, say)
        raise
    if len(stages) > 1 or stages[0] == "fetch":
        _say_summary(recipe, work, command, say)


def _say_summary(recipe: Recipe, work: Path, command: str, say: Callable[[str], None]) -> None:
    found = summary.summarize(recipe, work, command)
    if found is None:
        return
    for line in found.lines():
        say(line)
    found.write(work, recipe)
    warning = found.warning()
    if warning:
        _log.warning("%s", warning)


def _build_stage(
    stage: str,
    recipe: Recipe,
    work: Path,
    engine: str,
    retry: Sequence[str],
    command: str,
    say: Callable[[str], None],
) -> bool:
    """Whether there was something to do."""
    if stage not in ("sample", "validate"):
        _check_sampled(work)
    if stage in ("embed", "release") and recipe.artifacts is None:
        summary.check_images(recipe, work, command)
    key = _key(stage, recipe, work)
    if key and _is_done(stage, work, key):
        say(f"{stage}: {summary.made(stage, work)}, done before")
        return False
    say(f"{stage} …")
    worked = _run(stage, recipe, work, engine, retry, say)
    if key:
        write_text(_stamp(stage, work), key)
    say(f"{stage}: {summary.made(stage, work)}{'' if worked else ', done before'}")
    if stage == "fetch":
        summary.check_images(recipe, work, command)
    return worked


def _run(
    stage: str, recipe: Recipe, work: Path, engine: str, retry: Sequence[str], say: Callable[[str], None]
) -> bool:
    """Run one stage, whose packages are imported only here; returns whether there was something to do.

    A release is validated before it is put in place.
    """
    match stage:
        case "sample":
            sample(recipe, work)
        case "resolve":
            from builder.resolve import resolve

            resolve(recipe, work, retry)
        case "fetch":
            from builder.fetch import fetch

            return fetch(recipe, work, retry, engine) > 0
        case "embed":
            from builder.embed import embed

            before = _times(work / "embed")
            embed(recipe, work, engine)
            return _times(work / "embed") != before
        case "release":
            from builder.release import release

            def check(building: Path) -> None:
                say("validate")
                _validate(building)

            release(recipe, work, check)
        case _:
            _validate(work / schemas.RELEASE_DIR)
    return True


def _times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def _pending(stage: str, recipe: Recipe, work: Path, retry: Sequence[str], unfinished: Sequence[str]) -> str | None:
    """What a stage would do, None if nothing; `unfinished` are the stages before it that would do something."""
    if not all((work / name).exists() for name in _INPUTS.get(stage, ())):
        return _first_time(stage, recipe, work)
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
            return _WOULD_CHECK


def _pending_stamp(stage: str, recipe: Recipe, work: Path, unfinished: Sequence[str]) -> str | None:
    if not all((work / name).exists() for name in (*_OUTPUTS[stage], f".stamps/{stage}")):
        return _first_time(stage, recipe, work)
    source = recipe.esci if stage == "sample" else recipe.artifacts
    if source and not Path(source.path).is_absolute():
        return f"would run again if the recipe or a file at {source.path} changed"
    if not _is_done(stage, work, _key(stage, recipe, work) or ""):
        return "would run again: the recipe or its inputs changed"
    return f"would run again if {' or '.join(unfinished)} changes its inputs" if unfinished else None


def _first_time(stage: str, recipe: Recipe, work: Path) -> str:
    """What a stage would do that has not run yet, or whose inputs are not there yet."""
    match stage:
        case "sample":
            return f"would read ESCI from {without_secrets(recipe.esci.path)}"
        case "resolve":
            tables, pages = len(recipe.resolve.tables), recipe.resolve.pages.permission
            words = f"would look for image URLs in {tables} table{'' if tables == 1 else 's'}"
            return f"{words}, then on product pages" if pages else words
        case "fetch":
            mirrors = sorted({without_secrets(mirror) for mirror in recipe.fetch.mirrors.values()})
            through = f", from {' and '.join(mirrors)} where that is a mirror" if mirrors else ""
            return f"would download the images, at most {recipe.fetch.concurrency} at once{through}"
        case "embed":
            device = "the service replicate" if recipe.encoder.backend == "replicate" else recipe.encoder.device
            return f"would encode texts and images with {recipe.encoder.model} (device {device})"
        case "release":
            return f"would write {work / schemas.RELEASE_DIR}"
        case _:
            return _WOULD_CHECK


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
