"""A file server on 127.0.0.1 with the habits of real ones: etags, ranges, redirects, failures on demand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit


class FileServer:
    """Serves `root`; `requests` logs (method, path, range).

    Attributes:
        etags, ranges: whether answers carry an ETag and honour Range; without an ETag there is a Last-Modified.
        broken: path → number of answers with status 503 still to give.
        status: path → status always given.
        cuts: path → bytes after which the next answers with a body break off.
        before: path → what happens just before the next answer with a body.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.etags = self.ranges = self.dates = True
        self.broken: dict[str, int] = {}
        self.status: dict[str, int] = {}
        self.cuts: dict[str, list[int]] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.requests: list[tuple[str, str, str | None]] = []

    def __enter__(self) -> FileServer:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                server.answer(self, body=False)

            def do_GET(self) -> None:
                server.answer(self, body=True)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(handler.path).path)
        wanted = handler.headers.get("Range")
        self.requests.append((handler.command, path, wanted))
        status = self.status.get(path, 200)
        if self.broken.get(path, 0) > 0:
            self.broken[path] -= 1
            status = 503
        file = self.root / path.lstrip("/")
        if body and path in self.before:
            self.before.pop(path)()
        if status != 200 or not file.is_file():
            self._send(handler, status if status != 200 else 404, b"", {}, body)
            return
        data = file.read_bytes()
        headers = {}
        if self.etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        elif self.dates:
            headers["Last-Modified"] = handler.date_time_string(file.stat().st_mtime)
        status = 200
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or len(data) - 1), len(data) - 1)
                headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
                data, status = (data[start : stop + 1], 206) if start < len(data) else (b"", 416)
        cut = self.cuts[path].pop(0) if body and self.cuts.get(path) else None
        self._send(handler, status, data, headers, body, cut)

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str],
        body: bool,
        cut: int | None = None,
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if body:
            handler.wfile.write(data[:cut])
        if cut is not None:
            handler.close_connection = True
