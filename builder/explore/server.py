"""Serve the application on one address until Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from sqid_lib.errors import SqidError, UsageError

_REASONS = {
    errno.EADDRINUSE: ("the port is in use", "Give another --port, or 0 for any that is free."),
    errno.EACCES: ("the port is not allowed for this user", "Give a --port above 1023."),
    errno.EADDRNOTAVAIL: ("not an address of this machine", "Give a --host that this machine has."),
}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any that is free.

    Raises:
        UsageError: no such host, or a port outside 0 to 65535.
        SqidError: the port is in use, or the address cannot be used.
    """
    if not 0 <= port <= 65535:
        raise UsageError("bad port", where="--port", expected="0 to 65535", got=port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError("unknown host", where="--host", got=repr(host)) from error
    found = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        what, fix = _REASONS.get(error.errno or 0, (error.strerror or str(error), "Give another --host or --port."))
        raise SqidError(what, where=f"{host}:{port}", fix=fix) from error
    return found


def url_of(listening: socket.socket, host: str) -> str:
    """The URL to open in a browser on this machine."""
    port = listening.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"


class Server(uvicorn.Server):
    """Answers requests; calls `ready` once they are accepted. `should_exit = True` ends it, from any thread."""

    def __init__(self, app: ASGIApp, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=0,
                ws="none",
            )
        )
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def serve(app: ASGIApp, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM; requests that are being answered then are given up."""
    with contextlib.suppress(KeyboardInterrupt):
        Server(app, ready).run(sockets=[listening])


def leave_busy_threads() -> None:
    """End the process now if a thread still works, on a search or a checksum: Python would wait for it at exit."""
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if any(not thread.daemon for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
