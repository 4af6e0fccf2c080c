"""From the bytes of an image to its outcome in the ledger: what downloads and local images have in common."""

from __future__ import annotations

import asyncio

from builder.engines import Tick
from builder.fetch.decoders import Decoders
from builder.fetch.ledger import Ledger, Outcome
from sqid_lib import schemas

_TOGETHER = 0.005  # seconds in which results are gathered into one transaction


class Recorder:
    """Decodes and stores images, and commits outcomes together with those that end at the same time.

    Args:
        tick: called with 1 for each outcome, and whether it is a failure.

    Attributes:
        checking: to be held while the bytes of an image are in memory, so that few are.
    """

    def __init__(self, ledger: Ledger, decoders: Decoders, tick: Tick) -> None:
        self.checking = asyncio.Semaphore(2 * decoders.processes)
        self._ledger, self._decoders, self._tick = ledger, decoders, tick
        self._results: list[tuple[Outcome, int | None]] = []  # not yet committed
        self._commit: asyncio.Task[None] | None = None  # of the results

    async def check(self, outcome: Outcome, data: bytes) -> tuple[Outcome, int | None]:
        """The outcome once the bytes are decoded, and the offset of the image in the spool if they are one.

        Raises: as `Decoders.check`.
        """
        found = await self._decoders.check(data)
        outcome = outcome._replace(status=found.status, bytes=len(data), sha256=found.sha256, detail=found.detail)
        return outcome._replace(width=found.width, height=found.height), found.offset

    async def record(self, outcome: Outcome, offset: int | None) -> None:
        """Commit an outcome; it is in the ledger when this returns.

        Raises:
            DiskError: no space left.
        """
        self._results.append((outcome, offset))
        if self._commit is None:
            self._commit = asyncio.create_task(self._commit_soon())
        await asyncio.shield(self._commit)
        self._tick(1, outcome.status != schemas.OK)

    async def finish(self) -> None:
        """Commit what is left, such as results of tasks that were cancelled since."""
        if self._commit:
            await self._commit

    async def _commit_soon(self) -> None:
        await asyncio.sleep(_TOGETHER)
        results, self._results, self._commit = self._results, [], None
        self._ledger.record(results)
