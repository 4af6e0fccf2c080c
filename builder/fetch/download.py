"""Many urls at once, each tried as often as the recipe says, no host hurried."""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from builder.fetch.decoders import Checked, Decoders
from builder.fetch.keeper import Keeper
from builder.fetch.ledger import Outcome
from builder.http.client import ACCEPT_PICTURES, Answer, Client
from builder.http.urls import mirrored
from builder.progress import Progress
from builder.recipe import FetchSettings
from sqid_lib.errors import FetchError

_WAITING = 4  # workers per connection: so that a host that asks for peace does not keep connections idle
_LONGEST_WAIT = 600.0  # seconds; a host that asks for more is left alone for the rest of the run
_BACKOFF = 0.5  # seconds before the first retry, doubled each time
_AUTHORITY = re.compile(r"[a-zA-Z]+://([^/?#]*)")
_NETWORK_DOWN = 500  # connections failed in a row


@dataclass
class _Host:
    """Until when a host asked for peace, and why nothing more is asked of it in this run."""

    not_before: float = 0.0
    closed: str | None = None

    async def peace(self) -> None:
        while (wait := self.not_before - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait)


@dataclass
class Downloads:
    """One run over urls that have no outcome yet."""

    limits: FetchSettings
    keeper: Keeper
    client: Client
    decoders: Decoders | None
    progress: Progress
    failed_in_a_row: int = 0

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.limits.concurrency)
        self.checking = asyncio.Semaphore(2 * self.decoders.processes if self.decoders else 4)

    async def run(self, urls: Iterable[str]) -> None:
        """Give every url an outcome in the ledger: each host has a few workers, the slots are shared by all."""
        hosts: dict[str, list[str]] = defaultdict(list)
        for url in urls:
            hosts[_authority(mirrored(url, self.limits.mirrors))].append(url)
        workers = asyncio.Semaphore(self.limits.concurrency * _WAITING)

        async def work(host: _Host, left: Iterator[str]) -> None:
            try:
                for url in left:
                    await self._one(host, url)
            finally:
                workers.release()

        async with asyncio.TaskGroup() as tasks:
            for of_host in sorted(hosts.values(), key=len, reverse=True):
                host, left = _Host(), iter(of_host)
                for _ in range(min(self.limits.per_host, len(of_host))):
                    await workers.acquire()
                    tasks.create_task(work(host, left))

    async def _one(self, host: _Host, url: str) -> None:
        request_url = mirrored(url, self.limits.mirrors)
        for attempt in range(self.limits.retries + 1):
            await host.peace()
            async with self.slots:  # held until the outcome is kept, so that a kill repeats no more requests than slots
                answer = await self._ask(host, request_url)
                if not answer.again or host.closed or attempt == self.limits.retries:
                    await self._keep(url, answer)
                    return
            await asyncio.sleep(_BACKOFF * 2**attempt * random.uniform(0.5, 1.5))

    async def _ask(self, host: _Host, request_url: str) -> Answer:
        if host.closed:
            return Answer("http_error", request_url, detail=host.closed)
        answer = await self.client.get(request_url)
        if answer.again and answer.retry_after is not None:
            self._wait_as_asked(host, answer.retry_after)
        return answer

    async def _keep(self, url: str, answer: Answer) -> None:
        if answer.body is None:
            outcome, data = Outcome(url, answer.status, answer.http_status, detail=answer.detail), None
        else:
            async with self.checking:  # so that few large bodies are in memory
                with answer.body as body:
                    outcome, data = await self._check(url, answer, body)
        self._count_failures(outcome)
        await self.keeper.keep(outcome, data)
        self.progress.update()

    def _wait_as_asked(self, host: _Host, seconds: float) -> None:
        if seconds > _LONGEST_WAIT:
            host.closed = f"the host asked to be left alone for {seconds:.0f} s"
        else:
            until = asyncio.get_running_loop().time() + seconds + random.uniform(0, 1)
            host.not_before = max(host.not_before, until)

    async def _check(self, url: str, answer: Answer, body: IO[bytes]) -> tuple[Outcome, bytes | None]:
        data = body.read()
        checked = await self.decoders.check(data) if self.decoders else Checked("ok")
        if checked.status != "ok":
            return Outcome(url, checked.status, answer.http_status, len(data), detail=checked.detail), None
        outcome = Outcome(url, "ok", answer.http_status, len(data), width=checked.width, height=checked.height)
        return outcome, data

    def _count_failures(self, outcome: Outcome) -> None:
        self.failed_in_a_row = self.failed_in_a_row + 1 if outcome.status == "connection" else 0
        if self.failed_in_a_row >= _NETWORK_DOWN:
            raise FetchError(
                f"{_NETWORK_DOWN} connections failed in a row",
                where=outcome.url,
                got=outcome.detail,
                fix="If the network was down, build again with --only fetch --retry connection.",
            )


async def download(
    urls: Iterable[str], limits: FetchSettings, folder: Path, progress: Progress, *, decode: bool = True
) -> None:
    """Download every url and record its outcome, in whatever order they arrive.

    Args:
        urls: distinct, none of them in the ledger.
        folder: of the ledger, which nobody may have open; large bodies in flight lie here too.
        decode: check in decoder processes that each body is a picture; without, sizes in pixels stay unknown.

    Raises:
        FetchError: the network is down.
        DiskError: no space left.
        StageError: the process that keeps pictures ended.
    """
    try:
        async with (
            Client(limits, accept=ACCEPT_PICTURES, spill=folder) as client,
            Keeper(folder, limits.max_bytes) as keeper,
            Decoders(max_pixels=limits.max_pixels) as decoders,
        ):
            await Downloads(limits, keeper, client, decoders if decode else None, progress).run(urls)
    except BaseExceptionGroup as group:  # of the task group; the first failure ended the others
        raise group.exceptions[0] from None


def _authority(url: str) -> str:
    match = _AUTHORITY.match(url)
    return match[1].lower() if match else ""
