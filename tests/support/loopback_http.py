"""The HTTP side of the loopback Hub: named routes, a log of requests, answers, simulated broken connections."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    """One line of the log; `endpoint` is the name of a route, `authorized` whether the request had a token."""

    method: str
    endpoint: str
    path: str
    authorized: bool


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """The request of a client."""

    path: str
    query: Mapping[str, str]
    headers: Message
    body: bytes

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def json(self) -> Any:
        return json.loads(self.body)


class Cut(Exception):
    """Raised in place of an answer, to close the connection."""


def json_answer(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def error_answer(status: int, message: str, code: str = "") -> Answer:
    """A refusal in the format of the Hub."""
    answer = json_answer({"error": message}, status)
    answer.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return answer


def ranged(data: bytes, call: Call, headers: dict[str, str]) -> Answer:
    """`data`, or the part of it a Range header asks for."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if not asked:
        return Answer(200, data, headers)
    first, last = asked.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
        return Answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


@dataclass(frozen=True)
class Site:
    """What one origin serves: name → (method, path), the function that answers, the log of requests.

    `half` says, once for each request, whether its connection breaks when half of the body is read.
    """

    routes: Mapping[str, tuple[str, str]]
    answer: Callable[[str, re.Match[str], Call], Answer]
    log: list[Request]
    half: Callable[[str], bool]


def serve(site: Site) -> ThreadingHTTPServer:
    """Start a server on a free port of 127.0.0.1; end it with shutdown() and server_close()."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not report a client that closed its connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits for the acknowledgement of its headers
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        name, match = self._route(url.path)
        half = self.site.half(name)
        body = self._body(half)
        self.site.log.append(Request(self.command, name, url.path, "Authorization" in self.headers))
        if match is None:
            self._send(error_answer(404, f"unknown endpoint {self.command} {url.path}"))
            return
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        try:
            if half:
                raise Cut
            self._send(self.site.answer(name, match, Call(url.path, query, self.headers, body)))
        except Cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _route(self, path: str) -> tuple[str, re.Match[str] | None]:
        asked = "GET" if self.command == "HEAD" else self.command
        for name, (method, pattern) in self.site.routes.items():
            match = re.fullmatch(pattern, path)
            if match and method == asked:
                return name, match
        return "unknown", None

    def _body(self, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if half else length)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve
