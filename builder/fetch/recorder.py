"""From the bytes of an image to its outcome in the ledger: what downloads and local images have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from builder.engines import Tick
from builder.fetch.decoders import Checked, Decoders
from builder.fetch.ledger import Ledger, Outcome
from sqid_lib import schemas

_TOGETHER = 0.005  # seconds in which results are gathered into one transaction


class Recorder:
    """Decodes and stores images, and commits outcomes together with those that end at the same time.

    Args:
        tick: called with 1 for each outcome, and whether it is a failure.
    """

    def __init__(self, ledger: Ledger, decoders: Decoders, tick: Tick) -> None:
        self._ledger, self._decoders, self._tick = ledger, decoders, tick
        self._results: list[tuple[Outcome, int | None, asyncio.Future[None]]] = []  # not yet committed

    def check(self, outcome: Outcome, data: bytes) -> Coroutine[Any, Any, tuple[Outcome, int | None]]:
        """The outcome once the bytes are decoded, and the offset of the image in the spool if they are one.

        The bytes are in the spool when this returns, so that few images are in memory; await it to wait for the rest.

        Raises: as `Decoders.check`.
        """
        return self._outcome(outcome, len(data), self._decoders.check(data))

    async def _outcome(
        self, outcome: Outcome, length: int, checking: asyncio.Future[Checked]
    ) -> tuple[Outcome, int | None]:
        found = await checking
        url, _, http_status, *_ = outcome
        size = found.width, found.height
        return Outcome(url, found.status, http_status, length, found.sha256, *size, found.detail), found.offset

    async def record(self, outcome: Outcome, offset: int | None) -> None:
        """Commit an outcome; it is in the ledger when this returns.

        Raises:
            DiskError: no space left.
        """
        loop = asyncio.get_running_loop()
        committed = loop.create_future()
        if not self._results:
            loop.call_later(_TOGETHER, self._commit)
        self._results.append((outcome, offset, committed))
        await committed
        self._tick(1, outcome.status != schemas.OK)

    def finish(self) -> None:
        """Commit what is left: results of tasks that were cancelled since.

        Raises: as `record`.
        """
        results, self._results = self._results, []
        if results:
            self._ledger.record([(outcome, offset) for outcome, offset, _ in results])

    def _commit(self) -> None:
        waiting = [committed for _, _, committed in self._results]
        try:
            self.finish()
        except Exception as error:
            for committed in waiting:
                if not committed.done():  # else cancelled
                    committed.set_exception(error)
        else:
            for committed in waiting:
                if not committed.done():
                    committed.set_result(None)
