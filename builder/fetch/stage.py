"""The stage as a whole: which URLs are wanted, who downloads them, and the table of outcomes at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import engines
from builder.database import query_copy, reporting_disk_errors
from builder.engines import Job
from builder.fetch.ledger import Ledger, Outcome
from builder.fetch.partition import Partition, open_downloader, outcomes
from builder.fetch.shards import recover
from builder.progress import progress
from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.errors import UsageError
from sqid_lib.files import replacing
from sqid_lib.tables.reader import open_parquet, reporting

_FOLDER = "fetch"
_BATCH = 4_096  # products handled at once
_NOT_FETCHED = Outcome("", schemas.OK)


def fetch(recipe: Recipe, work: Path, retry: Sequence[str] = (), engine: str = "local") -> None:
    """Download the distinct image URLs of the resolved products, each once, and store the distinct images.

    Can be killed at any moment and run again: only the requests in flight are repeated. Run again when finished, it
    makes no request; when URLs changed, it requests the new ones. The shards' bytes depend on the images alone.

    Args:
        recipe: `[fetch]` holds the limits, mirrors and allowed hosts.
        work: reads resolve/urls.parquet; writes fetch/outcomes.parquet (`schemas.OUTCOMES_SCHEMA`, a row per product:
            main, and supp with `selection.embed_supp`) and fetch/images-*.parquet (`schemas.IMAGES_SCHEMA`).
        retry: statuses of earlier failures to try again, of `schemas.RETRIABLE["fetch"]`.
        engine: of `builder.engines.ENGINES`.

    Raises:
        UsageError: an unknown engine, or a status in `retry` that is not a failure of fetch.
        FetchError: the network is down.
        DiskError: no space left.
        StageError: the ledger is in use by another build.
        SourceError: resolve/urls.parquet is missing or damaged.
    """
    run = engines.find(engine)
    _check_retry(retry)
    folder = work / _FOLDER
    urls = list(dict.fromkeys(url for batch in _products(recipe, work) for url in _wanted(batch)))
    with Ledger(folder, check=True) as ledger:
        recover(folder, ledger)
        ledger.forget(retry)
        done = sum(outcome is not None for _, outcome in outcomes(ledger, urls))
    with progress(_FOLDER, len(urls), done) as bar:
        run(Job(partial(open_downloader, recipe.fetch), [Partition(folder, urls)]), bar.update)
    with Ledger(folder) as ledger:
        _write_outcomes(folder / "outcomes.parquet", _products(recipe, work), ledger)


def pending(recipe: Recipe, work: Path, retry: Sequence[str] = ()) -> str | None:
    """What `fetch` would do, in words; None if nothing. Writes nothing and makes no request.

    Raises: as `fetch`, if what resolve or an earlier run left cannot be read.
    """
    _check_retry(retry)
    urls = dict.fromkeys(url for batch in _products(recipe, work) for url in _wanted(batch))
    known = query_copy(work / _FOLDER / "ledger.sqlite", "SELECT url, status FROM outcomes")
    done = urls.keys() & {url for url, status in known if status not in retry}
    if len(done) == len(urls) and (work / _FOLDER / "outcomes.parquet").exists():
        return None
    return f"{len(done):,} of {len(urls):,} URLs done, {len(urls) - len(done):,} to fetch"


def _check_retry(retry: Sequence[str]) -> None:
    known = schemas.RETRIABLE[_FOLDER]
    unknown = [status for status in retry if status not in known]
    if unknown:
        raise UsageError("not a failure", where="--retry", expected=", ".join(known), got=", ".join(unknown))


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


def _write_outcomes(path: Path, products: Iterable[pa.RecordBatch], ledger: Ledger) -> None:
    with (
        reporting_disk_errors(path),
        replacing(path) as part,
        pq.ParquetWriter(part, schemas.OUTCOMES_SCHEMA) as writer,
    ):
        for batch in products:
            writer.write_batch(_with_outcomes(batch, ledger))


def _with_outcomes(products: pa.RecordBatch, ledger: Ledger) -> pa.RecordBatch:
    found = ledger.look_up(list(set(_wanted(products))))
    columns: dict[str, list[Any]] = {name: [] for name in schemas.OUTCOMES_SCHEMA.names[3:]}
    for url, resolved in zip(*(products[c].to_pylist() for c in ("image_url", "image_status")), strict=True):
        outcome = found[url] if resolved in schemas.EMBEDDED_STATUSES else _NOT_FETCHED
        columns["image_status"].append(resolved if outcome.status == schemas.OK else outcome.status)
        for name in schemas.OUTCOMES_SCHEMA.names[4:]:
            columns[name].append(getattr(outcome, name))
    keys = {name: products[name] for name in schemas.OUTCOMES_SCHEMA.names[:3]}
    return pa.record_batch({**keys, **columns}, schema=schemas.OUTCOMES_SCHEMA)
