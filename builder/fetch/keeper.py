"""A thread that writes results into the ledger while the event loop goes on downloading."""

from __future__ import annotations

import asyncio
import queue
import threading
from types import TracebackType
from typing import Self

from builder.fetch.ledger import Ledger, Outcome

_Result = tuple[Outcome, bytes | None]


class Keeper:
    """Results that arrive while one transaction is written go together into the next. An async context manager."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._queue: queue.SimpleQueue[tuple[_Result, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()

    async def keep(self, outcome: Outcome, picture: bytes | None) -> None:
        """Returns when the result is committed; raises what the ledger raises."""
        done = self._loop.create_future()
        self._queue.put(((outcome, picture), done))
        await done

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            batch = [item]
            while not self._queue.empty() and (item := self._queue.get()) is not None:
                batch.append(item)
            problem: Exception | None = None
            try:
                self._ledger.record([result for result, _ in batch])
            except Exception as error:  # goes to whoever waits for it
                problem = error
            self._loop.call_soon_threadsafe(_settle, [done for _, done in batch], problem)
            if item is None:
                return


def _settle(futures: list[asyncio.Future[None]], problem: Exception | None) -> None:
    for future in futures:
        if future.done():  # cancelled
            continue
        if problem is None:
            future.set_result(None)
        else:
            future.set_exception(problem)
