"""The stage as a whole: which images are wanted, who brings them, and the table of outcomes at its end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import engines
from builder.database import query_copy, reporting_disk_errors
from builder.engines import Job
from builder.fetch.failures import Earlier, earlier, losses
from builder.fetch.ledger import NAME, Ledger, Outcome
from builder.fetch.local_images import LocalImages, local_images
from builder.fetch.partition import open_downloader, outcomes, partitions
from builder.fetch.partition_store import FetchStore
from builder.fetch.shards import recover
from builder.progress import note, progress
from builder.recipe import FetchSettings, Recipe
from sqid_lib import schemas
from sqid_lib.errors import FetchError, unknown_name
from sqid_lib.files import part_folders, replacing
from sqid_lib.object_store import ObjectStore
from sqid_lib.tables.reader import open_parquet, reporting

_FOLDER = "fetch"
_BATCH = 4_096  # products handled at once
_NOT_FETCHED = Outcome("", schemas.OK)

_log = logging.getLogger(__name__)


def fetch(
    recipe: Recipe,
    work: Path,
    retry: Sequence[str] = (),
    engine: str = "local",
    store: ObjectStore | None = None,
) -> int:
    """Download the distinct image URLs of the resolved products, each once, and store the distinct images.

    Can be killed at any moment and run again: only the requests in flight are repeated. Run again when finished, it
    makes no request; when URLs changed, it requests the new ones. The shards' bytes depend on the images alone.
    Failures of earlier runs are tried again where they may pass, and where they depend on settings that changed since.
    Local images of a catalogue are read in the same way: again when their file has another size or time than before,
    also if it was missing; an image that is stored is kept when its file is gone.

    Args:
        recipe: `[fetch]` holds the limits, mirrors and allowed hosts, `[catalogue]` the folder of local images.
        work: reads resolve/urls.parquet; writes fetch/outcomes.parquet (`schemas.OUTCOMES_SCHEMA`, a row per product:
            main, and supp with `selection.embed_supp`) and fetch/images-*.parquet (`schemas.IMAGES_SCHEMA`), which are
            in fetch/part-*/ where several machines fetched from several hosts.
        retry: statuses of earlier failures to try again, of `schemas.RETRIABLE["fetch"]`.
        engine: of `builder.engines.ENGINES`.
        store: where images and their outcomes are kept; `work` is then the copy of this machine.

    Returns:
        How many images were tried; 0 if all of it was done before.

    Raises:
        UsageError: an unknown engine, or a status in `retry` that is not a failure of fetch.
        FetchError: the network is down, or hosts that do not answer cost over a tenth of the images; with
            `[expect] min_images` that is a warning.
        StageError: this machine cannot make connections or start decoder processes.
        DiskError: no space left.
        StageError: the ledger is in use by another build.
        SourceError: resolve/urls.parquet, a folder of local images or a file of the products is missing or damaged.
        IntegrityError: the products changed since the stage sample.
    """
    engines.find(engine)
    _check_retry(retry)
    work = work.absolute()  # workers may have another working directory
    folder = work / _FOLDER
    urls = list(dict.fromkeys(url for batch in _products(recipe, work) for url in _wanted(batch)))
    folders = part_folders(folder)
    images = local_images(recipe, work)
    stored = FetchStore(store, work, scratch=engine != "local") if store else None
    if stored is not None:
        stored.view()
        folders = part_folders(folder)
    before, done, again = _earlier_runs(folders, urls, recipe.fetch, retry, images, stored=stored is not None)
    noun = _noun(urls, images)
    _say_again(before, noun)
    with (
        engines.find(engine if len(done) < len(urls) else "local")(recipe.engine) as running,
        progress(_FOLDER, len(urls), before.done, unit=noun, failed=before.failed) as bar,
    ):
        tasks, limits = partitions(folders, urls, done, recipe.fetch, running.machines, images, again)
        if stored is not None:
            stored.announce(tasks.folders)
        worker = partial(open_downloader, limits, images, store=stored)
        running.run(Job(worker, tasks, whole_machine=True), bar.update)
    if stored is not None:
        stored.view()
    with ExitStack() as stack:
        ledgers = [stack.enter_context(Ledger(folder)) for folder in part_folders(folder)]
        _write_outcomes(folder / "outcomes.parquet", _products(recipe, work), ledgers)
        _check_losses(recipe, (outcome for _, outcome in outcomes(ledgers, urls)))
    return len(urls) - before.done


def _earlier_runs(
    folders: Sequence[Path],
    urls: Sequence[str],
    limits: FetchSettings,
    retry: Sequence[str],
    images: LocalImages,
    *,
    stored: bool,
) -> tuple[Earlier, dict[str, int], dict[Path, list[str]]]:
    """What earlier runs left after their damage was repaired, URL → number of the folder where it is done, and by
    folder, what is tried again.

    Args:
        stored: the images are on an object store, and the folders are only a copy of the outcomes there.
    """
    before, done, again_of = Earlier(), dict[str, int](), dict[Path, list[str]]()
    for number, folder in enumerate(folders):
        with Ledger(folder, check=True) as ledger:
            if not stored:
                recover(folder, ledger)
            found = [(url, outcome) for url, outcome in outcomes([ledger], urls) if outcome and url not in done]
            here = earlier((outcome for _, outcome in found), limits, retry, images.version)
            if not stored:
                ledger.forget_urls(here.again)
            elif here.again:
                again_of[folder] = here.again
        again = set(here.again)
        done |= {url: number for url, _ in found if url not in again}
        before.add(here)
    return before, done, again_of


def pending(recipe: Recipe, work: Path, retry: Sequence[str] = ()) -> str | None:
    """What `fetch` would do, in words; None if nothing. Writes nothing and makes no request.

    Raises: as `fetch`, if what resolve or an earlier run left cannot be read.
    """
    _check_retry(retry)
    urls = dict.fromkeys(url for batch in _products(recipe, work) for url in _wanted(batch))
    ledgers = [folder / NAME for folder in part_folders(work / _FOLDER)]
    rows = (row for ledger in ledgers for row in query_copy(ledger, "SELECT * FROM outcomes"))
    outcomes = (Outcome(*row[: len(Outcome._fields)]) for row in rows if row[0] in urls)  # the checksum is left out
    images = local_images(recipe, work)
    before = earlier(outcomes, recipe.fetch, retry, images.version)
    left = len(urls) - before.done
    if not left and (work / _FOLDER / "outcomes.parquet").exists():
        return None
    failed = len(before.again) - len(before.replaced)
    again = f", of which {failed:,} failed before" if failed else ""
    replaced = f", {len(before.replaced):,} local images changed" if before.replaced else ""
    return f"{before.done:,} of {len(urls):,} {_noun(urls, images)}s done, {left:,} to fetch{again}{replaced}"


def _noun(urls: Iterable[str], images: LocalImages) -> str:
    return "image" if any(images.is_local(url) for url in urls) else "URL"


def _say_again(before: Earlier, noun: str) -> None:
    reasons = {
        "their local files changed": before.replaced,
        "failures that may pass": before.may_pass,
        "failures that depend on settings of [fetch] which changed": before.changed,
        "failures of the statuses in --retry": before.asked,
    }
    for reason, urls in reasons.items():
        if urls:
            note(f"{_FOLDER}: trying {len(urls):,} {noun}s again: {reason}")


def _check_losses(recipe: Recipe, ended: Iterable[Outcome | None]) -> None:
    """Raise, or warn, if hosts that do not answer cost images."""
    found = losses(ended, recipe.fetch)
    if not found.hosts:
        return
    what = "; ".join(str(host) for host in found.hosts[:3])
    if len(found.hosts) > 3:
        what += f"; and {len(found.hosts) - 3:,} more hosts: {found.lost:,} of {found.urls:,} URLs in all"
    again = "Run the build again when images come: what failed so is tried again."
    if found.too_many and recipe.expect.min_images is None:
        fix = f"{again} To go on without them, state in [expect] how many images are enough, such as min_images = 0."
        raise FetchError(what, where=_FOLDER, fix=fix)
    _log.warning("%s: %s. %s", _FOLDER, what, again)


def _check_retry(retry: Sequence[str]) -> None:
    """Raise UsageError for a status that is not a failure of fetch."""
    known = schemas.RETRIABLE[_FOLDER]
    for status in retry:
        if status not in known:
            raise unknown_name("failure of images", status, known, "--retry")


def _products(recipe: Recipe, work: Path) -> Iterator[pa.RecordBatch]:
    """The resolved products of the parts that get images, some thousand at a time: all at once need much memory."""
    path = str(work / "resolve" / "urls.parquet")
    columns = schemas.OUTCOMES_SCHEMA.names[:4]
    with open_parquet(path, schemas.RESOLVED_SCHEMA) as file, reporting(path):
        for batch in file.iter_batches(_BATCH, columns=["part", *columns], use_threads=False):
            mains = pc.equal(batch["part"], schemas.MAIN)
            yield (batch if recipe.selection.embed_supp else batch.filter(mains)).select(columns)


def _wanted(products: pa.RecordBatch) -> list[str]:
    wanted = pc.is_in(products["image_status"], pa.array(schemas.EMBEDDED_STATUSES))
    urls: list[str] = products["image_url"].filter(wanted).to_pylist()
    return urls


def _write_outcomes(path: Path, products: Iterable[pa.RecordBatch], ledgers: Sequence[Ledger]) -> None:
    with (
        reporting_disk_errors(path),
        replacing(path) as part,
        pq.ParquetWriter(part, schemas.OUTCOMES_SCHEMA) as writer,
    ):
        for batch in products:
            writer.write_batch(_with_outcomes(batch, ledgers))


def _with_outcomes(products: pa.RecordBatch, ledgers: Sequence[Ledger]) -> pa.RecordBatch:
    found = dict(outcomes(ledgers, list(set(_wanted(products)))))
    ended, statuses = list[Outcome](), list[str]()
    for url, resolved in zip(*(products[c].to_pylist() for c in ("image_url", "image_status")), strict=True):
        outcome = found[url] if resolved in schemas.EMBEDDED_STATUSES else _NOT_FETCHED
        assert outcome is not None, "every partition is complete"
        ended.append(outcome)
        statuses.append(resolved if outcome.status == schemas.OK else outcome.status)
    columns = {name: [getattr(outcome, name) for outcome in ended] for name in schemas.OUTCOMES_SCHEMA.names[4:]}
    columns["image_status"] = statuses
    keys = {name: products[name] for name in schemas.OUTCOMES_SCHEMA.names[:3]}
    return pa.record_batch({**keys, **columns}, schema=schemas.OUTCOMES_SCHEMA)
