"""Many urls at once, each tried as often as the recipe says, no host hurried."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from builder.fetch.ledger import Ledger, Outcome
from builder.net import ACCEPT_PICTURES, Answer, Client, mirrored
from builder.pictures import Checked, Decoders
from builder.progress import Progress
from builder.recipe import Fetch
from sqid_lib.errors import FetchError

_WAITING = 4  # tasks per connection: so that a slow host does not keep the others' connections idle
_LONGEST_WAIT = 600.0  # seconds; a host that asks for more is left alone for the rest of the run
_BACKOFF = 0.5  # seconds before the first retry, doubled each time
_NETWORK_DOWN = 500  # connections failed in a row


@dataclass
class _Gate:
    """One host: how many requests at once, and until when it asked for peace."""

    turns: asyncio.Semaphore
    not_before: float = 0.0
    closed: str | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self.turns:
            while (wait := self.not_before - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait)
            yield


@dataclass
class Downloads:
    """One run over urls that have no outcome yet."""

    limits: Fetch
    ledger: Ledger
    client: Client
    decoders: Decoders | None
    progress: Progress
    failed_in_a_row: int = 0
    gates: dict[str, _Gate] = field(init=False)

    def __post_init__(self) -> None:
        self.gates = defaultdict(lambda: _Gate(asyncio.Semaphore(self.limits.per_host)))
        self.slots = asyncio.Semaphore(self.limits.concurrency)
        self.checking = asyncio.Semaphore(2 * self.decoders.processes if self.decoders else 4)

    async def run(self, urls: Iterable[str]) -> None:
        """Give every url an outcome in the ledger."""
        window = asyncio.Semaphore(self.limits.concurrency * _WAITING)

        async def one(url: str) -> None:
            try:
                await self._one(url)
            finally:
                window.release()

        async with asyncio.TaskGroup() as tasks:
            for url in urls:
                await window.acquire()
                tasks.create_task(one(url))

    async def _one(self, url: str) -> None:
        request_url = mirrored(url, self.limits.mirrors)
        gate = self.gates[_host(request_url)]
        for attempt in range(self.limits.retries + 1):
            async with AsyncExitStack() as slot:  # held until the outcome is kept, so that a kill repeats few
                async with gate.turn():
                    await slot.enter_async_context(self.slots)
                    answer = await self._ask(gate, request_url)
                if not answer.again or gate.closed or attempt == self.limits.retries:
                    await self._keep(url, answer)
                    return
            await asyncio.sleep(_BACKOFF * 2**attempt * random.uniform(0.5, 1.5))

    async def _ask(self, gate: _Gate, request_url: str) -> Answer:
        if gate.closed:
            return Answer("http_error", request_url, detail=gate.closed)
        answer = await self.client.get(request_url)
        if answer.again and answer.retry_after is not None:
            self._wait_as_asked(gate, answer.retry_after)
        return answer

    async def _keep(self, url: str, answer: Answer) -> None:
        if answer.body is None:
            outcome, data = Outcome(url, answer.status, answer.http_status, detail=answer.detail), None
        else:
            async with self.checking:  # so that few large bodies are in memory
                with answer.body as body:
                    outcome, data = await self._check(url, answer, body)
        self._count_failures(outcome)
        self.ledger.record(outcome, data)
        self.progress.step()

    def _wait_as_asked(self, gate: _Gate, seconds: float) -> None:
        if seconds > _LONGEST_WAIT:
            gate.closed = f"the host asked to be left alone for {seconds:.0f} s"
        else:
            until = asyncio.get_running_loop().time() + seconds + random.uniform(0, 1)
            gate.not_before = max(gate.not_before, until)

    async def _check(self, url: str, answer: Answer, body: IO[bytes]) -> tuple[Outcome, bytes | None]:
        data = body.read()
        checked = await self.decoders.check(data) if self.decoders else Checked("ok")
        if checked.status != "ok":
            return Outcome(url, checked.status, answer.http_status, len(data), detail=checked.detail), None
        sha256 = hashlib.sha256(data).hexdigest()
        return Outcome(url, "ok", answer.http_status, len(data), sha256, checked.width, checked.height), data

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
    urls: Iterable[str], limits: Fetch, ledger: Ledger, progress: Progress, *, spill: Path, decode: bool = True
) -> None:
    """Download every url and record its outcome, in whatever order they arrive.

    Args:
        urls: distinct, none of them in the ledger.
        spill: directory for large bodies in flight.
        decode: check in decoder processes that each body is a picture; without, sizes in pixels stay unknown.

    Raises:
        FetchError: the network is down.
        DiskError: no space left.
    """
    try:
        async with Client(limits, accept=ACCEPT_PICTURES, spill=spill) as client:
            if not decode:
                await Downloads(limits, ledger, client, None, progress).run(urls)
                return
            async with Decoders(max_pixels=limits.max_pixels) as decoders:
                await Downloads(limits, ledger, client, decoders, progress).run(urls)
    except BaseExceptionGroup as group:  # of the task group; the first failure ended the others
        raise group.exceptions[0] from None


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""
