"""One task of fetch: a folder gets an outcome for each of its URLs, and shards of the images.

On several machines the URLs of a host are in one partition, which alone asks it: the limits of a host, its Retry-After
and its failures hold over the whole cluster. The requests at once are shared out among the partitions.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Self, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.database import reporting_disk_errors
from builder.engines import Tick, Work
from builder.fetch.failures import GIVEN_UP, rules_of
from builder.fetch.ledger import Ledger, Outcome, Recorded
from builder.fetch.local_images import LocalImages, store
from builder.fetch.partition_store import FetchStore, urls_checksum
from builder.fetch.shards import DamagedError, assemble, recover
from builder.http.mirrors import authority, mirrored
from builder.recipe import FetchSettings
from sqid_lib.errors import DiskError
from sqid_lib.files import part_folder

_BATCH = 4_096  # URLs looked up at once
_ERROR = "error"
_ROUNDS = 3  # of downloading what was found damaged on disk


@dataclass(frozen=True)
class Partition:
    """Distinct URLs, in the order that their images have in shards, and the folder of ledger, spool and shards.

    Attributes:
        given_up: URLs that end their workers.
        trial: whether shards are left as they are.
        again: URLs whose outcome on an object store is forgotten.
    """

    folder: Path
    urls: Sequence[str]
    given_up: tuple[str, ...] = ()
    trial: bool = False
    again: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.folder.name} with {len(self.urls):,} URLs"

    @property
    def items(self) -> Sequence[str]:
        """As `builder.engines.Divisible`."""
        return self.urls

    def only(self, trial: range) -> Self:
        """As `builder.engines.Divisible`: outcomes are kept."""
        return replace(self, urls=self.urls[trial.start : trial.stop], trial=True)

    def without(self, given_up: Sequence[int]) -> Self:
        """As `builder.engines.Divisible`: these URLs get the status "error"."""
        return replace(self, given_up=tuple(self.urls[number] for number in given_up))


class Partitions(Sequence[Partition]):
    """The partitions, each made when it is asked for.

    Args:
        folders: of the partitions.
        urls: of all partitions, in the order that their images have.
        numbers: of the partition of each URL.
        again: by folder, the URLs whose outcome there is forgotten.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        urls: Sequence[str],
        numbers: NDArray[np.int32],
        again: Mapping[Path, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._folders, self._urls, self._numbers = folders, pa.array(urls, pa.large_string()), numbers
        self._again = dict(again)

    @property
    def folders(self) -> Sequence[Path]:
        """The folder of each partition."""
        return self._folders

    def __len__(self) -> int:
        return len(self._folders)

    @overload
    def __getitem__(self, number: int) -> Partition: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Partition]: ...
    def __getitem__(self, number: int | slice) -> Partition | Sequence[Partition]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        folder, rows = self._folders[number], self._numbers == range(len(self))[number]
        return Partition(folder, self._urls.filter(pa.array(rows)).to_pylist(), again=self._again.get(folder, ()))


def partitions(
    folders: Sequence[Path],
    urls: Sequence[str],
    done: Mapping[str, int],
    limits: FetchSettings,
    machines: int,
    images: LocalImages | None = None,
    again: Mapping[Path, Sequence[str]] = MappingProxyType({}),
) -> tuple[Partitions, FetchSettings]:
    """The partitions of all URLs, and the limits of each of them.

    Args:
        folders: those there are; the first is that of the stage.
        done: URL → number of the folder where its outcome is.
        images: which of the URLs are local images.
        again: folder → the URLs whose outcome there is forgotten.
    """
    parts = share_out((url for url in urls if url not in done), limits, min(machines, limits.concurrency), images)
    at_once = len(set(parts.values()))
    places = [folders[0]] if at_once <= 1 else [part_folder(folders[0], part) for part in range(at_once)]
    folders = list(dict.fromkeys([*folders, *places]))
    place = [folders.index(folder) for folder in places]
    numbers = (done[url] if url in done else place[parts[url]] for url in urls)
    tasks = Partitions(folders, urls, np.fromiter(numbers, np.int32, len(urls)), again)
    return tasks, limits.model_copy(update={"concurrency": limits.concurrency // max(1, at_once)})


def share_out(
    urls: Iterable[str], limits: FetchSettings, parts: int, images: LocalImages | None = None
) -> dict[str, int]:
    """URL → number of its partition, of at most `parts`: a host's URLs are in one, and all have about as many.

    Local images, which ask no host, are in blocks of neighbours, which a file of the products has together.
    """

    def host(number: int, url: str) -> str:
        if images is not None and images.is_local(url):
            return f"local images {number // _BATCH}"
        return authority(mirrored(url, limits.mirrors))

    hosts = [(url, host(number, url)) for number, url in enumerate(urls)]
    loads = [(0, part) for part in range(parts)]
    part_of = {}
    for name, count in Counter(name for _, name in hosts).most_common():
        load, part_of[name] = loads[0]
        heapq.heapreplace(loads, (load + count, part_of[name]))
    return {url: part_of[name] for url, name in hosts}


@contextmanager
def open_downloader(
    limits: FetchSettings, images: LocalImages, _place: str, *, store: FetchStore | None = None
) -> Iterator[Work[Partition]]:
    """The worker of fetch; client and decoders belong to the event loop and the ledger of each partition."""
    yield partial(complete, limits, images) if store is None else partial(complete_stored, store, limits, images)


def complete_stored(
    store: FetchStore, limits: FetchSettings, images: LocalImages, partition: Partition, tick: Tick
) -> None:
    """The same as `complete` for a partition on an object store, in a local folder.

    Raises: as `complete`; and DiskError, DownloadError where the store fails.
    """
    urls = urls_checksum(partition.urls, limits.shard_rows)
    with store.opened(partition.folder, urls, partition.again, partition.trial) as found:
        if found is not None:
            folder, log = found
            complete(limits, images, replace(partition, folder=folder), tick, log.add)


def complete(
    limits: FetchSettings,
    images: LocalImages,
    partition: Partition,
    tick: Tick,
    recorded: Recorded | None = None,
) -> None:
    """Read or download what has no outcome, then make the folder's shards hold exactly the images of all URLs.

    Raises:
        FetchError: the network is down.
        IntegrityError, SourceError: as `local_images.store`.
        DiskError: no space left.
        StageError: this machine cannot make connections or start decoder processes, or the ledger is in use by another
            build.
    """
    for _ in range(_ROUNDS):
        with Ledger(partition.folder, recorded=recorded) as ledger:
            _give_up(partition.given_up, limits, images, ledger, tick)
            todo = [url for url, outcome in outcomes([ledger], partition.urls) if outcome is None]
            urls = [url for url in todo if not images.is_local(url)]
            if urls:
                from builder.fetch.download import download  # its packages are not needed where all is done or local
                from builder.fetch.open_files import fit_open_files
            if len(urls) < len(todo):
                local = [url for url in todo if images.is_local(url)]
                asyncio.run(store(local, images, limits, ledger, tick))
            if urls:
                asyncio.run(download(urls, fit_open_files(limits), ledger, tick))
            if partition.trial or _assemble(limits, partition, ledger):
                return
    raise DiskError("images read back differ from what was written", where=partition.folder, fix="Check the disk.")


def _give_up(given_up: Sequence[str], limits: FetchSettings, images: LocalImages, ledger: Ledger, tick: Tick) -> None:
    """Record that these URLs, which have no outcome, are not tried any more."""
    for url, outcome in outcomes([ledger], given_up):
        if outcome is None:
            rules = rules_of(url, _ERROR, limits, images.version(url))
            ledger.record([(Outcome(url, _ERROR, detail=GIVEN_UP, rules=rules), None)])
            tick(1, 1)


def outcomes(ledgers: Sequence[Ledger], urls: Sequence[str]) -> Iterator[tuple[str, Outcome | None]]:
    """Each URL with its outcome, if one of the ledgers has it."""
    for start in range(0, len(urls), _BATCH):
        batch = urls[start : start + _BATCH]
        found: dict[str, Outcome] = {}
        for ledger in ledgers:
            found |= ledger.look_up([url for url in batch if url not in found])
        yield from ((url, found.get(url)) for url in batch)


def _assemble(limits: FetchSettings, partition: Partition, ledger: Ledger) -> bool:
    """Write the shards; returns whether all images were sound, and forgets those that were not."""
    sha256s = dict.fromkeys(o.sha256 for _, o in outcomes([ledger], partition.urls) if o and o.sha256)
    try:
        with reporting_disk_errors(partition.folder):
            assemble(partition.folder, ledger, list(sha256s), limits.shard_rows)
    except DamagedError as error:  # by a power failure, for example: download them again
        ledger.forget_images(error.sha256s)
        recover(partition.folder, ledger)
        return False
    return True
