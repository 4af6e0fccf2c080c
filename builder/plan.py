"""What a build would do, stage by stage, judged by what is in WORK: `sqid build --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from builder.catalogue.catalogue import addresses_of
from builder.stages import inputs_of, key_of, stages_of
from builder.stamps import Stamps, describe
from sqid_lib import schemas
from sqid_lib.errors import without_secrets

if TYPE_CHECKING:
    from builder.recipe import Recipe

DONE = "done before"
_WOULD_CHECK = "would check the release"


def plan(recipe: Recipe, work: Path, *, only: str | None = None, retry: Sequence[str] = ()) -> dict[str, str]:
    """What `pipeline.build` would do, stage → words. Writes nothing and uses no network.

    Stages are judged by what is in `work` now. Arguments and errors are those of `build`.
    """
    words: dict[str, str] = {}
    stamps = Stamps(work)
    for stage in stages_of(recipe, only):
        again = retry if stage == "fetch" or only == "resolve" else ()
        unfinished = [earlier for earlier, word in words.items() if word != DONE]
        words[stage] = pending(stage, recipe, work, stamps, again, unfinished) or DONE
    return words


def pending(
    stage: str, recipe: Recipe, work: Path, stamps: Stamps, retry: Sequence[str], unfinished: Sequence[str]
) -> str | None:
    """What a stage would do, None if nothing; `unfinished` are the stages before it that would do something."""
    needed = {name: stamps.changed(name) for name in inputs_of(stage, recipe)}
    if any(changed or stamps.read(name) is None for name, changed in needed.items()):
        return _first_time(stage, recipe, work)
    words = _pending_words(stage, recipe, work, stamps, retry, unfinished)
    changed = stamps.changed(stage) if words is None else {}
    return f"would run again: {describe(changed)}" if changed else words


def _pending_words(
    stage: str, recipe: Recipe, work: Path, stamps: Stamps, retry: Sequence[str], unfinished: Sequence[str]
) -> str | None:
    match stage:
        case "sample" | "release":
            return _pending_stamp(stage, recipe, work, stamps, unfinished)
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


def _pending_stamp(stage: str, recipe: Recipe, work: Path, stamps: Stamps, unfinished: Sequence[str]) -> str | None:
    stamp, changed = stamps.read(stage), stamps.changed(stage)
    if stamp is None:
        return _first_time(stage, recipe, work)
    if changed:
        return f"would run again: {describe(changed)}"
    elsewhere = [source for source in _sources(stage, recipe) if not Path(source).is_absolute()]
    if elsewhere:
        return f"would run again if the recipe or a file at {without_secrets(' or '.join(elsewhere))} changed"
    if stamp.key != key_of(stage, recipe, stamps):
        return "would run again: the recipe or its inputs changed"
    return f"would run again if {' or '.join(unfinished)} changes its inputs" if unfinished else None


def _sources(stage: str, recipe: Recipe) -> list[str]:
    """The addresses that sample or release reads."""
    if stage == "release":
        return [recipe.artifacts.path] if recipe.artifacts else []
    return [recipe.source] if recipe.catalogue is None else list(addresses_of(recipe.catalogue).values())


def _first_time(stage: str, recipe: Recipe, work: Path) -> str:
    """What a stage would do that has not run yet, or whose inputs are not there yet."""
    match stage:
        case "sample":
            what = "ESCI" if recipe.catalogue is None else "the catalogue"
            return f"would read {what} from {without_secrets(recipe.source)}"
        case "resolve":
            from builder.resolve.stage import describe_tables

            words = f"would look for image URLs in {describe_tables(recipe)}"
            return f"{words}, then on product pages" if recipe.resolve.pages.permission else words
        case "fetch":
            mirrors = sorted({without_secrets(mirror) for mirror in recipe.fetch.mirrors.values()})
            through = f", from {' and '.join(mirrors)} where that is a mirror" if mirrors else ""
            first = "read local images and " if recipe.catalogue is not None else ""
            return f"would {first}download the images, at most {recipe.fetch.concurrency} at once{through}"
        case "embed":
            device = "the service replicate" if recipe.encoder.backend == "replicate" else recipe.encoder.device
            return f"would encode texts and images with {recipe.encoder.model} (device {device})"
        case "release":
            return f"would write {work / schemas.RELEASE_DIR}"
        case _:
            return _WOULD_CHECK
