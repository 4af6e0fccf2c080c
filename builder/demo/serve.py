"""A loopback web server for the shop's images."""

from __future__ import annotations

import mimetypes
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from builder.demo.shop import MOVED

_HOST = "127.0.0.1"


class _Images(SimpleHTTPRequestHandler):
    """Files of a directory; a path under MOVED is redirected to the same path outside it."""

    protocol_version = "HTTP/1.1"  # so that connections are reused
    timeout = 5  # seconds; closes idle connections, so that the server can stop

    def do_GET(self) -> None:
        if self.path.startswith(f"/{MOVED}"):
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", "/" + self.path.removeprefix(f"/{MOVED}").lstrip("/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the build reports its requests."""


@contextmanager
def serve_images(directory: Path) -> Iterator[str]:
    """Serve `directory` on a free port of 127.0.0.1 while the context is open; yields "host:port".

    The port is the same each time if it is free: another one would be another mirror, whose failures are tried again.
    """
    mimetypes.add_type("image/webp", ".webp")  # unknown to Python before 3.13
    with _server(directory) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"{_HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _server(directory: Path) -> ThreadingHTTPServer:
    handler = partial(_Images, directory=str(directory))
    try:
        return ThreadingHTTPServer((_HOST, _usual_port(directory)), handler)
    except OSError:
        return ThreadingHTTPServer((_HOST, 0), handler)


def usual_address(directory: Path) -> str:
    """The "host:port" where `serve_images` serves it if the port is free."""
    return f"{_HOST}:{_usual_port(directory)}"


def _usual_port(directory: Path) -> int:
    return 49_152 + zlib.crc32(os.fsencode(directory.resolve())) % 16_384  # those for private use
