"""One task of fetch: a folder gets an outcome for each of its URLs, and shards of the images."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from builder.database import reporting_disk_errors
from builder.engines import Tick, Work
from builder.fetch.ledger import Ledger, Outcome
from builder.fetch.local_images import LocalImages, store
from builder.fetch.shards import DamagedError, assemble, recover
from builder.recipe import FetchSettings
from sqid_lib.errors import DiskError

_BATCH = 4_096  # URLs looked up at once
_ROUNDS = 3  # of downloading what was found damaged on disk


@dataclass(frozen=True)
class Partition:
    """Distinct URLs, in the order that their images have in shards, and the folder of ledger, spool and shards."""

    folder: Path
    urls: Sequence[str]


@contextmanager
def open_downloader(limits: FetchSettings, images: LocalImages, _place: str) -> Iterator[Work[Partition]]:
    """The worker of fetch; client and decoders belong to the event loop and the ledger of each partition."""
    yield partial(complete, limits, images)


def complete(limits: FetchSettings, images: LocalImages, partition: Partition, tick: Tick) -> None:
    """Read or download what has no outcome, then make the folder's shards hold exactly the images of all URLs.

    Raises:
        FetchError: the network is down.
        IntegrityError, SourceError: as `local_images.store`.
        DiskError: no space left.
        StageError: this machine cannot make connections or start decoder processes, or the ledger is in use by another
            build.
    """
    for _ in range(_ROUNDS):
        with Ledger(partition.folder) as ledger:
            todo = [url for url, outcome in outcomes(ledger, partition.urls) if outcome is None]
            urls = [url for url in todo if not images.is_local(url)]
            if urls:
                from builder.fetch.download import download  # its packages are not needed where all is done or local
                from builder.fetch.open_files import fit_open_files
            if len(urls) < len(todo):
                local = [url for url in todo if images.is_local(url)]
                asyncio.run(store(local, images, limits, ledger, tick))
            if urls:
                asyncio.run(download(urls, fit_open_files(limits), ledger, tick))
            if _assemble(limits, partition, ledger):
                return
    raise DiskError("images read back differ from what was written", where=partition.folder, fix="Check the disk.")


def outcomes(ledger: Ledger, urls: Sequence[str]) -> Iterator[tuple[str, Outcome | None]]:
    """Each URL with its outcome, if it has one."""
    for start in range(0, len(urls), _BATCH):
        batch = urls[start : start + _BATCH]
        found = ledger.look_up(batch)
        yield from ((url, found.get(url)) for url in batch)


def _assemble(limits: FetchSettings, partition: Partition, ledger: Ledger) -> bool:
    """Write the shards; returns whether all images were sound, and forgets those that were not."""
    sha256s = dict.fromkeys(o.sha256 for _, o in outcomes(ledger, partition.urls) if o and o.sha256)
    try:
        with reporting_disk_errors(partition.folder):
            assemble(partition.folder, ledger, list(sha256s), limits.shard_rows)
    except DamagedError as error:  # by a power failure, for example: download them again
        ledger.forget_images(error.sha256s)
        recover(partition.folder, ledger)
        return False
    return True
