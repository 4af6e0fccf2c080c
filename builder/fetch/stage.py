"""The stage as a whole: which urls, what is left to do, and the two tables at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.database import query_copy, telling_disk
from builder.fetch.download import download
from builder.fetch.ledger import Ledger, Outcome
from builder.fetch.shards import DamagedError, assemble, recover
from builder.progress import progress
from builder.recipe import FetchSettings, Recipe
from sqid_lib import schemas
from sqid_lib.errors import DiskError, UsageError
from sqid_lib.files import replacing
from sqid_lib.tables.reader import open_parquet, reporting

_FOLDER = "fetch"
_BATCH = 4_096  # products or urls handled at once
_NOT_FETCHED = Outcome("", "ok")
_ROUNDS = 3  # of downloading what was found damaged on disk
RETRIABLE = tuple(
    status
    for status in schemas.IMAGE_STATUS
    if status not in (schemas.OK, schemas.MISSING, schemas.PLACEHOLDER, schemas.GENERIC, "unavailable", "non_finite")
)


def fetch(recipe: Recipe, work: Path, retry: Sequence[str] = ()) -> None:
    """Download the distinct image urls of the resolved products, each once, and keep the distinct pictures.

    Can be killed at any moment and run again: only the requests in flight are repeated. Run again when finished, it
    makes no request; when urls changed, it requests the new ones. The shards' bytes depend on the pictures alone.

    Args:
        recipe: `[fetch]` holds the limits, mirrors and allowed hosts.
        work: reads resolve/urls.parquet; writes fetch/outcomes.parquet (`schemas.OUTCOMES_SCHEMA`, a row per product:
            main, and supp with `selection.embed_supp`) and fetch/images-*.parquet (`schemas.IMAGES_SCHEMA`).
        retry: statuses of earlier failures to try again.

    Raises:
        UsageError: a status in `retry` is no failure.
        FetchError: the network is down.
        DiskError: no space left.
        SourceError: resolve/urls.parquet is not there or damaged.
    """
    _check_retry(retry)
    folder = work / _FOLDER
    urls = list(dict.fromkeys(url for batch in _products(recipe, work) for url in _wanted(batch)))
    with Ledger(folder) as ledger:
        recover(folder, ledger)
        ledger.forget(retry)
    for _ in range(_ROUNDS):
        _download(recipe.fetch, folder, urls)
        with Ledger(folder) as ledger:
            if _assemble(recipe.fetch, folder, ledger, urls):
                return _write_outcomes(folder / "outcomes.parquet", _products(recipe, work), ledger)
    raise DiskError("pictures read back differ from what was written", where=folder, fix="Check the disk.")


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


def _products(recipe: Recipe, work: Path) -> Iterator[pa.RecordBatch]:
    """The resolved products of the parts that get pictures, some thousand at a time: all at once need much memory."""
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


def _check_retry(retry: Sequence[str]) -> None:
    unknown = [status for status in retry if status not in RETRIABLE]
    if unknown:
        raise UsageError("no such failure", where="--retry", expected=", ".join(RETRIABLE), got=", ".join(unknown))


def _download(limits: FetchSettings, folder: Path, urls: Sequence[str]) -> None:
    with Ledger(folder) as ledger:
        todo = [url for url, outcome in _outcomes(ledger, urls) if outcome is None]
    if todo:
        with progress(_FOLDER, len(urls), len(urls) - len(todo)) as bar:
            asyncio.run(download(todo, limits, folder, bar))


def _assemble(limits: FetchSettings, folder: Path, ledger: Ledger, urls: Sequence[str]) -> bool:
    """Write the shards; says whether all pictures were sound, and forgets those that were not."""
    sha256s = dict.fromkeys(o.sha256 for _, o in _outcomes(ledger, urls) if o and o.sha256)
    try:
        with telling_disk(folder):
            assemble(folder, ledger, list(sha256s), limits.shard_rows)
    except DamagedError as error:  # by a power cut, say: fetch those again
        ledger.forget_pictures(error.sha256s)
        recover(folder, ledger)
        return False
    return True


def _outcomes(ledger: Ledger, urls: Sequence[str]) -> Iterator[tuple[str, Outcome | None]]:
    for start in range(0, len(urls), _BATCH):
        batch = urls[start : start + _BATCH]
        found = ledger.look_up(batch)
        yield from ((url, found.get(url)) for url in batch)


def _write_outcomes(path: Path, products: Iterable[pa.RecordBatch], ledger: Ledger) -> None:
    with telling_disk(path), replacing(path) as part, pq.ParquetWriter(part, schemas.OUTCOMES_SCHEMA) as writer:
        for batch in products:
            writer.write_batch(_with_outcomes(batch, ledger))


def _with_outcomes(products: pa.RecordBatch, ledger: Ledger) -> pa.RecordBatch:
    found = ledger.look_up(list(set(_wanted(products))))
    columns: dict[str, list[Any]] = {name: [] for name in schemas.OUTCOMES_SCHEMA.names[3:]}
    for url, resolved in zip(*(products[c].to_pylist() for c in ("image_url", "image_status")), strict=True):
        outcome = found[url] if resolved in schemas.EMBEDDED_STATUSES else _NOT_FETCHED
        columns["image_status"].append(resolved if outcome.status == "ok" else outcome.status)
        for name in schemas.OUTCOMES_SCHEMA.names[4:]:
            columns[name].append(getattr(outcome, name))
    keys = {name: products[name] for name in schemas.OUTCOMES_SCHEMA.names[:3]}
    return pa.record_batch({**keys, **columns}, schema=schemas.OUTCOMES_SCHEMA)
