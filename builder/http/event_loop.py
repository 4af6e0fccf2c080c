"""Curl's transfers in the event loop, which watches all their sockets through one file descriptor.

pycurl's own AsyncCurlMulti adds every socket to the loop and removes it again for each request, a quarter of all work.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from sqid_lib.errors import missing_extra

try:
    import pycurl
except ImportError:
    raise missing_extra("pycurl", "build", "to download images") from None

Problem = tuple[int, str]  # curl's error code and message

_INTEREST = {
    pycurl.POLL_IN: selectors.EVENT_READ,
    pycurl.POLL_OUT: selectors.EVENT_WRITE,
    pycurl.POLL_INOUT: selectors.EVENT_READ | selectors.EVENT_WRITE,
}
_READY = {
    selectors.EVENT_READ: pycurl.CSELECT_IN,
    selectors.EVENT_WRITE: pycurl.CSELECT_OUT,
    selectors.EVENT_READ | selectors.EVENT_WRITE: pycurl.CSELECT_IN | pycurl.CSELECT_OUT,
}


class Connections:
    """Runs transfers in the running event loop; connections stay open for further requests.

    Args:
        total: connections at once; further transfers wait.
        per_host: the same, to one host and port.
    """

    def __init__(self, total: int, per_host: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._coming: dict[pycurl.Curl, asyncio.Future[Problem | None]] = {}
        self._due: float | None = None  # when curl wants to be called, by the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._watched: set[int] = set()
        self._selector: Any = selectors.DefaultSelector()
        self._loop.add_reader(self._selector.fileno(), self._ready)
        self._multi = pycurl.CurlMulti()
        options = {
            pycurl.M_MAX_TOTAL_CONNECTIONS: total,
            pycurl.M_MAX_HOST_CONNECTIONS: per_host,
            pycurl.M_MAXCONNECTS: total,
            pycurl.M_SOCKETFUNCTION: self._watch,
            pycurl.M_TIMERFUNCTION: self._wake,
        }
        for option, value in options.items():
            self._multi.setopt(option, value)

    def begin(self, curl: pycurl.Curl) -> asyncio.Future[Problem | None]:
        """Start a transfer. The result is None, or the problem that ended it."""
        coming = self._coming[curl] = self._loop.create_future()
        self._multi.add_handle(curl)
        return coming

    def abandon(self, curl: pycurl.Curl) -> None:
        """Abort a transfer, if it has not ended."""
        if self._coming.pop(curl, None):
            self._multi.remove_handle(curl)

    def close(self) -> None:
        """Abort all transfers, cancel those who wait for them, and close all connections."""
        for curl, coming in list(self._coming.items()):
            self.abandon(curl)
            coming.cancel()
        if self._timer:
            self._timer.cancel()
        self._loop.remove_reader(self._selector.fileno())
        self._multi.close()
        self._selector.close()

    # -- called by curl -----------------------------------------------------------------------------------------

    def _watch(self, what: int, socket: int, _multi: object, _data: object) -> None:
        if what == pycurl.POLL_REMOVE:
            if socket in self._watched:
                self._watched.remove(socket)
                self._selector.unregister(socket)
        elif socket in self._watched:
            self._selector.modify(socket, _INTEREST[what])
        else:
            self._watched.add(socket)
            self._selector.register(socket, _INTEREST[what])

    def _wake(self, milliseconds: int) -> None:
        """Curl moves its timer twice a request, mostly to later: the loop's is replaced only if it must be sooner."""
        if milliseconds < 0:
            self._due = None
            return
        self._due = self._loop.time() + milliseconds / 1000
        if self._timer is None or self._due < self._timer.when():
            if self._timer:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._time_is_up)

    # -- called by the loop -------------------------------------------------------------------------------------

    def _time_is_up(self) -> None:
        self._timer = None
        if self._due is not None and self._due > self._loop.time():
            self._timer = self._loop.call_at(self._due, self._time_is_up)
        elif self._due is not None:
            self._due = None
            self._act([(pycurl.SOCKET_TIMEOUT, 0)])

    def _ready(self) -> None:
        self._act([(key.fd, _READY[events]) for key, events in self._selector.select(0)])

    def _act(self, sockets: list[tuple[int, int]]) -> None:
        try:
            for socket, events in sockets:
                self._multi.socket_action(socket, events)
        except pycurl.error as error:  # no transfer can go on
            for curl, coming in list(self._coming.items()):
                self.abandon(curl)
                self._settle(coming, (error.args[0], f"curl failed: {error.args[-1]}"))
        left = 1
        while left:
            left, whole, failed = self._multi.info_read()
            for curl in whole:
                self._end(curl, None)
            for curl, code, message in failed:
                self._end(curl, (code, message))

    def _end(self, curl: pycurl.Curl, problem: Problem | None) -> None:
        self._multi.remove_handle(curl)
        self._settle(self._coming.pop(curl), problem)

    @staticmethod
    def _settle(coming: asyncio.Future[Problem | None], problem: Problem | None) -> None:
        if not coming.done():  # else cancelled
            coming.set_result(problem)
