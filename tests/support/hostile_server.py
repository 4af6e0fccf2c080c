"""A loopback server that answers raw bytes: every way in which an untrusted server can be wrong, slow or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from PIL import Image


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


class LoopbackServer:
    """Runs `handler` for every request on 127.0.0.1, a free port, in a thread. A context manager.

    Attributes:
        requests: every request so far, in order.
        connections: how many were made.
    """

    def __init__(self, handler: Handler) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._handler = handler
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hits(self) -> Counter[str]:
        return Counter(request.path for request in self.requests)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            self.connections += 1
            try:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                    while True:
                        await self._one(reader, writer)
            except asyncio.CancelledError:
                pass
            finally:
                connections.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=512)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        request = Request(head[0].split(" ")[1], headers)
        self.requests.append(request)
        await self._handler(request, writer)
        await writer.drain()


def answer(body: bytes = b"", code: int = 200, **headers: object) -> bytes:
    """An HTTP/1.1 answer; underscores in header names become hyphens."""
    lines = [f"HTTP/1.1 {code} X", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    if "Content_Length" not in headers and "Transfer_Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (seed % 256, 0, 99)).save(buffer, "JPEG", comment=f"image {seed}")
    return buffer.getvalue()


def bomb_png(width: int, height: int) -> bytes:
    """A small file whose header promises a huge image."""
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = (len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def large_png() -> bytes:
    """An image of about 900 KB."""
    buffer = io.BytesIO()
    Image.effect_noise((950, 950), 90).save(buffer, "PNG")
    return buffer.getvalue()


def gzip_bomb(mebibytes: int) -> bytes:
    """About a thousandth of what it becomes."""
    zeros, checksum = bytes(1 << 20), 0
    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)  # stands alone: it may be repeated
    for _ in range(mebibytes):
        checksum = zlib.crc32(zeros, checksum)
    ends = checksum.to_bytes(4, "little") + (mebibytes << 20).to_bytes(4, "little")
    return gzip.compress(b"", mtime=0)[:10] + packed * mebibytes + deflate.flush() + ends


JPEG = jpeg(7)
STATUS_200 = answer(JPEG)
STATIC = {
    "/large": answer(large_png()),
    "/ok": answer(JPEG),
    "/ok-no-length": b"HTTP/1.0 200 OK\r\n\r\n" + JPEG,
    "/ok-gzip": answer(gzip.compress(JPEG, mtime=0), Content_Encoding="gzip"),
    "/ok-deflate": answer(zlib.compress(JPEG), Content_Encoding="deflate"),
    "/ok-said-to-be-html": answer(JPEG, Content_Type="text/html"),
    "/empty": answer(),
    "/html": answer(b"<html>Sorry</html>", Content_Type="image/jpeg"),
    "/svg": answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>", Content_Type="image/svg+xml"),
    "/truncated-image": answer(JPEG[: len(JPEG) // 2]),
    "/pixel-bomb": answer(bomb_png(60_000, 60_000)),
    "/gzip-bomb": answer(gzip_bomb(400), Content_Encoding="gzip"),
    "/gzip-truncated": answer(gzip.compress(JPEG, mtime=0)[:-20], Content_Encoding="gzip"),
    "/gzip-false": answer(JPEG, Content_Encoding="gzip"),
    "/brotli": answer(JPEG, Content_Encoding="br"),
    "/404": answer(b"gone", 404),
    "/410": answer(b"", 410),
    "/401": answer(b"", 401),
    "/403": answer(b"", 403),
    "/418": answer(b"", 418),
    "/204": b"HTTP/1.1 204 X\r\n\r\n",
    "/206": answer(JPEG, 206),
    "/500": answer(b"", 500),
    "/503-for-a-day": answer(b"", 503, Retry_After=86_400),
    "/304": b"HTTP/1.1 304 X\r\n\r\n",
    "/redirect-nowhere": answer(b"", 302),
    "/redirect-loop": answer(b"", 302, Location="/redirect-loop"),
    "/redirect-file": answer(b"", 302, Location="file:///etc/passwd"),
    "/redirect-script": answer(b"", 302, Location="javascript:alert(1)"),
    "/redirect-broken": answer(b"", 302, Location="http://[::1/"),
    "/redirect-utf8": answer(b"", 302, Location="/caf\u00e9|%7C"),
    "/redirect-raw": answer(b"", 302, Location="/caf@").replace(b"@", b"\xe9"),
    "/redirect-0": answer(b"", 301, Location="/ok"),
    "/redirect-1": answer(b"", 302, Location="redirect-0"),
    "/redirect-2": answer(b"", 307, Location="/redirect-1"),
    "/redirect-3": answer(b"", 308, Location="/redirect-2"),
    "/says-too-much": answer(b"", Content_Length=10**12),
    "/negative-length": answer(b"", Content_Length=-5),
    "/garbage": b"\x00\xff garbage that is no HTTP\r\n\r\n",
    "/long-header": b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "/bad-chunks": answer(Transfer_Encoding="chunked") + b"zzz\r\nnot a chunk\r\n",
    "/transfer-gzip": answer(Transfer_Encoding="gzip, chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    "/two-lengths": answer(JPEG, Content_Length=5).replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n", 1),
    "/ok-trailers": answer(Transfer_Encoding="chunked")
    + b"%x\r\n%s\r\n0\r\nHTTP/1.1 404: X\r\nX-Late: 1\r\n\r\n" % (len(JPEG), JPEG),
    "/ok-after-hints": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer(JPEG),
    "/big-404": answer(bytes(5_000_000), 404),
    "/cut-404": answer(b"gone", 404, Content_Length=1000),
    "/status-tab": STATUS_200.replace(b" ", b"\t", 1),
    "/status-glued": STATUS_200.replace(b"200 ", b"200"),
    "/status-long": STATUS_200.replace(b"200", b"2000", 1),
    "/status-small": STATUS_200.replace(b"HTTP", b"http"),
    "/status-trailer": answer(Transfer_Encoding="chunked") + b"0\r\nHTTP/1.1 404 X: y\r\n\r\n",
    "/words": answer(Transfer_Encoding="@x@, chunked").replace(b"@", b"\x85\x1b"),
    "/redirect-brackets": answer(b"", 302, Location="http://a]b[x@"),
    "/endless-trailers": answer(Transfer_Encoding="chunked") + b"1\r\nx\r\n0\r\n" + b"A: %s\r\n" % (b"b" * 4000) * 99,
    "/gzip-junk": answer(gzip.compress(JPEG, mtime=0) + bytes(19_000_000), Content_Encoding="gzip"),
    "/cookie": answer(JPEG, Set_Cookie="a=b; Path=/"),
}


async def hostile(request: Request, writer: asyncio.StreamWriter) -> None:
    """Answers by path; unknown paths are 404."""
    if request.path in STATIC:
        writer.write(STATIC[request.path])
        await writer.drain()
        if request.path in ("/ok-no-length", "/says-too-much", "/garbage", "/bad-chunks", "/cut-404"):
            raise ConnectionResetError
    elif request.path.startswith("/to/"):  # /to/HOST:PORT redirects there
        writer.write(answer(b"", 302, Location=f"http://{request.path[4:]}/private"))
    elif request.path in _LIVE:
        await _LIVE[request.path](writer)
    else:
        writer.write(STATIC["/404"])


async def _endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def _endless_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(Transfer_Encoding="chunked"))
    while True:
        writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        await writer.drain()


async def _endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1 << 40):
        writer.write(b"X-%d: %s\r\n" % (number, b"a" * 4000))
        await writer.drain()


async def _endless_interim(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 50)
        await writer.drain()
        await asyncio.sleep(0.01)


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(Content_Length=len(JPEG)))
    for byte in JPEG:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def _silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _stops(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(Content_Length=len(JPEG)) + JPEG[:100])
    await writer.drain()
    await asyncio.sleep(3600)


async def _cut(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(Content_Length=len(JPEG)) + JPEG[:100])
    await writer.drain()
    raise ConnectionResetError


async def _reset(writer: asyncio.StreamWriter) -> None:
    raise ConnectionResetError


_LIVE: dict[str, Callable[[asyncio.StreamWriter], Awaitable[None]]] = {
    "/endless-body": _endless_body,
    "/endless-chunks": _endless_chunks,
    "/endless-headers": _endless_headers,
    "/endless-interim": _endless_interim,
    "/drip": _drip,
    "/silence": _silence,
    "/stops": _stops,
    "/cut": _cut,
    "/reset": _reset,
}
