"""The stage as a whole: which urls, what is left to do, and the two tables at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.atomic import replacing
from builder.fetch.download import download
from builder.fetch.ledger import Ledger, Outcome
from builder.fetch.shards import DamagedError, assemble, recover
from builder.progress import Progress
from builder.recipe import Fetch, Recipe
from sqid_lib import schemas
from sqid_lib.errors import DiskError, UsageError
from sqid_lib.tables import read_parquet

_FOLDER = "fetch"
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
    products = read_parquet(str(work / "resolve" / "urls.parquet"), schemas.RESOLVED_SCHEMA)
    if not recipe.selection.embed_supp:
        products = products.filter(pc.equal(products["part"], schemas.MAIN))
    wanted = pc.is_in(products["image_status"], pa.array(schemas.EMBEDDED_STATUSES))
    urls: list[str] = pc.unique(products["image_url"].filter(wanted)).to_pylist()
    folder = work / _FOLDER
    with Ledger(folder) as ledger:
        recover(folder, ledger)
        ledger.forget(retry)
        _download_and_assemble(recipe.fetch, folder, ledger, urls)
        _write_outcomes(folder / "outcomes.parquet", products, ledger)


def _check_retry(retry: Sequence[str]) -> None:
    unknown = [status for status in retry if status not in RETRIABLE]
    if unknown:
        raise UsageError("no such failure", where="--retry", expected=", ".join(RETRIABLE), got=", ".join(unknown))


def _download_and_assemble(limits: Fetch, folder: Path, ledger: Ledger, urls: Sequence[str]) -> None:
    for _ in range(_ROUNDS):
        todo = [url for url in urls if url not in ledger]
        if todo:
            with Progress(_FOLDER, len(urls), len(urls) - len(todo)) as progress:
                asyncio.run(download(todo, limits, ledger, progress, spill=folder))
        sha256s = dict.fromkeys(sha256 for url in urls if (sha256 := ledger[url].sha256))
        try:
            return assemble(folder, ledger, list(sha256s), limits.shard_rows)
        except DamagedError as error:  # by a power cut, say: fetch those again
            ledger.forget_pictures(error.sha256s)
            recover(folder, ledger)
    raise DiskError("pictures read back differ from what was written", where=folder, fix="Check the disk.")


def _write_outcomes(path: Path, products: pa.Table, ledger: Ledger) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in schemas.OUTCOMES_SCHEMA.names[3:]}
    for url, resolved in zip(*(products[c].to_pylist() for c in ("image_url", "image_status")), strict=True):
        outcome = ledger[url] if resolved in schemas.EMBEDDED_STATUSES else Outcome("", "ok")
        columns["image_status"].append(resolved if outcome.status == "ok" else outcome.status)
        for name in schemas.OUTCOMES_SCHEMA.names[4:]:
            columns[name].append(getattr(outcome, name))
    keys = {name: products[name] for name in schemas.OUTCOMES_SCHEMA.names[:3]}
    with replacing(path) as part:
        pq.write_table(pa.table({**keys, **columns}, schema=schemas.OUTCOMES_SCHEMA), part)
