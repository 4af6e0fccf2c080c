"""Many URLs at once, each tried as often as the recipe says, within the limits of each host."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from builder.engines import Tick
from builder.fetch.decoders import Decoders
from builder.fetch.failures import NOT_REQUESTED, may_pass, rules_of
from builder.fetch.ledger import Ledger, Outcome
from builder.fetch.recorder import Recorder
from builder.http.client import ACCEPT_IMAGES, Answer, Client
from builder.http.mirrors import authority, mirrored
from builder.recipe import FetchSettings
from sqid_lib.errors import FetchError

_WAITING = 4  # workers per connection, so that a host in Retry-After back-off does not keep connections idle
_LONGEST_WAIT = 600.0  # seconds; a host that asks for more gets no more requests in this run
_BACKOFF = 0.5  # seconds before the first retry, doubled each time
_HOST_DOWN = 20  # URLs of one host failed in a row; a host of 50 images that dies is noticed, a short break is not
_NETWORK_DOWN = 200  # URLs of several hosts failed in a row
_OWN = ("bad_url", "refused")  # no request was made: says nothing about the host


@dataclass
class _Host:
    """Until when a host must not be asked (Retry-After), and what its URLs get when it is not asked any more."""

    not_before: float = 0.0
    closed: Answer | None = None
    failed_in_a_row: int = 0

    async def wait_retry_after(self) -> None:
        while (wait := self.not_before - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait)


async def download(urls: Iterable[str], limits: FetchSettings, ledger: Ledger, tick: Tick) -> None:
    """Download every URL, store the images, and record an outcome for each URL, in whatever order they arrive.

    Args:
        urls: distinct, none of them in the ledger.
        ledger: large bodies in flight are put beside its spool.
        tick: called with 1 for each URL, and whether it failed.

    Raises:
        FetchError: the network is down, or this machine cannot make connections; nothing is recorded for URLs in
            progress.
        DiskError: no space left.
        StageError: decoder processes do not start.
    """
    try:
        async with (
            Client(limits, accept=ACCEPT_IMAGES, spill=ledger.spool_path.parent) as client,
            Decoders(ledger, max_pixels=limits.max_pixels, keep_truncated=limits.truncated == "keep") as decoders,
        ):
            await _Downloads(limits, client, Recorder(ledger, decoders, tick)).run(urls)
    except BaseExceptionGroup as group:  # of the task group: the first failure ended the others
        raise group.exceptions[0] from None


@dataclass
class _Downloads:
    """One run over URLs that have no outcome yet."""

    limits: FetchSettings
    client: Client
    recorder: Recorder
    failed_in_a_row: int = 0

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.limits.concurrency)

    async def run(self, urls: Iterable[str]) -> None:
        """Each host has a few workers; the slots are shared by all."""
        hosts: dict[str, list[str]] = defaultdict(list)
        for url in urls:
            hosts[authority(mirrored(url, self.limits.mirrors))].append(url)
        workers = asyncio.Semaphore(self.limits.concurrency * _WAITING)

        async def work(host: _Host, left: Iterator[str]) -> None:
            try:
                for url in left:
                    await self._one(host, url)
            finally:
                workers.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                for of_host in sorted(hosts.values(), key=len, reverse=True):
                    host, left = _Host(), iter(of_host)
                    for _ in range(min(self.limits.per_host, len(of_host))):
                        await workers.acquire()
                        tasks.create_task(work(host, left))
        finally:
            self.recorder.finish()

    async def _one(self, host: _Host, url: str) -> None:
        request_url = mirrored(url, self.limits.mirrors)
        for attempt in range(self.limits.retries + 1):
            await host.wait_retry_after()
            async with self.slots:  # until the outcome is committed: a kill repeats no more requests than slots
                answer = await self._ask(host, request_url)
                if not answer.again or host.closed or attempt == self.limits.retries:
                    await self._finish(host, url, answer)
                    return
            await asyncio.sleep(_BACKOFF * 2**attempt * random.uniform(0.5, 1.5))

    async def _ask(self, host: _Host, request_url: str) -> Answer:
        if host.closed:
            return host.closed
        answer = await self.client.get(request_url)
        if answer.again and answer.retry_after is not None:
            self._back_off(host, answer.retry_after)
        return answer

    def _back_off(self, host: _Host, seconds: float) -> None:
        if seconds > _LONGEST_WAIT:
            why = f"{NOT_REQUESTED}the host asked to be left alone for {seconds:.0f} s"
            host.closed = Answer("http_error", "", detail=why)
        else:
            until = asyncio.get_running_loop().time() + seconds + random.uniform(0, 1)
            host.not_before = max(host.not_before, until)

    async def _finish(self, host: _Host, url: str, answer: Answer) -> None:
        """Check and store the image, if one came, and commit the outcome."""
        outcome, offset = Outcome(url, answer.status, answer.http_status, detail=answer.detail), None
        if answer.body is not None:
            with answer.body as body:
                checking = self.recorder.check(outcome, body.read())
            outcome, offset = await checking
        await self.recorder.record(outcome._replace(rules=rules_of(url, outcome.status, self.limits)), offset)
        if answer is not host.closed and outcome.status not in _OWN:
            self._count_failures(host, outcome)

    def _count_failures(self, host: _Host, outcome: Outcome) -> None:
        """Ask a host no more that does not answer, and end the run if none does."""
        if not may_pass(outcome):
            host.failed_in_a_row = self.failed_in_a_row = 0
            return
        host.failed_in_a_row += 1
        self.failed_in_a_row += 1
        if host.failed_in_a_row >= _HOST_DOWN and not host.closed:
            why = f"{NOT_REQUESTED}{host.failed_in_a_row} URLs of the host failed in a row"
            host.closed = Answer("connection", "", detail=why)
        if self.failed_in_a_row >= _NETWORK_DOWN:
            raise FetchError(
                f"{_NETWORK_DOWN} URLs of several hosts failed in a row",
                where=outcome.url,
                got=outcome.detail,
                fix="Check the network and build again: what failed so is tried again.",
            )
